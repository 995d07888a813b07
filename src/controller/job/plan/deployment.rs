//! What is put on the nodes of slots: the facts a decision is made from, and what is asked for. Data only.

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    api::hypervisor::EnvironmentReference,
    driver::kadeploy::{EnvironmentName, KadeployError, Observation, Workflow, WorkflowId},
    names::{NodeName, SlotId},
};

/// A workflow that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeployOrder {
    /// The slot whose nodes they are.
    pub slot: SlotId,
    /// Number of the workflow in its slot.
    pub number: u32,
    /// The nodes.
    pub nodes: Vec<NodeName>,
    /// What is put on them.
    pub environment: EnvironmentReference,
    /// A workflow whose marks on the nodes are ignored if the server has forgotten it.
    pub takes_over: Option<WorkflowId>,
}

impl From<&EnvironmentReference> for EnvironmentName {
    fn from(named: &EnvironmentReference) -> Self {
        Self { name: named.name.clone(), user: named.user.clone(), version: named.version.map(u64::from) }
    }
}

/// What is known of the workflow that a slot's status names.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DeploymentSeen {
    /// This process is asking for it.
    pub asking: bool,
    /// What the server answered when this process asked for it, and when.
    pub reply: Option<(Timestamp, Result<WorkflowId, KadeployError>)>,
    /// How its nodes stand.
    pub observation: Option<Observation>,
    /// The account's workflows; looked for only where that of the status has no id yet, and this process has had none.
    /// With the time at which they were looked for.
    pub workflows: Option<(Timestamp, Vec<Workflow>)>,
    /// The workflow that the server has forgotten on our behalf.
    pub forgotten: Option<WorkflowId>,
    /// What the last question to the server failed with, if it failed.
    pub error: Option<KadeployError>,
}

/// What is known of the token by which a node that is deployed may join the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TokenSeen {
    /// Its id; absent where nodes join otherwise, or the account's key is not known.
    pub id: Option<String>,
    /// This process has taken back the one that the status names.
    pub withdrawn: bool,
    /// Why the node does not join with it, as far as somebody has said so.
    pub trouble: Option<String>,
}

/// A node that is to be let into the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenOrder {
    /// Its slot.
    pub slot: SlotId,
    /// The node.
    pub node: NodeName,
    /// Id of the token, which follows from both.
    pub id: String,
    /// What is left of the slot.
    pub life: std::time::Duration,
}
