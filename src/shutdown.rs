//! How a process runs and ends: SIGTERM or SIGINT cancels a token that everything listens to.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by SIGTERM or SIGINT.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("told to stop"),
            _ = interrupt.recv() => tracing::info!("interrupted"),
        }
        token.cancel();
    });
    Ok(stop)
}

/// Runs what goes on until a signal ends it.
pub fn until_told<W>(work: impl FnOnce(CancellationToken) -> W) -> anyhow::Result<()>
where
    W: Future<Output = anyhow::Result<()>>,
{
    tokio::runtime::Runtime::new()?.block_on(async { work(on_signal()?).await })
}

/// Runs what a person waits for and may interrupt at any time.
pub fn by_hand<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(work);
    // nobody's next line of input is waited for
    runtime.shutdown_background();
    result
}
