//! Suspension and deletion, from whatever phase.

use std::time::Duration;

use super::draft::{Draft, since};
use crate::{
    api::{
        JobPhase, Reason,
        job_status::{ReleaseReason, Suspended},
    },
    controller::job::plan::{Effect, SnapshotSeen},
    driver::{Fact, agent::LeaveCode},
};

impl Draft<'_> {
    /// Gives everything back. Returns whether nothing is held any more, at the site or on a node.
    pub(super) fn wind_down(&mut self, reason: ReleaseReason, code: LeaveCode) -> bool {
        self.intend(reason);
        self.leave(code);
        self.bury();
        let clear = self.clear_pods();
        self.release();
        let sure = self.resolve_doubt();
        let nothing = self.status.slots.is_empty() && clear && self.living().is_empty() && sure;
        if !nothing {
            self.wake(Duration::from_secs(2));
        }
        nothing
    }

    /// To be suspended before its guests run: there is nothing to capture.
    pub(super) fn suspend_before_running(&mut self) {
        self.void_capture("the job is suspended");
        self.ends_before_running();
        if self.wind_down(ReleaseReason::Suspended, LeaveCode::Saved) {
            let since = self.time();
            self.status.suspended.get_or_insert(Suspended { since, by_site: false });
            self.phase(JobPhase::Suspended);
            self.note(Reason::Suspended, "suspended: nothing is held");
            self.because("suspended");
        } else {
            self.phase(JobPhase::Evacuating);
            self.because("slots are being given back");
        }
    }

    /// Suspended: nothing to do but to hold nothing.
    pub(super) fn suspended(&mut self) {
        self.wind_down(ReleaseReason::Suspended, LeaveCode::Saved);
        self.because("suspended");
        if self.job.spec.suspend
            && let Some(suspended) = &mut self.status.suspended
        {
            // the person who unsets it again wants the job to go on
            suspended.by_site = false;
        }
    }

    /// Goes on after a suspension.
    pub(super) fn resume(&mut self) {
        if let Some(suspended) = self.status.suspended.take() {
            self.status.suspended_seconds += since(suspended.since.0, self.now).as_secs();
        }
        self.note(Reason::Accepted, "the job goes on");
        if self.status.members.is_empty() {
            self.phase(JobPhase::Pending);
            self.admit();
            return;
        }
        self.status.attempt += 1;
        self.phase(JobPhase::Queued);
        self.queued();
    }

    /// Deletion: gives everything back, removes what was kept, then lets the object go.
    pub(super) fn terminate(&mut self) {
        self.phase(JobPhase::Terminating);
        self.void_capture("the job is being deleted");
        if !self.wind_down(ReleaseReason::Deleted, LeaveCode::Saved) {
            self.because("slots and agents are being removed");
            return;
        }
        let doomed: Vec<_> = self.seen.snapshots.iter().filter(|snapshot| !snapshot.retain).cloned().collect();
        if !doomed.is_empty() {
            for snapshot in doomed.iter().filter(|snapshot| !snapshot.deleting) {
                self.drop_snapshot(snapshot);
            }
            self.wake(Duration::from_secs(2));
            self.because("snapshots are being removed");
            return;
        }
        let retained = self.seen.snapshots.iter().any(SnapshotSeen::keeps_content);
        let empty = match &self.seen.content {
            Fact::Absent => true,
            Fact::Known(content) => content.generations.is_empty() && content.highest == 0 && content.fence == 0,
            Fact::Unknown { .. } => false,
        };
        // a copy that nobody waits for any more may still be made
        let may_come = self.status.adopted.as_ref().is_some_and(|adopted| adopted.complete.is_none());
        if self.status.may_have_content() && !retained && (!empty || may_come) {
            self.because("what the repository has is being removed");
            if self.seen.unread_snapshots {
                // it may be to be retained, and what the repository has with it
                self.because("a Snapshot of the namespace cannot be read");
                self.wake(Duration::from_secs(10));
                return;
            }
            if self.seen.content.known().is_none() {
                self.wake(Duration::from_secs(5));
                return;
            }
            self.effect(Effect::RemoveContent);
        }
        self.effect(Effect::RemoveFinalizer);
        self.because("nothing is left of it");
    }
}
