//! What the job's namespace has in the repository; asked for only where a decision may depend on it.

use std::collections::BTreeSet;

use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, JobPhase,
        snapshot::{SnapshotPhase, SnapshotReason},
    },
    controller::job::{Context, plan},
    driver::Fact,
    names::JobUid,
    store::quota::{Room, Wanted, of_namespace, sum},
};

/// Room for the job; absent: its namespace has no quota. Not known also where nobody needs to know.
pub(super) async fn observe(job: &BestEffortJob, status: &BestEffortJobStatus, ctx: &Context) -> Fact<Room> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let Some(limit) = ctx.config.quota.of(namespace) else { return Fact::Absent };
    let since = ctx.clock.now();
    if !is_needed(job, status, ctx) {
        return Fact::Unknown { since };
    }
    let uid = plan::uid(job);
    let usage = match ctx.repository.usage().await {
        Ok(usage) => usage,
        Err(error) => {
            tracing::warn!(job = %uid, %error, "the repository does not say what it has");
            return Fact::Unknown { since };
        }
    };
    let jobs: Vec<_> =
        ctx.view.jobs().into_iter().filter(|other| other.metadata.namespace.as_deref() == Some(namespace)).collect();
    let here: BTreeSet<JobUid> = jobs.iter().map(|job| plan::uid(job)).collect();
    let ours = || of_namespace(&usage, namespace, |job| here.contains(job));
    let of_others = || jobs.iter().filter(|other| plan::uid(other) != uid);
    let over = |phase| matches!(phase, JobPhase::Succeeded | JobPhase::Failed | JobPhase::Terminating);
    let captures = of_others().filter_map(|other| {
        let status = other.status.as_ref().filter(|status| !over(status.phase))?;
        Some(status.snapshots.capture.as_ref()?.reserved)
    });
    Fact::Known(Room {
        limit,
        used: sum(ours()),
        own: sum(ours().filter(|of| of.job == uid)),
        reserved: captures.fold(0, u64::saturating_add),
        accepted: of_others().filter_map(|other| accepted_for(other)).fold(0, u64::saturating_add),
    })
}

/// What a job was accepted for that has stored nothing yet: from then on, what it has counts.
fn accepted_for(job: &BestEffortJob) -> Option<u64> {
    let status = job.status.as_ref().filter(|status| status.snapshots.last_stored.is_none())?;
    let before = matches!(status.phase, JobPhase::Pending | JobPhase::ImagePreparing);
    let over = matches!(status.phase, JobPhase::Succeeded | JobPhase::Failed | JobPhase::Terminating);
    let image = status.image.as_ref().filter(|_| !before && !over)?;
    Some(Wanted::by(&job.spec, image.virtual_size).bytes())
}

fn is_needed(job: &BestEffortJob, status: &BestEffortJobStatus, ctx: &Context) -> bool {
    let asked = || {
        let (namespace, name) = (job.metadata.namespace.as_deref(), job.metadata.name.as_deref());
        let all = ctx.view.snapshots(namespace.unwrap_or_default(), name.unwrap_or_default());
        all.iter().any(|snapshot| {
            let phase = snapshot.status.as_ref().map_or(SnapshotPhase::Pending, |status| status.phase);
            snapshot.reason() == SnapshotReason::User && phase == SnapshotPhase::Pending
        })
    };
    match status.phase {
        JobPhase::Pending | JobPhase::ImagePreparing | JobPhase::Queued => status.started.is_none(),
        JobPhase::Running | JobPhase::Snapshotting => {
            let due = status.snapshots.next_at.as_ref().is_some_and(|at| ctx.clock.now() >= at.0);
            status.snapshots.capture.is_none() && (due || asked())
        }
        JobPhase::Deploying
        | JobPhase::Starting
        | JobPhase::Restoring
        | JobPhase::Evacuating
        | JobPhase::Completing
        | JobPhase::Succeeded
        | JobPhase::Failed
        | JobPhase::Suspended
        | JobPhase::Terminating => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::{
        api::{job_status::CaptureStatus, quantity::Bytes},
        controller::job::testing::Stage,
        driver::repository::{
            Repository as _,
            fake::{FakeRepository, Trouble},
        },
        store::manifest::tests::manifest,
    };

    const LIMIT: u64 = 1 << 30;

    /// A world whose job `pi` of namespace `team` has a generation, as has a job that is gone and one of
    /// somebody else.
    async fn stage() -> (Stage, FakeRepository, u64) {
        let mut stage = Stage::new();
        let mut config = (*stage.ctx.config).clone();
        config.quota.namespaces.insert("team".into(), Bytes(LIMIT));
        stage.ctx.config = Arc::new(config);
        let repository = FakeRepository::trusting();
        for (job, namespace) in [(stage.uid.0.as_str(), "team"), ("gone", "team"), ("else", "others")] {
            let mut made = manifest(1);
            (made.job, made.namespace) = (job.into(), namespace.into());
            repository.publish(&made).await.unwrap();
        }
        stage.ctx.repository = Arc::new(repository.clone());
        (stage, repository, manifest(1).stored())
    }

    fn running(stage: &Stage, due: bool) -> BestEffortJobStatus {
        let mut status = BestEffortJobStatus { phase: JobPhase::Running, ..BestEffortJobStatus::default() };
        let now = stage.ctx.clock.now();
        status.started = Some(Time(now));
        status.snapshots.next_at = Some(Time(if due { now } else { now + Duration::from_secs(60) }));
        status
    }

    #[tokio::test]
    async fn c2_all_jobs_of_the_namespace_count_and_captures_under_way() {
        let (stage, _, each) = stage().await;
        let room = Room { limit: LIMIT, used: 2 * each, own: each, reserved: 0, accepted: 0 };
        let job = stage.job();
        assert_eq!(observe(&job, &BestEffortJobStatus::default(), &stage.ctx).await, Fact::Known(room));
        let mut other = stage.job();
        (other.metadata.name, other.metadata.uid) = (Some("e".into()), Some("e".into()));
        let mut status = running(&stage, true);
        status.snapshots.capture = Some(CaptureStatus {
            generation: 1,
            incarnation: 1,
            reason: SnapshotReason::Periodic,
            since: Time(stage.ctx.clock.now()),
            snapshot: "e-1".into(),
            resume: true,
            captured: false,
            taken_at: None,
            work: 0,
            reserved: 77,
            quota: None,
        });
        status.snapshots.last_stored = Some(1);
        other.status = Some(status);
        stage.cluster.put_job(other);
        let found = observe(&job, &running(&stage, true), &stage.ctx).await;
        assert_eq!(found, Fact::Known(Room { reserved: 77, ..room }));
    }

    #[tokio::test]
    async fn c2_what_jobs_were_accepted_for_counts_until_they_have_stored_something() {
        let (stage, ..) = stage().await;
        let mut other = stage.job();
        (other.metadata.name, other.metadata.uid) = (Some("e".into()), Some("e".into()));
        let mut status = BestEffortJobStatus { phase: JobPhase::Queued, ..BestEffortJobStatus::default() };
        status.image = Some(crate::api::job_status::ResolvedImage {
            namespace: "team".into(),
            name: "debian".into(),
            disk: "sha256:0".into(),
            virtual_size: 1 << 20,
            kernel: None,
            initrd: None,
            params: None,
        });
        let full = crate::store::quota::full_generation(&other.spec.vm, 1 << 20, other.spec.members);
        let accepted = |status: &BestEffortJobStatus| {
            accepted_for(&BestEffortJob { status: Some(status.clone()), ..other.clone() })
        };
        assert_eq!(accepted(&status), Some(3 * full));
        stage.cluster.put_job(BestEffortJob { status: Some(status.clone()), ..other.clone() });
        let room = observe(&stage.job(), &BestEffortJobStatus::default(), &stage.ctx).await;
        assert_eq!(room.known().unwrap().accepted, 3 * full);
        status.phase = JobPhase::Pending;
        assert_eq!(accepted(&status), None);
        (status.phase, status.snapshots.last_stored) = (JobPhase::Running, Some(1));
        assert_eq!(accepted(&status), None);
    }

    #[tokio::test]
    async fn c2_nobody_is_asked_where_nothing_depends_on_it() {
        let (mut stage, repository, _) = stage().await;
        let job = stage.job();
        let unknown = |room: &Fact<Room>| matches!(room, Fact::Unknown { .. });
        assert!(unknown(&observe(&job, &running(&stage, false), &stage.ctx).await));
        repository.set_trouble(Trouble::Unreachable);
        assert!(unknown(&observe(&job, &running(&stage, true), &stage.ctx).await));
        let mut config = (*stage.ctx.config).clone();
        config.quota.namespaces.clear();
        stage.ctx.config = Arc::new(config.clone());
        assert_eq!(observe(&job, &running(&stage, true), &stage.ctx).await, Fact::Absent);
        config.quota.default = Some(Bytes(1));
        assert_eq!(config.quota.of("team"), Some(1));
    }
}
