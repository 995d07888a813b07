//! What to do about a job, given what was seen and the time. Pure and total: no IO, no clock, no error.
//!
//! One file for each stretch of a job's life below this one. Deletion, suspension and the deadline
//! are inputs of the same machine as everything else.

mod absorb;
mod admit;
mod adopt;
mod capture;
mod deploy;
mod down;
mod draft;
mod evacuate;
mod finish;
mod fit;
mod give_back;
mod hypervisor;
mod lose;
mod master;
mod members;
mod nodes_leave;
mod pace;
mod period;
mod period_reason;
mod place;
mod queue;
mod quota;
mod run;
mod seats;
mod start;
mod store;
#[cfg(test)]
mod tests;
mod tokens;
mod unfit;

use jiff::Timestamp;

use self::draft::{Draft, after, since};
pub(crate) use self::{
    admit::fits,
    draft::sent_key,
    fit::incompatible,
    master::{called, nodes, wanted},
    members::stuck,
    seats::called_slots,
    unfit::left_out_of,
};
use super::plan::{Effect, Plan, Seen};
use crate::api::{BestEffortJob, FINALIZER, JobPhase};

/// What the job is to come to, as things stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// Run to its end.
    Run,
    /// Stand by, holding nothing.
    Suspend,
    /// Vanish.
    Delete,
    /// Fail: its time is over.
    Expire,
}

/// Decides.
pub fn decide(job: &BestEffortJob, seen: &Seen, now: Timestamp) -> Plan {
    let mut d = Draft::new(job, seen, now);
    let held = job.metadata.finalizers.iter().flatten().any(|name| name == FINALIZER);
    let deleting = job.metadata.deletion_timestamp.is_some();
    if !held {
        d.because(if deleting { "let go already" } else { "held first" });
        if !deleting {
            d.effect(Effect::AddFinalizer);
        }
        return d.finish();
    }
    d.status.observed_generation = d.generation();
    d.heed_new_spec();
    let over = d.absorb();
    d.slots_over(over);
    let goal = goal(&d);
    d.track_capture();
    step(&mut d, goal);
    d.tend_tokens();
    d.show_stored();
    d.show_master();
    d.status.held = super::status::held(&d.status, job);
    super::status::conditions(&mut d.status, job, seen, now);
    for (reason, message) in super::status::news(job.status.as_ref(), &d.status) {
        d.warn(reason, message);
    }
    d.finish()
}

fn goal(d: &Draft<'_>) -> Goal {
    if d.job.metadata.deletion_timestamp.is_some() {
        Goal::Delete
    } else if deadline(d).is_some_and(|end| d.now >= end) {
        Goal::Expire
    } else if d.job.spec.suspend || d.status.suspended.as_ref().is_some_and(|suspended| suspended.by_site) {
        Goal::Suspend
    } else {
        Goal::Run
    }
}

/// When the job fails if it has not succeeded: suspensions do not count.
fn deadline(d: &Draft<'_>) -> Option<Timestamp> {
    let length = std::time::Duration::from(d.job.spec.active_deadline?);
    let created = d.job.metadata.creation_timestamp.as_ref()?.0;
    let suspended = d.status.suspended.as_ref().map_or(0, |suspended| since(suspended.since.0, d.now).as_secs());
    let pauses = std::time::Duration::from_secs(d.status.suspended_seconds + suspended);
    Some(after(after(created, length), pauses))
}

fn step(d: &mut Draft<'_>, goal: Goal) {
    match (d.status.phase, goal) {
        (JobPhase::Terminating, Goal::Run | Goal::Suspend | Goal::Expire | Goal::Delete)
        | (
            JobPhase::Pending
            | JobPhase::ImagePreparing
            | JobPhase::Queued
            | JobPhase::Deploying
            | JobPhase::Starting
            | JobPhase::Restoring
            | JobPhase::Running
            | JobPhase::Snapshotting
            | JobPhase::Evacuating
            | JobPhase::Completing
            | JobPhase::Suspended
            | JobPhase::Succeeded
            | JobPhase::Failed,
            Goal::Delete,
        ) => d.terminate(),
        (JobPhase::Succeeded | JobPhase::Failed, Goal::Run | Goal::Suspend | Goal::Expire) => d.finished(),
        (
            JobPhase::Pending
            | JobPhase::ImagePreparing
            | JobPhase::Queued
            | JobPhase::Deploying
            | JobPhase::Starting
            | JobPhase::Restoring
            | JobPhase::Running
            | JobPhase::Snapshotting
            | JobPhase::Evacuating
            | JobPhase::Completing
            | JobPhase::Suspended,
            Goal::Expire,
        ) => d.expire(),
        (JobPhase::Completing, Goal::Run | Goal::Suspend) => d.complete(),
        (JobPhase::Pending | JobPhase::ImagePreparing, Goal::Run) => d.admit(),
        (JobPhase::Queued, Goal::Run) => d.queued(),
        (JobPhase::Deploying | JobPhase::Starting | JobPhase::Restoring, Goal::Run) => d.deploy(),
        (JobPhase::Running | JobPhase::Snapshotting, Goal::Run | Goal::Suspend) => d.run(goal == Goal::Suspend),
        (JobPhase::Evacuating, Goal::Run | Goal::Suspend) => d.evacuate(goal == Goal::Suspend),
        (JobPhase::Suspended, Goal::Run) => d.resume(),
        (JobPhase::Suspended, Goal::Suspend) => d.suspended(),
        (
            JobPhase::Pending
            | JobPhase::ImagePreparing
            | JobPhase::Queued
            | JobPhase::Deploying
            | JobPhase::Starting
            | JobPhase::Restoring,
            Goal::Suspend,
        ) => d.suspend_before_running(),
    }
    if let Some(end) = deadline(d)
        && !matches!(d.status.phase, JobPhase::Succeeded | JobPhase::Failed | JobPhase::Terminating)
    {
        d.wake_at(end);
    }
}
