//! The gather itself: hears what nodes report, asks the planner, orders moves.
//!
//! What it knows is in the [`Ledger`], by acknowledgements alone; here is what moves now, and how fast.

mod measure;
mod orders;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

use super::{
    begin::Peer,
    events::{Event, Kind, Log, REPOSITORY},
    here::Here,
    ledger::{End, Ledger},
    rates::Rates,
    view,
    wire::{ItemId, Order, Piece, Report},
};
use crate::transfer::plan::{
    Place, Planner, Policy,
    admission::{Admission, MOST},
    meter::{Meter, Span},
};

/// For a node to end.
const LEAVE: Duration = Duration::from_secs(3);
/// So many moves of a node may break, one after the other, before it is given up.
const BREAKS: usize = 5;
/// Over so many seconds it is measured what comes in here.
const SPAN: Span = Span { warm: 0.2, window: 0.3 };

/// A host.
pub(super) struct Host {
    pub(super) name: String,
    pub(super) peer: Option<Peer>,
    pub(super) heard: Instant,
    breaks: usize,
}

impl Host {
    pub(super) fn new(name: String, peer: Option<Peer>) -> Self {
        Self { name, peer, heard: Instant::now(), breaks: 0 }
    }

    /// Has it end, which it does with its input.
    pub(super) async fn leave(&mut self) {
        let Some(Peer { orders, mut child, .. }) = self.peer.take() else { return };
        drop(orders);
        if tokio::time::timeout(LEAVE, child.wait()).await.is_err() {
            // it ends with its remote shell
            let _ = child.start_kill();
        }
    }

    fn order(&self, order: Order) {
        if let Some(peer) = &self.peer {
            // one that is gone is heard of by its output
            let _ = peer.orders.send(order);
        }
    }
}

/// A move, as it is seen from here.
struct Trail {
    from: usize,
    to: Place,
    bytes: u64,
    /// When its first bytes were there, when its last were so far.
    first: Option<Instant>,
    last: Instant,
    /// Since when it is measured, and how much had come then.
    mark: Option<(Instant, u64)>,
    /// Whether others have sent to the repository meanwhile.
    shared: bool,
}

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) policy: Policy,
    pub(super) chunk: u64,
    pub(super) rate: Option<f64>,
    pub(super) senders: Option<usize>,
}

/// What is under way.
pub(super) struct Gather {
    wish: Wish,
    pub(super) hosts: Vec<Host>,
    pub(super) names: HashMap<ItemId, String>,
    pub(super) ledger: Ledger,
    pub(super) log: Log,
    pub(super) here: Arc<Here>,
    /// When each host was free, in seconds.
    pub(super) freed: Vec<Option<f64>>,
    /// Bytes that were acknowledged here.
    pub(super) stored: u64,
    /// When the last of them were.
    pub(super) last: f64,
    rates: Rates,
    planner: Planner,
    admission: Admission,
    meter: Meter,
    trails: HashMap<u64, Trail>,
    planned: Planned,
    dirty: bool,
    beat: Instant,
    finished: UnboundedSender<(ItemId, Result<(), String>)>,
}

/// On what the plan was made.
struct Planned {
    at: f64,
    senders: usize,
    differing: Vec<i32>,
    most: f64,
    /// Since when it is otherwise.
    odd: Option<f64>,
}

impl Gather {
    pub(super) fn new(
        wish: Wish,
        hosts: Vec<Host>,
        ledger: Ledger,
        names: HashMap<ItemId, String>,
        here: Arc<Here>,
        log: Log,
        finished: UnboundedSender<(ItemId, Result<(), String>)>,
    ) -> Self {
        let rates = Rates::new(hosts.len(), wish.rate);
        let planned = Planned {
            at: 0.0,
            senders: wish.senders.unwrap_or(1),
            differing: rates.differing(),
            most: rates.most(),
            odd: None,
        };
        // a deadline means something once links are known; until then most of the nodes are to be free soon
        let at_first = match wish.policy {
            Policy::Deadline { .. } if wish.rate.is_none() => Policy::Target { share: 0.8 },
            policy => policy,
        };
        Self {
            planner: Planner::new(at_first),
            admission: Admission::new(MOST.min(hosts.len())),
            meter: Meter::new(SPAN),
            trails: HashMap::new(),
            freed: vec![None; hosts.len()],
            stored: 0,
            last: 0.0,
            dirty: true,
            beat: Instant::now(),
            wish,
            hosts,
            names,
            ledger,
            log,
            here,
            rates,
            planned,
            finished,
        }
    }

    /// Whether every file has come to its end.
    pub(super) fn ended(&self) -> bool {
        self.ledger.ended()
    }

    /// Bytes a second of most links, once it is known.
    pub(super) fn rate(&self) -> Option<f64> {
        self.wish.rate.or_else(|| self.rates.known().then(|| self.rates.most()))
    }

    /// Bytes a second of most links, and of the one to here.
    pub(super) fn measured(&self) -> (f64, f64) {
        (self.rates.most(), self.rates.repository())
    }

    pub(super) fn senders(&self) -> usize {
        self.wish.senders.unwrap_or_else(|| self.admission.senders())
    }

    fn tried(&self) -> usize {
        if self.wish.senders.is_some() { 0 } else { self.admission.tried() }
    }

    fn place(&self, place: Place) -> &str {
        match place {
            Place::Repository => REPOSITORY,
            Place::Node(node) => &self.hosts[node].name,
        }
    }

    fn name(&self, item: ItemId) -> &str {
        self.names.get(&item).map_or("", String::as_str)
    }

    fn of_move(&self, kind: Kind, id: u64) -> Option<Event> {
        let trail = self.trails.get(&id)?;
        Some(Event::new(kind).id(id).from(&self.hosts[trail.from].name).to(self.place(trail.to)))
    }

    /// A report from a node, or from what receives here.
    pub(super) fn hear(&mut self, at: Place, report: Report) {
        if let Place::Node(node) = at {
            self.hosts[node].heard = Instant::now();
        }
        match report {
            Report::Receives { id } => {
                if let Some(trail) = self.trails.get_mut(&id) {
                    let now = Instant::now();
                    (trail.first, trail.last, trail.mark) = (Some(now), now, Some((now, 0)));
                    let bytes = trail.bytes;
                    if let Some(event) = self.of_move(Kind::Start, id) {
                        self.log.say(event.bytes(bytes));
                    }
                }
            }
            Report::Progress { id, bytes } => self.progress(id, bytes),
            Report::Stored { id, pieces } => self.acknowledged(at, id, &pieces),
            Report::Landed { id } => self.landed(id),
            Report::Sent { id } => {
                self.ledger.sent(id);
                self.settle();
            }
            Report::Broken { id, reason } => self.broken(id, &reason),
            Report::Full { id, reason } => {
                if let Place::Node(node) = at {
                    // what it has it keeps
                    self.ledger.nodes[node].receives = false;
                }
                self.broken(id, &reason);
            }
            Report::Failed { item, reason } => self.failed(item, &reason, at == Place::Repository),
            Report::Need
            | Report::Unfit { .. }
            | Report::Ready { .. }
            | Report::Digest { .. }
            | Report::Hello { .. }
            | Report::Beat => {}
        }
    }

    fn progress(&mut self, id: u64, bytes: u64) {
        let ahead = self.ahead();
        let Some(going) = self.ledger.moves.get(&id) else { return };
        let (before, was, to) = (going.got, view::ended(going, ahead), going.to);
        self.ledger.progress(id, bytes);
        let Some(going) = self.ledger.moves.get(&id) else { return };
        let came = going.got - before;
        self.dirty |= !was && view::ended(going, ahead);
        if came > 0 {
            if to == Place::Repository {
                self.meter.came(came);
            }
            if let Some(trail) = self.trails.get_mut(&id) {
                trail.last = Instant::now();
            }
        }
    }

    fn landed(&mut self, id: u64) {
        self.progress(id, u64::MAX);
        let Some(event) = self.of_move(Kind::Done, id) else { return };
        self.log.say(event);
        self.judge(id);
        self.ledger.landed(id);
        self.dirty = true;
        self.settle();
    }

    fn acknowledged(&mut self, at: Place, id: u64, pieces: &[Piece]) {
        let from = self.trails.get(&id).map(|trail| trail.from);
        if let Some(from) = from {
            self.hosts[from].breaks = 0;
        }
        let mut drops: HashMap<usize, Vec<Piece>> = HashMap::new();
        for piece in pieces {
            for (node, piece) in self.ledger.stored(id, at, *piece).drops {
                drops.entry(node).or_default().push(piece);
            }
            let mut event = Event::new(Kind::Stored).id(id).to(self.place(at)).bytes(piece.bytes());
            if let Some(from) = from {
                event = event.from(&self.hosts[from].name);
            }
            self.log.say(event.item(self.name(piece.item)));
            if at == Place::Repository {
                self.stored += piece.bytes();
                self.last = self.log.now();
            }
        }
        for (node, pieces) in drops {
            self.hosts[node].order(Order::Drop { pieces });
        }
        self.dirty |= at != Place::Repository;
        self.settle();
    }

    fn broken(&mut self, id: u64, reason: &str) {
        let Some(going) = self.ledger.broken(id) else { return };
        tracing::debug!(id, reason, "a move has ended before its end");
        self.stop(id, going.from, going.to, reason);
        self.hosts[going.from].breaks += 1;
        if self.hosts[going.from].breaks >= BREAKS {
            self.lost(going.from, &format!("its moves do not end: {reason}"));
        } else if let Place::Node(to) = going.to {
            self.hosts[to].breaks += 1;
            if self.hosts[to].breaks >= BREAKS {
                self.ledger.nodes[to].receives = false;
            }
        }
        self.dirty = true;
        self.settle();
    }

    fn stop(&mut self, id: u64, from: usize, to: Place, reason: &str) {
        self.hosts[from].order(Order::Stop { id });
        let event = Event::new(Kind::Broken).id(id).from(&self.hosts[from].name).to(self.place(to));
        self.log.say(event.reason(reason));
    }

    fn failed(&mut self, item: ItemId, reason: &str, here: bool) {
        let ended = |end: &Option<End>| matches!(end, Some(End::Whole | End::Failed(_)));
        if self.ledger.items.get(&item).is_none_or(|item| ended(&item.end)) {
            return;
        }
        self.ledger.fail(item, reason);
        self.say_failed(item, reason);
        // what has changed is of no use; where the disk is full others may have the room, the last one keeps it
        let others = self.ledger.items.values().any(|item| item.end.is_none());
        if let Some(part) = self.here.take(item)
            && ((here && others) || reason.contains("since the beginning"))
        {
            part.discard();
        }
        self.dirty = true;
        self.settle();
    }

    fn say_failed(&mut self, item: ItemId, reason: &str) {
        let event = Event::new(Kind::Failed).from(&self.hosts[item.node()].name).item(self.name(item));
        self.log.say(event.reason(reason));
    }

    /// A node is gone.
    pub(super) fn lost(&mut self, node: usize, reason: &str) {
        let Some(mut peer) = self.hosts[node].peer.take() else { return };
        // it may be gone already
        let _ = peer.child.start_kill();
        let failed = |ledger: &Ledger| -> Vec<ItemId> {
            let is = |end: &Option<End>| matches!(end, Some(End::Failed(_)));
            ledger.items.iter().filter(|(_, item)| is(&item.end)).map(|(id, _)| *id).collect()
        };
        let before = failed(&self.ledger);
        let ended = self.ledger.lost(node, reason);
        for (id, going) in ended {
            self.stop(id, going.from, going.to, reason);
        }
        self.log.say(Event::new(Kind::Lost).from(&self.hosts[node].name).reason(reason));
        for item in failed(&self.ledger).into_iter().filter(|item| !before.contains(item)) {
            self.say_failed(item, reason);
        }
        self.replan("a node is lost");
        self.settle();
    }

    /// What follows from what is acknowledged: nodes are free, files whole.
    pub(super) fn settle(&mut self) {
        for node in self.ledger.freed() {
            let event = Event::new(Kind::Freed).from(&self.hosts[node].name);
            self.freed[node] = Some(self.log.now());
            self.log.say(event);
        }
        for item in self.ledger.whole() {
            let (part, finished) = (self.here.take(item), self.finished.clone());
            tokio::task::spawn_blocking(move || {
                let result = part.map_or(Ok(()), |part| part.finish().map_err(|error| error.to_string()));
                // nobody waits any more, if it fails
                let _ = finished.send((item, result));
            });
        }
    }

    /// A file has got its name, or not.
    pub(super) fn finish(&mut self, item: ItemId, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.ledger.end(item, End::Whole);
                let event = Event::new(Kind::Whole).from(&self.hosts[item.node()].name).item(self.name(item));
                self.log.say(event);
            }
            Err(reason) => {
                let reason = format!("failed to finish it here: {reason}");
                self.ledger.fail(item, &reason);
                self.say_failed(item, &reason);
            }
        }
    }
}
