//! What the repository has of the job, of its image, and of what it is to begin with; asked only where a decision may
//! depend on it.

use jiff::SignedDuration;

use super::{may_ask, namespace, waiting};
use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, JobPhase, Reason,
        job_status::{SlotState, UnfitNode},
        snapshot::SnapshotPhase,
    },
    controller::job::{
        Context,
        plan::{SnapshotSeen, SourceSeen, SourceSnapshot, beyond, uid},
    },
    driver::{
        DriverError as _, Fact,
        repository::{JobContent, RepositoryError},
        site::{SlotFacts, SlotPhase},
    },
    names::JobUid,
    store::adoption::ADOPTED,
};

/// How old what is known of a running job's generations may be.
const CONTENT_AGE: SignedDuration = SignedDuration::from_mins(5);

/// What the job is to start from instead of its image; looked for only before it asks for slots.
pub(super) async fn source(job: &BestEffortJob, status: &BestEffortJobStatus, ctx: &Context) -> Option<SourceSeen> {
    let asks = match status.phase {
        JobPhase::Pending | JobPhase::ImagePreparing => true,
        JobPhase::Queued => status.slots.is_empty() && status.pending_submission.is_none(),
        _ => false,
    };
    let from = job.spec.restore_from.as_ref().filter(|_| asks && status.started.is_none())?;
    let own = uid(job);
    let snapshot = ctx.view.snapshot(namespace(job), &from.snapshot).map(|snapshot| {
        let status = snapshot.status.clone().unwrap_or_default();
        SourceSnapshot {
            job: snapshot.spec.job.clone(),
            job_uid: status.job_uid,
            generation: status.generation.unwrap_or_default(),
            phase: status.phase,
            deleting: snapshot.metadata.deletion_timestamp.is_some(),
        }
    });
    let wanted = match &status.adopted {
        Some(adopted) if adopted.complete.is_some() => Some((own.clone(), ADOPTED)),
        Some(adopted) => Some((JobUid(adopted.job_uid.clone()), adopted.generation)),
        None => snapshot
            .as_ref()
            .filter(|snapshot| snapshot.phase == SnapshotPhase::Stored && !snapshot.deleting)
            .map(|snapshot| (JobUid(snapshot.job_uid.clone()), snapshot.generation)),
    };
    let since = ctx.clock.now();
    let mut trouble = None;
    let manifest = match wanted {
        None => Fact::Unknown { since },
        Some((of, generation)) => match ctx.repository.manifest(&of, generation).await {
            Ok(manifest) => Fact::Known(Box::new(manifest)),
            Err(RepositoryError::NotFound(why)) => {
                tracing::warn!(job = %own, why, "the generation to start from is not there");
                Fact::Absent
            }
            // whatever it is, it does not say that there is none
            Err(error) => {
                tracing::warn!(job = %own, %error, "the generation to start from cannot be had");
                trouble = why_not_adopted(&error);
                Fact::Unknown { since }
            }
        },
    };
    let refused = ctx.memory.get(&own).adoption;
    Some(SourceSeen { name: from.snapshot.clone(), snapshot, manifest, trouble, refused })
}

/// What there is to be said of it, unless the repository only does not answer.
pub(in crate::controller::job) fn why_not_adopted(error: &RepositoryError) -> Option<(Reason, String)> {
    let reason = match error {
        RepositoryError::Unreachable(_) | RepositoryError::Local { .. } => return None,
        RepositoryError::NotFound(_) => Reason::SnapshotLost,
        RepositoryError::Damaged(_) => Reason::SnapshotDamaged,
        RepositoryError::Full(_) | RepositoryError::Refused(_) | RepositoryError::TooLarge(_) => error.reason(),
    };
    Some((reason, error.to_string()))
}

/// What the repository has; asked only where a decision may depend on it.
pub(super) async fn content(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    (slots, snapshots, unfit): (&Fact<Vec<SlotFacts>>, &[SnapshotSeen], &[UnfitNode]),
    ctx: &Context,
) -> Fact<JobContent> {
    let (uid, since) = (&uid(job), ctx.clock.now());
    let runs = |id: &str| {
        slots.known().into_iter().flatten().any(|facts| facts.id.0 == id && facts.phase == SlotPhase::Running)
    };
    let waits = status.slots.iter().any(|s| s.release.is_none() && s.state != SlotState::Ended && runs(&s.id));
    let old = ctx.memory.get(uid).content_asked.is_none_or(|asked| since.duration_since(asked) > CONTENT_AGE);
    // which nodes are of use to a request that waits
    let left_out = || {
        let asked = waiting(status).and_then(|slot| slot.asked.as_ref());
        asked.is_some_and(|asked| !(asked.left_out.is_empty() && status.unfit.is_empty() && unfit.is_empty()))
    };
    // what would be restored must be known before slots are asked for
    let restores = status.started.is_some() || status.adopted.is_some();
    let needed = match status.phase {
        JobPhase::Queued => waits || (old && restores && left_out()),
        JobPhase::Deploying | JobPhase::Starting | JobPhase::Restoring | JobPhase::Terminating => true,
        JobPhase::Evacuating => status.snapshots.capture.as_ref().is_some_and(|capture| capture.captured),
        JobPhase::Pending | JobPhase::ImagePreparing => {
            status.adopted.as_ref().is_some_and(|adopted| adopted.complete.is_none())
        }
        // what has rotted is told of, and no sound generation goes for it
        JobPhase::Running | JobPhase::Snapshotting => old || !beyond(job, snapshots, |_| true).is_empty(),
        JobPhase::Completing | JobPhase::Succeeded | JobPhase::Failed | JobPhase::Suspended => false,
    };
    let needed = needed || (restores && may_ask(job, status, slots));
    if !needed {
        return Fact::Unknown { since };
    }
    ctx.memory.update(uid, |memory| memory.content_asked = Some(since));
    match ctx.repository.content(uid).await {
        Ok(content) => Fact::Known(content),
        Err(error) => {
            tracing::warn!(job = %uid, %error, "the repository does not answer");
            ctx.memory.update(uid, |memory| memory.repository_silent = Some(since));
            Fact::Unknown { since }
        }
    }
}

/// What the repository no longer has of a started job's image. Asked once no slot is left: another is
/// of no use without it. The job's own right to it is the digest, whatever became of the VmImage.
pub(super) async fn missing_image(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    slots: &Fact<Vec<SlotFacts>>,
    ctx: &Context,
) -> Fact<String> {
    let since = ctx.clock.now();
    let asked = status.started.is_some() && may_ask(job, status, slots);
    let Some(image) = status.image.as_ref().filter(|_| asked) else {
        return Fact::Unknown { since };
    };
    for digest in [Some(&image.disk), image.kernel.as_ref(), image.initrd.as_ref()].into_iter().flatten() {
        match ctx.repository.image(digest).await {
            Ok(Some(_)) => {}
            Ok(None) => return Fact::Known(digest.clone()),
            Err(error) => {
                let uid = uid(job);
                tracing::warn!(job = %uid, %error, "the repository does not answer");
                ctx.memory.update(&uid, |memory| memory.repository_silent = Some(since));
                return Fact::Unknown { since };
            }
        }
    }
    Fact::Absent
}
