//! Evacuating: one last capture that does not resume, then away, before the slots are taken.
//!
//! The grace counts from the first notice for good (safety B5). If the time is too short, the job
//! leaves with the last complete generation and says so. Where each member has a slot of its own, one is given
//! back as soon as the repository lists its member's bytes, and those that nobody wants are kept: their members
//! stand still until all is stored, and make room then for the next incarnation.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    Goal,
    draft::{Draft, after, before, since},
    lose::Cause,
    members::state,
    seats::called_slots,
};
use crate::{
    api::{
        JobPhase, Reason,
        job::OnNotice,
        job_status::{CaptureStatus, ReleaseReason, SlotState, SlotStatus, Suspended},
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

/// Least time kept for leaving before the end of the walltime.
const WALLTIME_LEAD: Duration = Duration::from_secs(20);

impl Draft<'_> {
    /// Begins to leave.
    pub(super) fn enter_evacuation(&mut self, suspend: bool) {
        self.phase(JobPhase::Evacuating);
        let left = self.leaving_deadline().map_or(0, |end| since(self.now, end).as_secs());
        let leaving = self.leaving();
        let slots = called_slots(self.in_use().filter(|slot| leaving.contains(&slot.id)), [" is", " are"]);
        let rest = self.in_use().count() - leaving.len();
        let rest = if rest > 0 && !suspend { format!("; {rest} others are kept") } else { String::new() };
        let (reason, message) = match (self.leaving_reason(), slots) {
            (SnapshotReason::Notice, Some(slots)) => {
                (Reason::Preempted, format!("{slots} wanted by somebody else: {left} s to leave{rest}"))
            }
            (SnapshotReason::Walltime, Some(slots)) => (Reason::WalltimeOver, format!("{slots} nearly over{rest}")),
            (SnapshotReason::Suspend | SnapshotReason::User | SnapshotReason::Periodic, _) | (_, None) => {
                (Reason::Suspended, "the job is to be suspended".to_owned())
            }
        };
        self.note(reason, message);
        self.evacuate(suspend);
    }

    /// The slots in use that will be taken away soon. A gang's is all there is.
    pub(super) fn leaving(&mut self) -> BTreeSet<String> {
        let next = self.in_use().filter_map(|slot| self.time_to_leave(slot)).filter(|at| self.now < *at).min();
        if let Some(next) = next {
            self.wake_at(next);
        }
        self.in_use().filter(|slot| self.is_leaving(slot)).map(|slot| slot.id.clone()).collect()
    }

    fn is_leaving(&self, slot: &SlotStatus) -> bool {
        slot.notice.is_some() || self.time_to_leave(slot).is_some_and(|at| self.now >= at)
    }

    /// From when on the slot's time is nearly over by our own calculation (safety B16).
    fn time_to_leave(&self, slot: &SlotStatus) -> Option<Timestamp> {
        let grace = Duration::from(self.job.spec.snapshots.grace);
        let third = Duration::from(self.job.spec.slots.walltime) / 3;
        Some(before(slot.until.as_ref()?.0, grace.max(WALLTIME_LEAD).min(third)))
    }

    /// Whether a slot that is being left is wanted by somebody else; its time is nearly over otherwise.
    fn is_wanted(&self, slot: &SlotStatus) -> bool {
        let announced = self.facts(&slot.id).and_then(|facts| facts.notice).map(|notice| notice.kind);
        slot.notice.is_some() && announced != Some(NoticeKind::Walltime)
    }

    /// Why those of these slots are taken that are being left: for somebody else, if any is.
    pub(super) fn leaving_cause(&self, those: &BTreeSet<String>) -> Cause {
        let wanted = self.in_use().any(|slot| those.contains(&slot.id) && self.is_wanted(slot));
        if wanted { Cause::Preempted } else { Cause::Walltime }
    }

    /// Tells which slots are being left, and why each is.
    pub(super) fn note_leaving(&mut self, those: &BTreeSet<String>, rest: &str) {
        let left = self.in_use().filter(|slot| those.contains(&slot.id));
        let (wanted, over): (Vec<&SlotStatus>, Vec<&SlotStatus>) = left.partition(|slot| self.is_wanted(slot));
        let wanted = (Reason::Preempted, called_slots(wanted, [" is wanted back", " are wanted back"]));
        let over = (Reason::WalltimeOver, called_slots(over, [" is nearly over", " are nearly over"]));
        for (reason, slots) in [wanted, over] {
            if let Some(slots) = slots {
                self.note(reason, format!("{slots}{rest}"));
            }
        }
    }

    /// Takes note of slots that the hold told an agent are wanted back. A person's request for a checkpoint, which
    /// looks the same to the hold, is nothing to leave for.
    pub(super) fn heed_agents_notice(&mut self) {
        let told: Vec<(String, Timestamp)> = self
            .in_use()
            .filter(|slot| slot.notice.is_none())
            .filter_map(|slot| {
                let announced = self.facts(&slot.id).and_then(|facts| facts.notice);
                if announced.is_some_and(|notice| notice.kind == NoticeKind::Person) {
                    return None;
                }
                let ago = self.on_slot(&slot.id).filter_map(|member| state(self.seen, member)?.notice).max()?;
                Some((slot.id.clone(), before(self.now, ago)))
            })
            .collect();
        for (id, at) in told {
            if let Some(slot) = self.status.slots.iter_mut().find(|slot| slot.id == id) {
                slot.notice = Some(Time(at));
            }
        }
    }

    /// Why slots are being left: if nobody takes any, the job is to be suspended.
    pub(super) fn leaving_reason(&self) -> SnapshotReason {
        let leaving: BTreeSet<String> =
            self.in_use().filter(|slot| self.is_leaving(slot)).map(|slot| slot.id.clone()).collect();
        if leaving.is_empty() && super::goal(self) == Goal::Suspend {
            SnapshotReason::Suspend
        } else if self.leaving_cause(&leaving) == Cause::Preempted {
            SnapshotReason::Notice
        } else {
            SnapshotReason::Walltime
        }
    }

    /// When the first slot will be taken; none if nobody takes any.
    pub(super) fn leaving_deadline(&self) -> Option<Timestamp> {
        let grace = Duration::from(self.job.spec.snapshots.grace);
        let taken = |slot: &SlotStatus| {
            let announced = self.facts(&slot.id).and_then(|facts| facts.notice);
            let walltime = announced.is_some_and(|notice| notice.kind == NoticeKind::Walltime);
            let notice = slot.notice.as_ref().filter(|_| !walltime).map(|notice| after(notice.0, grace));
            notice.into_iter().chain(slot.until.as_ref().map(|until| until.0)).min()
        };
        self.in_use().filter_map(taken).min()
    }

    /// One look at a job that is leaving.
    pub(super) fn evacuate(&mut self, suspend: bool) {
        self.wake(Duration::from_secs(1));
        // its work is booked with the decision to leave
        let decided = self.status.under_way().is_none();
        self.heed_agents_notice();
        self.give_back_masters();
        if !self.holds_members() || (decided && self.one_by_one()) {
            self.gone_with(suspend);
            return;
        }
        if self.in_use().any(|slot| slot.state != SlotState::Running && self.carries_member(&slot.id)) {
            self.because("a slot is being taken");
            self.give_back_safe(suspend);
            self.release();
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
        self.give_back_safe(suspend);
        self.release();
        if !self.holds_members() {
            self.gone_with(suspend);
            return;
        }
        let all_alive = self.living_members().len() == self.status.members.len();
        let end = self.leaving_deadline();
        let left = end.map_or(Duration::MAX, |end| since(self.now, before(end, RESERVE)));
        if let Some(end) = end {
            self.wake_at(before(end, RESERVE));
        }
        if left.is_zero() {
            self.leave_slots(suspend, "the time is too short to store more");
            return;
        }
        match self.status.snapshots.capture.clone() {
            Some(capture) if !capture.captured => {
                self.because("waiting for a capture");
                if !all_alive {
                    self.void_capture("a member is lost");
                }
            }
            Some(capture) if self.stood_too_long(&capture) => {
                self.leave_slots(suspend, "what stays could not be stored within slots.acquireTimeout");
            }
            Some(_) => self.because("waiting for a generation to be stored"),
            None if self.final_stored() => self.leave_slots(suspend, ""),
            None if !all_alive => self.leave_slots(suspend, "a member is lost"),
            None if !suspend && self.job.spec.snapshots.on_notice == OnNotice::Leave => {
                self.leave_slots(suspend, "snapshots.onNotice is Leave");
            }
            None if !suspend && self.nothing_to_save() => self.leave_slots(suspend, "nothing has been computed yet"),
            None if left < WORTH_A_CAPTURE => self.leave_slots(suspend, "the time is too short for a capture"),
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

    /// Whether members that stay have stood still for longer than slots may wait for others, after some have left.
    fn stood_too_long(&self, capture: &CaptureStatus) -> bool {
        let evicted = self.status.origin.as_ref().is_some_and(|origin| origin.evicted);
        let stood = capture.taken_at.as_ref().map_or(Duration::ZERO, |at| since(at.0, self.now));
        evicted && is_last(capture) && stood >= self.acquire_timeout()
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
        stopped && self.last_is_stored()
    }

    /// Whether what was captured last is complete.
    fn last_is_stored(&self) -> bool {
        let snapshots = &self.status.snapshots;
        snapshots.last.is_some() && snapshots.last == snapshots.last_stored
    }

    /// Whether there is nothing that a capture would keep.
    fn nothing_to_save(&self) -> bool {
        self.ran() == 0
    }

    /// Gives the slots back that are wanted, with everything stored or with what there is.
    fn leave_slots(&mut self, suspend: bool, short: &str) {
        self.book_leaving(short);
        if suspend {
            self.intend(ReleaseReason::Suspended);
        } else if self.one_by_one() {
            let leaving = self.leaving();
            if !leaving.is_empty() {
                self.book_eviction(&self.leaving_cause(&leaving));
            }
            self.intend_some(|slot| leaving.contains(&slot.id), ReleaseReason::Evacuated);
        } else {
            self.intend(ReleaseReason::Evacuated);
        }
        self.leave_by_slot(LeaveCode::Saved);
        self.release();
        self.because("the slots are left");
    }

    /// Books what is kept and what is lost, and tells of it.
    fn book_leaving(&mut self, short: &str) {
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
    }

    /// Nothing that a member was on is in use any more: waits until nothing is held. A master's slot that nobody wants
    /// is kept.
    fn gone_with(&mut self, suspend: bool) {
        self.leave_by_slot(LeaveCode::Saved);
        self.bury();
        let clear = self.clear_pods();
        self.release();
        self.because("slots are being given back");
        let decided = self.status.under_way().is_none();
        if self.one_by_one() && !decided {
            // all bytes are safe; the generation counts once it is complete
            if self.status.snapshots.capture.as_ref().is_some_and(is_last) {
                self.because("waiting for a generation to be complete");
                return;
            }
            let stored = self.last_is_stored();
            self.book_leaving(if stored { "" } else { "the last capture could not be stored" });
        }
        if suspend {
            self.intend(ReleaseReason::Suspended);
            if self.status.slots.is_empty() && clear && self.resolve_doubt() {
                let since = self.time();
                self.status.suspended.get_or_insert(Suspended { since, by_site: false });
                self.phase(JobPhase::Suspended);
                self.note(Reason::Suspended, "suspended: nothing is held");
            }
            return;
        }
        if self.one_by_one() && self.are_leaving() {
            self.because("members are about to leave");
            return;
        }
        // others are asked for while single ones are on their way out
        if self.one_by_one() || self.status.slots.iter().all(|slot| slot.state == SlotState::Ended) {
            self.status.attempt += 1;
            self.phase(JobPhase::Queued);
            self.queued();
        }
    }
}

/// Whether nothing runs on after it.
pub(super) fn is_last(capture: &CaptureStatus) -> bool {
    capture.captured && !capture.resume
}
