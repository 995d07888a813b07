//! The test bed does what the other tests rely on.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{TestBed, rival::Rival, site::OarJob, testbed::until};

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_rival_runs_on_the_nodes_it_names_and_counts_qemu() -> Result<()> {
    let Some(bed) = TestBed::find().await? else { return Ok(()) };
    let nodes = ["node-2".to_owned(), "node-3".to_owned()];
    let rival = Rival::submit(&bed, &nodes, Duration::from_secs(1))?;
    let found = rival.found(SOON).await?;
    ensure!(found.qemu == [("node-2".to_owned(), 0), ("node-3".to_owned(), 0)], "{found:?}");
    until("the rival's end", SOON, async || Ok((rival.state()? == "Terminated").then_some(()))).await?;
    let job = OarJob::read(&rival.id).await?;
    ensure!(job.state == "Terminated" && job.start_time > 0, "{job:?}");
    Ok(())
}

#[tokio::test]
async fn a_cut_node_is_not_reached_and_comes_back() -> Result<()> {
    let Some(bed) = TestBed::find().await? else { return Ok(()) };
    let knock = "timeout 2 bash -c 'echo > /dev/tcp/node-4/6667'";
    let reached = || bed.oar("alice", &["sh", "-c", knock]).is_ok();
    ensure!(reached(), "node-4 is not reached before it is cut");
    bed.run(&["cut", "4"])?;
    let cut = !reached();
    bed.run(&["heal", "4"])?;
    ensure!(cut, "node-4 is reached although it is cut");
    until("node-4", SOON, async || Ok(reached().then_some(()))).await
}
