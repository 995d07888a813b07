//! How soon members that leave are safe: from the order to capture four of them, which do not run on, to their complete
//! generation, by kget's own controller, against the time that the new bytes take on the repository's link.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use e2e::{
    agents::{Agent, LIMIT, World, capture_and_stay},
    goodput::goodput,
};
use vmdeploy::{
    api::snapshot::SnapshotReason,
    driver::agent::{NodeAgent as _, VmState},
};

use super::{pause::at_work, restore::FILLING, writers};
use crate::report::{Figure, figure};

/// Each node's link, and the repository's: so slow that there is less of it than of two processors, which four agents
/// and the repository share here.
const RATE: &str = "50mbit";
/// Generations.
const GENERATIONS: u32 = 3;
/// Before the next one guests write for so long: all that they write round and round, once.
const WORK: Duration = Duration::from_secs(20);

pub(super) fn measure() -> Result<Vec<Figure>> {
    let world = World::new(writers(4), Some(RATE))?;
    let goodput = goodput(&world.nodes, 0..4, 4, FILLING)?;
    let ratios = world.nodes.at_the_switch(async {
        let agents = at_work(&world).await?;
        let mut ratios = Vec::new();
        for generation in 1..=GENERATIONS {
            let begun = Instant::now();
            capture_and_stay(&agents, generation, LIMIT).await?;
            let captured = begun.elapsed();
            let (transfer, manifest) = world.transfer(&agents, generation, SnapshotReason::Notice).await?;
            let (took, bound) = (begun.elapsed(), manifest.stored() as f64 / goodput);
            ratios.push(took.as_secs_f64() / bound);
            let first = transfer.freed.first().context("nobody is free")?.at.0;
            let after = |at: jiff::Timestamp| at.duration_since(first).as_secs_f64();
            let freed: Vec<f64> = transfer.freed.iter().map(|freed| after(freed.at.0)).collect();
            eprintln!(
                "  {} bytes in {took:?}, captured after {captured:?}, freed {freed:.1?} s after the first, bound {bound:.2} s",
                manifest.stored()
            );
            run_on(&agents, generation).await?;
        }
        Ok(ratios)
    })?;
    let note = Some("four VMs, 50 Mbit/s, with the capture and the publication");
    Ok(figure("evacuate_vs_bound", &ratios, 0.5, "ratio", Some(1.15), note).into_iter().collect())
}

/// Nobody takes the nodes away after all.
async fn run_on(agents: &[Agent], generation: u32) -> Result<()> {
    for agent in agents {
        agent.operator.stay_down(&agent.order(generation, false), Duration::ZERO).await?;
    }
    for agent in agents {
        agent.until("running on", |state| state.vm == VmState::Running).await?;
    }
    tokio::time::sleep(WORK).await;
    Ok(())
}
