//! Files of many hosts gathered into one directory: ours, by each policy, beside what Debian has for it, on namespaces
//! of this machine with shaped links. What counts is when hosts are free: when what they had is safe elsewhere.
//!
//! Ours is timed from the first order, as the bounds are, and the rivals from their start; how long ours takes to
//! start its side on the hosts is a figure of its own.

mod rivals;

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    goodput::goodput,
    hosts::{Hosts, outcome},
    ssh::Ssh,
};
use vmdeploy::transfer::{
    plan::bounds::Input,
    plot::{Curve, svg},
    run::trace,
};

use crate::report::{Figure, Measured, at_least, figure};

/// Where files are: no disk is measured.
pub(crate) const MEMORY: &str = "/dev/shm";
/// For the goodput.
const FILLING: Duration = Duration::from_secs(3);
/// The share of the hosts that is waited for.
const SHARE: f64 = 0.8;

/// What is gathered, over which links.
struct Size {
    hosts: usize,
    bytes: usize,
    rate: &'static str,
    /// Bytes that are sent at a time: a small part of a file.
    chunk: u64,
    rivals: bool,
    names: [&'static str; 5],
}

/// The figures that have goals are those of the largest with rivals.
const SIZES: [Size; 3] = [
    Size {
        hosts: 32,
        bytes: 2_500_000,
        rate: "20mbit",
        chunk: 32 << 10,
        rivals: true,
        names: [
            "t80_vs_bound",
            "all_vs_bound",
            "node_seconds_vs_bound",
            "node_seconds_policy_vs_bound",
            "t80_paper_vs_ours",
        ],
    },
    Size {
        hosts: 16,
        bytes: 5_000_000,
        rate: "40mbit",
        chunk: 64 << 10,
        rivals: false,
        names: [
            "t80_vs_bound_16",
            "all_vs_bound_16",
            "node_seconds_vs_bound_16",
            "node_seconds_policy_vs_bound_16",
            "t80_paper_vs_ours_16",
        ],
    },
    Size {
        hosts: 64,
        bytes: 1_000_000,
        rate: "20mbit",
        chunk: 16 << 10,
        rivals: false,
        names: [
            "t80_vs_bound_64",
            "all_vs_bound_64",
            "node_seconds_vs_bound_64",
            "node_seconds_policy_vs_bound_64",
            "t80_paper_vs_ours_64",
        ],
    },
];

/// One program's run.
struct Run {
    name: &'static str,
    /// When each host was free, in order.
    free: Vec<f64>,
    /// When all was here.
    all: f64,
    /// Seconds before the first order.
    start: f64,
    /// Share of the time in which the destination's link was idle.
    idle: Option<f64>,
}

impl Run {
    fn new(name: &'static str, mut free: Vec<f64>, all: f64) -> Self {
        free.sort_by(f64::total_cmp);
        Self { name, free, all, start: 0.0, idle: None }
    }

    /// When most were free.
    fn most(&self) -> f64 {
        let wanted = (self.free.len() as f64 * SHARE).ceil() as usize;
        self.free.get(wanted.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    fn node_seconds(&self) -> f64 {
        self.free.iter().sum()
    }
}

/// Measures; the picture is of the runs beside the rivals.
pub(crate) fn measure(picture: &Path) -> Result<Measured> {
    rivals::install()?;
    let mut measured = Measured { figures: Vec::new(), failed: Vec::new() };
    let mut idle = Vec::new();
    for size in &SIZES {
        eprintln!("{} hosts ...", size.hosts);
        let mut hosts = Hosts::new(Path::new(MEMORY), vec![size.bytes; size.hosts], Some(size.rate))?;
        let rate = goodput(&hosts.nodes, 0..1, size.hosts, FILLING)?;
        let input =
            Input { sizes: vec![size.bytes as u64; size.hosts], node: rate, repository: rate, room: u64::MAX / 2 };
        let mut runs = Vec::new();
        for (name, policy) in [("vmdeploy", ""), ("vmdeploy --node-seconds", "--node-seconds"), ("as Kget+", "--paper")]
        {
            let run = ours(&mut hosts, name, &format!("{policy} --chunk {}", size.chunk))?;
            idle.extend(run.idle);
            told(&run, &input);
            runs.push(run);
        }
        let [policy, seconds, paper] = &runs[..] else { unreachable!("three were pushed") };
        measured.figures.extend(ratios(size, &input, [policy, seconds, paper]));
        if !size.rivals {
            continue;
        }
        measured.figures.extend(figure("goodput_mb_s", &[rate / 1e6], 0.5, "MB/s", None, Some("one connection")));
        measured.figures.extend(figure(
            "hosts_start_s",
            &[policy.start],
            0.5,
            "s",
            None,
            Some("before the first order"),
        ));
        let ssh = Ssh::on(&hosts)?;
        for rival in rivals::ALL {
            hosts.renew()?;
            std::fs::create_dir(hosts.path("dest"))?;
            match (rival.run)(&hosts, &ssh).and_then(|free| hosts.all_here().map(|()| free)) {
                Ok(free) => {
                    let all = free.iter().copied().fold(0.0, f64::max);
                    let run = Run::new(rival.name, free, all);
                    told(&run, &input);
                    let ratio = figure(rival.metric, &[run.most() / runs[0].most()], 0.5, "ratio", rival.goal, None);
                    measured.figures.extend(ratio.map(at_least));
                    runs.push(run);
                }
                Err(error) => measured.failed.push(format!("{}: {error:#}", rival.name)),
            }
        }
        draw(picture, size, &input, runs)?;
    }
    let note = Some("largest of ours, the destination's link");
    measured.figures.extend(figure("idle_share", &idle, 1.0, "ratio", Some(0.01), note));
    Ok(measured)
}

/// One gather; an error unless every byte is right and the trace keeps its promises.
fn ours(hosts: &mut Hosts, name: &'static str, options: &str) -> Result<Run> {
    hosts.renew()?;
    let begun = Instant::now();
    let output = hosts.command(options)?.output()?;
    let took = begun.elapsed().as_secs_f64();
    let outcome = outcome(&output)?;
    ensure!(output.status.success() && outcome.freed.len() == hosts.count(), "{name}: {outcome:?}");
    hosts.right(|_| true)?;
    let verdict = trace::check(&hosts.events()?);
    ensure!(verdict.wrongs.is_empty() && verdict.stored == hosts.bytes(), "{name}: {verdict:?}");
    let free = outcome.freed.iter().map(|freed| freed.seconds).collect();
    let run = Run::new(name, free, outcome.seconds);
    Ok(Run { start: took - outcome.seconds, idle: Some(verdict.idle_share()), ..run })
}

fn ratios(size: &Size, input: &Input, [policy, seconds, paper]: [&Run; 3]) -> Vec<Figure> {
    let [most, all, held, least, rounds] = size.names;
    let wanted = (size.hosts as f64 * SHARE).ceil() as usize;
    let goal = |goal: f64| size.rivals.then_some(goal);
    let ratio = |name, of: f64, to: f64, goal| figure(name, &[of / to], 0.5, "ratio", goal, None);
    let figures = [
        ratio(most, policy.most(), input.free(wanted), goal(1.10)),
        ratio(all, policy.all, input.all(), goal(1.05)),
        ratio(held, policy.node_seconds(), input.node_seconds(), goal(1.15)),
        ratio(least, seconds.node_seconds(), input.node_seconds(), goal(1.02)),
        ratio(rounds, paper.most(), policy.most(), goal(1.6)).map(at_least),
    ];
    figures.into_iter().flatten().collect()
}

fn told(run: &Run, input: &Input) {
    let (most, all, seconds) = (run.most(), run.all, run.node_seconds());
    let idle = run.idle.map(|idle| format!(", link idle {idle:.4}")).unwrap_or_default();
    let bound = input.node_seconds();
    eprintln!(
        "  {:<24} most {most:6.2} s, all {all:6.2} s, node-seconds {:.2} x bound{idle}",
        run.name,
        seconds / bound
    );
}

fn draw(picture: &Path, size: &Size, input: &Input, runs: Vec<Run>) -> Result<()> {
    let curves: Vec<Curve> = runs.into_iter().map(|run| Curve { name: run.name.into(), free: run.free }).collect();
    let title = format!("{} hosts of {:.1} MB, links of {}", size.hosts, size.bytes as f64 / 1e6, size.rate);
    let parent = picture.parent().context("no directory for the picture")?;
    std::fs::create_dir_all(parent)?;
    std::fs::write(picture, svg(&title, input, &curves)).with_context(|| picture.display().to_string())?;
    eprintln!("  drawn: {}", picture.display());
    Ok(())
}

/// Runs a command to its end.
fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
