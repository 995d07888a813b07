//! A context whose outside is in memory, for tests of what acts.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{
    Context, Hearing, Sites, SlotsSeen,
    memory::Memory,
    plan::{AgentRef, CaptureJob, Leadership},
};
use crate::{
    api::{BestEffortJob, snapshot::SnapshotReason},
    clock::Clock,
    controller::agents::AgentHub,
    driver::{
        Fact,
        agent::{
            Accelerator,
            fake::{FakeAgent, FakeAgents},
        },
        cluster::{ClusterView as _, fake::FakeCluster},
        kadeploy::directory::KadeployDirectory,
        launcher::fake::FakeLaunchers,
        repository::fake::FakeRepository,
        site::{Credentials, Site, fake::FakeSite},
    },
    names::{JobUid, SlotId},
    store::machine::Offer,
    tls::Authority,
};

/// A site with one account, whose slots nobody asks for.
struct OneAccount(FakeSite);

impl Sites for OneAccount {
    fn account(&self, _: &str, _: &Credentials) -> Option<Arc<dyn Site>> {
        Some(Arc::new(self.0.clone()))
    }
    fn slots(&self, _: &str, _: &Credentials, _: &JobUid, _: &[SlotId], _: Option<Timestamp>) -> Option<SlotsSeen> {
        let now = Timestamp::UNIX_EPOCH;
        Some(SlotsSeen {
            slots: Fact::Known(Vec::new()),
            looked_up: Some(now),
            reads_good_since: Some(now),
            error: None,
        })
    }
    fn nudge(&self, _: &JobUid) {}
    fn forget(&self, _: &JobUid) {}
}

/// The doubles behind a context.
pub(super) struct Stage {
    pub(super) ctx: Context,
    pub(super) cluster: FakeCluster,
    pub(super) site: FakeSite,
    pub(super) agents: FakeAgents,
    pub(super) uid: JobUid,
}

const CONFIG: &str = "namespace: vmdeploy-system\nrepository: repository:1\nagents: {image: x}\n\
    sites: {rennes: {kind: oar2, url: 'http://x', uids: {alice: 1000}, defaultAccount: {user: alice}}}\n";
const JOB: &str = "apiVersion: vmdeploy.io/v1alpha1\nkind: BestEffortJob\nmetadata: {name: pi, namespace: team}\n\
    spec: {members: 2, image: {name: debian-12}, run: {command: [/bin/true]}, slots: {site: rennes, walltime: 2h}}\n";

impl Stage {
    /// A cluster with one job, as a user has just created it.
    pub(super) fn new() -> Self {
        let clock = Clock::manual(Timestamp::from_second(1_800_000_000).unwrap());
        let cluster = FakeCluster::new(clock.clone());
        cluster.put_job(crate::yaml::read(JOB).unwrap());
        let site = FakeSite::new(clock.clone(), &["node-1", "node-2"]);
        let agents = FakeAgents::default();
        let hearing: Arc<dyn Hearing> = Arc::new(AgentHub::new(Arc::new(agents.clone()), clock.clone()));
        let ctx = Context {
            config: Arc::new(crate::yaml::read(CONFIG).unwrap()),
            leadership: Leadership { epoch: 1, since: clock.now() },
            cluster: Arc::new(cluster.clone()),
            joins: Arc::new(cluster.clone()),
            view: Arc::new(cluster.clone()),
            sites: Arc::new(OneAccount(site.clone())),
            deployers: Arc::new(KadeployDirectory::new(BTreeMap::new(), clock.clone())),
            launchers: Arc::new(FakeLaunchers::default()),
            agents: Arc::new(agents.clone()),
            hearing,
            repository: Arc::new(FakeRepository::new()),
            authority: Arc::new(Authority::create(Timestamp::now()).unwrap()),
            memory: Memory::default(),
            networks: super::networks::Networks::default(),
            history: super::history::History::default(),
            wake: Arc::new(|_| {}),
            offer: Offer::unknown(Accelerator::Kvm),
            clock,
        };
        let uid = JobUid(cluster.job("team", "pi").unwrap().metadata.uid.clone().unwrap());
        Self { ctx, cluster, site, agents, uid }
    }

    pub(super) fn job(&self) -> BestEffortJob {
        (*self.cluster.job("team", "pi").unwrap()).clone()
    }

    /// Agents of both members that run their guests, and a capture of them.
    pub(super) async fn running(&self, resume: bool) -> (Vec<Arc<FakeAgent>>, CaptureJob) {
        let refs: Vec<AgentRef> = (0..2)
            .map(|member| AgentRef {
                pod: format!("agent-{member}"),
                member,
                incarnation: 1,
                endpoint: format!("192.0.2.{}:17700", member + 1).parse().unwrap(),
            })
            .collect();
        let limit = Duration::from_secs(2);
        let make = |member| FakeAgent::loaded(self.uid.clone(), member, 1, limit, self.ctx.clock.clone());
        let agents: Vec<Arc<FakeAgent>> = (0..2).map(|member| self.agents.add(make(member))).collect();
        for agent in &refs {
            let order = super::act::authority(agent, &self.ctx);
            self.ctx.agents.agent(&super::act::address(agent, &self.uid)).go(order).await.unwrap();
        }
        let addresses: Vec<_> = refs.iter().map(|agent| super::act::address(agent, &self.uid)).collect();
        self.ctx.hearing.listen(&self.uid, &addresses);
        let capture = CaptureJob {
            generation: 1,
            incarnation: 1,
            nonce: "n-1-1".into(),
            reason: SnapshotReason::Periodic,
            resume,
            max_pause: limit,
            stay_down: Duration::from_secs(60),
            within: Duration::from_secs(3600),
            agents: refs,
        };
        (agents, capture)
    }
}
