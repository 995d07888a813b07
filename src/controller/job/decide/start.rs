//! Agents are up: they load, and when all have loaded, all run.

use std::time::Duration;

use jiff::Timestamp;

use super::draft::{Draft, after, since};
use super::master::called;
use super::members::{agent_ref, heard, state};
use super::place::restorable;
use crate::{
    api::{JobPhase, Reason, job_status::ReleaseReason},
    controller::job::plan::{AgentRef, Effect},
    driver::agent::{LeaveCode, VmState},
};

/// Members may take this long to load, and longer for what they have to fetch.
const LOAD_LIMIT: Duration = Duration::from_secs(600);
/// Bytes that all members together fetch in a second at least.
const LEAST_RATE: u64 = 8 << 20;
/// Time that guests have to run once they may.
const GO_LIMIT: Duration = Duration::from_secs(120);

impl Draft<'_> {
    /// Waits until all have loaded, then lets all run.
    pub(super) fn start(&mut self) {
        self.wake(Duration::from_secs(2));
        self.make_agents_again();
        self.note_fence();
        let limit = self.seen.site.as_ref().map_or(Duration::from_secs(300), |site| site.agent_wait);
        if let Some((slot, message)) = self.unarmed(limit) {
            if slot.as_ref().is_some_and(|slot| self.deploy_after_all(slot)) {
                self.note(Reason::DeployingHypervisor, format!("{message}: it is deployed, though it was ready"));
                self.ends_before_running();
                self.leave(LeaveCode::KeepSlot);
                self.phase(JobPhase::Deploying);
                self.because("nodes that were ready are deployed after all");
                return;
            }
            self.back_off(Reason::AgentFailed, message);
            self.status.kills.node += 1;
            self.ends_before_running();
            self.give_up(&slot.into_iter().collect(), ReleaseReason::BadNode);
            self.because("the lease was not taken");
            return;
        }
        let Some(states) = self.states_of(self.status.everyone()) else {
            self.because("agents are coming up");
            return;
        };
        let vms: Vec<VmState> = states.iter().map(|state| state.vm.clone()).collect();
        if vms.iter().all(|vm| matches!(vm, VmState::Running | VmState::Stopped)) {
            self.running();
            return;
        }
        let restoring = self.status.origin.as_ref().is_some_and(|origin| origin.generation.is_some());
        self.phase(if restoring { JobPhase::Restoring } else { JobPhase::Starting });
        if self.status.started.is_none() {
            self.status.started = Some(self.time());
        }
        if !vms.iter().all(|vm| matches!(vm, VmState::Loaded | VmState::Running | VmState::Stopped)) {
            self.because("guests are being loaded");
            if let (Some(member), Some(limit)) = (self.slowest(), self.over(None)) {
                self.gave_up_start(&format!("{member}, and did not get on for {} s", limit.as_secs()));
            }
            return;
        }
        if !self.still_newest() || !self.silence_is_over() {
            return;
        }
        if let Some(limit) = self.over(self.silent_until()) {
            self.gave_up_start(&format!("guests that have loaded did not run within {} s", limit.as_secs()));
            return;
        }
        let agents: Vec<AgentRef> = self
            .status
            .everyone()
            .filter(|member| state(self.seen, member).is_some_and(|state| state.vm == VmState::Loaded))
            .filter_map(agent_ref)
            .collect();
        self.because("all have loaded");
        self.repeat(Effect::Go { agents }, Duration::from_secs(2));
    }

    /// Whether the generation that was loaded is still the newest, now that nothing older can be
    /// published: between the choice and the fence one may have been completed (safety B1).
    fn still_newest(&mut self) -> bool {
        let Some(content) = self.seen.content.known() else {
            self.because("the repository does not answer");
            return false;
        };
        if content.fence < self.status.incarnation {
            self.because("the repository is not fenced yet");
            self.repeat(Effect::FenceRepository { incarnation: self.status.incarnation }, Duration::from_secs(3));
            return false;
        }
        let origin = self.status.origin.clone().unwrap_or_default();
        let newest = restorable(content, &origin, &origin.bad, self.job.spec.members).map(|s| s.generation);
        if newest == origin.generation {
            return true;
        }
        self.note(Reason::Resuming, format!("generation {newest:?} was completed meanwhile: all load again"));
        self.phase(JobPhase::Deploying);
        self.leave(LeaveCode::KeepSlot);
        self.because("a newer generation was completed meanwhile");
        false
    }

    /// Takes note of when the repository was first seen to refuse a member that was only silent. It may
    /// have answered that one until then, and so have kept its VM alive (safety A1).
    fn note_fence(&mut self) {
        let (now, incarnation) = (self.time(), self.status.incarnation);
        let in_force = self.seen.content.known().is_some_and(|content| content.fence >= incarnation);
        if let Some(origin) = self.status.origin.as_mut().filter(|origin| origin.silent && in_force) {
            origin.fenced.get_or_insert(now);
        }
    }

    /// When a member that was only silent must have ended its VM; none while the repository may still
    /// answer it.
    pub(super) fn silent_until(&self) -> Option<Timestamp> {
        let fenced = self.status.origin.as_ref()?.fenced.as_ref()?.0;
        Some(after(self.by_our_clock(fenced), self.afterlife()))
    }

    /// Whether every member before this incarnation must have ended by now (safety A1).
    fn silence_is_over(&mut self) -> bool {
        if self.status.origin.as_ref().is_none_or(|origin| !origin.silent) {
            return true;
        }
        match self.silent_until() {
            Some(end) if self.now >= end => true,
            end => {
                if let Some(end) = end {
                    self.wake_at(end);
                }
                self.because("a member that was only silent is given its time to end");
                false
            }
        }
    }

    /// The first member that has not loaded, and how far it is.
    fn slowest(&self) -> Option<String> {
        self.status.everyone().find_map(|member| {
            let far = match &state(self.seen, member)?.vm {
                VmState::Fetching { done, total } => {
                    format!("has loaded {} of {} MiB", done >> 20, total >> 20)
                }
                VmState::None => "has not begun to load".to_owned(),
                VmState::Loaded | VmState::Running | VmState::Stopped | VmState::Gone { .. } => return None,
            };
            Some(format!("{} on node {} {far}", called(member, self.job), member.node.as_deref().unwrap_or_default()))
        })
    }

    /// The time that a start had, if it is over: as long as its bytes may take, but no more than half of
    /// the slot's. It begins anew with all that is heard to get on, with a new leader, and when the
    /// repository answers again: nobody is to blame for a time in which nobody could act. Guests that had to
    /// wait for the time of a silent member have some more.
    fn over(&mut self, waited: Option<Timestamp>) -> Option<Duration> {
        let placed = self.by_our_clock(self.status.origin.as_ref()?.since.as_ref()?.0);
        let moved = self.status.everyone().filter_map(|member| heard(self.seen, member)?.moved).max();
        let begun = [moved, self.seen.repository_silent].into_iter().flatten().fold(placed, Timestamp::max);
        let image = self.status.image.as_ref().map_or(0, |image| image.virtual_size);
        let (vm, restoring) = (&self.job.spec.vm, self.status.origin.as_ref()?.generation.is_some());
        let disk = vm.disk_over(image);
        let bytes = disk.saturating_add(if restoring { vm.memory.0 } else { 0 });
        let fetching = Duration::from_secs(bytes.saturating_mul(u64::from(self.job.spec.members)) / LEAST_RATE);
        let lengths = self.in_use().filter_map(|slot| Some(since(slot.since.as_ref()?.0, slot.until.as_ref()?.0)));
        let slot_time = lengths.min();
        let most = slot_time.map_or(Duration::MAX, |time| time / 2).max(LOAD_LIMIT);
        let limit = LOAD_LIMIT.saturating_add(fetching).min(most);
        let mut end = after(begun, limit);
        if let Some(waited) = waited {
            end = end.max(after(waited, GO_LIMIT));
        }
        self.wake_at(end);
        (self.now >= end && self.seen.content.known().is_some()).then_some(limit)
    }

    /// A start that does not get anywhere: the attempt counts, and another slot is asked for.
    fn gave_up_start(&mut self, why: &str) {
        let restoring = self.status.origin.as_ref().is_some_and(|origin| origin.generation.is_some());
        self.back_off(if restoring { Reason::RestoreFailed } else { Reason::AgentFailed }, why);
        let waits = |vm: &VmState| matches!(vm, VmState::None | VmState::Fetching { .. });
        if self.status.everyone().any(|member| state(self.seen, member).is_some_and(|state| waits(&state.vm))) {
            // a part that is damaged or missing would have said so: this one was on its way, or its image
            self.forgive_try(false);
        }
        self.account_work();
        self.status.kills.node += 1;
        let slow = self.slots_where(|member| state(self.seen, member).is_some_and(|state| waits(&state.vm)));
        self.give_up(&slow, ReleaseReason::BadNode);
        self.because("the start took too long");
    }

    fn running(&mut self) {
        self.phase(JobPhase::Running);
        self.status.retry = None;
        if let Some(origin) = &mut self.status.origin {
            origin.bad_nodes = 0;
        }
        self.plan_next();
        self.note(Reason::JobRunning, format!("attempt {} runs", self.status.attempt));
        self.because("all run");
        self.wake(Duration::from_secs(1));
    }
}
