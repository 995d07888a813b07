//! What is ordered: the moves that the planner wants.

use std::time::Instant;

use super::{Gather, MOST, Trail};
use crate::transfer::{
    plan::{Move, Place, Policy, Repository, View},
    run::{
        ledger::Going,
        view,
        wire::{ItemId, Order, Piece},
    },
};

impl Gather {
    /// Orders what the planner wants, if anything has changed.
    pub(in crate::transfer::run) fn plan(&mut self) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        // a round is over when all of it is acknowledged
        let unacknowledged = |going: &Going| going.landed && going.to != Place::Repository;
        if self.wish.policy == Policy::Rounds && self.ledger.moves.values().any(unacknowledged) {
            return;
        }
        // one sender at a time is chosen for the repository
        for _ in 0..=MOST {
            let (nodes, moves) = view::view(&self.ledger, &self.rates, self.ahead());
            let repository = Repository { rate: self.rates.repository(), senders: self.senders(), tried: self.tried() };
            let view = View { nodes: &nodes, repository, moves: &moves, chunk: self.wish.chunk };
            let wanted = self.planner.next(&view, self.log.now());
            let mut ordered = 0;
            for wanted in wanted {
                let bytes = self.order(wanted).unwrap_or(0);
                ordered += bytes;
                if bytes < wanted.bytes {
                    self.planner.again(Move { bytes: wanted.bytes - bytes, ..wanted });
                }
            }
            if ordered == 0 {
                break;
            }
        }
        self.fail_what_nobody_moves();
    }

    /// The bytes that were ordered; what has come to a node and is not acknowledged yet can wait.
    fn order(&mut self, wanted: Move) -> Option<u64> {
        // what has come and is not acknowledged cannot go on yet: in a pair, all of it goes at once
        if wanted.to != Place::Repository && self.ledger.held(wanted.from) < wanted.bytes {
            return None;
        }
        let to = match wanted.to {
            Place::Repository => self.hosts[wanted.from].peer.as_ref().map(|peer| peer.here),
            Place::Node(node) => self.hosts[node].peer.as_ref().map(|peer| peer.address),
        };
        let to = to?;
        let (id, pieces) = self.ledger.start(wanted)?;
        let bytes = pieces.iter().map(Piece::bytes).sum();
        let now = Instant::now();
        let (from, to_place) = (wanted.from, wanted.to);
        let trail = Trail { from, to: to_place, bytes, first: None, last: now, mark: None, shared: false };
        self.trails.insert(id, trail);
        self.hosts[wanted.from].order(Order::Send { id, to, pieces });
        Some(bytes)
    }

    /// With nothing under way and nothing wanted, what is left stays where it is.
    fn fail_what_nobody_moves(&mut self) {
        if self.ledger.moves.is_empty() {
            let left: Vec<ItemId> =
                self.ledger.items.iter().filter(|(_, item)| item.end.is_none()).map(|(id, _)| *id).collect();
            for item in left {
                self.failed(item, "it cannot be moved", false);
            }
        }
    }
}
