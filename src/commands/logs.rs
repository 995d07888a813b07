//! `vmdeploy logs`: what a member's command has printed.

use super::member::{Member, cluster, copy};
use crate::subresources::paths;

/// Arguments of `vmdeploy logs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job, or JOB/INDEX for another member than 0.
    member: Member,
    /// Namespace; that of the kubeconfig if absent.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Goes on until the job has ended.
    #[arg(short, long)]
    follow: bool,
}

/// Prints the output.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let (client, namespace) = cluster(args.namespace.as_deref()).await?;
    let path = paths::logs(&namespace, &args.member.job, args.member.index, args.follow);
    copy(&client, path, &mut tokio::io::stdout()).await
}
