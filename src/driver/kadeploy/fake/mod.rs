//! A deployment server in memory, on a [`Clock`]: for simulated time, and held to the same contract as the client.
//!
//! Everything that goes wrong with deployments is a method here: rights that come late or go in the middle, nodes that
//! fail, hang or are left out, workflows that break, a server that dies, lost replies.

mod server;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};

use self::server::Server;
use super::{
    DeployRequest, Environment, EnvironmentName, EnvironmentToDeploy, Kadeploy, KadeployError, Observation, Workflow,
    WorkflowId,
};
use crate::{clock::Clock, names::NodeName};

/// How long a deployment takes at first: what a real server takes with simulated steps.
const LENGTH: Duration = Duration::from_secs(6);
/// After this time the server gives a node up that does not come back.
const HUNG: Duration = Duration::from_secs(650);
/// After this time the server forgets the mark of a workflow that it lost.
const PURGE: SignedDuration = SignedDuration::from_secs(900);

/// What is wrong with a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its deployments fail, with this reason.
    Fails(String),
    /// It never comes back; the server gives it up after a long time.
    Hangs,
}

/// What does not work at the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outage {
    /// Everything works.
    #[default]
    None,
    /// Deployments begin, but the replies are lost; reads work.
    RepliesLost,
    /// Nothing answers, and nothing has an effect; deployments go on.
    All,
}

/// A deployment server in memory. Clones are the same server.
#[derive(Clone, Debug)]
pub struct FakeKadeploy {
    clock: Clock,
    state: Arc<Mutex<(Server, Outage)>>,
}

impl FakeKadeploy {
    /// A server with these nodes, no rights to any, and no environments.
    pub fn new(clock: Clock, nodes: &[&str]) -> Self {
        Self { clock, state: Arc::new(Mutex::new((Server::new(nodes, LENGTH), Outage::None))) }
    }

    /// Records an environment.
    pub fn add_environment(&self, environment: Environment) {
        self.state().0.environments.push(environment);
    }

    /// Gives the account rights to a node, or takes them away, which ends its deployments there.
    pub fn set_rights(&self, node: &NodeName, rights: bool) {
        self.state().0.set_rights(node, rights, self.clock.now());
    }

    /// Sets what is wrong with a node.
    pub fn set_fault(&self, node: &NodeName, fault: Option<Fault>) {
        self.state().0.set_fault(node, fault);
    }

    /// Gives a node to somebody's operation, so that it is left out of deployments, or back.
    pub fn set_busy(&self, node: &NodeName, busy: bool) {
        self.state().0.set_busy(node, busy);
    }

    /// Sets what workflows break by that begin from now on, if they do; their nodes are not touched.
    pub fn set_breaking(&self, error: Option<KadeployError>) {
        self.state().0.breaking = error;
    }

    /// Sets what does not work.
    pub fn set_outage(&self, outage: Outage) {
        self.state().1 = outage;
    }

    /// Kills the server and starts it again: its workflows are forgotten, the marks on their nodes are not.
    pub fn restart(&self) {
        self.state().0.restart();
    }

    /// Since when the system that was deployed on a node runs there, if one does.
    pub fn system(&self, node: &NodeName) -> Option<Timestamp> {
        self.state().0.system(node, self.clock.now())
    }

    /// Deployments that were ever begun.
    pub fn begun(&self) -> u64 {
        self.state().0.begun()
    }

    fn state(&self) -> MutexGuard<'_, (Server, Outage)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn server<T>(&self, ask: impl FnOnce(&mut Server) -> T) -> Result<T, KadeployError> {
        let mut state = self.state();
        match state.1 {
            Outage::All => Err(KadeployError::Unreachable("down".into())),
            Outage::None | Outage::RepliesLost => Ok(ask(&mut state.0)),
        }
    }
}

#[async_trait]
impl Kadeploy for FakeKadeploy {
    async fn describe(&self, name: &EnvironmentName) -> Result<Environment, KadeployError> {
        name.check()?;
        self.server(|server| server.describe(name))?
    }

    async fn deploy(&self, request: &DeployRequest) -> Result<WorkflowId, KadeployError> {
        let now = self.clock.now();
        let id = self.server(|server| server.deploy(request, now))??;
        match self.state().1 {
            Outage::RepliesLost => Err(KadeployError::Unreachable("the reply is lost".into())),
            Outage::None | Outage::All => Ok(id),
        }
    }

    async fn workflows(&self) -> Result<Vec<Workflow>, KadeployError> {
        let now = self.clock.now();
        self.server(|server| server.workflows(now))
    }

    async fn observe(
        &self,
        workflow: &WorkflowId,
        nodes: &[NodeName],
        environment: &EnvironmentToDeploy,
    ) -> Result<Observation, KadeployError> {
        let now = self.clock.now();
        self.server(|server| server.observe(workflow, nodes, environment, now))
    }

    async fn forget(&self, workflow: &WorkflowId) -> Result<(), KadeployError> {
        let now = self.clock.now();
        self.server(|server| server.forget(workflow, now))
    }
}
