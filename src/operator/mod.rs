//! `vmdeploy operator`: puts the controllers together and runs them while this process leads.
//!
//! Decides nothing by itself. It comes up in this order: health page, CRDs served, leadership,
//! authority and credentials of the parts, caches, controllers; each step waits for the one before
//! and says so on the health page, and none of them crashes the process for something that is only
//! late.

mod caches;
mod controllers;
mod credentials;
mod figures;
mod offer;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use kube::{Client, client::ClientBuilder};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    credentials::{RENEWAL, Vault},
    figures::Figures,
};
use crate::{
    api::BestEffortJob,
    clock::Clock,
    config::{Config, QuotaConfig},
    controller::{join, served},
    driver::{
        cluster::{client, count::RequestCounts},
        site::directory::SiteDirectory,
    },
    health::{self, Readiness},
    leadership::Candidate,
    metrics::Metrics,
    store::machine::Offer,
    tls::Authority,
};

/// Arguments of `vmdeploy operator`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File with the configuration.
    #[arg(long)]
    config: PathBuf,
    /// Plain address of /healthz, /readyz and /metrics.
    #[arg(long, default_value = "0.0.0.0:8080")]
    health: SocketAddr,
    /// Address of the API of logs and outputs, which the cluster's API server must know; not served
    /// if absent.
    #[arg(long)]
    subresources: Option<SocketAddr>,
    /// The container image of this process: if agents have the same one, so have they its QEMU.
    #[arg(long, env = "VMDEPLOY_IMAGE")]
    image: Option<String>,
}

/// The kinds this process reads and writes.
const KINDS: &[&str] = &["BestEffortJob", "VmImage", "Snapshot"];
/// Name of the Lease.
const LEASE: &str = "vmdeploy-operator";
/// Time between two looks at the credentials of the parts.
const SUPPLY: Duration = Duration::from_secs(600);
/// Time between two tries of what must work before anything else does.
const RETRY: Duration = Duration::from_secs(3);
/// Longest time in which passes that have begun may end.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// Checks of the health page.
const LEADER: &str = "leader";
const CREDENTIALS: &str = "credentials";
const CACHES: &str = "caches";

/// What every part of the process shares.
struct Process {
    config: Arc<Config>,
    offer: Offer,
    client: Client,
    clock: Clock,
    metrics: Metrics,
    requests: RequestCounts,
    readiness: Readiness,
    subresources: Option<SocketAddr>,
}

/// Runs the operator until `stop` is cancelled.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let text =
        std::fs::read_to_string(&args.config).with_context(|| format!("failed to read {}", args.config.display()))?;
    let config = Config::read(&text).with_context(|| format!("failed to understand {}", args.config.display()))?;
    let (metrics, readiness) = (Metrics::new(), Readiness::expecting([served::CHECK, LEADER, CREDENTIALS, CACHES]));
    // the page is there until everything else has ended
    let health = health::serve(args.health, readiness.clone(), metrics.clone(), CancellationToken::new());
    let health = tokio::spawn(health);

    let requests = RequestCounts::default();
    let client = ClientBuilder::try_from(client::config().await?)?.with_layer(&requests).build();
    let process = Process {
        offer: offer::offer(&config, args.image.as_deref()).await,
        config: Arc::new(config),
        client,
        clock: Clock::system(),
        metrics,
        requests,
        readiness,
        subresources: args.subresources,
    };
    tokio::select! {
        result = process.run(stop.clone()) => result?,
        served = health => served?.with_context(|| format!("failed to serve {}", args.health))?,
    }
    Ok(())
}

impl Process {
    async fn run(&self, stop: CancellationToken) -> anyhow::Result<()> {
        if !served::wait(&self.client, KINDS, &self.readiness, &stop).await {
            return Ok(());
        }
        let candidate = Candidate::new(self.client.clone(), &self.config.namespace, LEASE);
        self.readiness.not_ready(LEADER, "another process leads");
        candidate.lead(stop, |epoch, stop| self.lead(epoch, stop)).await?;
        Ok(())
    }

    /// The work of the leader.
    async fn lead(&self, epoch: u64, stop: CancellationToken) -> anyhow::Result<()> {
        self.readiness.ready(LEADER);
        self.metrics.leader.set(1);
        let vault = Vault::new(self.client.clone(), &self.config.namespace);
        let Some(authority) = self.authority(&vault, &stop).await else { return Ok(()) };
        self.readiness.ready(CREDENTIALS);

        let tasks = TaskTracker::new();
        let figures = Arc::new(Figures::new(self.metrics.clone()));
        let Some(caches) = caches::start(&self.client, &self.config.namespace, &figures, &tasks, &stop).await else {
            return Ok(());
        };
        let requests = join::is_needed(&self.config).then(|| caches::requests(&self.client, &tasks, &stop));
        self.readiness.ready(CACHES);
        let jobs = caches.view.jobs.clone();
        let sites = self.start_controllers(epoch, &authority, caches, requests, &tasks, &stop)?;
        tasks.close();
        tracing::info!(epoch, "the controllers run");

        let result = tokio::select! {
            () = stop.cancelled() => Ok(()),
            result = self.upkeep(&vault, &authority) => result,
            // what would be written could not be relied on: the process begins again and waits
            older = served::until_other(&self.client, KINDS, &self.readiness) => Err(older.into()),
            never = count(&figures, &jobs, &self.config.quota, &self.requests, &sites) => match never {},
        };
        stop.cancel();
        if tokio::time::timeout(SHUTDOWN, tasks.wait()).await.is_err() {
            tracing::warn!("passes did not end in time");
        }
        result
    }

    /// The authority, once everything the parts need exists. None if told to stop before.
    async fn authority(&self, vault: &Vault, stop: &CancellationToken) -> Option<Arc<Authority>> {
        loop {
            let tried = async {
                let authority = vault.authority(self.clock.now()).await?;
                vault.supply(&authority, self.clock.now()).await?;
                anyhow::Ok(authority)
            };
            match tried.await {
                Ok(authority) => return Some(Arc::new(authority)),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "failed to supply the credentials");
                    self.readiness.not_ready(CREDENTIALS, format!("{error:#}"));
                }
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// Keeps the credentials of the parts fresh; ends when the operator's own are due, so that the
    /// process begins again with new ones.
    async fn upkeep(&self, vault: &Vault, authority: &Authority) -> anyhow::Result<()> {
        let due = self.clock.now() + RENEWAL;
        while self.clock.now() < due {
            tokio::time::sleep(SUPPLY).await;
            if let Err(error) = vault.supply(authority, self.clock.now()).await {
                tracing::warn!(error = format!("{error:#}"), "failed to renew the credentials");
            }
        }
        tracing::info!("the operator's own certificate is due: beginning again");
        Ok(())
    }
}

async fn count(
    figures: &Figures,
    jobs: &kube::runtime::reflector::Store<BestEffortJob>,
    quota: &QuotaConfig,
    requests: &RequestCounts,
    sites: &SiteDirectory,
) -> std::convert::Infallible {
    loop {
        figures.count(jobs, quota, requests, sites);
        tokio::time::sleep(figures::INTERVAL).await;
    }
}
