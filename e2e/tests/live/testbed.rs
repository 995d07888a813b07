//! The test bed does what the other tests rely on.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{
    Turn,
    rival::Rival,
    site::OarJob,
    testbed::{number, until},
};

const SOON: Duration = Duration::from_secs(60);

/// Something that is called as a VM is.
const STAND_IN: &str =
    "d=$(mktemp -d); cp /bin/sleep $d/qemu-vmdeploy; $d/qemu-vmdeploy 120 > /dev/null 2>&1 & echo $!";

#[tokio::test]
async fn a_rival_runs_on_the_nodes_it_names_and_counts_the_vms_there() -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    let [with, without] = ["node-2", "node-3"];
    let nodes = [with.to_owned(), without.to_owned()];
    let pid = bed.run(&["node", number(with)?, "sh", "-c", STAND_IN])?;
    // it is called so once it has begun
    until("the stand-in", SOON, async || Ok((bed.qemu_on(with)? == 1).then_some(()))).await?;
    ensure!(bed.qemu_on(without)? == 0, "a stand-in is seen on {without}");
    let rival = Rival::submit(&bed, &nodes, Duration::from_secs(1))?;
    let found = rival.found(SOON).await?;
    ensure!(found.qemu == [(with.to_owned(), 1), (without.to_owned(), 0)], "{found:?}");
    bed.run(&["node", number(with)?, "kill", pid.trim()])?;
    until("the rival's end", SOON, async || Ok((rival.state()? == "Terminated").then_some(()))).await?;
    let job = OarJob::read(&rival.id).await?;
    ensure!(job.state == "Terminated" && job.start_time > 0, "{job:?}");
    Ok(())
}

#[tokio::test]
async fn a_cut_node_is_not_reached_and_comes_back() -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    let node = "node-4";
    let knock = format!("timeout 2 bash -c 'echo > /dev/tcp/{node}/6667'");
    let reached = || bed.oar("alice", &["sh", "-c", &knock]).is_ok();
    until("the node before it is cut", SOON, async || Ok(reached().then_some(()))).await?;
    bed.run(&["cut", number(node)?])?;
    let cut = !reached();
    bed.run(&["heal", number(node)?])?;
    ensure!(cut, "{node} is reached although it is cut");
    until(node, SOON, async || Ok(reached().then_some(()))).await
}
