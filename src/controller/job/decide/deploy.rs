//! Deploying, Starting, Restoring: from a slot that runs to guests that run. Where nodes are to be deployed first, that
//! is done before, in `hypervisor`.
//!
//! All old members must be confirmed dead before any new one is made (safety A1); all new ones must
//! have loaded before any of them runs (B7).

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::draft::{Draft, after, since};
use super::{master::called, members};
use crate::{
    api::{
        JobPhase, Reason,
        job_status::{MemberPhase, MemberStatus, ReleaseReason},
    },
    backoff::Backoff,
    driver::agent::{LeaseState, LeaveCode, LoadFault, VmState},
};

/// Rest after a node that failed: the site mostly offers the same one at once.
const BETWEEN_NODES: Backoff = Backoff::OUTSIDE;

/// What helps when it is not the node's fault.
const OTHER_AGENTS: &str =
    "No slots are asked for: install an agents' image whose QEMU can restore it; the job then goes on";

impl Draft<'_> {
    /// Brings the members to life on the slot.
    pub(super) fn deploy(&mut self) {
        if !self.has_slots() {
            self.phase(JobPhase::Queued);
            self.queued();
            return;
        }
        let wanted: BTreeSet<String> =
            self.in_use().filter(|slot| slot.notice.is_some()).map(|slot| slot.id.clone()).collect();
        if !wanted.is_empty() {
            self.note(Reason::Preempted, "the slots are wanted back before the guests run");
            if self.one_by_one() {
                self.book_eviction(&self.leaving_cause(&wanted));
            }
            self.ends_before_running();
            self.give_up(&wanted, ReleaseReason::Evacuated);
            self.because("left before running");
            return;
        }
        if !self.all_run() {
            self.phase(JobPhase::Queued);
            self.because("slots are waited for");
            return;
        }
        // the deaths of an incarnation that is over already are no failure of a new one
        let present = self.status.under_way().is_some();
        let ill: Vec<String> = if present { self.newly_dead() } else { Vec::new() };
        self.bury();
        self.clear_pods();
        self.release();
        if !ill.is_empty() {
            self.start_failed(&ill.join("; "));
            return;
        }
        let provided = self.provide_hypervisors();
        if !self.has_slots() || self.status.phase == JobPhase::Queued {
            return;
        }
        let living = self.living().len();
        let here = self.status.everyone().all(|member| {
            let present = member.agent.as_ref().is_some_and(|a| a.incarnation == self.status.incarnation);
            present && self.slot_of(member).is_some()
        });
        if living == 0 && !provided {
            self.phase(JobPhase::Deploying);
        } else if living == 0 {
            self.place();
        } else if living == self.status.everyone().count() && here {
            self.start();
        } else {
            self.because("old members are not confirmed dead");
            self.phase(JobPhase::Deploying);
            self.leave(LeaveCode::KeepSlot);
        }
    }

    /// What became of those that have died since the status was written.
    pub(super) fn newly_dead(&self) -> Vec<String> {
        self.newly_dead_of(self.status.everyone())
    }

    /// The same of some.
    pub(super) fn newly_dead_of<'a>(&'a self, those: impl Iterator<Item = &'a MemberStatus>) -> Vec<String> {
        those
            .filter(|member| member.phase != MemberPhase::Dead && member.agent.is_some() && self.dead(member))
            // one that leaves was told to
            .filter(|member| members::state(self.seen, member).is_none_or(|state| state.leaving.is_none()))
            .map(|member| {
                let said = members::state(self.seen, member).map(|state| &state.vm);
                let why = match (said, members::pod_ended(self.seen, member)) {
                    (Some(VmState::Gone { reason, .. }), _) => reason.clone(),
                    (_, Some(reason)) => format!("its agent ended: {reason}"),
                    (_, None) => format!("no word for {} s", self.silence(member).as_secs()),
                };
                format!("{}: {why}", called(member, self.job))
            })
            .collect()
    }

    /// A member died before all were running: all start again, later with each failure.
    fn start_failed(&mut self, why: &str) {
        let blames = |whom: LoadFault| {
            self.status.everyone().any(|member| {
                let said = members::state(self.seen, member).map(|state| &state.vm);
                matches!(said, Some(VmState::Gone { fault, .. }) if *fault == whom)
            })
        };
        let (part, node) = (blames(LoadFault::Part), blames(LoadFault::Node));
        let silent = self.status.everyone().any(|member| {
            member.phase == MemberPhase::Dead
                && self.isolated(member)
                && members::pod_ended(self.seen, member).is_none()
        });
        let origin = self.status.origin.clone().unwrap_or_default();
        let reason = if origin.generation.is_some() { Reason::RestoreFailed } else { Reason::AgentFailed };
        if part
            && let (Some(generation), Some(origin)) = (origin.generation, &mut self.status.origin)
            && !origin.bad.contains(&generation)
        {
            origin.bad.push(generation);
        }
        match self.note_unfit() {
            // the agents' image is the same wherever they run
            Some((lacks, true)) => self.stall(Reason::Incompatible, format!("{lacks}. {OTHER_AGENTS}")),
            Some((lacks, false)) => self.back_off(Reason::Incompatible, lacks),
            None => self.back_off(reason, why),
        }
        self.account_work();
        if node {
            self.count_bad_node();
        } else if silent {
            self.forgive_try(false);
        }
        if silent || node {
            self.status.kills.node += 1;
            let bad = self.slots_where(|member| member.phase == MemberPhase::Dead);
            self.give_up(&bad, ReleaseReason::BadNode);
            self.because(if silent { "a node is lost" } else { "a node could not load its guest" });
            return;
        }
        self.phase(JobPhase::Deploying);
        self.leave(LeaveCode::KeepSlot);
        self.because("a member did not start");
    }

    /// A node could not load its guest. That says nothing against the generation, however many nodes
    /// cannot (safety C3); the next one is asked for later each time.
    fn count_bad_node(&mut self) {
        self.forgive_try(false);
        let Some(origin) = &mut self.status.origin else { return };
        origin.bad_nodes += 1;
        let wait = BETWEEN_NODES.full(origin.bad_nodes);
        let until = Time(after(self.now, wait));
        // one that is stalled waits for no time: when it began is compared with what is new
        if let Some(retry) = self.status.retry.as_mut().filter(|retry| !retry.stalled) {
            retry.not_before = until;
        }
        self.wake(wait);
    }

    /// A member whose agent has not seen its lease held for longer than the hold waits: its slot, and what to say.
    pub(super) fn unarmed(&self, limit: Duration) -> Option<(Option<String>, String)> {
        let placed = self.status.origin.as_ref()?.since.as_ref()?.0;
        if since(placed, self.now) < limit {
            return None;
        }
        self.status.everyone().find_map(|member| {
            let state = members::state(self.seen, member);
            if state.is_some_and(|state| state.lease == LeaseState::Held) {
                return None;
            }
            // a new leader has to hear it first (safety B13)
            if state.is_none() && self.silence(member) < limit {
                return None;
            }
            let node = member.node.clone().unwrap_or_default();
            let slot = self.slot_of(member);
            let deployed = slot.is_some_and(|slot| slot.deployment.is_some());
            let slot = slot.map(|slot| slot.id.clone());
            let what = match state {
                Some(_) if deployed => {
                    let site = &self.job.spec.slots.site;
                    format!(
                        "the hold took no lease on node {node} within {} s: from the frontend it logs in there as \
                         sites.{site}.kadeploy.connector says, and the user's own key must be among those at \
                         sites.{site}.kadeploy.keys",
                        limit.as_secs()
                    )
                }
                Some(_) => format!("the hold took no lease on node {node} within {} s", limit.as_secs()),
                None => {
                    let stuck = members::stuck(self.seen, member).map(|why| format!(": {why}")).unwrap_or_default();
                    format!("no agent answered on node {node} within {} s{stuck}", limit.as_secs())
                }
            };
            Some((slot, what))
        })
    }
}
