//! The controllers and what runs beside them, while this process leads.

use std::{sync::Arc, time::Duration};

use kube::runtime::controller::Action;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Process,
    caches::{Caches, Requests},
    credentials::LIFETIME,
};
use crate::{
    api::{BestEffortJob, Snapshot, VmImage},
    controller::{
        Runner, accounts,
        agents::AgentHub,
        image, job, join, snapshot,
        wake::{Waker, Wakes},
    },
    driver::{
        agent::http::AgentsHttp,
        cluster::{importers::KubeImporters, joins::KubeJoins, kube::KubeCluster, view::KubeView},
        kadeploy::directory::KadeployDirectory,
        launcher::LauncherDirectory,
        repository::http::HttpRepository,
        site::directory::SiteDirectory,
    },
    names::{Identity, JobUid},
    subresources::{self, source::Source},
    tls::Authority,
};

/// Passes of one controller at the same time.
const CONCURRENCY: u16 = 8;
/// Changes of one object within this time lead to one pass.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Time between two tries to serve logs and outputs.
const UNSERVED: Duration = Duration::from_secs(30);

impl Process {
    /// Starts the controllers and what runs beside them; gives the sites that they talk to.
    pub(super) fn start_controllers(
        &self,
        epoch: u64,
        authority: &Arc<Authority>,
        caches: Caches,
        requests: Option<Requests>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> anyhow::Result<Arc<SiteDirectory>> {
        let Caches { view, history, job_waker, job_wakes, image_wakes, snapshot_wakes } = caches;
        let (jobs, view) = (view.jobs.clone(), Arc::new(view));
        let own = authority.issue(&Identity::Operator, self.clock.now(), LIFETIME)?;
        let repository = Arc::new(HttpRepository::new(&own, &self.config.repository)?);
        let agents = Arc::new(AgentsHttp::new(own, Some(epoch)));
        let cluster = Arc::new(KubeCluster::new(self.client.clone(), self.config.namespace.as_str(), None));
        let wake: Arc<dyn Fn(&JobUid) + Send + Sync> = {
            let job_waker = job_waker.clone();
            Arc::new(move |job| job_waker.uid(job))
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
        tasks.spawn(listen(hub, job_waker, stop.clone()));
        tasks.spawn(self.runner(stop).run(job_wakes, jobs.clone(), Arc::new(job_context), job_pass));
        tasks.spawn(accounts::keep(move || jobs.state(), view.clone(), cluster.clone(), stop.clone()));
        let source = Source { view: view.clone(), repository: repository.clone(), store: repository.clone(), agents };
        tasks.spawn(self.show(Arc::new(source), authority.clone(), stop.clone()));
        let others = Others { process: self, tasks, stop, cluster, view, repository, authority, memory, wake };
        others.images(image_wakes, deployers);
        others.snapshots(snapshot_wakes);
        if let Some(requests) = requests {
            others.joins(requests, joins);
        }
        Ok(sites)
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
}

/// The controllers beside that of jobs, and what they share with it.
struct Others<'a> {
    process: &'a Process,
    tasks: &'a TaskTracker,
    stop: &'a CancellationToken,
    cluster: Arc<KubeCluster>,
    view: Arc<KubeView>,
    repository: Arc<HttpRepository>,
    authority: &'a Arc<Authority>,
    memory: job::memory::Memory,
    wake: Arc<dyn Fn(&JobUid) + Send + Sync>,
}

impl Others<'_> {
    fn images(&self, wakes: Wakes<VmImage>, deployers: Arc<KadeployDirectory>) {
        let context = Arc::new(image::Context {
            deployers,
            config: self.process.config.clone(),
            clock: self.process.clock.clone(),
            importers: Arc::new(KubeImporters::new(self.process.client.clone())),
            cluster: self.cluster.clone(),
            view: self.view.clone(),
            repository: self.repository.clone(),
            authority: self.authority.clone(),
        });
        self.tasks.spawn(image::review::keep(context.clone(), self.stop.clone()));
        let runner = self.process.runner(self.stop);
        self.tasks.spawn(runner.run(wakes, self.view.images.clone(), context, image::reconcile));
    }

    fn snapshots(&self, wakes: Wakes<Snapshot>) {
        let context = Arc::new(snapshot::Context {
            clock: self.process.clock.clone(),
            cluster: self.cluster.clone(),
            view: self.view.clone(),
            repository: self.repository.clone(),
        });
        let runner = self.process.runner(self.stop);
        self.tasks.spawn(runner.run(wakes, self.view.snapshots.clone(), context, snapshot::reconcile));
    }

    /// Requests of nodes that join the cluster.
    fn joins(&self, (wakes, requests): Requests, joins: Arc<KubeJoins>) {
        let known = requests.clone();
        let context = Arc::new(join::Context {
            config: self.process.config.clone(),
            clock: self.process.clock.clone(),
            view: self.view.clone(),
            joins,
            requests: Arc::new(move || known.state()),
            memory: self.memory.clone(),
            wake: self.wake.clone(),
        });
        let runner = self.process.runner(self.stop);
        self.tasks.spawn(runner.run(wakes, requests, context, join::reconcile));
    }
}

/// One pass of a job, as the runner wants it.
async fn job_pass(object: Arc<BestEffortJob>, context: Arc<job::Context>) -> Result<Action, job::Error> {
    let wake = job::reconcile(&object, &context).await?;
    Ok(wake.map_or_else(Action::await_change, Action::requeue))
}

/// Lets what agents say lead to passes.
async fn listen(hub: Arc<AgentHub>, job_waker: Waker, stop: CancellationToken) {
    let mut news = hub.subscribe();
    let wake = async {
        loop {
            match news.recv().await {
                Ok(job) => job_waker.uid(&job),
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
