//! One image to 8 and 16 nodes: ours, from agent to agent, beside what Debian has for it, on namespaces of this machine
//! with shaped links. What counts is when the last node has the right bytes. No node can have them before its link has
//! carried them once, at the rate that a single connection gets in the same run.
//!
//! Ours is timed from the start of the first agent's process to the last one's word, and the rivals from their start to
//! their end. So is ours while a node in the middle of the chain is killed: then the others count.

pub(crate) mod cliff;
mod modes;
mod rivals;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    chain::{Bringing, Spread, here},
    goodput::goodput,
    ssh::Ssh,
};
use vmdeploy::transfer::plot::{Curve, spread as drawn};

use crate::{
    gather::MEMORY,
    report::{Figure, Measured, at_least, figure},
};

const MIB: usize = 1 << 20;
const FILLING: Duration = Duration::from_secs(3);
/// How often a warm node is started alone.
const ALONE: usize = 3;
/// How soon one is ready is asked of images from this size on.
const LARGE: usize = 256 * MIB;
/// A node that is killed then has one part in so many of the image.
const PART: usize = 3;

/// What is sent to how many, over which links.
struct Size {
    members: u32,
    bytes: usize,
    rate: &'static str,
    runs: usize,
    /// Whether the rivals do it as well.
    rivals: bool,
    /// Whether all of `spec.distribution` do.
    modes: bool,
    /// Of ours in the bound.
    metric: &'static str,
    /// Of the others when one is killed, if one is: their time in the bound, and images out of the repository.
    killed: Option<[&'static str; 2]>,
}

const SIZES: [Size; 4] = [
    Size {
        members: 8,
        bytes: 32 * MIB,
        rate: "50mbit",
        runs: 3,
        rivals: true,
        modes: true,
        metric: "chain8_32mib_vs_bound",
        killed: Some(["chain8_killed_vs_bound", "chain8_killed_images"]),
    },
    Size {
        members: 16,
        bytes: 32 * MIB,
        rate: "50mbit",
        runs: 3,
        rivals: true,
        modes: false,
        metric: "chain16_32mib_vs_bound",
        killed: Some(["chain16_killed_vs_bound", "chain16_killed_images"]),
    },
    Size {
        members: 8,
        bytes: 256 * MIB,
        rate: "100mbit",
        runs: 1,
        rivals: false,
        modes: false,
        metric: "chain8_256mib_vs_bound",
        killed: None,
    },
    Size {
        members: 16,
        bytes: 256 * MIB,
        rate: "100mbit",
        runs: 1,
        rivals: false,
        modes: false,
        metric: "chain16_256mib_vs_bound",
        killed: None,
    },
];

/// What is found out over all sizes.
#[derive(Default)]
struct Found {
    figures: Vec<Figure>,
    failed: Vec<String>,
    /// Ours in the bound, by number of nodes.
    ratios: Vec<(u32, f64)>,
    peaks: Vec<f64>,
    images_out: Vec<f64>,
    warm_bytes: Vec<f64>,
    warm_ready: Vec<f64>,
}

/// Measures; the picture is of 16 nodes beside the rivals.
pub(crate) fn measure(picture: &Path) -> Result<Measured> {
    rivals::install()?;
    let mut found = Found::default();
    for size in &SIZES {
        eprintln!("{} nodes, {} MiB over {} ...", size.members, size.bytes / MIB, size.rate);
        let ours = found.size(size, picture)?;
        if size.modes {
            let own = &found.images_out[found.images_out.len() - size.runs..];
            let note = Some("with which the other ways to bring it are compared");
            found.figures.extend(figure("chain8_broadcast_images", own, 0.5, "images", None, note));
            let Measured { figures, failed } = modes::measure(size, ours);
            found.figures.extend(figures);
            found.failed.extend(failed);
        }
    }
    Ok(found.measured())
}

fn last(curve: &Curve) -> f64 {
    curve.free.iter().copied().fold(0.0, f64::max)
}

impl Found {
    /// How long ours took, as a rule.
    fn size(&mut self, size: &Size, picture: &Path) -> Result<f64> {
        let spread = Spread::new(Path::new(MEMORY), size.members, size.bytes, size.rate)?;
        let rate = goodput(&spread.nodes, 0..1, spread.count(), FILLING)?;
        let bound = size.bytes as f64 / rate;
        eprintln!("  no node has it before {bound:.2} s");
        let mut curves = Vec::new();
        for _ in 0..size.runs {
            curves.push(self.cold(&spread, size, bound)?);
        }
        self.warm(&spread, size)?;
        if let Some(metrics) = size.killed {
            self.killed(&spread, size, bound, metrics);
        }
        let mut times: Vec<f64> = curves.iter().map(last).collect();
        times.sort_by(f64::total_cmp);
        let ours = *times.get(times.len() / 2).context("no run")?;
        let ratios: Vec<f64> = times.iter().map(|time| time / bound).collect();
        self.figures.extend(figure(size.metric, &ratios, 0.5, "ratio", None, None));
        self.ratios.push((size.members, ours / bound));
        self.peaks.push(spread.repository_peak()? as f64 / MIB as f64);
        if size.rivals {
            curves.truncate(1);
            self.rivals(&spread, size, ours, &mut curves)?;
            let title = format!("{} MiB to {} nodes, links of {}", size.bytes / MIB, size.members, size.rate);
            draw(picture, &drawn(&title, spread.count(), bound, &curves))?;
        }
        Ok(ours)
    }

    /// Nobody has it.
    fn cold(&mut self, spread: &Spread, size: &Size, bound: f64) -> Result<Curve> {
        spread.clear()?;
        let before = spread.sent(spread.count())?;
        let begun = Instant::now();
        let mut agents = spread.start_all()?;
        let free = here(&mut agents, begun)?;
        for node in 0..spread.count() {
            spread.right(node)?;
        }
        let out = (spread.sent(spread.count())? - before) as f64 / size.bytes as f64;
        self.images_out.push(out);
        let peak = self.peaks_of(&agents)?;
        let curve = Curve { name: "vmdeploy".into(), free };
        let took = last(&curve);
        eprintln!(
            "  {:<20} {took:7.2} s, {:.2} x bound, {out:.3} images out, {peak:.0} MiB of memory",
            "vmdeploy",
            took / bound
        );
        Ok(curve)
    }

    fn peaks_of(&mut self, agents: &[Bringing]) -> Result<f64> {
        let peaks = agents.iter().map(|agent| Ok(agent.peak()? as f64 / MIB as f64)).collect::<Result<Vec<f64>>>()?;
        let most = peaks.iter().copied().fold(0.0, f64::max);
        self.peaks.extend(peaks);
        Ok(most)
    }

    /// All have it: once all at the same time, and then one alone, as a node is that is given to a job.
    fn warm(&mut self, spread: &Spread, size: &Size) -> Result<()> {
        let all = || (0..=spread.count()).map(|node| spread.sent(node)).sum::<Result<u64>>();
        let before = all()?;
        let mut agents = spread.start_all()?;
        here(&mut agents, Instant::now())?;
        let share = (all()? - before) as f64 / (size.bytes * spread.count()) as f64;
        self.warm_bytes.push(share);
        self.peaks_of(&agents)?;
        drop(agents);
        let alone = || {
            let begun = Instant::now();
            Ok(here(&mut [spread.start(0)?], begun)?.into_iter().fold(0.0, f64::max))
        };
        let ready = (0..ALONE).map(|_| alone()).collect::<Result<Vec<f64>>>()?;
        eprintln!("  {:<20} {ready:.2?} s, {share:.5} of the bytes again", "warm");
        if size.bytes >= LARGE {
            self.warm_ready.extend(ready);
        }
        Ok(())
    }

    /// Nobody has it, and of those in the middle one is killed: the others have to have it all the same.
    fn killed(&mut self, spread: &Spread, size: &Size, bound: f64, metrics: [&'static str; 2]) {
        let (mut ratios, mut images) = (Vec::new(), Vec::new());
        for run in 1..=size.runs {
            match self.one_killed(spread, size) {
                Ok((took, out)) => {
                    let ratio = took / bound;
                    eprintln!("  {:<20} {took:7.2} s, {ratio:.2} x bound, {out:.3} images out", "with one killed");
                    ratios.push(ratio);
                    images.push(out);
                }
                Err(error) => self.failed.push(format!("{} nodes, one killed, run {run}: {error:#}", size.members)),
            }
        }
        let figures = [
            figure(metrics[0], &ratios, 0.5, "ratio", None, Some("the others, one in the middle killed at a third")),
            figure(metrics[1], &images, 1.0, "images", Some(1.1), Some("out of the repository, on the wire")),
        ];
        self.figures.extend(figures.into_iter().flatten());
    }

    /// When the last of the others had it, and images out of the repository.
    fn one_killed(&mut self, spread: &Spread, size: &Size) -> Result<(f64, f64)> {
        spread.clear()?;
        let before = spread.sent(spread.count())?;
        let begun = Instant::now();
        let mut agents = spread.start_all()?;
        let middle = spread.count() / 2;
        let had = spread.has(middle, (size.bytes / PART) as u64)?;
        let mut killed = agents.remove(middle);
        killed.kill()?;
        ensure!(had < (size.bytes / 2) as u64, "{had} bytes were there already: it was killed too late");
        let free = here(&mut agents, begun)?;
        for agent in &agents {
            spread.right(agent.member() as usize)?;
        }
        let out = (spread.sent(spread.count())? - before) as f64 / size.bytes as f64;
        self.peaks_of(&agents)?;
        Ok((free.into_iter().fold(0.0, f64::max), out))
    }

    fn rivals(&mut self, spread: &Spread, size: &Size, ours: f64, curves: &mut Vec<Curve>) -> Result<()> {
        let ssh = Ssh::to(spread)?;
        for rival in &rivals::ALL {
            let done = match rival.does.run(spread, &ssh, None) {
                Ok(done) => done,
                Err(error) => {
                    self.failed.push(format!("{} to {} nodes: {error:#}", rival.name, size.members));
                    continue;
                }
            };
            let curve = Curve { name: rival.name.into(), free: done.here };
            let took = last(&curve);
            let memory = done.peak.map(|peak| format!(", {} MiB of memory", peak / MIB as u64)).unwrap_or_default();
            eprintln!("  {:<20} {took:7.2} s, {:.2} x ours{memory}", rival.name, took / ours);
            let eight = size.members == 8;
            let has_goal = eight && (rival.name == rivals::TAKTUK || rival.name.starts_with("scp"));
            let metric = rival.metrics[usize::from(!eight)];
            let ratio = figure(metric, &[took / ours], 0.5, "ratio", has_goal.then_some(5.0), None);
            self.figures.extend(ratio.map(at_least));
            if let Some(peak) = done.peak.filter(|_| eight && rival.name == rivals::TAKTUK) {
                let (peak, note) = (peak as f64 / MIB as f64, Some("the sender's, for context"));
                self.figures.extend(figure("chain8_taktuk_rss_mib", &[peak], 0.5, "MiB", None, note));
            }
            curves.push(curve);
        }
        Ok(())
    }

    fn measured(self) -> Measured {
        let Self { mut figures, failed, ratios, peaks, images_out, warm_bytes, warm_ready } = self;
        let of = |members: u32| {
            ratios.iter().filter(|(of, _)| *of == members).map(|(_, ratio)| *ratio).collect::<Vec<f64>>()
        };
        let worst = Some("the worst of 32 and 256 MiB");
        let whole = [
            figure("chain8_vs_bound", &of(8), 1.0, "ratio", Some(1.25), worst),
            figure("chain16_vs_bound", &of(16), 1.0, "ratio", Some(1.30), worst),
            figure("chain_rss_mib", &peaks, 1.0, "MiB", Some(64.0), Some("largest of agents and repository")),
            figure(
                "repository_images_out",
                &images_out,
                1.0,
                "images",
                Some(1.1),
                Some("on the wire, with the headers that the kernel counts"),
            ),
            figure("warm_bytes_share", &warm_bytes, 1.0, "ratio", Some(0.01), Some("of all nodes, on the wire")),
            figure("warm_ready_s", &warm_ready, 0.5, "s", Some(1.0), Some("256 MiB: process started to image usable")),
        ];
        figures.extend(whole.into_iter().flatten());
        Measured { figures, failed }
    }
}

fn draw(picture: &Path, text: &str) -> Result<()> {
    let parent = picture.parent().context("no directory for the picture")?;
    std::fs::create_dir_all(parent)?;
    std::fs::write(picture, text).with_context(|| picture.display().to_string())?;
    eprintln!("  drawn: {}", picture.display());
    Ok(())
}
