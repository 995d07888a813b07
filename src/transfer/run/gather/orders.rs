//! What is ordered: the moves that the planner wants.

use std::time::Instant;

use super::{Gather, MOST, Trail};
use crate::transfer::{
    plan::{Move, Place, Repository, View},
    run::{
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
        // one sender at a time is chosen for the repository
        for _ in 0..=MOST {
            let (nodes, moves) = view::view(&self.ledger, &self.rates, self.ahead());
            let repository = Repository { rate: self.rates.repository(), senders: self.senders() };
            let view = View { nodes: &nodes, repository, moves: &moves, chunk: self.wish.chunk };
            let wanted = self.planner.next(&view, self.log.now());
            let ordered = wanted.into_iter().filter(|wanted| self.order(*wanted)).count();
            if ordered == 0 {
                break;
            }
        }
        self.fail_what_nobody_moves();
    }

    fn order(&mut self, wanted: Move) -> bool {
        // what has come and is not acknowledged cannot go on yet: in a pair, all of it goes at once
        if wanted.to != Place::Repository && self.ledger.held(wanted.from) < wanted.bytes {
            return false;
        }
        let to = match wanted.to {
            Place::Repository => self.hosts[wanted.from].peer.as_ref().map(|peer| peer.here),
            Place::Node(node) => self.hosts[node].peer.as_ref().map(|peer| peer.address),
        };
        let Some(to) = to else { return false };
        let Some((id, pieces)) = self.ledger.start(wanted) else { return false };
        let bytes = pieces.iter().map(Piece::bytes).sum();
        let now = Instant::now();
        let trail = Trail { from: wanted.from, to: wanted.to, bytes, first: None, last: now, judged: false };
        self.trails.insert(id, trail);
        self.hosts[wanted.from].order(Order::Send { id, to, pieces });
        true
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
