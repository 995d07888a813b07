//! The planner of kget alone: how long it thinks over 10,000 nodes, and what its plans are worth on ideal links, of
//! equal and mixed sizes, with disks for two images, and with nodes that are lost.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use e2e::agents::program;
use vmdeploy::transfer::run::simulate::Report;

use crate::report::{Figure, Measured, figure};

/// The nodes of the figures; those of fewer are printed.
const MOST: usize = 10_000;
/// Of the default policy.
const FIGURES: [(&str, &str, Option<f64>); 4] = [
    ("equal sizes", "t80_equal_vs_bound", Some(1.02)),
    ("mixed sizes", "t80_mixed_vs_bound", Some(1.05)),
    ("disks for two", "t80_room_vs_bound", Some(1.05)),
    ("nodes are lost", "t80_lost_vs_bound", None),
];

/// Measures.
pub(crate) fn measure() -> Result<Measured> {
    let mut measured = Measured { figures: Vec::new(), failed: Vec::new() };
    for nodes in [100, 1000, MOST] {
        let report = simulated(nodes)?;
        eprintln!("{nodes} nodes in {:.2} s: times over what no plan can beat", report.seconds);
        for run in &report.runs {
            let (most, all, held) = (run.most, run.all, run.node_seconds);
            eprintln!("  {:<15} {:<13} most {most:7.3} all {all:7.3} node-seconds {held:8.3}", run.nodes, run.policy);
        }
        if nodes == MOST {
            measured.figures = figures(&report);
        }
    }
    Ok(measured)
}

fn simulated(nodes: usize) -> Result<Report> {
    let output = Command::new(program()?).args(["kget", "simulate", "--nodes", &nodes.to_string()]).output()?;
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{}", said());
    serde_json::from_slice(&output.stdout).with_context(said)
}

fn figures(report: &Report) -> Vec<Figure> {
    let replan = figure("replan_10000_s", &[report.replan], 0.5, "s", Some(1.0), Some("the slowest policy"));
    let runs = report.runs.len();
    let seconds = figure("simulation_10000_s", &[report.seconds / runs as f64], 0.5, "s", None, Some("a run"));
    let ratios = FIGURES.iter().filter_map(|(nodes, metric, goal)| {
        let run = report.runs.iter().find(|run| run.nodes == *nodes && run.policy == "target")?;
        figure(metric, &[run.most], 0.5, "ratio", *goal, Some("simulated, 10,000 nodes"))
    });
    replan.into_iter().chain(seconds).chain(ratios).collect()
}
