//! `vmdeploy kget node`: what runs on each node, started through the remote shell, until that ends.
//!
//! It takes orders on its standard input and reports on its standard output; it decides nothing. When the input ends,
//! so does it, and with it all that it kept of others.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc},
    task::JoinHandle,
};

use super::{
    binary,
    data::{self, Opening},
    pattern,
    receive::receive,
    send::{self, Library, Pace, Unsent},
    shelf::Shelf,
    wire::{Begin, Found, Order, Report, VERSION},
};

/// How often it says that it lives.
const BEAT: Duration = Duration::from_secs(2);
/// Without any order for so long, nobody gives any: the remote shell may not have noticed.
const ALONE: Duration = Duration::from_secs(900);
/// For a way to the gathering process.
const WAY: Duration = Duration::from_secs(5);

/// Runs until the input ends.
pub(super) async fn run() -> anyhow::Result<()> {
    let (reports, mut waiting) = mpsc::unbounded_channel();
    let output = tokio::spawn(async move {
        let mut output = tokio::io::stdout();
        while let Some(report) = waiting.recv().await {
            let mut line = serde_json::to_vec(&report).map_err(io::Error::from)?;
            line.push(b'\n');
            output.write_all(&line).await?;
            output.flush().await?;
        }
        Ok::<_, io::Error>(())
    });
    reports.send(Report::Ready { version: VERSION, binary: binary::known().ok() })?;
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    let mut node = None;
    let mut beat = tokio::time::interval(BEAT);
    let mut heard = Instant::now();
    loop {
        let line = tokio::select! {
            line = orders.next_line() => line?,
            _ = beat.tick() => {
                if heard.elapsed() >= ALONE || reports.send(Report::Beat).is_err() {
                    break;
                }
                continue;
            }
        };
        let Some(line) = line else { break };
        heard = Instant::now();
        match serde_json::from_str(&line).context("failed to read an order")? {
            Order::Digest => {
                let (_, sha256) = tokio::task::spawn_blocking(binary::digest).await??;
                reports.send(Report::Digest { sha256 })?;
            }
            Order::Begin(begin) => node = Some(Node::begin(begin, reports.clone()).await?),
            Order::Beat => {}
            order => node.as_mut().context("an order came before the beginning")?.obey(order),
        }
    }
    // dropped before the process ends: its files go with it
    drop(node);
    output.abort();
    Ok(())
}

struct Node {
    library: Arc<Library>,
    pace: Arc<Pace>,
    token: Arc<str>,
    /// A connection to the gathering process that is there before it is needed: the link is full when it is.
    spare: Arc<Mutex<Option<TcpStream>>>,
    here: Option<SocketAddr>,
    reports: mpsc::UnboundedSender<Report>,
    sending: HashMap<u64, JoinHandle<()>>,
    serving: JoinHandle<()>,
}

impl Node {
    async fn begin(begin: Begin, reports: mpsc::UnboundedSender<Report>) -> anyhow::Result<Self> {
        let below = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let shelf = Shelf::new(&below, begin.room)
            .with_context(|| format!("failed to make a directory in {}", below.display()))?;
        let listener = data::listen().await.context("failed to listen")?;
        let port = listener.local_addr()?.port();
        let paths = pattern::files(&begin.source).with_context(|| format!("failed to look for {}", begin.source))?;
        let (mut files, mut own) = (Vec::new(), Vec::new());
        for path in paths {
            let known = send::look(&path);
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            own.push((path, known.clone().unwrap_or(super::wire::Identity { size: 0, seconds: 0, nanoseconds: 0 })));
            files.push(Found { name, known });
        }
        let (here, seen) = match way(&begin.here, &begin.token).await {
            Some((here, seen)) => (Some(here), Some(seen)),
            None => (None, None),
        };
        let shelf = Arc::new(shelf);
        reports.send(Report::Hello { files, room: shelf.room(), port, here, seen })?;
        let token: Arc<str> = begin.token.into();
        let serving = tokio::spawn(serve(listener, token.clone(), shelf.clone(), reports.clone()));
        let library = Arc::new(Library { node: begin.node, own, shelf, chunk: begin.chunk.clamp(1, data::LARGEST) });
        let pace = Arc::new(Pace::new(begin.rate));
        let spare = Arc::new(Mutex::new(None));
        if let Some(here) = here {
            *spare.lock().await = data::dial(here, &token).await.ok();
        }
        Ok(Self { library, pace, token, spare, here, reports, sending: HashMap::new(), serving })
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Send { id, to, pieces } => {
                self.sending.retain(|_, task| !task.is_finished());
                let (library, pace, token) = (self.library.clone(), self.pace.clone(), self.token.clone());
                let reports = self.reports.clone();
                let (home, spare) = (self.here == Some(to), self.spare.clone());
                let again = spare.clone();
                let task = tokio::spawn(async move {
                    let connection = async {
                        let ready = if home { spare.lock().await.take() } else { None };
                        match ready {
                            Some(ready) => Ok(ready),
                            None => data::dial(to, &token).await,
                        }
                    };
                    let report = match send::send(library, &pace, connection, id, pieces).await {
                        Ok(()) => Report::Sent { id },
                        Err(Unsent::Broken(error)) => Report::Broken { id, reason: format!("{to}: {error}") },
                        Err(Unsent::Item(item, reason)) => {
                            let _ = reports.send(Report::Failed { item, reason: reason.clone() });
                            Report::Broken { id, reason }
                        }
                    };
                    let _ = reports.send(report);
                    if home {
                        // for the next one
                        let mut next = again.lock().await;
                        if next.is_none() {
                            *next = data::dial(to, &token).await.ok();
                        }
                    }
                });
                self.sending.insert(id, task);
            }
            Order::Stop { id } => {
                if let Some(task) = self.sending.remove(&id) {
                    task.abort();
                }
            }
            Order::Drop { pieces } => pieces.into_iter().for_each(|piece| self.library.shelf.forget(piece)),
            Order::Digest | Order::Begin(_) | Order::Beat => {}
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.serving.abort();
        self.sending.values().for_each(JoinHandle::abort);
        // the process may end before whatever still uses it
        self.library.shelf.remove();
    }
}

/// The first address by which the gathering process answers, and this node's address as it is seen there.
async fn way(here: &[SocketAddr], token: &str) -> Option<(SocketAddr, IpAddr)> {
    let ask = |to: SocketAddr| {
        Box::pin(async move {
            let mut stream = data::connect(to, token, Opening::Probe).await?;
            let mut line = String::new();
            stream.read_to_string(&mut line).await?;
            let seen: IpAddr = line.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
            Ok::<_, io::Error>((to, seen))
        })
    };
    if here.is_empty() {
        return None;
    }
    let first = futures::future::select_ok(here.iter().copied().map(ask));
    tokio::time::timeout(WAY, first).await.ok()?.ok().map(|(found, _)| found)
}

/// Takes what other nodes send, and passes the binary on.
async fn serve(listener: TcpListener, token: Arc<str>, shelf: Arc<Shelf>, reports: mpsc::UnboundedSender<Report>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // no more files, for a while
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (token, shelf, reports) = (token.clone(), shelf.clone(), reports.clone());
        tokio::spawn(async move {
            let Ok((opening, reader)) = data::opened(stream, &token).await else { return };
            match opening {
                Opening::Move { id, bytes } => match shelf.sink(bytes) {
                    Ok(sink) => receive(reader, id, bytes, sink, reports).await,
                    Err(error) => drop(reports.send(Report::Full { id, reason: error.to_string() })),
                },
                // who asked for it says what has become of it
                Opening::Binary => drop(binary::answer(reader.into_inner()).await),
                Opening::Probe => {}
            }
        });
    }
}
