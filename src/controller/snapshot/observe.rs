//! Reads what a decision about a snapshot needs. Writes nothing. The repository is asked only when
//! the decision depends on it.

use super::{
    Context,
    decide::{JobSeen, Seen, depends_on_content, job_uid},
};
use crate::{
    api::{BestEffortJob, JobPhase, Snapshot},
    driver::{Fact, repository::RepositoryError},
    names::JobUid,
};

/// The facts.
pub async fn observe(snapshot: &Snapshot, context: &Context) -> Seen {
    let namespace = snapshot.metadata.namespace.as_deref().unwrap_or_default();
    let found = context.view.job(namespace, &snapshot.spec.job).map(|job| job_seen(&job));
    let job = match found {
        // the name may belong to a later job
        Some(job) if job_uid(snapshot).is_none_or(|uid| uid == job.uid) => Fact::Known(job),
        Some(_) | None => Fact::Absent,
    };
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
    Seen { job, content, siblings: others.count() }
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
        falls_back_to: status.snapshots.last_stored,
        restoring: origin.filter(|_| matches!(status.phase, JobPhase::Deploying | JobPhase::Restoring)),
    }
}
