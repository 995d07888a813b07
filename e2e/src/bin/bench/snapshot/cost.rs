//! What a capture and its upload cost beside QEMU: processor time and memory of the agent, with a small guest and a
//! large one.

use anyhow::{Context as _, Result};
use e2e::agents::{Agent, Guests, LIMIT, World, capture};

use super::{pause::at_work, writers};
use crate::report::{Figure, figure};

/// Captures of the small guest.
const CAPTURES: u32 = 5;
/// Fills 3 GB with pages of which no two are the same, and counts on.
const LARGE: &str = r#"cat > /tmp/large.pl <<'END'
use strict; $| = 1; open(my $r, '<:raw', '/dev/urandom') or die; read($r, my $block, 1 << 20);
my @memory; for my $n (1 .. 3000) { push @memory, $block ^ (pack('N', $n) x (1 << 18)); }
for (my $n = 1; ; $n++) { print "$n large 0\n"; select undef, undef, undef, 0.1; }
END
exec perl /tmp/large.pl"#;

pub(super) fn measure() -> Result<Vec<Figure>> {
    let world = World::new(writers(1), None)?;
    let small = world.nodes.at_the_switch(costs(&world, CAPTURES))?;
    drop(world);
    let world = World::new(Guests { members: 1, memory: "4Gi", script: LARGE }, None)?;
    let large = world.nodes.at_the_switch(costs(&world, 1))?;
    let figures = [
        figure("agent_cpu_s_per_gb", &[small.seconds_per_gb], 0.5, "s", None, Some("256 MiB, captured and sent")),
        figure("agent_cpu_s_per_gb_4gib", &[large.seconds_per_gb], 0.5, "s", None, None),
        figure("agent_rss_mib", &[small.memory], 0.5, "MiB", Some(64.0), Some("largest, with a guest of 256 MiB")),
        figure("agent_rss_4gib_mib", &[large.memory], 0.5, "MiB", Some(64.0), Some("the same with one of 4 GiB")),
    ];
    Ok(figures.into_iter().flatten().collect())
}

struct Costs {
    seconds_per_gb: f64,
    memory: f64,
}

async fn costs(world: &World, captures: u32) -> Result<Costs> {
    let agents = at_work(world).await?;
    let agent = agents.first().context("no agent")?;
    let (before, mut bytes) = (seconds(agent)?, 0);
    for generation in 1..=captures {
        capture(&agents, generation, true).await?;
        let manifest = world.store(&agents, generation).await?;
        bytes += manifest.members.iter().flat_map(|member| &member.files).map(|file| file.size).sum::<u64>();
        agent.counts_to(1, LIMIT).await?;
    }
    let seconds_per_gb = (seconds(agent)? - before) / (bytes as f64 / 1e9);
    Ok(Costs { seconds_per_gb, memory: memory(agent)? })
}

/// Processor time of the agent's processes so far.
fn seconds(agent: &Agent) -> Result<f64> {
    let mut ticks = 0.0;
    for pid in agent.processes()? {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, rest) = stat.rsplit_once(')').context("stat")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        for place in [11, 12] {
            ticks += fields.get(place).context("stat")?.parse::<f64>()?;
        }
    }
    let unit = std::process::Command::new("getconf").arg("CLK_TCK").output()?.stdout;
    Ok(ticks / String::from_utf8(unit)?.trim().parse::<f64>()?)
}

/// The most memory that the agent's processes have had, together, in MiB.
fn memory(agent: &Agent) -> Result<f64> {
    let mut kib = 0.0;
    for pid in agent.processes()? {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        kib += line.trim().trim_end_matches(" kB").parse::<f64>()?;
    }
    Ok(kib / 1024.0)
}
