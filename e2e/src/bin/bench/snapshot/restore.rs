//! How soon a killed guest is back, and a generation complete.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use e2e::{
    agents::{LIMIT, World, capture},
    goodput::goodput,
};
use vmdeploy::{api::snapshot::SnapshotReason, driver::agent::VmState};

use super::{pause::at_work, writers};
use crate::report::{Figure, figure};

/// Kills.
const KILLS: u32 = 5;
/// Work that is in the generation.
const WORK: Duration = Duration::from_secs(30);
/// Each node's link, and the repository's.
const RATE: &str = "200mbit";
/// Generations of four over those links.
const GENERATIONS: u32 = 3;
/// How long the bare link is filled.
pub(super) const FILLING: Duration = Duration::from_secs(4);

pub(super) fn measure() -> Result<Vec<Figure>> {
    let world = World::new(writers(1), None)?;
    let (cold, warm) = world.nodes.at_the_switch(kills(&world))?;
    drop(world);
    let against_cold = warm.iter().map(|warm| warm / (cold + WORK.as_secs_f64())).collect::<Vec<f64>>();
    let work = "cold: boot and 30 s of work again";
    let complete = complete()?;
    let figures = [
        figure(
            "restore_first_tick_s",
            &warm,
            0.5,
            "s",
            Some(0.3),
            Some("kill -9 of QEMU to its agent's successor, on the same node"),
        ),
        figure("restore_vs_cold", &against_cold, 0.5, "ratio", Some(0.15), Some(work)),
        figure("complete_vs_bound", &complete, 0.5, "ratio", Some(1.15), Some("four VMs, 200 Mbit/s")),
    ];
    Ok(figures.into_iter().flatten().collect())
}

/// Seconds of a cold boot to its first line, and of every restore.
async fn kills(world: &World) -> Result<(f64, Vec<f64>)> {
    let begun = Instant::now();
    let mut agent = world.agent(0, 1, None)?;
    agent.go().await?;
    agent.counts_to(1, LIMIT).await?;
    let cold = begun.elapsed().as_secs_f64();
    tokio::time::sleep(WORK).await;
    let mut agents = vec![agent];
    capture(&agents, 1, true).await?;
    world.store(&agents, 1).await?;
    agents[0].until("keeping what was captured", |state| state.kept == Some(1)).await?;
    let mut warm = Vec::new();
    for kill in 1..=KILLS {
        agent = agents.pop().context("no agent")?;
        let begun = Instant::now();
        agent.kill_qemu()?;
        // what the node keeps of the captures is left to the next one
        drop(agent);
        let next = world.agent(0, kill + 1, Some(1))?;
        next.until("loading", |state| state.vm == VmState::Loaded).await?;
        let before = next.printed();
        next.go().await?;
        next.prints(before, LIMIT).await?;
        warm.push(begun.elapsed().as_secs_f64());
        agents.push(next);
    }
    Ok((cold, warm))
}

/// From the order to capture four members, which run on, to their complete generation, by kget's own controller,
/// against the time that its new bytes take on the repository's link.
fn complete() -> Result<Vec<f64>> {
    let world = World::new(writers(4), Some(RATE))?;
    let goodput = goodput(&world.nodes, 0..4, 4, FILLING)?;
    world.nodes.at_the_switch(async {
        let agents = at_work(&world).await?;
        let mut ratios = Vec::new();
        for generation in 1..=GENERATIONS {
            let begun = Instant::now();
            capture(&agents, generation, true).await?;
            let captured = begun.elapsed();
            let (_, manifest) = world.transfer(&agents, generation, SnapshotReason::Periodic).await?;
            let (took, bound) = (begun.elapsed(), manifest.stored() as f64 / goodput);
            ratios.push(took.as_secs_f64() / bound);
            eprintln!(
                "  {} bytes captured in {captured:.2?}, complete after {took:.2?}, bound {bound:.2} s",
                manifest.stored()
            );
        }
        Ok(ratios)
    })
}
