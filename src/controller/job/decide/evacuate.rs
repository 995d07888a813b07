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
    draft::{Draft, after, before, since},
    members::state,
    seats::called_slots,
};
use crate::{
    api::{
        JobPhase, Reason,
        job::OnNotice,
        job_status::{CaptureStatus, MemberStatus, ReleaseReason, SlotState, SlotStatus, Suspended},
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

/// Agents have this long to leave by themselves.
pub(super) const LEAVE: Duration = Duration::from_secs(10);
/// Least time kept for leaving before the end of the walltime.
const WALLTIME_LEAD: Duration = Duration::from_secs(20);

impl Draft<'_> {
    /// Begins to leave.
    pub(super) fn enter_evacuation(&mut self, suspend: bool) {
        self.phase(JobPhase::Evacuating);
        let left = self.leaving_deadline().map_or(0, |end| since(self.now, end).as_secs());
        let leaving = self.leaving();
        let slots = |verbs| called_slots(self.in_use().filter(|slot| leaving.contains(&slot.id)), verbs);
        let rest = self.in_use().count() - leaving.len();
        let rest = if rest > 0 && !suspend { format!("; {rest} others are kept") } else { String::new() };
        let (reason, message) = match self.leaving_reason() {
            SnapshotReason::Notice => (
                Reason::Preempted,
                format!("{} wanted by somebody else: {left} s to leave{rest}", slots([" is", " are"])),
            ),
            SnapshotReason::Walltime => (Reason::WalltimeOver, format!("{} nearly over{rest}", slots([" is", " are"]))),
            SnapshotReason::Suspend | SnapshotReason::User | SnapshotReason::Periodic => {
                (Reason::Suspended, "the job is to be suspended".to_owned())
            }
        };
        self.note(reason, message);
        self.evacuate(suspend);
    }

    /// The slots in use that will be taken away soon. A gang's is all there is.
    pub(super) fn leaving(&mut self) -> BTreeSet<String> {
        let slots: Vec<SlotStatus> = self.in_use().cloned().collect();
        slots.iter().filter(|slot| slot.notice.is_some() || self.walltime_near(slot)).map(|s| s.id.clone()).collect()
    }

    /// Whether the slot's time is nearly over by our own calculation (safety B16).
    fn walltime_near(&mut self, slot: &SlotStatus) -> bool {
        let Some(until) = slot.until.as_ref().map(|until| until.0) else { return false };
        let grace = Duration::from(self.job.spec.snapshots.grace);
        let third = Duration::from(self.job.spec.slots.walltime) / 3;
        let start = before(until, grace.max(WALLTIME_LEAD).min(third));
        if self.now >= start {
            return true;
        }
        self.wake_at(start);
        false
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
                let on_it = |member: &&MemberStatus| self.slot_of(member).is_some_and(|its| its.id == slot.id);
                let agents = self.status.everyone().filter(on_it);
                let ago = agents.filter_map(|member| state(self.seen, member)?.notice).max()?;
                Some((slot.id.clone(), before(self.now, ago)))
            })
            .collect();
        for (id, at) in told {
            if let Some(slot) = self.status.slots.iter_mut().find(|slot| slot.id == id) {
                slot.notice = Some(Time(at));
            }
        }
    }

    /// Why slots are being left.
    pub(super) fn leaving_reason(&self) -> SnapshotReason {
        if !self.has_slots() {
            return SnapshotReason::Suspend;
        }
        let announced = |slot: &SlotStatus| self.facts(&slot.id).and_then(|facts| facts.notice).map(|n| n.kind);
        let mut noticed = self.in_use().filter(|slot| slot.notice.is_some()).peekable();
        if noticed.peek().is_some() {
            let walltime = noticed.all(|slot| announced(slot) == Some(NoticeKind::Walltime));
            return if walltime { SnapshotReason::Walltime } else { SnapshotReason::Notice };
        }
        let soon = |until: Timestamp| since(self.now, until) <= Duration::from_secs(60);
        let near = self.in_use().any(|slot| slot.until.as_ref().is_some_and(|until| soon(until.0)));
        if self.job.spec.suspend && !near { SnapshotReason::Suspend } else { SnapshotReason::Walltime }
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
        let decided = self.status.origin.as_ref().is_none_or(|origin| origin.since.is_none());
        if !self.has_slots() || (decided && self.one_by_one()) {
            self.gone_with(suspend);
            return;
        }
        if self.in_use().any(|slot| slot.state != SlotState::Running) {
            self.because("a slot is being taken");
            self.heed_agents_notice();
            self.give_back_safe(suspend);
            self.release(LEAVE);
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
        self.heed_agents_notice();
        self.give_back_safe(suspend);
        self.release(LEAVE);
        if !self.has_slots() {
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
        stopped
            && self.status.snapshots.last == self.status.snapshots.last_stored
            && self.status.snapshots.last.is_some()
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
                self.book_eviction();
            }
            self.intend_some(|slot| leaving.contains(&slot.id), ReleaseReason::Evacuated);
        } else {
            self.intend(ReleaseReason::Evacuated);
        }
        self.leave_by_slot(LeaveCode::Saved);
        self.release(LEAVE);
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

    /// Nothing is in use any more: waits until nothing is held.
    fn gone_with(&mut self, suspend: bool) {
        self.leave_by_slot(LeaveCode::Saved);
        self.bury();
        let clear = self.clear_pods();
        self.release(LEAVE);
        self.because("slots are being given back");
        let decided = self.status.origin.as_ref().is_none_or(|origin| origin.since.is_none());
        if self.one_by_one() && !decided {
            // all bytes are safe; the generation counts once it is complete
            if self.status.snapshots.capture.as_ref().is_some_and(is_last) {
                self.because("waiting for a generation to be complete");
                return;
            }
            self.book_leaving("");
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
