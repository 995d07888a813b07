//! A job whose agents TakTuk starts, on nodes that are none of the cluster's.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{
    Turn,
    job::{Counting, Job, nodes},
    testbed::{OAR_NODES, SYSTEM, number, until},
    world::{BOOT, LIFE, ends_right, taken_for},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};
use vmdeploy::api::{BestEffortJob, JobPhase, job::LauncherKind};

use crate::nodes::{bare_nodes, joined};

/// Where launchers keep what they have started.
const LAUNCHED: &str = "/var/lib/vmdeploy/launched";
/// Longest time until a job computes in a new slot.
const STARTED: Duration = Duration::from_secs(180);

fn launched(counting: &Counting) -> Result<BestEffortJob> {
    let mut job = counting.object("count")?;
    job.spec.launcher = LauncherKind::TakTuk;
    Ok(job)
}

/// Waits until this incarnation, or a later one, computes: there are no pods whose logs would tell.
async fn runs(job: &Job, incarnation: u32) -> Result<()> {
    let what = format!("incarnation {incarnation} to run");
    let is_there = |job: &BestEffortJob| {
        let status = job.status.as_ref()?;
        (status.incarnation >= incarnation && status.phase == JobPhase::Running).then_some(())
    };
    job.wait(&what, STARTED, is_there).await
}

/// Waits until nothing of launchers is on any of OAR's nodes: neither a process nor a file of an agent's.
async fn nothing_left(bed: &Turn) -> Result<()> {
    until("all launchers to have gone", Duration::from_secs(60), async || {
        for node in OAR_NODES {
            let look = format!("pgrep -c -x vmdeploy; ls {LAUNCHED} 2> /dev/null | grep -vx lock | wc -l; true");
            let found = bed.run(&["node", node, "sh", "-c", &look])?;
            if found.split_whitespace().any(|count| count != "0") {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_agents_taktuk_starts_survives_a_kill() -> Result<()> {
    let Some(bed) = bare_nodes().await? else { return Ok(()) };
    // one that failed before has left something
    bed.run(&["launch-stop"])?;
    bed.run(&["launch-start"])?;
    let counting = Counting { members: 2, ticks: 200, ..Counting::default() };
    let namespace = bed.namespace("launched").await?;
    let job = Job::create(&bed, &namespace, &launched(&counting)?).await?;
    runs(&job, 1).await?;
    let first = nodes(&job.get().await?);
    for node in &first {
        ensure!(bed.qemu_on(node)? == 1, "no VM is seen on {node}");
    }
    ensure!(joined(&bed).await?.is_empty(), "a node has joined the cluster");
    let pods: Api<Pod> = Api::namespaced(bed.client.clone(), SYSTEM);
    let agents = pods.list(&ListParams::default().labels("app.kubernetes.io/component=agent")).await?;
    ensure!(agents.items.is_empty(), "an agent is a pod");
    let stored = job.wait_stored(0, BOOT).await?;

    // somebody else wants them: OAR kills the hold, and nobody finds a VM there
    let rival = taken_for(&bed, &first, STARTED).await?;
    runs(&job, 2).await?;
    let status = job.get().await?.status.context("no status")?;
    let second = nodes(&job.get().await?);
    ensure!(second.iter().all(|node| !first.contains(node)), "{first:?} and then {second:?}");
    let origin = status.origin.as_ref().and_then(|origin| origin.generation).context("a cold start")?;
    ensure!(origin >= stored, "restored generation {origin}, but {stored} was complete");
    ensure!(status.kills.preempted == 1 && status.kills.node == 0, "{:?}", status.kills);
    drop(rival);

    // nobody tells the launcher's agents that it dies
    let node = second.first().context("no node")?;
    bed.run(&["node", number(node)?, "pkill", "-KILL", "-f", "^/run/oarbox/share/launch/vmdeploy launcher"])?;
    until("no VM where the launcher was killed", Duration::from_secs(10), async || {
        Ok((bed.qemu_on(node)? == 0).then_some(()))
    })
    .await?;
    job.wait_phase(JobPhase::Succeeded, LIFE).await?;
    ends_right(&bed, &job, &counting).await?;
    nothing_left(&bed).await?;
    bed.run(&["launch-stop"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn a_launch_key_that_is_another_one_is_said_and_costs_no_job() -> Result<()> {
    let Some(bed) = bare_nodes().await? else { return Ok(()) };
    bed.run(&["launch-start"])?;
    let namespace = bed.namespace("key").await?;
    let other = "0".repeat(64);
    bed.run(&["oar", "vmdeploy", "sh", "-c", &format!("umask 077; echo {other} > .vmdeploy-launch-key")])?;
    let counting = Counting { members: 1, ticks: 10, ..Counting::default() };
    let job = Job::create(&bed, &namespace, &launched(&counting)?).await?;
    let message = until("the condition to say so", Duration::from_secs(150), async || {
        let retry = job.get().await?.status.and_then(|status| status.retry);
        Ok(retry.map(|retry| retry.message).filter(|message| message.contains("launch key")))
    })
    .await?;
    ensure!(message.contains("the launcher on node node-") && message.contains("another launch key"), "{message}");
    bed.run(&["launch-start"])?;
    job.wait_phase(JobPhase::Succeeded, LIFE).await?;
    nothing_left(&bed).await?;
    bed.run(&["launch-stop"])?;
    Ok(())
}
