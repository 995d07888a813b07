//! `vmdeploy exec`: a command in a guest, by its qemu-guest-agent.

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hyper::Request;

use super::member::{Member, cluster, in_words};
use crate::{
    driver::{
        agent::{EXEC_LIMIT, ExecOrder, ExecReply},
        guest::exec::MOST,
    },
    subresources::paths,
};

/// Arguments of `vmdeploy exec`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job, or JOB/INDEX for another member than 0.
    member: Member,
    /// The command and its arguments; it has no input, and no terminal.
    #[arg(last = true, required = true)]
    command: Vec<String>,
    /// Namespace; that of the kubeconfig if absent.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Seconds after which the command is killed.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=i64::from(EXEC_LIMIT)))]
    timeout: u32,
}

/// Runs the command; its exit code.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (client, namespace) = cluster(args.namespace.as_deref()).await?;
    let path = paths::exec(&namespace, &args.member.job, args.member.index);
    let order = serde_json::to_vec(&ExecOrder { command: args.command, timeout: args.timeout })?;
    let request = Request::post(path).header("content-type", "application/json").body(order)?;
    let reply: ExecReply = client.request(request).await.map_err(in_words)?;
    std::io::stdout().write_all(&BASE64.decode(reply.stdout).context("the output is not base64")?)?;
    std::io::stderr().write_all(&BASE64.decode(reply.stderr).context("the output is not base64")?)?;
    if reply.cut {
        eprintln!("(only the first {} KiB of each output are shown)", MOST >> 10);
    }
    Ok(ExitCode::from(u8::try_from(reply.code).unwrap_or(u8::MAX)))
}
