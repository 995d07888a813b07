//! `BestEffortJob`: what a user wants to run.

use kube::{CustomResource, KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub use super::policy::{OnNotice, SnapshotPolicy};
use super::{
    hypervisor::{Deploy, EnvironmentReference, HypervisorSpec},
    job_status::BestEffortJobStatus,
    quantity::Bytes,
};

/// A job that runs in virtual machines on slots that can be taken away, and goes on from its last
/// snapshot when they are.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "vmdeploy.io",
    version = "v1alpha1",
    kind = "BestEffortJob",
    plural = "besteffortjobs",
    shortname = "bej",
    category = "vmdeploy",
    namespaced,
    cel,
    doc = "A job that runs in virtual machines on slots that can be taken away, and goes on from its last snapshot when they are.",
    status = "BestEffortJobStatus",
    validation = ("size(self.metadata.name) <= 63", "the name must have at most 63 characters, because it is used as a label"),
    validation = (
        "!has(oldSelf.status) || !has(oldSelf.status.started) || self.spec.members == oldSelf.spec.members",
        "members cannot change once the first guest has started: make another job"
    ),
    validation = (
        "!has(oldSelf.status) || !has(oldSelf.status.started) || (has(self.spec.image) == has(oldSelf.spec.image) && (!has(self.spec.image) || self.spec.image == oldSelf.spec.image))",
        "image cannot change once the first guest has started: make another job"
    ),
    validation = (
        "!has(oldSelf.status) || !has(oldSelf.status.started) || self.spec.vm == oldSelf.spec.vm",
        "vm cannot change once the first guest has started, because the snapshots have the old shape: make another job"
    ),
    validation = (
        "!has(oldSelf.status) || !has(oldSelf.status.started) || self.spec.run == oldSelf.spec.run",
        "run cannot change once the first guest has started: make another job"
    ),
    validation = (
        "!has(oldSelf.status) || !has(oldSelf.status.started) || (has(self.spec.network) ? self.spec.network.master : 'None') == (has(oldSelf.spec.network) ? oldSelf.spec.network.master : 'None')",
        "network.master cannot change once the first guest has started: make another job"
    ),
    validation = (
        "!has(oldSelf.status) || (!has(oldSelf.status.started) && !has(oldSelf.status.adopted)) || (has(self.spec.restoreFrom) == has(oldSelf.spec.restoreFrom) && (!has(self.spec.restoreFrom) || self.spec.restoreFrom == oldSelf.spec.restoreFrom))",
        "restoreFrom cannot change once its generation is being copied or the first guest has started: make another job"
    ),
    validation = (
        "!has(oldSelf.status) || ((!has(oldSelf.status.slots) || size(oldSelf.status.slots) == 0) && !has(oldSelf.status.pendingSubmission)) || (self.spec.slots.site == oldSelf.spec.slots.site && self.spec.slots.allocation == oldSelf.spec.slots.allocation && self.spec.launcher == oldSelf.spec.launcher && has(self.spec.hypervisor) == has(oldSelf.spec.hypervisor) && (!has(self.spec.hypervisor) || self.spec.hypervisor == oldSelf.spec.hypervisor) && has(self.spec.slots.credentials) == has(oldSelf.spec.slots.credentials) && (!has(self.spec.slots.credentials) || self.spec.slots.credentials == oldSelf.spec.slots.credentials))",
        "slots.site, slots.allocation, slots.credentials, launcher and hypervisor cannot change while slots are held or asked for: set suspend to true first"
    ),
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Members","type":"integer","jsonPath":".spec.members"}"#,
    printcolumn = r#"{"name":"Site","type":"string","jsonPath":".spec.slots.site"}"#,
    printcolumn = r#"{"name":"Attempt","type":"integer","jsonPath":".status.attempt"}"#,
    printcolumn = r#"{"name":"Stored","type":"integer","jsonPath":".status.snapshots.lastStored","description":"Newest complete generation"}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].message"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Slots","type":"string","priority":1,"jsonPath":".status.held","description":"The slot, or how many slots run of those that are needed"}"#,
    printcolumn = r#"{"name":"Image","type":"string","priority":1,"jsonPath":".spec.image.name"}"#
)]
#[x_kube(cel)]
#[x_kube(
    validation = ("!has(self.network) || self.network.kind == 'Overlay'", "network.kind Kavlan and SiteSubnet are not available in this version: use Overlay"),
    validation = ("!has(self.network) || self.network.master == 'None' || (has(self.access) && size(self.access.sshKeys) > 0)", "network.master other than None needs access.sshKeys: they are what lets people in"),
    validation = ("self.launcher == 'Pod' || !has(self.hypervisor) || self.hypervisor.deploy == 'Never'", "nodes that are deployed join this cluster, where agents are pods: set launcher to Pod, or hypervisor.deploy to Never"),
    validation = ("self.launcher == 'Pod' || self.distribution != 'Shared'", "distribution Shared is a claim that pods mount: with launcher TakTuk use Broadcast"),
    validation = ("!has(self.snapshots) || duration(self.snapshots.grace) < duration(self.slots.walltime)", "snapshots.grace must be shorter than slots.walltime")
)]
#[serde(rename_all = "camelCase")]
pub struct BestEffortJobSpec {
    /// Number of virtual machines, one per node.
    #[schemars(range(min = 1, max = 1024))]
    #[serde(default = "one")]
    pub members: u32,
    /// The VmImage to run, in this namespace; if absent that of `restoreFrom`'s snapshot, or the operator's
    /// default image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageReference>,
    /// Size and shape of every virtual machine.
    #[serde(default)]
    pub vm: VmSpec,
    /// What to run inside the guests.
    pub run: RunSpec,
    /// Files of the guests that are kept in the repository when the job has ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["path"]))]
    pub outputs: Vec<OutputFile>,
    /// Small files given to the guests at their first start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["path"]))]
    pub inputs: Vec<InputFile>,
    /// Where and how the nodes are asked for.
    pub slots: SlotSpec,
    /// What runs on the nodes below the virtual machines: the site's own system, or what is put there for each slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<HypervisorSpec>,
    /// How the image comes to the nodes: read when agents are placed, and TakTuk also when slots are asked for.
    #[serde(default)]
    pub distribution: Distribution,
    /// What starts the agents on the nodes.
    #[serde(default)]
    pub launcher: LauncherKind,
    /// When to take snapshots and how many to keep.
    #[serde(default)]
    pub snapshots: SnapshotPolicy,
    /// The job's own network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkSpec>,
    /// Who may log in to the guests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<AccessSpec>,
    /// Stops the job: it is captured, then its slots are given back. Set to false to go on.
    #[serde(default)]
    pub suspend: bool,
    /// Start from a snapshot of another job of this namespace, which may run on, end or be deleted: the guests
    /// go on with its memory, disks, command and addresses, in a network of their own. `members`, `vm`, `run` and
    /// `image` must be what they were there; `image` may be left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_from: Option<RestoreFrom>,
    /// How many failures of the guest's own are retried, from the image or `restoreFrom`'s snapshot, before the job
    /// fails. Preemptions, ends of walltime and lost nodes never count.
    #[schemars(range(min = 0, max = 1000))]
    #[serde(default = "default_backoff_limit")]
    pub backoff_limit: u32,
    /// Time after creation, less suspensions, at which the job fails if it has not succeeded.
    #[x_kube(validation = ("duration(self) > duration('0s')", "activeDeadline must be longer than 0s, for example 12h"))]
    #[schemars(regex(pattern = DURATION), length(max = 32))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_deadline: Option<Duration>,
    /// Deletes the object this long after its end. Not set by default: a GitOps tool would make it again.
    #[schemars(regex(pattern = DURATION), length(max = 32))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_after_finished: Option<Duration>,
}

impl BestEffortJobSpec {
    /// The environment that is put on the nodes of its slots, if one is.
    pub fn deployed(&self) -> Option<&EnvironmentReference> {
        let hypervisor = self.hypervisor.as_ref().filter(|hypervisor| hypervisor.deploy != Deploy::Never)?;
        hypervisor.environment.as_ref()
    }
}

/// How a length of time is written: Go's notation without a sign.
pub(super) const DURATION: &str = r"^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$";

fn one() -> u32 {
    1
}
fn default_backoff_limit() -> u32 {
    3
}

/// Names a VmImage.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageReference {
    /// Name of a VmImage of this namespace, or of a standard one of the operator's.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Size and shape of a virtual machine.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmSpec {
    /// Virtual CPUs.
    #[schemars(range(min = 1, max = 256))]
    #[serde(default = "one")]
    pub cpus: u32,
    /// Memory of the guest, for example 512Mi.
    #[x_kube(validation = ("quantity(string(self)).compareTo(quantity('32Mi')) >= 0", "memory must be at least 32Mi, for example 512Mi"))]
    #[serde(default = "default_memory")]
    pub memory: Bytes,
    /// Size of the guest's disk; what the image has beyond it is an error, what it lacks is added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
    /// CPU model seen by the guest: a named baseline, never `host` or `max`, so that another node can
    /// restore it.
    #[x_kube(validation = ("self != 'host' && self != 'max'", "cpuModel must be a named model such as qemu64 or Nehalem: host and max cannot be restored on another node"))]
    #[x_kube(validation = ("self.matches('^[A-Za-z0-9._-]+$')", "cpuModel must be one name such as qemu64: only letters, digits, dot, underscore and hyphen"))]
    #[schemars(length(min = 1, max = 64))]
    #[serde(default = "default_cpu_model")]
    pub cpu_model: String,
    /// Machine type; the versioned name it stands for is recorded with each generation.
    #[x_kube(validation = ("self.matches('^[A-Za-z0-9._-]+$')", "machine must be one name such as q35: only letters, digits, dot, underscore and hyphen"))]
    #[schemars(length(min = 1, max = 64))]
    #[serde(default = "default_machine")]
    pub machine: String,
}

impl VmSpec {
    /// Size of the guest's disk over an image of this size, in bytes.
    pub fn disk_over(&self, image: u64) -> u64 {
        self.disk.map_or(image, |disk| disk.0.max(image))
    }
}

fn default_memory() -> Bytes {
    Bytes::mebibytes(512)
}
fn default_cpu_model() -> String {
    "qemu64".into()
}
fn default_machine() -> String {
    "q35".into()
}

impl Default for VmSpec {
    fn default() -> Self {
        Self {
            cpus: one(),
            memory: default_memory(),
            disk: None,
            cpu_model: default_cpu_model(),
            machine: default_machine(),
        }
    }
}

/// What runs inside the guests.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunSpec {
    /// The command and its arguments; exit code 0 is success. Not interpreted by a shell. What it prints is
    /// kept, up to 4Gi of each member; a command that prints more stands still: let it write to a file.
    #[x_kube(validation = ("self[0] != ''", "command must begin with the name of a program, for example [\"/usr/bin/make\", \"all\"]"))]
    #[schemars(length(min = 1, max = 256), inner(length(max = 8192)))]
    pub command: Vec<String>,
    /// On which members it runs.
    #[serde(default)]
    pub members: RunMembers,
    /// Environment variables.
    #[x_kube(validation = ("self.all(name, name.matches('^[A-Za-z_][A-Za-z0-9_]*$'))", "names in env must consist of letters, digits and underscores and not begin with a digit"))]
    #[schemars(length(max = 128), inner(length(max = 8192)))]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// User of the guest that runs it; root by default.
    #[x_kube(validation = ("self.matches('^[a-z_][a-z0-9_-]*$')", "user must be the name of a user of the guest, for example nobody"))]
    #[schemars(length(min = 1, max = 32))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Directory in which it starts.
    #[x_kube(validation = ("self.startsWith('/')", "workingDir must be an absolute path, for example /tmp"))]
    #[schemars(length(min = 1, max = 4096))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
}

/// On which members the command runs.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunMembers {
    /// On member 0 only; the others are there for it to use.
    First,
    /// On every member; the job succeeds when all have ended with 0.
    #[default]
    All,
}

/// A file of the guests to keep.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutputFile {
    /// Absolute path inside the guest.
    #[x_kube(validation = ("self.matches('^/[^\\n]+$') && !self.matches('(^|/)[.][.](/|$)')", "path must be absolute and without .., for example /data/result"))]
    #[schemars(length(min = 2, max = 1024))]
    pub path: String,
}

/// A small file given to the guests.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("(has(self.text)?1:0) + (has(self.configMap)?1:0) + (has(self.secret)?1:0) == 1", "an input takes exactly one of text, configMap and secret"))]
pub struct InputFile {
    /// Absolute path inside the guest.
    #[x_kube(validation = ("self.matches('^/[^\\n]+$') && !self.matches('(^|/)[.][.](/|$)')", "path must be absolute and without .., for example /data/result"))]
    #[schemars(length(min = 2, max = 1024))]
    pub path: String,
    /// The content itself.
    #[schemars(length(max = 65536))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// A key of a ConfigMap of this namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map: Option<KeyReference>,
    /// A key of a Secret of this namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<KeyReference>,
}

/// Names a key of a ConfigMap or Secret.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyReference {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Where and how nodes are asked for.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.acquireTimeout) || self.allocation == 'PerMember'", "acquireTimeout is for slots.allocation PerMember: leave it out, or ask for that"))]
pub struct SlotSpec {
    /// A site of the operator's configuration.
    #[x_kube(validation = ("self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')", "site must be the name of a site of the operator's configuration: lower-case letters, digits, dot and hyphen"))]
    #[schemars(length(min = 1, max = 63))]
    pub site: String,
    /// One reservation of all nodes, or one of each.
    #[serde(default)]
    pub allocation: Allocation,
    /// Length of a slot, for example 2h.
    #[x_kube(validation = ("duration(self) >= duration('1m') && duration(self) <= duration('8760h')", "walltime must lie between 1m and 8760h, for example 2h"))]
    #[schemars(regex(pattern = DURATION), length(max = 32))]
    pub walltime: Duration,
    /// What only OAR sites understand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oar: Option<OarSlotSpec>,
    /// Secret of this namespace with the account at the site: `username` and `password`, or `tls.crt` and `tls.key`;
    /// also `launchKey`, the text of the site's launch key file, with launcher TakTuk and where deployed nodes join by
    /// token (sites.*.kadeploy.join).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<SecretReference>,
    /// With PerMember: if not all slots run within this time since the first does, all are given back and asked for
    /// again later; 10m unless set. So long, too, the others wait for replacements of slots that were taken.
    #[x_kube(validation = ("duration(self) >= duration('30s') && duration(self) <= duration('24h')", "acquireTimeout must lie between 30s and 24h, for example 10m"))]
    #[schemars(regex(pattern = DURATION), length(max = 32))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acquire_timeout: Option<Duration>,
}

/// How many reservations.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allocation {
    /// One reservation of n nodes: kept or lost as a whole.
    #[default]
    Gang,
    /// n reservations of one node: they can be given back one by one, and when some are wanted back only those are
    /// left. The others stand by until there are as many new ones.
    PerMember,
}

/// How an image comes to the nodes of a job. A node that has it already fetches nothing.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Distribution {
    /// From node to node: about one image leaves the repository for all of them. Nodes whose label
    /// `vmdeploy.io/switch` has the same value stand next to each other: a label of Node objects, which there are none
    /// of with launcher TakTuk, and which deployed nodes have by `--node-labels` of their kubelet.
    #[default]
    Broadcast,
    /// By TakTuk: the first node of each reservation sends the image to the others in pieces, and each piece is checked
    /// before it is used. What does not arrive within some seconds comes as with Broadcast; so does everything on nodes
    /// that are deployed, and in reservations of one node.
    TakTuk,
    /// Each node fetches it from the repository.
    NodeCache,
    /// From a claim that all nodes mount, which the operator's configuration names. What is not there comes as with
    /// Broadcast, and is put there.
    Shared,
}

/// What starts agents on the nodes of a slot.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LauncherKind {
    /// The kubelet of each node, which is a node of this cluster: agents are pods.
    #[default]
    Pod,
    /// TakTuk, inside the OAR job: for nodes that have no kubelet. The site's configuration says how; what agents use
    /// must be on the nodes.
    TakTuk,
}

/// Filters for OAR; they never change how many nodes are asked for.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OarSlotSpec {
    /// Queue; best-effort jobs are put into OAR's best-effort queue by its own rules.
    #[x_kube(validation = ("self.matches('^[A-Za-z0-9._-]+$')", "queue may hold only letters, digits, dot, underscore and hyphen"))]
    #[schemars(length(min = 1, max = 64))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// Project.
    #[x_kube(validation = ("self.matches('^[A-Za-z0-9._-]+$')", "project may hold only letters, digits, dot, underscore and hyphen"))]
    #[schemars(length(min = 1, max = 64))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// An SQL condition on OAR's resource properties, for example `cluster='paravance'`.
    #[x_kube(validation = ("self.matches('^[^;`$\\\\\\x00-\\x1f]+$') && !self.contains('--') && !self.contains('/*')", "property must be a plain SQL condition on one line without ; -- /* ` $ or backslash, for example cluster='paravance'"))]
    #[x_kube(validation = ("self.matches(\"^[^']*('[^']*'[^']*)*$\") && self.split('(').size() == self.split(')').size()", "property must close every quote ' and every parenthesis"))]
    #[x_kube(validation = ("self.matches(\"(?i)^(( *|([^(']|'[^']*')*[^A-Za-z0-9_.(' ] *|([^(']|'[^']*')*'[^']*' *|(([^(']|'[^']*')*[^A-Za-z0-9_.(']|([^(']|'[^']*')*'[^']*')?(and|or|not|in) *)[(])*([^(']|'[^']*')*$\")", "property may compare properties with values, but call no function: only and, or, not and in may stand before a parenthesis"))]
    #[schemars(length(min = 1, max = 1024))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub property: Option<String>,
}

/// Names a Secret of the same namespace.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The job's own network.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkSpec {
    /// The way in to the members from outside the cluster.
    pub master: Master,
    /// What carries the network between the nodes.
    pub kind: NetworkKind,
}

/// What carries a job's network between its nodes.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkKind {
    /// An overlay of the operator's own (VXLAN), on any site. The only one that lives through kills.
    #[default]
    Overlay,
    /// A VLAN that Kavlan sets up at the site for the nodes of one slot. Not available in this version.
    Kavlan,
    /// Addresses that the site reserves with the slot, as Grid'5000's subnets. Not available in this version.
    SiteSubnet,
}

/// The way in to the members from outside the cluster: an ssh server on a node's address, for the keys of
/// access.sshKeys, that connects to members (`ssh -J`) and does nothing else. status.network.wayIn says
/// where it is.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Master {
    /// None.
    #[default]
    None,
    /// On member 0's node.
    Shared,
    /// On a node of its own, which runs no virtual machine: one node more is asked for.
    Dedicated,
}

/// Who may log in to the guests.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessSpec {
    /// Public ssh keys for root of the guests.
    #[x_kube(validation = ("self.all(key, key.matches('^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-ssh-ed25519@openssh.com|sk-ecdsa-sha2-nistp256@openssh.com) [A-Za-z0-9+/]+=*( [^\\n]*)?$'))", "sshKeys must be public keys on one line each, as in ~/.ssh/id_ed25519.pub"))]
    #[schemars(length(max = 64), inner(length(max = 4096)))]
    #[serde(default)]
    pub ssh_keys: Vec<String>,
}

/// Names the snapshot a job starts from.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreFrom {
    /// Name of a Snapshot of this namespace.
    #[schemars(length(min = 1, max = 253))]
    pub snapshot: String,
}
