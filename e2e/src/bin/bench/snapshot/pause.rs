//! How long a capture stops a guest: one alone, four at once, and beside QEMU's own `savevm` on the same guest.

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::agents::{Agent, LIMIT, World, capture};
use futures::future::try_join_all;

use super::{savevm, writers};
use crate::report::{Figure, figure};

/// Captures of one guest.
const CAPTURES: u32 = 30;
/// Captures of four at once.
const COHERENT: u32 = 10;
/// Between two captures the guest writes for this long.
const APART: Duration = Duration::from_secs(2);

pub(super) fn measure() -> Result<Vec<Figure>> {
    let world = World::new(writers(1), None)?;
    let (one, gap, rival) = world.nodes.at_the_switch(async {
        let agents = at_work(&world).await?;
        let pauses = captures(&agents, CAPTURES).await?;
        let gap = longest_gap(agents.first().context("no agent")?).await?;
        let rival = savevm::pauses(&world, agents, CAPTURES).await?;
        Ok((pauses, gap, rival))
    })?;
    drop(world);
    let world = World::new(writers(4), None)?;
    let four = world.nodes.at_the_switch(async { captures(&at_work(&world).await?, COHERENT).await })?;
    let [ours, theirs, coherent] = [&one, &rival, &four].map(|all| median(all));
    let figures = [
        figure("pause_p95_ms", &one, 0.95, "ms", Some(25.0), None),
        figure("longest_tick_gap_ms", &[gap], 0.5, "ms", None, Some("of ticks 80 ms apart and more, in the guest")),
        ratio("pause_vs_savevm", ours, theirs, 0.2, rival.len()),
        ratio("coherent_pause_vs_one", coherent, ours, 2.0, four.len()),
    ];
    Ok(figures.into_iter().flatten().collect())
}

fn ratio(metric: &'static str, of: f64, to: f64, goal: f64, count: usize) -> Option<Figure> {
    let whole = figure(metric, &[of / to], 0.5, "ratio", Some(goal), Some("medians"))?;
    Some(Figure { n: u32::try_from(count).ok()?, ..whole })
}

fn median(of: &[f64]) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// All members, after their first fifty lines; two boot at a time.
pub(super) async fn at_work(world: &World) -> Result<Vec<Agent>> {
    let agents = world.loaded(1, None).await?;
    for pair in agents.chunks(2) {
        try_join_all(pair.iter().map(Agent::go)).await?;
        try_join_all(pair.iter().map(|agent| agent.counts_to(1, LIMIT))).await?;
    }
    try_join_all(agents.iter().map(|agent| agent.counts_to(60, LIMIT))).await?;
    Ok(agents)
}

/// The longest pause of each capture, in milliseconds.
async fn captures(agents: &[Agent], count: u32) -> Result<Vec<f64>> {
    let mut longest = Vec::new();
    for generation in 1..=count {
        let pauses = capture(agents, generation, true).await?;
        longest.push(pauses.into_iter().max().context("no members")? as f64);
        tokio::time::sleep(APART).await;
    }
    Ok(longest)
}

async fn longest_gap(agent: &Agent) -> Result<f64> {
    let (_, rest) = agent.counts_to(1, LIMIT).await?;
    Ok(rest.split(' ').nth(1).context("no gap in the line")?.parse()?)
}
