//! Agents are up: they load, and when all have loaded, all run.

use std::time::Duration;

use jiff::Timestamp;

use super::draft::{Draft, after};
use super::members::{agent_ref, state};
use super::place::restorable;
use crate::{
    api::{
        JobPhase, Reason,
        job_status::{ReleaseReason, SlotStatus},
    },
    controller::job::plan::{AgentRef, Effect},
    driver::agent::{LeaveCode, VmState},
};

impl Draft<'_> {
    /// Waits until all have loaded, then lets all run.
    pub(super) fn start(&mut self, slot: &SlotStatus) {
        self.wake(Duration::from_secs(2));
        self.make_agents_again(slot);
        self.note_fence();
        let limit = self.seen.site.as_ref().map_or(Duration::from_secs(300), |site| site.agent_wait);
        if let Some(message) = self.unarmed(limit) {
            self.back_off(Reason::AgentFailed, message);
            self.status.kills.node += 1;
            self.give_up_slot(ReleaseReason::BadNode);
            self.because("the lease was not taken");
            return;
        }
        let Some(states) = self.all_states() else {
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
            return;
        }
        if !self.still_newest() || !self.silence_is_over() {
            return;
        }
        let agents: Vec<AgentRef> = self
            .status
            .members
            .iter()
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

    fn running(&mut self) {
        self.phase(JobPhase::Running);
        self.status.retry = None;
        self.plan_next();
        self.note(Reason::JobRunning, format!("attempt {} runs", self.status.attempt));
        self.because("all run");
        self.wake(Duration::from_secs(1));
    }
}
