//! A job on bare nodes is killed, other nodes are deployed, and it goes on.

use anyhow::{Context as _, Result, ensure};
use e2e::{
    job::{Counting, Job, nodes},
    testbed::number,
    world::{BOOT, LIFE, ends_right, printed, taken_for},
};
use vmdeploy::api::JobPhase;

use crate::nodes::{DEPLOYED, bare, bare_nodes, forgotten, job, joined};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_on_bare_nodes_survives_a_kill() -> Result<()> {
    let Some(bed) = bare_nodes().await? else { return Ok(()) };
    let counting = Counting { members: 2, ticks: 250, ..Counting::default() };
    let namespace = bed.namespace("bare").await?;
    let job = Job::create(&bed, &namespace, &job(&counting, "IfMissing")?).await?;
    job.wait_tick(5, 2, DEPLOYED).await?;
    let first = nodes(&job.get().await?);
    for node in &first {
        let system = bed.run(&["node", number(node)?, "cat", "/proc/1/cmdline"])?;
        ensure!(system.contains("/sbin/init"), "{node} is not deployed: {system}");
        ensure!(bed.qemu_on(node)? == 1, "no VM is seen on {node}");
    }
    ensure!(joined(&bed).await?.len() == 2, "only nodes of the slot are in the cluster");
    let stored = job.wait_stored(0, BOOT).await?;

    // somebody else wants them: they are OAR's own again before, without a VM
    let rival = taken_for(&bed, &first, DEPLOYED).await?;
    job.wait_runs(2, 2, DEPLOYED).await?;
    let object = job.get().await?;
    let second = nodes(&object);
    let status = object.status.context("no status")?;
    // what came between would otherwise be gone with the test bed
    let story = job.story().await?;
    // nodes come back one by one: OAR may lend the first of them once more, until whoever wants both can have them
    let (taken, kills) = (status.kills.preempted, &status.kills);
    ensure!(
        (1..=3).contains(&taken) && status.attempt == taken + 1,
        "attempt {}, kills {kills:?}: {story}",
        status.attempt
    );
    let others = [kills.walltime, kills.node, kills.cancelled, kills.failed];
    ensure!(others == [0; 4], "attempt {}, kills {kills:?}: {story}", status.attempt);
    ensure!(second.iter().all(|node| !first.contains(node)), "{first:?} and then {second:?}: {story}");
    let origin = status.origin.as_ref().and_then(|origin| origin.generation).context("a cold start")?;
    ensure!(origin >= stored, "restored generation {origin}, but {stored} was complete");

    drop(rival);
    job.wait_phase(JobPhase::Succeeded, LIFE).await?;
    let end = ends_right(&bed, &job, &counting).await?.status.context("no status")?;
    ensure!(end.retry.is_none(), "something was wrong at the end: {:?}", end.retry);
    for member in 0..2 {
        printed(&job, member, &counting)?;
    }
    // what was deployed leaves the cluster with its slot
    bare(&bed).await?;
    forgotten().await
}
