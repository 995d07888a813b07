//! Running: watches the members, takes snapshots when they are due, sees ends and notices coming.

use std::time::Duration;

use super::draft::{Draft, since};
use super::members::{self, state};
use crate::{
    api::{
        JobPhase,
        job::RunMembers,
        job_status::{MemberPhase, MemberStatus, ReleaseReason, SlotState},
        snapshot::{SnapshotPhase, SnapshotReason},
    },
    driver::agent::{LeaveCode, VmState},
    names::snapshot_name,
};

/// How long after an agent's last word its death is taken to be its own, and not its slot's: the site
/// is heard by then. On a busy machine it was heard 9 s after.
const SITE_LAG: Duration = Duration::from_secs(15);
/// The same where the site is ending the slot: it ends what it can reach first.
const ENDING_LAG: Duration = Duration::from_secs(60);
/// How the command has ended.
pub(super) enum Outcome {
    /// It has not, or not everywhere.
    Open,
    /// With 0 everywhere.
    Done,
    /// With this code on this member.
    Failed(u32, i32),
}

impl Draft<'_> {
    /// One look at a running job.
    pub(super) fn run(&mut self, suspend: bool) {
        self.wake(Duration::from_secs(10));
        self.release();
        match self.outcome() {
            Outcome::Done => {
                self.record_codes();
                self.begin_completing();
                return;
            }
            Outcome::Failed(member, code) => {
                self.record_codes();
                self.command_failed(member, code);
                return;
            }
            Outcome::Open => {}
        }
        self.heed_agents_notice();
        self.give_back_masters();
        // whoever has died: a slot that is wanted back is left
        if self.in_use().any(|slot| slot.state == SlotState::Running && slot.notice.is_some()) {
            self.enter_evacuation(suspend);
            return;
        }
        if self.lost_member() {
            return;
        }
        self.lose_master();
        if !self.holds_members() {
            // its end is handled where it is seen; here it is being given back already
            self.phase(JobPhase::Evacuating);
            self.evacuate(suspend);
            return;
        }
        if suspend || !self.leaving().is_empty() {
            self.enter_evacuation(suspend);
            return;
        }
        self.snapshots();
    }

    pub(super) fn commanded(&self) -> impl Iterator<Item = &MemberStatus> {
        let first_only = self.job.spec.run.members == RunMembers::First;
        self.status.members.iter().filter(move |member| !first_only || member.index == 0)
    }

    fn exit_code(&self, member: &MemberStatus) -> Option<i32> {
        member.exit_code.or_else(|| state(self.seen, member)?.guest.exit_code)
    }

    /// How the command has ended.
    pub(super) fn outcome(&self) -> Outcome {
        let codes: Vec<_> = self.commanded().map(|member| (member.index, self.exit_code(member))).collect();
        if let Some((member, code)) = codes.iter().find_map(|(m, code)| code.filter(|c| *c != 0).map(|c| (*m, c))) {
            return Outcome::Failed(member, code);
        }
        if codes.iter().all(|(_, code)| code.is_some()) { Outcome::Done } else { Outcome::Open }
    }

    fn record_codes(&mut self) {
        let codes: Vec<Option<i32>> = self.status.members.iter().map(|member| self.exit_code(member)).collect();
        for (member, code) in self.status.members.iter_mut().zip(codes) {
            member.exit_code = code;
        }
    }

    /// One lost member is the job's loss: all go back to the same generation.
    fn lost_member(&mut self) -> bool {
        let members = || self.status.members.iter();
        let ill = self.newly_dead_of(members());
        let known = members().any(|member| member.phase == MemberPhase::Dead);
        if ill.is_empty() && !known {
            return false;
        }
        let ending = self.in_use().any(|slot| slot.state == SlotState::Ending);
        if !members().filter(|member| self.dead(member)).all(|member| self.is_its_own(member, ending)) {
            // the site may be about to say that it took the slot
            self.because("a member is dead, the slot may be");
            self.wake(Duration::from_secs(1));
            return true;
        }
        let silent = members().any(|member| {
            member.phase != MemberPhase::Dead
                && self.isolated(member)
                && members::pod_ended(self.seen, member).is_none()
        });
        // of a master's node nothing may be known for long
        let bad = silent || self.status.master.as_ref().and_then(|m| m.agent.as_ref()).is_some_and(|a| a.unproven);
        let why = ill.join("; ");
        self.account_loss(super::lose::Cause::Node(why));
        self.bury();
        if bad || ending {
            let bad = self.slots_where(|member| member.phase == MemberPhase::Dead);
            self.give_up(&bad, ReleaseReason::BadNode);
            self.because("a node is lost");
        } else {
            self.status.attempt += 1;
            self.phase(JobPhase::Deploying);
            self.leave(LeaveCode::KeepSlot);
            self.because("a member is lost, the slot is not");
            self.wake(Duration::from_secs(1));
        }
        true
    }

    /// A master on a node of its own has no guest: without it the members run on, and nobody gets in until
    /// the next attempt.
    fn lose_master(&mut self) {
        let lost = |master: &&MemberStatus| master.phase != MemberPhase::Dead && self.dead(master);
        let Some(master) = self.status.master.as_ref().filter(lost) else { return };
        if self.is_its_own(master, false) {
            self.bury();
        } else {
            self.wake(Duration::from_secs(1));
        }
    }

    /// Whether a death is its own: that of its slot, which may be about to end, would have been heard of by now.
    fn is_its_own(&self, member: &MemberStatus, ending: bool) -> bool {
        let patience = if ending { ENDING_LAG } else { SITE_LAG };
        self.silence(member) >= patience || self.says_gone(member)
    }

    fn says_gone(&self, member: &MemberStatus) -> bool {
        self.silence(member) < Duration::from_secs(3)
            && state(self.seen, member).is_some_and(|state| {
                matches!(state.vm, VmState::Gone { .. }) && state.lease == crate::driver::agent::LeaseState::Held
            })
    }

    /// Takes a snapshot if one is due or asked for, and none is under way.
    fn snapshots(&mut self) {
        if let Some(capture) = &self.status.snapshots.capture {
            let captured = capture.captured;
            self.phase(if captured { JobPhase::Running } else { JobPhase::Snapshotting });
            self.because(if captured { "a snapshot is being stored" } else { "a snapshot is being taken" });
            self.wake(Duration::from_secs(if captured { 5 } else { 1 }));
            return;
        }
        self.phase(JobPhase::Running);
        self.because("the job computes");
        self.retain();
        if self.voided {
            self.wake(Duration::from_secs(1));
            return;
        }
        if self.all_states().is_none_or(|states| states.iter().any(|state| state.vm != VmState::Running)) {
            return;
        }
        let asked = self
            .seen
            .snapshots
            .iter()
            .filter(|snapshot| snapshot.reason == SnapshotReason::User && !snapshot.deleting)
            .find(|snapshot| snapshot.status.phase == SnapshotPhase::Pending)
            .map(|snapshot| snapshot.name.clone());
        if let Some(name) = asked
            && self.has_room()
        {
            self.capture(SnapshotReason::User, true, Some(name));
            return;
        }
        let Some(due) = self.status.snapshots.next_at.as_ref().map(|at| at.0) else {
            self.plan_next();
            return;
        };
        if self.now < due {
            self.wake_at(due);
        } else if self.has_room() {
            self.capture(SnapshotReason::Periodic, true, None);
        } else {
            // the next turn
            self.plan_next();
        }
    }

    /// The name of the Snapshot object of a generation of ours.
    pub(super) fn own_snapshot_name(&self, generation: u32) -> String {
        snapshot_name(self.job.metadata.name.as_deref().unwrap_or_default(), &self.uid, generation)
    }

    /// Seconds the members ran in this incarnation, as far as they were heard.
    pub(super) fn ran(&self) -> u64 {
        let seconds: f64 = self
            .status
            .members
            .iter()
            .filter_map(|member| state(self.seen, member))
            .filter(|state| state.incarnation == self.status.incarnation)
            .map(|state| state.ran.max(0.0))
            .sum();
        seconds as u64
    }

    /// Seconds since the incarnation was decided, of all members together.
    pub(super) fn elapsed(&self) -> u64 {
        let Some(start) = self.status.origin.as_ref().and_then(|origin| origin.since.as_ref()) else { return 0 };
        since(start.0, self.now).as_secs() * u64::from(self.job.spec.members)
    }
}
