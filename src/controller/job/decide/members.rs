//! How the members are: who is alive, who has loaded, who is confirmed dead.
//!
//! Nothing new starts before every old member is confirmed dead (safety A1). The absence of a pod
//! proves nothing, and neither does silence that this leader did not hear itself (A11, B13). A member
//! that was only silent may have been in contact with the repository all the time: its death is
//! unproven, and its time begins anew when the repository refuses it.

use std::time::Duration;

use super::draft::{Draft, since};
use crate::{
    api::{
        BestEffortJobStatus, JobPhase,
        job_status::{MemberPhase, MemberStatus, RestoredBytes},
    },
    controller::job::plan::{AgentRef, AgentSeen, Effect, PodSeen, Seen},
    driver::{
        agent::{AgentState, LeaseState, VmState},
        repository::ANSWER_WITHIN,
    },
};

/// After the end of its slot was seen a VM lives no longer than this, with the node cut off too: the beat's
/// limit and some more (safety A2).
const LEASE_OUTLIVED: Duration = Duration::from_secs(20);
/// More than the isolation time, for clocks and heartbeats on their way (safety A1).
const MARGIN: Duration = Duration::from_secs(5);
/// An agent that was heard this long ago is taken to be there.
const FRESH: Duration = Duration::from_secs(5);
/// An agent that is leaving and speaks no more for this long has nothing left to do.
const FAREWELL: Duration = Duration::from_secs(10);
/// Between two orders of the same kind.
pub(super) const AGAIN: Duration = Duration::from_secs(3);

/// The agent of a member as it can be reached.
pub(super) fn agent_ref(member: &MemberStatus) -> Option<AgentRef> {
    let agent = member.agent.as_ref()?;
    Some(AgentRef {
        pod: agent.pod.clone(),
        member: member.index,
        incarnation: agent.incarnation,
        endpoint: agent.endpoint.parse().ok()?,
    })
}

/// What the member's agent was heard to say.
pub(super) fn heard<'a>(seen: &'a Seen, member: &MemberStatus) -> Option<&'a AgentSeen> {
    seen.agents.get(&member.agent.as_ref()?.pod)
}

/// What the member's agent said last.
pub(super) fn state<'a>(seen: &'a Seen, member: &MemberStatus) -> Option<&'a AgentState> {
    heard(seen, member)?.state.as_ref()
}

fn pod<'a>(seen: &'a Seen, member: &MemberStatus) -> Option<&'a PodSeen> {
    seen.pods.get(&member.agent.as_ref()?.pod)
}

/// Why the member's agent does not start, as its kubelet or it itself says.
pub(crate) fn stuck(seen: &Seen, member: &MemberStatus) -> Option<String> {
    let by_kubelet = pod(seen, member).and_then(|pod| pod.waiting.as_ref());
    let by_itself = || state(seen, member)?.waiting.as_ref();
    Some(format!("pod {}: {}", member.agent.as_ref()?.pod, by_kubelet.or_else(by_itself)?))
}

/// How the container of the member's agent has ended, if it has.
pub(super) fn pod_ended<'a>(seen: &'a Seen, member: &MemberStatus) -> Option<&'a str> {
    pod(seen, member)?.ended.as_deref()
}

impl Draft<'_> {
    /// How long this leader has listened to a member's agent in vain.
    pub(super) fn silence(&self, member: &MemberStatus) -> Duration {
        heard(self.seen, member)
            .map(|agent| agent.heard.map_or(agent.listening, |at| at.max(agent.listening)))
            .map_or(Duration::ZERO, |last| since(last, self.now))
    }

    fn isolation(&self) -> Duration {
        self.seen.site.as_ref().map_or(Duration::from_secs(120), |site| site.isolation)
    }

    /// Whether the silence is long enough for the VM to have killed itself. An agent that is coming up was not heard
    /// yet, and its pod may take its time: it has as long as for its lease.
    pub(super) fn isolated(&self, member: &MemberStatus) -> bool {
        let wait = self.seen.site.as_ref().filter(|_| self.comes_up(member)).map_or(Duration::ZERO, |s| s.agent_wait);
        self.silence(member) >= self.isolation().max(wait) + MARGIN
    }

    fn comes_up(&self, member: &MemberStatus) -> bool {
        let present = member.agent.as_ref().is_some_and(|agent| agent.incarnation == self.status.incarnation);
        present
            && matches!(self.status.phase, JobPhase::Starting | JobPhase::Restoring)
            && state(self.seen, member).is_none()
    }

    /// How long a member that was only silent may live after the repository has begun to refuse it: an
    /// answer from just before may be on its way, and is a contact when it comes.
    pub(super) fn afterlife(&self) -> Duration {
        self.isolation() + ANSWER_WITHIN + MARGIN
    }

    /// Whether a member is confirmed dead (safety A1).
    pub(super) fn dead(&self, member: &MemberStatus) -> bool {
        member.phase == MemberPhase::Dead || self.proven(member) || self.isolated(member)
    }

    /// Whether something else than silence tells that a member is dead.
    fn proven(&self, member: &MemberStatus) -> bool {
        let Some(agent) = &member.agent else { return true };
        if member.phase == MemberPhase::Dead && !agent.unproven {
            return true;
        }
        if state(self.seen, member).is_some_and(|state| matches!(state.vm, VmState::Gone { .. })) {
            return true;
        }
        if pod_ended(self.seen, member).is_some() {
            return true;
        }
        // the site killed what ran in the slot, but it did not reach a node that is cut off: there
        // the holder ends with its beat
        let slot = self.status.slots.iter().find(|slot| slot.id == agent.slot);
        let cleared = slot.and_then(|slot| slot.cleared.as_ref()).map(|at| since(self.by_our_clock(at.0), self.now));
        cleared.is_some_and(|ago| ago >= LEASE_OUTLIVED) && self.silence(member) >= FRESH
    }

    /// Whether nothing of the member is left on its node (safety A6): its agent has said so, or its container has
    /// ended.
    pub(super) fn cleared(&self, member: &MemberStatus) -> bool {
        state(self.seen, member).is_some_and(|state| state.cleared) || pod_ended(self.seen, member).is_some()
    }

    /// Writes down who is confirmed dead, and of whom only silence tells it. Returns whether all are.
    pub(super) fn bury(&mut self) -> bool {
        let found: Vec<_> = self.status.everyone().map(|m| (self.dead(m), self.proven(m))).collect();
        for (member, (dead, proven)) in self.status.everyone_mut().zip(&found) {
            if let Some(agent) = member.agent.as_mut().filter(|_| *dead) {
                member.phase = MemberPhase::Dead;
                agent.unproven = !proven;
            }
        }
        let waiting = found.iter().any(|(dead, _)| !dead);
        if waiting {
            self.wake(Duration::from_secs(1));
        }
        !waiting
    }

    /// Everyone whose agent may still live.
    pub(super) fn living(&self) -> Vec<&MemberStatus> {
        self.status.everyone().filter(|member| !self.dead(member)).collect()
    }

    /// Members whose agent may still run a VM.
    pub(super) fn living_members(&self) -> Vec<&MemberStatus> {
        self.status.members.iter().filter(|member| !self.dead(member)).collect()
    }

    /// Whether it was heard of late, as one that is leaving is until it has nothing left to do.
    pub(super) fn speaks(&self, member: &MemberStatus) -> bool {
        self.silence(member) < FAREWELL
    }

    /// Removes the pods that no living member has. An agent that still speaks is on its way out and
    /// is left to remove its files. Returns whether all pods are gone.
    pub(super) fn clear_pods(&mut self) -> bool {
        let living: Vec<String> =
            self.living().into_iter().filter_map(|m| m.agent.as_ref()).map(|a| a.pod.clone()).collect();
        let mut all_gone = living.is_empty();
        let mut gone = Vec::new();
        for (name, pod) in &self.seen.pods {
            if living.contains(name) {
                continue;
            }
            all_gone = false;
            let speaks = self
                .seen
                .agents
                .get(name)
                .and_then(|agent| agent.heard)
                .is_some_and(|heard| since(heard, self.now) < FAREWELL);
            if !pod.deleting && (pod.ended.is_some() || !speaks) {
                gone.push(name.clone());
            }
        }
        for pod in gone {
            self.repeat(Effect::DeleteAgent { pod }, Duration::from_secs(10));
        }
        if !all_gone {
            self.wake(Duration::from_secs(2));
        }
        all_gone
    }

    /// The present words of all members' agents, if all were heard of late, hold their lease and
    /// belong to the present incarnation.
    pub(super) fn all_states(&self) -> Option<Vec<&AgentState>> {
        self.states_of(self.status.members.iter())
    }

    /// The same of some.
    pub(super) fn states_of<'a>(
        &'a self,
        those: impl Iterator<Item = &'a MemberStatus>,
    ) -> Option<Vec<&'a AgentState>> {
        those
            .map(|member| {
                let state = state(self.seen, member)?;
                let here = state.lease == LeaseState::Held
                    && state.incarnation == self.status.incarnation
                    && self.silence(member) < FRESH;
                here.then_some(state)
            })
            .collect()
    }
}

/// Shows how the members are; for people, written only along with something else.
pub(super) fn show(status: &mut BestEffortJobStatus, seen: &Seen) {
    for member in status.everyone_mut() {
        let Some(agent) = &member.agent else { continue };
        if matches!(member.phase, MemberPhase::None | MemberPhase::Ended | MemberPhase::Dead) {
            continue;
        }
        let said = seen.agents.get(&agent.pod).and_then(|agent| agent.state.as_ref());
        member.restored = said
            .and_then(|state| state.restored)
            .map(|brought| RestoredBytes { fetched: brought.fetched, local: brought.local });
        member.phase = match said.map(|state| &state.vm) {
            None | Some(VmState::None) => MemberPhase::Placing,
            Some(VmState::Fetching { .. }) => MemberPhase::Loading,
            Some(VmState::Loaded) => MemberPhase::Loaded,
            Some(VmState::Running | VmState::Stopped) => MemberPhase::Running,
            Some(VmState::Gone { .. }) => MemberPhase::Dead,
        };
    }
}
