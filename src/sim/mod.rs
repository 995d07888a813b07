//! The world in simulated time: the controllers' real passes over the doubles of all drivers, with a
//! clock that a test moves. No sockets, no processes, no waiting.
//!
//! [`World`] plays everything that is not the operator: kubelets and agents (`nodes`), bare nodes (`bare_nodes`), nodes
//! without a kubelet (`launchers`), `kget`, `importers`.
//! The operator is a process that can be killed after any of its writes (`operator`, `fuse`). After
//! every step the safety rules are checked (`rules`).

mod bare_nodes;
mod fuse;
mod importers;
mod kget;
mod launchers;
mod nodes;
mod operator;
mod rules;
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeCondition, NodeStatus};
use serde_json::json;

use self::{
    bare_nodes::BareNodes, importers::FakeImporters, kget::Kget, nodes::Body, operator::Operator, rules::Rules,
};
use crate::{
    api::{BestEffortJob, BestEffortJobStatus, JobPhase, VmImage},
    clock::Clock,
    controller::image::{
        decide::fingerprint,
        status::{Notice, show},
    },
    driver::{
        agent::fake::FakeAgents,
        cluster::{ClusterView, fake::FakeCluster},
        kadeploy::fake::FakeKadeploy,
        launcher::fake::FakeLaunchers,
        repository::fake::FakeRepository,
        site::{SlotPhase, fake::FakeSite},
    },
    names::{Generation, JobUid},
};

const NAMESPACE: &str = "team";
const SITE: &str = "rennes";
/// Secret with the launch keys of the site's users, and that of its user.
const LAUNCH_KEYS: &str = "launch-keys";
const LAUNCH_KEY: &str = "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk";
const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";

/// How long things take.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// From the lease to a loaded VM.
    load: Duration,
    /// From the cut to all bytes on local disk.
    write: Duration,
    /// Of a captured part to the repository.
    upload: Duration,
    /// What a guest has to compute.
    work: Duration,
    /// From the operator's death to its successor.
    restart: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { load: seconds(3), write: seconds(1), upload: seconds(2), work: seconds(120), restart: seconds(3) }
    }
}

/// What of a node works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    /// Everything.
    Up,
    /// It runs, and nobody reaches it; it reaches nobody. Since then.
    Cut(Timestamp),
    /// It runs, and only the operator and its agents do not reach each other.
    Deaf,
    /// It runs, and reaches nobody but the repository, which does not answer any more once it would
    /// have to refuse: the longest that a VM may live unheard.
    Stray,
    /// It does not run.
    Down,
}

/// Everything.
struct World {
    clock: Clock,
    start: Timestamp,
    pace: Pace,
    cluster: FakeCluster,
    site: FakeSite,
    agents: FakeAgents,
    repository: FakeRepository,
    kadeploy: FakeKadeploy,
    bare_nodes: Option<BareNodes>,
    launchers: FakeLaunchers,
    health: BTreeMap<String, Health>,
    bodies: Vec<Body>,
    kget: Kget,
    importers: FakeImporters,
    operator: Operator,
    rules: Rules,
    /// A generation that no node can load.
    broken: Option<Generation>,
}

impl World {
    /// A world with this many nodes, where nobody has asked for anything.
    fn new(nodes: usize) -> Self {
        Self::with_limit(nodes, usize::MAX)
    }

    /// The same; the operator dies after this many writes.
    fn with_limit(nodes: usize, writes: usize) -> Self {
        let start = Timestamp::from_second(1_800_000_000).unwrap();
        let clock = Clock::manual(start);
        let names: Vec<String> = (1..=nodes).map(|n| format!("node-{n}")).collect();
        let list: Vec<&str> = names.iter().map(String::as_str).collect();
        let cluster = FakeCluster::new(clock.clone());
        for (index, name) in names.iter().enumerate() {
            cluster.put_node(node(name, index));
        }
        cluster.put_image(image(start));
        let repository = FakeRepository::trusting();
        repository.add_image(DIGEST, 1 << 30);
        let agents = FakeAgents::default();
        let site = FakeSite::new(clock.clone(), &list);
        let importers = FakeImporters::new(cluster.clone());
        let kadeploy = FakeKadeploy::new(clock.clone(), &list);
        let launchers = FakeLaunchers::default();
        let parts = operator::Parts {
            clock: clock.clone(),
            cluster: cluster.clone(),
            importers: importers.clone(),
            site: site.clone(),
            agents: agents.clone(),
            repository: repository.clone(),
            kadeploy: kadeploy.clone(),
            launchers: launchers.clone(),
        };
        Self {
            operator: Operator::new(parts, writes),
            health: names.into_iter().map(|name| (name, Health::Up)).collect(),
            pace: Pace::default(),
            bodies: Vec::new(),
            kget: Kget::default(),
            importers,
            rules: Rules::default(),
            broken: None,
            clock,
            start,
            cluster,
            site,
            agents,
            repository,
            kadeploy,
            bare_nodes: None,
            launchers,
        }
    }

    /// Lets time pass: first the world, then the background tasks, then the operator's passes.
    async fn step(&mut self, by: Duration) {
        self.clock.advance(SignedDuration::try_from(by).unwrap());
        self.boot();
        self.live();
        self.import();
        self.transfer().await;
        tokio::time::sleep(by).await;
        Box::pin(self.operator.passes(self.pace.restart)).await;
        self.live();
        self.check();
    }

    /// Lets a long time pass at once when nothing is going on, or else one second.
    async fn stride(&mut self, seconds: u64) {
        let calm = matches!(self.phase(), Some(JobPhase::Running | JobPhase::Queued))
            && self.status().snapshots.capture.is_none()
            && self.site.slots().iter().all(|slot| slot.phase != SlotPhase::Ending)
            && self.status().slots.iter().all(|slot| {
                slot.notice.is_none()
                    && slot.until.as_ref().is_none_or(|until| until.0.duration_since(self.clock.now()).as_secs() > 120)
            });
        self.step(Duration::from_secs(if calm { seconds } else { 1 })).await;
    }

    /// Lets time pass second by second until `goal` holds. Panics when it does not within `limit`.
    async fn until(&mut self, limit: u64, what: &str, mut goal: impl FnMut(&Self) -> bool) {
        for _ in 0..limit {
            if goal(self) {
                return;
            }
            self.step(Duration::from_secs(1)).await;
        }
        panic!("not within {limit} s: {what}\n{}", self.story());
    }

    /// Lets this much time pass.
    async fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.step(Duration::from_secs(1)).await;
        }
    }

    /// Lets time pass until the job is in this phase.
    async fn until_phase(&mut self, limit: u64, phase: JobPhase) {
        self.until(limit, &format!("{phase:?}"), |world| world.phase() == Some(phase)).await;
    }

    fn job(&self) -> Option<Arc<BestEffortJob>> {
        self.cluster.job(NAMESPACE, "pi")
    }

    fn status(&self) -> BestEffortJobStatus {
        self.job().and_then(|job| job.status.clone()).unwrap_or_default()
    }

    fn phase(&self) -> Option<JobPhase> {
        self.job().map(|job| job.status.as_ref().map_or(JobPhase::Pending, |status| status.phase))
    }

    fn uid(&self) -> Option<JobUid> {
        self.job().and_then(|job| job.metadata.uid.clone()).map(JobUid)
    }

    /// Seconds since the world began.
    fn age(&self) -> i64 {
        self.clock.now().duration_since(self.start).as_secs()
    }

    /// Unfinished slots at the site.
    fn open_slots(&self) -> Vec<String> {
        let open = |phase: &SlotPhase| !matches!(phase, SlotPhase::Ended(_));
        self.site.slots().into_iter().filter(|slot| open(&slot.phase)).map(|slot| slot.id.0).collect()
    }

    /// What there is of jobs outside their objects; empty when nothing was left behind.
    fn leftovers(&self) -> Vec<String> {
        let slots = self.open_slots().into_iter().map(|id| format!("slot {id}"));
        let pods = self.cluster.pods().into_iter().map(|pod| format!("pod {}", pod.metadata.name.unwrap_or_default()));
        let bodies = self.bodies.iter().filter(|body| body.alive()).map(|body| format!("VM of {}", body.pod));
        let secrets = self.cluster.agent_secrets().into_iter().map(|name| format!("secret {name}"));
        slots.chain(pods).chain(bodies).chain(secrets).collect()
    }

    /// The events so far and the present state, for messages of failed tests.
    fn story(&self) -> String {
        let events = self.cluster.events();
        let events: Vec<String> = events.iter().map(|e| format!("  {:?}: {}", e.reason, e.message)).collect();
        let slots: Vec<String> =
            self.site.slots().iter().map(|s| format!("  {} {} {:?} {:?}", s.id, s.name, s.phase, s.notice)).collect();
        let bodies: Vec<String> = self.bodies.iter().map(|body| format!("  {}", body.describe())).collect();
        format!(
            "after {} s; events:\n{}\nslots:\n{}\nagents:\n{}\nleft: {:?}\nlast plan: {}\nstatus: {:#?}\nwrites: {:?}",
            self.age(),
            events.join("\n"),
            slots.join("\n"),
            bodies.join("\n"),
            self.leftovers(),
            self.operator.why,
            self.status(),
            self.operator.log(),
        )
    }
}

/// Everything that is asked of a job in these worlds.
fn job(members: u32) -> BestEffortJob {
    let spec = json!({
        "members": members,
        "image": {"name": "debian"},
        "run": {"command": ["/bin/count"]},
        "slots": {"site": SITE, "walltime": "2h"},
        "snapshots": {"period": "30s", "grace": "30s", "keep": 2},
    });
    let mut job = BestEffortJob::new("pi", serde_json::from_value(spec).unwrap());
    job.metadata.namespace = Some(NAMESPACE.into());
    job
}

fn image(now: Timestamp) -> VmImage {
    let spec = json!({"source": {"http": {"url": "https://example.org/disk.qcow2", "digest": DIGEST}}});
    let mut image = VmImage::new("debian", serde_json::from_value(spec).unwrap());
    image.metadata.namespace = Some(NAMESPACE.into());
    let import = json!({"fingerprint": fingerprint(&image), "result": "Imported", "at": now});
    let status =
        json!({"observedGeneration": 1, "digest": DIGEST, "size": "1Gi", "virtualSize": "4Gi", "import": import});
    let mut status = serde_json::from_value(status).unwrap();
    show(&mut status, &Notice::Imported, now);
    image.status = Some(status);
    image
}

fn node(name: &str, index: usize) -> Node {
    let address = NodeAddress { address: format!("10.0.0.{}", index + 1), type_: "InternalIP".into() };
    let mut node = Node::default();
    node.metadata.name = Some(name.into());
    let ready = NodeCondition { type_: "Ready".into(), status: "True".into(), ..NodeCondition::default() };
    let (addresses, conditions) = (Some(vec![address]), Some(vec![ready]));
    node.status = Some(NodeStatus { addresses, conditions, ..NodeStatus::default() });
    node
}
