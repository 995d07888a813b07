//! A deployment server: puts a whole system on bare nodes, which are then ours as root.
//!
//! A deployment is a workflow over several nodes. Each node comes to an end of its own, and the workflow is known to
//! the server only as long as that process lives: afterwards the nodes' records are all there is. So what is asked is
//! always how *our nodes* stand, and the answer says by what it is known.
//!
//! `wire` is what Kadeploy 3 sends and takes; `errors` and `judge` turn that into the types here, without IO; `rest` is
//! the client, `http` one exchange of it, with `pin` for servers whose certificate nobody signed. `g5k` speaks to
//! Kadeploy through the API of Grid'5000.
//!
//! What the clients were tried on: `rest` on what a real Kadeploy 3.3.11 with simulated hardware was recorded to say,
//! and at each run of the tests on `kadeploy-sim`, which does as that one did; `g5k` on bodies written from public
//! descriptions and source. Nothing here was ever run against Grid'5000.

pub mod contract;
pub mod directory;
pub mod environment;
mod errors;
pub mod fake;
mod g5k;
#[cfg(test)]
mod g5k_tests;
#[cfg(test)]
mod golden;
mod hosts;
mod http;
mod judge;
pub mod names;
pub mod pin;
#[cfg(test)]
mod replay_tests;
mod rest;
mod wire;
#[cfg(test)]
mod wire_tests;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::{environment::Environment, names::EnvironmentName};
use super::{DriverError, Retry, site::Credentials};
use crate::{
    api::Reason,
    config::{Flavour, SiteConfig},
    names::NodeName,
};

/// Id of a workflow at its server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkflowId(pub String);

impl fmt::Display for WorkflowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is put on nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EnvironmentToDeploy {
    /// One that the server has recorded.
    Recorded(EnvironmentName),
    /// One that is described along with the request; the server keeps no name of it.
    Inline(Box<Environment>),
}

impl EnvironmentToDeploy {
    fn check(&self) -> Result<(), KadeployError> {
        match self {
            Self::Recorded(name) => name.check(),
            Self::Inline(environment) => environment.check_inline(),
        }
    }
}

impl fmt::Display for EnvironmentToDeploy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recorded(name) => name.fmt(f),
            Self::Inline(environment) => environment.id().fmt(f),
        }
    }
}

/// A request to put an environment on nodes. A server never recognises one that it has had before: after a doubt,
/// [`Kadeploy::workflows`] comes first. Nodes that another workflow has are left out of it, so that one too many does
/// no harm.
#[derive(Clone, Debug, PartialEq)]
pub struct DeployRequest {
    /// The nodes.
    pub nodes: Vec<NodeName>,
    /// What is put on them.
    pub environment: EnvironmentToDeploy,
    /// Address of a file with the ssh keys that root of the nodes accepts.
    pub key_url: Option<String>,
    /// A workflow of ours whose nodes are still marked as its own though the server has forgotten it. The marks are
    /// ignored only if that is so.
    pub takes_over: Option<WorkflowId>,
}

impl DeployRequest {
    /// What must be right before it is sent.
    pub fn check(&self) -> Result<(), KadeployError> {
        if self.nodes.is_empty() {
            return Err(KadeployError::Refused("no node is named".into()));
        }
        self.nodes.iter().try_for_each(names::node)?;
        self.environment.check()?;
        self.key_url.iter().try_for_each(|url| names::address("the address of the ssh keys", url))
    }
}

/// A workflow in the server's list of the account's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Workflow {
    /// Its id.
    pub id: WorkflowId,
    /// Its nodes; none where it broke as a whole.
    pub nodes: Vec<NodeName>,
    /// Its environment.
    pub environment: EnvironmentName,
    /// Whether it is over, one way or the other.
    pub done: bool,
    /// When it began, by the server's clock.
    pub started: Option<Timestamp>,
}

/// How one of our nodes stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum NodeState {
    /// The workflow is at work on it, or on others.
    Working {
        /// The step it is in, in the server's words.
        step: String,
    },
    /// The environment runs on it.
    Deployed,
    /// The server gave it up.
    Failed {
        /// Why, in the server's words.
        reason: String,
    },
    /// Left out of the workflow, because another operation had it: nothing of ours was done to it.
    Discarded,
    /// The workflow broke, and not by the node: the server is in trouble ([`KadeployError::Unreachable`]), or, with any
    /// other error, it would refuse the same request.
    Broke(KadeployError),
    /// The server does not know the workflow (any more); this is what its record of the node says.
    Lost(Remains),
}

/// What is known of a node whose workflow the server has forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Remains {
    /// Our environment was put on it to the end.
    Deployed,
    /// Cancelled, or the rights to the node were taken away, or the workflow broke before it touched the node.
    Aborted,
    /// The server died in the middle. Until a time of its own is over it leaves the node out of every request, unless
    /// that one takes it over.
    Stale,
    /// Something else: another environment, another user, an operation that is not ours. The server's word.
    Other(String),
}

/// How the nodes of a workflow stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Observation {
    /// Whether nothing more will change by this workflow. Forget it then.
    pub done: bool,
    /// Each node that was asked for.
    pub nodes: BTreeMap<NodeName, NodeState>,
}

/// Why a deployment server did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq, Serialize)]
pub enum KadeployError {
    /// No answer, or one of a server in trouble. A deployment may have begun.
    #[error("failed to reach the deployment server: {0}")]
    Unreachable(String),
    /// The account is not accepted.
    #[error("the deployment server refused the account: {0}")]
    Credentials(String),
    /// The account has no rights to all of the nodes, or not yet: the site gives them a while after a slot begins.
    #[error("the deployment server gives no rights to the nodes: {0}")]
    RightsMissing(String),
    /// No such environment.
    #[error("the deployment server has no such environment: {0}")]
    NoEnvironment(String),
    /// The request cannot be met as it is; the text says what to change.
    #[error("the deployment server refused the request: {0}")]
    Refused(String),
    /// The address does not answer as a deployment server, or not to what we ask.
    #[error("the deployment server is not configured right: {0}")]
    Configuration(String),
    /// We sent something wrong.
    #[error("the deployment server did not understand the request: {0}")]
    Bug(String),
}

impl DriverError for KadeployError {
    fn reason(&self) -> Reason {
        match self {
            Self::Unreachable(_) | Self::Configuration(_) => Reason::KadeployUnreachable,
            Self::Credentials(_) => Reason::CredentialsRefused,
            Self::RightsMissing(_) => Reason::RightsMissing,
            Self::NoEnvironment(_) => Reason::EnvironmentNotFound,
            Self::Refused(_) | Self::Bug(_) => Reason::DeploymentRefused,
        }
    }
    fn retry(&self) -> Retry {
        match self {
            Self::Unreachable(_) | Self::RightsMissing(_) => Retry::After(Duration::from_secs(5)),
            Self::Credentials(_) | Self::Refused(_) | Self::Configuration(_) => Retry::Denied,
            Self::NoEnvironment(_) => Retry::Gone,
            Self::Bug(_) => Retry::Bug,
        }
    }
}

/// One account at one deployment server.
#[async_trait]
pub trait Kadeploy: Send + Sync {
    /// The description of an environment that the server has recorded.
    async fn describe(&self, name: &EnvironmentName) -> Result<Environment, KadeployError>;

    /// Begins to put an environment on nodes. After [`KadeployError::Unreachable`] it may have begun.
    async fn deploy(&self, request: &DeployRequest) -> Result<WorkflowId, KadeployError>;

    /// The account's own workflows that the server knows, those that are over too.
    async fn workflows(&self) -> Result<Vec<Workflow>, KadeployError>;

    /// How the nodes of a workflow stand. A workflow that the server does not know is no error: its nodes are
    /// [`NodeState::Lost`].
    async fn observe(
        &self,
        workflow: &WorkflowId,
        nodes: &[NodeName],
        environment: &EnvironmentToDeploy,
    ) -> Result<Observation, KadeployError>;

    /// Cancels a workflow, or has the server forget one that is over. One that it does not know is no error.
    async fn forget(&self, workflow: &WorkflowId) -> Result<(), KadeployError>;
}

/// The accounts at the deployment servers of all configured sites.
pub trait Deployers: Send + Sync {
    /// The account. [`KadeployError::Configuration`] where the site has no such server.
    fn account(&self, site: &str, credentials: &Credentials) -> Result<Arc<dyn Kadeploy>, KadeployError>;
}

/// A client of a site's deployment server, for one account. Nothing is asked of the server yet.
pub fn connect(site: &SiteConfig, credentials: &Credentials) -> Result<Arc<dyn Kadeploy>, KadeployError> {
    let missing = "the site has no kadeploy section in the chart's values";
    let server = site.kadeploy.as_ref().ok_or_else(|| KadeployError::Configuration(missing.into()))?;
    Ok(match server.flavour {
        Flavour::Native => Arc::new(rest::KadeployRest::new(site, server, credentials)?),
        Flavour::G5k => Arc::new(g5k::Grid5000::new(site, server, credentials)?),
    })
}
