//! What the cases on the test bed have in common: the stories of jobs that count.

use std::time::Duration;

use crate::{
    TestBed,
    job::{Counting, Job, nodes},
    left::left,
    rival::Rival,
    testbed::until,
    ticks::{Continuity, Tick, continuity, tick},
};
use anyhow::{Context as _, Result, bail, ensure};
use vmdeploy::api::{BestEffortJob, JobPhase};

/// Longest time until a job computes.
pub const BOOT: Duration = Duration::from_secs(240);
/// Longest time for the rest of its life.
pub const LIFE: Duration = Duration::from_secs(420);
/// Longest time until a deleted job is gone.
pub const GONE: Duration = Duration::from_secs(120);

/// A running job with a complete generation that was cut after its first ticks, and ticks after that; its VMs are seen
/// on its nodes. Gives the generation.
pub async fn running(bed: &TestBed, name: &str, counting: &Counting) -> Result<(Job, u32)> {
    let namespace = bed.namespace(name).await?;
    let job = Job::create(bed, &namespace, &counting.object("count")?).await?;
    let stored = computed(bed, &job, counting.members).await?;
    Ok((job, stored))
}

/// Waits for the same of a job that exists.
pub async fn computed(bed: &TestBed, job: &Job, members: u32) -> Result<u32> {
    job.wait_tick(5, members, BOOT).await?;
    let next = job.get().await?.status.map_or(0, |status| status.snapshots.next_generation);
    let stored = job.wait_stored(next.saturating_sub(1), BOOT).await?;
    let reached = (0..members).filter_map(|member| job.output.last_tick(member)).max().unwrap_or(0);
    job.wait_tick(reached + 5, members, BOOT).await?;
    // without that nothing would show that they are gone; a slot's time may just be over
    until("its VMs and its segment to be seen", BOOT, async || {
        let held = nodes(&job.get().await?);
        let counts = held.iter().map(|node| bed.qemu_on(node)).collect::<Result<Vec<u32>>>()?;
        let segment = left(bed, job).await?.iter().any(|line| line.contains("segment"));
        Ok((!held.is_empty() && counts.iter().all(|count| *count == 1) && segment).then_some(()))
    })
    .await?;
    Ok(stored)
}

/// A rival takes these nodes for a moment; its first process must find no VM.
pub async fn taken(bed: &TestBed, held: &[String]) -> Result<()> {
    taken_for(bed, held, Duration::from_secs(1)).await.map(drop)
}

/// The same, and it keeps them for so long, or until it is dropped.
pub async fn taken_for<'a>(bed: &'a TestBed, held: &[String], keep: Duration) -> Result<Rival<'a>> {
    ensure!(!held.is_empty(), "the job holds no node");
    let rival = Rival::submit(bed, held, keep)?;
    let found = rival.found(LIFE).await?;
    ensure!(found.qemu.len() == held.len(), "the rival looked at {found:?} instead of {held:?}");
    ensure!(found.qemu.iter().all(|(_, count)| *count == 0), "a VM lived beside the next user's job: {found:?}");
    Ok(rival)
}

/// Waits for the end, and looks at what was kept: every tick once and one nonce, whatever came between. Nothing is left
/// afterwards.
pub async fn ends_right(bed: &TestBed, job: &Job, counting: &Counting) -> Result<BestEffortJob> {
    let end = counted_right(job, counting).await?;
    gone(bed, job).await?;
    Ok(end)
}

/// The same, but the job is still there.
pub async fn counted_right(job: &Job, counting: &Counting) -> Result<BestEffortJob> {
    let end = job.wait_phase(JobPhase::Succeeded, LIFE).await?;
    for member in 0..counting.members {
        let kept: Vec<Tick> = job.logs(member).await?.lines().filter_map(tick).collect();
        let seen = continuity(&[kept]).with_context(|| format!("what member {member} kept"))?;
        ensure!(seen.last == u64::from(counting.ticks), "member {member} ended at tick {}", seen.last);
    }
    Ok(end)
}

/// What a member's agents printed while the job lived, complete and coherent.
pub fn printed(job: &Job, member: u32, counting: &Counting) -> Result<Continuity> {
    let seen = continuity(&job.output.ticks(member)).with_context(|| format!("what member {member} printed"))?;
    ensure!(seen.last == u64::from(counting.ticks), "member {member} ended at tick {}", seen.last);
    Ok(seen)
}

/// Deletes a job; nothing is left of it.
pub async fn gone(bed: &TestBed, job: &Job) -> Result<()> {
    job.delete(GONE).await?;
    nothing_left(bed, job, |_| false).await
}

/// Waits until nothing is left of a job whose object is gone, but what is forgiven.
pub async fn nothing_left(bed: &TestBed, job: &Job, forgiven: impl Fn(&str) -> bool) -> Result<()> {
    ensure!(job.snapshots().await?.is_empty(), "a Snapshot is left");
    let mut last = Vec::new();
    // OAR and the kubelets take their time to remove what has ended
    for _ in 0..30 {
        // a node that was deployed may be about to get OAR's own system back
        last = left(bed, job).await.unwrap_or_else(|error| vec![error.to_string()]);
        last.retain(|line| !forgiven(line));
        if last.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    bail!("left behind: {last:#?}")
}

/// Waits until nothing of a job is unfinished at OAR.
pub async fn given_back(job: &Job) -> Result<()> {
    until("OAR to end the job's slots", Duration::from_secs(30), async || {
        Ok(crate::site::unfinished(&job.uid).await?.is_empty().then_some(()))
    })
    .await
}
