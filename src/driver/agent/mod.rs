//! The agent on a node: what it is told at its start, what it says of itself, what it is asked.
//!
//! An agent learns everything about its VM from the configuration in its pod ([`AgentConfig`]), so
//! that it needs nobody to load the VM; the operator only says when to begin ([`NodeAgent::go`]),
//! when to take part in a capture and when to leave. Each message carries the protocol's version,
//! the epoch of the leadership and the incarnation; an agent refuses what is older than the highest
//! it has seen (safety rules A9, B2).

pub mod barrier;
#[cfg(test)]
pub(crate) mod contract;
pub mod fake;
pub mod http;
pub mod limits;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{DriverError, Retry, jump::key::HostKey, repository::ByteStream};
use crate::{
    api::{
        Reason,
        job::{OutputFile, RunSpec, VmSpec},
        job_status::ResolvedImage,
    },
    names::{Generation, Incarnation, JobUid, MemberIndex, SlotId},
    store::manifest::{MachineRecord, MemberPart, PartFile},
    stream::Connection,
};

/// Version of this protocol. A new operator speaks with agents of the version before.
pub const PROTOCOL: u32 = 1;

/// Where an agent pod finds its Secret: `config.json`, `ca.crt`, `tls.crt`, `tls.key`.
pub const CONFIG_DIR: &str = "/etc/vmdeploy/agent";
/// The directory of the node that agent pods mount at the same path (`hostPath`,
/// `DirectoryOrCreate`): leases and the cache of images.
pub const NODE_DIR: &str = "/var/lib/vmdeploy";
/// Usual root of the leases (`LeaseConfig::root`), below [`NODE_DIR`].
pub const LEASE_ROOT: &str = "/var/lib/vmdeploy/leases";
/// Cache of images, below [`NODE_DIR`].
pub const IMAGE_DIR: &str = "/var/lib/vmdeploy/images";
/// Where the VM's memory and disks lie: an `emptyDir` of the pod, on the node's disk.
pub const VM_DIR: &str = "/run/vmdeploy-vm";
/// A guest that was captured and does not run resumes after this time, unless
/// [`NodeAgent::stay_down`] has come (safety B3).
pub const STAY_DOWN_WITHIN: Duration = Duration::from_secs(30);

/// Longest time for a command of [`NodeAgent::exec`], in seconds: the API server's clients wait little
/// longer for an answer.
pub const EXEC_LIMIT: u32 = 240;

/// All an agent knows, from the Secret mounted into its pod (with `ca.crt`, `tls.crt`, `tls.key`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentConfig {
    /// [`PROTOCOL`] of the operator that wrote it.
    pub protocol: u32,
    /// Uid of the job.
    pub job: JobUid,
    /// Its name, for people.
    pub job_name: String,
    /// Its namespace, for people.
    pub namespace: String,
    /// The member this agent has.
    pub member: MemberIndex,
    /// Number of members of the job.
    pub members: u32,
    /// The incarnation it belongs to.
    pub incarnation: Incarnation,
    /// The slot it lives on.
    pub slot: SlotId,
    /// Address it serves on (the node's own address; host network).
    pub listen: SocketAddr,
    /// The lease.
    pub lease: LeaseConfig,
    /// Silence of the leading operator and of the repository after which it kills its VM (`T_iso`).
    pub isolation: Duration,
    /// After this time it refuses to start anything (safety A8).
    pub not_after: Timestamp,
    /// `host:port` of the repository.
    pub repository: String,
    /// The image.
    pub image: ResolvedImage,
    /// Shape of the VM.
    pub vm: VmSpec,
    /// The generation to restore; absent: boot from the image.
    pub restore: Option<Generation>,
    /// The command, if this member runs one.
    pub run: Option<RunSpec>,
    /// Files to keep at the end.
    pub outputs: Vec<OutputFile>,
    /// Small input files: path in the guest, content.
    pub inputs: BTreeMap<String, String>,
    /// Public ssh keys for root of the guest.
    pub ssh_keys: Vec<String>,
    /// Host name of the guest.
    pub hostname: String,
    /// The job's own network, if jobs have one.
    pub network: Option<MemberNetwork>,
    /// The way in to the members, if this agent serves it.
    #[serde(default)]
    pub master: Option<MasterConfig>,
    /// What it is there for.
    #[serde(default)]
    pub role: Role,
    /// Limit of the barrier: a stopped guest that hears nothing this long runs on.
    pub max_pause: Duration,
    /// How QEMU runs the guest.
    pub accelerator: Accelerator,
    /// What the guest may reach by its first network card.
    pub guest_network: GuestNetwork,
    /// A guest whose agent does not answer for this long while it runs is told of; it is not ended.
    #[serde(default = "guest_silence")]
    pub guest_silence: Duration,
    /// Most bytes of images that the node keeps beyond those in use.
    #[serde(default = "image_cache")]
    pub image_cache: u64,
}

/// A guest boots, and its agent with it, within this time.
pub fn guest_silence() -> Duration {
    Duration::from_secs(600)
}

/// What agents of an older operator keep.
fn image_cache() -> u64 {
    50 << 30
}

/// VXLANs have numbers below this.
pub const VNI_LIMIT: u32 = 1 << 24;

/// A member's place in the job's own network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberNetwork {
    /// The job's subnet.
    pub subnet: ipnet::Ipv4Net,
    /// Number of the incarnation's VXLAN, below [`VNI_LIMIT`].
    pub vni: u32,
    /// Its UDP port on the nodes.
    pub port: u16,
    /// Largest packet of the guests.
    pub mtu: u16,
    /// Address of the agent there, by which it reaches guests.
    pub door: std::net::Ipv4Addr,
    /// Its hardware address.
    pub door_mac: String,
    /// All members, in the order of their indexes.
    pub members: Vec<NetworkMember>,
    /// A master on a node of its own.
    #[serde(default)]
    pub master: Option<MasterPlace>,
}

/// What an agent is there for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A virtual machine.
    #[default]
    Member,
    /// Only the way in. It says that it is loaded once it is in the job's network, and that it runs once it
    /// was told to; it takes part in no capture.
    Master,
}

/// A master on a node of its own, as all in the job's network know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MasterPlace {
    /// Hardware address in the job's network.
    pub mac: String,
    /// Address of its node.
    pub node: std::net::IpAddr,
}

/// The way in to a job's members: an ssh server for the keys of the guests' root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MasterConfig {
    /// Where it is served: the node's own address.
    pub listen: SocketAddr,
    /// Its host key.
    pub host_key: HostKey,
}

/// What everybody in a job's network knows of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkMember {
    /// Host name.
    pub name: String,
    /// Address in the job's network.
    pub address: std::net::Ipv4Addr,
    /// Hardware address there.
    pub mac: String,
    /// Hardware address of its agent there.
    #[serde(default)]
    pub door_mac: Option<String>,
    /// Address of its node.
    pub node: std::net::IpAddr,
}

/// Where and how the lease is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseConfig {
    /// Root of the leases on the node, as both sides see it.
    pub root: String,
    /// Directory of this slot below it, see `names::lease_directory`.
    pub directory: String,
    /// Numeric owner of the directory: the site's user, who runs the hold.
    pub owner: u32,
    /// The agent ends if the lease is not held by then.
    pub arm_within: Duration,
    /// A beat older than this is a lost lease.
    pub beat_limit: Duration,
}

/// How QEMU runs the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Accelerator {
    /// KVM if a guest really runs under it, else TCG.
    #[default]
    Probe,
    /// Software emulation.
    Tcg,
    /// The processor's virtualisation.
    Kvm,
}

/// What the guest may reach by its first network card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestNetwork {
    /// Nothing.
    #[default]
    Isolated,
    /// Whatever the node can reach.
    Open,
}

/// Everything an agent says of itself: one line of its event stream, sent at each change and as a
/// heartbeat every second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentState {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Uid of its job.
    pub job: JobUid,
    /// Its member.
    pub member: MemberIndex,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Its lease.
    pub lease: LeaseState,
    /// The VM.
    pub vm: VmState,
    /// The guest and its command.
    pub guest: GuestState,
    /// The hold said that the slot is wanted back, this long ago.
    pub notice: Option<Duration>,
    /// Its part of the newest capture.
    pub capture: Option<CapturePart>,
    /// Its parts of earlier captures that are still on its disk.
    #[serde(default)]
    pub earlier: Vec<CapturePart>,
    /// The newest upload.
    pub upload: Option<UploadState>,
    /// Seconds in which the guest has run in this incarnation, less pauses.
    pub ran: f64,
    /// How the VM is made; known once it is loaded.
    pub machine: Option<MachineRecord>,
    /// The end of the agent, once it is on its way out.
    pub leaving: Option<LeaveCode>,
}

/// The lease as its agent sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseState {
    /// Not seen held yet: nothing may run.
    Waiting,
    /// Held by the slot's hold.
    Held,
    /// Lost: everything is being killed.
    Lost,
}

/// The VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum VmState {
    /// Not made yet.
    None,
    /// Image or generation are being fetched, then the generation's memory is loaded, which counts anew.
    Fetching {
        /// Bytes here, or loaded.
        done: u64,
        /// Bytes wanted.
        total: u64,
    },
    /// Made or loaded, and standing still until `go`.
    Loaded,
    /// Running.
    Running,
    /// Stopped by a capture.
    Stopped,
    /// Gone; why.
    Gone {
        /// Why.
        reason: String,
        /// Whose fault it is that it could not be made or restored.
        #[serde(default)]
        fault: LoadFault,
    },
}

/// Whose fault it is that a VM could not be made or restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadFault {
    /// Nobody's, or nobody knows: the same may help next time.
    #[default]
    Unknown,
    /// The node's: another one may do it.
    Node,
    /// The generation's: what the repository has of this member is missing or damaged.
    Part,
}

/// The guest and its command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GuestState {
    /// Its guest agent has answered in this incarnation.
    pub answers: bool,
    /// It was asked in vain for [`AgentConfig::guest_silence`], in which the guest ran.
    pub silent: bool,
    /// The command was started (in any incarnation).
    pub started: bool,
    /// Exit code of the command.
    pub exit_code: Option<i32>,
    /// The outputs are in the repository.
    pub outputs_kept: bool,
    /// What could not be put right after a restore, or be started.
    pub problem: Option<String>,
    /// The last line of the command's output, bounded.
    pub last_line: Option<String>,
}

/// A member's part of a capture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CapturePart {
    /// The generation.
    pub generation: Generation,
    /// The barrier's nonce; a part of another nonce is not of the same cut.
    pub nonce: String,
    /// How far it is.
    pub state: PartState,
    /// When the guest stopped.
    pub stopped_at: Option<Timestamp>,
    /// How long it stood still, in milliseconds.
    pub pause_ms: Option<u64>,
    /// Bytes of memory, disk and output on local disk.
    pub bytes: u64,
    /// What the manifest says of this member, once captured; its files are empty here, see
    /// [`UploadState::files`].
    #[serde(default)]
    pub record: Option<MemberPart>,
}

/// How far a part is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum PartState {
    /// Overlay and files are ready, space is reserved.
    Prepared,
    /// The guest stands still.
    Stopped,
    /// Overlay switched; memory is being written.
    Writing,
    /// All bytes are on local disk.
    Captured,
    /// Void; the guest runs on.
    Abandoned {
        /// Why.
        reason: String,
    },
}

/// An upload of a captured generation to the repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UploadState {
    /// The generation.
    pub generation: Generation,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes to send.
    pub total: u64,
    /// The files, with the digests the repository has confirmed, once all are there.
    pub files: Vec<PartFile>,
    /// All are there.
    pub done: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// Why it stands still; it is tried again until it succeeds, is refused, or a later generation is to
    /// be sent.
    pub waiting: Option<String>,
}

/// What every order carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authority {
    /// Rises with every change of the operator's leadership.
    pub epoch: u64,
    /// The incarnation meant.
    pub incarnation: Incarnation,
}

/// One step of a capture. The same order may come several times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaptureOrder {
    /// Who asks.
    pub authority: Authority,
    /// The generation; never used twice.
    pub generation: Generation,
    /// The barrier's nonce; refused once the guest has resumed from it.
    pub nonce: String,
    /// Whether the guest runs on after the cut. If not, it does so all the same unless
    /// [`NodeAgent::stay_down`] follows in time (safety B3).
    pub resume: bool,
}

/// Orders the upload of a captured generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UploadOrder {
    /// Of the kget that orders it; 0 from one that knew of none.
    #[serde(default)]
    pub epoch: u64,
    /// The generation.
    pub generation: Generation,
    /// The incarnation it was captured in.
    pub incarnation: Incarnation,
    /// Permission to write, for the repository.
    pub ticket: String,
}

/// How an agent leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaveCode {
    /// The job is done: the hold ends with the code for it.
    Done,
    /// What is needed is safe: the hold ends with the code for it.
    Saved,
    /// Only this incarnation ends; the slot is kept for the next one.
    KeepSlot,
}

/// Why an agent did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum AgentError {
    /// No answer.
    #[error("failed to reach the agent: {0}")]
    Unreachable(String),
    /// It refuses: older authority, wrong incarnation, wrong nonce, resumed already.
    #[error("the agent refused: {0}")]
    Refused(String),
    /// Whoever orders no longer leads: the agent has obeyed a later one.
    #[error("the agent obeys another: {0}")]
    Superseded(String),
    /// It tried and failed.
    #[error("the agent failed: {0}")]
    Failed(String),
}

impl DriverError for AgentError {
    fn reason(&self) -> Reason {
        Reason::AgentFailed
    }
    fn retry(&self) -> Retry {
        match self {
            Self::Unreachable(_) => Retry::After(Duration::from_secs(1)),
            Self::Refused(_) | Self::Superseded(_) => Retry::Denied,
            Self::Failed(_) => Retry::After(Duration::from_secs(5)),
        }
    }
}

/// A command for a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExecOrder {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// It is killed after so many seconds.
    pub timeout: u32,
}

/// What a command in a guest came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecReply {
    /// Its exit code.
    pub code: i32,
    /// The beginning of its standard output, base64.
    pub stdout: String,
    /// The beginning of its standard error, base64.
    pub stderr: String,
    /// Whether it printed more than that.
    pub cut: bool,
}

/// Where an agent is and who it must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AgentAddress {
    /// Address it serves on.
    pub endpoint: SocketAddr,
    /// Its job.
    pub job: JobUid,
    /// Its member.
    pub member: MemberIndex,
    /// Its incarnation.
    pub incarnation: Incarnation,
}

/// One agent. All methods may be called several times.
#[async_trait]
pub trait NodeAgent: Send + Sync {
    /// What it says of itself, once.
    async fn state(&self) -> Result<AgentState, AgentError>;

    /// What it says of itself, at each change and every second, until the connection ends.
    async fn watch(&self) -> Result<BoxStream<'static, AgentState>, AgentError>;

    /// Lets the loaded guest run. Accepted once; repeated orders of the same incarnation succeed.
    async fn go(&self, authority: Authority) -> Result<(), AgentError>;

    /// Capture, step 1: prepares overlay and files and reserves their space.
    async fn prepare(&self, order: &CaptureOrder) -> Result<(), AgentError>;

    /// Capture, step 2: stops the guest; returns when it stands still.
    async fn stop(&self, order: &CaptureOrder) -> Result<(), AgentError>;

    /// Capture, step 3, only after all have stopped: switches the overlay, starts writing, and lets
    /// the guest run if the order says so; returns when that is done.
    async fn cut(&self, order: &CaptureOrder) -> Result<(), AgentError>;

    /// Gives a capture up: the guest runs on, its part is void.
    async fn abandon(&self, order: &CaptureOrder) -> Result<(), AgentError>;

    /// Everybody is captured: the guest stays down for at most this long.
    async fn stay_down(&self, order: &CaptureOrder, limit: Duration) -> Result<(), AgentError>;

    /// Sends a captured generation to the repository; progress is in the state.
    async fn upload(&self, order: &UploadOrder) -> Result<(), AgentError>;

    /// What the command has printed so far, from a byte on. An agent that has nothing to show refuses.
    async fn output(&self, _from: u64) -> Result<ByteStream, AgentError> {
        Err(AgentError::Refused("it has no output to show".into()))
    }

    /// Connects to a TCP port of the member's guest, and to nothing else. What comes is the guest's end of
    /// a WebSocket after its handshake, see [`crate::stream`].
    async fn connect(&self, _port: u16) -> Result<Connection, AgentError> {
        Err(AgentError::Refused("its guest is not reached this way".into()))
    }

    /// The guest's serial console; what comes is as of [`Self::connect`].
    async fn console(&self) -> Result<Connection, AgentError> {
        Err(AgentError::Refused("it shows no console".into()))
    }

    /// Runs a command in the guest and waits for its end. Not to be repeated without thought.
    async fn exec(&self, _order: &ExecOrder) -> Result<ExecReply, AgentError> {
        Err(AgentError::Refused("its guest runs no commands".into()))
    }

    /// Kills the VM, removes its files, gives the slot up as `code` says, and ends the agent.
    async fn leave(&self, authority: Authority, code: LeaveCode) -> Result<(), AgentError>;
}

/// Makes the clients of agents.
pub trait Agents: Send + Sync {
    /// The agent at this address, which must have this identity.
    fn agent(&self, address: &AgentAddress) -> std::sync::Arc<dyn NodeAgent>;
}
