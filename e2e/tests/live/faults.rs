//! Whatever fails around a job, it ends right: every tick once, in the same memory, in no more slots than it
//! needed, and never beside the next user of a node.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    TestBed, Turn,
    job::{Counting, Job, nodes, slot_ids},
    site::jobs_ever,
    testbed::number,
    world::{BOOT, GONE, LIFE, counted_right, ends_right, nothing_left, running, taken},
};
use vmdeploy::api::JobPhase;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn the_next_user_is_alone_while_the_operator_is_stopped() -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    let counting = Counting { grace: 0, ..Counting::default() };
    let (job, _) = running(&bed, "no-operator", &counting).await?;
    let held = nodes(&job.get().await?);
    bed.operators(0)?;
    let met = taken(&bed, &held).await;
    bed.operators(1)?;
    met?;
    let end = ends_right(&bed, &job, &counting).await?;
    ensure!(end.status.is_some_and(|status| status.kills.preempted == 1), "the kill was not noticed afterwards");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn the_next_user_is_alone_while_the_apiserver_is_stopped() -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    let counting = Counting { members: 2, ..Counting::default() };
    let (job, _) = running(&bed, "no-apiserver", &counting).await?;
    let held = nodes(&job.get().await?);
    bed.run(&["apiserver-stop"])?;
    let met = taken(&bed, &held).await;
    bed.run(&["apiserver-start"])?;
    met?;
    ends_right(&bed, &job, &counting).await?;
    Ok(())
}

/// The job goes on while something of OAR's is out of order.
async fn goes_on(bed: &TestBed, job: &Job, (stop, start): (&str, &str)) -> Result<()> {
    bed.run(&[stop])?;
    let begun = Instant::now();
    let reached = job.output.last_tick(0).unwrap_or(0);
    let went_on = job.wait_tick(reached + 15, 1, BOOT).await;
    // the operator has asked at least twice
    tokio::time::sleep(Duration::from_secs(5).saturating_sub(begun.elapsed())).await;
    bed.run(&[start])?;
    went_on.with_context(|| format!("after {stop}"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn an_outage_of_the_site_destroys_nothing_and_a_dead_node_is_left() -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    let counting = Counting { ticks: 200, ..Counting::default() };
    let (job, _) = running(&bed, "outage", &counting).await?;
    let before = job.get().await?;
    for outage in [("oar-stop", "oar-start"), ("db-stop", "db-start"), ("api-break", "api-mend")] {
        goes_on(&bed, &job, outage).await?;
    }
    let after = job.get().await?;
    ensure!(slot_ids(&after) == slot_ids(&before), "an outage cost the slot");
    let held = nodes(&after);
    let node = held.first().context("no node")?;
    bed.run(&["crash", number(node)?])?;
    let moved = job
        .wait("another node", LIFE, |job| {
            let other = nodes(job);
            (!other.is_empty() && other != held && job.status.as_ref()?.phase == JobPhase::Running).then_some(())
        })
        .await;
    bed.run(&["boot", number(node)?])?;
    moved?;
    let end = counted_right(&job, &counting).await?;
    job.delete(GONE).await?;
    // the agent that would have removed its lease's directory died with the node, whose disk keeps it
    let lease = format!("{node}: /var/lib/vmdeploy/leases/");
    nothing_left(&bed, &job, |line| line.starts_with(&lease)).await?;
    ensure!(end.status.is_some_and(|status| status.kills.node >= 1), "the node's death was not counted");
    Ok(())
}

/// A job that is applied while the site is out of order, in one way after the other, gets one slot in the end.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn a_job_applied_in_an_outage_gets_one_slot() -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    let counting = Counting { ticks: 20, ..Counting::default() };
    let namespace = bed.namespace("applied").await?;
    let outages = [("api-break", "api-mend"), ("db-stop", "db-start"), ("oar-stop", "oar-start")];
    for (stop, start) in outages {
        bed.run(&[stop])?;
        let made = Job::create(&bed, &namespace, &counting.object(stop)?).await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        bed.run(&[start])?;
        let job = made?;
        ends_right(&bed, &job, &counting).await.with_context(|| format!("applied after {stop}"))?;
        let ever = jobs_ever(&bed, &job.uid)?;
        ensure!(ever.len() == 1, "{stop}: OAR jobs {ever:?}");
    }
    Ok(())
}
