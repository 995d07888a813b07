//! Nodes whose QEMU is a newer one: what an older one has captured goes on there, and not the other way round.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    agents::{Guests, LIMIT, World, capture},
    skipped::skipped,
};
use vmdeploy::driver::agent::{LoadFault, VmState};

const COUNT: &str = "n=$(od -An -N8 -tx8 /dev/urandom | tr -d ' '); i=0; \
    while [ $i -lt 100000 ]; do i=$((i+1)); echo $i $n; sleep 0.05; done";
/// What the program says where there is no newer QEMU to be had.
const NONE: i32 = 3;

#[ignore = "boots guests: e2e/test --e2e"]
#[test]
fn c3_a_generation_goes_on_in_a_newer_qemu_and_no_node_with_an_older_one_gets_it_back() -> Result<()> {
    let newer = Path::new(env!("CARGO_MANIFEST_DIR")).join("testbed/qemu10");
    let status = Command::new(&newer).status()?;
    if status.code() == Some(NONE) {
        return skipped(
            "c3_a_generation_goes_on_in_a_newer_qemu_and_no_node_with_an_older_one_gets_it_back",
            "this machine's Debian mirror has no newer QEMU",
        );
    }
    ensure!(status.success(), "{}: {status}", newer.display());
    let mut world = World::new(Guests { members: 1, memory: "192Mi", script: COUNT }, None)?;
    let nonce = world.nodes.at_the_switch(captured(&world, 1, None))?;
    world.through = Some(newer);
    let same = world.nodes.at_the_switch(captured(&world, 2, Some(1)))?;
    ensure!(same == nonce, "the memory is another");
    world.through = None;
    world.nodes.at_the_switch(refused(&world))
}

/// Boots or restores, captures, and stores that as the generation; the nonce of the memory.
async fn captured(world: &World, generation: u32, restore: Option<u32>) -> Result<String> {
    let agents = world.loaded(generation, restore).await?;
    let agent = agents.first().context("no agent")?;
    agent.go().await?;
    let (number, nonce) = agent.counts_to(1, LIMIT).await?;
    agent.counts_to(number + 5, LIMIT).await?;
    capture(&agents, generation, true).await?;
    let manifest = world.store(&agents, generation).await?;
    eprintln!("generation {generation} is of QEMU {}", manifest.members[0].machine.qemu);
    Ok(nonce)
}

async fn refused(world: &World) -> Result<()> {
    let agent = world.agent(0, 3, Some(2))?;
    let state = agent.until("the refusal", |state| matches!(state.vm, VmState::Gone { .. })).await?;
    let VmState::Gone { reason, fault } = state.vm else { unreachable!() };
    ensure!(fault == LoadFault::Node && reason.contains("QEMU 10.") && reason.contains("or newer"), "{reason}");
    Ok(())
}
