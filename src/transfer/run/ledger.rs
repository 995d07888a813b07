//! Where each byte is, by what was acknowledged. Pure.
//!
//! A byte has one holder that answers for it, at first the node whose file it is of; with the acknowledgement of a
//! receiver it is the receiver. The node whose file it is can always send it again, since its file stays.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    spans::Spans,
    wire::{ItemId, Piece},
};
use crate::transfer::plan::{Move, Place};

/// Ranges of several files.
pub(super) type Pieces = BTreeMap<ItemId, Spans>;

/// What a node answers for.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) holds: Pieces,
    /// Bytes of others that it may have.
    pub(super) limit: u64,
    /// Whether it is there.
    pub(super) answers: bool,
    /// Whether it takes more.
    pub(super) receives: bool,
    freed: bool,
}

/// A file.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) size: u64,
    pub(super) stored: Spans,
    pub(super) end: Option<End>,
    /// Moves from its own node that have not said yet that the file is what it was.
    reads: usize,
}

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All its bytes are stored: it is given its name.
    Finishing,
    /// It is there.
    Whole,
    /// It will not be, for this reason.
    Failed(String),
}

/// A move under way.
#[derive(Debug)]
pub(super) struct Going {
    pub(super) from: usize,
    pub(super) to: Place,
    /// Bytes in all.
    pub(super) bytes: u64,
    /// Bytes that have come.
    pub(super) got: u64,
    /// All have come.
    pub(super) landed: bool,
    /// Not acknowledged.
    pub(super) unstored: Pieces,
    /// Own files of the sender whose state it has not confirmed yet.
    unread: BTreeSet<ItemId>,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) nodes: Vec<Held>,
    pub(super) items: BTreeMap<ItemId, Item>,
    pub(super) moves: BTreeMap<u64, Going>,
    last: u64,
}

/// What an acknowledgement changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Forget {
    /// Who need not keep which bytes of others any more.
    pub(super) drops: Vec<(usize, Piece)>,
}

impl Ledger {
    /// With so many nodes, which hold nothing yet.
    pub(super) fn new(nodes: usize) -> Self {
        let held = || Held { holds: Pieces::new(), limit: 0, answers: false, receives: false, freed: false };
        Self { nodes: (0..nodes).map(|_| held()).collect(), ..Self::default() }
    }

    /// A node has a file, of which this is stored already.
    pub(super) fn add(&mut self, id: ItemId, size: u64, stored: Spans) {
        let missing = stored.missing(size);
        if !missing.is_empty() {
            self.nodes[id.node()].holds.insert(id, missing);
        }
        self.items.insert(id, Item { size, stored, end: None, reads: 0 });
    }

    /// Bytes that a node answers for, without those on their way.
    pub(super) fn held(&self, node: usize) -> u64 {
        bytes(&self.nodes[node].holds)
    }

    fn failed(&self, item: ItemId) -> bool {
        self.items.get(&item).is_none_or(|item| matches!(item.end, Some(End::Failed(_))))
    }

    /// Chooses what moves; none if nothing can. What a node has of others goes first: it is safe sooner, and leaves
    /// room.
    pub(super) fn start(&mut self, wanted: Move) -> Option<(u64, Vec<Piece>)> {
        let (from, to) = (wanted.from, wanted.to);
        let node = &mut self.nodes[from];
        let mut order: Vec<ItemId> = node.holds.keys().copied().collect();
        order.sort_by_key(|item| (item.node() == from, *item));
        let mut left = wanted.bytes;
        let (mut pieces, mut unstored, mut unread) = (Vec::new(), Pieces::new(), BTreeSet::new());
        for item in order {
            // its own bytes are nothing that a node can take for another
            if to == Place::Node(item.node()) {
                continue;
            }
            let Some(spans) = node.holds.get_mut(&item) else { continue };
            for range in spans.take(left) {
                left -= range.end - range.start;
                unstored.entry(item).or_default().insert(range.clone());
                pieces.push(Piece { item, start: range.start, end: range.end });
            }
            if spans.is_empty() {
                node.holds.remove(&item);
            }
            if item.node() == from && unstored.contains_key(&item) {
                unread.insert(item);
            }
            if left == 0 {
                break;
            }
        }
        if pieces.is_empty() {
            return None;
        }
        for item in &unread {
            if let Some(item) = self.items.get_mut(item) {
                item.reads += 1;
            }
        }
        self.last += 1;
        let going = Going { from, to, bytes: wanted.bytes - left, got: 0, landed: false, unstored, unread };
        self.moves.insert(self.last, going);
        Some((self.last, pieces))
    }

    pub(super) fn progress(&mut self, id: u64, got: u64) {
        if let Some(going) = self.moves.get_mut(&id) {
            going.got = got.clamp(going.got, going.bytes);
        }
    }

    pub(super) fn landed(&mut self, id: u64) {
        if let Some(going) = self.moves.get_mut(&id) {
            going.got = going.bytes;
            going.landed = true;
        }
        self.over(id);
    }

    /// The sender's own files are what they were.
    pub(super) fn sent(&mut self, id: u64) {
        let unread = self.moves.get_mut(&id).map(|going| std::mem::take(&mut going.unread));
        self.read(unread.unwrap_or_default());
        self.over(id);
    }

    fn read(&mut self, items: BTreeSet<ItemId>) {
        for item in items {
            if let Some(item) = self.items.get_mut(&item) {
                item.reads = item.reads.saturating_sub(1);
            }
        }
    }

    fn over(&mut self, id: u64) {
        let over = |going: &Going| going.landed && going.unstored.is_empty() && going.unread.is_empty();
        if self.moves.get(&id).is_some_and(over) {
            self.moves.remove(&id);
        }
    }

    /// A receiver has acknowledged a piece; `at` is where, and counts also when nothing is known of the move any more.
    pub(super) fn stored(&mut self, id: u64, at: Place, piece: Piece) -> Forget {
        let mut forget = Forget::default();
        let going = self.moves.get_mut(&id);
        let known = going.is_some();
        if let Some(going) = going {
            let from = going.from;
            take(&mut going.unstored, piece);
            if piece.item.node() != from {
                forget.drops.push((from, piece));
            }
        }
        match at {
            Place::Repository => {
                if !known {
                    for (number, node) in self.nodes.iter_mut().enumerate() {
                        take(&mut node.holds, piece);
                        if number != piece.item.node() {
                            forget.drops.push((number, piece));
                        }
                    }
                }
                if let Some(item) = self.items.get_mut(&piece.item) {
                    item.stored.insert(piece.range());
                }
            }
            Place::Node(node) if self.failed(piece.item) => forget.drops.push((node, piece)),
            // of a move that was given up: somebody else answers for it, if it is not on its way there once more
            Place::Node(node) if !known => {
                let again = |going: &Going| going.to == at && going.unstored.contains_key(&piece.item);
                if !self.moves.values().any(again) && !self.nodes[node].holds.contains_key(&piece.item) {
                    forget.drops.push((node, piece));
                }
            }
            Place::Node(node) => self.nodes[node].holds.entry(piece.item).or_default().insert(piece.range()),
        }
        self.over(id);
        forget
    }

    /// A move has ended before its end: what is not acknowledged is still where it was.
    pub(super) fn broken(&mut self, id: u64) -> Option<Going> {
        let mut going = self.moves.remove(&id)?;
        self.read(std::mem::take(&mut going.unread));
        self.back(going.from, std::mem::take(&mut going.unstored));
        Some(going)
    }

    /// A node answers for these again, or whoever they are from, if it does not.
    fn back(&mut self, node: usize, pieces: Pieces) {
        for (item, spans) in pieces.into_iter().filter(|(item, _)| !self.failed(*item)).collect::<Vec<_>>() {
            let holder = if self.nodes[node].answers { node } else { item.node() };
            if self.nodes[holder].answers {
                spans.iter().for_each(|range| self.nodes[holder].holds.entry(item).or_default().insert(range));
            } else {
                self.fail(item, "the nodes that had it are lost");
            }
        }
    }

    /// A node is gone; the moves that end with it.
    pub(super) fn lost(&mut self, node: usize, reason: &str) -> Vec<(u64, Going)> {
        let held = &mut self.nodes[node];
        (held.answers, held.receives) = (false, false);
        let holds = std::mem::take(&mut held.holds);
        for item in holds.keys().filter(|item| item.node() == node) {
            self.fail(*item, reason);
        }
        self.back(node, holds);
        let ends = |going: &Going| going.from == node || going.to == Place::Node(node);
        let ids: Vec<u64> = self.moves.iter().filter(|(_, going)| ends(going)).map(|(id, _)| *id).collect();
        let own = |id: &u64| self.moves[id].unread.iter().copied().collect::<Vec<_>>();
        // what it has not confirmed is not known to be what it was
        let unsure: Vec<ItemId> = ids.iter().flat_map(own).filter(|item| item.node() == node).collect();
        for item in unsure {
            self.fail(item, reason);
        }
        ids.into_iter().filter_map(|id| Some((id, self.broken(id)?))).collect()
    }

    /// A file cannot be had; nobody answers for it any more.
    pub(super) fn fail(&mut self, id: ItemId, reason: &str) {
        let Some(item) = self.items.get_mut(&id) else { return };
        if matches!(item.end, Some(End::Whole | End::Failed(_))) {
            return;
        }
        item.end = Some(End::Failed(reason.to_owned()));
        for node in &mut self.nodes {
            node.holds.remove(&id);
        }
        for going in self.moves.values_mut() {
            going.unstored.remove(&id);
        }
        for id in self.moves.keys().copied().collect::<Vec<_>>() {
            self.over(id);
        }
    }

    /// Files of which all is stored, and which are what they were: each once.
    pub(super) fn whole(&mut self) -> Vec<ItemId> {
        let ready = |item: &Item| item.end.is_none() && item.reads == 0 && item.stored.missing(item.size).is_empty();
        let ready: Vec<ItemId> = self.items.iter().filter(|(_, item)| ready(item)).map(|(id, _)| *id).collect();
        for id in &ready {
            self.end(*id, End::Finishing);
        }
        ready
    }

    pub(super) fn end(&mut self, id: ItemId, end: End) {
        if let Some(item) = self.items.get_mut(&id) {
            item.end = Some(end);
        }
    }

    /// Nodes that hold nothing any more, each when it becomes so.
    pub(super) fn freed(&mut self) -> Vec<usize> {
        let mut busy = vec![false; self.nodes.len()];
        for going in self.moves.values() {
            busy[going.from] |= !going.unstored.is_empty() || !going.unread.is_empty();
            if let Place::Node(to) = going.to {
                busy[to] |= !going.unstored.is_empty();
            }
        }
        let mut freed = Vec::new();
        for (number, node) in self.nodes.iter_mut().enumerate() {
            let free = node.answers && node.holds.is_empty() && !busy[number];
            if free && !node.freed {
                freed.push(number);
            }
            node.freed = free;
        }
        freed
    }

    /// How many nodes are free now.
    pub(super) fn free(&self) -> usize {
        self.nodes.iter().filter(|node| node.freed).count()
    }

    /// Whether every file has come to its end.
    pub(super) fn ended(&self) -> bool {
        self.items.values().all(|item| matches!(item.end, Some(End::Whole | End::Failed(_))))
    }
}

/// How many bytes they are.
pub(super) fn bytes(pieces: &Pieces) -> u64 {
    pieces.values().map(Spans::bytes).sum()
}

fn take(pieces: &mut Pieces, piece: Piece) {
    if let Some(spans) = pieces.get_mut(&piece.item) {
        spans.remove(piece.range());
        if spans.is_empty() {
            pieces.remove(&piece.item);
        }
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
