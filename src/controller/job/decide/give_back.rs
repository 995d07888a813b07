//! Slots that are given back one by one while a job leaves.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Goal,
    draft::{Draft, since},
    evacuate::is_last,
    lose::Cause,
    seats::called_slots,
};
use crate::{
    api::{
        JobPhase, Reason,
        job_status::{CaptureStatus, MemberStatus, ReleaseReason, SlotState, SlotStatus},
    },
    controller::job::plan::SnapshotSeen,
    driver::agent::LeaveCode,
};

/// An agent that is told to leave has mostly left within this time.
const SOON: Duration = Duration::from_secs(3);

impl Draft<'_> {
    /// Gives back each slot that is wanted and whose member's bytes the repository lists (safety B15): the others'
    /// need not have come.
    pub(super) fn give_back_safe(&mut self, suspend: bool) {
        let Some(capture) =
            self.status.snapshots.capture.clone().filter(|capture| self.one_by_one() && is_last(capture))
        else {
            return;
        };
        let safe = self.safe(&capture);
        // who leaves only to be suspended stays until nothing can fail any more
        let leaving = self.leaving();
        let unsafe_slots = self.slots_where(|member| !safe.contains(&member.index));
        let given: BTreeSet<String> = leaving.difference(&unsafe_slots).cloned().collect();
        let leaving = self.in_use().filter(|slot| given.contains(&slot.id));
        let Some(slots) = called_slots(leaving, [" is given back", " are given back"]) else { return };
        let message = format!("{slots}: the bytes of generation {} from there are safe", capture.generation);
        self.note(Reason::SnapshotStored, message);
        self.book_eviction(&self.leaving_cause(&given));
        let reason = if suspend { ReleaseReason::Suspended } else { ReleaseReason::Evacuated };
        self.intend_some(|slot| given.contains(&slot.id), reason);
        self.leave_given_back(LeaveCode::Saved);
    }

    /// Gives back each slot that is wanted, or nearly over, and carries no member: they run on without a master.
    pub(super) fn give_back_masters(&mut self) {
        let given: BTreeSet<String> = self.leaving().into_iter().filter(|id| !self.carries_member(id)).collect();
        if given.is_empty() {
            return;
        }
        self.note_leaving(&given, " and only has the master, without which the members run on");
        self.intend_some(|slot| given.contains(&slot.id), ReleaseReason::Evacuated);
        self.leave_given_back(LeaveCode::Saved);
        self.release();
    }

    /// The members whose nodes a capture needs no longer, as kget says (safety B15): the repository lists their bytes,
    /// or another member's agent does that is not let go before it has brought them there.
    pub(super) fn safe(&self, capture: &CaptureStatus) -> Vec<u32> {
        let transfer = self.snapshot_of(capture).and_then(|snapshot| snapshot.status.transfer.as_ref());
        transfer.map_or(Vec::new(), |transfer| transfer.needs_not().to_vec())
    }

    /// Whether all that was on a slot of a last capture is safe: its end costs nothing then, whatever it came by.
    pub(super) fn is_spent(&self, slot: &str) -> bool {
        let Some(capture) = self.status.snapshots.capture.as_ref().filter(|capture| is_last(capture)) else {
            return false;
        };
        let safe = self.safe(capture);
        self.one_by_one()
            && self.status.phase == JobPhase::Evacuating
            && self.on_slot(slot).all(|member| safe.contains(&member.index))
    }

    /// Whether somebody on a slot that is given back has not left yet, and may be about to: to ask for others takes a
    /// moment of the site's, in which nothing would be given back.
    pub(super) fn are_leaving(&self) -> bool {
        let lately = |slot: &&SlotStatus| {
            let intent = slot.release.as_ref().filter(|_| slot.state != SlotState::Ended);
            intent.is_some_and(|intent| since(intent.since.0, self.now) < SOON)
        };
        let mut given_back = self.status.slots.iter().filter(lately);
        given_back.any(|slot| self.on_slot(&slot.id).any(|member| !self.dead(member)))
    }

    /// The members whose slots are wanted, or were, if others stay where they are: their bytes are to go first.
    pub(super) fn leaving_members(&mut self, capture: &CaptureStatus, seen: Option<&SnapshotSeen>) -> Vec<u32> {
        if self.status.phase == JobPhase::Evacuating && capture.captured && capture.resume {
            // what is stored still is waited for before the last capture
            return self.status.members.iter().map(|member| member.index).collect();
        }
        if !self.one_by_one() || !is_last(capture) {
            return Vec::new();
        }
        if super::goal(self) == Goal::Suspend {
            return Vec::new();
        }
        let leaving = self.leaving();
        let known = seen.map(|snapshot| snapshot.status.leaving.clone()).unwrap_or_default();
        // a slot that is not in use any more was wanted
        let wanted = |member: &MemberStatus| self.slot_of(member).is_none_or(|slot| leaving.contains(&slot.id));
        let members = self.status.members.iter().filter(|member| wanted(member) || known.contains(&member.index));
        let members: Vec<u32> = members.map(|member| member.index).collect();
        if members.len() == self.status.members.len() { Vec::new() } else { members }
    }

    /// Counts the cause of an evacuation in which slots are given back one by one: once, with the first.
    pub(super) fn book_eviction(&mut self, cause: &Cause) {
        let Some(origin) = self.status.origin.as_mut().filter(|origin| !origin.evicted) else { return };
        origin.evicted = true;
        match cause {
            Cause::Preempted => self.status.kills.preempted += 1,
            Cause::Walltime => self.status.kills.walltime += 1,
            Cause::Node(_) => self.status.kills.node += 1,
            Cause::Cancelled(_) | Cause::Rejected(_) => {}
        }
    }
}
