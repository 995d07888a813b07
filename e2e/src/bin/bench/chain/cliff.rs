//! The cliff of VMdeploy's first paper (figure 5: an image of 400 MB to 2, 4 and 8 machines of 2 GB took 27 s, 35 s and
//! then 12 min), with a sixth of all sizes: real TakTuk, as it is without options, on a machine with that much memory,
//! and ours with every agent and the repository on machines like that.

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
    report::{Measured, figure},
};

const BYTES: usize = 64 * MIB;
/// As 2 GB are to 400 MB.
const MACHINE: u64 = 328 * MIB as u64;
const RATE: &str = "100mbit";
const WHY: &str = "  TakTuk's root keeps the whole file in memory once for each of its direct children, and without -d all of \
    up to ten\n  nodes are its children: with n nodes it takes n times the image. Beyond its machine's memory the paper's \
    machine swapped;\n  this one has nothing to swap to, and TakTuk is ended. Our repository and agents keep some pieces, \
    whatever the image\n  and the number of nodes.";

/// How far each comes.
pub(crate) fn measure() -> Result<Measured> {
    rivals::install()?;
    eprintln!("the cliff: {} MiB from and to machines of {} MiB, links of {RATE}", BYTES / MIB, MACHINE / MIB as u64);
    let (mut reached, mut ratio) = (0, f64::NAN);
    for members in [2, 4, 8] {
        let spread = Spread::new(Path::new(MEMORY), members, BYTES, RATE)?;
        let bound = BYTES as f64 / goodput(&spread.nodes, 0..1, spread.count(), FILLING)?;
        spread.clear()?;
        let limit = Limit::new(&format!("taktuk-{members}"), MACHINE)?;
        let done = rivals::Does::TakTuk(&[]).run(&spread, &Ssh::to(&spread)?, Some(&limit));
        match &done {
            Ok(done) => {
                reached = members;
                let peak = done.peak.unwrap_or_default() / MIB as u64;
                eprintln!(
                    "  {members} nodes: taktuk put {:.2} s, with {peak} MiB",
                    done.here.iter().fold(0.0, |a: f64, b| a.max(*b))
                );
            }
            Err(error) => {
                let why = format!("{error:#}");
                eprintln!(
                    "  {members} nodes: taktuk put does not get there: {}",
                    why.rsplit("; ").next().unwrap_or_default()
                );
            }
        }
        spread.clear()?;
        let ours = ours(&spread, members)?;
        ratio = ours / bound;
        eprintln!("  {members} nodes: vmdeploy {ours:.2} s, {ratio:.2} x bound");
    }
    eprintln!("{WHY}");
    let figures = [
        figure(
            "cliff_taktuk_nodes",
            &[f64::from(reached)],
            0.5,
            "nodes",
            None,
            Some("of 2, 4 and 8, on small machines"),
        ),
        figure("cliff_ours_vs_bound", &[ratio], 0.5, "ratio", None, Some("8 small machines")),
    ];
    Ok(Measured { figures: figures.into_iter().flatten().collect(), failed: Vec::new() })
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
