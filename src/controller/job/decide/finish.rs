//! The end: commands have ended, or there is no more trying.

use std::time::Duration;

use super::absorb::LAST;
use super::draft::{Draft, after, since};
use super::members::state;
use crate::{
    api::{
        JobPhase, Reason,
        conditions::{self, ConditionType, Truth},
        job_status::{MemberPhase, ReleaseReason, SlotState},
    },
    controller::job::plan::Effect,
    driver::agent::LeaveCode,
};

impl Draft<'_> {
    /// Whether what the members made is in the repository.
    pub(super) fn outputs_kept(&self) -> bool {
        self.commanded().all(|member| {
            member.phase == MemberPhase::Ended || state(self.seen, member).is_some_and(|state| state.guest.outputs_kept)
        })
    }

    /// All commands have ended with 0.
    pub(super) fn begin_completing(&mut self) {
        self.phase(JobPhase::Completing);
        self.void_capture("the job has ended");
        self.complete();
    }

    /// Keeps the outputs, then gives the slots back.
    pub(super) fn complete(&mut self) {
        self.wake(Duration::from_secs(1));
        let intended =
            self.status.slots.iter().any(|s| s.release.as_ref().is_some_and(|r| r.reason == ReleaseReason::Finished));
        let kept = intended || self.status.members.iter().all(|m| m.phase == MemberPhase::Ended) || self.outputs_kept();
        if !kept {
            let dead = self.newly_dead_of(self.status.members.iter());
            if !dead.is_empty() || self.status.members.iter().any(|m| m.phase == MemberPhase::Dead) {
                // what it made is gone: it is made again from the last generation
                let why = dead.join("; ");
                self.account_loss(super::lose::Cause::Node(why));
                for member in &mut self.status.members {
                    member.exit_code = None;
                }
                self.bury();
                self.status.attempt += 1;
                self.phase(JobPhase::Deploying);
                self.leave(LeaveCode::KeepSlot);
                self.because("a member is lost before its outputs were kept");
                return;
            }
            self.because("outputs are being kept");
            return;
        }
        if !intended && self.has_slots() {
            self.account_result();
        }
        let nothing = self.wind_down(ReleaseReason::Finished, LeaveCode::Done);
        let old = self.status.slots.iter().all(|slot| {
            slot.release.as_ref().is_some_and(|r| since(r.since.0, self.now) >= LAST) || slot.state == SlotState::Ended
        });
        if nothing || (old && self.living().is_empty()) {
            self.account_result();
            self.succeed();
        } else {
            self.because("the slots are being given back");
        }
    }

    /// Everything that ran up to the end is kept.
    fn account_result(&mut self) {
        let Some(came_to) = self.close() else { return };
        self.status.work.useful = self.status.work.useful.max(came_to);
    }

    fn succeed(&mut self) {
        self.phase(JobPhase::Succeeded);
        self.status.ended = Some(self.time());
        self.note(Reason::Succeeded, format!("succeeded in attempt {}", self.status.attempt));
        self.because("succeeded");
    }

    /// The guest's command failed: from the image again, or the end.
    pub(super) fn command_failed(&mut self, member: u32, code: i32) {
        self.status.failures += 1;
        self.status.kills.failed += 1;
        let limit = self.job.spec.backoff_limit;
        let message = format!("the command ended with {code} on member {member}");
        self.void_capture("the command failed");
        self.account_work();
        if self.status.failures > limit {
            self.fail(Reason::BackoffLimitExceeded, format!("{message}; backoffLimit {limit} is used up"));
            return;
        }
        let from = if self.status.adopted.is_some() { "generation 0" } else { "the image" };
        self.back_off(Reason::CommandFailed, format!("{message}; started again from {from}"));
        let highest = self.status.snapshots.next_generation.saturating_sub(1);
        if let Some(origin) = &mut self.status.origin {
            // a run that failed is not gone on with
            origin.floor = highest;
            origin.generation = None;
            origin.tries = 0;
        }
        self.status.work.lost += self.status.work.useful;
        self.status.work.useful = 0;
        for member in &mut self.status.members {
            member.exit_code = None;
        }
        self.status.attempt += 1;
        self.phase(JobPhase::Deploying);
        self.leave(LeaveCode::KeepSlot);
        self.because("the command failed");
    }

    /// Its time is over.
    pub(super) fn expire(&mut self) {
        self.void_capture("the job's time is over");
        self.account_work();
        self.fail(Reason::DeadlineExceeded, "it did not succeed within activeDeadline".to_owned());
    }

    fn fail(&mut self, reason: Reason, message: String) {
        self.phase(JobPhase::Failed);
        self.status.ended = Some(self.time());
        self.status.retry = None;
        self.warn(reason, message.clone());
        let (generation, now) = (self.generation(), self.now);
        let list = &mut self.status.conditions;
        conditions::set(list, ConditionType::Failed, Truth::True, reason, message, generation, now);
        self.wind_down(ReleaseReason::Finished, LeaveCode::Done);
        self.because("failed");
    }

    /// Succeeded or failed: holds nothing, and goes when its time has come.
    pub(super) fn finished(&mut self) {
        let nothing = self.wind_down(ReleaseReason::Finished, LeaveCode::Done);
        self.because("ended");
        let Some(length) = self.job.spec.ttl_after_finished else { return };
        let Some(ended) = self.status.ended.as_ref().map(|ended| ended.0) else { return };
        let end = after(ended, length.into());
        if self.now < end {
            self.wake_at(end);
        } else if nothing {
            self.effect(Effect::DeleteJob);
            self.because("its time after the end is over");
        }
    }
}
