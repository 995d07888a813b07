//! The benchmarks: each prints metric, value and goal.

mod chain;
mod convert;
mod evict;
mod faults;
mod gather;
mod kill;
mod network;
mod operator;
mod plan;
mod report;
mod snapshot;

use std::path::PathBuf;

use anyhow::ensure;
use clap::{CommandFactory as _, Parser, ValueEnum, error::ErrorKind};

/// Measures one thing.
#[derive(Parser)]
struct Arguments {
    /// What is measured.
    name: Name,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
    /// Only this part of what is measured of snapshots.
    #[arg(long)]
    only: Option<snapshot::Part>,
    /// Where the picture of a gather or a chain goes; by default below target/bench.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// An image to 8 and 16 nodes, beside scp, rsync and TakTuk, also with one node killed, and by each distribution.
    Chain,
    /// An image to 2, 4, 8 and 16 machines with little memory, beside TakTuk.
    ChainCliff,
    /// Archives of root file systems made into images, beside mke2fs alone; what memory and disk that takes.
    Convert,
    /// Files of 16, 32 and 64 hosts gathered, beside scp, kaget and TakTuk.
    Gather,
    /// The same with a holder that is killed.
    GatherFaults,
    /// A kill, from its announcement to the next tick, and the fence.
    Kill,
    /// Slots of their own that are given back one by one.
    Evict,
    /// A job's network: its overlay, and connections over a kill.
    Network,
    /// The operator with 1,000 idle jobs.
    Operator,
    /// Plans for 10,000 nodes.
    Plan,
    /// Snapshots of a VM that writes 4 MB/s: what the second one takes, beside programs for backups.
    Snapshot,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    vmdeploy::tls::install_provider();
    let arguments = Arguments::parse();
    if arguments.only.is_some() && arguments.name != Name::Snapshot {
        Arguments::command().error(ErrorKind::ArgumentConflict, "--only is for parts of: snapshot").exit();
    }
    let picture = |name: &str| arguments.svg.clone().unwrap_or_else(|| format!("target/bench/{name}.svg").into());
    let measured = match arguments.name {
        Name::Chain => {
            let picture = picture("chain");
            tokio::task::spawn_blocking(move || chain::measure(&picture)).await??
        }
        Name::Convert => tokio::task::spawn_blocking(convert::measure).await??,
        Name::ChainCliff => tokio::task::spawn_blocking(chain::cliff::measure).await??,
        Name::Gather => {
            let picture = picture("gather");
            tokio::task::spawn_blocking(move || gather::measure(&picture)).await??
        }
        Name::GatherFaults => tokio::task::spawn_blocking(faults::measure).await?,
        Name::Plan => plan::measure()?,
        Name::Kill => kill::measure().await?,
        Name::Evict => evict::measure().await?,
        Name::Network => network::measure().await?,
        Name::Snapshot => snapshot::measure(arguments.only).await?,
        Name::Operator => report::Measured { figures: operator::measure().await?, failed: Vec::new() },
    };
    report::print(&measured.figures, arguments.json)?;
    ensure!(measured.failed.is_empty(), "failed samples:\n{}", measured.failed.join("\n"));
    Ok(())
}
