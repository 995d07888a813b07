//! A star: most nodes send straight to the repository and to a few nodes that stay. Pure.
//!
//! All that receive should end at the same time. Senders are dealt out whole, the smallest first, to whoever has most
//! time left; what fits nowhere whole is split over the ends that are left. Of a split sender the first part comes at
//! the end of one receiver's time and the second at the beginning of the next one's, so that its link never has to
//! send both at once (McNaughton's rule for preemptive schedules).
//!
//! Of those that wait for the same receiver, some take the bytes of others meanwhile and send them in their turn: the
//! receiver ends when it would have, and these others are free at once.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap, VecDeque},
};

use super::model::{Busy, Move, Place, View};

/// Steps by which the end is found: finer than any clock.
const STEPS: u32 = 60;
/// A sender that takes so much of the time there is has to begin at once.
const LONG: f64 = 0.7;
/// What fits but for the last digits fits.
const NEARLY: f64 = 1.0 - 1e-9;
/// What a sender is given has come before its turn, even if it takes so much longer.
const LATE: f64 = 1.25;

/// Who takes bytes in.
#[derive(Clone, Debug)]
struct Sink {
    to: Place,
    /// Who sends to it now.
    sends: Option<usize>,
    rate: f64,
    /// Seconds until it is idle.
    busy: f64,
    /// Bytes it has room for.
    room: f64,
    /// Bytes that may still be dealt to it.
    left: f64,
    /// The rest of a split sender, and by when it has to be there, in seconds: then its link is for the other part.
    first: Option<(usize, f64, f64)>,
    /// Whole senders, the smallest first.
    whole: Vec<(usize, f64)>,
    /// The beginning of a split sender: for the end.
    last: Option<(usize, f64)>,
}

impl Sink {
    fn new(to: Place, rate: f64, busy: f64, room: f64) -> Self {
        Self { to, sends: None, rate, busy, room, left: 0.0, first: None, whole: Vec::new(), last: None }
    }

    /// In the order in which they come. The rest of a split sender frees no node yet, so it comes as late as it may,
    /// but one whole sender before the end, where the beginning of another may be.
    fn queue(&self) -> VecDeque<(usize, f64)> {
        let mut queue: VecDeque<(usize, f64)> = self.whole.iter().copied().collect();
        if let Some((node, bytes, by)) = self.first {
            let mut end = self.busy + bytes / self.rate;
            let mut before = 0;
            for (_, whole) in &self.whole[..self.whole.len().saturating_sub(1)] {
                end += whole / self.rate;
                if end > by {
                    break;
                }
                before += 1;
            }
            queue.insert(before, (node, bytes));
        }
        queue.extend(self.last);
        queue
    }

    fn takes_until(&self, end: f64) -> f64 {
        ((end - self.busy).max(0.0) * self.rate).min(self.room)
    }
}

/// A node that is emptied: its number, the bytes that are not under way, seconds until its link is idle.
#[derive(Clone, Copy, Debug)]
struct Sender {
    node: usize,
    bytes: f64,
    busy: f64,
    up: f64,
}

/// Those that wait for a receiver, or for one of the repository's places for senders.
#[derive(Clone, Debug)]
struct Queue {
    to: Place,
    /// Who has the place.
    sends: Option<usize>,
    /// Node and bytes; a node more than once if it has bytes of others.
    waiting: VecDeque<(usize, f64)>,
}

/// Who sends to whom until most nodes are free.
#[derive(Clone, Debug)]
pub(super) struct Star {
    queues: Vec<Queue>,
    /// Which nodes answered when it was made.
    answered: Vec<bool>,
}

impl Star {
    /// The schedule if so many nodes stay.
    pub(super) fn new(view: &View<'_>, receivers: usize) -> Self {
        let (senders, mut sinks) = sides(view, &view.busy(), receivers);
        // the rest of a split sender comes at the beginning of the next: on those that are idle last it would be late
        sinks.sort_by(|a, b| b.busy.total_cmp(&a.busy));
        let end = end(&senders, &sinks);
        deal(&senders, &mut sinks, end);
        let queue = |sink: Sink| Queue { to: sink.to, sends: sink.sends, waiting: sink.queue() };
        Self { queues: sinks.into_iter().map(queue).collect(), answered: answers(view) }
    }

    /// Whether it still fits what is there, and has more to start.
    pub(super) fn holds(&self, view: &View<'_>) -> bool {
        let more = self.queues.iter().flat_map(|queue| &queue.waiting).any(|(from, _)| view.nodes[*from].load > 0);
        (more || !view.moves.is_empty()) && self.answered == answers(view)
    }

    /// What starts now.
    pub(super) fn next(&mut self, view: &View<'_>) -> Vec<Move> {
        let mut busy = view.busy();
        let mut open = view.open(&busy);
        let mut moves = Vec::new();
        let feeding = feeding(view);
        let taken =
            |queue: &Queue| queue.to == Place::Repository && queue.sends.is_some_and(|from| feeding.contains(&from));
        let places = self.queues.iter().filter(|queue| queue.to == Place::Repository && !taken(queue)).count();
        // beside those whose turn it is
        let mut tried = open.saturating_sub(places).min(view.repository.tried);
        for at in 0..self.queues.len() {
            let to = self.queues[at].to;
            let beside = taken(&self.queues[at]);
            let idle = match to {
                Place::Repository if beside => tried > 0,
                Place::Repository => open > 0,
                Place::Node(node) => busy.into[node] == 0,
            };
            if !idle {
                continue;
            }
            let Some((from, wanted)) = self.take(at, view, &busy) else { continue };
            let left = view.nodes[from].load.saturating_sub(busy.out[from]);
            let room = match to {
                Place::Repository => u64::MAX,
                Place::Node(node) => view.nodes[node].room,
            };
            let bytes = if beside { view.tried(left) } else { view.whole(wanted, left).min(room) };
            if bytes > 0 {
                busy.out[from] += bytes;
                let queue = &mut self.queues[at];
                if to == Place::Repository {
                    open -= 1;
                    tried -= usize::from(beside);
                    queue.sends = Some(from).filter(|_| !beside).or(queue.sends);
                }
                let rest = wanted - bytes as f64;
                if let Some((_, more)) = queue.waiting.iter_mut().find(|(of, _)| *of == from) {
                    *more += rest;
                } else if (busy.into[from] > 0 || beside) && rest > 0.0 {
                    // it has not come to it yet, or was not wanted yet
                    queue.waiting.push_front((from, rest));
                }
                moves.push(Move { from, to, bytes });
            }
        }
        self.merge(view, &busy, &mut moves);
        moves
    }

    /// So much of what was wanted has not begun.
    pub(super) fn again(&mut self, wanted: Move) {
        if let Some(queue) = self.queues.iter_mut().find(|queue| queue.to == wanted.to) {
            queue.waiting.push_front((wanted.from, wanted.bytes as f64));
            return;
        }
        // it was to be given to one that sends after it
        let mut waiting = self.queues.iter_mut().flat_map(|queue| &mut queue.waiting);
        if let Some((from, _)) = waiting.find(|(from, _)| Place::Node(*from) == wanted.to) {
            *from = wanted.from;
        }
    }

    /// The next of a sink whose link is idle; of another's if it has none left.
    fn take(&mut self, at: usize, view: &View<'_>, busy: &Busy) -> Option<(usize, f64)> {
        let ready = |(from, _): &(usize, f64)| busy.out[*from] == 0 && view.nodes[*from].load > 0;
        let own = &mut self.queues[at].waiting;
        own.retain(|(from, _)| view.nodes[*from].load > 0 || busy.into[*from] > 0);
        if let Some(next) = own.iter().position(ready) {
            return own.remove(next);
        }
        if !own.is_empty() {
            return None;
        }
        let longest = self.queues.iter_mut().map(|queue| &mut queue.waiting).max_by_key(|waiting| waiting.len())?;
        let next = longest.iter().rposition(ready).filter(|next| *next > 0)?;
        longest.remove(next)
    }

    /// Of those that wait for one receiver only, and are idle, every other one is given the bytes of the one before
    /// it; the first waits, if their number is odd.
    fn merge(&mut self, view: &View<'_>, busy: &Busy, moves: &mut Vec<Move>) {
        let mut queued: Vec<Option<usize>> = vec![None; view.nodes.len()];
        let mut idle: Vec<bool> = view.nodes.iter().map(|node| node.load > 0 && node.answers).collect();
        for (at, queue) in self.queues.iter().enumerate() {
            for (from, _) in &queue.waiting {
                let elsewhere = queued[*from].replace(at).is_some_and(|before| before != at);
                idle[*from] &= !elsewhere && busy.out[*from] == 0 && busy.into[*from] == 0;
            }
        }
        let mut coming = busy.into.clone();
        for started in moves.iter() {
            if let Place::Node(to) = started.to {
                coming[to] += started.bytes;
            }
        }
        for queue in &mut self.queues {
            let rate = queue.rate(view);
            let mut turn = queue.going(busy, &coming) as f64 / rate;
            let mut waiting: Vec<(usize, f64)> = Vec::new();
            for (from, bytes) in &queue.waiting {
                if std::mem::take(&mut idle[*from]) {
                    waiting.push((*from, turn));
                }
                turn += bytes / rate;
            }
            for pair in waiting.rchunks_exact(2) {
                let ((from, turn), (to, _)) = (pair[0], pair[1]);
                let (bytes, node) = (view.nodes[from].load, view.nodes[to]);
                let in_time = bytes as f64 / node.down * LATE <= turn + node.load as f64 / rate;
                if node.receives && node.room >= bytes && in_time {
                    moves.push(Move { from, to: Place::Node(to), bytes });
                    queue.waiting.iter_mut().filter(|(of, _)| *of == from).for_each(|(of, _)| *of = to);
                }
            }
        }
    }
}

impl Queue {
    /// Bytes that are on their way to its place.
    fn going(&self, busy: &Busy, coming: &[u64]) -> u64 {
        match self.to {
            Place::Repository => self.sends.map_or(0, |from| busy.out[from]),
            Place::Node(node) => coming[node],
        }
    }

    /// Bytes a second that its place takes.
    fn rate(&self, view: &View<'_>) -> f64 {
        match self.to {
            Place::Repository => view.repository.rate / view.repository.senders.max(1) as f64,
            Place::Node(node) => view.nodes[node].down,
        }
    }
}

/// Who sends to the repository.
fn feeding(view: &View<'_>) -> Vec<usize> {
    view.moves.iter().filter(|going| going.to == Place::Repository).map(|going| going.from).collect()
}

fn answers(view: &View<'_>) -> Vec<bool> {
    view.nodes.iter().map(|node| node.answers).collect()
}

/// The fewest nodes that have to stay for all others to be free within this time; none if it is too short for one.
pub(super) fn receivers_for(view: &View<'_>, left: f64) -> Option<usize> {
    let busy = view.busy();
    let reaches = |receivers: usize| {
        let (senders, sinks) = sides(view, &busy, receivers);
        end(&senders, &sinks) <= left
    };
    let holders = view.nodes.iter().filter(|node| node.load > 0).count();
    let (mut low, mut high) = (0, holders.saturating_sub(1));
    if !reaches(high) {
        return None;
    }
    while low < high {
        let middle = usize::midpoint(low, high);
        if reaches(middle) { high = middle } else { low = middle + 1 }
    }
    Some(low)
}

/// Who sends, the smallest first, and who receives: the largest holders, so that most of the bytes stay where they are.
fn sides(view: &View<'_>, busy: &Busy, receivers: usize) -> (Vec<Sender>, Vec<Sink>) {
    let mut able: Vec<usize> = (0..view.nodes.len()).collect();
    able.retain(|node| view.nodes[*node].receives && view.nodes[*node].answers);
    able.sort_by_key(|node| std::cmp::Reverse((view.nodes[*node].load + busy.into[*node], *node)));
    able.truncate(receivers);
    let mut stays = vec![false; view.nodes.len()];
    for node in &able {
        stays[*node] = true;
    }
    let senders = view
        .nodes
        .iter()
        .enumerate()
        .filter(|(number, node)| !stays[*number] && node.answers && node.load + busy.into[*number] > 0);
    let mut senders: Vec<Sender> = senders
        .map(|(number, node)| Sender {
            node: number,
            // with what is on its way to it
            bytes: (node.load + busy.into[number]).saturating_sub(busy.out[number]) as f64,
            busy: busy.out[number] as f64 / node.up,
            up: node.up,
        })
        .collect();
    senders.retain(|sender| sender.bytes > 0.0);
    senders.sort_by(|a, b| a.bytes.total_cmp(&b.bytes));
    let slots = view.repository.senders.max(1);
    let share = view.repository.rate / slots as f64;
    let feeding = view.moves.iter().filter(|going| going.to == Place::Repository);
    let mut sinks: Vec<Sink> = feeding
        .map(|going| Sink {
            sends: Some(going.from),
            ..Sink::new(Place::Repository, share, going.bytes.max(1) as f64 / share, f64::INFINITY)
        })
        .collect();
    let open = (sinks.len()..slots).map(|_| Sink::new(Place::Repository, share, 0.0, f64::INFINITY));
    sinks.extend(open.collect::<Vec<_>>());
    let mut sends = vec![None; view.nodes.len()];
    for going in view.moves {
        if let Place::Node(to) = going.to {
            sends[to] = Some(going.from);
        }
    }
    sinks.extend(able.into_iter().map(|number| {
        let (node, into) = (view.nodes[number], busy.into[number] as f64);
        Sink { sends: sends[number], ..Sink::new(Place::Node(number), node.down, into / node.down, node.room as f64) }
    }));
    (senders, sinks)
}

/// When all senders can have sent all, in seconds.
fn end(senders: &[Sender], sinks: &[Sink]) -> f64 {
    let all: f64 = senders.iter().map(|sender| sender.bytes).sum();
    let own = senders.iter().map(|sender| sender.busy + sender.bytes / sender.up).fold(0.0, f64::max);
    let taken = |end: f64| sinks.iter().map(|sink| sink.takes_until(end)).sum::<f64>();
    let (mut low, mut high) = (0.0, 1.0);
    // the repository always takes more
    while taken(high) < all && high < f64::MAX / 4.0 {
        high *= 2.0;
    }
    for _ in 0..STEPS {
        let middle = f64::midpoint(low, high);
        if taken(middle) < all { low = middle } else { high = middle }
    }
    high.max(own)
}

/// Bytes that may still be dealt, which can be compared.
#[derive(PartialEq)]
struct Left(f64);

impl Eq for Left {}

impl Ord for Left {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Left {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Who sends goes on, so that its link is free for it; the others are dealt out.
fn deal(senders: &[Sender], sinks: &mut [Sink], end: f64) {
    for sink in sinks.iter_mut() {
        sink.left = sink.takes_until(end);
    }
    let mut over = Vec::new();
    let mut goes_on = vec![false; senders.len()];
    let numbers: HashMap<usize, usize> = senders.iter().enumerate().map(|(at, sender)| (sender.node, at)).collect();
    for sink in sinks.iter_mut() {
        let Some(at) = sink.sends.and_then(|node| numbers.get(&node).copied()) else { continue };
        let bytes = senders[at].bytes;
        if sink.left >= bytes * NEARLY {
            sink.left -= bytes;
            sink.whole.push((senders[at].node, bytes));
            goes_on[at] = true;
        }
    }
    // what takes most of the time begins at once
    for (at, sender) in senders.iter().enumerate().rev() {
        let Some(sink) = sinks.iter_mut().max_by(|a, b| a.left.total_cmp(&b.left)) else { break };
        if sender.bytes / sender.up < LONG * (end - sink.busy) || sink.room < sender.bytes {
            break;
        }
        if !goes_on[at] {
            sink.left = (sink.left - sender.bytes).max(0.0);
            sink.whole.push((sender.node, sender.bytes));
            goes_on[at] = true;
        }
    }
    let mut roomiest: BinaryHeap<(Left, usize)> =
        sinks.iter().enumerate().map(|(at, sink)| (Left(sink.left), at)).collect();
    for (sender, _) in senders.iter().zip(goes_on).filter(|(_, goes_on)| !goes_on) {
        match roomiest.peek_mut() {
            Some(mut top) if top.0.0 >= sender.bytes * NEARLY => {
                let sink = &mut sinks[top.1];
                sink.left -= sender.bytes;
                sink.whole.push((sender.node, sender.bytes));
                top.0 = Left(sink.left);
            }
            _ => over.push(*sender),
        }
    }
    split(over.into(), sinks, end);
}

/// Fills the ends of the sinks, each sender on at most two of them.
fn split(mut over: VecDeque<Sender>, sinks: &mut [Sink], end: f64) {
    let mut current = 0;
    while let Some(Sender { node, bytes, busy, up }) = over.pop_front() {
        let Some(sink) = sinks.get_mut(current) else { return };
        if sink.left >= bytes {
            sink.left -= bytes;
            sink.whole.push((node, bytes));
            continue;
        }
        let part = sink.left;
        if part > 0.0 {
            sink.last = Some((node, part));
            sink.left = 0.0;
        }
        current += 1;
        let Some(sink) = sinks.get_mut(current) else { return };
        let (rest, by) = (bytes - part, end - part / sink.rate);
        // what is whole there is split in its place
        while sink.left < rest
            && let Some((node, bytes)) = sink.whole.pop()
        {
            sink.left += bytes;
            over.push_back(Sender { node, bytes, busy, up });
        }
        let part = rest.min(sink.left);
        sink.left -= part;
        sink.first = Some((node, part, by));
    }
}
