//! The cliff of VMdeploy's first paper (figure 5: an image of 400 MB to 2, 4, 8 and 16 machines of 2 GB took 27 s, 35 s
//! and then 12 and 16 min), with a sixth of all sizes: real TakTuk, as it is without options, on a machine with that
//! much memory, and ours with every agent and the repository on machines like that. That TakTuk ends for its memory is
//! the kernel's word; with all the memory there is, it gets there.

use std::{path::Path, time::Instant};

use anyhow::Result;
use e2e::{
    chain::{Spread, here},
    goodput::goodput,
    limit::Limit,
    ssh::Ssh,
};

use super::{FILLING, MIB, rivals};
use crate::{
    gather::MEMORY,
    report::{Figure, Measured, figure},
};

const BYTES: usize = 64 * MIB;
/// As 2 GB are to 400 MB.
const MACHINE: u64 = 328 * MIB as u64;
const RATE: &str = "100mbit";
const WHY: &str = "  TakTuk's root keeps the whole file in memory once for each of its direct children, and without -d \
    all of up to ten\n  nodes are its children: with n nodes it takes n times the image. Beyond its machine's memory \
    the paper's machine swapped;\n  this one has nothing to swap to, and the kernel kills TakTuk. Our repository and \
    agents keep some pieces, whatever the\n  image and the number of nodes.";

/// So many nodes, and what is found out there: seconds, and MB that the sender's link has carried.
struct Row {
    members: u32,
    /// Of TakTuk, where it gets there.
    taktuk: [&'static str; 2],
    kills: &'static str,
    ours: [&'static str; 2],
}

/// Of these the time of ours is compared with what nobody can beat.
const EIGHT: u32 = 8;
const ROWS: [Row; 4] = [
    Row {
        members: 2,
        taktuk: ["cliff2_taktuk_s", "cliff2_taktuk_mb"],
        kills: "cliff2_taktuk_oom_kills",
        ours: ["cliff2_ours_s", "cliff2_ours_mb"],
    },
    Row {
        members: 4,
        taktuk: ["cliff4_taktuk_s", "cliff4_taktuk_mb"],
        kills: "cliff4_taktuk_oom_kills",
        ours: ["cliff4_ours_s", "cliff4_ours_mb"],
    },
    Row {
        members: EIGHT,
        taktuk: ["cliff8_taktuk_s", "cliff8_taktuk_mb"],
        kills: "cliff8_taktuk_oom_kills",
        ours: ["cliff8_ours_s", "cliff8_ours_mb"],
    },
    Row {
        members: 16,
        taktuk: ["cliff16_taktuk_s", "cliff16_taktuk_mb"],
        kills: "cliff16_taktuk_oom_kills",
        ours: ["cliff16_ours_s", "cliff16_ours_mb"],
    },
];

/// How far each comes.
pub(crate) fn measure() -> Result<Measured> {
    rivals::install()?;
    eprintln!("the cliff: {} MiB from and to machines of {} MiB, links of {RATE}", BYTES / MIB, MACHINE / MIB as u64);
    let mut found = Found::default();
    for row in &ROWS {
        found.row(row)?;
    }
    eprintln!("{WHY}");
    let Found { mut figures, mut failed, reached, killed } = found;
    if !killed {
        failed.push("the kernel killed TakTuk at no number of nodes: there is no cliff".into());
    }
    let note = Some("of 2, 4, 8 and 16, on small machines");
    figures.extend(figure("cliff_taktuk_nodes", &[f64::from(reached)], 0.5, "nodes", None, note));
    Ok(Measured { figures, failed })
}

#[derive(Default)]
struct Found {
    figures: Vec<Figure>,
    failed: Vec<String>,
    /// Most nodes to which TakTuk has put the image.
    reached: u32,
    /// Whether the kernel has killed it with more of them.
    killed: bool,
}

/// TakTuk's way to the nodes of a row.
struct Put<'a> {
    spread: &'a Spread,
    ssh: &'a Ssh,
    row: &'a Row,
}

/// What it took.
struct Took {
    seconds: f64,
    megabytes: f64,
    peak: f64,
}

impl Put<'_> {
    fn run(&self, limit: Option<&Limit>) -> Result<Took> {
        let put = || rivals::Does::TakTuk(&[]).run(self.spread, self.ssh, limit);
        let (done, megabytes) = sent(self.spread, put)?;
        let peak = done.peak.unwrap_or_default() as f64 / MIB as f64;
        Ok(Took { seconds: done.here.into_iter().fold(0.0, f64::max), megabytes, peak })
    }
}

impl Found {
    fn row(&mut self, row: &Row) -> Result<()> {
        let members = row.members;
        let spread = Spread::new(Path::new(MEMORY), members, BYTES, RATE)?;
        let bound = BYTES as f64 / goodput(&spread.nodes, 0..1, spread.count(), FILLING)?;
        spread.clear()?;
        self.taktuk(&Put { spread: &spread, ssh: &Ssh::to(&spread)?, row })?;
        spread.clear()?;
        let (seconds, megabytes) = sent(&spread, || ours(&spread, members))?;
        let ratio = seconds / bound;
        eprintln!("  {members} nodes: vmdeploy {seconds:.2} s, {ratio:.2} x bound, {megabytes:.0} MB sent");
        self.figures.extend(figure(row.ours[0], &[seconds], 0.5, "s", None, Some("on small machines")));
        self.figures.extend(figure(row.ours[1], &[megabytes], 0.5, "MB", None, Some("out of the repository")));
        if members == EIGHT {
            let note = Some("8 small machines");
            self.figures.extend(figure("cliff_ours_vs_bound", &[ratio], 0.5, "ratio", None, note));
        }
        Ok(())
    }

    fn taktuk(&mut self, put: &Put<'_>) -> Result<()> {
        let members = put.row.members;
        let limit = Limit::new(&format!("taktuk-{members}"), MACHINE)?;
        let within = put.run(Some(&limit));
        let kills = limit.killed()?;
        let note = Some("processes killed for memory, says the kernel");
        self.figures.extend(figure(put.row.kills, &[kills as f64], 0.5, "processes", None, note));
        match within {
            Ok(Took { seconds, megabytes, peak }) => {
                self.reached = members;
                eprintln!("  {members} nodes: taktuk put {seconds:.2} s, {megabytes:.0} MB sent, with {peak:.0} MiB");
                let [time, bytes] = put.row.taktuk;
                self.figures.extend(figure(time, &[seconds], 0.5, "s", None, Some("on a small machine")));
                self.figures.extend(figure(bytes, &[megabytes], 0.5, "MB", None, Some("by its root")));
            }
            Err(error) if kills > 0 => {
                let why = format!("{error:#}");
                let why = why.rsplit("; ").next().unwrap_or_default();
                eprintln!("  {members} nodes: taktuk put is killed for its memory, says the kernel: {why}");
                if !self.killed {
                    self.killed = true;
                    self.control(put);
                }
            }
            Err(error) => self.failed.push(format!("taktuk to {members} nodes, not for its memory: {error:#}")),
        }
        Ok(())
    }

    /// The same, with all the memory there is.
    fn control(&mut self, put: &Put<'_>) {
        let members = put.row.members;
        match put.run(None) {
            Ok(Took { seconds, megabytes, peak }) => {
                eprintln!(
                    "  {members} nodes: without a limit {seconds:.2} s, {megabytes:.0} MB sent, with {peak:.0} MiB"
                );
                let note = Some("to as many nodes as it is killed with first");
                let figures = [
                    figure("cliff_unlimited_s", &[seconds], 0.5, "s", None, note),
                    figure("cliff_unlimited_mb", &[megabytes], 0.5, "MB", None, Some("by its root")),
                    figure("cliff_unlimited_rss_mib", &[peak], 0.5, "MiB", None, Some("small machines have 328")),
                ];
                self.figures.extend(figures.into_iter().flatten());
            }
            Err(error) => self.failed.push(format!("taktuk to {members} nodes without a limit: {error:#}")),
        }
    }
}

/// What comes of it, and the MB that the sender's link carries meanwhile.
fn sent<T>(spread: &Spread, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let before = spread.sent(spread.count())?;
    let done = work()?;
    Ok((done, (spread.sent(spread.count())? - before) as f64 / 1e6))
}

fn ours(spread: &Spread, members: u32) -> Result<f64> {
    let of = |name: &str| Limit::new(&format!("{name}-{members}"), MACHINE);
    let repository = of("repository")?;
    spread.limit_repository(&repository)?;
    let limits = (0..members).map(|member| of(&format!("agent-{member}"))).collect::<Result<Vec<Limit>>>()?;
    let (begun, mut agents) = (Instant::now(), spread.start_all()?);
    for (agent, limit) in agents.iter().zip(&limits) {
        agent.limit(limit)?;
    }
    let seconds = here(&mut agents, begun)?;
    for node in 0..spread.count() {
        spread.right(node)?;
    }
    Ok(seconds.into_iter().fold(0.0, f64::max))
}
