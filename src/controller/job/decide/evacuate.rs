//! Evacuating: one last capture that does not resume, then away, before the slot is taken.
//!
//! The grace counts from the first notice for good (safety B5). If the time is too short, the job
//! leaves with the last complete generation and says so.

use std::time::Duration;

use jiff::Timestamp;

use super::draft::{Draft, after, before, since};
use crate::{
    api::{
        JobPhase, Reason,
        job::OnNotice,
        job_status::{ReleaseReason, SlotState, SlotStatus, Suspended},
        snapshot::SnapshotReason,
    },
    controller::job::plan::BarrierState,
    driver::{
        agent::{LeaveCode, VmState},
        site::NoticeKind,
    },
};

/// Kept free before the slot is taken, for ending the VMs.
pub(super) const RESERVE: Duration = Duration::from_secs(3);
/// With less time than this left no capture is begun.
const WORTH_A_CAPTURE: Duration = Duration::from_secs(5);
/// Least time between the beginnings of two captures, if the first has failed.
const BETWEEN_CAPTURES: Duration = Duration::from_secs(1);

impl Draft<'_> {
    /// Begins to leave.
    pub(super) fn enter_evacuation(&mut self, slot: &SlotStatus, suspend: bool) {
        self.phase(JobPhase::Evacuating);
        let (reason, message) = match self.leaving_reason() {
            SnapshotReason::Notice => {
                let left = self.leaving_deadline().map_or(0, |end| since(self.now, end).as_secs());
                (Reason::Preempted, format!("slot {} is wanted by somebody else: {left} s to leave", slot.id))
            }
            SnapshotReason::Walltime => (Reason::WalltimeOver, format!("the time of slot {} is nearly over", slot.id)),
            SnapshotReason::Suspend | SnapshotReason::User | SnapshotReason::Periodic => {
                (Reason::Suspended, "the job is to be suspended".to_owned())
            }
        };
        self.note(reason, message);
        self.evacuate(suspend);
    }

    /// Why the slot is being left.
    pub(super) fn leaving_reason(&self) -> SnapshotReason {
        let Some(slot) = self.slot() else { return SnapshotReason::Suspend };
        let announced = self.facts(&slot.id).and_then(|facts| facts.notice).map(|notice| notice.kind);
        let near = slot.until.as_ref().is_some_and(|until| since(self.now, until.0) <= Duration::from_secs(60));
        if slot.notice.is_some() {
            return match announced {
                Some(NoticeKind::Walltime) => SnapshotReason::Walltime,
                Some(NoticeKind::Preemption | NoticeKind::Person) | None => SnapshotReason::Notice,
            };
        }
        if self.job.spec.suspend && !near { SnapshotReason::Suspend } else { SnapshotReason::Walltime }
    }

    /// When the slot will be taken; none if nobody takes it.
    pub(super) fn leaving_deadline(&self) -> Option<Timestamp> {
        let slot = self.slot()?;
        let grace = Duration::from(self.job.spec.snapshots.grace);
        let walltime =
            self.facts(&slot.id).and_then(|facts| facts.notice).is_some_and(|n| n.kind == NoticeKind::Walltime);
        let until = slot.until.as_ref().map(|until| until.0);
        let notice = slot.notice.as_ref().filter(|_| !walltime).map(|notice| after(notice.0, grace));
        match (notice, until) {
            (Some(notice), Some(until)) => Some(notice.min(until)),
            (one, other) => one.or(other),
        }
    }

    /// One look at a job that is leaving.
    pub(super) fn evacuate(&mut self, suspend: bool) {
        self.wake(Duration::from_secs(1));
        let Some(slot) = self.slot().cloned() else {
            self.gone_with(suspend);
            return;
        };
        if slot.state != SlotState::Running {
            self.because("the slot is being taken");
            return;
        }
        if matches!(self.outcome(), super::run::Outcome::Done) && self.outputs_kept() {
            self.begin_completing();
            return;
        }
        let ill = self.newly_dead();
        if !ill.is_empty() {
            // the last capture can not be made any more; one that is being stored still may be
            self.warn(Reason::NodeLost, ill.join("; "));
            self.bury();
        }
        let all_alive = self.living_members().len() == self.status.members.len();
        let end = self.leaving_deadline();
        let left = end.map_or(Duration::MAX, |end| since(self.now, before(end, RESERVE)));
        if let Some(end) = end {
            self.wake_at(before(end, RESERVE));
        }
        if left.is_zero() {
            self.leave_slot(suspend, "the time is too short to store more");
            return;
        }
        match self.status.snapshots.capture.clone() {
            Some(capture) if !capture.captured => {
                self.because("waiting for a capture");
                if !all_alive {
                    self.void_capture("a member is lost");
                }
            }
            Some(_) => self.because("waiting for a generation to be stored"),
            None if self.final_stored() => self.leave_slot(suspend, ""),
            None if !all_alive => self.leave_slot(suspend, "a member is lost"),
            None if !suspend && self.job.spec.snapshots.on_notice == OnNotice::Leave => {
                self.leave_slot(suspend, "snapshots.onNotice is Leave");
            }
            None if !suspend && self.nothing_to_save() => self.leave_slot(suspend, "nothing has been computed yet"),
            None if left < WORTH_A_CAPTURE => self.leave_slot(suspend, "the time is too short for a capture"),
            None if self.has_just_failed() => {
                self.because("a capture has just failed");
                self.wake(BETWEEN_CAPTURES);
            }
            None => {
                let still =
                    self.all_states().is_some_and(|states| states.iter().all(|state| state.vm == VmState::Running));
                if still && !self.voided {
                    let reason = self.leaving_reason();
                    self.capture(reason, false, None);
                } else {
                    self.because("members are not all running");
                    if !self.voided {
                        self.let_run_on();
                    }
                }
            }
        }
    }

    /// Whether the last capture was begun a moment ago and is void already, as when an agent is cut off and
    /// that is not known yet: the next one would fail as soon, and each takes writes and a number.
    fn has_just_failed(&self) -> bool {
        self.seen.barrier.as_ref().is_some_and(|barrier| {
            matches!(barrier.state, BarrierState::Failed(_)) && since(barrier.since, self.now) < BETWEEN_CAPTURES
        })
    }

    /// Whether the newest complete generation is a final one: nothing ran on after it.
    fn final_stored(&self) -> bool {
        let stopped =
            self.status.members.iter().any(|member| {
                super::members::state(self.seen, member).is_some_and(|state| state.vm == VmState::Stopped)
            });
        stopped
            && self.status.snapshots.last == self.status.snapshots.last_stored
            && self.status.snapshots.last.is_some()
    }

    /// Whether there is nothing that a capture would keep.
    fn nothing_to_save(&self) -> bool {
        self.ran() == 0
    }

    /// Gives the slot back, with everything stored or with what there is.
    fn leave_slot(&mut self, suspend: bool, short: &str) {
        let (lost, kept) = self.account_work();
        self.forgive_try(true);
        let generation = self.status.snapshots.last_stored;
        let state = match generation {
            Some(generation) => format!("generation {generation} is complete"),
            None => "no generation is complete".to_owned(),
        };
        if short.is_empty() {
            self.note(Reason::SnapshotStored, format!("leaving: {state}; member-seconds kept: {kept}"));
        } else {
            let message = format!("leaving: {short}; {state}; member-seconds lost: {lost}, kept: {kept}");
            self.warn(Reason::Preempted, message);
        }
        self.intend(if suspend { ReleaseReason::Suspended } else { ReleaseReason::Evacuated });
        self.leave(LeaveCode::Saved);
        self.release(Duration::from_secs(10));
        self.because("the slot is left");
    }

    /// Nothing is in use any more: waits until nothing is held.
    fn gone_with(&mut self, suspend: bool) {
        self.leave(LeaveCode::Saved);
        self.bury();
        let clear = self.clear_pods();
        self.release(Duration::from_secs(10));
        self.because("slots are being given back");
        if suspend {
            if self.status.slots.is_empty() && clear && self.resolve_doubt() {
                let since = self.time();
                self.status.suspended.get_or_insert(Suspended { since, by_site: false });
                self.phase(JobPhase::Suspended);
                self.note(Reason::Suspended, "suspended: nothing is held");
            }
            return;
        }
        if self.status.slots.iter().all(|slot| slot.state == SlotState::Ended) {
            self.status.attempt += 1;
            self.phase(JobPhase::Queued);
            self.queued();
        }
    }
}
