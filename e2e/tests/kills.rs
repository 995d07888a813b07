//! Jobs that are killed for somebody else go on from their last generation, with nothing lost before it.
//! One at a time: all of them want the same four nodes.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{
    TestBed,
    job::{Counting, Job, nodes, slot_ids},
    rival::Rival,
    ticks::continuity,
};
use vmdeploy::api::JobPhase;

const BOOT: Duration = Duration::from_secs(120);
const LIFE: Duration = Duration::from_secs(300);

/// A counting job is killed once by a rival on all its nodes and has to end right.
async fn survives(name: &str, counting: Counting) -> Result<()> {
    let Some(bed) = TestBed::find().await? else { return Ok(()) };
    let namespace = bed.namespace(name).await?;
    let job = Job::create(&bed, &namespace, &counting.object("count")?).await?;
    let members = counting.members;
    job.wait_phase(JobPhase::Running, BOOT).await?;
    // a generation that was cut after the first ticks
    job.wait_tick(5, members, BOOT).await?;
    let next = job.get().await?.status.map_or(0, |status| status.snapshots.next_generation);
    let stored = job.wait_stored(next.saturating_sub(1), BOOT).await?;
    // something is computed after the generation
    let reached = job.output.last_tick(0).unwrap_or(0);
    job.wait_tick(reached + 10, members, BOOT).await?;
    let before = job.get().await?;
    for node in nodes(&before) {
        ensure!(bed.qemu_on(&node)? == 1, "the VM on {node} is not seen: nothing would show that it is gone");
    }
    let rival = Rival::submit(&bed, &nodes(&before), Duration::from_secs(3))?;
    let found = rival.found(Duration::from_secs(120)).await?;
    ensure!(found.qemu.iter().all(|(_, count)| *count == 0), "a VM lived beside the next user's job: {found:?}");

    let again = job.wait("other slots", LIFE, |job| {
        let status = job.status.as_ref()?;
        (status.attempt == 2 && status.phase == JobPhase::Running).then(|| slot_ids(job))
    });
    ensure!(again.await? != slot_ids(&before), "the same slot");
    let end = job.wait_phase(JobPhase::Succeeded, LIFE).await?;
    let status = end.status.clone().unwrap_or_default();
    ensure!(status.kills.preempted == 1, "{:?}", status.kills);
    ensure!(status.attempt == 2, "attempt {}", status.attempt);
    let origin = status.origin.and_then(|origin| origin.generation).unwrap_or(0);
    ensure!(origin >= stored, "restored generation {origin}, but {stored} was complete");
    for member in 0..members {
        let seen = continuity(&job.output.ticks(member))?;
        ensure!(seen.last == u64::from(counting.ticks), "member {member} ended at tick {}", seen.last);
        ensure!(seen.resumed_at.len() == 1, "member {member} resumed at {:?}", seen.resumed_at);
    }
    job.delete(Duration::from_secs(60)).await?;
    ensure!(nodes(&before).iter().all(|node| bed.qemu_on(node).is_ok_and(|count| count == 0)), "QEMU is left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_vm_killed_with_notice() -> Result<()> {
    survives("notice", Counting::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_vm_killed_without_notice() -> Result<()> {
    survives("kill", Counting { grace: 0, ..Counting::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_vms_killed_with_notice() -> Result<()> {
    survives("pair", Counting { members: 2, ..Counting::default() }).await
}
