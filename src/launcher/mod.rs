//! `vmdeploy launcher`: starts agents on a node that has no kubelet.
//!
//! A hold starts one on each node of its OAR job through TakTuk, as root, and speaks to it on its standard input: first
//! a line with the slot's launch key, then beats. The operator orders agents from it ([`crate::driver::launcher`]). It
//! lives no longer than the hold: at the end of its input, or when that is silent, it ends, and with it all it has
//! started, however it ends: each agent is process 1 of a process namespace that dies with it. OAR's kill thereby
//! reaches what runs as root.

mod agents;
mod process;
mod server;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, BufReader},
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::agents::LaunchedAgents;
use crate::{
    clock::Clock,
    driver::{agent::NODE_DIR, launcher::LaunchKey, oar::hold::SILENCE},
    names::Identity,
    tls,
};

/// Certificates last as long: no slot does.
const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// The launcher of the slot before may take as long to end.
const PREDECESSOR: Duration = Duration::from_secs(30);
/// A line of the hold is shorter.
const LINE: usize = 512;

/// Arguments of `vmdeploy launcher`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// TCP port that the operator reaches it at.
    #[arg(long)]
    pub port: u16,
    /// Directory of the node that outlives the slot: cached images, leases.
    #[arg(long, default_value = NODE_DIR)]
    pub node_dir: PathBuf,
}

/// Runs the launcher to its end, which is the end of its input. One thread: what it starts dies with the thread that
/// started it.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // whatever the user's is: directories are made as they are said to be
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let program = std::env::current_exe().context("failed to find the own program")?;
    let result = runtime.block_on(launch(args, &program, BufReader::new(tokio::io::stdin())));
    // a read of the input may never end
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

async fn launch(args: &Args, program: &Path, mut hold: impl AsyncBufRead + Unpin) -> anyhow::Result<()> {
    let Some(key) = line(&mut hold).await else { bail!("the hold said no launch key") };
    let key = LaunchKey::read(&key)?;
    let agents = Arc::new(LaunchedAgents::open(&args.node_dir, program, PREDECESSOR).await?);
    let now = Clock::system().now();
    let credentials = key.authority(now)?.issue(&Identity::Launcher, now, LIFETIME)?;
    let listener = listen(args.port).await?;
    let stop = CancellationToken::new();
    let served = tls::serve(listener, &credentials, server::router(agents.clone()), stop.clone());
    let ended = async {
        while line(&mut hold).await.is_some() {}
        tracing::info!("the hold has gone");
    };
    tokio::select! {
        served = served => served?,
        () = ended => {}
    }
    stop.cancel();
    agents.end_all().await;
    Ok(())
}

/// The next line of the hold; none if it has gone.
async fn line(hold: &mut (impl AsyncBufRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    let mut limited = tokio::io::AsyncReadExt::take(hold, LINE as u64);
    match timeout(SILENCE, limited.read_until(b'\n', &mut bytes)).await {
        Ok(Ok(1..)) => String::from_utf8(bytes).ok(),
        Ok(Ok(0) | Err(_)) | Err(_) => None,
    }
}

/// The port, once whoever has it has gone.
async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let begun = std::time::Instant::now();
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < PREDECESSOR => {
                sleep(Duration::from_millis(200)).await;
            }
            Err(error) => return Err(error).with_context(|| format!("failed to listen at {address}")),
        }
    }
}

#[cfg(test)]
mod tests;
