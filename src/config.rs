//! The operator's configuration: a YAML file that the chart renders.

mod check;
mod join;
mod kadeploy;
mod launch;

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::LocalObjectReference;
use kube::core::Duration as Length;
use serde::{Deserialize, Serialize};

pub use self::{
    check::ConfigError,
    join::JoinConfig,
    kadeploy::{Flavour, KadeployConfig, ON_SERVER, certificate_user, digest},
    launch::LaunchConfig,
};
use crate::{
    api::job::SecretReference,
    driver::agent::{Accelerator, GuestNetwork},
    names::NodeName,
};

/// Everything an administrator decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Sites by name.
    pub sites: BTreeMap<String, SiteConfig>,
    /// Namespace of the operator and of all agent pods.
    pub namespace: String,
    /// `host:port` of the repository, reachable from the nodes.
    pub repository: String,
    /// How agent pods are made.
    pub agents: AgentsConfig,
    /// How importers are made.
    #[serde(default)]
    pub importers: ImportersConfig,
    /// The networks of jobs; without it, jobs have none and their members do not reach each other.
    #[serde(default)]
    pub job_network: Option<JobNetworkConfig>,
    /// VmImage of the operator's namespace for jobs that name none.
    #[serde(default)]
    pub default_image: Option<String>,
    /// An image that no VmImage, no job and no generation names is removed from the repository after this time.
    #[serde(default = "image_grace")]
    pub image_grace: Length,
    /// How much jobs may keep in the repository.
    #[serde(default)]
    pub quota: QuotaConfig,
}

/// How much the jobs of a namespace may keep in the repository, all their generations and results together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct QuotaConfig {
    /// For namespaces that are not named; without it, as much as there is room for.
    pub default: Option<crate::api::quantity::Bytes>,
    /// By namespace.
    pub namespaces: BTreeMap<String, crate::api::quantity::Bytes>,
}

impl QuotaConfig {
    /// Bytes that a namespace may have, if there is a limit.
    pub fn of(&self, namespace: &str) -> Option<u64> {
        self.namespaces.get(namespace).or(self.default.as_ref()).map(|bytes| bytes.0)
    }
}

/// The networks of jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobNetworkConfig {
    /// Each job gets a subnet of this. It must overlap nothing that guests or nodes reach.
    pub pool: ipnet::Ipv4Net,
    /// UDP port of the VXLANs on the nodes.
    #[serde(default = "vxlan_port")]
    pub port: u16,
    /// Largest packet of guests: 50 bytes less than what passes between any two nodes of any site. A
    /// guest that was started keeps it for good.
    #[serde(default = "guest_mtu")]
    pub mtu: u16,
}

/// One site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SiteConfig {
    /// What kind of scheduler it has.
    pub kind: SiteKind,
    /// Base address of its REST API, for example `http://oar.example:6668/oarapi`.
    pub url: String,
    /// Certificate authorities of the API, PEM; the system's if absent.
    #[serde(default)]
    pub ca: Option<String>,
    /// Headers sent with every request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Account of jobs that name no credentials, in every namespace that `users` does not name.
    #[serde(default)]
    pub default_account: Option<AccountConfig>,
    /// Namespaces whose jobs run as this user by the header X-REMOTE-IDENT, which the site trusts.
    #[serde(default)]
    pub users: BTreeMap<String, String>,
    /// Numeric id of the site's users on the nodes, by name: who may own the lease.
    pub uids: BTreeMap<String, u32>,
    /// Kubernetes names of the site's hosts, where they differ.
    #[serde(default)]
    pub nodes: BTreeMap<String, String>,
    /// Directory at the site in which holds start; must exist. The user's home if absent.
    #[serde(default)]
    pub directory: Option<String>,
    /// Directory of the leases on the nodes.
    #[serde(default = "lease_root")]
    pub lease_root: String,
    /// How the hold reaches the other nodes of its job.
    #[serde(default = "connector")]
    pub connector: String,
    /// Silence after which a node's VM counts as dead, and kills itself (T_iso).
    #[serde(default = "isolation")]
    pub isolation: Length,
    /// Slots on whose nodes no agent has come, or deployed nodes that have not joined, within this time are given back.
    #[serde(default = "agent_wait")]
    pub agent_wait: Length,
    /// Most memory a guest may have: what the nodes can spare.
    #[serde(default)]
    pub max_memory: Option<crate::api::quantity::Bytes>,
    /// The server that puts environments on the site's nodes; without it, none is put there.
    #[serde(default)]
    pub kadeploy: Option<KadeployConfig>,
    /// How agents are started on nodes that have no kubelet; without it, none are.
    #[serde(default)]
    pub launch: Option<LaunchConfig>,
    /// By which properties the site tells nodes apart that offer different things.
    #[serde(default)]
    pub properties: NodeProperties,
}

impl SiteConfig {
    /// What the site calls a node.
    pub fn host_of<'a>(&'a self, node: &'a NodeName) -> &'a str {
        self.nodes.iter().find(|(_, name)| **name == node.0).map_or(&node.0, |(host, _)| host)
    }
}

/// Conditions on a site's resources, written as `slots.oar.property` is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeProperties {
    /// Nodes with KVM: asked for by jobs that run under it.
    pub kvm: Option<String>,
    /// Nodes that have all of a CPU model, by `vm.cpuModel`: asked for by its jobs where KVM may run them.
    pub cpu_models: BTreeMap<String, String>,
}

/// What kind of scheduler a site has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SiteKind {
    /// OAR 2.5 by its REST API.
    Oar2,
}

/// An account in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccountConfig {
    /// User by the header X-REMOTE-IDENT, which the site trusts.
    pub user: String,
}

/// How agent pods are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentsConfig {
    /// Container image.
    pub image: String,
    /// When the kubelet fetches it.
    #[serde(default = "pull_policy")]
    pub image_pull_policy: String,
    /// Secrets with logins for the image's registry: of the operator's namespace, and for importers that read a claim
    /// of its namespace, under the same names.
    #[serde(default)]
    pub image_pull_secrets: Vec<SecretReference>,
    /// First port on the node's own address that an agent may serve on.
    #[serde(default = "port_first")]
    pub port_first: u16,
    /// How many ports from there on; as many after them are for the ways in to jobs.
    #[serde(default = "port_count")]
    pub port_count: u16,
    /// Thousandths of a processor for each virtual CPU: both request and limit.
    #[serde(default = "milli_cpu_per_cpu")]
    pub milli_cpu_per_cpu: u32,
    /// The same for the agent itself and for QEMU's own threads.
    #[serde(default = "milli_cpu_overhead")]
    pub milli_cpu_overhead: u32,
    /// Memory beside the guest's: QEMU itself, the agent, buffers of transfers.
    #[serde(default = "memory_overhead")]
    pub memory_overhead: crate::api::quantity::Bytes,
    /// What agents log, as `RUST_LOG` is written.
    #[serde(default = "log")]
    pub log: String,
    /// Priority class of the pods.
    #[serde(default)]
    pub priority_class: Option<String>,
    /// How QEMU runs guests.
    #[serde(default)]
    pub accelerator: Accelerator,
    /// What guests may reach by their first network card.
    #[serde(default)]
    pub guest_network: GuestNetwork,
    /// As much of its disk a node uses for images beyond those in use.
    #[serde(default = "image_cache")]
    pub image_cache: crate::api::quantity::Bytes,
    /// Images on a claim that all nodes mount, for jobs with `distribution: Shared`.
    #[serde(default)]
    pub shared_images: Option<SharedImagesConfig>,
    /// As much of its disk a node uses for what it keeps of jobs' captures, unreadable without the operator; 0: for
    /// nothing.
    #[serde(default = "capture_cache")]
    pub capture_cache: crate::api::quantity::Bytes,
}

impl AgentsConfig {
    /// The Secrets as pods name them; none if there are none.
    pub fn pull_secrets(&self) -> Option<Vec<LocalObjectReference>> {
        let secrets = self.image_pull_secrets.iter().map(|secret| LocalObjectReference { name: secret.name.clone() });
        let secrets: Vec<LocalObjectReference> = secrets.collect();
        (!secrets.is_empty()).then_some(secrets)
    }
}

/// How importers of images are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ImportersConfig {
    /// As much of its node's disk an importer may use, for what it fetches and for what it makes of that; one that uses
    /// more is evicted.
    pub scratch: crate::api::quantity::Bytes,
    /// Certificate authorities of servers and registries with images, PEM; trusted beside the system's.
    pub ca: Option<String>,
}

impl Default for ImportersConfig {
    fn default() -> Self {
        Self { scratch: crate::api::quantity::Bytes(64 << 30), ca: None }
    }
}

/// Images on a claim that all nodes mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SharedImagesConfig {
    /// Name of the PersistentVolumeClaim, in the operator's namespace: ReadWriteMany.
    pub claim: String,
    /// As much of it is used.
    #[serde(default = "shared_limit")]
    pub limit: crate::api::quantity::Bytes,
}

fn shared_limit() -> crate::api::quantity::Bytes {
    crate::api::quantity::Bytes(100 << 30)
}
fn image_grace() -> Length {
    Duration::from_secs(3600).into()
}
fn image_cache() -> crate::api::quantity::Bytes {
    crate::api::quantity::Bytes(50 << 30)
}
fn capture_cache() -> crate::api::quantity::Bytes {
    crate::api::quantity::Bytes(50 << 30)
}

/// UDP port of VXLANs, unless the configuration says another one.
pub fn vxlan_port() -> u16 {
    14789
}
fn guest_mtu() -> u16 {
    1450
}
fn lease_root() -> String {
    "/var/lib/vmdeploy/leases".into()
}
fn connector() -> String {
    "oarsh".into()
}
fn isolation() -> Length {
    Duration::from_secs(120).into()
}
fn agent_wait() -> Length {
    Duration::from_secs(300).into()
}
fn pull_policy() -> String {
    "IfNotPresent".into()
}
fn milli_cpu_per_cpu() -> u32 {
    1000
}
fn milli_cpu_overhead() -> u32 {
    500
}
fn memory_overhead() -> crate::api::quantity::Bytes {
    crate::api::quantity::Bytes::mebibytes(512)
}
fn log() -> String {
    "info".into()
}
fn port_first() -> u16 {
    17700
}
fn port_count() -> u16 {
    64
}
