//! The agent's own processes: fence, supervisor and QEMU on one side, the repository on the other, and a shell that
//! holds the lease as the hold would.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::agents::{Agent, Guests, LIMIT, World};
use vmdeploy::driver::agent::{LeaveCode, NodeAgent as _, PartState};

const COUNT: &str = "n=$(od -An -N8 -tx8 /dev/urandom | tr -d ' '); i=0; \
    while [ $i -lt 100000 ]; do i=$((i+1)); echo $i $n; sleep 0.05; done";

fn files(agent: &Agent) -> Result<usize> {
    Ok(std::fs::read_dir(&agent.vm)?.count())
}

#[ignore = "boots guests: e2e/test --e2e"]
#[test]
fn an_agent_boots_captures_stores_leaves_and_another_goes_on() -> Result<()> {
    let world = World::new(Guests { members: 1, memory: "192Mi", script: COUNT }, None)?;
    world.nodes.at_the_switch(goes_on(&world))
}

async fn goes_on(world: &World) -> Result<()> {
    let mut agents = world.loaded(1, None).await?;
    let first = agents.first_mut().context("no agent")?;
    first.go().await?;
    let (_, nonce) = first.counts_to(10, LIMIT).await?;

    let capture = first.order(1, false);
    first.operator.prepare(&capture).await?;
    first.operator.stop(&capture).await?;
    first.operator.cut(&capture).await?;
    let captured = |part: &PartState| *part == PartState::Captured;
    first.until("capture", |state| state.capture.as_ref().is_some_and(|part| captured(&part.state))).await?;
    first.operator.stay_down(&capture, Duration::from_secs(60)).await?;
    world.store(&agents, 1).await?;

    let first = agents.first_mut().context("no agent")?;
    first.operator.leave(first.authority, LeaveCode::Saved).await?;
    ensure!(first.qemu()?.is_none(), "it has left, and its QEMU is there");
    ensure!(first.fence.0.wait()?.success(), "the fence did not end well");
    first.holder.0.wait()?;
    let leases = world.root().join("leases");
    ensure!(
        std::fs::read_to_string(leases.join(format!("said-{}", first.slot)))? == "saved\n",
        "the hold was told less"
    );
    ensure!(!leases.join(format!("3f2b8a10-{}", first.slot)).exists(), "the lease's directory stays");
    ensure!(files(first)? == 0, "files of the VM stay");

    let begun = Instant::now();
    let mut second = world.agent(0, 2, Some(1))?;
    second.go().await?;
    let (_, same) = second.counts_to(20, LIMIT).await?;
    eprintln!("agent started to counting again: {:?}", begun.elapsed());
    ensure!(same == nonce, "the memory is another");

    // the slot is taken away: the lock drops, whoever else is down
    second.holder.0.kill()?;
    let begun = Instant::now();
    second.gone(Duration::from_secs(10)).await?;
    eprintln!("fence_s: {:.3}", begun.elapsed().as_secs_f64());
    ensure!(!second.fence.0.wait()?.success(), "a lost lease is no good end");
    ensure!(files(&second)? == 0, "files of the VM stay");
    Ok(())
}
