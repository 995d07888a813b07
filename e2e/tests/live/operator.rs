//! The operator dies by SIGKILL at its effects: the slot it had asked for is used, nothing is done twice, nothing is
//! left behind. Every effect at every moment is tried in simulated time; here it is a real process on real parts.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    TestBed, Turn,
    job::{Counting, Job, nodes},
    site::jobs_ever,
    testbed::SYSTEM,
    turn::all,
};

use crate::world::{computed, ends_right, taken};

/// The effects of a life with a notice in it, in their order.
const EFFECTS: [&str; 10] = [
    "AddFinalizer",
    "SubmitSlots",
    "FenceRepository",
    "CreateAgent",
    "Go",
    "CreateSnapshot",
    "Capture",
    "WriteSnapshot",
    "Leave",
    "DeleteAgent",
];

/// Waits on the service node until the operator says that it is about to do this, and kills it at once. Its pod goes
/// too, since kubelet would let a container wait that has died twice.
fn kill_at(script: &Path, effect: &str) -> Result<bool> {
    let watch = format!(
        "f=$(ls -t /var/log/pods/{SYSTEM}_vmdeploy-operator-*/*/*.log | head -n 1); \
         tail -n 0 -F \"$f\" | grep -q -m 1 '\"effect\":\"{effect}\"' && pkill -KILL -f '[v]mdeploy operator'"
    );
    let status = Command::new(script).args(["node", "5", "timeout", "60", "sh", "-c", &watch]).status()?;
    match status.code() {
        Some(0) => Ok(true),
        Some(124) => Ok(false),
        _ => bail!("failed to watch for {effect}: {status}"),
    }
}

fn replace_pod(bed: &TestBed) -> Result<()> {
    let of_operator = "app.kubernetes.io/component=operator";
    bed.run(&["kubectl", "-n", SYSTEM, "delete", "pod", "-l", of_operator, "--force", "--grace-period=0"])?;
    Ok(())
}

/// A life with a notice in it, whose operator is killed at each of these effects once.
async fn life(bed: &TestBed, effects: &[&'static str]) -> Result<()> {
    let counting = Counting { ticks: 200, ..Counting::default() };
    let namespace = bed.namespace("killer").await?;
    let script = bed.script().to_owned();
    let wanted = effects.to_vec();
    let (begun, watching) = tokio::sync::oneshot::channel();
    let killer = tokio::task::spawn_blocking({
        let bed = bed.clone();
        move || -> Result<Vec<&'static str>> {
            let _ = begun.send(());
            let mut killed = Vec::new();
            for effect in wanted {
                if kill_at(&script, effect)? {
                    killed.push(effect);
                    replace_pod(&bed)?;
                }
            }
            Ok(killed)
        }
    });
    watching.await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let job = Job::create(bed, &namespace, &counting.object("count")?).await?;
    computed(bed, &job, 1).await?;
    taken(bed, &nodes(&job.get().await?)).await?;
    let end = ends_right(bed, &job, &counting).await?;
    let killed = killer.await??;
    ensure!(killed == effects, "killed only at {killed:?}");
    let status = end.status.context("no status")?;
    ensure!(status.kills.failed == 0 && status.kills.node == 0, "{:?}", status.kills);
    ensure!(status.incarnation <= status.attempt, "{} incarnations in {} attempts", status.incarnation, status.attempt);
    let ever = jobs_ever(bed, &job.uid)?;
    let used = ever.iter().filter(|job| job.ran).count();
    ensure!(used <= status.attempt as usize, "{} attempts used {ever:?}", status.attempt);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_at_its_effects_uses_each_slot_once() -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    // a fixed sample: between the submission and the status write, and two more
    life(&bed, &["SubmitSlots", "CreateAgent", "Leave"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_at_any_effect_uses_each_slot_once() -> Result<()> {
    if !all() {
        return Ok(());
    }
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    for effect in EFFECTS {
        life(&bed, &[effect]).await.with_context(|| format!("killed at {effect}"))?;
    }
    Ok(())
}
