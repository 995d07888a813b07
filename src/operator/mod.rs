//! `vmdeploy operator`: puts the controllers together and runs them while this process leads.
//!
//! Decides nothing by itself. It comes up in this order: health page, CRDs served, leadership,
//! authority and credentials of the parts, caches, controllers; each step waits for the one before
//! and says so on the health page, and none of them crashes the process for something that is only
//! late.

mod caches;
mod credentials;
mod figures;
mod offer;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use kube::{Client, client::ClientBuilder, runtime::controller::Action};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    credentials::{LIFETIME, RENEWAL, Vault},
    figures::Figures,
};
use crate::{
    api::{BestEffortJob, Snapshot, VmImage},
    clock::Clock,
    config::{Config, QuotaConfig},
    controller::{
        Runner, accounts,
        agents::AgentHub,
        image, job, join, served, snapshot,
        wake::{Waker, wakes},
    },
    driver::{
        agent::http::AgentsHttp,
        cluster::{client, count::RequestCounts, importers::KubeImporters, joins::KubeJoins, kube::KubeCluster},
        kadeploy::directory::KadeployDirectory,
        launcher::LauncherDirectory,
        repository::http::HttpRepository,
        site::directory::SiteDirectory,
    },
    health::{self, Readiness},
    leadership::Candidate,
    metrics::Metrics,
    names::{Identity, JobUid},
    store::machine::Offer,
    subresources::{self, source::Source},
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
/// Passes of one controller at the same time.
const CONCURRENCY: u16 = 8;
/// Changes of one object within this time lead to one pass.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Time between two looks at the credentials of the parts.
const SUPPLY: Duration = Duration::from_secs(600);
/// Time between two tries of what must work before anything else does.
const RETRY: Duration = Duration::from_secs(3);
/// Time between two tries to serve logs and outputs.
const UNSERVED: Duration = Duration::from_secs(30);
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
        let (waker, job_wakes) = wakes::<BestEffortJob>();
        let (image_waker, image_wakes) = wakes::<VmImage>();
        let (snapshot_waker, snapshot_wakes) = wakes::<Snapshot>();
        let wakers = caches::Wakers { jobs: waker.clone(), images: image_waker, snapshots: snapshot_waker };
        let figures = Arc::new(Figures::new(self.metrics.clone()));
        let history = job::history::History::default();
        let namespace = &self.config.namespace;
        let Some(view) = caches::start(&self.client, namespace, wakers, &figures, &history, &tasks, &stop).await else {
            return Ok(());
        };
        let requests = join::is_needed(&self.config).then(|| caches::requests(&self.client, &tasks, &stop));
        self.readiness.ready(CACHES);
        let (jobs, view) = (view.jobs.clone(), Arc::new(view));

        let own = authority.issue(&Identity::Operator, self.clock.now(), LIFETIME)?;
        let repository = Arc::new(HttpRepository::new(&own, &self.config.repository)?);
        let agents = Arc::new(AgentsHttp::new(own, Some(epoch)));
        let cluster = Arc::new(KubeCluster::new(self.client.clone(), namespace.as_str(), None));
        let wake: Arc<dyn Fn(&JobUid) + Send + Sync> = {
            let waker = waker.clone();
            Arc::new(move |job| waker.uid(job))
        };
        let hub = Arc::new(AgentHub::new(agents.clone(), self.clock.clone()));
        let sites = Arc::new(SiteDirectory::new(self.config.sites.clone(), self.clock.clone(), wake.clone()));
        let deployers = Arc::new(KadeployDirectory::new(self.config.sites.clone(), self.clock.clone()));
        let memory = job::memory::Memory::default();
        let joins = Arc::new(KubeJoins(self.client.clone()));
        let job_context = job::Context {
            config: self.config.clone(),
            offer: self.offer.clone(),
            clock: self.clock.clone(),
            leadership: job::plan::Leadership { epoch, since: self.clock.now() },
            cluster: cluster.clone(),
            joins: joins.clone(),
            view: view.clone(),
            sites: sites.clone(),
            deployers: deployers.clone(),
            launchers: Arc::new(LauncherDirectory::new(self.clock.clone())),
            agents: agents.clone(),
            hearing: hub.clone(),
            repository: repository.clone(),
            authority: authority.clone(),
            memory: memory.clone(),
            networks: job::networks::Networks::default(),
            history,
            wake: wake.clone(),
        };
        tasks.spawn(listen(hub, waker, stop.clone()));
        tasks.spawn(self.runner(&stop).run(job_wakes, jobs.clone(), Arc::new(job_context), job_pass));
        let images = image::Context {
            deployers,
            config: self.config.clone(),
            clock: self.clock.clone(),
            importers: Arc::new(KubeImporters::new(self.client.clone())),
            cluster: cluster.clone(),
            view: view.clone(),
            repository: repository.clone(),
            authority: authority.clone(),
        };
        let images = Arc::new(images);
        tasks.spawn(image::review::keep(images.clone(), stop.clone()));
        tasks.spawn(self.runner(&stop).run(image_wakes, view.images.clone(), images, image::reconcile));
        let snapshots = snapshot::Context {
            clock: self.clock.clone(),
            cluster: cluster.clone(),
            view: view.clone(),
            repository: repository.clone(),
        };
        tasks.spawn(self.runner(&stop).run(
            snapshot_wakes,
            view.snapshots.clone(),
            Arc::new(snapshots),
            snapshot::reconcile,
        ));
        if let Some((wakes, requests)) = requests {
            let known = requests.clone();
            let context = join::Context {
                config: self.config.clone(),
                clock: self.clock.clone(),
                view: view.clone(),
                joins,
                requests: Arc::new(move || known.state()),
                memory: memory.clone(),
                wake: wake.clone(),
            };
            tasks.spawn(self.runner(&stop).run(wakes, requests, Arc::new(context), join::reconcile));
        }
        let known = jobs.clone();
        tasks.spawn(accounts::keep(move || known.state(), view.clone(), cluster, stop.clone()));
        let source = Arc::new(Source { view, repository: repository.clone(), store: repository, agents });
        tasks.spawn(self.show(source, authority.clone(), stop.clone()));
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

    /// Serves logs and outputs. Failing is no reason to stop jobs: it is tried again.
    fn show(
        &self,
        source: Arc<Source>,
        authority: Arc<Authority>,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let (client, namespace, address) = (self.client.clone(), self.config.namespace.clone(), self.subresources);
        async move {
            let Some(address) = address else { return };
            while !stop.is_cancelled() {
                let serving =
                    subresources::serve(address, client.clone(), &namespace, &authority, source.clone(), stop.clone());
                if let Err(error) = serving.await {
                    tracing::warn!(error = format!("{error:#}"), "failed to serve logs and outputs");
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(UNSERVED) => {}
                    }
                }
            }
        }
    }

    fn runner(&self, stop: &CancellationToken) -> Runner {
        Runner { metrics: self.metrics.clone(), stop: stop.clone(), concurrency: CONCURRENCY, debounce: DEBOUNCE }
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

/// One pass of a job, as the runner wants it.
async fn job_pass(object: Arc<BestEffortJob>, context: Arc<job::Context>) -> Result<Action, job::Error> {
    let wake = job::reconcile(&object, &context).await?;
    Ok(wake.map_or_else(Action::await_change, Action::requeue))
}

/// Lets what agents say lead to passes.
async fn listen(hub: Arc<AgentHub>, waker: Waker, stop: CancellationToken) {
    let mut news = hub.subscribe();
    let wake = async {
        loop {
            match news.recv().await {
                Ok(job) => waker.uid(&job),
                // those that were missed are visited at their next wake-up
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = hub.run() => {}
        () = wake => {}
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
