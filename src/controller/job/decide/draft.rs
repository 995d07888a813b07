//! A plan in the making: the status being changed, and what is to be done.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, JobPhase, Reason,
        job_status::{CaptureStatus, MemberPhase, Retry, SlotState},
    },
    backoff::Backoff,
    controller::{
        job::plan::{AgentRef, Effect, Plan, Seen, SnapshotSeen, TokenOrder},
        note::Note,
    },
    driver::site::SlotFacts,
    names::JobUid,
};

/// The end of a slot that is given back is waited for this long before the deaths on it are written down.
const TOGETHER: Duration = Duration::from_secs(15);

/// Something is wrong; nothing: it is not known yet.
pub(super) type Problem = Option<(Reason, String)>;

pub(super) fn wrong<T>(reason: Reason, message: String) -> Result<T, Problem> {
    Err(Some((reason, message)))
}

/// A plan in the making.
pub(super) struct Draft<'a> {
    pub(super) job: &'a BestEffortJob,
    pub(super) seen: &'a Seen,
    pub(super) now: Timestamp,
    pub(super) uid: JobUid,
    pub(super) status: BestEffortJobStatus,
    effects: Vec<Effect>,
    notes: Vec<Note>,
    wake: Option<Duration>,
    why: &'static str,
    /// A capture was given up in this pass: the next one begins in a later one.
    pub(super) voided: bool,
    /// Nothing is to be written down yet.
    pub(super) held_back: bool,
}

impl<'a> Draft<'a> {
    pub(super) fn new(job: &'a BestEffortJob, seen: &'a Seen, now: Timestamp) -> Self {
        Self {
            job,
            seen,
            now,
            uid: crate::controller::job::plan::uid(job),
            status: job.status.clone().unwrap_or_default(),
            effects: Vec::new(),
            notes: Vec::new(),
            wake: None,
            why: "nothing",
            voided: false,
            held_back: false,
        }
    }

    pub(super) fn generation(&self) -> i64 {
        self.job.metadata.generation.unwrap_or_default()
    }

    /// Adds an effect.
    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Adds an effect that is repeated until the facts show that it worked, but not more often than
    /// this, and once in a pass.
    pub(super) fn repeat(&mut self, effect: Effect, every: Duration) {
        let key = sent_key(&effect);
        if self.effects.iter().any(|other| sent_key(other) == key) {
            return;
        }
        match self.seen.sent.get(&key) {
            Some(last) if since(*last, self.now) < every => self.wake(every.saturating_sub(since(*last, self.now))),
            _ => {
                self.effects.push(effect);
                self.wake(every);
            }
        }
    }

    /// Takes orders to leave back that these agents were to be given in this pass.
    pub(super) fn take_back_leave(&mut self, those: &[AgentRef]) {
        self.effects.retain_mut(|effect| match effect {
            Effect::Leave { agents, .. } => {
                agents.retain(|agent| !those.contains(agent));
                !agents.is_empty()
            }
            _ => true,
        });
    }

    /// Adds an event.
    pub(super) fn note(&mut self, reason: Reason, message: impl Into<String>) {
        self.notes.push(Note { warning: false, reason, message: message.into() });
    }

    /// Adds an event that a person should look at.
    pub(super) fn warn(&mut self, reason: Reason, message: impl Into<String>) {
        self.notes.push(Note { warning: true, reason, message: message.into() });
    }

    /// Looks again after this time at the latest.
    pub(super) fn wake(&mut self, after: Duration) {
        let after = after.max(Duration::from_millis(50));
        self.wake = Some(self.wake.map_or(after, |old| old.min(after)));
    }

    /// Looks again at this time at the latest.
    pub(super) fn wake_at(&mut self, at: Timestamp) {
        self.wake(since(self.now, at));
    }

    /// Says which arm decided.
    pub(super) fn because(&mut self, why: &'static str) {
        self.why = why;
    }

    pub(super) fn phase(&mut self, phase: JobPhase) {
        self.status.phase = phase;
    }

    pub(super) fn time(&self) -> Time {
        Time(self.now)
    }

    /// A moment that a leader wrote down, or the present one's beginning if that is later: the clock of
    /// another may have been behind.
    pub(super) fn by_our_clock(&self, moment: Timestamp) -> Timestamp {
        moment.max(self.seen.leader.since)
    }

    /// What the site says of a slot.
    pub(super) fn facts(&self, id: &str) -> Option<&'a SlotFacts> {
        self.seen.slots.known()?.iter().find(|facts| facts.id.0 == id)
    }

    /// The Snapshot object of a capture, once it says so itself.
    pub(super) fn snapshot_of(&self, capture: &CaptureStatus) -> Option<&'a SnapshotSeen> {
        let of_it = |snapshot: &&SnapshotSeen| {
            snapshot.name == capture.snapshot && snapshot.status.generation == Some(capture.generation)
        };
        self.seen.snapshots.iter().find(of_it)
    }

    /// Notes a failure and waits longer with each in a row.
    pub(super) fn back_off(&mut self, reason: Reason, message: impl Into<String>) {
        let message = message.into();
        let count = self.status.retry.as_ref().map_or(0, |retry| retry.count) + 1;
        let wait = Backoff::OUTSIDE.full(count);
        self.warn(reason, message.clone());
        self.status.retry = Some(Retry {
            count,
            not_before: Time(after(self.now, wait)),
            reason,
            message,
            generation: self.generation(),
            stalled: false,
            agents: None,
        });
        self.wake(wait);
    }

    /// Notes a failure that only a person can mend.
    pub(super) fn stall(&mut self, reason: Reason, message: impl Into<String>) {
        let message = message.into();
        self.warn(reason, message.clone());
        self.status.retry = Some(Retry {
            count: self.status.retry.as_ref().map_or(0, |retry| retry.count) + 1,
            not_before: self.time(),
            reason,
            message,
            generation: self.generation(),
            stalled: true,
            agents: (reason == Reason::Incompatible).then(|| self.seen.setup.agents.clone()),
        });
    }

    /// A changed spec ends every wait for it: what had failed is tried anew.
    pub(super) fn heed_new_spec(&mut self) {
        let Some(retry) = self.status.retry.as_ref().filter(|retry| retry.generation != self.generation()) else {
            return;
        };
        if retry.stalled
            && let Some(origin) = &mut self.status.origin
        {
            origin.tries = 0;
            origin.bad.clear();
        }
        self.status.retry = None;
    }

    /// The plan. Changes of no meaning are left out, so that the status is written seldom.
    pub(super) fn finish(mut self) -> Plan {
        if let Some(old) = &self.job.status {
            for member in self.status.everyone_mut() {
                let before = old.everyone().find(|m| m.index == member.index);
                if let Some(before) = before
                    && passing(before.phase)
                    && passing(member.phase)
                {
                    member.phase = before.phase;
                }
            }
            if self.status != *old && self.can_wait(old) {
                // what a death is known by stays until it is written down
                self.effects.retain(|effect| !matches!(effect, Effect::DeleteAgent { .. }));
                self.status = old.clone();
            }
            if self.status != *old {
                super::members::show(&mut self.status, self.seen);
            }
        }
        if self.held_back {
            self.status = self.job.status.clone().unwrap_or_default();
        }
        Plan { status: self.status, effects: self.effects, notes: self.notes, wake: self.wake, why: self.why }
    }
}

impl Draft<'_> {
    /// Whether all that is new will be told by a write that is about to come anyway: a slot is on its
    /// way out, and with it the members of one that is being given back. Nothing depends on it until
    /// then: it is seen again at each pass.
    fn can_wait(&self, old: &BestEffortJobStatus) -> bool {
        let idle = |effect: &Effect| {
            matches!(effect, Effect::Leave { .. } | Effect::ReleaseSlot { .. } | Effect::DeleteAgent { .. })
        };
        if !self.notes.is_empty() || !self.effects.iter().all(idle) {
            return false;
        }
        let mut told = self.status.clone();
        for (slot, before) in told.slots.iter_mut().zip(&old.slots) {
            if (before.state, slot.state) == (SlotState::Running, SlotState::Ending) {
                slot.state = before.state;
            }
        }
        let leaving = old
            .slots
            .iter()
            .filter(|slot| slot.state != SlotState::Ended)
            .any(|slot| slot.release.as_ref().is_some_and(|intent| since(intent.since.0, self.now) < TOGETHER));
        for (member, before) in told.everyone_mut().zip(old.everyone()) {
            if leaving && member.phase == MemberPhase::Dead && before.phase != MemberPhase::Dead {
                *member = before.clone();
            }
        }
        told == *old
    }
}

/// Whether a phase of a member is for people only; the others are decided from.
fn passing(phase: MemberPhase) -> bool {
    match phase {
        MemberPhase::Placing
        | MemberPhase::Loading
        | MemberPhase::Loaded
        | MemberPhase::Running
        | MemberPhase::Silent => true,
        MemberPhase::None | MemberPhase::Ended | MemberPhase::Dead => false,
    }
}

/// What an effect that is repeated is remembered under.
pub(crate) fn sent_key(effect: &Effect) -> String {
    let object = match effect {
        Effect::ReleaseSlot { id } => id.to_string(),
        Effect::DeleteAgent { pod } => pod.clone(),
        Effect::CreateAgent(placement) => placement.pod.clone(),
        Effect::Go { agents } => pods(agents),
        Effect::Leave { agents, code } => format!("{code:?} {}", pods(agents)),
        Effect::Capture(capture) | Effect::AbandonCapture(capture) => capture.nonce.clone(),
        Effect::Deploy(order) => format!("{} {}", order.slot, order.number),
        Effect::ForgetWorkflow { id, .. } => id.to_string(),
        Effect::RemoveNode { node, uid } => format!("{node} {uid}"),
        Effect::OfferToken(TokenOrder { id, .. }) | Effect::WithdrawToken { id } => id.clone(),
        Effect::FenceRepository { incarnation } => incarnation.to_string(),
        Effect::Adopt(order) => format!("{} {}", order.from.job, order.from.generation),
        Effect::ShowStored { pod, value } => format!("{pod:?} {value:?}"),
        Effect::CreateSnapshot { name, .. } | Effect::DeleteSnapshot { name, .. } => name.clone(),
        Effect::WriteSnapshot { name, status, .. } => format!("{name} {:?}", status.phase),
        Effect::SubmitSlots { submission, .. } => submission.to_string(),
        Effect::AddFinalizer | Effect::RemoveFinalizer | Effect::DeleteJob | Effect::RemoveContent => String::new(),
    };
    format!("{} {object}", effect.name())
}

fn pods(agents: &[AgentRef]) -> String {
    agents.iter().map(|agent| agent.pod.as_str()).collect::<Vec<_>>().join(" ")
}

/// The time from one moment to a later one; zero if it is not later.
pub(super) fn since(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

/// A moment this much later.
pub(super) fn after(moment: Timestamp, length: Duration) -> Timestamp {
    moment.saturating_add(SignedDuration::try_from(length).unwrap_or(SignedDuration::MAX)).unwrap_or(moment)
}

/// A moment this much earlier.
pub(super) fn before(moment: Timestamp, length: Duration) -> Timestamp {
    moment.saturating_sub(SignedDuration::try_from(length).unwrap_or(SignedDuration::MAX)).unwrap_or(moment)
}
