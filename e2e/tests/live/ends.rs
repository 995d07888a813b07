//! Jobs that end by themselves: their time is over, or the time after their end.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{
    Turn,
    job::{Counting, Job},
    testbed::until,
    world::{BOOT, GONE, LIFE, given_back, gone, nothing_left},
};
use vmdeploy::api::JobPhase;

/// Seconds after its end: long enough that this is seen.
const STAYS: u64 = 30;

fn seconds(n: u64) -> kube::core::Duration {
    Duration::from_secs(n).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_some_time_after_its_end() -> Result<()> {
    let Some(bed) = Turn::with(1).await? else { return Ok(()) };
    let namespace = bed.namespace("ttl").await?;
    let mut object = Counting { ticks: 10, ..Counting::default() }.object("count")?;
    object.spec.ttl_after_finished = Some(seconds(STAYS));
    let job = Job::create(&bed, &namespace, &object).await?;
    let ended = job.wait_phase(JobPhase::Succeeded, LIFE).await?.status.and_then(|s| s.ended).context("no end")?;
    job.wait_gone(GONE).await?;
    let stayed = jiff::Timestamp::now().duration_since(ended.0).as_secs();
    ensure!(stayed >= i64::try_from(STAYS)?, "gone {stayed} s after its end");
    nothing_left(&bed, &job, |_| false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_fails_at_its_deadline_and_says_so() -> Result<()> {
    let Some(bed) = Turn::with(1).await? else { return Ok(()) };
    let namespace = bed.namespace("deadline").await?;
    let mut object = Counting { ticks: 5000, ..Counting::default() }.object("count")?;
    object.spec.active_deadline = Some(seconds(3600));
    let job = Job::create(&bed, &namespace, &object).await?;
    job.wait_tick(1, 1, BOOT).await?;
    let created = job.get().await?.metadata.creation_timestamp.context("no date")?.0;
    let old = u64::try_from(jiff::Timestamp::now().duration_since(created).as_secs())?;
    job.correct(|spec| spec.active_deadline = Some(seconds(old + 3))).await?;
    let failed = until("the job's failure", BOOT, async || {
        Ok(job.get().await?.status.filter(|status| status.phase == JobPhase::Failed))
    })
    .await?;
    for (kind, value) in [("Failed", "True"), ("Ready", "False")] {
        let condition = failed.conditions.iter().find(|c| c.type_ == kind).with_context(|| format!("no {kind}"))?;
        ensure!(condition.status == value && condition.reason == "DeadlineExceeded", "{condition:?}");
        ensure!(condition.message.contains("activeDeadline"), "{condition:?}");
    }
    given_back(&job).await?;
    gone(&bed, &job).await
}
