//! A site in memory, on a [`Clock`]: for simulated time, and held to the same contract as the real ones.
//!
//! Everything the world does to the operator's slots is a method here: rivals, kills, outages,
//! lost replies, duplicates.

mod queue;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;

use self::queue::Queue;
use super::{Capabilities, End, Glance, Site, SiteError, SlotFacts, SlotPhase, SlotRequest};
use crate::{
    clock::Clock,
    driver::agent::LeaveCode,
    names::{NodeName, SlotId},
};

/// What does not work at the site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outage {
    /// Everything works.
    #[default]
    None,
    /// Requests for slots are accepted, but their replies are lost; reads work.
    RepliesLost,
    /// Requests and deletions fail and have no effect; reads work.
    Writes,
    /// Nothing answers, and nothing has an effect; the scheduler goes on.
    All,
}

/// Calls the fake has answered or refused, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Requests for slots.
    pub submit: u64,
    /// Look-ups by name.
    pub look_up: u64,
    /// Reads of a list by ids.
    pub glance: u64,
    /// Reads of everything by ids.
    pub status: u64,
    /// Deletions.
    pub release: u64,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    outage: Outage,
    calls: Calls,
    refusal: Option<SiteError>,
}

/// A site in memory. Clones are the same site.
#[derive(Clone, Debug)]
pub struct FakeSite {
    clock: Clock,
    user: String,
    state: Arc<Mutex<State>>,
}

impl FakeSite {
    /// A site with these nodes and an empty queue.
    pub fn new(clock: Clock, nodes: &[&str]) -> Self {
        let queue = Queue::new(nodes.iter().map(|n| NodeName::from(*n)).collect());
        let state = State { queue, outage: Outage::None, calls: Calls::default(), refusal: None };
        Self { clock, user: "alice".into(), state: Arc::new(Mutex::new(state)) }
    }

    /// Sets what does not work.
    pub fn set_outage(&self, outage: Outage) {
        self.state().outage = outage;
    }

    /// Refuses all requests for slots, and to take any back, with this error, or no longer.
    pub fn set_refusal(&self, refusal: Option<SiteError>) {
        self.state().refusal = refusal;
    }

    /// Takes a node out of the schedule, or puts it back. Slots on it run on, as on a site that does
    /// not notice a node's death.
    pub fn set_node(&self, node: &NodeName, usable: bool) {
        self.state().queue.set_node(node, usable);
    }

    /// Submits somebody else's job, before which slots give way.
    pub fn rival(&self, nodes: usize, length: Duration) {
        self.state().queue.rival(nodes, length);
    }

    /// Preempts one slot: with a notice if it asked for one, else at once.
    pub fn preempt(&self, id: &SlotId) {
        self.state().queue.preempt(id, self.clock.now());
    }

    /// Kills one slot with everything in it, as `end` says, after the 2 s that takes.
    pub fn kill(&self, id: &SlotId, end: End) {
        self.state().queue.kill(id, end, self.clock.now());
    }

    /// Ends one slot's hold at once, as `end` says.
    pub fn end(&self, id: &SlotId, end: End) {
        self.state().queue.end(id, end);
    }

    /// Tells the hold that a node's agent has left. When all have, the slot ends.
    pub fn release_node(&self, id: &SlotId, node: &NodeName, code: LeaveCode) {
        self.state().queue.release_node(id, node, code);
    }

    /// Makes a second slot of the same request, as a reply that was lost does.
    pub fn duplicate(&self, id: &SlotId) -> Option<SlotId> {
        let now = self.clock.now();
        let mut state = self.state();
        let request = state.queue.request(id)?;
        Some(state.queue.submit(&request, now))
    }

    /// All slots ever made, as they are now, whatever does not work.
    pub fn slots(&self) -> Vec<SlotFacts> {
        self.state().queue.facts()
    }

    /// Whether the slot's holders still hold their locks.
    pub fn holds_lease(&self, id: &SlotId) -> bool {
        self.slots()
            .iter()
            .any(|s| s.id == *id && s.since.is_some() && matches!(s.phase, SlotPhase::Running | SlotPhase::Ending))
    }

    /// Calls so far.
    pub fn calls(&self) -> Calls {
        self.state().calls
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.queue.advance(self.clock.now());
        state
    }
}

fn glance(slot: SlotFacts) -> (SlotId, Glance) {
    let state = match slot.phase {
        SlotPhase::Waiting { .. } => "Waiting",
        SlotPhase::Running => "Running",
        SlotPhase::Ending => "Finishing",
        SlotPhase::Ended(_) | SlotPhase::Unknown(_) => "Terminated",
    };
    let running = matches!(slot.phase, SlotPhase::Running | SlotPhase::Ending);
    (slot.id, Glance { name: slot.name, state: state.into(), running })
}

fn no_answer() -> SiteError {
    SiteError::Unreachable("no answer".into())
}

#[async_trait]
impl Site for FakeSite {
    fn capabilities(&self) -> Capabilities {
        Capabilities { notice: true, per_member: true }
    }

    async fn submit(&self, request: &SlotRequest) -> Result<Vec<SlotId>, SiteError> {
        let now = self.clock.now();
        let mut state = self.state();
        state.calls.submit += 1;
        if matches!(state.outage, Outage::All | Outage::Writes) {
            return Err(no_answer());
        }
        if let Some(refusal) = &state.refusal {
            return Err(refusal.clone());
        }
        if (request.nodes * request.reservations) as usize > state.queue.size(request) {
            return Err(SiteError::NotEnoughNodes("There are not enough resources for your request".into()));
        }
        let ids = (0..request.reservations).map(|_| state.queue.submit(request, now)).collect();
        if state.outage == Outage::RepliesLost { Err(no_answer()) } else { Ok(ids) }
    }

    async fn look_up(&self, prefix: &str, since: Option<Timestamp>) -> Result<BTreeMap<SlotId, Glance>, SiteError> {
        let mut state = self.state();
        state.calls.look_up += 1;
        if state.outage == Outage::All {
            return Err(no_answer());
        }
        let wanted =
            |s: &SlotFacts| s.name.starts_with(prefix) && (since.is_some() || !matches!(s.phase, SlotPhase::Ended(_)));
        Ok(state.queue.facts().into_iter().filter(wanted).map(glance).collect())
    }

    async fn glance(&self, ids: &[SlotId]) -> Result<BTreeMap<SlotId, Glance>, SiteError> {
        let mut state = self.state();
        state.calls.glance += 1;
        if state.outage == Outage::All {
            return Err(no_answer());
        }
        Ok(state.queue.facts().into_iter().filter(|s| ids.contains(&s.id)).map(glance).collect())
    }

    async fn status(&self, ids: &[SlotId]) -> Result<BTreeMap<SlotId, SlotFacts>, SiteError> {
        let mut state = self.state();
        state.calls.status += 1;
        if state.outage == Outage::All {
            return Err(no_answer());
        }
        Ok(state.queue.facts().into_iter().filter(|s| ids.contains(&s.id)).map(|s| (s.id.clone(), s)).collect())
    }

    async fn release(&self, id: &SlotId) -> Result<(), SiteError> {
        let now = self.clock.now();
        let mut state = self.state();
        state.calls.release += 1;
        if matches!(state.outage, Outage::All | Outage::Writes) {
            return Err(no_answer());
        }
        if let Some(refusal) = &state.refusal {
            return Err(refusal.clone());
        }
        let known = state.queue.request(id).is_some();
        state.queue.kill(id, End::Deleted(self.user.clone()), now);
        if known { Ok(()) } else { Err(SiteError::NotFound(id.to_string())) }
    }
}
