//! Holders merge in pairs, so that each step frees half of them; the repository is fed meanwhile. Pure.

use super::model::{Busy, Move, Place, View};

/// So many holders for each sender that the repository takes are enough to feed it to the end: with fewer, the last
/// bytes would come at the rate of one link.
const KEPT: usize = 2;

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
    // what one node would take longer to send than the repository to take in everything is left on two
    let most = all as f64 / view.repository.rate;
    for from in senders {
        // the largest stays where it is, and takes the smallest
        let load = view.nodes[*from].load;
        let fits = |to: &usize| {
            let to = view.nodes[*to];
            to.room >= load && (load + to.load) as f64 / to.up <= most
        };
        let Some(at) = receivers.iter().rposition(fits) else { continue };
        let to = receivers.remove(at);
        sending[*from] = true;
        moves.push(Move { from: *from, to: Place::Node(to), bytes: load });
    }
}

/// The repository's places for senders, to the smallest holder whose link is idle first. One that receives meanwhile
/// feeds it until it has received: then it may be wanted in a pair.
fn feed(view: &View<'_>, busy: &Busy, sending: &[bool], moves: &mut Vec<Move>) {
    let mut idle: Vec<usize> = (0..view.nodes.len()).collect();
    idle.retain(|node| !sending[*node] && view.nodes[*node].load > 0 && view.nodes[*node].answers);
    idle.sort_by_key(|node| view.nodes[*node].load);
    for from in idle.into_iter().take(view.open(busy)) {
        let node = view.nodes[from];
        let started = moves.iter().find(|going| going.to == Place::Node(from)).map_or(0, |going| going.bytes);
        let into = started.max(busy.into[from]);
        let bytes = if into > 0 {
            let rate = node.up.min(view.repository.rate / view.repository.senders.max(1) as f64);
            view.whole(into as f64 / node.down * rate, node.load)
        } else {
            node.load
        };
        moves.push(Move { from, to: Place::Repository, bytes });
    }
}
