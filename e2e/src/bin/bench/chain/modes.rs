//! The ways in which a job may have its image brought (`spec.distribution`), each beside the chain: how long until all
//! nodes have it, and how often the image leaves the repository.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    chain::{Bringing, Spread, here},
    ssh::Ssh,
};

use super::Size;
use crate::{
    gather::MEMORY,
    report::{Figure, Measured, figure},
};

/// Longest wait for what comes in a moment.
const SOON: Duration = Duration::from_secs(60);

/// A way to bring it.
struct Mode {
    name: &'static str,
    /// Its time in that of the chain, and images out of the repository.
    metrics: [&'static str; 2],
    note: &'static str,
}

const NODE_CACHE: Mode = Mode {
    name: "NodeCache",
    metrics: ["chain8_nodecache_vs_ours", "chain8_nodecache_images"],
    note: "each from the repository",
};
const TAKTUK: Mode = Mode {
    name: "TakTuk",
    metrics: ["chain8_by_taktuk_vs_ours", "chain8_by_taktuk_images"],
    note: "the hold's, over the links by ssh; it is up before",
};
const SHARED_FIRST: Mode = Mode {
    name: "Shared, the first job",
    metrics: ["chain8_share_first_vs_ours", "chain8_share_first_images"],
    note: "a directory of this machine: no link, no file server",
};
const SHARED: Mode = Mode {
    name: "Shared, the next job",
    metrics: ["chain8_share_next_vs_ours", "chain8_share_next_images"],
    note: "the same directory, from which all read",
};

struct Modes<'a> {
    size: &'a Size,
    /// The chain's time for it.
    ours: f64,
    figures: Vec<Figure>,
}

/// Measures them, where the chain took so long.
pub(super) fn measure(size: &Size, ours: f64) -> Measured {
    let mut modes = Modes { size, ours, figures: Vec::new() };
    let done = [
        modes.node_cache().context("distribution: NodeCache"),
        modes.by_taktuk().context("distribution: TakTuk"),
        modes.shared().context("distribution: Shared"),
    ];
    let failed = done.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    Measured { figures: modes.figures, failed }
}

impl Modes<'_> {
    fn node_cache(&mut self) -> Result<()> {
        let mut spread = self.spread()?;
        spread.stay_alone();
        self.bring(&spread, &NODE_CACHE).map(drop)
    }

    fn by_taktuk(&mut self) -> Result<()> {
        let mut spread = self.spread()?;
        let ssh = Ssh::to(&spread)?;
        let _hold = spread.hold_over_links(&ssh)?;
        self.bring(&spread, &TAKTUK)?;
        // what is late comes by the chain, and the time would be a mixture
        let by_taktuk = format!("by_taktuk={}", self.size.bytes);
        for node in 1..spread.count() {
            let said = fs::read_to_string(spread.path(&format!("agent-{node}.log")))?;
            ensure!(said.contains(&by_taktuk), "node {node} does not have all of it by TakTuk");
        }
        Ok(())
    }

    fn shared(&mut self) -> Result<()> {
        let mut spread = self.spread()?;
        let image = spread.share()?.join(spread.image.replace(':', "-"));
        let agents = self.bring(&spread, &SHARED_FIRST)?;
        // who had it from the repository puts it there afterwards
        let begun = Instant::now();
        while !image.exists() {
            ensure!(begun.elapsed() < SOON, "nobody has put the image into {}", image.display());
            thread::sleep(Duration::from_millis(20));
        }
        drop(agents);
        spread.clear()?;
        self.bring(&spread, &SHARED).map(drop)
    }

    /// Nodes that have nothing.
    fn spread(&self) -> Result<Spread> {
        let Size { members, bytes, rate, .. } = *self.size;
        let spread = Spread::new(Path::new(MEMORY), members, bytes, rate)?;
        spread.clear()?;
        Ok(spread)
    }

    /// All agents start; those that brought it to every node.
    fn bring(&mut self, spread: &Spread, mode: &Mode) -> Result<Vec<Bringing>> {
        let before = spread.sent(spread.count())?;
        let begun = Instant::now();
        let mut agents = spread.start_all()?;
        let took = here(&mut agents, begun)?.into_iter().fold(0.0, f64::max);
        for node in 0..spread.count() {
            spread.right(node)?;
        }
        let out = (spread.sent(spread.count())? - before) as f64 / self.size.bytes as f64;
        let ratio = took / self.ours;
        eprintln!("  {:<21} {took:7.2} s, {ratio:.2} x ours, {out:.3} images out", mode.name);
        let figures = [
            figure(mode.metrics[0], &[ratio], 0.5, "ratio", None, Some(mode.note)),
            figure(mode.metrics[1], &[out], 0.5, "images", None, None),
        ];
        self.figures.extend(figures.into_iter().flatten());
        Ok(agents)
    }
}
