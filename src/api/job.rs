//! `BestEffortJob`: what a user wants to run.

use kube::{CustomResource, KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::{job_status::BestEffortJobStatus, quantity::Bytes};

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
    status = "BestEffortJobStatus",
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Members","type":"integer","jsonPath":".spec.members"}"#,
    printcolumn = r#"{"name":"Site","type":"string","jsonPath":".spec.slots.site"}"#,
    printcolumn = r#"{"name":"Attempt","type":"integer","jsonPath":".status.attempt"}"#,
    printcolumn = r#"{"name":"Stored","type":"integer","jsonPath":".status.snapshots.lastStored","description":"Newest complete generation"}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].message"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Slots","type":"string","priority":1,"jsonPath":".status.slots[*].id"}"#,
    printcolumn = r#"{"name":"Image","type":"string","priority":1,"jsonPath":".spec.image.name"}"#
)]
#[x_kube(cel)]
#[x_kube(
    validation = ("!(self.members > 1 && has(self.network) && self.network.master == 'Shared')", "network.master Shared is not available yet: use None"),
    validation = ("!has(self.activeDeadline) || duration(self.activeDeadline) > duration('0s')", "activeDeadline must be longer than 0s, for example 12h")
)]
#[serde(rename_all = "camelCase")]
pub struct BestEffortJobSpec {
    /// Number of virtual machines, one per node.
    #[schemars(range(min = 1, max = 1024))]
    #[serde(default = "one")]
    pub members: u32,
    /// The VmImage to run, in this namespace; the operator's default image if absent.
    pub image: Option<ImageReference>,
    /// Size and shape of every virtual machine.
    #[serde(default)]
    pub vm: VmSpec,
    /// What to run inside the guests.
    pub run: RunSpec,
    /// Files of the guests that are kept in the repository when the job has ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub outputs: Vec<OutputFile>,
    /// Small files given to the guests at their first start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub inputs: Vec<InputFile>,
    /// Where and how the nodes are asked for.
    pub slots: SlotSpec,
    /// When to take snapshots and how many to keep.
    #[serde(default)]
    pub snapshots: SnapshotPolicy,
    /// The job's own network.
    pub network: Option<NetworkSpec>,
    /// Who may log in to the guests.
    pub access: Option<AccessSpec>,
    /// Stops the job: it is captured, then its slots are given back. Set to false to go on.
    #[serde(default)]
    pub suspend: bool,
    /// Start from a snapshot of another job of this namespace.
    pub restore_from: Option<RestoreFrom>,
    /// How many failures of the guest's own are retried from the image before the job fails.
    /// Preemptions, ends of walltime and lost nodes never count.
    #[schemars(range(min = 0, max = 1000))]
    #[serde(default = "default_backoff_limit")]
    pub backoff_limit: u32,
    /// Time after creation, less suspensions, at which the job fails if it has not succeeded.
    pub active_deadline: Option<Duration>,
    /// Deletes the object this long after its end. Not set by default: a GitOps tool would make it again.
    pub ttl_after_finished: Option<Duration>,
}

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
    #[serde(default = "default_memory")]
    pub memory: Bytes,
    /// Size of the guest's disk; what the image has beyond it is an error, what it lacks is added.
    pub disk: Option<Bytes>,
    /// CPU model seen by the guest: a named baseline, never `host` or `max`, so that another node can
    /// restore it.
    #[x_kube(validation = ("self != 'host' && self != 'max'", "cpuModel must be a named model such as qemu64 or Nehalem: host and max cannot be restored on another node"))]
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]{1,64}$"))]
    #[serde(default = "default_cpu_model")]
    pub cpu_model: String,
    /// Machine type; the versioned name it stands for is recorded with each generation.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]{1,64}$"))]
    #[serde(default = "default_machine")]
    pub machine: String,
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
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunSpec {
    /// The command and its arguments; exit code 0 is success. Not interpreted by a shell.
    #[schemars(length(min = 1, max = 256))]
    pub command: Vec<String>,
    /// On which members it runs.
    #[serde(default)]
    pub on: RunOn,
    /// Environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// User of the guest that runs it; root by default.
    #[schemars(regex(pattern = r"^[a-z_][a-z0-9_-]{0,31}$"))]
    pub user: Option<String>,
    /// Directory in which it starts.
    #[schemars(regex(pattern = r"^/.{0,4095}$"))]
    pub working_dir: Option<String>,
}

/// On which members the command runs.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunOn {
    /// On member 0 only; the others are there for it to use.
    First,
    /// On every member; the job succeeds when all have ended with 0.
    #[default]
    All,
}

/// A file of the guests to keep.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutputFile {
    /// Absolute path inside the guest.
    #[schemars(regex(pattern = r"^/.{1,4095}$"))]
    pub path: String,
}

/// A small file given to the guests.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("(has(self.text)?1:0) + (has(self.configMap)?1:0) + (has(self.secret)?1:0) == 1", "an input takes exactly one of text, configMap and secret"))]
pub struct InputFile {
    /// Absolute path inside the guest.
    #[schemars(regex(pattern = r"^/.{1,4095}$"))]
    pub path: String,
    /// The content itself.
    #[schemars(length(max = 65536))]
    pub text: Option<String>,
    /// A key of a ConfigMap of this namespace.
    pub config_map: Option<KeyReference>,
    /// A key of a Secret of this namespace.
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
pub struct SlotSpec {
    /// A site of the operator's configuration.
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"))]
    pub site: String,
    /// One reservation of all nodes, or one of each.
    #[serde(default)]
    pub allocation: Allocation,
    /// Length of a slot, for example 2h.
    #[x_kube(validation = ("duration(self) >= duration('1m')", "walltime must be at least 1m, for example 2h"))]
    pub walltime: Duration,
    /// What only OAR sites understand.
    pub oar: Option<OarSlotSpec>,
    /// Secret of this namespace with the account at the site: `username` and `password`, or `tls.crt` and `tls.key`.
    pub credentials: Option<SecretReference>,
    /// With PerMember: if not all slots run within this time, all are given back and asked for again later.
    pub acquire_timeout: Option<Duration>,
}

/// How many reservations.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allocation {
    /// One reservation of n nodes: kept or lost as a whole.
    #[default]
    Gang,
    /// n reservations of one node: they can be given back one by one.
    PerMember,
}

/// Filters for OAR; they never change how many nodes are asked for.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OarSlotSpec {
    /// Queue; best-effort jobs are put into OAR's best-effort queue by its own rules.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]{1,64}$"))]
    pub queue: Option<String>,
    /// Project.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]{1,64}$"))]
    pub project: Option<String>,
    /// An SQL condition on OAR's resource properties, for example `cluster='paravance'`.
    #[x_kube(validation = ("!self.contains(';') && !self.contains('--') && !self.contains('`') && !self.contains('$')", "property must be a plain SQL condition without ; -- ` or $, for example cluster='paravance'"))]
    #[schemars(length(max = 1024))]
    pub property: Option<String>,
}

/// Names a Secret of the job's namespace.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// When to take snapshots and how many to keep.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotPolicy {
    /// Time between two snapshots, for example 10m.
    #[x_kube(validation = ("duration(self) >= duration('5s')", "period must be at least 5s, for example 10m"))]
    #[serde(default = "default_period")]
    pub period: Duration,
    /// Complete generations to keep; never fewer than two.
    #[schemars(range(min = 2, max = 100))]
    #[serde(default = "default_keep")]
    pub keep: u32,
    /// Seconds of notice asked of the scheduler before a preemption; 0s asks for none. A long grace
    /// delays other people's jobs.
    #[x_kube(validation = ("duration(self) >= duration('0s') && duration(self) <= duration('10m')", "grace must lie between 0s and 10m"))]
    #[serde(default = "default_grace")]
    pub grace: Duration,
    /// Longest time the guests may stand still for a snapshot; one that would take longer is abandoned.
    #[serde(default = "default_max_pause")]
    pub max_pause: Duration,
    /// What to do at a notice.
    #[serde(default)]
    pub on_notice: OnNotice,
}

fn seconds(n: u64) -> Duration {
    std::time::Duration::from_secs(n).into()
}
fn default_period() -> Duration {
    seconds(600)
}
fn default_keep() -> u32 {
    2
}
fn default_grace() -> Duration {
    seconds(60)
}
fn default_max_pause() -> Duration {
    seconds(2)
}

impl Default for SnapshotPolicy {
    fn default() -> Self {
        Self {
            period: default_period(),
            keep: default_keep(),
            grace: default_grace(),
            max_pause: default_max_pause(),
            on_notice: OnNotice::Capture,
        }
    }
}

/// What to do at a notice.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnNotice {
    /// Take one last snapshot and leave as soon as it is stored.
    #[default]
    Capture,
    /// Leave at once with the last complete generation.
    Leave,
}

/// The job's own network.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkSpec {
    /// Whether one more node serves as the way in to the members.
    pub master: Master,
}

/// The way in to the members.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Master {
    /// No extra node.
    #[default]
    None,
    /// On member 0's node.
    Shared,
    /// On a node of its own: one more slot is asked for.
    Dedicated,
}

/// Who may log in to the guests.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessSpec {
    /// Public ssh keys for root of the guests.
    #[schemars(length(max = 64))]
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
