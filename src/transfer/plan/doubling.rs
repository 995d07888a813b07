//! Holders merge in pairs, so that each step frees half of them; the repository is fed meanwhile. Pure.

use super::model::{Busy, Move, Node, Place, View};

/// So many holders for each sender that the repository takes are enough to feed it to the end: with fewer, the last
/// bytes would come at the rate of one link.
const KEPT: usize = 2;
/// Times that differ by less are the same.
const NEARLY: f64 = 1.001;

/// What starts now.
/// With rounds, no pair begins before all that began with it have ended.
pub(super) fn next(view: &View<'_>, rounds: bool) -> Vec<Move> {
    let busy = view.busy();
    let mut moves = Vec::new();
    let mut sending: Vec<bool> = busy.out.iter().map(|bytes| *bytes > 0).collect();
    let holders = (0..view.nodes.len()).filter(|node| view.nodes[*node].load > 0 || busy.into[*node] > 0).count();
    let within_round = rounds && view.moves.iter().any(|going| going.to != Place::Repository);
    if holders > KEPT * view.repository.senders.max(1) && !within_round {
        pair(view, &busy, &mut sending, &mut moves);
    }
    feed(view, &busy, &sending, &mut moves);
    moves
}

/// Idle holders in pairs, smaller into larger. The smallest are left to the repository, and one more of an odd number,
/// which follows them: so each is free as soon as it has sent what it holds, and none waits half empty.
fn pair(view: &View<'_>, busy: &Busy, sending: &mut [bool], moves: &mut Vec<Move>) {
    let mut idle: Vec<usize> = (0..view.nodes.len()).collect();
    idle.retain(|node| {
        let known = view.nodes[*node];
        known.load > 0 && known.answers && !sending[*node] && busy.into[*node] == 0
    });
    idle.sort_by_key(|node| view.nodes[*node].load);
    let feeders = view.open(busy).min(idle.len());
    let feeders = feeders + (idle.len() - feeders) % 2;
    let idle = &idle[feeders..];
    let (senders, larger) = idle.split_at(idle.len() / 2);
    let mut receivers: Vec<usize> = larger.iter().copied().filter(|node| view.nodes[*node].receives).collect();
    let all: u64 = view.nodes.iter().map(|node| node.load).sum();
    for from in senders {
        // the largest stays where it is, and takes the smallest
        let load = view.nodes[*from].load;
        let fits = |to: usize| view.nodes[to].room >= load && ends_in_time(view, all, load, view.nodes[to]);
        // one that takes too long, or has no room, is none for the next either, which is larger
        while receivers.last().is_some_and(|to| !fits(*to)) {
            receivers.pop();
        }
        let Some(to) = receivers.pop() else { break };
        sending[*from] = true;
        moves.push(Move { from: *from, to: Place::Node(to), bytes: load });
    }
}

/// Whether a node that is given this can send it, and all it holds, before the repository has taken everything: while
/// it receives it sends as far as the others leave the repository's link to it.
fn ends_in_time(view: &View<'_>, all: u64, given: u64, to: Node) -> bool {
    let both = given + to.load;
    let (left, receiving) = (all as f64 / view.repository.rate, given as f64 / to.down);
    let others = (all - both) as f64;
    let meanwhile = ((view.repository.rate * receiving - others) / to.up).clamp(0.0, receiving);
    both as f64 / to.up <= (left - receiving + meanwhile) * NEARLY
}

/// The repository's places for senders, to the smallest holder whose link is idle first. One that receives meanwhile
/// feeds it until it has received: then it may be wanted in a pair. Several feed it no longer than that either: who is
/// to feed it to the end is dealt out when the last pair has ended.
fn feed(view: &View<'_>, busy: &Busy, sending: &[bool], moves: &mut Vec<Move>) {
    let mut idle: Vec<usize> = (0..view.nodes.len()).collect();
    idle.retain(|node| !sending[*node] && view.nodes[*node].load > 0 && view.nodes[*node].answers);
    idle.sort_by_key(|node| view.nodes[*node].load);
    let share = view.repository.rate / view.repository.senders.max(1) as f64;
    let several = view.repository.senders > 1;
    let merging = view.moves.iter().chain(moves.iter()).filter_map(|going| match going.to {
        Place::Node(to) if several => Some(going.bytes as f64 / view.nodes[to].down),
        _ => None,
    });
    let merging = merging.fold(0.0, f64::max);
    let places = view.repository.senders.max(1).saturating_sub(busy.feeding);
    for (number, from) in idle.into_iter().take(view.open(busy)).enumerate() {
        let node = view.nodes[from];
        let started = moves.iter().find(|going| going.to == Place::Node(from)).map_or(0, |going| going.bytes);
        let receiving = started.max(busy.into[from]) as f64 / node.down;
        let until = receiving.max(merging);
        let bytes = match until {
            _ if number >= places => view.tried(node.load),
            0.0 => node.load,
            _ => view.whole(until * node.up.min(share), node.load),
        };
        moves.push(Move { from, to: Place::Repository, bytes });
    }
}
