//! Whatever fails around a job, it ends right: every tick once, in the same memory, in no more slots than it
//! needed, and never beside the next user of a node.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    TestBed,
    job::{Counting, Job, nodes, slot_ids},
    rival::Rival,
    site::unfinished,
    testbed::{SYSTEM, until},
    ticks::{Tick, continuity, tick},
};
use vmdeploy::api::{BestEffortJob, JobPhase};

const BOOT: Duration = Duration::from_secs(120);
const LIFE: Duration = Duration::from_secs(300);

/// A running job with a complete generation, and the ticks it had printed by then.
async fn running(bed: &TestBed, name: &str, counting: &Counting) -> Result<Job> {
    let namespace = bed.namespace(name).await?;
    let job = Job::create(bed, &namespace, &counting.object("count")?).await?;
    job.wait_tick(5, counting.members, BOOT).await?;
    let next = job.get().await?.status.map_or(0, |status| status.snapshots.next_generation);
    job.wait_stored(next.saturating_sub(1), BOOT).await?;
    for node in nodes(&job.get().await?) {
        ensure!(bed.qemu_on(&node)? == 1, "the VM on {node} is not seen: nothing would show that it is gone");
    }
    Ok(job)
}

/// Waits for the end, and looks at what was kept: every tick once and one nonce, whatever came between.
async fn ends_right(bed: &TestBed, job: &Job, counting: &Counting) -> Result<BestEffortJob> {
    let end = job.wait_phase(JobPhase::Succeeded, LIFE).await?;
    for member in 0..counting.members {
        let kept: Vec<Tick> = job.logs(member).await?.lines().filter_map(tick).collect();
        let seen = continuity(&[kept]).with_context(|| format!("what member {member} kept"))?;
        ensure!(seen.last == u64::from(counting.ticks), "member {member} ended at tick {}", seen.last);
    }
    job.delete(Duration::from_secs(90)).await?;
    until("OAR to end the job's slots", Duration::from_secs(30), async || {
        Ok(unfinished(&job.uid).await?.is_empty().then_some(()))
    })
    .await?;
    for node in ["node-1", "node-2", "node-3", "node-4"] {
        ensure!(bed.qemu_on(node)? == 0, "QEMU is left on {node}");
    }
    Ok(end)
}

/// A rival takes the job's nodes; its first process must find no VM.
async fn taken(bed: &TestBed, job: &Job) -> Result<()> {
    let held = nodes(&job.get().await?);
    ensure!(!held.is_empty(), "the job holds no node");
    let rival = Rival::submit(bed, &held, Duration::from_secs(2))?;
    let found = rival.found(LIFE).await?;
    ensure!(found.qemu.iter().all(|(_, count)| *count == 0), "a VM lived beside the next user's job: {found:?}");
    Ok(())
}

fn operator(bed: &TestBed, replicas: u32) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    bed.run(&["kubectl", "-n", SYSTEM, "scale", "deployment/vmdeploy-operator", &replicas])?;
    Ok(())
}

/// SIGKILL for the operator's process; the Deployment makes a new one.
fn kill_operator(bed: &TestBed) -> Result<()> {
    let of_operator = "app.kubernetes.io/component=operator";
    bed.run(&["kubectl", "-n", SYSTEM, "delete", "pod", "-l", of_operator, "--force", "--grace-period=0"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_user_is_alone_while_the_operator_is_stopped() -> Result<()> {
    let Some(bed) = TestBed::find().await? else { return Ok(()) };
    let counting = Counting { grace: 0, ..Counting::default() };
    let job = running(&bed, "no-operator", &counting).await?;
    operator(&bed, 0)?;
    let met = taken(&bed, &job).await;
    operator(&bed, 1)?;
    met?;
    let end = ends_right(&bed, &job, &counting).await?;
    ensure!(end.status.is_some_and(|status| status.kills.preempted == 1), "the kill was not noticed afterwards");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_user_is_alone_while_the_apiserver_is_stopped() -> Result<()> {
    let Some(bed) = TestBed::find().await? else { return Ok(()) };
    let counting = Counting::default();
    let job = running(&bed, "no-apiserver", &counting).await?;
    let held = nodes(&job.get().await?);
    bed.run(&["apiserver-stop"])?;
    let met = async {
        let rival = Rival::submit(&bed, &held, Duration::from_secs(2))?;
        rival.found(LIFE).await
    }
    .await;
    bed.run(&["apiserver-start"])?;
    let found = met?;
    ensure!(found.qemu.iter().all(|(_, count)| *count == 0), "a VM lived beside the next user's job: {found:?}");
    ends_right(&bed, &job, &counting).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_again_and_again_uses_each_slot_once() -> Result<()> {
    let Some(bed) = TestBed::find().await? else { return Ok(()) };
    let counting = Counting { ticks: 350, ..Counting::default() };
    let namespace = bed.namespace("killer").await?;
    let job = Job::create(&bed, &namespace, &counting.object("count")?).await?;
    // a fixed sample of moments; all of them are tried in simulated time
    let pauses = [3.0, 2.0, 5.0, 4.0, 7.0, 6.0];
    let mut slots = BTreeSet::new();
    for (index, pause) in pauses.into_iter().enumerate() {
        tokio::time::sleep(Duration::from_secs_f64(pause)).await;
        slots.extend(slot_ids(&job.get().await?));
        if index == 3 {
            job.wait_tick(5, 1, BOOT).await?;
            taken(&bed, &job).await?;
        }
        kill_operator(&bed)?;
    }
    let end = ends_right(&bed, &job, &counting).await?;
    let status = end.status.unwrap_or_default();
    ensure!(status.kills.failed == 0 && status.kills.node == 0, "{:?}", status.kills);
    ensure!(status.incarnation <= status.attempt, "{} incarnations in {} attempts", status.incarnation, status.attempt);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_site_destroys_nothing_and_a_dead_node_is_left() -> Result<()> {
    let Some(bed) = TestBed::find().await? else { return Ok(()) };
    let counting = Counting { ticks: 450, ..Counting::default() };
    let job = running(&bed, "outage", &counting).await?;
    let before = job.get().await?;
    for (stop, start) in [("oar-stop", "oar-start"), ("db-stop", "db-start")] {
        bed.run(&[stop])?;
        let begun = Instant::now();
        let reached = job.output.last_tick(0).unwrap_or(0);
        let went_on = job.wait_tick(reached + 30, 1, BOOT).await;
        tokio::time::sleep(Duration::from_secs(5).saturating_sub(begun.elapsed())).await;
        bed.run(&[start])?;
        went_on?;
    }
    let after = job.get().await?;
    ensure!(slot_ids(&after) == slot_ids(&before), "an outage cost the slot");
    let held = nodes(&after);
    let number = held.first().and_then(|node| node.strip_prefix("node-")).context("no node")?.to_owned();
    bed.run(&["crash", &number])?;
    let moved = job
        .wait("another node", LIFE, |job| {
            let other = nodes(job);
            (!other.is_empty() && other != held && job.status.as_ref()?.phase == JobPhase::Running).then_some(())
        })
        .await;
    bed.run(&["boot", &number])?;
    moved?;
    let end = ends_right(&bed, &job, &counting).await?;
    ensure!(end.status.is_some_and(|status| status.kills.node >= 1), "the node's death was not counted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_longer_than_its_walltime_goes_on_in_the_next_slot() -> Result<()> {
    let Some(bed) = TestBed::find().await? else { return Ok(()) };
    let counting = Counting { ticks: 500, walltime: 1, grace: 20, ..Counting::default() };
    let namespace = bed.namespace("walltime").await?;
    let job = Job::create(&bed, &namespace, &counting.object("count")?).await?;
    let end = ends_right(&bed, &job, &counting).await?;
    let status = end.status.unwrap_or_default();
    ensure!(status.kills.walltime >= 1 && status.kills.preempted == 0, "{:?}", status.kills);
    Ok(())
}
