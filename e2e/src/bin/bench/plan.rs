//! The planner of kget alone: how long it thinks over 10,000 nodes, and what its plans are worth on ideal links, of
//! equal and mixed sizes, with disks for two images, and with nodes that are lost.

use std::time::Instant;

use anyhow::{Result, ensure};
use e2e::chance::Chance;
use vmdeploy::transfer::plan::{
    Move, Node, Planner, Policy, Repository, View,
    bounds::Input,
    simulate::{Terms, run},
};

use crate::report::{Figure, Measured, figure};

const TARGET: Policy = Policy::Target { share: SHARE };
const SHARE: f64 = 0.8;
/// The nodes of the figures; fewer are printed.
const MOST: usize = 10_000;
/// Bytes of a node, and a second of a link: one second each.
const BYTES: f64 = 1e9;
const CHUNK: u64 = 4 << 20;
/// Nodes that are lost, of a thousand.
const LOST: usize = 2;

/// Measures.
pub(crate) fn measure() -> Result<Measured> {
    let mut figures = figure("replan_10000_s", &replans(), 1.0, "s", Some(1.0), Some("the longest of all policies"));
    let mut measured = Measured { figures: figures.take().into_iter().collect(), failed: Vec::new() };
    for nodes in [100, 1000, MOST] {
        let begun = Instant::now();
        let found = simulated(nodes)?;
        let took = begun.elapsed().as_secs_f64();
        eprintln!("{nodes} nodes took {took:.2} s");
        if nodes == MOST {
            measured.figures.extend(found);
            measured.figures.extend(figure("simulation_10000_s", &[took], 0.5, "s", Some(60.0), Some("all of them")));
        }
    }
    Ok(measured)
}

/// What a run is like.
struct Case {
    name: &'static str,
    sigma: f64,
    /// Images of others that a node has room for.
    room: Option<f64>,
    lost: bool,
    metric: &'static str,
    goal: Option<f64>,
}

const CASES: [Case; 4] = [
    Case { name: "equal sizes", sigma: 0.0, room: None, lost: false, metric: "t80_equal_vs_bound", goal: Some(1.02) },
    Case { name: "mixed sizes", sigma: 1.0, room: None, lost: false, metric: "t80_mixed_vs_bound", goal: Some(1.05) },
    Case {
        name: "disks for two",
        sigma: 0.5,
        room: Some(2.0),
        lost: false,
        metric: "t80_room_vs_bound",
        goal: Some(1.05),
    },
    Case { name: "nodes are lost", sigma: 0.5, room: None, lost: true, metric: "t80_lost_vs_bound", goal: Some(1.35) },
];

/// Every case under each policy; of the default, time to most against the bound is a figure.
fn simulated(nodes: usize) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for case in &CASES {
        let mut chance = Chance::of(nodes as u64);
        let sizes: Vec<u64> = (0..nodes).map(|_| chance.lognormal(BYTES, case.sigma)).collect();
        let mean = sizes.iter().sum::<u64>() as f64 / nodes as f64;
        let room = case.room.map_or(u64::MAX / 2, |images| (images * mean) as u64);
        let deaths = if case.lost { (nodes * LOST).div_ceil(1000) } else { 0 };
        // while most of them are emptied
        let deaths: Vec<(f64, usize)> = (0..deaths).map(|_| (2.0 * chance.share(), chance.index(nodes))).collect();
        let input = Input { sizes, node: BYTES, repository: BYTES, room };
        let terms = Terms { senders: 1, chunk: CHUNK, deaths };
        for policy in [TARGET, Policy::NodeSeconds, Policy::Rounds] {
            let [most, all, seconds] = ratios(&input, &terms, policy)?;
            eprintln!(
                "  {nodes:5} {:<15} {policy:?}: most {most:.3}, all {all:.3}, node-seconds {seconds:.3} x bound",
                case.name
            );
            if policy == TARGET {
                figures.extend(figure(case.metric, &[most], 0.5, "ratio", case.goal, Some("simulated, 10,000 nodes")));
            }
        }
    }
    Ok(figures)
}

/// Time to most and to all, node-seconds: each over its bound. Lost nodes are none that could have helped.
fn ratios(input: &Input, terms: &Terms, policy: Policy) -> Result<[f64; 3]> {
    let run = run(input, terms, policy);
    let dead = |node: usize| terms.deaths.iter().any(|(_, death)| *death == node);
    let left = input.sizes.iter().enumerate().filter(|(node, _)| !dead(*node)).map(|(_, size)| *size);
    let left = Input { sizes: left.collect(), ..input.clone() };
    ensure!(run.free.iter().flatten().count() == left.sizes.len(), "{policy:?}: not all that are left are free");
    let wanted = (left.sizes.len() as f64 * SHARE).ceil() as usize;
    let most = run.free(wanted).unwrap_or(f64::NAN);
    Ok([most / left.free(wanted), run.end / left.all(), run.node_seconds() / left.node_seconds()])
}

/// Seconds that a plan takes for which nothing is remembered, in the middle of a run.
fn replans() -> Vec<f64> {
    let mut chance = Chance::of(1);
    let nodes: Vec<Node> = (0..MOST)
        .map(|_| Node {
            load: chance.lognormal(BYTES, 0.5),
            room: 3 * BYTES as u64,
            receives: true,
            answers: true,
            up: BYTES,
            down: BYTES,
        })
        .collect();
    let view = |moves: &[Move]| {
        let repository = Repository { rate: BYTES, senders: 1, tried: 0 };
        let view = View { nodes: &nodes, repository, moves, chunk: CHUNK };
        let policies = [TARGET, Policy::NodeSeconds, Policy::Deadline { within: 4.0 }, Policy::Rounds];
        policies.map(|policy| {
            let begun = Instant::now();
            let started = Planner::new(policy).next(&view, 0.0);
            (begun.elapsed().as_secs_f64(), started)
        })
    };
    let first = view(&[]);
    // half of what is under way has ended
    let going: Vec<Move> = first[0].1.iter().step_by(2).copied().collect();
    first.into_iter().chain(view(&going)).map(|(took, _)| took).collect()
}
