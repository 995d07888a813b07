//! `vmdeploy connect`: a TCP port of a guest at standard input and output, as ssh's ProxyCommand wants.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::Request;
use tokio::io::AsyncWrite;

use super::member::{Member, cluster, in_words};
use crate::{
    stream::{End, carry},
    subresources::paths,
};

/// Arguments of `vmdeploy connect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job, or JOB/INDEX for another member than 0.
    member: Member,
    /// TCP port of the guest.
    port: u16,
    /// Namespace; that of the kubeconfig if absent.
    #[arg(short, long)]
    namespace: Option<String>,
}

/// Joins the port with standard input and output until both directions have ended.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let (client, namespace) = cluster(args.namespace.as_deref()).await?;
    let path = paths::port(&namespace, &args.member.job, args.member.index, args.port);
    let connection = client.connect(Request::get(path).body(Vec::new())?).await.map_err(in_words)?;
    Ok(carry(connection.into_stream(), End::User, tokio::io::stdin(), Output(tokio::io::stdout())).await?)
}

/// Standard output that can be ended: whoever reads it shall see that the guest has.
struct Output(tokio::io::Stdout);

impl AsyncWrite for Output {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.0).poll_flush(context))?;
        // the last holder of a pipe's end closes it
        rustix::stdio::dup2_stdout(std::fs::File::options().write(true).open("/dev/null")?)?;
        Poll::Ready(Ok(()))
    }
}
