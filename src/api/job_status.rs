//! What the operator knows and intends about a `BestEffortJob`.
//!
//! The status is the operator's whole memory: a new operator goes on from it. Whatever cannot be
//! repeated is written here before it is done.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::{
    hypervisor::{DeployedNode, DeploymentState, DeploymentStatus, SystemIdentity, WorkflowStatus},
    job_snapshots::{CaptureStatus, SnapshotsStatus},
};

/// Where the life of a job has got to; for people and columns, see the conditions for details.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum JobPhase {
    /// Not accepted yet.
    #[default]
    Pending,
    /// Its image is being imported.
    ImagePreparing,
    /// Slots are asked for.
    Queued,
    /// Slots run; their nodes are being deployed or join the cluster, or what ran there before must be gone first.
    Deploying,
    /// Agents are placed; the guests boot for the first time.
    Starting,
    /// Agents are placed; the guests are loaded from a generation.
    Restoring,
    /// The job computes.
    Running,
    /// The job computes and a snapshot of all members is being taken.
    Snapshotting,
    /// Slots are being left: the last capture is taken and stored.
    Evacuating,
    /// The command has ended; its outputs are being kept.
    Completing,
    /// Every command ended with 0 and the outputs are kept.
    Succeeded,
    /// It will not be tried again.
    Failed,
    /// Stopped on request; nothing is held at the site.
    Suspended,
    /// Being deleted.
    Terminating,
}

/// What the operator knows and intends about a job.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BestEffortJobStatus {
    /// The spec's generation this status speaks of.
    pub observed_generation: i64,
    /// Where the life of the job has got to.
    pub phase: JobPhase,
    /// Conditions: `Ready`, `Reconciling`, `Stalled`, `Adopted`, `ImageReady`, `Admitted`, `Provisioned`, `Running`,
    /// `Snapshotted`, `Evicting`, `SchedulerUnavailable`, `SnapshotFailed`, `SnapshotDamaged`, `GuestDegraded`,
    /// `Complete`, `Failed`. Those that say that something is wrong are there only while it is; each message says what.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Runs of the job between two losses, for people.
    pub attempt: u32,
    /// Requests sent to the scheduler; raised before every one and part of its name there.
    pub submission: u32,
    /// Coherent starts and restores; raised before every one. Agents and repository refuse older ones.
    pub incarnation: u32,
    /// When the first guest was started. From then on the image and the shape of the VMs are locked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    /// When the job ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<Time>,
    /// The request to the scheduler whose outcome is not known yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending_submission: Option<PendingSubmission>,
    /// Slots held or being given back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<SlotStatus>,
    /// The slot that is held or waited for, by its id, or how many run of those that are needed; for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// Since when some slots run and wait for others, with slots.allocation PerMember.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incomplete_since: Option<Time>,
    /// The members of the job; index, address and MAC never change.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberStatus>,
    /// The node that only serves the way in, with network.master Dedicated, and the agent on it. It has no
    /// virtual machine; its index is the number of members. Where people get in says network.wayIn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<MemberStatus>,
    /// The job's own network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkStatus>,
    /// The image as it was when the job was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ResolvedImage>,
    /// What the job began with, if it began with another one's generation. It is generation 0 here; its
    /// addresses stay, in a network of this job's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
    /// What the present incarnation was started from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Nodes that lack what the job's machines need: no slots are asked for on them for a day, or for half an hour
    /// where all that is known is that KVM was missing once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unfit: Vec<UnfitNode>,
    /// Snapshots taken and due.
    pub snapshots: SnapshotsStatus,
    /// Work of all members, in member-seconds.
    pub work: Work,
    /// Ends of attempts by cause.
    pub kills: Kills,
    /// Failures of the guest's own, which count towards backoffLimit.
    pub failures: u32,
    /// When something failed and is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Why and since when the job is suspended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspended: Option<Suspended>,
    /// Seconds of all earlier suspensions; they do not count towards activeDeadline.
    pub suspended_seconds: u64,
}

impl BestEffortJobStatus {
    /// All that have an agent: the members, and a master on a node of its own.
    pub fn everyone(&self) -> impl Iterator<Item = &MemberStatus> {
        self.members.iter().chain(&self.master)
    }

    /// The same, to be changed.
    pub fn everyone_mut(&mut self) -> impl Iterator<Item = &mut MemberStatus> {
        self.members.iter_mut().chain(&mut self.master)
    }

    /// What the present incarnation was started from, as long as its end is not accounted for.
    pub fn under_way(&self) -> Option<&Origin> {
        self.origin.as_ref().filter(|origin| origin.since.is_some())
    }

    /// Whether the repository may have something of it: it has run, or what it is to begin with was to be copied.
    pub fn may_have_content(&self) -> bool {
        self.incarnation > 0 || self.adopted.is_some()
    }
}

/// A request to the scheduler whose outcome is not known yet.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingSubmission {
    /// Its number.
    pub number: u32,
    /// When it was decided. The request is sent at most once.
    pub since: Time,
    /// Set when the reply was lost or an error: the name is looked up before any other request.
    #[serde(default)]
    pub doubtful: bool,
    /// Digest of what was asked for, to see whether the spec asks for something else by now.
    #[serde(default)]
    pub request: String,
    /// So many slots were asked for.
    #[serde(default = "one")]
    pub reservations: u32,
    /// Nodes that the request leaves out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

fn one() -> u32 {
    1
}

/// A request to the scheduler, besides what its digest says.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AskedFor {
    /// When it was decided.
    pub at: Time,
    /// Nodes that it leaves out; the condition Admitted says why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// A slot at the site.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotStatus {
    /// The scheduler's id.
    pub id: String,
    /// The submission it came from.
    pub submission: u32,
    /// Digest of what was asked for; empty for a slot that was found by its name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request: String,
    /// What else is known of the request; absent for a slot that was found by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<AskedFor>,
    /// Nodes it covers, in the order of the members on them; empty until it runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// The state last seen.
    pub state: SlotState,
    /// When it began to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// When its walltime ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// When the scheduler first announced that it wants the slot back. The grace counts from here for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<Time>,
    /// When its end was first seen, unless the site says that it did not reach all of its nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared: Option<Time>,
    /// What is put on its nodes, if anything is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<DeploymentStatus>,
    /// Why the operator gives it back; set before it does, so that its own deletion never looks like a person's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseIntent>,
}

impl SlotStatus {
    /// Whether it is in use or waited for: neither over nor being given back.
    pub fn is_in_use(&self) -> bool {
        self.release.is_none() && self.state != SlotState::Ended
    }

    /// Whether its nodes may still come into the cluster.
    pub fn lets_in(&self) -> bool {
        self.release.is_none() && self.state == SlotState::Running && self.notice.is_none()
    }
}

/// The state of a slot.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotState {
    /// In the scheduler's queue.
    #[default]
    Waiting,
    /// The nodes are the job's.
    Running,
    /// The scheduler is ending it.
    Ending,
    /// Over.
    Ended,
}

/// Why a slot is given back.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseIntent {
    /// The reason.
    pub reason: ReleaseReason,
    /// When it was decided.
    pub since: Time,
}

/// Why a slot is given back.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReleaseReason {
    /// The job has succeeded or failed.
    Finished,
    /// Everything needed is stored, or cannot be stored in the time left.
    Evacuated,
    /// Suspended.
    Suspended,
    /// Deleted.
    Deleted,
    /// Another slot of the same attempt was lost or never came.
    Incomplete,
    /// A second copy made by a request whose reply was lost.
    Duplicate,
    /// A node of it does not work.
    BadNode,
}

/// The job's own network.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkStatus {
    /// The subnet, from the operator's pool or that of the job whose snapshot this one began with; it stays the
    /// same for the job's whole life.
    pub subnet: String,
    /// Largest packet of the guests; it stays the same, too.
    pub mtu: u32,
    /// Number of the VXLAN: another one for each incarnation, 0 before the first.
    pub vni: u32,
    /// UDP port of the VXLAN on the nodes: that of the operator's configuration when the incarnation began,
    /// 0 before the first.
    pub port: u16,
    /// The way in to the members, while they run, whoever serves it: the agent of member 0, or that of the
    /// status's master.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way_in: Option<WayIn>,
}

/// The way in to the members from outside the cluster, of the present incarnation.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WayIn {
    /// `address:port` of its ssh server, for `ssh -J`.
    pub address: String,
    /// The server's host key as `known_hosts` has it: the same for the job's whole life.
    pub host_key: String,
}

/// One virtual machine of the job.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberStatus {
    /// 0 to members - 1; of a master on a node of its own the number of members.
    pub index: u32,
    /// Address in the job's network; empty if jobs have none here.
    pub address: String,
    /// Hardware address there, locally administered.
    pub mac: String,
    /// The node it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// How it is.
    pub phase: MemberPhase,
    /// The agent that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentStatus>,
    /// Exit code of its command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Where what its agent restored it from came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored: Option<RestoredBytes>,
}

/// Where what a member was restored from came from.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RestoredBytes {
    /// Bytes from the repository, as stored there.
    pub fetched: u64,
    /// Bytes of what an earlier agent had left on the node.
    pub local: u64,
}

/// How a member is.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberPhase {
    /// No agent has it.
    #[default]
    None,
    /// An agent is coming up, or has not seen its lease held.
    Placing,
    /// Being booted or loaded.
    Loading,
    /// Loaded and standing still until all are.
    Loaded,
    /// Running.
    Running,
    /// Its command has ended.
    Ended,
    /// Its agent does not answer; whether it runs is not known.
    Silent,
    /// Confirmed dead.
    Dead,
}

/// The agent of a member.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Name of its pod in the operator's namespace, or the one by which its launcher knows it.
    pub pod: String,
    /// `address:port` it serves on.
    pub endpoint: String,
    /// The incarnation it belongs to.
    pub incarnation: u32,
    /// Id of the slot it is on.
    pub slot: String,
    /// `address:port` of the job's way in, if this agent serves it: that of the operator's configuration when
    /// the agent was placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way_in: Option<String>,
    /// The member is taken for dead only because nobody heard of it for so long. Nothing tells that its
    /// VM has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unproven: bool,
}

/// The image as it was when the job was accepted.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedImage {
    /// Namespace the VmImage was found in.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Digest of the disk, `sha256:...`.
    pub disk: String,
    /// Size of the disk as the guest sees it, in bytes.
    pub virtual_size: u64,
    /// Digest of the kernel, if the guest is started from one outside the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Digest of the initial ram disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Kernel command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub params: Option<String>,
}

impl ResolvedImage {
    /// The digests of its files.
    pub fn files(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.disk).chain(&self.kernel).chain(&self.initrd)
    }
}

/// The generation of another job that a job began with.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Adopted {
    /// Name of its Snapshot.
    pub snapshot: String,
    /// Name of the other job.
    pub job: String,
    /// Uid of the other job.
    pub job_uid: String,
    /// Its number there.
    pub generation: u32,
    /// Since when the repository has it as generation 0 of this job; absent while it is being copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complete: Option<Time>,
    /// Member-seconds that had been computed by then. They are the other job's work.
    #[serde(skip_serializing_if = "is_zero64")]
    pub work: u64,
}

/// What an incarnation was started from.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Origin {
    /// The incarnation.
    pub incarnation: u32,
    /// The generation it was restored from; absent if it was booted from the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// When it was decided; absent once its end is accounted for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Incarnations in a row that started from this generation and made no progress.
    pub tries: u32,
    /// Nodes in a row that could not load a guest. They do not count as tries at first.
    #[serde(skip_serializing_if = "is_zero")]
    pub bad_nodes: u32,
    /// Generations that did not restore; never tried again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bad: Vec<u32>,
    /// Generations up to this one belong to a run that failed; none of them is restored.
    #[serde(skip_serializing_if = "is_zero")]
    pub floor: u32,
    /// Member-seconds computed when this incarnation's state was captured.
    #[serde(skip_serializing_if = "is_zero64")]
    pub work: u64,
    /// A member of an earlier incarnation was taken for dead only because of its silence. No guest of this
    /// one runs before that one's VM must have ended by itself, having learnt of the fence or heard nobody.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub silent: bool,
    /// When the repository was first seen to refuse that member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fenced: Option<Time>,
    /// Slots of it are being given back one by one, and why is counted among the kills.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub evicted: bool,
}

/// A node that lacks what the job's machines need.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnfitNode {
    /// The node.
    pub node: String,
    /// When it was found out.
    pub since: Time,
    /// No environment could be put on it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undeployed: bool,
    /// It has no KVM.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kvm: bool,
    /// How often it was found out within a day. KVM that was missing once is taken for a passing fault.
    #[serde(default = "once")]
    pub times: u32,
    /// Flags that its processor lacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
}

fn once() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
pub(super) fn is_zero(number: &u32) -> bool {
    *number == 0
}
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_zero64(number: &u64) -> bool {
    *number == 0
}

/// Work of all members, in member-seconds.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Work {
    /// Computed and kept: reflected in the newest complete generation or in the result.
    pub useful: u64,
    /// Computed after the last restorable generation and gone.
    pub lost: u64,
    /// Part of `useful` that a kill would have destroyed without snapshots.
    pub saved: u64,
    /// Spent paused, restoring or waiting with a slot.
    pub overhead: u64,
}

/// Ends of attempts by cause.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Kills {
    /// The scheduler wanted the nodes for somebody else.
    pub preempted: u32,
    /// Those of them that ended guests that ran, although notice was asked for: with none, or too little.
    pub abrupt: u32,
    /// The slot's time was over.
    pub walltime: u32,
    /// A node or the site's infrastructure failed.
    pub node: u32,
    /// A person deleted the slot at the site.
    pub cancelled: u32,
    /// The guest's own command failed.
    pub failed: u32,
}

/// When something failed and is tried again.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Failures in a row.
    pub count: u32,
    /// Not before this time.
    pub not_before: Time,
    /// What kind of failure.
    pub reason: super::Reason,
    /// What failed.
    pub message: String,
    /// The spec's generation that failed; another one is tried at once.
    pub generation: i64,
    /// Nothing is tried again before a person changes the spec.
    #[serde(default)]
    pub stalled: bool,
    /// The agents with which nothing can be restored, as the operator makes them: their image, and what is known of
    /// its QEMU. Others are tried at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<String>,
}

/// Why and since when a job is suspended.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Suspended {
    /// Since when.
    pub since: Time,
    /// Whether a person deleted the slot at the site, so that `spec.suspend` must be set and unset to go on.
    #[serde(default)]
    pub by_site: bool,
}
