//! Takes what the site says into the status: states of slots, the answer to a request, slots found by
//! name.
//!
//! A slot is never forgotten because the site does not answer or does not know it. One that is found
//! under a name of ours and is not in the status is adopted if it is the one that was asked for, and
//! given back otherwise (safety A10).

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    draft::{Draft, since},
    seats::called_slots,
};
use crate::{
    api::{
        Reason,
        job_status::{AskedFor, MemberPhase, PendingSubmission, ReleaseIntent, ReleaseReason, SlotState, SlotStatus},
    },
    controller::job::plan::Effect,
    driver::{
        DriverError as _,
        site::{End, NoticeKind, SiteError, SlotFacts, SlotPhase},
    },
    names::submission_of,
};

/// How often a slot is given back until it is over.
const RELEASE_EVERY: Duration = Duration::from_secs(5);

/// Agents have this long to leave by themselves, with their files, where somebody waits for the slot and takes it soon.
const WANTED: Duration = Duration::from_secs(10);
/// Longer where only the job's own rest waits for it.
pub(super) const LAST: Duration = Duration::from_secs(15);
/// Longest where nobody waits: other slots are asked for meanwhile.
const UNWANTED: Duration = Duration::from_secs(20);
/// A hold that agents have told to end has mostly ended within this time.
const HOLD_ENDS: Duration = Duration::from_secs(4);
/// A slot that is given back, and that a site which was read well for some time does not know, is over after this time.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// So long must the site have been read well.
const READ_WELL: Duration = Duration::from_secs(30);

/// A slot that came to its end in this pass.
pub(super) struct Over {
    pub(super) slot: SlotStatus,
    pub(super) end: End,
    /// What was announced before.
    pub(super) notice: Option<NoticeKind>,
}

impl Draft<'_> {
    /// Takes everything in. Returns the slots that have come to their end.
    pub(super) fn absorb(&mut self) -> Vec<Over> {
        self.answered();
        let over = self.slot_states();
        self.adopt();
        self.only_enough();
        over
    }

    /// The answer to the request that was sent.
    fn answered(&mut self) {
        let (Some(pending), Some(reply)) = (&self.status.pending_submission, &self.seen.reply) else { return };
        if reply.submission != pending.number {
            return;
        }
        match &reply.outcome {
            Ok(ids) => {
                let slots: Vec<SlotStatus> =
                    ids.iter().map(|id| waiting(id.0.clone(), pending.number, Some(pending))).collect();
                if let Some(called) = called_slots(&slots, [" was", " were"]) {
                    self.note(Reason::SlotsRequested, format!("{called} asked for"));
                }
                self.status.slots.extend(slots);
                self.status.pending_submission = None;
                // slots that did not all come, or failed, may do so again, and are asked for later each time
                let may_come_again = |reason| {
                    matches!(
                        reason,
                        Reason::SlotsIncomplete
                            | Reason::NodeLost
                            | Reason::UnknownNode
                            | Reason::DeploymentFailed
                            | Reason::DeploymentRefused
                            | Reason::RightsMissing
                            | Reason::KadeployUnreachable
                    )
                };
                self.status.retry = self.status.retry.take().filter(|retry| may_come_again(retry.reason));
            }
            // it may have been accepted: only a look-up can tell (safety A10)
            Err(SiteError::Unreachable(_) | SiteError::NotFound(_)) => {
                if let Some(pending) = &mut self.status.pending_submission {
                    pending.doubtful = true;
                }
            }
            Err(
                error @ (SiteError::Credentials(_)
                | SiteError::Refused(_)
                | SiteError::NotEnoughNodes(_)
                | SiteError::Configuration(_)
                | SiteError::Bug(_)),
            ) => {
                let (reason, mut message) = (error.reason(), error.to_string());
                if reason == Reason::NotEnoughNodes {
                    message.push_str(&self.left_out());
                }
                self.status.pending_submission = None;
                self.back_off(reason, message);
            }
        }
    }

    fn slot_states(&mut self) -> Vec<Over> {
        let mut over = Vec::new();
        let Some(facts) = self.seen.slots.known() else { return over };
        for slot in &mut self.status.slots {
            let Some(facts) = facts.iter().find(|facts| facts.id.0 == slot.id) else { continue };
            if slot.nodes.is_empty() {
                slot.nodes = facts.nodes.iter().map(ToString::to_string).collect();
            }
            slot.since = slot.since.clone().or(facts.since.map(Time));
            slot.until = slot.until.clone().or(facts.until.map(Time));
            if let Some(notice) = &facts.notice
                && announces_a_kill(notice.kind)
                && slot.notice.is_none()
            {
                slot.notice = Some(Time(notice.at));
            }
            match &facts.phase {
                SlotPhase::Waiting { .. } => slot.state = SlotState::Waiting,
                SlotPhase::Running => slot.state = SlotState::Running,
                SlotPhase::Ending => slot.state = SlotState::Ending,
                SlotPhase::Ended(end) => {
                    // an end by the site's own failure proves nothing of the nodes, and no end anything of deployed
                    // ones: nothing is ended there (safety A12)
                    let cleared =
                        !facts.unreached && !matches!(end, End::Infrastructure(_)) && slot.deployment.is_none();
                    slot.cleared = cleared.then(|| slot.cleared.take().unwrap_or(Time(self.now)));
                    if slot.state != SlotState::Ended {
                        slot.state = SlotState::Ended;
                        let notice = facts.notice.map(|notice| notice.kind).filter(|kind| announces_a_kill(*kind));
                        over.push(Over { slot: slot.clone(), end: end.clone(), notice });
                    }
                }
                SlotPhase::Unknown(_) => {}
            }
        }
        over
    }

    /// Slots of our name that the status does not know.
    fn adopt(&mut self) {
        let Some(facts) = self.seen.slots.known() else { return };
        let mut found: Vec<(u32, &SlotFacts)> = facts
            .iter()
            .filter(|facts| !self.status.slots.iter().any(|slot| slot.id == facts.id.0))
            .filter_map(|facts| Some((submission_of(&self.uid, &facts.name)?, facts)))
            .collect();
        // the lowest id stays: ids are numbers, and shorter ones are lower
        found.sort_by_key(|(number, facts)| (*number, facts.id.0.len(), facts.id.0.clone()));
        let wanted = super::goal(self) == super::Goal::Run;
        for (number, facts) in found {
            let ended = matches!(facts.phase, SlotPhase::Ended(_));
            let pending = self.status.pending_submission.as_ref().filter(|pending| pending.number == number);
            let asked_for = pending.is_some() && self.missing() > 0;
            // a status restored from a backup may have counted backwards
            let ahead = number > self.status.submission && !self.has_slots() && wanted;
            // members that run on without a master need no slot in place of its own
            let seated = self.status.under_way().is_some();
            let late = self.one_by_one() && number == self.status.submission && !seated && self.missing() > 0 && wanted;
            if asked_for || ((ahead || late) && !ended) {
                let mut slot = waiting(facts.id.0.clone(), number, pending);
                slot.nodes = facts.nodes.iter().map(ToString::to_string).collect();
                slot.since = facts.since.map(Time);
                slot.until = facts.until.map(Time);
                if matches!(facts.phase, SlotPhase::Running) {
                    slot.state = SlotState::Running;
                }
                self.note(Reason::SlotsRequested, format!("slot {} was found by its name", facts.id));
                self.status.slots.push(slot);
                self.status.submission = self.status.submission.max(number);
                self.all_found(number);
            } else if !ended {
                self.warn(Reason::SlotsRequested, format!("slot {} is a second copy and is given back", facts.id));
                let mut slot = waiting(facts.id.0.clone(), number, None);
                slot.release = Some(ReleaseIntent { reason: ReleaseReason::Duplicate, since: self.time() });
                self.status.slots.push(slot);
                self.status.submission = self.status.submission.max(number);
            }
        }
    }

    /// A request whose answer was lost is answered by as many slots as it asked for: the site may show them one by one.
    fn all_found(&mut self, number: u32) {
        let found = self.status.slots.iter().filter(|slot| slot.submission == number).count();
        let pending = self.status.pending_submission.as_ref().filter(|pending| pending.number == number);
        if pending.is_some_and(|pending| found >= pending.reservations as usize) {
            self.status.pending_submission = None;
        }
    }

    /// Never more slots in use than the job needs: all but the first are given back.
    fn only_enough(&mut self) {
        let (needed, each) = (self.nodes() as usize, self.nodes_each() as usize);
        let mut nodes = 0;
        let mut enough = BTreeSet::new();
        for slot in self.in_use() {
            if nodes < needed {
                enough.insert(slot.id.clone());
            }
            nodes += if slot.nodes.is_empty() { each } else { slot.nodes.len() };
        }
        self.intend_some(|slot| !enough.contains(&slot.id), ReleaseReason::Duplicate);
    }

    /// Decides to give all slots back: the intent comes first (safety B4).
    pub(super) fn intend(&mut self, reason: ReleaseReason) {
        self.intend_some(|_| true, reason);
    }

    /// The same of some.
    pub(super) fn intend_some(&mut self, those: impl Fn(&SlotStatus) -> bool, reason: ReleaseReason) {
        let intent = ReleaseIntent { reason, since: self.time() };
        for slot in self.status.slots.iter_mut().filter(|slot| slot.is_in_use() && those(slot)) {
            slot.release = Some(intent.clone());
        }
    }

    /// Gives back every slot whose intent says so, once nothing of ours is on it any more, and drops
    /// those that are over.
    pub(super) fn release(&mut self) {
        self.end_deployments();
        let mut ask = Vec::new();
        let mut drop = Vec::new();
        // the site knows them no more, and their nodes are to leave the cluster yet
        let mut over = Vec::new();
        let mut later: Option<Duration> = None;
        for slot in &self.status.slots {
            // a slot that is over tells of deaths until they are written down
            let buried = self.is_buried(&slot.id);
            if slot.state == SlotState::Ended {
                if buried && !self.deployment_ends(slot) {
                    drop.push(slot.id.clone());
                }
                continue;
            }
            let Some(intent) = &slot.release else { continue };
            let age = since(intent.since.0, self.now);
            if buried && age >= FORGOTTEN && self.site_forgot(&slot.id) {
                let those = if slot.deployment.is_some() { &mut over } else { &mut drop };
                those.push(slot.id.clone());
                continue;
            }
            // the files of agents go after their VMs (safety A6)
            let nothing = self.on_slot(&slot.id).all(|member| self.cleared(member));
            let wait = if self.on_slot(&slot.id).next().is_none() {
                Duration::ZERO
            } else if nothing {
                after_the_agents(intent.reason)
            } else {
                patience(intent.reason)
            };
            let left = wait.saturating_sub(age);
            if left.is_zero() {
                ask.push(slot.id.clone());
            } else {
                later = Some(later.map_or(left, |old: Duration| old.min(left)));
            }
        }
        self.status.slots.retain(|slot| !drop.contains(&slot.id));
        for slot in self.status.slots.iter_mut().filter(|slot| over.contains(&slot.id)) {
            slot.state = SlotState::Ended;
        }
        if let Some(later) = later {
            self.wake(later);
        }
        for id in ask {
            self.repeat(Effect::ReleaseSlot { id: id.into() }, RELEASE_EVERY);
        }
    }

    /// Whether everybody is known to be dead who was on a slot.
    pub(super) fn is_buried(&self, slot: &str) -> bool {
        self.on_slot(slot).all(|member| member.phase == MemberPhase::Dead)
    }

    /// Whether the site, asked for long enough, does not know a slot that we give back anyway.
    fn site_forgot(&self, id: &str) -> bool {
        let good = self.seen.reads_good_since.is_some_and(|good| since(good, self.now) >= READ_WELL);
        let known = self.seen.slots.known().is_some();
        let unknown = self.facts(id).is_none_or(|facts| matches!(facts.phase, SlotPhase::Unknown(_)));
        good && known && unknown
    }
}

/// How long agents get to leave a slot by themselves before it is given back all the same.
fn patience(reason: ReleaseReason) -> Duration {
    match reason {
        ReleaseReason::Evacuated => WANTED,
        ReleaseReason::Finished | ReleaseReason::Suspended | ReleaseReason::Deleted => LAST,
        ReleaseReason::Incomplete | ReleaseReason::Duplicate | ReleaseReason::BadNode => UNWANTED,
    }
}

/// How long its hold gets to end by itself once nothing of the agents is left: no time where somebody waits.
fn after_the_agents(reason: ReleaseReason) -> Duration {
    if reason == ReleaseReason::Evacuated { Duration::ZERO } else { HOLD_ENDS }
}

/// Whether something will be killed; a person's own request for a checkpoint announces nothing.
pub(super) fn announces_a_kill(kind: NoticeKind) -> bool {
    match kind {
        NoticeKind::Preemption | NoticeKind::Walltime => true,
        NoticeKind::Person => false,
    }
}

fn waiting(id: String, submission: u32, pending: Option<&PendingSubmission>) -> SlotStatus {
    SlotStatus {
        id,
        submission,
        request: pending.map(|pending| pending.request.clone()).unwrap_or_default(),
        asked: pending.map(|pending| AskedFor { at: pending.since.clone(), left_out: pending.left_out.clone() }),
        nodes: Vec::new(),
        state: SlotState::Waiting,
        since: None,
        until: None,
        notice: None,
        cleared: None,
        deployment: None,
        release: None,
    }
}
