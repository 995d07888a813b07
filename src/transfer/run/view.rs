//! What the planner is shown of the ledger. Pure.
//!
//! A move to the repository that has almost ended is shown as one that has: its next sender begins before the link is
//! idle. What has come and is not acknowledged yet is shown where it has come to, though nobody is free by that.

use super::{
    ledger::{Going, Ledger, bytes},
    rates::Rates,
};
use crate::transfer::plan::{Move, Node, Place};

/// Nodes and moves, as the planner takes them; a move to the repository with no more than `ahead` bytes left has ended.
pub(super) fn view(ledger: &Ledger, rates: &Rates, ahead: u64) -> (Vec<Node>, Vec<Move>) {
    let node = |(number, held): (usize, &super::ledger::Held)| Node {
        load: bytes(&held.holds),
        room: held.limit.saturating_sub(foreign(ledger, number)),
        receives: held.receives && held.answers,
        answers: held.answers,
        up: rates.up(number),
        down: rates.down(number),
    };
    let mut nodes: Vec<Node> = ledger.nodes.iter().enumerate().map(node).collect();
    let mut moves = Vec::new();
    for going in ledger.moves.values() {
        let left = going.bytes - going.got;
        if ended(going, ahead) {
            if let Place::Node(to) = going.to {
                nodes[to].load += bytes(&going.unstored);
            }
        } else {
            nodes[going.from].load += left;
            moves.push(Move { from: going.from, to: going.to, bytes: left });
        }
    }
    (nodes, moves)
}

/// Whether a move is as good as over.
pub(super) fn ended(going: &Going, ahead: u64) -> bool {
    // short ones are not begun all at once
    let ahead = ahead.min(going.bytes / 2);
    going.landed || (going.to == Place::Repository && going.bytes - going.got <= ahead)
}

/// Bytes of others that a node has, or may get.
fn foreign(ledger: &Ledger, node: usize) -> u64 {
    let own = |pieces: &super::ledger::Pieces| {
        pieces.iter().filter(|(item, _)| item.node() != node).map(|(_, spans)| spans.bytes()).sum::<u64>()
    };
    let mut taken = own(&ledger.nodes[node].holds);
    for going in ledger.moves.values() {
        if going.from == node || going.to == Place::Node(node) {
            taken += own(&going.unstored);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            spans::Spans,
            wire::{ItemId, Piece},
        },
        *,
    };

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(2);
        for node in 0..2 {
            let held = &mut ledger.nodes[node];
            (held.answers, held.receives, held.limit) = (true, true, 150);
            ledger.add(ItemId::new(node, 0), 100, Spans::default());
        }
        ledger
    }

    #[test]
    fn a_move_counts_at_its_sender_until_it_has_come() {
        let mut ledger = ledger();
        let rates = Rates::new(2, None);
        let (id, pieces) = ledger.start(Move { from: 0, to: Place::Node(1), bytes: 100 }).unwrap();
        ledger.progress(id, 60);
        let (nodes, moves) = view(&ledger, &rates, 50);
        assert_eq!((nodes[0].load, nodes[1].load, nodes[1].room), (40, 100, 50));
        assert_eq!(moves, [Move { from: 0, to: Place::Node(1), bytes: 40 }]);
        ledger.landed(id);
        let (nodes, moves) = view(&ledger, &rates, 50);
        assert_eq!((nodes[0].load, nodes[1].load, nodes[1].room), (0, 200, 50));
        assert!(moves.is_empty());
        ledger.stored(id, Place::Node(1), pieces[0]);
        assert_eq!(view(&ledger, &rates, 50).0, nodes);
        // what has gone on leaves room
        let (id, _) = ledger.start(Move { from: 1, to: Place::Repository, bytes: 30 }).unwrap();
        assert_eq!(view(&ledger, &rates, 0).0[1].room, 50);
        ledger.stored(id, Place::Repository, Piece { item: ItemId::new(0, 0), start: 0, end: 30 });
        assert_eq!(view(&ledger, &rates, 0).0[1].room, 80);
    }

    #[test]
    fn the_next_sender_begins_before_the_last_has_ended() {
        let mut ledger = ledger();
        let rates = Rates::new(2, None);
        let (id, _) = ledger.start(Move { from: 0, to: Place::Repository, bytes: 100 }).unwrap();
        ledger.progress(id, 69);
        assert_eq!(view(&ledger, &rates, 30).1.len(), 1);
        ledger.progress(id, 70);
        let (nodes, moves) = view(&ledger, &rates, 30);
        assert!(moves.is_empty());
        assert_eq!(nodes[0].load, 0);
        assert_eq!(view(&ledger, &rates, 1000).1.len(), 0);
    }
}
