//! A whole gather: hosts are started, files found, moves made, and what became of it is told.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write as _,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::{
    args::Args,
    begin::{self, Peer, Word},
    binary, data,
    events::{Event, Kind, Log},
    forecast,
    gather::{Gather, Host, Wish},
    here::{self, Here},
    journal::Subject,
    ledger::{End, Ledger},
    outcome::{Freed, Missing, Outcome, node_seconds},
    part::{Begun, Part},
    pattern,
    progress::Progress,
    rates::ASSUMED,
    shell::Shells,
    spans::Spans,
    taktuk,
    wire::{Begin, Identity, ItemId, Report},
};
use crate::transfer::{
    plan::{Place, Policy, bounds::Input},
    plot::{self, Curve},
};

/// How often is looked at what does not move.
const TICK: Duration = Duration::from_millis(50);

/// Gathers; failure of a file or host is told by the exit code.
pub(super) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let hosts = args.hosts()?;
    ensure!((1..=data::LARGEST).contains(&args.chunk.0), "--chunk has to be from 1 byte to 16Mi");
    if !args.plan {
        std::fs::create_dir_all(&args.dest).with_context(|| format!("failed to make {}", args.dest.display()))?;
    }
    allow_files();
    let listener = data::listen().await.context("failed to listen")?;
    let token: Arc<str> = data::token().into();
    let (here, (say, reports)) = (Arc::new(Here::default()), mpsc::unbounded_channel());
    let addresses = begin::addresses(listener.local_addr()?.port());
    let serving = tokio::spawn(here::serve(listener, token.clone(), here.clone(), say));
    let (rsh, lines) = if args.taktuk {
        (taktuk::through(&args.rsh), Some((addresses.clone(), token.clone())))
    } else {
        (args.rsh.clone(), None)
    };
    let shells = Shells { rsh, known: binary::known().ok(), lines, spread: Arc::default() };
    let begin = |(node, host): (usize, &String)| {
        let begin = Begin {
            node,
            token: token.to_string(),
            here: addresses.clone(),
            source: args.source.replace("{host}", host),
            chunk: args.chunk.0,
            rate: args.rate.as_ref().map(|rate| rate.0),
            room: args.room.as_ref().map(|room| room.0),
        };
        (host.clone(), begin)
    };
    let (words, heard) = mpsc::unbounded_channel();
    let peers = begin::all(&shells, hosts.iter().enumerate().map(begin).collect(), &words).await;
    let mut found = Found::new(args, &hosts, peers);
    found.open(args, &here)?;
    if args.plan {
        return found.tell(args);
    }
    // what could not be drawn is said before anything moves
    if let Some(path) = &args.plot {
        draw(path, String::new())?;
    }
    let code = found.gather(args, here, Heard { words: heard, reports }).await;
    serving.abort();
    code
}

/// As many files open as may be: one that is gathered takes two.
fn allow_files() {
    let limits = getrlimit(Resource::Nofile);
    // with fewer it goes on as far as it can
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, maximum: limits.maximum });
}

struct Heard {
    words: UnboundedReceiver<Word>,
    reports: UnboundedReceiver<Report>,
}

/// What the hosts have.
struct Found {
    hosts: Vec<Host>,
    ledger: Ledger,
    names: HashMap<ItemId, String>,
    identities: BTreeMap<ItemId, (String, Identity)>,
    missing: Vec<Missing>,
    bytes: u64,
    earlier: u64,
}

impl Found {
    fn new(args: &Args, names: &[String], peers: Vec<Result<Peer, String>>) -> Self {
        let several = pattern::several(&args.source);
        let mut found = Self {
            hosts: Vec::new(),
            ledger: Ledger::new(names.len()),
            names: HashMap::new(),
            identities: BTreeMap::new(),
            missing: Vec::new(),
            bytes: 0,
            earlier: 0,
        };
        for (node, (host, peer)) in names.iter().zip(peers).enumerate() {
            let mut miss = |item: Option<String>, reason: &str| {
                found.missing.push(Missing { host: host.clone(), item, reason: reason.to_owned() });
            };
            match &peer {
                Err(reason) => miss(None, reason),
                Ok(peer) => {
                    if peer.files.is_empty() {
                        miss(None, "no file there matches");
                    }
                    for (file, seen) in peer.files.iter().enumerate() {
                        let name = if several { format!("{host}/{}", seen.name) } else { host.clone() };
                        match &seen.known {
                            Ok(identity) => {
                                let id = ItemId::new(node, file);
                                let path = format!("{}#{}", args.source, seen.name);
                                found.identities.insert(id, (path, *identity));
                                found.names.insert(id, name);
                            }
                            Err(reason) => miss(Some(name), reason),
                        }
                    }
                    let held = &mut found.ledger.nodes[node];
                    (held.answers, held.receives, held.limit) = (true, true, peer.room);
                }
            }
            found.hosts.push(Host::new(host.clone(), peer.ok()));
        }
        found
    }

    /// Looks at what is here of each file, and whether there is room for the rest: for the smallest first.
    fn open(&mut self, args: &Args, here: &Here) -> anyhow::Result<()> {
        let mut rest = Vec::new();
        for (id, (path, identity)) in &self.identities {
            let name = &self.names[id];
            let host = &self.hosts[id.node()].name;
            self.bytes += identity.size;
            let subject = Subject { host: host.clone(), path: path.clone(), identity: *identity };
            let path = args.dest.join(name);
            // a plan only looks
            let begun = if args.plan {
                Part::look(&path, &subject).map(|left| left.map(|stored| (None, stored)))
            } else {
                Part::open(&path, &subject).map(|begun| match begun {
                    Begun::Whole => None,
                    Begun::Part(part, stored) => Some((Some(part), stored)),
                })
            };
            match begun {
                Ok(None) => {
                    self.earlier += identity.size;
                    self.ledger.add(*id, identity.size, Spans::of(0..identity.size));
                    self.ledger.end(*id, End::Whole);
                }
                Ok(Some((part, stored))) => {
                    self.earlier += stored.bytes();
                    rest.push((identity.size - stored.bytes(), *id, part, stored));
                }
                Err(error) => {
                    let reason = format!("failed to write it here: {error}");
                    self.missing.push(Missing { host: host.clone(), item: Some(name.clone()), reason });
                }
            }
        }
        rest.sort_by_key(|(missing, id, ..)| (*missing, *id));
        let mut free = free(&args.dest)?;
        for (missing, id, part, stored) in rest {
            if missing <= free {
                free -= missing;
                self.ledger.add(id, self.identities[&id].1.size, stored);
                if let Some(part) = part {
                    here.add(id, part);
                }
                continue;
            }
            let (host, item) = (self.hosts[id.node()].name.clone(), Some(self.names[&id].clone()));
            let reason = format!("no room here: it needs {missing} bytes more, and {free} are left for it");
            self.missing.push(Missing { host, item, reason });
            if let Some(part) = part.filter(|_| stored.is_empty()) {
                part.discard();
            }
        }
        Ok(())
    }

    /// The hosts that answer: others have no place in a plan.
    fn answering(&self) -> impl Iterator<Item = usize> {
        (0..self.hosts.len()).filter(|node| self.ledger.nodes[*node].answers)
    }

    /// What is to be moved, on links of this rate.
    fn input(&self, rate: f64) -> Input {
        Input {
            sizes: self.answering().map(|node| self.ledger.held(node)).collect(),
            node: rate,
            repository: rate,
            room: self.answering().map(|node| self.ledger.nodes[node].limit).min().unwrap_or(0),
        }
    }

    fn tell(&self, args: &Args) -> anyhow::Result<ExitCode> {
        let rate = args.rate.as_ref().map_or(ASSUMED, |rate| rate.0 as f64);
        let input = self.input(rate);
        let senders = args.fixed().unwrap_or(1);
        let mut output = std::io::stdout().lock();
        let hosts: Vec<&str> = self.answering().map(|node| self.hosts[node].name.as_str()).collect();
        writeln!(output, "{} of {} hosts answer; on links of {:.1} MB/s:", hosts.len(), self.hosts.len(), rate / 1e6)?;
        let run = forecast::plan(&input, args.policy(), senders, args.chunk.0);
        write!(output, "{}", forecast::schedule(&hosts, &input, &run))?;
        if let Some(path) = &args.plot {
            draw(path, picture(&input, "the plan", run.free.into_iter().flatten().collect()))?;
        }
        if let Policy::Deadline { within } = args.policy() {
            writeln!(output, "{}", promise(&input, within, senders, args.chunk.0))?;
        }
        for missing in &self.missing {
            writeln!(output, "missing: {}: {}", missing.item.as_ref().unwrap_or(&missing.host), missing.reason)?;
        }
        Ok(if self.missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn gather(self, args: &Args, here: Arc<Here>, heard: Heard) -> anyhow::Result<ExitCode> {
        let log = Log::new(args.events.as_deref()).context("failed to write events")?;
        let rate = args.rate.as_ref().map(|rate| rate.0 as f64);
        let wish = Wish { policy: args.policy(), chunk: args.chunk.0, rate, senders: args.fixed() };
        let drawn = args.plot.as_ref().map(|path| (path, self.input(ASSUMED)));
        let mut promised = matches!(wish.policy, Policy::Deadline { .. }).then(|| self.input(ASSUMED));
        let Self { hosts, ledger, names, missing, bytes, earlier, .. } = self;
        let (finished, finishing) = mpsc::unbounded_channel();
        let mut gather = Gather::new(wish, hosts, ledger, names, here, log, finished);
        let mut progress = Progress::new(earlier, bytes);
        begun(&mut gather);
        heard
            .follow(&mut gather, finishing, |gather| {
                // as soon as links are known
                if let (Some(rate), Policy::Deadline { within }) = (gather.rate(), wish.policy)
                    && let Some(input) = promised.take()
                {
                    let input = Input { node: rate, repository: rate, ..input };
                    progress.say(&promise(&input, within, wish.senders.unwrap_or(1), wish.chunk));
                }
                progress.show(gather.ledger.free(), gather.hosts.len(), earlier + gather.stored, bytes);
            })
            .await;
        drop(progress);
        let outcome = outcome(&gather, missing, bytes, earlier);
        // their inputs end, and so do they
        futures::future::join_all(gather.hosts.iter_mut().map(Host::leave)).await;
        if args.json {
            writeln!(std::io::stdout(), "{}", serde_json::to_string(&outcome)?)?;
        } else {
            write!(std::io::stderr(), "{}", outcome.text())?;
        }
        if let Some((path, input)) = drawn {
            let (node, repository) = gather.measured();
            let free = outcome.freed.iter().map(|freed| freed.seconds).collect();
            draw(path, picture(&Input { node, repository, ..input }, "these hosts", free))?;
        }
        Ok(if outcome.missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn picture(input: &Input, name: &str, free: Vec<f64>) -> String {
    let (hosts, rate) = (input.sizes.len(), input.node / 1e6);
    let bytes: u64 = input.sizes.iter().sum();
    let title = format!("{hosts} hosts with {:.1} MB, links of {rate:.1} MB/s", bytes as f64 / 1e6);
    plot::svg(&title, input, &[Curve { name: name.into(), free }])
}

fn draw(path: &Path, picture: String) -> anyhow::Result<()> {
    std::fs::write(path, picture).with_context(|| format!("failed to draw to {}", path.display()))
}

/// How many hosts will be free in time.
fn promise(input: &Input, within: f64, senders: usize, chunk: u64) -> String {
    let (planned, most) = forecast::within(input, within, senders, chunk);
    let (rate, hosts) = (input.node / 1e6, input.sizes.len());
    format!(
        "on links of {rate:.1} MB/s, {planned} of {hosts} hosts are free within {within} s; no plan frees more than {most}"
    )
}

fn begun(gather: &mut Gather) {
    gather.log.begin();
    let items: Vec<Event> = gather
        .ledger
        .items
        .iter()
        .map(|(id, item)| {
            let missing = item.stored.missing(item.size).bytes();
            Event::new(Kind::Item).from(&gather.hosts[id.node()].name).item(&gather.names[id]).bytes(missing)
        })
        .collect();
    let rooms: Vec<Event> = gather
        .hosts
        .iter()
        .zip(&gather.ledger.nodes)
        .filter(|(host, _)| host.peer.is_some())
        .map(|(host, held)| Event::new(Kind::Room).from(&host.name).bytes(held.limit))
        .collect();
    items.into_iter().chain(rooms).for_each(|event| gather.log.say(event));
    // what was here before
    gather.settle();
}

impl Heard {
    /// Until every file has come to its end.
    async fn follow(
        mut self,
        gather: &mut Gather,
        mut finishing: UnboundedReceiver<(ItemId, Result<(), String>)>,
        mut show: impl FnMut(&Gather),
    ) {
        let mut tick = tokio::time::interval(TICK);
        while !gather.ended() {
            gather.plan();
            if gather.ended() {
                break;
            }
            tokio::select! {
                Some(word) = self.words.recv() => match word {
                    Word::Node(node, report) => gather.hear(Place::Node(node), report),
                    Word::Gone(node, reason) => gather.lost(node, &reason),
                },
                Some(report) = self.reports.recv() => gather.hear(Place::Repository, report),
                Some((item, result)) = finishing.recv() => gather.finish(item, result),
                _ = tick.tick() => {
                    gather.tick();
                    show(gather);
                }
            }
        }
    }
}

fn outcome(gather: &Gather, mut missing: Vec<Missing>, bytes: u64, earlier: u64) -> Outcome {
    for (id, item) in &gather.ledger.items {
        if let Some(End::Failed(reason)) = &item.end {
            let host = gather.hosts[id.node()].name.clone();
            missing.push(Missing { host, item: gather.names.get(id).cloned(), reason: reason.clone() });
        }
    }
    let mut freed: Vec<Freed> = gather
        .hosts
        .iter()
        .zip(&gather.freed)
        .filter_map(|(host, freed)| Some(Freed { host: host.name.clone(), seconds: (*freed)? }))
        .collect();
    freed.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    Outcome {
        hosts: gather.hosts.len(),
        whole: gather.ledger.items.values().filter(|item| item.end == Some(End::Whole)).count(),
        bytes,
        earlier,
        stored: gather.stored,
        seconds: gather.last,
        node_seconds: node_seconds(&freed),
        senders: gather.senders(),
        freed,
        missing,
    }
}

/// Bytes that the disk of a directory has free.
fn free(directory: &Path) -> anyhow::Result<u64> {
    // what is not there yet comes onto the disk of what is
    let directory = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let disk = rustix::fs::statvfs(directory).with_context(|| format!("failed to look at {}", directory.display()))?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}
