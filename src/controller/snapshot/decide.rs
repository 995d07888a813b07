//! What becomes of a snapshot. Pure and total.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::status::{self, Outcome};
use crate::{
    api::{
        FINALIZER, JobPhase, Reason, Snapshot, SnapshotStatus,
        snapshot::{SnapshotPhase, TransferState},
    },
    controller::note::Note,
    driver::{Fact, repository::JobContent},
    names::{Generation, Incarnation, JobUid},
};

/// Time after which an unfinished snapshot is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// The same, after the repository did not answer or has not yet what it should.
const SOON: Duration = Duration::from_secs(5);

/// Everything a decision is made from, besides the object and the time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seen {
    /// The job it is of; absent also where its name belongs to a later job.
    pub job: Fact<JobSeen>,
    /// What the repository has of the job; `Unknown` also where nobody needs to know.
    pub content: Fact<JobContent>,
    /// A job that is to begin with it and has no copy of it yet; looked for only where it is being deleted.
    pub copied_by: Option<String>,
    /// Other snapshots of the same job, and what cannot be read and may be one.
    pub siblings: usize,
}

/// The job, as far as a snapshot depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JobSeen {
    /// Its uid.
    pub uid: JobUid,
    /// It may need its generations: neither ended nor being deleted.
    pub live: bool,
    /// Where it has got to.
    pub phase: JobPhase,
    /// Its present incarnation.
    pub incarnation: Incarnation,
    /// The generation being captured or stored.
    pub capturing: Option<Generation>,
    /// The number of its next capture.
    pub next_generation: Generation,
    /// Why it takes none for want of room, if that is so.
    pub no_room: Option<String>,
    /// The generation it is being restored from.
    pub restoring: Option<Generation>,
    /// The generation it would go back to: older than the newest complete one if that did not restore.
    pub falls_back_to: Option<Generation>,
}

/// What one pass does: the status once, then the effects in order, then the notes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// What the operator owns of the status; written unless it equals the present one.
    pub status: SnapshotStatus,
    /// What is done outside, in order; a failure ends the pass.
    pub effects: Vec<Effect>,
    /// Events for people.
    pub notes: Vec<Note>,
    /// When to look again if nothing changes before.
    pub wake: Option<Duration>,
    /// The arm that decided.
    pub why: &'static str,
}

/// A write to the outside. All may be repeated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Effect {
    /// Holds the object while its generation exists.
    AddFinalizer,
    /// Lets the object go.
    RemoveFinalizer,
    /// Removes the generation from the repository.
    Retire {
        /// The job.
        job: JobUid,
        /// The generation.
        generation: Generation,
    },
    /// Removes the parts of a generation that will never be complete, and takes no more of them.
    /// Comes before the status says so: a generation that is complete after all is refused.
    GiveUp {
        /// The job.
        job: JobUid,
        /// The generation.
        generation: Generation,
    },
    /// Removes all that is left of a job that is gone.
    RemoveContent {
        /// The job.
        job: JobUid,
    },
}

/// The uid of the snapshot's job, once it is known.
pub fn job_uid(snapshot: &Snapshot) -> Option<JobUid> {
    let uid = &snapshot.status.as_ref()?.job_uid;
    (!uid.is_empty()).then(|| JobUid(uid.clone()))
}

/// Whether the repository must be asked.
pub fn depends_on_content(snapshot: &Snapshot, job: &Fact<JobSeen>) -> bool {
    let Some(status) = &snapshot.status else { return false };
    if status.generation.is_none() {
        return false;
    }
    if snapshot.metadata.deletion_timestamp.is_some() {
        return held(snapshot) && job.known().is_some_and(|job| job.live);
    }
    let transfer = status.transfer.as_ref().map_or(TransferState::Pending, |transfer| transfer.state);
    let settled = matches!(transfer, TransferState::Published | TransferState::Failed);
    match status.phase {
        SnapshotPhase::Captured => settled || superseded(status, job),
        SnapshotPhase::Capturing => !is_taken(status, job),
        SnapshotPhase::Pending | SnapshotPhase::Stored | SnapshotPhase::Failed => false,
    }
}

fn held(snapshot: &Snapshot) -> bool {
    snapshot.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

/// Whether nobody can store it any more: its job is gone or in a later incarnation (safety B1).
fn superseded(status: &SnapshotStatus, job: &Fact<JobSeen>) -> bool {
    match job {
        Fact::Known(job) => job.incarnation > status.incarnation,
        Fact::Absent => true,
        Fact::Unknown { .. } => false,
    }
}

/// Decides.
pub fn decide(snapshot: &Snapshot, seen: &Seen, now: Timestamp) -> Plan {
    let deleting = snapshot.metadata.deletion_timestamp.is_some();
    let mut plan = if deleting { deleted(snapshot, seen) } else { living(snapshot, seen) };
    plan.status.observed_generation = snapshot.metadata.generation.unwrap_or_default();
    status::stamp(&mut plan.status, now);
    plan
}

fn plan(snapshot: &Snapshot, outcome: &Outcome, why: &'static str) -> Plan {
    let mut status = snapshot.status.clone().unwrap_or_default();
    let before = status.phase;
    let notes = status::set(&mut status, outcome).into_iter().filter(|_| before != outcome.phase()).collect();
    let wake = match outcome {
        Outcome::Waiting(_) | Outcome::Capturing | Outcome::Held(..) | Outcome::Transferring(_) => Some(LOOK_AGAIN),
        Outcome::Stored { .. } | Outcome::Void(..) => None,
    };
    Plan { status, effects: Vec::new(), notes, wake, why }
}

fn living(snapshot: &Snapshot, seen: &Seen) -> Plan {
    if !held(snapshot) {
        let status = snapshot.status.clone().unwrap_or_default();
        let effects = vec![Effect::AddFinalizer];
        return Plan { status, effects, notes: Vec::new(), wake: None, why: "hold the object first" };
    }
    let present = snapshot.status.clone().unwrap_or_default();
    match present.phase {
        SnapshotPhase::Pending => pending(snapshot, &seen.job),
        SnapshotPhase::Capturing if superseded(&present, &seen.job) => {
            let message = "the job was lost, or went back to an older generation, before all members were captured";
            plan(snapshot, &Outcome::Void(Reason::SnapshotVoid, message.into()), "the capture was overtaken")
        }
        SnapshotPhase::Capturing if !is_taken(&present, &seen.job) => left(snapshot, &present, seen),
        SnapshotPhase::Capturing => plan(snapshot, &Outcome::Capturing, "the job controller captures"),
        SnapshotPhase::Captured => captured(snapshot, &present, seen),
        SnapshotPhase::Stored => plan(snapshot, &Outcome::Stored { bytes: None }, "stored"),
        SnapshotPhase::Failed => {
            Plan { status: present, effects: Vec::new(), notes: Vec::new(), wake: None, why: "void" }
        }
    }
}

/// Whether its job still takes it, as far as is known.
fn is_taken(status: &SnapshotStatus, job: &Fact<JobSeen>) -> bool {
    job.known().is_none_or(|job| job.capturing == status.generation || Some(job.next_generation) <= status.generation)
}

/// Begun, and its job has gone on without saying what became of it.
fn left(snapshot: &Snapshot, present: &SnapshotStatus, seen: &Seen) -> Plan {
    match &seen.content {
        Fact::Known(content) => match content.generations.iter().find(|g| Some(g.generation) == present.generation) {
            Some(summary) => {
                let outcome = Outcome::Stored { bytes: Some(summary.stored) };
                plan(snapshot, &outcome, "the repository has its manifest")
            }
            None => {
                let message = "its capture was given up";
                plan(snapshot, &Outcome::Void(Reason::SnapshotVoid, message.into()), "nobody takes it any more")
            }
        },
        Fact::Unknown { .. } | Fact::Absent => plan(snapshot, &Outcome::Capturing, "the repository is not known"),
    }
}

fn pending(snapshot: &Snapshot, job: &Fact<JobSeen>) -> Plan {
    let name = &snapshot.spec.job;
    match job {
        Fact::Absent => {
            let message =
                format!("there is no BestEffortJob {name} in this namespace: create it, then another Snapshot");
            plan(snapshot, &Outcome::Void(Reason::JobNotFound, message), "the job does not exist")
        }
        Fact::Known(job) if !job.live => {
            let message = format!("BestEffortJob {name} has ended: there is nothing to capture");
            plan(snapshot, &Outcome::Void(Reason::SnapshotVoid, message), "the job has ended")
        }
        Fact::Known(job) if matches!(job.phase, JobPhase::Running | JobPhase::Snapshotting) => {
            let message = job.no_room.clone().unwrap_or_else(|| "waiting for its turn".into());
            plan(snapshot, &Outcome::Waiting(message), "the job controller will take it up")
        }
        Fact::Known(job) => {
            let message = format!("BestEffortJob {name} is {:?}: taken as soon as it runs", job.phase);
            plan(snapshot, &Outcome::Waiting(message), "the job does not run")
        }
        Fact::Unknown { .. } => {
            plan(snapshot, &Outcome::Waiting("the job is not known yet".into()), "the job is not known")
        }
    }
}

fn captured(snapshot: &Snapshot, present: &SnapshotStatus, seen: &Seen) -> Plan {
    let transfer = present.transfer.clone().unwrap_or_default();
    let soon = |mut plan: Plan| {
        plan.wake = Some(SOON);
        plan
    };
    let under_way = |message: &str| Outcome::Transferring(message.into());
    if !depends_on_content(snapshot, &seen.job) {
        let message = match transfer.state {
            TransferState::Pending => "captured; waiting for its transfer",
            TransferState::Sending | TransferState::Published | TransferState::Failed => "its bytes leave the nodes",
        };
        return plan(snapshot, &under_way(message), "the transfer is under way");
    }
    let Some(content) = seen.content.known() else {
        let message = "the repository does not answer";
        return soon(plan(snapshot, &under_way(message), "the repository is not known"));
    };
    let complete = content
        .generations
        .iter()
        .find(|g| Some(g.generation) == present.generation && g.incarnation == present.incarnation);
    if let Some(summary) = complete {
        let outcome = Outcome::Stored { bytes: Some(summary.stored) };
        return plan(snapshot, &outcome, "the repository has its manifest");
    }
    if let Some(why) = present.generation.and_then(|generation| content.damage(generation)) {
        let message = format!("it was stored and is damaged in the repository: {why}");
        return plan(snapshot, &Outcome::Void(Reason::SnapshotDamaged, message), "damaged in the repository");
    }
    match transfer.state {
        TransferState::Failed => {
            let message = transfer.message.unwrap_or_else(|| "the transfer failed".into());
            let mut plan = plan(snapshot, &Outcome::Void(Reason::TransferFailed, message), "the transfer failed");
            if let (Some(job), Some(generation)) = (job_uid(snapshot), present.generation) {
                plan.effects.push(Effect::GiveUp { job, generation });
            }
            plan
        }
        // published by its own word only: either the repository is behind, or somebody removed it there
        TransferState::Published => soon(plan(
            snapshot,
            &under_way("said to be published, but the repository does not have it"),
            "the repository does not confirm it",
        )),
        TransferState::Pending | TransferState::Sending => {
            let overtaken = content.fence > present.incarnation || matches!(seen.job, Fact::Absent);
            if overtaken {
                let message = "the job was lost, or went back to an older generation, before it was stored";
                plan(snapshot, &Outcome::Void(Reason::SnapshotVoid, message.into()), "overtaken before it was stored")
            } else {
                // it may still be published until the repository has been told of the new incarnation
                soon(plan(snapshot, &under_way("its bytes leave the nodes"), "overtaken, not yet fenced"))
            }
        }
    }
}

fn deleted(snapshot: &Snapshot, seen: &Seen) -> Plan {
    let present = snapshot.status.clone().unwrap_or_default();
    let end = |effects: Vec<Effect>, why: &'static str| Plan {
        status: present.clone(),
        effects,
        notes: Vec::new(),
        wake: None,
        why,
    };
    if !held(snapshot) {
        return end(Vec::new(), "let go");
    }
    let (Some(job), Some(generation)) = (job_uid(snapshot), present.generation) else {
        return end(vec![Effect::RemoveFinalizer], "there never was a generation");
    };
    let retire = Effect::Retire { job: job.clone(), generation };
    let hold = |message: String, why: &'static str| plan(snapshot, &Outcome::Held(present.phase, message), why);
    if let Some(name) = &seen.copied_by {
        let message = format!(
            "BestEffortJob {name} begins with it and is being given a copy: deleted once it has one, or is deleted"
        );
        return hold(message, "being copied");
    }
    match &seen.job {
        Fact::Unknown { .. } => hold("the job is not known".into(), "the job is not known"),
        Fact::Absent if seen.siblings == 0 => {
            end(vec![Effect::RemoveContent { job }, Effect::RemoveFinalizer], "the last of a job that is gone")
        }
        Fact::Absent => end(vec![retire, Effect::RemoveFinalizer], "the job is gone"),
        Fact::Known(owner) if !owner.live => end(vec![retire, Effect::RemoveFinalizer], "the job needs it no more"),
        Fact::Known(owner) => {
            let name = &snapshot.spec.job;
            let unfinished = matches!(present.phase, SnapshotPhase::Capturing | SnapshotPhase::Captured);
            if unfinished && owner.incarnation == present.incarnation {
                return hold("it is being taken: deleted when it is stored or void".into(), "being taken");
            }
            if owner.restoring == Some(generation) {
                return hold(format!("BestEffortJob {name} is being restored from it"), "being restored");
            }
            match &seen.content {
                Fact::Unknown { .. } => hold("the repository does not answer".into(), "the repository is not known"),
                Fact::Known(content)
                    if newest(content) == Some(generation) || owner.falls_back_to == Some(generation) =>
                {
                    hold(
                        format!(
                            "it is the newest complete generation of BestEffortJob {name}: deleted when a newer one is \
                         stored, or with the job"
                        ),
                        "the last complete generation of a live job",
                    )
                }
                Fact::Known(_) | Fact::Absent => end(vec![retire, Effect::RemoveFinalizer], "retired"),
            }
        }
    }
}

fn newest(content: &JobContent) -> Option<Generation> {
    content.generations.iter().map(|summary| summary.generation).max()
}

#[cfg(test)]
mod tests;
