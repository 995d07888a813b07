//! The scheduler of the fake site: a queue, nodes, other people's jobs. Pure: it is told the time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;

use crate::{
    driver::{
        agent::LeaveCode,
        site::{End, Notice, NoticeKind, SlotFacts, SlotPhase, SlotRequest},
    },
    names::{NodeName, SlotId},
};

/// How long a slot that was deleted or killed takes to end.
const KILL_TIME: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
struct Slot {
    request: SlotRequest,
    submitted: Timestamp,
    nodes: Vec<NodeName>,
    started: Option<Timestamp>,
    notice: Option<Notice>,
    /// When and how it ends, as far as that is settled.
    ending: Option<(Timestamp, End)>,
    /// Whether it is on its way out, as its site shows it.
    leaving: bool,
    ended: Option<End>,
    released: BTreeMap<NodeName, LeaveCode>,
}

/// Somebody else's job, before which best-effort slots give way.
#[derive(Clone, Debug)]
struct Rival {
    nodes: usize,
    length: Duration,
    running: Option<(Timestamp, Vec<NodeName>)>,
}

/// Queue, nodes and rivals.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    pub(super) start_delay: Duration,
    nodes: Vec<NodeName>,
    absent: BTreeSet<NodeName>,
    slots: BTreeMap<u64, Slot>,
    rivals: Vec<Rival>,
    last_id: u64,
}

impl Queue {
    pub(super) fn new(nodes: Vec<NodeName>) -> Self {
        Self {
            start_delay: Duration::from_secs(1),
            nodes,
            absent: BTreeSet::new(),
            slots: BTreeMap::new(),
            rivals: Vec::new(),
            last_id: 0,
        }
    }

    /// How many nodes a request may have at most.
    pub(super) fn size(&self, request: &SlotRequest) -> usize {
        self.nodes.iter().filter(|node| !request.avoid.contains(node)).count()
    }

    pub(super) fn submit(&mut self, request: &SlotRequest, now: Timestamp) -> SlotId {
        self.last_id += 1;
        let slot = Slot {
            request: request.clone(),
            submitted: now,
            nodes: Vec::new(),
            started: None,
            notice: None,
            ending: None,
            leaving: false,
            ended: None,
            released: BTreeMap::new(),
        };
        self.slots.insert(self.last_id, slot);
        SlotId(self.last_id.to_string())
    }

    pub(super) fn request(&self, id: &SlotId) -> Option<SlotRequest> {
        Some(self.slots.get(&id.0.parse().ok()?)?.request.clone())
    }

    pub(super) fn rival(&mut self, nodes: usize, length: Duration) {
        self.rivals.push(Rival { nodes, length, running: None });
    }

    pub(super) fn set_node(&mut self, node: &NodeName, usable: bool) {
        if usable {
            self.absent.remove(node);
        } else {
            self.absent.insert(node.clone());
        }
    }

    /// Ends a slot the way `end` says, after the time a kill takes.
    pub(super) fn kill(&mut self, id: &SlotId, end: End, now: Timestamp) -> bool {
        match self.slot(id) {
            Some(slot) => {
                slot.end_at(after(now, KILL_TIME), end);
                slot.leaving = true;
                true
            }
            None => false,
        }
    }

    /// Ends a slot at once.
    pub(super) fn end(&mut self, id: &SlotId, end: End) {
        if let Some(slot) = self.slot(id) {
            slot.ended.get_or_insert(end);
        }
    }

    /// Somebody wants the slot's nodes.
    pub(super) fn preempt(&mut self, id: &SlotId, now: Timestamp) {
        if let Some(slot) = self.slot(id) {
            slot.preempt(now);
        }
    }

    /// One node's agent left; when all have, the hold ends.
    pub(super) fn release_node(&mut self, id: &SlotId, node: &NodeName, code: LeaveCode) {
        let Some(slot) = self.slot(id) else { return };
        if code == LeaveCode::KeepSlot || !slot.nodes.contains(node) {
            return;
        }
        slot.released.insert(node.clone(), code);
        if slot.released.len() == slot.nodes.len() {
            let done = slot.released.values().all(|c| *c == LeaveCode::Done);
            slot.ended.get_or_insert(match slot.notice.map(|n| n.kind) {
                _ if done => End::Done,
                Some(NoticeKind::Preemption) => End::SavedAtPreemption,
                Some(NoticeKind::Walltime) => End::SavedAtWalltime,
                Some(NoticeKind::Person) | None => End::Released,
            });
        }
    }

    /// Lets everything happen that is due: ends, preemptions, starts.
    pub(super) fn advance(&mut self, now: Timestamp) {
        for slot in self.slots.values_mut() {
            slot.advance(now);
        }
        self.rivals.retain(|r| r.running.as_ref().is_none_or(|(until, _)| *until > now));
        for index in 0..self.rivals.len() {
            let Rival { nodes, length, running: None } = self.rivals[index].clone() else { continue };
            let free = self.free();
            if free.len() >= nodes {
                self.rivals[index].running = Some((after(now, length), free[..nodes].to_vec()));
                continue;
            }
            let mut missing = nodes - free.len();
            for slot in self.slots.values_mut().rev().filter(|s| s.running()) {
                if missing == 0 {
                    break;
                }
                slot.preempt(now);
                missing = missing.saturating_sub(slot.nodes.len());
            }
        }
        let wanted: usize = self.rivals.iter().filter(|r| r.running.is_none()).map(|r| r.nodes).sum();
        let waiting: Vec<u64> = self.slots.iter().filter(|(_, s)| s.waiting()).map(|(id, _)| *id).collect();
        for id in waiting {
            let mut free = self.free();
            let delay = self.start_delay;
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            free.retain(|node| !slot.request.avoid.contains(node));
            let nodes = slot.request.nodes as usize;
            if after(slot.submitted, delay) <= now && free.len() >= nodes + wanted {
                slot.nodes = free[..nodes].to_vec();
                slot.started = Some(now);
            }
        }
    }

    pub(super) fn facts(&self) -> Vec<SlotFacts> {
        self.slots.iter().map(|(id, slot)| slot.facts(*id)).collect()
    }

    fn slot(&mut self, id: &SlotId) -> Option<&mut Slot> {
        self.slots.get_mut(&id.0.parse().ok()?).filter(|s| s.ended.is_none())
    }

    fn free(&self) -> Vec<NodeName> {
        let taken: BTreeSet<&NodeName> = self
            .slots
            .values()
            .filter(|s| s.running())
            .flat_map(|s| &s.nodes)
            .chain(self.rivals.iter().filter_map(|r| r.running.as_ref()).flat_map(|(_, nodes)| nodes))
            .chain(&self.absent)
            .collect();
        self.nodes.iter().filter(|n| !taken.contains(n)).cloned().collect()
    }
}

impl Slot {
    fn running(&self) -> bool {
        self.started.is_some() && self.ended.is_none()
    }

    fn waiting(&self) -> bool {
        self.started.is_none() && self.ended.is_none() && !self.leaving
    }

    fn until(&self) -> Option<Timestamp> {
        self.started.map(|s| after(s, self.request.walltime))
    }

    fn end_at(&mut self, time: Timestamp, end: End) {
        if self.ending.as_ref().is_none_or(|(other, _)| time < *other) {
            self.ending = Some((time, end));
        }
    }

    fn preempt(&mut self, now: Timestamp) {
        if !self.running() || self.leaving {
            return;
        }
        let grace = self.request.grace;
        if grace > Duration::ZERO {
            // the grace counts from the first notice, whatever it was for
            let first = self.notice.get_or_insert(Notice { kind: NoticeKind::Preemption, at: now }).at;
            self.end_at(after(first, grace).max(now), End::Preempted);
        } else {
            self.leaving = true;
            self.end_at(after(now, KILL_TIME), End::Preempted);
        }
    }

    fn advance(&mut self, now: Timestamp) {
        if let Some(until) = self.until().filter(|_| self.running()) {
            let grace = self.request.grace;
            if grace > Duration::ZERO && self.notice.is_none() {
                let at = until.checked_sub(grace).unwrap_or(until);
                if at <= now {
                    self.notice = Some(Notice { kind: NoticeKind::Walltime, at });
                }
            }
            self.end_at(until, End::Walltime);
        }
        if let Some((time, end)) = &self.ending
            && *time <= now
            && self.ended.is_none()
        {
            self.ended = Some(end.clone());
        }
    }

    fn facts(&self, id: u64) -> SlotFacts {
        let phase = match &self.ended {
            Some(end) => SlotPhase::Ended(end.clone()),
            None if self.leaving => SlotPhase::Ending,
            None if self.started.is_some() => SlotPhase::Running,
            None => SlotPhase::Waiting { message: "waiting for nodes".into(), expected: None },
        };
        SlotFacts {
            id: SlotId(id.to_string()),
            name: self.request.name.clone(),
            phase,
            nodes: self.nodes.clone(),
            since: self.started,
            until: self.until(),
            notice: self.notice,
            unreached: matches!(self.ended, Some(End::Infrastructure(_))),
        }
    }
}

fn after(time: Timestamp, by: Duration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}
