//! The operator dies by SIGKILL at its effects: the slot it had asked for is used, nothing is done twice, nothing is
//! left behind. Every effect at every moment is tried in simulated time; here it is a real process on real parts.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    TestBed, Turn,
    job::{Counting, Job, nodes},
    site::jobs_ever,
    testbed::{SERVICE_NODE, SYSTEM},
    world::{computed, counted_right, gone, taken},
};

/// The effects of a life with a notice in it, up to its deletion.
pub(crate) static EFFECTS: [&str; 14] = [
    "AddFinalizer",
    "SubmitSlots",
    "FenceRepository",
    "CreateAgent",
    "Go",
    "Capture",
    "CreateSnapshot",
    "WriteSnapshot",
    "Leave",
    "ReleaseSlot",
    "DeleteAgent",
    "DeleteSnapshot",
    "RemoveContent",
    "RemoveFinalizer",
];
const OF_OPERATOR: &str = "app.kubernetes.io/component=operator";

/// Waits on the service node until the operator says that it is about to do this, and kills it at once.
fn kill_at(bed: &TestBed, effect: &str) -> Result<()> {
    let watch = format!(
        "f=$(ls -t /var/log/pods/{SYSTEM}_vmdeploy-operator-*/*/*.log | head -n 1); \
         tail -n 0 -F \"$f\" | grep -q -m 1 '\"effect\":\"{effect}\"' && pkill -KILL -f '[v]mdeploy operator'"
    );
    bed.run(&["node", SERVICE_NODE, "timeout", "120", "sh", "-c", &watch])
        .with_context(|| format!("never at {effect}"))?;
    Ok(())
}

/// Another pod for the one that was killed: kubelet would let a container wait that has died twice.
fn replace_pod(bed: &TestBed) -> Result<()> {
    bed.run(&["kubectl", "-n", SYSTEM, "delete", "pod", "-l", OF_OPERATOR, "--force", "--grace-period=0"])?;
    let ready = ["kubectl", "-n", SYSTEM, "wait", "--for=condition=Ready", "pod", "-l", OF_OPERATOR, "--timeout=60s"];
    for _ in 0..50 {
        // there is none for a moment
        if bed.run(&ready).is_ok() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(200));
    }
    bail!("no other operator")
}

/// A life with a notice in it, whose operator is killed at each of these effects once.
pub(crate) async fn life(bed: &TestBed, effects: &'static [&'static str]) -> Result<()> {
    let counting = Counting { ticks: 150, ..Counting::default() };
    let namespace = bed.namespace("killer").await?;
    let (begun, watching) = tokio::sync::oneshot::channel();
    let killer = tokio::task::spawn_blocking({
        let bed = bed.clone();
        move || -> Result<()> {
            let _ = begun.send(());
            for effect in effects {
                kill_at(&bed, effect)?;
                replace_pod(&bed)?;
            }
            Ok(())
        }
    });
    watching.await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let job = Job::create(bed, &namespace, &counting.object("count")?).await?;
    computed(bed, &job, 1).await?;
    taken(bed, &nodes(&job.get().await?)).await?;
    let end = counted_right(&job, &counting).await?;
    let story = job.story().await?;
    gone(bed, &job).await?;
    killer.await??;
    let status = end.status.context("no status")?;
    ensure!(status.kills.failed == 0 && status.kills.node == 0, "{:?}{story}", status.kills);
    ensure!(status.incarnation <= status.attempt, "{} incarnations in {} attempts", status.incarnation, status.attempt);
    let ever = jobs_ever(bed, &job.uid)?;
    let used = ever.iter().filter(|job| job.ran).count();
    ensure!(used <= status.attempt as usize, "{} attempts used {ever:?}", status.attempt);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn an_operator_killed_at_its_effects_uses_each_slot_once() -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    // a fixed sample: between the submission and the status write, and two more
    life(&bed, &["SubmitSlots", "CreateAgent", "Leave"]).await
}
