//! The controller of `BestEffortJob`: observe, decide, act.

pub mod act;
pub mod barrier;
pub mod decide;
mod error;
pub mod history;
pub mod identity;
mod inputs;
pub mod memory;
pub mod network;
pub mod networks;
pub mod observe;
pub mod plan;
pub mod pods;
mod sites;
pub mod states;
pub mod status;
pub mod tally;
#[cfg(test)]
mod testing;

pub use error::Error;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use self::{memory::Memory, plan::Leadership};
use super::account;
use crate::{
    api::BestEffortJob,
    clock::Clock,
    config::Config,
    driver::{
        Fact,
        agent::{AgentAddress, AgentState, Agents},
        cluster::{Cluster, ClusterView, joins::Joins},
        kadeploy::Deployers,
        launcher::Launchers,
        repository::Repository,
        site::{Credentials, Site, SiteError, SlotFacts},
    },
    names::{JobUid, SlotId},
    store::machine::Offer,
    tls::Authority,
};

/// One pass. Returns when to look again if nothing happens before.
pub async fn reconcile(job: &BestEffortJob, ctx: &Context) -> Result<Option<Duration>, Error> {
    if act::is_let_go(job) {
        act::forget(&plan::uid(job), ctx);
        return Ok(None);
    }
    let seen = observe::observe(job, ctx).await?;
    let plan = decide::decide(job, &seen, ctx.clock.now());
    act::act(&plan, job, ctx).await
}

/// Everything a pass may use.
#[derive(Clone)]
pub struct Context {
    /// What the administrator decided.
    pub config: Arc<Config>,
    /// What the agents that are made now offer, wherever they run.
    pub offer: Offer,
    /// The time.
    pub clock: Clock,
    /// The present leadership.
    pub leadership: Leadership,
    /// Writes to Kubernetes.
    pub cluster: Arc<dyn Cluster>,
    /// What lets deployed nodes join the cluster.
    pub joins: Arc<dyn Joins>,
    /// Reads from Kubernetes.
    pub view: Arc<dyn ClusterView>,
    /// Accounts at sites.
    pub sites: Arc<dyn Sites>,
    /// Accounts at the sites' deployment servers.
    pub deployers: Arc<dyn Deployers>,
    /// What starts agents where no kubelet does.
    pub launchers: Arc<dyn Launchers>,
    /// Orders to agents.
    pub agents: Arc<dyn Agents>,
    /// What agents say.
    pub hearing: Arc<dyn Hearing>,
    /// The repository.
    pub repository: Arc<dyn Repository>,
    /// Signs the agents' certificates.
    pub authority: Arc<Authority>,
    /// What this process remembers.
    pub memory: Memory,
    /// Hands out subnets.
    pub networks: networks::Networks,
    /// How often jobs were killed.
    pub history: history::History,
    /// Brings about another pass of a job.
    pub wake: Arc<dyn Fn(&JobUid) + Send + Sync>,
}

/// What is known of a job's slots at an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotsSeen {
    /// All slots asked for, and every one whose name is of the job.
    pub slots: Fact<Vec<SlotFacts>>,
    /// When the site was last searched by the job's name.
    pub looked_up: Option<Timestamp>,
    /// Since when every read was answered.
    pub reads_good_since: Option<Timestamp>,
    /// What the last round of reads failed with, if it failed.
    pub error: Option<SiteError>,
}

/// The accounts at all configured sites: one poller each, made and started when first asked for.
/// A change of what is known brings about a pass of the job.
pub trait Sites: Send + Sync {
    /// The account, for writing. None if the site is not configured.
    fn account(&self, site: &str, credentials: &Credentials) -> Option<Arc<dyn Site>>;

    /// What is known of a job; registers it, its slots, and since when a request for slots is in doubt.
    fn slots(
        &self,
        site: &str,
        credentials: &Credentials,
        job: &JobUid,
        ids: &[SlotId],
        doubt: Option<Timestamp>,
    ) -> Option<SlotsSeen>;

    /// Somebody knows that a job's slots have changed: they are read at once.
    fn nudge(&self, job: &JobUid);

    /// Forgets a job.
    fn forget(&self, job: &JobUid);
}

/// What one agent was heard to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    /// Since when this leader listens to it.
    pub listening: Timestamp,
    /// Its last words, and when they came.
    pub last: Option<(Timestamp, AgentState)>,
    /// When its VM was last heard to get on: to another state, or by some bytes.
    pub moved: Option<Timestamp>,
}

/// Listens to agents: one event stream each, opened again whenever it breaks.
pub trait Hearing: Send + Sync {
    /// Listens to exactly these agents of a job from now on; a change of what one says (heartbeats
    /// aside) brings about a pass. An empty list forgets the job.
    fn listen(&self, job: &JobUid, agents: &[AgentAddress]);

    /// What was heard of an agent that is listened to.
    fn heard(&self, agent: &AgentAddress) -> Option<Heard>;
}
