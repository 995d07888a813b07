//! Queued: slots are asked for, and waited for.
//!
//! The number of a request is in the status before it is sent; a number is sent once. Where the
//! answer was lost, the name is looked up until that has worked for a while and has found nothing;
//! only then is there another request, under another number (safety A10).

use std::time::Duration;

use super::draft::{Draft, since};
use crate::{
    api::{
        JobPhase, Reason,
        job::{Distribution, LauncherKind},
        job_status::{self, PendingSubmission, ReleaseReason, SlotState, SlotStatus},
    },
    controller::job::plan::Effect,
    driver::{DriverError, Fact, Retry, site::SlotRequest},
    names::slot_name,
};

/// A site that is read for the first time mostly answers within this time.
const FIRST_SEARCH: Duration = Duration::from_secs(3);
/// How long reads of a site must have been good before what they do not show is taken to be absent.
const SURE_AFTER: Duration = Duration::from_secs(10);
/// How often an image that is gone is looked for.
const IMAGE_AGAIN: Duration = Duration::from_secs(15);
/// How often a job is looked at that has some of its slots and goes first.
const PARTLY_STARTED: Duration = Duration::from_secs(3);

impl Draft<'_> {
    /// Asks for slots, or waits for them.
    pub(super) fn queued(&mut self) {
        self.bury();
        self.clear_pods();
        self.release();
        self.heed_new_agents();
        if self.status.pending_submission.is_some() {
            self.doubt();
            return;
        }
        if self.must_adopt() && self.has_slots() {
            self.because("it is to start from a snapshot, which it has not yet");
            self.intend(ReleaseReason::Incomplete);
            self.release();
            return;
        }
        self.give_back_idle();
        self.heed_acquire_timeout();
        if self.renew() {
            return;
        }
        if !self.all_run() {
            // those that have come need not wait for the others with that
            self.provide_hypervisors();
        }
        if self.waits_for_slots() {
            return;
        }
        if !self.may_retry() {
            return;
        }
        if self.seen.slots.known().is_none() || self.seen.looked_up.is_none() {
            // what may already be there under our name is not known yet
            self.because("the site was not searched yet");
            if let Some(error) = self.seen.site_error.as_ref().filter(|error| error.retry() == Retry::Denied) {
                self.because("the site refuses to be read");
                self.back_off(error.reason(), error.to_string());
                return;
            }
            // a new job is told of together with its first request
            let made = self.job.metadata.creation_timestamp.as_ref().map(|made| made.0);
            let new = made.is_some_and(|made| made <= self.now && since(made, self.now) < FIRST_SEARCH);
            self.held_back = new && self.job.status.is_none();
            self.wake(Duration::from_secs(if self.held_back { 1 } else { 2 }));
            return;
        }
        if self.status.started.is_none() {
            match self.check() {
                Ok(checked) if !self.must_adopt() => {
                    let kept = self.status.retry.take();
                    self.accept(checked);
                    self.status.retry = kept;
                }
                Ok(_) | Err(Some(_)) => {
                    self.phase(JobPhase::Pending);
                    self.admit();
                    return;
                }
                Err(None) => {
                    self.because("not known enough yet");
                    return;
                }
            }
        }
        self.submit();
    }

    /// Gives slots back that wait for others and are wanted, or nearly over: at once where nobody is on them any more.
    fn give_back_idle(&mut self) {
        if !self.one_by_one() {
            return;
        }
        let leaving = self.leaving();
        if leaving.is_empty() {
            return;
        }
        self.note_leaving(&leaving, " while others are waited for");
        self.intend_some(|slot| leaving.contains(&slot.id), ReleaseReason::Evacuated);
        self.release();
    }

    /// Gives requests back that wait and ask for something else than is wanted by now. Whether it did.
    fn renew(&mut self) -> bool {
        let digest = digest(&self.request(0));
        let waiting: Vec<SlotStatus> = self.in_use().filter(|s| s.state == SlotState::Waiting).cloned().collect();
        let another = waiting.iter().any(|slot| !slot.request.is_empty() && slot.request != digest);
        // slots that run already wait for these
        let alone = waiting.len() == self.in_use().count();
        if another {
            self.because("another request is wanted");
        } else if alone && waiting.iter().any(|slot| self.is_outdated(slot)) {
            self.because("other nodes are left out by now");
        } else {
            return false;
        }
        self.intend(ReleaseReason::Incomplete);
        self.release();
        true
    }

    /// Whether all that is to be asked for is; goes on once all of it runs.
    fn waits_for_slots(&mut self) -> bool {
        if self.all_run() {
            self.phase(JobPhase::Deploying);
            self.deploy();
            return true;
        }
        if !self.has_slots() || self.missing() > 0 {
            return false;
        }
        self.because("slots are waited for");
        true
    }

    /// What no node could restore is tried anew with other agents, and not with those that another leader makes as
    /// well.
    fn heed_new_agents(&mut self) {
        let stalled = self.status.retry.as_ref().filter(|retry| retry.stalled && retry.reason == Reason::Incompatible);
        let other = |retry: &job_status::Retry| match &retry.agents {
            Some(agents) => *agents != self.seen.setup.agents,
            // an operator that did not note them
            None => retry.not_before.0 < self.seen.leader.since,
        };
        if stalled.is_some_and(other) {
            self.status.retry = None;
        }
    }

    /// Whether nothing that failed before still has to wait.
    pub(super) fn may_retry(&mut self) -> bool {
        let Some(retry) = self.status.retry.clone() else { return true };
        if retry.stalled {
            self.because("stalled until the spec is changed");
            return false;
        }
        if self.now < retry.not_before.0 {
            self.because("backing off");
            self.wake_at(retry.not_before.0);
            return false;
        }
        true
    }

    /// Asks for slots, unless those that a started job would get were of no use: its image is gone, or
    /// may be, or no node can restore it.
    fn submit(&mut self) {
        match &self.seen.missing_image {
            Fact::Known(_) => {
                self.because("the repository no longer has the image");
                self.wake(IMAGE_AGAIN);
                return;
            }
            Fact::Unknown { .. } if self.status.started.is_some() => {
                self.because("whether the repository has the image is not known");
                self.wake(Duration::from_secs(2));
                return;
            }
            Fact::Absent | Fact::Unknown { .. } => {}
        }
        if self.seen.partly_started.is_some() && !self.has_slots() {
            self.because("another job waits for the rest of its slots");
            self.wake(PARTLY_STARTED);
            return;
        }
        let key = self.seen.launch_key.clone();
        let key = key.map(|found| found.map_err(|message| (Reason::CredentialsMissing, message)));
        for (needed, why) in [
            (self.seen.environment.clone(), "the hypervisor's environment is not there, or not known to be"),
            (key, "there is no launch key, or it is not known"),
        ] {
            match needed {
                Fact::Absent | Fact::Known(Ok(())) => continue,
                Fact::Known(Err((reason, message))) => self.back_off(reason, message),
                Fact::Unknown { .. } => self.wake(Duration::from_secs(2)),
            }
            return self.because(why);
        }
        let restores = self.status.started.is_some() || self.status.adopted.is_some();
        if restores && self.seen.content.known().is_none() {
            self.because("what would be restored is not known");
            self.wake(Duration::from_secs(2));
            return;
        }
        if self.incompatible().is_some() {
            self.because("no node can restore the newest generation");
            self.wake(IMAGE_AGAIN);
            return;
        }
        let number = self.status.submission + 1;
        let request = self.request(number);
        self.status.submission = number;
        self.status.pending_submission = Some(PendingSubmission {
            number,
            since: self.time(),
            doubtful: false,
            request: digest(&request),
            reservations: request.reservations,
            left_out: request.avoid.iter().map(ToString::to_string).collect(),
        });
        self.effect(Effect::SubmitSlots { submission: number, request });
        self.because("slots are asked for");
        self.wake(Duration::ZERO);
    }

    /// The outcome of a request is not known: it may still come to the site.
    fn doubt(&mut self) {
        if self.resolve_doubt() {
            self.submit();
        }
    }

    /// Whether a request whose outcome was not known has certainly come to nothing.
    pub(super) fn resolve_doubt(&mut self) -> bool {
        let Some(pending) = self.status.pending_submission.clone() else { return true };
        self.because("the outcome of a request is not known");
        self.wake(Duration::from_secs(2));
        let sure = |from| since(from, self.now) >= SURE_AFTER;
        let searched = self.seen.slots.known().is_some()
            && self.seen.looked_up.is_some_and(|at| since(pending.since.0, at) >= SURE_AFTER)
            && self.seen.reads_good_since.is_some_and(sure);
        if searched && sure(pending.since.0) {
            self.status.pending_submission = None;
            return true;
        }
        if !pending.doubtful
            && let Some(pending) = &mut self.status.pending_submission
        {
            pending.doubtful = true;
        }
        false
    }

    /// What is asked of the site.
    fn request(&self, submission: u32) -> SlotRequest {
        let spec = &self.job.spec;
        let oar = spec.slots.oar.clone().unwrap_or_default();
        let notice = self.seen.site.as_ref().is_some_and(|site| site.capabilities.notice);
        SlotRequest {
            name: slot_name(&self.uid, submission),
            nodes: self.nodes_each(),
            reservations: self.missing(),
            acquire: self.acquire_timeout(),
            deploy: self.deploys(),
            puts_images: spec.distribution == Distribution::TakTuk && self.nodes_each() > 1 && !self.deploys(),
            launch: spec.launcher == LauncherKind::TakTuk,
            walltime: spec.slots.walltime.into(),
            grace: if notice { spec.snapshots.grace.into() } else { Duration::ZERO },
            lease_prefix: format!("{}-", self.uid.short()),
            queue: oar.queue,
            project: oar.project,
            property: oar.property,
            narrowed: self.narrowed(),
            avoid: self.avoid(),
        }
    }
}

/// A digest of what the job asks for: neither the number nor what follows from others counts.
pub(super) fn digest(request: &SlotRequest) -> String {
    // what was learnt of nodes meanwhile is compared apart, and not so soon
    let same = SlotRequest {
        name: String::new(),
        reservations: 1,
        narrowed: Vec::new(),
        avoid: Vec::new(),
        ..request.clone()
    };
    let text = serde_json::to_vec(&same).unwrap_or_default();
    blake3::hash(&text).to_hex().chars().take(16).collect()
}
