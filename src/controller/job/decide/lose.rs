//! The end of a slot: why, what it cost, and what comes next.
//!
//! The intent in the status is read first: what we gave back ourselves was not taken by a person
//! (safety B4).

use std::time::Duration;

use super::absorb::Over;
use super::draft::Draft;
use crate::{
    api::{
        JobPhase, Reason,
        job_status::{ReleaseReason, Retry, Suspended},
    },
    driver::{
        agent::LeaveCode,
        site::{End, NoticeKind},
    },
};

/// Why an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Somebody else got the nodes.
    Preempted,
    /// The slot's time was over.
    Walltime,
    /// A node, an agent or the site failed.
    Node(String),
    /// A person deleted the slot.
    Cancelled(String),
    /// The request was wrong.
    Rejected(String),
}

impl Cause {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Preempted => Reason::Preempted,
            Self::Walltime => Reason::WalltimeOver,
            Self::Node(_) => Reason::NodeLost,
            Self::Cancelled(_) => Reason::CancelledExternally,
            Self::Rejected(_) => Reason::SubmissionRefused,
        }
    }

    /// What has become of a slot.
    fn what(&self) -> String {
        match self {
            Self::Preempted => "was taken for somebody else".into(),
            Self::Walltime => "is over: its time has ended".into(),
            Self::Node(why) => format!("is lost: {why}"),
            Self::Cancelled(user) => format!("was deleted by {user}"),
            Self::Rejected(why) => format!("was refused: {why}"),
        }
    }
}

/// Why a slot ended that was not given back for another reason.
fn cause(over: &Over) -> Cause {
    match &over.end {
        End::Preempted | End::SavedAtPreemption => Cause::Preempted,
        End::Walltime | End::SavedAtWalltime => Cause::Walltime,
        End::Infrastructure(text) => Cause::Node(text.clone()),
        End::HoldFailed(why) => match over.notice {
            Some(NoticeKind::Preemption) => Cause::Preempted,
            Some(NoticeKind::Walltime) => Cause::Walltime,
            Some(NoticeKind::Person) | None => Cause::Node(why.clone()),
        },
        End::Done | End::Released => Cause::Node("the hold was told to end".into()),
        End::Deleted(user) => Cause::Cancelled(user.clone()),
        End::Rejected(text) => Cause::Rejected(text.clone()),
    }
}

impl Draft<'_> {
    /// Takes the ends of slots in.
    pub(super) fn slots_over(&mut self, over: Vec<Over>) {
        for over in over {
            match over.slot.release.as_ref().map(|intent| intent.reason) {
                // those that are given back one by one count with the first
                Some(ReleaseReason::Evacuated) if self.one_by_one() => {}
                Some(ReleaseReason::Evacuated) => self.count_evacuation(&over),
                Some(
                    ReleaseReason::Finished
                    | ReleaseReason::Suspended
                    | ReleaseReason::Deleted
                    | ReleaseReason::Incomplete
                    | ReleaseReason::Duplicate
                    | ReleaseReason::BadNode,
                ) => {}
                None => {
                    self.slot_lost(&over);
                    // what is true of one is true of all that were asked for with it
                    if matches!(over.end, End::Deleted(_) | End::Rejected(_)) {
                        return;
                    }
                }
            }
        }
    }

    /// A slot that was left at a notice: what had been announced counts.
    fn count_evacuation(&mut self, over: &Over) {
        match (over.notice, cause(over)) {
            (Some(NoticeKind::Walltime), _) | (_, Cause::Walltime) => self.status.kills.walltime += 1,
            (Some(NoticeKind::Preemption | NoticeKind::Person) | None, _) => {
                if over.slot.notice.is_some() {
                    self.status.kills.preempted += 1;
                } else {
                    self.status.kills.walltime += 1;
                }
            }
        }
    }

    /// A slot that ended without our doing.
    fn slot_lost(&mut self, over: &Over) {
        match self.status.phase {
            JobPhase::Succeeded | JobPhase::Failed | JobPhase::Suspended | JobPhase::Terminating => return,
            // its commands have ended everywhere, and what they made is kept: nothing is lost
            JobPhase::Running | JobPhase::Snapshotting | JobPhase::Completing
                if matches!(self.outcome(), super::run::Outcome::Done) && self.outputs_kept() =>
            {
                return;
            }
            JobPhase::Pending
            | JobPhase::ImagePreparing
            | JobPhase::Queued
            | JobPhase::Deploying
            | JobPhase::Starting
            | JobPhase::Restoring
            | JobPhase::Running
            | JobPhase::Snapshotting
            | JobPhase::Evacuating
            | JobPhase::Completing => {}
        }
        let cause = cause(over);
        let id = over.slot.id.clone();
        let empty =
            matches!(self.status.phase, JobPhase::Queued | JobPhase::Deploying) && self.status.under_way().is_none();
        if empty && self.lost_while_waiting(&id, &cause) {
            return;
        }
        let by_itself = matches!(cause, Cause::Preempted | Cause::Walltime | Cause::Node(_));
        if by_itself && self.can_do_without(&id) {
            let message =
                format!("slot {id} {}: it only had the master, without which the members run on", cause.what());
            self.note(cause.reason(), message);
            self.bury();
            return;
        }
        if by_itself && self.is_spent(&id) {
            self.book_eviction(&cause);
            self.note(Reason::SnapshotStored, format!("slot {id} has ended: all bytes from there are safe"));
            self.bury();
            return;
        }
        let ran = matches!(
            self.status.phase,
            JobPhase::Running | JobPhase::Snapshotting | JobPhase::Evacuating | JobPhase::Completing
        );
        match &cause {
            Cause::Rejected(text) => self.back_off(Reason::SubmissionRefused, text.clone()),
            Cause::Node(_) if empty => {
                self.status.kills.node += 1;
                self.rest(format!("slot {id} {}", cause.what()));
            }
            Cause::Preempted | Cause::Walltime | Cause::Node(_) | Cause::Cancelled(_) => {
                self.account_loss(cause.clone());
            }
        }
        let unsaved = ran && cause == Cause::Preempted && over.end != End::SavedAtPreemption;
        if unsaved && !Duration::from(self.job.spec.snapshots.grace).is_zero() {
            self.status.kills.abrupt += 1;
        }
        match cause {
            // the last incarnation had failed by itself before
            _ if empty => {}
            Cause::Preempted | Cause::Walltime => self.forgive_try(ran),
            Cause::Node(_) => self.forgive_try(false),
            Cause::Cancelled(_) | Cause::Rejected(_) => {}
        }
        // what is true of one is true of all that were asked for with it
        match &cause {
            Cause::Rejected(_) => self.intend(ReleaseReason::Incomplete),
            Cause::Cancelled(_) => self.intend(ReleaseReason::Suspended),
            Cause::Preempted | Cause::Walltime | Cause::Node(_) => {}
        }
        self.leave_by_slot(LeaveCode::Saved);
        self.bury();
        if let Cause::Cancelled(user) = &cause {
            let message = format!(
                "slot {id} was deleted by {user}: the job is suspended; set suspend to true and to false again to go on"
            );
            self.warn(cause.reason(), message);
            self.status.suspended = Some(Suspended { since: self.time(), by_site: true });
            self.phase(JobPhase::Evacuating);
            return;
        }
        self.status.attempt += 1;
        self.phase(JobPhase::Queued);
    }

    /// Takes note of one of several slots that is lost while others are waited for: no attempt ends with it. Whether
    /// that is so.
    fn lost_while_waiting(&mut self, id: &str, cause: &Cause) -> bool {
        if !self.one_by_one() {
            return false;
        }
        let message = format!("slot {id} {}; others were waited for", cause.what());
        match cause {
            Cause::Preempted | Cause::Walltime => self.warn(cause.reason(), message),
            Cause::Node(_) => self.rest(message),
            Cause::Cancelled(_) | Cause::Rejected(_) => return false,
        }
        true
    }

    /// A slot has failed with nobody on it, and the next one may as soon: it is asked for later each time. Those that
    /// fail together count once.
    fn rest(&mut self, message: String) {
        let rests =
            |retry: &Retry| retry.stalled || (retry.reason == Reason::NodeLost && self.now < retry.not_before.0);
        if self.status.retry.as_ref().is_some_and(rests) {
            self.warn(Reason::NodeLost, message);
        } else {
            self.back_off(Reason::NodeLost, message);
        }
    }

    /// Whether the guests, which run or are being captured, need nothing of a slot: a master is no member.
    fn can_do_without(&self, slot: &str) -> bool {
        let ran = matches!(
            self.status.phase,
            JobPhase::Running | JobPhase::Snapshotting | JobPhase::Evacuating | JobPhase::Completing
        );
        ran && self.status.under_way().is_some() && !self.carries_member(slot)
    }

    /// The incarnation ends by what says nothing against the generation it began from (safety C3): its
    /// slot is taken away, left, or too slow.
    pub(super) fn forgive_try(&mut self, ran: bool) {
        if let Some(origin) = &mut self.status.origin {
            origin.tries = if ran { 0 } else { origin.tries.saturating_sub(1) };
        }
    }

    /// The same for an incarnation that has not run, once; what it took is booked.
    pub(super) fn ends_before_running(&mut self) {
        if self.status.under_way().is_some() {
            self.forgive_try(false);
            self.account_work();
        }
    }

    /// Counts the end of an attempt, and what was lost with it.
    pub(super) fn account_loss(&mut self, cause: Cause) {
        let kills = &mut self.status.kills;
        let new = u32::from(self.status.origin.as_ref().is_none_or(|origin| !origin.evicted));
        let reason = cause.reason();
        let what = match cause {
            Cause::Preempted => {
                kills.preempted += new;
                "the slots were taken for somebody else".to_owned()
            }
            Cause::Walltime => {
                kills.walltime += new;
                "the slots' time was over".to_owned()
            }
            Cause::Node(text) => {
                kills.node += 1;
                text
            }
            Cause::Cancelled(user) => {
                kills.cancelled += 1;
                format!("the slots were deleted by {user}")
            }
            Cause::Rejected(text) => text,
        };
        let (lost, kept) = self.account_work();
        let stored = match self.status.snapshots.last_stored {
            Some(generation) => format!("it goes on from generation {generation}"),
            None => "it starts again from the image".to_owned(),
        };
        self.warn(reason, format!("{what}; {stored}; member-seconds lost: {lost}, kept: {kept}"));
    }

    /// Books the work of the incarnation that ends here, once. Returns what is lost and what is kept.
    pub(super) fn account_work(&mut self) -> (u64, u64) {
        let came_to = self.close();
        let work = &mut self.status.work;
        let Some(came_to) = came_to else { return (0, work.useful) };
        let lost = came_to.saturating_sub(work.useful);
        work.lost += lost;
        work.saved = work.saved.max(work.useful);
        (lost, work.useful)
    }

    /// Ends the incarnation that is under way, once. Returns the work that it had come to.
    pub(super) fn close(&mut self) -> Option<u64> {
        let (ran, elapsed) = (self.ran(), self.elapsed());
        let origin = self.status.origin.as_mut()?;
        origin.since.take()?;
        self.status.work.overhead += elapsed.saturating_sub(ran);
        Some(origin.work + ran)
    }
}
