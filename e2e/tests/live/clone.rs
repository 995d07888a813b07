//! A job that begins with a snapshot of another one, which a user has asked for: both run at once with the same memory
//! and addresses, and the second needs nothing of the first.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{
    TestBed, Turn,
    job::{Counting, Job, nodes},
    testbed::until,
    ticks::continuity,
    world::{BOOT, GONE, LIFE, counted_right, gone, nothing_left, taken},
};
use kube::{Api, api::PostParams};
use vmdeploy::api::{
    BestEffortJob, JobPhase, Snapshot, SnapshotSpec,
    job::RestoreFrom,
    job_status::NetworkStatus,
    snapshot::{SnapshotPhase, SnapshotReason},
};

/// Applies a Snapshot, and waits until it is complete.
async fn asked_for(bed: &TestBed, namespace: &str, name: &str) -> Result<()> {
    let api: Api<Snapshot> = Api::namespaced(bed.client.clone(), namespace);
    let spec = SnapshotSpec { job: "count".into(), reason: SnapshotReason::User, retain: false };
    api.create(&PostParams::default(), &Snapshot::new(name, spec)).await?;
    until("a snapshot that was asked for", BOOT, async || {
        let phase = api.get(name).await?.status.map(|status| status.phase).unwrap_or_default();
        ensure!(phase != SnapshotPhase::Failed, "the snapshot is void");
        Ok((phase == SnapshotPhase::Stored).then_some(()))
    })
    .await
}

fn network(job: &BestEffortJob) -> Result<NetworkStatus> {
    job.status.as_ref().and_then(|status| status.network.clone()).context("the job has no network")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn b11_a_clone_runs_beside_its_source_and_goes_on_without_it() -> Result<()> {
    let Some(bed) = Turn::with(2).await? else { return Ok(()) };
    let namespace = bed.namespace("clone").await?;
    // no snapshot but the one that is asked for
    let counting = Counting { ticks: 600, period: 3000, ..Counting::default() };
    let source = Job::create(&bed, &namespace, &counting.object("count")?).await?;
    source.wait_tick(5, 1, BOOT).await?;
    asked_for(&bed, &namespace, "mine").await?;

    let mut object = counting.object("again")?;
    object.spec.image = None;
    object.spec.restore_from = Some(RestoreFrom { snapshot: "mine".into() });
    // killed without notice it has nothing to go back to but what it began with
    object.spec.snapshots.grace = Duration::ZERO.into();
    let clone = Job::create(&bed, &namespace, &object).await?;
    clone.wait_tick(5, 1, BOOT).await?;
    let (theirs, own) = (source.get().await?, clone.get().await?);
    let phase = theirs.status.as_ref().map(|status| status.phase);
    ensure!(phase == Some(JobPhase::Running), "the source does not run beside its clone: {phase:?}");
    let (of_source, of_clone) = (network(&theirs)?, network(&own)?);
    ensure!(of_source.subnet == of_clone.subnet && of_source.vni != of_clone.vni, "{of_source:?} {of_clone:?}");
    let reached = |job: &Job| job.output.last_tick(0).unwrap_or_default();
    let (at, clone_at) = (reached(&source), reached(&clone));
    source.wait_tick(at + 10, 1, BOOT).await?;
    clone.wait_tick(clone_at + 10, 1, BOOT).await?;

    source.delete(GONE).await?;
    nothing_left(&bed, &source, |_| false).await?;
    taken(&bed, &nodes(&clone.get().await?)).await?;
    clone.wait_runs(2, 1, LIFE).await?;
    let end = counted_right(&clone, &counting).await?;
    let status = end.status.context("no status")?;
    let from = status.origin.and_then(|origin| origin.generation);
    ensure!(from == Some(0) && status.incarnation == 2, "incarnation {} from {from:?}", status.incarnation);
    // what both have printed is one count, with one nonce
    let runs = [source.output.ticks(0), clone.output.ticks(0)].concat();
    let seen = continuity(&runs).context("the source, and then the clone")?;
    ensure!(seen.last == u64::from(counting.ticks) && seen.resumed_at.len() == 2, "{seen:?}");
    gone(&bed, &clone).await
}
