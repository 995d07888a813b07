//! The agent's own processes: fence, supervisor and QEMU on one side, the repository on the other, and a shell that
//! holds the lease as the hold would.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::agents::{Agent, COUNT, Guests, LIMIT, World, capture};
use futures::future::try_join_all;
use vmdeploy::driver::{
    agent::{LeaveCode, NodeAgent as _, PartState},
    repository::Brought,
};

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

/// Where what each was restored from came from, and the nonces of their memories once they count.
async fn come_back(agents: &[Agent]) -> Result<Vec<(Brought, String)>> {
    try_join_all(agents.iter().map(|agent| async {
        agent.go().await?;
        let state = agent.until("a restore", |state| state.restored.is_some()).await?;
        Ok((state.restored.unwrap_or_default(), agent.counts_to(1, LIMIT).await?.1))
    }))
    .await
}

#[ignore = "boots guests: e2e/test --e2e"]
#[test]
fn b7_a_member_that_is_restored_where_it_was_fetches_next_to_nothing() -> Result<()> {
    let world = World::new(Guests { members: 2, memory: "192Mi", script: COUNT }, None)?;
    world.nodes.at_the_switch(in_place(&world))
}

async fn in_place(world: &World) -> Result<()> {
    let mut agents = world.loaded(1, None).await?;
    try_join_all(agents.iter().map(Agent::go)).await?;
    let counted = try_join_all(agents.iter().map(|agent| agent.counts_to(10, LIMIT))).await?;
    let nonces: Vec<String> = counted.into_iter().map(|(_, nonce)| nonce).collect();
    for generation in [1, 2] {
        capture(&agents, generation, true).await?;
        world.store(&agents, generation).await?;
        try_join_all(agents.iter().map(|agent| agent.until("keeping", |state| state.kept == Some(generation)))).await?;
    }
    // the slot of one is taken away, and given again; the other's node is gone with all that it had
    agents[0].holder.0.kill()?;
    agents[0].gone(Duration::from_secs(10)).await?;
    ensure!(!agents[0].fence.0.wait()?.success() && files(&agents[0])? == 0, "files of the VM stay");
    agents.clear();
    std::fs::remove_dir_all(world.kept(1))?;
    let mut agents = world.loaded(2, Some(2)).await?;
    let came = come_back(&agents).await?;
    eprintln!("in place: {:?}; elsewhere: {:?}", came[0].0, came[1].0);
    ensure!(came.iter().map(|(_, nonce)| nonce).eq(&nonces), "the memory is another");
    let (here, elsewhere) = (came[0].0, came[1].0);
    ensure!(elsewhere.local == 0 && elsewhere.fetched > 10 << 20, "{elsewhere:?}");
    ensure!(here.local > elsewhere.fetched && here.fetched * 50 < elsewhere.fetched, "{here:?} and {elsewhere:?}");

    // the job has the slot still, and half of the packs there are damaged
    agents[0].operator.leave(agents[0].authority, LeaveCode::KeepSlot).await?;
    agents[0].fence.0.wait()?;
    agents.clear();
    let mut packs: Vec<_> = std::fs::read_dir(world.kept(0))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    packs.retain(|path| path.to_string_lossy().contains("pack-"));
    packs.sort();
    ensure!(packs.len() > 3, "{packs:?}");
    for path in packs.iter().step_by(2) {
        let mut bytes = std::fs::read(path)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes)?;
    }
    let agents = world.loaded(3, Some(2)).await?;
    let came = come_back(&agents).await?;
    eprintln!("with damaged packs: {:?}", came[0].0);
    ensure!(came.iter().map(|(_, nonce)| nonce).eq(&nonces), "the memory is another");
    let partly = came[0].0;
    ensure!(partly.local > 0 && partly.local < here.local && partly.fetched > here.fetched, "{partly:?}");
    Ok(())
}
