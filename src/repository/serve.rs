//! The server's life: it answers from its first moment on, if only why it cannot serve yet. A bucket that cannot be
//! reached, or that refuses, is waited for; whoever asks meanwhile is told what is wrong.

use std::{io, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    Serve,
    arrivals::Arrivals,
    bearers::Bearers,
    bucket::{Moment, Use},
    collect,
    durable::{AllSteps, Root, disk_error},
    http::{self, Gate, Service},
    scrub,
    store::Store,
    usage,
};
use crate::{
    clock::Clock,
    driver::repository::RepositoryError,
    health::{self, Readiness},
    metrics::Metrics,
    store::ticket::TicketKey,
    tls::{self, Credentials},
};

/// How often a bucket that did not answer is asked again, and one that did whether it still is this repository's.
const AGAIN: Duration = Duration::from_secs(10);
/// The check of readiness.
const STORE: &str = "store";

/// Serves until it is told to stop.
pub(super) async fn serve(args: Serve, stop: CancellationToken) -> anyhow::Result<()> {
    let secret = std::fs::read(&args.ticket_key).with_context(|| format!("read {}", args.ticket_key.display()))?;
    let key = TicketKey::new(&secret)?;
    let credentials = Credentials::read(&args.tls)?;
    tokio::spawn(tls::stop_when_renewed(args.tls.clone(), credentials.clone(), stop.clone()));
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
    let server = Server {
        gate: Gate::default(),
        readiness: Readiness::expecting([STORE]),
        metrics: Metrics::new(),
        clock: Clock::system(),
        stop: stop.clone(),
    };
    tracing::info!(listen = %args.listen, root = %args.root.display(), "serving the repository");
    let (readiness, metrics) = (server.readiness.clone(), server.metrics.clone());
    let served = tls::serve(listener, &credentials, server.gate.router(), stop.clone());
    let health = async {
        match args.health {
            Some(address) => anyhow::Ok(health::serve(address, readiness, metrics, stop.clone()).await?),
            None => Ok(()),
        }
    };
    tokio::try_join!(async { anyhow::Ok(served.await?) }, health, server.attend(&args, key))?;
    Ok(())
}

struct Server {
    gate: Gate,
    readiness: Readiness,
    metrics: Metrics,
    clock: Clock,
    stop: CancellationToken,
}

impl Server {
    /// Opens the store, and sees to it until the end.
    async fn attend(&self, args: &Serve, key: TicketKey) -> anyhow::Result<()> {
        let Some(store) = self.open(args).await? else { return Ok(()) };
        tokio::spawn(collect::keep_collecting(store.clone(), self.clock.clone(), self.stop.clone()));
        tokio::spawn(scrub::keep_reading(store.clone(), self.clock.clone(), self.stop.clone()));
        let (shown, clock, metrics) = (store.clone(), self.clock.clone(), self.metrics.clone());
        tokio::spawn(usage::keep_showing(shown, clock, metrics, self.stop.clone()));
        let (limits, arrivals, clock) = (args.limits(), Arrivals::default(), self.clock.clone());
        let router =
            http::router(Service { store: store.clone(), key, limits, arrivals, bearers: Bearers::default(), clock });
        self.gate.serve(router, args.bucket.bucket.is_some().then(Moment::now));
        self.readiness.ready(STORE);
        if args.bucket.bucket.is_none() {
            self.stop.cancelled().await;
            return Ok(());
        }
        loop {
            if self.stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                let resigned = blocking(&store, |store| store.root.resign()).await;
                return resigned.context("give the bucket up");
            }
            let asked = Moment::now();
            match blocking(&store, |store| store.root.confirm()).await {
                Ok(()) => {
                    self.gate.open(asked);
                    self.readiness.ready(STORE);
                }
                // what others have done there meanwhile is not known
                Err(error) => self.cannot_serve(disk_error(&error)),
            }
        }
    }

    /// The store, as soon as there is one; none if it is told to stop before.
    async fn open(&self, args: &Serve) -> anyhow::Result<Option<Arc<Store>>> {
        loop {
            let (now, with_bucket, own) = (self.clock.now(), args.bucket.bucket.is_some(), args.clone());
            let stop = self.stop.clone();
            match tokio::task::spawn_blocking(move || own.open(now, stop)).await? {
                // also where it is to stop by now: the bucket is given up as ever
                Ok(store) => return Ok(Some(Arc::new(store))),
                Err(error) if with_bucket => self.cannot_serve(error),
                // of a directory there is nothing to wait for
                Err(error) => return Err(error.into()),
            }
            if self.stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                return Ok(None);
            }
        }
    }

    fn cannot_serve(&self, error: RepositoryError) {
        let why = match &error {
            RepositoryError::Unreachable(why) => why.clone(),
            other => other.to_string(),
        };
        tracing::warn!(why, "the repository cannot serve");
        self.readiness.not_ready(STORE, why);
        self.gate.close(error);
    }
}

impl Serve {
    fn open(&self, now: jiff::Timestamp, stop: CancellationToken) -> Result<Store, RepositoryError> {
        let opened = match self.bucket.objects() {
            Ok(None) => Root::open(&self.root, Box::new(AllSteps)),
            Ok(Some(objects)) => {
                let objects = objects.until(stop);
                Root::in_front_of(objects, Use::with_cache(self.cache.0), &self.root, Box::new(AllSteps))
            }
            Err(error) => Err(error),
        };
        Store::of(opened.map_err(|e| disk_error(&e))?, now)
    }
}

async fn blocking(store: &Arc<Store>, work: fn(&Store) -> io::Result<()>) -> io::Result<()> {
    let store = store.clone();
    tokio::task::spawn_blocking(move || work(&store)).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Args;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn what_is_served_is_said_on_the_command_line() {
        let parsed = |more: &[&str]| {
            let plain = ["repository", "--root=/r", "--listen=127.0.0.1:1", "--tls=/t", "--ticket-key=/k"];
            Cli::try_parse_from(plain.iter().chain(more)).map(|cli| cli.args.serve.unwrap())
        };
        let plain = parsed(&[]).unwrap();
        assert_eq!((plain.bucket.bucket, plain.cache.0), (None, 20 << 30));
        let all = ["--bucket=s3://a/b", "--endpoint=http://c", "--region=d", "--cache=3Gi"];
        let bucket = parsed(&all).unwrap();
        assert_eq!((bucket.bucket.bucket.as_deref(), bucket.cache.0), (Some("s3://a/b"), 3 << 30));
        assert!(parsed(&all[1..]).is_err(), "of which bucket");
        let only = Cli::try_parse_from(["repository", "usage", "--bucket=s3://a"]).unwrap();
        assert!(only.args.check.is_some() && only.args.serve.is_none());
    }
}
