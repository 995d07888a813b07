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
        job_status::{ReleaseReason, Suspended},
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

/// Why a slot ended that was not given back for another reason.
fn cause(over: &Over) -> Cause {
    match &over.end {
        End::Preempted | End::SavedAtPreemption => Cause::Preempted,
        End::Walltime | End::SavedAtWalltime => Cause::Walltime,
        End::Infrastructure(text) => Cause::Node(text.clone()),
        End::HoldFailed(code) => match over.notice {
            Some(NoticeKind::Preemption) => Cause::Preempted,
            Some(NoticeKind::Walltime) => Cause::Walltime,
            Some(NoticeKind::Person) | None => Cause::Node(
                code.map_or("the hold was killed".into(), |code| format!("the hold ended with code {code}")),
            ),
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
        if self.lost_while_waiting(&id, &cause) {
            return;
        }
        if self.is_spent(&id) && matches!(cause, Cause::Preempted | Cause::Walltime | Cause::Node(_)) {
            self.book_eviction();
            self.note(Reason::SnapshotStored, format!("slot {id} has ended: all bytes from there are safe"));
            self.bury();
            return;
        }
        let ran = matches!(
            self.status.phase,
            JobPhase::Running | JobPhase::Snapshotting | JobPhase::Evacuating | JobPhase::Completing
        );
        if let Cause::Rejected(text) = &cause {
            self.back_off(Reason::SubmissionRefused, text.clone());
        } else {
            self.account_loss(cause.clone());
        }
        let unsaved = ran && cause == Cause::Preempted && over.end != End::SavedAtPreemption;
        if unsaved && !Duration::from(self.job.spec.snapshots.grace).is_zero() {
            self.status.kills.abrupt += 1;
        }
        match cause {
            Cause::Preempted | Cause::Walltime => self.forgive_try(ran),
            Cause::Node(_) => self.forgive_try(false),
            Cause::Cancelled(_) | Cause::Rejected(_) => {}
        }
        self.leave(LeaveCode::KeepSlot);
        self.bury();
        if let Cause::Rejected(_) | Cause::Cancelled(_) = &cause {
            // what is true of one is true of all that were asked for with it
            self.intend(if matches!(cause, Cause::Rejected(_)) {
                ReleaseReason::Incomplete
            } else {
                ReleaseReason::Suspended
            });
        }
        if let Cause::Cancelled(user) = &cause {
            self.warn(Reason::CancelledExternally, format!("slot {id} was deleted by {user}: the job is suspended"));
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
        let waits = self.one_by_one()
            && matches!(self.status.phase, JobPhase::Queued | JobPhase::Deploying)
            && self.status.origin.as_ref().is_none_or(|origin| origin.since.is_none());
        let what = match cause {
            Cause::Preempted => "was taken for somebody else",
            Cause::Walltime => "is over: its time has ended",
            Cause::Node(why) => why,
            Cause::Cancelled(_) | Cause::Rejected(_) => return false,
        };
        if waits {
            self.warn(Reason::Preempted, format!("slot {id} {what} while others were waited for"));
        }
        waits
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
        if self.status.origin.as_ref().is_some_and(|origin| origin.since.is_some()) {
            self.forgive_try(false);
            self.account_work();
        }
    }

    /// Counts the end of an attempt, and what was lost with it.
    pub(super) fn account_loss(&mut self, cause: Cause) {
        let kills = &mut self.status.kills;
        let new = u32::from(self.status.origin.as_ref().is_none_or(|origin| !origin.evicted));
        let (reason, what) = match cause {
            Cause::Preempted => {
                kills.preempted += new;
                (Reason::Preempted, "the slots were taken for somebody else".to_owned())
            }
            Cause::Walltime => {
                kills.walltime += new;
                (Reason::WalltimeOver, "the slots' time was over".to_owned())
            }
            Cause::Node(text) => {
                kills.node += 1;
                (Reason::NodeLost, text)
            }
            Cause::Cancelled(user) => {
                kills.cancelled += 1;
                (Reason::CancelledExternally, format!("the slots were deleted by {user}"))
            }
            Cause::Rejected(text) => (Reason::SubmissionRefused, text),
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
        let (ran, elapsed) = (self.ran(), self.elapsed());
        let work = &mut self.status.work;
        let Some(origin) = self.status.origin.as_mut().filter(|origin| origin.since.is_some()) else {
            return (0, work.useful);
        };
        let lost = (origin.work + ran).saturating_sub(work.useful);
        origin.since = None;
        work.lost += lost;
        work.saved = work.saved.max(work.useful);
        work.overhead += elapsed.saturating_sub(ran);
        (lost, work.useful)
    }
}
