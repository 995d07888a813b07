//! Bad input is refused in seconds with a message that says what to change; a corrected object goes on.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{
    TestBed,
    job::{Counting, Job},
    site::unfinished,
};
use vmdeploy::api::{BestEffortJobSpec, JobPhase, job::SecretReference, quantity::Bytes};

const SECONDS: Duration = Duration::from_secs(20);

/// A job with a mistake gets this reason, with these words in its message; without the mistake it queues.
async fn mistake(
    bed: &TestBed,
    namespace: &str,
    name: &str,
    (reason, words): (&str, &str),
    change: impl FnOnce(&mut BestEffortJobSpec),
) -> Result<()> {
    let good = Counting { ticks: 5, ..Counting::default() }.object(name)?;
    let mut bad = good.clone();
    change(&mut bad.spec);
    let job = Job::create(bed, namespace, &bad).await?;
    job.wait(&format!("{name}: {reason} with {words:?}"), SECONDS, |job| {
        let conditions = &job.status.as_ref()?.conditions;
        conditions.iter().any(|c| c.type_ == "Ready" && c.reason == reason && c.message.contains(words)).then_some(())
    })
    .await?;
    let submissions = job.get().await?.status.map_or(0, |status| status.submission);
    ensure!(submissions <= 1, "{name}: {submissions} requests for slots");
    ensure!(unfinished(&job.uid).await?.is_empty(), "{name}: something is left at the site");
    job.correct(|spec| *spec = good.spec).await?;
    job.wait(&format!("{name} accepted"), SECONDS * 2, |job| {
        let phase = job.status.as_ref()?.phase;
        (!matches!(phase, JobPhase::Pending | JobPhase::ImagePreparing)).then_some(())
    })
    .await?;
    job.delete(Duration::from_secs(90)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_said_in_seconds_and_mended_by_apply() -> Result<()> {
    let Some(bed) = TestBed::find().await? else { return Ok(()) };
    let namespace = bed.namespace("mistakes").await?;
    let bed = &bed;
    mistake(bed, &namespace, "site", ("UnknownSite", "nowhere"), |spec| spec.slots.site = "nowhere".into()).await?;
    mistake(bed, &namespace, "image", ("ImageNotFound", "no-such"), |spec| {
        if let Some(image) = &mut spec.image {
            image.name = "no-such".into();
        }
    })
    .await?;
    mistake(bed, &namespace, "memory", ("MemoryTooLarge", "2Gi"), |spec| spec.vm.memory = Bytes(1 << 40)).await?;
    mistake(bed, &namespace, "account", ("CredentialsMissing", "oar-nobody"), |spec| {
        spec.slots.credentials = Some(SecretReference { name: "oar-nobody".into() });
    })
    .await?;
    mistake(bed, &namespace, "members", ("NotEnoughNodes", ""), |spec| spec.members = 40).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_job_leaves_nothing_in_any_phase() -> Result<()> {
    let Some(bed) = TestBed::find().await? else { return Ok(()) };
    let namespace = bed.namespace("deleted").await?;
    for phase in [JobPhase::Queued, JobPhase::Deploying, JobPhase::Starting, JobPhase::Running, JobPhase::Snapshotting]
    {
        let counting = Counting { ticks: 5000, period: 5, ..Counting::default() };
        let name = format!("{phase:?}").to_lowercase();
        let job = Job::create(&bed, &namespace, &counting.object(&name)?).await?;
        // the phase may be over before it is seen: then what comes next is deleted
        job.wait(&name, Duration::from_secs(90), |job| {
            let seen = job.status.as_ref()?.phase;
            let reached = seen == phase || (phase != JobPhase::Snapshotting && seen == JobPhase::Running);
            reached.then_some(())
        })
        .await?;
        job.delete(Duration::from_secs(90)).await?;
        ensure!(unfinished(&job.uid).await?.is_empty(), "{name}: a job is left at the site");
        ensure!(job.snapshots().await?.is_empty(), "{name}: a Snapshot is left");
        for node in ["node-1", "node-2", "node-3", "node-4"] {
            ensure!(bed.qemu_on(node)? == 0, "{name}: QEMU is left on {node}");
        }
    }
    Ok(())
}
