//! An agent without a virtual machine: it brings the images of its job, serves them to the job's other agents until it
//! is ended, and says when they are here. For measuring how images spread.

use std::{io::Write as _, process::ExitCode, sync::Arc, time::Instant};

use tokio_util::sync::CancellationToken;

use super::{
    super::{AgentArgs, AgentFailure},
    Connect, Supervisor,
    fetch::Progress,
    server,
    vm::Paths,
};
use crate::{
    clock::Clock,
    driver::{agent::AgentConfig, repository::pace::Pace},
    tls::{self, Credentials},
};

/// Runs until it is killed, or its image cannot be had.
pub(in super::super) fn run(
    args: &AgentArgs,
    config: AgentConfig,
    connect: &Connect,
) -> Result<ExitCode, AgentFailure> {
    let begun = Instant::now();
    let credentials = Credentials::read(&args.config)?;
    let pace = Arc::<Pace>::default();
    let store = connect(&credentials, &config.repository, None, pace.clone())?;
    let runtime = super::runtime()?;
    let paths = Paths::of(args);
    runtime.block_on(async {
        let listener = super::listen(&config).await?;
        let supervisor = Supervisor::new(config, paths, store, None, pace, Clock::system(), None);
        let serving = tls::serve(listener, &credentials, server::router(supervisor.clone()), CancellationToken::new());
        let bringing = async {
            let fetched = supervisor.fetch(None, &Progress::of(None)).await;
            let fetched = fetched.map_err(|error| AgentFailure::Config(error.to_string()))?;
            let seconds = begun.elapsed().as_secs_f64();
            let mut out = std::io::stdout().lock();
            let said = writeln!(out, "{seconds:.3} {}", fetched.disk.display()).and_then(|()| out.flush());
            said.map_err(AgentFailure::io("say that the image is here"))?;
            Ok::<_, AgentFailure>(fetched)
        };
        let both = async {
            let _held = bringing.await?;
            std::future::pending::<Result<ExitCode, AgentFailure>>().await
        };
        tokio::select! {
            served = serving => served.map(|()| ExitCode::SUCCESS).map_err(AgentFailure::from),
            failed = both => failed,
        }
    })
}
