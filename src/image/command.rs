//! `vmdeploy importer`: imports one image and ends. What came of it is the termination message.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::{ImportOrder, Outcome, import::import};
use crate::{driver::repository::http::HttpRepository, tls::Credentials};

/// Arguments of `vmdeploy importer`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// `host:port` of the repository.
    #[arg(long)]
    repository: String,
    /// Directory with ca.crt, tls.crt and tls.key.
    #[arg(long)]
    credentials: PathBuf,
    /// Directory for files on their way.
    #[arg(long)]
    work: PathBuf,
    /// What to import, as JSON.
    #[arg(long)]
    order: String,
    /// File for the outcome, as JSON.
    #[arg(long, default_value = "/dev/termination-log")]
    outcome: PathBuf,
}

/// Imports, writes the outcome, and fails if the import did.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let order: ImportOrder = serde_json::from_str(&args.order).context("failed to understand the order")?;
    let credentials = Credentials::read(&args.credentials)?;
    let store = HttpRepository::new(&credentials, &args.repository)?;
    let outcome = tokio::select! {
        outcome = import(&order, &store, &args.work) => outcome,
        () = stop.cancelled() => anyhow::bail!("told to stop"),
    };
    keep(&outcome, &args.outcome)?;
    match outcome {
        Outcome::Imported { disk, .. } => {
            tracing::info!(digest = disk.digest, size = disk.size, "imported");
            Ok(())
        }
        Outcome::Failed(trouble) => Err(trouble.into()),
    }
}

fn keep(outcome: &Outcome, path: &Path) -> anyhow::Result<()> {
    let text = serde_json::to_string(outcome)?;
    // the kubelet made the file; where there is none, it is made
    let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).open(path)?;
    file.write_all(text.as_bytes()).with_context(|| format!("failed to write {}", path.display()))
}
