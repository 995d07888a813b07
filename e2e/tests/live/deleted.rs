//! A job deleted in any phase leaves nothing: no OAR job, pod, VM, lock, interface or file.

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::{
    TestBed, Turn,
    job::{Counting, Job, nodes},
    rival::Rival,
    testbed::until,
    world::{BOOT, gone, running},
};
use kube::{Api, api::PostParams};
use vmdeploy::api::{BestEffortJob, JobPhase, job::ImageReference};

/// A job that is deleted in a phase. The phase may be over before it is seen: then what comes next is deleted.
async fn deleted_in(
    bed: &TestBed,
    namespace: &str,
    phase: JobPhase,
    change: impl FnOnce(&mut BestEffortJob),
) -> Result<()> {
    let name = format!("{phase:?}").to_lowercase();
    let mut object = Counting { ticks: 5000, period: 5, ..Counting::default() }.object(&name)?;
    change(&mut object);
    let job = Job::create(bed, namespace, &object).await?;
    reach(&job, phase).await?;
    gone(bed, &job).await.with_context(|| format!("deleted in {phase:?}"))
}

async fn reach(job: &Job, phase: JobPhase) -> Result<()> {
    use JobPhase::{Completing, Deploying, Evacuating, Queued, Running, Starting, Succeeded, Suspended};
    let next: &[JobPhase] = match phase {
        JobPhase::ImagePreparing => &[Queued, Deploying],
        Queued => &[Deploying, Starting, Running],
        Deploying => &[Starting, Running],
        Starting | JobPhase::Restoring => &[Running],
        Evacuating => &[Suspended],
        Completing => &[Succeeded],
        _ => &[],
    };
    let what = format!("{phase:?}");
    let seen = until(&what, BOOT, async || {
        let seen = job.get().await?.status.map(|status| status.phase);
        Ok(seen.filter(|seen| *seen == phase || next.contains(seen)))
    });
    let seen = seen.await?;
    if seen != phase {
        eprintln!("{phase:?} was over, deleted in {seen:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn before_it_has_slots() -> Result<()> {
    let Some(bed) = Turn::with(1).await? else { return Ok(()) };
    let namespace = bed.namespace("deleted-before").await?;
    deleted_in(&bed, &namespace, JobPhase::Pending, |job| job.spec.slots.site = "nowhere".into()).await?;
    deleted_in(&bed, &namespace, JobPhase::Suspended, |job| job.spec.suspend = true).await?;
    let other = bed.namespace("deleted-image").await?;
    let mut image = bed.image()?;
    image.metadata.name = Some("own".into());
    Api::namespaced(bed.client.clone(), &other).create(&PostParams::default(), &image).await?;
    let own = |job: &mut BestEffortJob| job.spec.image = Some(ImageReference { name: "own".into() });
    deleted_in(&bed, &other, JobPhase::ImagePreparing, own).await?;
    let deadline = Duration::from_secs(1);
    deleted_in(&bed, &namespace, JobPhase::Failed, |job| {
        job.spec.active_deadline = Some(deadline.into());
        job.spec.image = Some(ImageReference { name: "no-such".into() });
    })
    .await?;
    deleted_in(&bed, &namespace, JobPhase::Queued, |_| {}).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn while_it_starts() -> Result<()> {
    let Some(bed) = Turn::with(1).await? else { return Ok(()) };
    let namespace = bed.namespace("deleted-early").await?;
    deleted_in(&bed, &namespace, JobPhase::Deploying, |_| {}).await?;
    deleted_in(&bed, &namespace, JobPhase::Starting, |_| {}).await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_runs() -> Result<()> {
    let Some(bed) = Turn::with(1).await? else { return Ok(()) };
    let namespace = bed.namespace("deleted-running").await?;
    deleted_in(&bed, &namespace, JobPhase::Running, |_| {}).await?;
    deleted_in(&bed, &namespace, JobPhase::Snapshotting, |_| {}).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn while_it_leaves() -> Result<()> {
    let Some(bed) = Turn::with(1).await? else { return Ok(()) };
    let (job, _) = running(&bed, "deleted-leaving", &Counting { ticks: 5000, ..Counting::default() }).await?;
    job.correct(|spec| spec.suspend = true).await?;
    reach(&job, JobPhase::Evacuating).await?;
    gone(&bed, &job).await.context("deleted in Evacuating")
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_comes_back() -> Result<()> {
    let Some(bed) = Turn::with(1).await? else { return Ok(()) };
    let counting = Counting { ticks: 5000, grace: 0, period: 5, ..Counting::default() };
    let (job, _) = running(&bed, "deleted-back", &counting).await?;
    let _rival = Rival::submit(&bed, &nodes(&job.get().await?), Duration::from_secs(1))?;
    job.wait("the loss", BOOT, |job| (job.status.as_ref()?.attempt == 2).then_some(())).await?;
    reach(&job, JobPhase::Restoring).await?;
    gone(&bed, &job).await.context("deleted in Restoring")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn when_it_has_ended() -> Result<()> {
    let Some(bed) = Turn::with(1).await? else { return Ok(()) };
    let namespace = bed.namespace("deleted-ended").await?;
    let short = |job: &mut BestEffortJob| {
        job.spec.run.env.insert("TICKS".into(), "5".into());
    };
    deleted_in(&bed, &namespace, JobPhase::Completing, short).await?;
    deleted_in(&bed, &namespace, JobPhase::Succeeded, short).await
}
