//! `vmdeploy kget simulate`: what plans for so many nodes are worth on ideal links, beside what no plan can beat, and
//! how long it takes to make one.

use std::{io::Write as _, time::Instant};

use anyhow::{Context as _, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde::{Deserialize, Serialize};

use crate::transfer::plan::{
    Move, Node, Planner, Policy, Repository, View,
    bounds::Input,
    simulate::{Terms, run},
};

/// What is simulated.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// How many nodes.
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Every kind of nodes by every policy.
    pub runs: Vec<Simulated>,
    /// Seconds that the slowest policy takes to make a plan, in the middle of a run.
    pub replan: f64,
    /// Seconds that all runs took.
    pub seconds: f64,
}

/// A run: times over what no plan can beat.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Simulated {
    /// What the nodes are like.
    pub nodes: String,
    /// How they are emptied.
    pub policy: String,
    /// Until most are free.
    pub most: f64,
    /// Until all is stored.
    pub all: f64,
    /// The sum of the times at which nodes are free, over the bound for equal sizes.
    pub node_seconds: f64,
}

const SHARE: f64 = 0.8;
const POLICIES: [(&str, Policy); 3] =
    [("target", Policy::Target { share: SHARE }), ("node seconds", Policy::NodeSeconds), ("rounds", Policy::Rounds)];
/// Bytes of a node, and of a second of its link: a second each.
const BYTES: f64 = 1e9;
const CHUNK: u64 = 4 << 20;
/// Nodes that are lost, of a thousand, and until when, in seconds.
const LOST: usize = 2;
const UNTIL: f64 = 2.0;

/// What nodes are like.
struct Case {
    name: &'static str,
    /// The standard deviation of the logarithms of their sizes.
    sigma: f64,
    /// Images of others that a node has room for.
    room: Option<f64>,
    lost: bool,
}

const CASES: [Case; 4] = [
    Case { name: "equal sizes", sigma: 0.0, room: None, lost: false },
    Case { name: "mixed sizes", sigma: 1.0, room: None, lost: false },
    Case { name: "disks for two", sigma: 0.5, room: Some(2.0), lost: false },
    Case { name: "nodes are lost", sigma: 0.5, room: None, lost: true },
];

/// Simulates, and prints a report as JSON.
pub(super) fn print(args: &Args) -> anyhow::Result<()> {
    ensure!(args.nodes > 0, "--nodes has to be at least 1");
    let begun = Instant::now();
    let mut runs = Vec::new();
    for case in &CASES {
        let (input, terms) = drawn(case, args.nodes);
        for (policy, how) in POLICIES {
            let [most, all, node_seconds] = ratios(&input, &terms, how)?;
            runs.push(Simulated { nodes: case.name.into(), policy: policy.into(), most, all, node_seconds });
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let report = Report { runs, replan: replan(args.nodes), seconds };
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?;
    Ok(())
}

/// The same each time.
fn drawn(case: &Case, nodes: usize) -> (Input, Terms) {
    let mut chance = StdRng::seed_from_u64(nodes as u64);
    let sizes = sizes(&mut chance, nodes, case.sigma);
    let mean = sizes.iter().sum::<u64>() as f64 / nodes as f64;
    let room = case.room.map_or(u64::MAX / 2, |images| (images * mean) as u64);
    let lost = if case.lost { (nodes * LOST).div_ceil(1000) } else { 0 };
    let deaths = (0..lost).map(|_| (UNTIL * chance.random::<f64>(), chance.random_range(0..nodes))).collect();
    (Input { sizes, node: BYTES, repository: BYTES, room }, Terms { senders: 1, chunk: CHUNK, deaths })
}

fn sizes(chance: &mut StdRng, nodes: usize, sigma: f64) -> Vec<u64> {
    let mut size = || {
        let (a, b) = (chance.random::<f64>().max(f64::MIN_POSITIVE), chance.random::<f64>());
        let normal = (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
        (BYTES * (sigma * normal).exp()).ceil() as u64
    };
    (0..nodes).map(|_| size()).collect()
}

/// Time to most and to all, node-seconds: each over its bound. Lost nodes are none that could have helped.
fn ratios(input: &Input, terms: &Terms, policy: Policy) -> anyhow::Result<[f64; 3]> {
    let run = run(input, terms, policy);
    let dead = |node: usize| terms.deaths.iter().any(|(_, death)| *death == node);
    let left = input.sizes.iter().enumerate().filter(|(node, _)| !dead(*node)).map(|(_, size)| *size);
    let left = Input { sizes: left.collect(), ..input.clone() };
    let free = run.free.iter().flatten().count();
    ensure!(free == left.sizes.len(), "{policy:?}: only {free} of {} nodes are free at the end", left.sizes.len());
    let wanted = (left.sizes.len() as f64 * SHARE).ceil() as usize;
    let most = run.free(wanted).context("most are not free")?;
    Ok([most / left.free(wanted), run.end / left.all(), run.node_seconds() / left.node_seconds()])
}

/// Seconds that a plan takes for which nothing is remembered.
fn replan(count: usize) -> f64 {
    let sizes = sizes(&mut StdRng::seed_from_u64(1), count, 0.5);
    let node = |load: u64| Node { load, room: 3 * BYTES as u64, receives: true, answers: true, up: BYTES, down: BYTES };
    let nodes: Vec<Node> = sizes.into_iter().map(node).collect();
    let mut longest = 0.0f64;
    let mut plan = |policy: Policy, moves: &[Move]| {
        let repository = Repository { rate: BYTES, senders: 1, tried: 0 };
        let view = View { nodes: &nodes, repository, moves, chunk: CHUNK };
        let begun = Instant::now();
        let started = Planner::new(policy).next(&view, 0.0);
        longest = longest.max(begun.elapsed().as_secs_f64());
        started
    };
    for policy in POLICIES.map(|(_, policy)| policy).into_iter().chain([Policy::Deadline { within: 4.0 }]) {
        // half of what is under way has ended
        let going: Vec<Move> = plan(policy, &[]).into_iter().step_by(2).collect();
        plan(policy, &going);
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_policy_beats_a_bound_and_the_default_is_near_it() {
        for case in &CASES {
            let (input, terms) = drawn(case, 60);
            for (name, policy) in POLICIES {
                let [most, all, _] = ratios(&input, &terms, policy).unwrap();
                assert!(most > 0.999 && (all > 0.999 || case.lost), "{} {name}: {most} {all}", case.name);
                let limit = if case.lost { 1.7 } else { 1.05 };
                assert!(name != "target" || most <= limit, "{}: {most}", case.name);
            }
        }
        assert!(replan(60) > 0.0);
    }
}
