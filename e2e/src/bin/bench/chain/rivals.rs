//! What Debian has to copy a file from here to each of many nodes.

use std::{
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use e2e::{
    Nodes,
    chain::{Spread, peak},
    limit::Limit,
    ssh::{OPTIONS, Ssh},
};

use crate::report::install_packages;

/// How often the memory of a rival is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A rival.
pub(super) struct Rival {
    pub(super) name: &'static str,
    /// Its time in ours, on 8 nodes and on 16.
    pub(super) metrics: [&'static str; 2],
    pub(super) does: Does,
}

#[derive(Clone, Copy)]
pub(super) enum Does {
    ScpInTurn,
    ScpAtOnce,
    RsyncAtOnce,
    /// With these options before the first host.
    TakTuk(&'static [&'static str]),
}

pub(super) const TAKTUK: &str = "taktuk put";

pub(super) const ALL: [Rival; 6] = [
    Rival {
        name: "scp, one by one",
        metrics: ["chain8_scp_in_turn_vs_ours", "chain16_scp_in_turn_vs_ours"],
        does: Does::ScpInTurn,
    },
    Rival { name: "scp, all at once", metrics: ["chain8_scp_vs_ours", "chain16_scp_vs_ours"], does: Does::ScpAtOnce },
    Rival {
        name: "rsync, all at once",
        metrics: ["chain8_rsync_vs_ours", "chain16_rsync_vs_ours"],
        does: Does::RsyncAtOnce,
    },
    Rival { name: TAKTUK, metrics: ["chain8_taktuk_vs_ours", "chain16_taktuk_vs_ours"], does: Does::TakTuk(&[]) },
    Rival {
        name: "taktuk -d 2 put",
        metrics: ["chain8_taktuk_d2_vs_ours", "chain16_taktuk_d2_vs_ours"],
        does: Does::TakTuk(&["-d", "2"]),
    },
    Rival {
        name: "taktuk -d 1 put",
        metrics: ["chain8_taktuk_d1_vs_ours", "chain16_taktuk_d1_vs_ours"],
        does: Does::TakTuk(&["-d", "1"]),
    },
];

/// What a rival did.
pub(super) struct Done {
    /// When each node had the image.
    pub(super) here: Vec<f64>,
    /// Most memory of the program that sends, in bytes; absent where there are several.
    pub(super) peak: Option<u64>,
}

pub(super) fn install() -> Result<()> {
    install_packages(&[
        ("taktuk", "taktuk"),
        ("rsync", "rsync"),
        ("scp", "openssh-client"),
        ("/usr/sbin/sshd", "openssh-server"),
    ])
}

impl Does {
    /// Copies the image to all nodes, which have nothing before, with this much memory; an error unless every copy is
    /// right.
    pub(super) fn run(self, spread: &Spread, ssh: &Ssh, limit: Option<&Limit>) -> Result<Done> {
        for node in 0..spread.count() {
            let _ = std::fs::remove_file(spread.node(node).join("image"));
        }
        let begun = Instant::now();
        let all = 0..spread.count();
        let done = match self {
            Self::ScpInTurn => {
                let here = all.map(|node| to_its_end(&mut scp(spread, ssh, node), begun, limit).map(|(here, _)| here));
                Done { here: here.collect::<Result<_>>()?, peak: None }
            }
            Self::ScpAtOnce => at_once(all.map(|node| scp(spread, ssh, node)), begun)?,
            Self::RsyncAtOnce => at_once(all.map(|node| rsync(spread, ssh, node)), begun)?,
            Self::TakTuk(options) => {
                // it says nothing before its end: until then no node is known to have it
                let (here, peak) = to_its_end(&mut taktuk(spread, ssh, options), begun, limit)?;
                Done { here: vec![here; spread.count()], peak: Some(peak) }
            }
        };
        for node in 0..spread.count() {
            let copy = spread.node(node).join("image");
            let found = e2e::agents::digest(&std::fs::read(&copy).with_context(|| copy.display().to_string())?);
            ensure!(found == spread.image, "node {node} has {found}");
        }
        Ok(done)
    }
}

fn scp(spread: &Spread, ssh: &Ssh, node: usize) -> Command {
    let mut command = spread.nodes.command(spread.count(), "scp");
    command.args(OPTIONS).arg("-i").arg(&ssh.key).arg(spread.content());
    command.arg(format!("root@{}:{}", Nodes::address(node), ssh.source.display()));
    command
}

fn rsync(spread: &Spread, ssh: &Ssh, node: usize) -> Command {
    let mut command = spread.nodes.command(spread.count(), "rsync");
    command.arg("-e").arg(&ssh.shell).arg(spread.content());
    command.arg(format!("root@{}:{}", Nodes::address(node), ssh.source.display()));
    command
}

fn taktuk(spread: &Spread, ssh: &Ssh, options: &[&str]) -> Command {
    let mut command = spread.nodes.command(spread.count(), "taktuk");
    command.arg("-c").arg(&ssh.shell).args(options);
    for node in 0..spread.count() {
        command.args(["-m", &Nodes::address(node).to_string()]);
    }
    let (from, to) = (spread.content().display().to_string(), ssh.source.display().to_string());
    command.args(["broadcast", "put", "[", &from, "]", "[", &to, "]"]);
    command
}

fn at_once(commands: impl Iterator<Item = Command>, begun: Instant) -> Result<Done> {
    let copies: Vec<_> =
        commands.map(|mut command| thread::spawn(move || to_its_end(&mut command, begun, None))).collect();
    let here = copies.into_iter().map(|copy| {
        let (here, _) = copy.join().map_err(|_| anyhow!("a copy panicked"))??;
        Ok(here)
    });
    Ok(Done { here: here.collect::<Result<_>>()?, peak: None })
}

/// Runs a command to its end: when that was, and the most memory that it had.
fn to_its_end(command: &mut Command, begun: Instant, limit: Option<&Limit>) -> Result<(f64, u64)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    limit.map_or(Ok(()), |limit| limit.holds_for(child.id()))?;
    let mut most = 0;
    while child.try_wait()?.is_none() {
        // one that has just ended has none
        most = most.max(peak(&child).unwrap_or_default());
        thread::sleep(LOOK);
    }
    let output = child.wait_with_output()?;
    let (status, said) = (output.status, String::from_utf8_lossy(&output.stderr));
    ensure!(status.success(), "{command:?}: {}; {status}", said.trim());
    Ok((begun.elapsed().as_secs_f64(), most))
}
