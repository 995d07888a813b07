//! The repository: the durable store of images and generations on a directory, or in a bucket (`bucket`), behind
//! mutual TLS.
//!
//! Nothing has a final name before it is whole, checked and synced, and nothing that was published is
//! ever replaced; so whatever is interrupted, each complete generation stays readable. Who may do
//! what is decided from the peer's certificate (`access`), whose writes count from the fence of
//! the job (`store::admission`), and what a namespace may have from the tickets (`claims`).
//!
//! A file of a part is stored whole, or as a recipe over packs of blocks that all generations of its job share
//! (`store::recipe`, `store::pack`). Packs are asked for in `packs`, found by their blocks in an index that can be
//! lost (`blocks`, `indices`), and removed when no recipe names them and nobody was promised them lately
//! (`collect`). All of them are read now and again (`readback`, `scrub`), and a generation that needs what is not
//! there any more is no source for a restore (`damage`). A job may take another one's generation over (`adopt`).

mod access;
mod adopt;
pub mod arrivals;
pub mod bearers;
mod blocks;
pub mod bucket;
pub mod check;
mod claims;
pub mod collect;
mod damage;
mod directory;
pub mod durable;
mod files;
pub mod http;
mod images;
mod indices;
mod packs;
mod pieces;
mod publish;
mod readback;
mod receive;
mod recipes;
pub mod room;
mod scrub;
mod serve;
pub mod store;
pub mod uploads;
pub mod usage;

use std::{net::SocketAddr, path::PathBuf};

use tokio_util::sync::CancellationToken;

use self::{bucket::Address, room::Limits};
use crate::api::quantity::Bytes;

/// Keeps images and generations on a directory, or in a bucket.
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    check: Option<check::Command>,
    #[command(flatten)]
    serve: Option<Serve>,
}

/// How the server runs.
#[derive(clap::Args, Debug, Clone)]
// clap does not see by itself that it is meant, with what is flattened into it
#[group(args = ["root"])]
pub struct Serve {
    /// Directory of the store, or of the cache of its bucket; this process must be the only one that serves it.
    #[arg(long)]
    root: PathBuf,
    #[command(flatten)]
    bucket: Address,
    /// So much of the bucket stays on the disk, besides what is being received, for example 20Gi.
    #[arg(long, default_value = "20Gi", requires = "bucket")]
    cache: Bytes,
    /// Address to serve on.
    #[arg(long)]
    listen: SocketAddr,
    /// Directory with ca.crt, tls.crt and tls.key.
    #[arg(long)]
    tls: PathBuf,
    /// File with the secret that kget signs tickets with.
    #[arg(long)]
    ticket_key: PathBuf,
    /// Plain address of /healthz, /readyz and /metrics.
    #[arg(long)]
    health: Option<SocketAddr>,
    /// Largest part of a generation that one member may send, in bytes as stored.
    #[arg(long, default_value_t = 1 << 40)]
    max_part: u64,
    /// All packs of one job, in bytes: what its generations share.
    #[arg(long, default_value_t = 1 << 42)]
    max_packs: u64,
    /// Largest image, in bytes.
    #[arg(long, default_value_t = 1 << 38)]
    max_image: u64,
    /// Largest file of a job's result, in bytes.
    #[arg(long, default_value_t = 16 << 30)]
    max_output: u64,
    /// All files of one job's result, in bytes.
    #[arg(long, default_value_t = 64 << 30)]
    max_outputs: u64,
    /// Most files of one job's result.
    #[arg(long, default_value_t = 4096)]
    max_output_files: usize,
    /// Bytes of the disk that stay free: with less, nothing new is accepted.
    #[arg(long, default_value_t = 256 << 20)]
    min_free: u64,
}

impl Serve {
    fn limits(&self) -> Limits {
        Limits {
            part: self.max_part,
            packs: self.max_packs,
            image: self.max_image,
            output: self.max_output,
            outputs: self.max_outputs,
            output_files: self.max_output_files,
            free: self.min_free,
        }
    }
}

/// Runs the server until it is told to stop, or one of the checks.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    match (args.check, args.serve) {
        (Some(command), _) => command.run(),
        (None, Some(args)) => serve::serve(args, stop).await,
        (None, None) => anyhow::bail!("say what to serve: --root, --listen, --tls and --ticket-key"),
    }
}

#[cfg(test)]
mod bucket_tests;
#[cfg(test)]
mod collect_tests;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod indices_tests;
#[cfg(test)]
mod packs_tests;

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        serve: Serve,
    }

    #[test]
    fn c2_each_limit_is_that_of_its_option() {
        let needed = "repository --root=/r --listen=127.0.0.1:0 --tls=/t --ticket-key=/k";
        let limits = |options: &str| {
            let words = format!("{needed} {options}");
            Cli::try_parse_from(words.split_whitespace()).unwrap().serve.limits()
        };
        let found = limits(
            "--max-part=1 --max-packs=2 --max-image=3 --max-output=4 --max-outputs=5 --max-output-files=6 --min-free=7",
        );
        let sizes = [found.part, found.packs, found.image, found.output, found.outputs, found.free];
        assert_eq!((sizes, found.output_files), ([1, 2, 3, 4, 5, 7], 6));
        assert_eq!(limits("").packs, 1 << 42);
    }
}
