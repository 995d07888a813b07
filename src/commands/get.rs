//! `vmdeploy get`: a file that a member has kept.

use std::path::PathBuf;

use anyhow::Context as _;

use super::member::{Member, cluster, copy};
use crate::subresources::paths;

/// Arguments of `vmdeploy get`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job, or JOB/INDEX for another member than 0.
    member: Member,
    /// Path of the file in the guest, as in spec.outputs.
    path: String,
    /// Namespace; that of the kubeconfig if absent.
    #[arg(short, long)]
    namespace: Option<String>,
    /// File to write; standard output if absent.
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// Fetches the file.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let (client, namespace) = cluster(args.namespace.as_deref()).await?;
    let path = paths::output(&namespace, &args.member.job, args.member.index, &args.path);
    match &args.output {
        None => copy(&client, path, &mut tokio::io::stdout()).await,
        Some(to) => {
            let file = tokio::fs::File::create(to).await;
            copy(&client, path, &mut file.with_context(|| format!("failed to write {}", to.display()))?).await
        }
    }
}
