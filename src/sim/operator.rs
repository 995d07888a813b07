//! One operator after the other: the controllers' real passes, started by what really starts them
//! (a change of an object, a wake-up from outside, the time a pass asked for).

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use serde_json::json;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::{
    LAUNCH_KEYS, NAMESPACE, SITE,
    fuse::{Fuse, Fused},
    importers::FakeImporters,
};
use crate::{
    clock::Clock,
    config::Config,
    controller::{
        agents::AgentHub,
        image,
        job::{self, Sites, SlotsSeen, memory::Memory, plan::Leadership},
        snapshot,
    },
    driver::{
        agent::{Accelerator, Agents, fake::FakeAgents},
        cluster::{Cluster, ClusterView, fake::FakeCluster, importers::Importers, joins::Joins},
        kadeploy::{Deployers, Kadeploy, KadeployError, fake::FakeKadeploy},
        launcher::{Launchers, fake::FakeLaunchers},
        repository::{Repository, fake::FakeRepository},
        site::{Credentials, Site, fake::FakeSite, poller::Poller},
    },
    names::{JobUid, SlotId},
    store::machine::Offer,
    tls::Authority,
};

/// Passes of one step, at most: more means that they never come to rest.
const MOST_PASSES: usize = 40;
/// After a pass that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// The doubles, without a fuse.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) clock: Clock,
    pub(super) cluster: FakeCluster,
    pub(super) importers: FakeImporters,
    pub(super) site: FakeSite,
    pub(super) agents: FakeAgents,
    pub(super) repository: FakeRepository,
    pub(super) kadeploy: FakeKadeploy,
    pub(super) launchers: FakeLaunchers,
}

/// The present operator, or the gap between two.
pub(super) struct Operator {
    parts: Parts,
    config: Arc<Config>,
    authority: Arc<Authority>,
    process: Process,
    epoch: u64,
    died: Option<Timestamp>,
    /// Writes of all operators so far.
    past: Vec<&'static str>,
    /// Passes of jobs so far.
    pub(super) passes: u64,
    /// What the last pass of a job ended with.
    pub(super) why: String,
}

struct Process {
    fuse: Arc<Fuse>,
    jobs: job::Context,
    snapshots: Arc<snapshot::Context>,
    images: Arc<image::Context>,
    woken: Arc<AtomicBool>,
    tasks: Vec<AbortHandle>,
    /// Version of the cluster at the last pass.
    seen: u64,
    due: BTreeMap<String, Timestamp>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.fuse.kill();
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// One site, one account.
struct OneSite(Arc<Poller>);

impl Sites for OneSite {
    fn account(&self, site: &str, _: &Credentials) -> Option<Arc<dyn Site>> {
        (site == SITE).then(|| self.0.site().clone())
    }
    fn slots(
        &self,
        site: &str,
        _: &Credentials,
        job: &JobUid,
        ids: &[SlotId],
        doubt: Option<Timestamp>,
    ) -> Option<SlotsSeen> {
        if site != SITE {
            return None;
        }
        self.0.watch(job, ids, doubt);
        let facts = self.0.facts(job);
        let reads_good_since = self.0.reads_good_since();
        Some(SlotsSeen { slots: facts.slots, looked_up: facts.looked_up, reads_good_since, error: facts.error })
    }
    fn nudge(&self, job: &JobUid) {
        self.0.nudge(job);
    }
    fn forget(&self, job: &JobUid) {
        self.0.forget(job);
    }
}

/// The deployment server of the site.
struct OneServer(Arc<dyn Kadeploy>);

impl Deployers for OneServer {
    fn account(&self, _: &str, _: &Credentials) -> Result<Arc<dyn Kadeploy>, KadeployError> {
        Ok(self.0.clone())
    }
}

fn config() -> Config {
    serde_json::from_value(json!({
        "sites": {SITE: {
            "kind": "oar2",
            "url": "http://oar/oarapi",
            "uids": {"alice": 1000},
            "defaultAccount": {"user": "alice"},
            "isolation": "30s",
            "agentWait": "60s",
            "kadeploy": {"url": "http://kadeploy:25300", "wait": "10m", "join": {"secret": LAUNCH_KEYS}},
            "launch": {"command": "vmdeploy", "secret": LAUNCH_KEYS},
        }},
        "namespace": "vmdeploy",
        "repository": "10.0.9.1:7443",
        "jobNetwork": {"pool": "198.18.0.0/15"},
        "agents": {"image": "vmdeploy"},
    }))
    .expect("the configuration of the simulated operator")
}

impl Operator {
    /// The first operator. It dies after `limit` writes; its successors do not.
    pub(super) fn new(parts: Parts, limit: usize) -> Self {
        crate::tls::install_provider();
        let config = Arc::new(config());
        let authority = Arc::new(Authority::create(parts.clock.now()).expect("a new authority"));
        let process = Process::start(&parts, &config, &authority, 1, limit);
        Self {
            parts,
            config,
            authority,
            process,
            epoch: 1,
            died: None,
            past: Vec::new(),
            passes: 0,
            why: String::new(),
        }
    }

    /// Names of all writes so far.
    pub(super) fn log(&self) -> Vec<&'static str> {
        let mut log = self.past.clone();
        log.extend(self.process.fuse.log());
        log
    }

    /// How many operators there were.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Kills the present one.
    pub(super) fn kill(&self) {
        self.process.fuse.kill();
    }

    /// All passes that are due. A dead operator gets a successor after `restart`.
    pub(super) async fn passes(&mut self, restart: Duration) {
        let now = self.parts.clock.now();
        if self.process.fuse.is_dead() {
            let died = *self.died.get_or_insert(now);
            if now.duration_since(died).unsigned_abs() < restart {
                return;
            }
            self.died = None;
            self.epoch += 1;
            self.past.extend(self.process.fuse.log());
            self.process = Process::start(&self.parts, &self.config, &self.authority, self.epoch, usize::MAX);
            return;
        }
        for _ in 0..MOST_PASSES {
            let version = self.parts.cluster.version();
            let woken = self.process.woken.swap(false, Ordering::SeqCst);
            let changed = version != self.process.seen || woken;
            self.process.seen = version;
            let fuse = self.process.fuse.clone();
            let any = tokio::select! {
                biased;
                () = fuse.died() => return,
                any = self.process.round(changed, now, &mut self.why, &mut self.passes) => any,
            };
            if !any {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("the passes never come to rest: {}", self.why);
    }
}

impl Process {
    fn start(parts: &Parts, config: &Arc<Config>, authority: &Arc<Authority>, epoch: u64, limit: usize) -> Self {
        let fuse = Fuse::new(limit);
        let cluster: Arc<dyn Cluster> =
            Arc::new(Fused::<dyn Cluster> { fuse: fuse.clone(), inner: Arc::new(parts.cluster.clone()) });
        let joins: Arc<dyn Joins> =
            Arc::new(Fused::<dyn Joins> { fuse: fuse.clone(), inner: Arc::new(parts.cluster.clone()) });
        let view: Arc<dyn ClusterView> =
            Arc::new(Fused::<dyn ClusterView> { fuse: fuse.clone(), inner: Arc::new(parts.cluster.clone()) });
        let site: Arc<dyn Site> =
            Arc::new(Fused::<dyn Site> { fuse: fuse.clone(), inner: Arc::new(parts.site.clone()) });
        let agents: Arc<dyn Agents> =
            Arc::new(Fused::<dyn Agents> { fuse: fuse.clone(), inner: Arc::new(parts.agents.clone()) });
        let repository: Arc<dyn Repository> =
            Arc::new(Fused::<dyn Repository> { fuse: fuse.clone(), inner: Arc::new(parts.repository.clone()) });
        let server = Fused::<dyn Kadeploy> { fuse: fuse.clone(), inner: Arc::new(parts.kadeploy.clone()) };
        let deployers: Arc<dyn Deployers> = Arc::new(OneServer(Arc::new(server)));
        let launchers: Arc<dyn Launchers> =
            Arc::new(Fused::<dyn Launchers> { fuse: fuse.clone(), inner: Arc::new(parts.launchers.clone()) });
        let importers: Arc<dyn Importers> =
            Arc::new(Fused::<dyn Importers> { fuse: fuse.clone(), inner: Arc::new(parts.importers.clone()) });
        let images = Arc::new(image::Context {
            deployers: deployers.clone(),
            config: config.clone(),
            clock: parts.clock.clone(),
            importers,
            cluster: cluster.clone(),
            view: view.clone(),
            repository: repository.clone(),
            authority: authority.clone(),
        });
        let woken = Arc::new(AtomicBool::new(false));
        let poller = Arc::new(Poller::new(site, parts.clock.clone()));
        let hub = Arc::new(AgentHub::new(agents.clone(), parts.clock.clone()));
        let tasks = vec![
            tokio::spawn({
                let poller = poller.clone();
                async move { poller.run().await }
            })
            .abort_handle(),
            tokio::spawn({
                let hub = hub.clone();
                async move { hub.run().await }
            })
            .abort_handle(),
            tokio::spawn(image::review::keep(images.clone(), CancellationToken::new())).abort_handle(),
            tell(poller.subscribe(), woken.clone()),
            tell(hub.subscribe(), woken.clone()),
        ];
        let wake: Arc<dyn Fn(&JobUid) + Send + Sync> = {
            let woken = woken.clone();
            Arc::new(move |_| woken.store(true, Ordering::SeqCst))
        };
        let jobs = job::Context {
            config: config.clone(),
            offer: Offer::unknown(Accelerator::Kvm),
            clock: parts.clock.clone(),
            leadership: Leadership { epoch, since: parts.clock.now() },
            cluster: cluster.clone(),
            joins,
            view: view.clone(),
            sites: Arc::new(OneSite(poller)),
            deployers,
            launchers,
            agents,
            hearing: hub,
            repository: repository.clone(),
            authority: authority.clone(),
            memory: Memory::default(),
            networks: job::networks::Networks::default(),
            history: job::history::History::default(),
            wake,
        };
        let snapshots = Arc::new(snapshot::Context { clock: parts.clock.clone(), cluster, view, repository });
        // everything there is is new to a new process
        Self { fuse, jobs, snapshots, images, woken, tasks, seen: 0, due: BTreeMap::new() }
    }

    /// Whether an object is to be looked at. The wish for another look is not readable from an action: every 5 s will
    /// do.
    fn is_due(&mut self, changed: bool, key: String, now: Timestamp) -> bool {
        let is_due = changed || self.due.get(&key).is_some_and(|due| *due <= now);
        if is_due {
            self.due.insert(key, now.saturating_add(jiff::SignedDuration::from_secs(5)).unwrap());
        }
        is_due
    }

    /// One pass of everything that is due. Says whether there was any.
    async fn round(&mut self, changed: bool, now: Timestamp, why: &mut String, passes: &mut u64) -> bool {
        let mut any = false;
        if changed {
            // as the operator's watch does
            self.jobs.view.jobs().iter().for_each(|job| self.jobs.history.note(job));
        }
        for image in self.jobs.view.images() {
            let key = format!("image {}", image.metadata.name.clone().unwrap_or_default());
            if self.is_due(changed, key, now) {
                any = true;
                if let Err(error) = image::reconcile(image, self.images.clone()).await {
                    tracing::debug!(%error, "a pass of an image failed");
                }
            }
        }
        for name in ["pi", "e", "again"] {
            let job = self.jobs.view.job(NAMESPACE, name);
            if let Some(job) = job.filter(|_| changed || self.due.get(name).is_some_and(|due| *due <= now)) {
                any = true;
                self.due.remove(name);
                *passes += 1;
                // all that waits for it would be as large
                let wake = match Box::pin(job::reconcile(&job, &self.jobs)).await {
                    Ok(wake) => wake,
                    Err(error) => {
                        *why = error.to_string();
                        Some(AFTER_FAILURE)
                    }
                };
                if let Some(wake) = wake {
                    self.due.insert(
                        name.into(),
                        now.saturating_add(jiff::SignedDuration::try_from(wake).unwrap()).unwrap(),
                    );
                }
            }
            for snapshot in self.jobs.view.snapshots(NAMESPACE, name) {
                let key = format!("snapshot {}", snapshot.metadata.name.clone().unwrap_or_default());
                if self.is_due(changed, key, now) {
                    any = true;
                    if let Err(error) = snapshot::reconcile(snapshot, self.snapshots.clone()).await {
                        tracing::debug!(%error, "a pass of a snapshot failed");
                    }
                }
            }
        }
        any
    }
}

/// Wakes the operator for every job that is told of.
fn tell(mut news: tokio::sync::broadcast::Receiver<JobUid>, woken: Arc<AtomicBool>) -> AbortHandle {
    tokio::spawn(async move {
        while news.recv().await.is_ok() {
            woken.store(true, Ordering::SeqCst);
        }
    })
    .abort_handle()
}
