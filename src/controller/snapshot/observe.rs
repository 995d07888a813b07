//! Reads what a decision about a snapshot needs. Writes nothing. The repository is asked only when
//! the decision depends on it.

use super::{
    Context,
    decide::{JobSeen, Seen, depends_on_content, job_uid},
};
use crate::{
    api::{BestEffortJob, ConditionType, JobPhase, Reason, Snapshot, conditions},
    driver::{Fact, repository::RepositoryError},
    names::JobUid,
};

/// The facts.
pub async fn observe(snapshot: &Snapshot, context: &Context) -> Seen {
    let namespace = snapshot.metadata.namespace.as_deref().unwrap_or_default();
    let job = job(snapshot, namespace, context).await;
    let content = match job_uid(snapshot).filter(|_| depends_on_content(snapshot, &job)) {
        Some(uid) => match context.repository.content(&uid).await {
            Ok(content) => Fact::Known(content),
            Err(error) => {
                log(snapshot, &error);
                Fact::Unknown { since: context.clock.now() }
            }
        },
        None => Fact::Unknown { since: context.clock.now() },
    };
    let of_same_job = context.view.snapshots(namespace, &snapshot.spec.job);
    let others = of_same_job.iter().filter(|other| {
        other.metadata.uid != snapshot.metadata.uid && job_uid(other).is_some() && job_uid(other) == job_uid(snapshot)
    });
    // one that cannot be read may be of this job
    let siblings = others.count() + usize::from(!context.view.has_all_snapshots(namespace));
    Seen { job, content, copied_by: copied_by(snapshot, namespace, context), siblings }
}

/// A job whose status says that this generation is being copied for it (safety B11).
fn copied_by(snapshot: &Snapshot, namespace: &str, context: &Context) -> Option<String> {
    snapshot.metadata.deletion_timestamp.as_ref()?;
    let (uid, generation) = (job_uid(snapshot)?, snapshot.status.as_ref()?.generation?);
    let copies = |job: &BestEffortJob| {
        let status = job.status.as_ref().filter(|_| job.metadata.deletion_timestamp.is_none());
        let open = status.filter(|status| !matches!(status.phase, JobPhase::Succeeded | JobPhase::Failed));
        let adopted = open.and_then(|status| status.adopted.as_ref()).filter(|adopted| adopted.complete.is_none());
        adopted.is_some_and(|adopted| (adopted.job_uid.as_str(), adopted.generation) == (uid.0.as_str(), generation))
    };
    let jobs = context.view.jobs();
    let found = jobs.iter().find(|job| job.metadata.namespace.as_deref() == Some(namespace) && copies(job))?;
    found.metadata.name.clone()
}

/// The job, or a later one of its name. What is not seen is only gone if the API server says so: it may
/// be one that cannot be read, or one that the watch has not brought yet.
async fn job(snapshot: &Snapshot, namespace: &str, context: &Context) -> Fact<JobSeen> {
    let (name, uid) = (&snapshot.spec.job, job_uid(snapshot));
    let found = context.view.job(namespace, name).map(|job| job_seen(&job));
    if let Some(job) = found.filter(|job| uid.as_ref().is_none_or(|uid| *uid == job.uid)) {
        return Fact::Known(job);
    }
    match context.view.job_is_gone(namespace, name, uid.as_ref()).await {
        Ok(true) => Fact::Absent,
        Ok(false) => Fact::Unknown { since: context.clock.now() },
        Err(error) => {
            tracing::warn!(snapshot = snapshot.metadata.name, %error, "failed to ask for the job");
            Fact::Unknown { since: context.clock.now() }
        }
    }
}

fn log(snapshot: &Snapshot, error: &RepositoryError) {
    tracing::warn!(snapshot = snapshot.metadata.name, %error, "failed to read the repository");
}

fn job_seen(job: &BestEffortJob) -> JobSeen {
    let status = job.status.clone().unwrap_or_default();
    let ended = matches!(status.phase, JobPhase::Succeeded | JobPhase::Failed);
    let origin = status.origin.as_ref().and_then(|origin| origin.generation);
    JobSeen {
        uid: JobUid(job.metadata.uid.clone().unwrap_or_default()),
        live: job.metadata.deletion_timestamp.is_none() && !ended,
        phase: status.phase,
        incarnation: status.incarnation,
        capturing: status.snapshots.capture.as_ref().map(|capture| capture.generation),
        next_generation: status.snapshots.next_generation,
        no_room: conditions::get(&status.conditions, ConditionType::SnapshotFailed)
            .filter(|failed| failed.reason == Reason::QuotaExceeded.name())
            .map(|failed| failed.message.clone()),
        falls_back_to: status.snapshots.last_stored,
        restoring: origin.filter(|_| matches!(status.phase, JobPhase::Deploying | JobPhase::Restoring)),
    }
}

#[cfg(test)]
#[path = "observe_tests.rs"]
mod tests;
