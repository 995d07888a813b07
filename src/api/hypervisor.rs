//! What is put on bare nodes before agents are placed there: what a job says of it, and what became of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What runs on the nodes below the virtual machines.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.deploy == 'Never' || has(self.environment)", "hypervisor.environment is missing: name the environment that is put on the nodes, or set deploy to Never"))]
// here and not at the reference: that is part of the status as well, in lists for which such rules cost too much
#[x_kube(validation = ("!has(self.environment) || self.environment.name.matches('^[A-Za-z0-9][A-Za-z0-9._+-]*$')", "the environment's name may hold letters, digits and ._+- and must begin with a letter or a digit"))]
#[x_kube(validation = ("!has(self.environment) || !has(self.environment.user) || self.environment.user.matches('^[A-Za-z0-9][A-Za-z0-9._+-]*$')", "the environment's user may hold letters, digits and ._+- and must begin with a letter or a digit"))]
pub struct HypervisorSpec {
    /// Whether the site's deployment server puts an environment on the slot's nodes, which are then asked for as nodes
    /// to be deployed.
    #[serde(default)]
    pub deploy: Deploy,
    /// The environment. Its nodes must join this cluster: by themselves, or by the token that the site gives them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<EnvironmentReference>,
}

/// Whether an environment is put on the nodes of a slot.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deploy {
    /// Never: the site's own system is the hypervisor.
    #[default]
    Never,
    /// On those that are not ready nodes of this cluster when their slot begins.
    IfMissing,
    /// On all, whenever a slot begins.
    Always,
}

/// An environment that a site's deployment server has recorded.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentReference {
    /// Its name.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// Whose it is; if absent the account's own or a public one.
    #[schemars(length(min = 1, max = 16))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its version; the newest if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
}

/// What is put on the nodes of a slot.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentStatus {
    /// The environment.
    pub environment: EnvironmentReference,
    /// When it was decided.
    pub since: Time,
    /// The workflow that is under way, or about to be asked for; absent between two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<WorkflowStatus>,
    /// Workflows in a row that came to nothing, by no fault of the nodes.
    #[serde(default, skip_serializing_if = "super::job_status::is_zero")]
    pub fruitless: u32,
    /// No workflow is asked for before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    /// A workflow that its server has forgotten, whose marks are on nodes still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takes_over: Option<String>,
    /// Number of the last workflow.
    #[serde(default, skip_serializing_if = "super::job_status::is_zero")]
    pub last_workflow: u32,
    /// Since when the slot is over and all that was on its nodes is dead: they then leave the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_since: Option<Time>,
    /// The nodes of the slot.
    pub nodes: Vec<DeployedNode>,
}

/// A workflow of the deployment server.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowStatus {
    /// Number of the workflow in this slot.
    pub number: u32,
    /// Its id at the server; absent until that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// When it was decided.
    pub since: Time,
    /// Its nodes.
    pub nodes: Vec<String>,
}

/// A node on which an environment is put.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployedNode {
    /// Its name.
    pub node: String,
    /// How far it is.
    pub state: DeploymentState,
    /// Since when it is.
    pub since: Time,
    /// Workflows that came to nothing on it.
    #[serde(default, skip_serializing_if = "super::job_status::is_zero")]
    pub failures: u32,
    /// What stands against it now, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The system that was on it when its slot began, as the cluster knew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<SystemIdentity>,
    /// The system that was put there, as the cluster knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<SystemIdentity>,
    /// Id of the bootstrap token by which it may join the cluster; absent where there is none, or none any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// By which one system on a node is told from the next.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SystemIdentity {
    /// Uid of its Node object, which a system that comes after it may take over.
    pub uid: String,
    /// Its kernel's own name for its start.
    pub boot: String,
}

/// How far a node is.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeploymentState {
    /// Nothing was asked for yet, or again.
    Waiting,
    /// A workflow is at work on it.
    Deploying,
    /// Deployed; it has not joined the cluster yet.
    Joining,
    /// A ready node of the cluster.
    Ready,
    /// Given up.
    Failed,
}
