//! Which slots a job has, and who sits where.
//!
//! A gang has one slot of all nodes; with `PerMember` each has one of its own. Those come, are wanted back and are
//! given back one by one, so that some may run while others are waited for: no longer than `acquireTimeout`, for two
//! jobs that each hold half would wait for ever (safety C1).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;

use super::{
    draft::{Draft, since},
    members::{agent_ref, pod_ended, state},
};
use crate::{
    api::{
        JobPhase, Reason,
        job::Allocation,
        job_status::{MemberStatus, ReleaseReason, SlotState, SlotStatus},
    },
    controller::job::plan::{AgentRef, Effect},
    driver::agent::LeaveCode,
};

/// Some slots may wait this long for others, unless the job says otherwise.
const ACQUIRE: Duration = Duration::from_secs(600);

/// A place for a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) slot: String,
    pub(super) node: String,
    /// When its slot began to run.
    pub(super) since: Option<Timestamp>,
    /// When the time of its slot ends.
    pub(super) until: Option<Timestamp>,
}

/// The slots' ids, and what follows them for one and for several; nothing can be said of none.
pub(crate) fn called_slots<'s>(
    slots: impl IntoIterator<Item = &'s SlotStatus>,
    [one, several]: [&str; 2],
) -> Option<String> {
    let ids: Vec<&str> = slots.into_iter().map(|slot| slot.id.as_str()).collect();
    match ids.as_slice() {
        [] => None,
        [id] => Some(format!("slot {id}{one}")),
        ids => Some(format!("slots {}{several}", ids.join(", "))),
    }
}

impl Draft<'_> {
    /// Slots that are in use or waited for.
    pub(super) fn in_use(&self) -> impl Iterator<Item = &SlotStatus> {
        self.status.slots.iter().filter(|slot| slot.is_in_use())
    }

    pub(super) fn has_slots(&self) -> bool {
        self.in_use().next().is_some()
    }

    pub(super) fn one_by_one(&self) -> bool {
        self.job.spec.slots.allocation == Allocation::PerMember
    }

    /// Nodes of each reservation.
    pub(super) fn nodes_each(&self) -> u32 {
        if self.one_by_one() { 1 } else { self.nodes() }
    }

    /// How long some slots may wait for others; zero where there are no others.
    pub(super) fn acquire_timeout(&self) -> Duration {
        let several = self.one_by_one() && self.nodes() > 1;
        if several { self.job.spec.slots.acquire_timeout.map_or(ACQUIRE, Into::into) } else { Duration::ZERO }
    }

    /// Reservations that are to be asked for yet.
    pub(super) fn missing(&self) -> u32 {
        let each = self.nodes_each().max(1);
        let held = self.in_use().map(|slot| match u32::try_from(slot.nodes.len()) {
            // it is known once it runs; one with too few nodes is seen at the placing
            Ok(0) => each,
            Ok(nodes) if slot.state == SlotState::Running && self.one_by_one() => nodes,
            Ok(_) | Err(_) => each,
        });
        self.nodes().saturating_sub(held.fold(0, u32::saturating_add)).div_ceil(each)
    }

    /// Whether all the slots there are to be run.
    pub(super) fn all_run(&self) -> bool {
        let runs = |slot: &SlotStatus| slot.state == SlotState::Running && !slot.nodes.is_empty();
        self.has_slots() && self.missing() == 0 && self.in_use().all(runs)
    }

    /// Places in the order of the members, a master's own last. Whoever was on one of the nodes before gets it again,
    /// for what it has left there; there may be too few.
    pub(super) fn seats(&self) -> Vec<Seat> {
        let seat = |slot: &SlotStatus, node: &String| Seat {
            slot: slot.id.clone(),
            node: node.clone(),
            since: slot.since.as_ref().map(|at| at.0),
            until: slot.until.as_ref().map(|at| at.0),
        };
        let mut free: Vec<Seat> =
            self.in_use().flat_map(|slot| slot.nodes.iter().map(|node| seat(slot, node))).collect();
        free.truncate(self.nodes() as usize);
        let mut taken: BTreeMap<usize, Seat> = BTreeMap::new();
        for (place, member) in self.status.everyone().enumerate() {
            let known = free.iter().position(|seat| Some(&seat.node) == member.node.as_ref());
            taken.extend(known.map(|known| (place, free.remove(known))));
        }
        let mut free = free.into_iter();
        (0..self.nodes() as usize).filter_map(|place| taken.remove(&place).or_else(|| free.next())).collect()
    }

    /// The slot that a member is on, as long as it is in use.
    pub(super) fn slot_of(&self, member: &MemberStatus) -> Option<&SlotStatus> {
        let agent = member.agent.as_ref()?;
        self.in_use().find(|slot| slot.id == agent.slot)
    }

    /// Whoever has an agent on a slot, or had the last one there: a member, or a master that has it for itself.
    pub(super) fn on_slot(&self, slot: &str) -> impl Iterator<Item = &MemberStatus> {
        self.status.everyone().filter(move |member| member.agent.as_ref().is_some_and(|agent| agent.slot == slot))
    }

    /// Whether a member is on it, and not only a master.
    pub(super) fn carries_member(&self, slot: &str) -> bool {
        self.on_slot(slot).any(|member| member.index < self.job.spec.members)
    }

    /// Whether a slot is in use that a member is on.
    pub(super) fn holds_members(&self) -> bool {
        self.in_use().any(|slot| self.carries_member(&slot.id))
    }

    /// Slots in use on which somebody is of whom this holds.
    pub(super) fn slots_where(&self, those: impl Fn(&MemberStatus) -> bool) -> BTreeSet<String> {
        let found = self.status.everyone().filter(|member| those(member)).filter_map(|member| self.slot_of(member));
        found.map(|slot| slot.id.clone()).collect()
    }

    /// Gives these slots back, all if there are none among them, and asks for others. Whoever is on the rest makes room
    /// for the next incarnation there.
    pub(super) fn give_up(&mut self, those: &BTreeSet<String>, reason: ReleaseReason) {
        self.intend_some(|slot| those.is_empty() || those.contains(&slot.id), reason);
        self.leave_by_slot(LeaveCode::Saved);
        self.release();
        self.status.attempt += 1;
        self.phase(JobPhase::Queued);
        self.wake(Duration::from_secs(1));
    }

    /// Tells all that still speak to leave: those on slots that are kept, to keep them.
    pub(super) fn leave_by_slot(&mut self, code: LeaveCode) {
        self.leave_given_back(code);
        let kept = self.speaking(|d, member| d.slot_of(member).is_some());
        self.order_leave(kept, LeaveCode::KeepSlot);
    }

    /// Tells those to leave whose slots are being given back.
    pub(super) fn leave_given_back(&mut self, code: LeaveCode) {
        let left = self.speaking(|d, member| d.slot_of(member).is_none());
        self.order_leave(left, code);
    }

    /// Gives all back if some have waited for others for too long.
    pub(super) fn heed_acquire_timeout(&mut self) {
        let running = self.in_use().any(|slot| slot.state == SlotState::Running);
        if !self.one_by_one() || !running || self.all_run() {
            self.status.incomplete_since = None;
            return;
        }
        let now = self.time();
        let begun = self.status.incomplete_since.get_or_insert(now).0;
        let limit = self.acquire_timeout();
        let waited = since(self.by_our_clock(begun), self.now);
        if waited < limit {
            self.wake(limit.saturating_sub(waited));
            return;
        }
        let have = self.in_use().filter(|slot| slot.state == SlotState::Running).count();
        let message = format!(
            "{have} of {} slots ran within {} s (slots.acquireTimeout): all are given back, and asked for again later",
            self.nodes(),
            limit.as_secs()
        );
        self.back_off(Reason::SlotsIncomplete, message);
        self.scatter();
        self.status.incomplete_since = None;
        self.intend(ReleaseReason::Incomplete);
        self.leave_by_slot(LeaveCode::Saved);
    }

    /// Jobs that gave up together must not come back together: waits up to twice as long, as the job's uid has it.
    fn scatter(&mut self) {
        let seed = format!("{}/{}", self.uid, self.status.submission);
        let share = f64::from(blake3::hash(seed.as_bytes()).as_bytes()[0]) / 255.0;
        let now = self.now;
        let Some(retry) = &mut self.status.retry else { return };
        let wait = since(now, retry.not_before.0).mul_f64(1.0 + share);
        retry.not_before.0 = super::draft::after(now, wait);
    }

    /// Agents that still speak and were not told to leave, of those of whom this holds.
    fn speaking(&self, those: impl Fn(&Self, &MemberStatus) -> bool) -> Vec<AgentRef> {
        self.status
            .everyone()
            .filter(|member| those(self, member))
            .filter(|member| state(self.seen, member).is_some_and(|state| state.leaving.is_none()))
            .filter(|member| pod_ended(self.seen, member).is_none() && self.speaks(member))
            .filter_map(agent_ref)
            .collect()
    }

    /// Tells every agent that still speaks to end, also one whose VM is gone.
    pub(super) fn leave(&mut self, code: LeaveCode) {
        let agents = self.speaking(|_, _| true);
        self.order_leave(agents, code);
    }

    fn order_leave(&mut self, agents: Vec<AgentRef>, code: LeaveCode) {
        if !agents.is_empty() {
            // an agent heeds what it is told first
            self.take_back_leave(&agents);
            self.repeat(Effect::Leave { agents, code }, super::members::AGAIN);
        }
    }
}
