//! A suspended job holds nothing, and goes on exactly where it was.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{
    Turn,
    job::{Counting, Job, nodes},
    rival::Rival,
    site::unfinished,
    turn::SEATS,
    world::{BOOT, LIFE, ends_right, given_back, printed},
};
use vmdeploy::api::{BestEffortJob, JobPhase, job::OarSlotSpec, snapshot::SnapshotReason};

async fn suspend(job: &Job, yes: bool) -> Result<()> {
    job.correct(|spec| spec.suspend = yes).await
}

async fn suspended(job: &Job) -> Result<BestEffortJob> {
    suspend(job, true).await?;
    let object = job.wait_phase(JobPhase::Suspended, BOOT).await?;
    ensure!(nodes(&object).is_empty(), "suspended, but on a node");
    given_back(job).await?;
    Ok(object)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_suspended_while_it_queues_and_while_it_runs_loses_no_tick() -> Result<()> {
    // no other case's job may be on the node that is taken
    let Some(bed) = Turn::with(SEATS).await? else { return Ok(()) };
    let namespace = bed.namespace("suspend").await?;
    // somebody else has the only node it may have
    let node = "node-4".to_owned();
    let rival = Rival::submit(&bed, std::slice::from_ref(&node), Duration::from_secs(300))?;
    rival.found(BOOT).await?;
    let counting = Counting { ticks: 150, period: 600, ..Counting::default() };
    let mut object = counting.object("count")?;
    object.spec.slots.oar =
        Some(OarSlotSpec { property: Some(format!("network_address='{node}'")), ..OarSlotSpec::default() });
    let job = Job::create(&bed, &namespace, &object).await?;
    let queued = |job: &BestEffortJob| {
        let status = job.status.as_ref()?;
        (status.phase == JobPhase::Queued && !status.slots.is_empty()).then_some(())
    };
    job.wait("waiting for a slot", BOOT, queued).await?;
    suspended(&job).await?;
    suspend(&job, false).await?;
    job.wait("waiting for a slot again", BOOT, queued).await?;
    ensure!(unfinished(&job.uid).await?.len() == 1, "resumed with {:?}", unfinished(&job.uid).await?);

    drop(rival);
    job.wait_tick(10, 1, LIFE).await?;
    let object = suspended(&job).await?;
    ensure!(bed.qemu_on(&node)? == 0, "suspended, but a VM runs");
    let stored = object.status.and_then(|status| status.snapshots.last_stored).context("nothing was captured")?;
    let snapshots = job.snapshots().await?;
    let of_suspension = |s: &&vmdeploy::api::Snapshot| s.status.as_ref().and_then(|s| s.generation) == Some(stored);
    let snapshot = snapshots.iter().find(of_suspension).context("no Snapshot of the suspension")?;
    ensure!(snapshot.spec.reason == SnapshotReason::Suspend, "{:?}", snapshot.spec.reason);
    suspend(&job, false).await?;
    ends_right(&bed, &job, &counting).await?;
    let seen = printed(&job, 0, &counting)?;
    ensure!(seen.resumed_at.len() == 1 && seen.again == 0, "{} ticks were computed again: {seen:?}", seen.again);
    Ok(())
}
