//! What a pass of the job controller takes and gives: facts ([`Seen`]) and a [`Plan`].
//!
//! Data only. An [`Effect`] is one write to the outside; it can be logged, compared and replayed.
//! All effects but [`Effect::SubmitSlots`] may be repeated.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;

use super::tally::Tally;
use crate::{
    api::{
        BestEffortJobStatus, Reason, SnapshotStatus,
        job_status::{ResolvedImage, UnfitNode},
        snapshot::{SnapshotPhase, SnapshotReason},
    },
    config::NodeProperties,
    driver::{
        Fact,
        agent::{Accelerator, AgentState, LeaveCode},
        repository::JobContent,
        site::{Capabilities, SiteError, SlotFacts, SlotRequest},
    },
    names::{Generation, Incarnation, JobUid, MemberIndex, NodeName, SlotId},
    store::{adoption::Adoption, machine::Offer, manifest::Manifest, quota::Room},
};

/// What one pass does: the status once, then the effects in order, then the notes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The status to write, unless it equals the present one.
    pub status: BestEffortJobStatus,
    /// What is done outside, in order; a failure ends the pass.
    pub effects: Vec<Effect>,
    /// Events for people, recorded once everything else has succeeded.
    pub notes: Vec<Note>,
    /// When to look again if nothing happens before; absent: only when something does.
    pub wake: Option<Duration>,
    /// The arm that decided.
    pub why: &'static str,
}

/// An event for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Whether a person should look at it.
    pub warning: bool,
    /// The reason.
    pub reason: Reason,
    /// What happened, in a sentence.
    pub message: String,
}

/// A write to the outside.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Effect {
    /// Holds the object while anything of the job exists elsewhere.
    AddFinalizer,
    /// Lets the object go.
    RemoveFinalizer,
    /// Deletes the object: its time after the end is over.
    DeleteJob,
    /// Asks the site for slots. Sent once for each submission: only by the pass that wrote its number.
    SubmitSlots {
        /// The submission.
        submission: u32,
        /// The request.
        request: SlotRequest,
    },
    /// Gives a slot back; its status says why. Repeated until the slot is over.
    ReleaseSlot {
        /// The slot.
        id: SlotId,
    },
    /// From now on the repository takes only what this incarnation or a later one publishes.
    FenceRepository {
        /// The incarnation.
        incarnation: Incarnation,
    },
    /// Has the repository make another job's generation this one's generation 0.
    Adopt(Adoption),
    /// Makes the agent of a member.
    CreateAgent(AgentPlacement),
    /// Removes the pod of an agent that is confirmed dead, or was never to live.
    DeleteAgent {
        /// Its pod.
        pod: String,
    },
    /// Lets loaded guests run: only when all are loaded.
    Go {
        /// The agents.
        agents: Vec<AgentRef>,
    },
    /// Starts the capture of a generation, unless it is under way.
    Capture(CaptureJob),
    /// Makes a capture void at all its agents.
    AbandonCapture(CaptureJob),
    /// Ends agents.
    Leave {
        /// The agents.
        agents: Vec<AgentRef>,
        /// How.
        code: LeaveCode,
    },
    /// Makes the Snapshot object of a generation.
    CreateSnapshot {
        /// Its name.
        name: String,
        /// Why the generation was taken.
        reason: SnapshotReason,
    },
    /// Writes what the operator owns of a Snapshot's status.
    WriteSnapshot {
        /// Its name.
        name: String,
        /// Its uid: a later object of the same name is left alone.
        uid: String,
        /// The status; `transfer` is left alone.
        status: Box<SnapshotStatus>,
    },
    /// Deletes a Snapshot object; its own finalizer then removes the generation.
    DeleteSnapshot {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// Removes everything the repository has of the job.
    RemoveContent,
}

impl Effect {
    /// Whether it may be done although the status could not be written. A capture under the number
    /// that was reserved beforehand may: a notice does not wait for the API server (safety B17).
    pub fn needs_status(&self) -> bool {
        !matches!(self, Self::Capture(_) | Self::Go { .. } | Self::AbandonCapture(_))
    }

    /// Its kind, for logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AddFinalizer => "AddFinalizer",
            Self::RemoveFinalizer => "RemoveFinalizer",
            Self::DeleteJob => "DeleteJob",
            Self::SubmitSlots { .. } => "SubmitSlots",
            Self::ReleaseSlot { .. } => "ReleaseSlot",
            Self::FenceRepository { .. } => "FenceRepository",
            Self::Adopt(_) => "Adopt",
            Self::CreateAgent(_) => "CreateAgent",
            Self::DeleteAgent { .. } => "DeleteAgent",
            Self::Go { .. } => "Go",
            Self::Capture(_) => "Capture",
            Self::AbandonCapture(_) => "AbandonCapture",
            Self::Leave { .. } => "Leave",
            Self::CreateSnapshot { .. } => "CreateSnapshot",
            Self::WriteSnapshot { .. } => "WriteSnapshot",
            Self::DeleteSnapshot { .. } => "DeleteSnapshot",
            Self::RemoveContent => "RemoveContent",
        }
    }
}

/// Where an agent goes and what it starts from. Everything else it is told follows from the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AgentPlacement {
    /// The member.
    pub member: MemberIndex,
    /// The incarnation.
    pub incarnation: Incarnation,
    /// The slot.
    pub slot: SlotId,
    /// The node.
    pub node: NodeName,
    /// Name of the pod, and of the Secret with its configuration.
    pub pod: String,
    /// Where it serves: the node's own address.
    pub endpoint: SocketAddr,
    /// Where it serves the job's way in, if it does.
    pub way_in: Option<SocketAddr>,
    /// The generation to restore; absent: boot from the image.
    pub restore: Option<Generation>,
    /// After this time it starts nothing (safety A8).
    pub not_after: Timestamp,
}

/// An agent that exists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct AgentRef {
    /// Its pod.
    pub pod: String,
    /// Its member.
    pub member: MemberIndex,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Where it serves.
    pub endpoint: SocketAddr,
}

/// A capture of all members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaptureJob {
    /// The generation; never used twice.
    pub generation: Generation,
    /// The incarnation.
    pub incarnation: Incarnation,
    /// Marks the parts of one cut.
    pub nonce: String,
    /// Why it is taken.
    pub reason: SnapshotReason,
    /// Whether the guests run on.
    pub resume: bool,
    /// Longest time a guest may stand still before it runs on by itself.
    pub max_pause: Duration,
    /// If the guests do not run on: how long they stay down once all are captured (safety B3).
    pub stay_down: Duration,
    /// All have their bytes on local disk within this time, or it is void.
    pub within: Duration,
    /// The members' agents.
    pub agents: Vec<AgentRef>,
}

/// Everything a decision is made from, besides the object and the time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seen {
    /// The present leadership.
    pub leader: Leadership,
    /// What the administrator decided.
    pub setup: Setup,
    /// The job's site; absent: no such site is configured.
    pub site: Option<SiteSeen>,
    /// Whether the account at the site was found; the text says what is wrong with it.
    pub account: Fact<Result<(), String>>,
    /// The image, if one is named or there is a default.
    pub image: Fact<ImageSeen>,
    /// What the job is to start from, if its spec names a snapshot; absent where nobody needs to know.
    pub source: Option<SourceSeen>,
    /// What there is for the job's network.
    pub network: NetworkSeen,
    /// ConfigMaps and Secrets named by inputs that do not exist.
    pub missing_inputs: Fact<Vec<String>>,
    /// All slots in the status, and every unfinished one whose name is of this job.
    pub slots: Fact<Vec<SlotFacts>>,
    /// When the site was last searched for slots by the job's name.
    pub looked_up: Option<Timestamp>,
    /// Since when every read of the site was answered.
    pub reads_good_since: Option<Timestamp>,
    /// What the last round of reads of the site failed with, if it failed.
    #[serde(serialize_with = "site_error")]
    pub site_error: Option<SiteError>,
    /// What the site said when this process gave slots back: nothing if it obeyed, or why it refused.
    pub releases: BTreeMap<String, Option<String>>,
    /// What the site answered to a request for slots that this process sent.
    pub reply: Option<Reply>,
    /// The agent pods of the job, by name.
    pub pods: BTreeMap<String, PodSeen>,
    /// What the agents in the status say, by pod.
    pub agents: BTreeMap<String, AgentSeen>,
    /// Addresses of the nodes of the job's slots that Kubernetes knows.
    pub nodes: BTreeMap<NodeName, std::net::IpAddr>,
    /// The capture this process conducts or has conducted last.
    pub barrier: Option<BarrierSeen>,
    /// What the repository has; `Unknown` also where nobody needs to know.
    pub content: Fact<JobContent>,
    /// A file of a started job's image that the repository no longer has; asked only where slots may be
    /// asked for, and `Unknown` elsewhere.
    pub missing_image: Fact<String>,
    /// When the repository was last asked in vain by this process, if ever.
    pub repository_silent: Option<Timestamp>,
    /// The Snapshot objects of the job.
    pub snapshots: Vec<SnapshotSeen>,
    /// There are Snapshot objects in its namespace that cannot be read: one may be the job's.
    pub unread_snapshots: bool,
    /// What its namespace may have in the repository; absent: as much as there is room. `Unknown` also where
    /// nobody needs to know.
    pub room: Fact<Room>,
    /// Nodes of which other jobs found out that they lack something; asked for only where slots may be asked for.
    pub unfit: Vec<UnfitNode>,
    /// How often other jobs were killed where this one runs.
    pub others: Tally,
    /// When this process last did what is repeated until it works, by [`Effect`] and object.
    pub sent: BTreeMap<String, Timestamp>,
}

/// The present leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Leadership {
    /// Rises with every change.
    pub epoch: u64,
    /// Since when.
    pub since: Timestamp,
}

/// What the administrator decided, as far as decisions depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setup {
    /// First port of agents.
    pub port_first: u16,
    /// Number of ports.
    pub port_count: u16,
    /// Names of all sites.
    pub sites: BTreeSet<String>,
    /// How QEMU runs guests.
    pub accelerator: Accelerator,
    /// What the agents that are made now offer, as far as that does not depend on their nodes.
    pub offer: Offer,
}

/// The job's site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SiteSeen {
    /// What it can do.
    pub capabilities: Capabilities,
    /// Silence after which a VM has killed itself (T_iso).
    pub isolation: Duration,
    /// How long the hold waits for its agents.
    pub agent_wait: Duration,
    /// Most memory a guest may have.
    pub max_memory: Option<u64>,
    /// By which properties it tells nodes apart.
    pub properties: NodeProperties,
}

/// What there is for the job's network. Offered only where a decision may need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkSeen {
    /// Where subnets come from; absent: jobs get no networks.
    pub pool: Option<ipnet::Ipv4Net>,
    /// A free subnet that fits the job.
    pub subnet: Option<ipnet::Ipv4Net>,
    /// Largest packet of guests, as configured now.
    pub mtu: u16,
    /// UDP port of the VXLANs of new incarnations.
    pub port: u16,
    /// A number for the VXLAN of the next incarnation.
    pub vni: Option<u32>,
    /// A node whose address is in the pool.
    pub overlap: Option<NodeName>,
    /// The host key of the job's way in, its public half, if the job asks for one.
    pub host_key: Option<String>,
}

/// The image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum ImageSeen {
    /// In the repository.
    Ready(ResolvedImage),
    /// Being imported; the text says how far.
    Importing(String),
    /// It cannot be imported until a person acts.
    Broken(Reason, String),
}

/// What a job is to start from instead of its image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceSeen {
    /// Name of the snapshot.
    pub name: String,
    /// The snapshot; absent: there is none of this name.
    pub snapshot: Option<SourceSnapshot>,
    /// The manifest of its generation, or of the job's own generation 0 once that is in the status. `Unknown` also
    /// where the snapshot is not complete.
    pub manifest: Fact<Box<Manifest>>,
    /// Why the repository did not copy it when this process asked for that last.
    pub refused: Option<(Reason, String)>,
}

/// The snapshot that a job is to start from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceSnapshot {
    /// Name of its job.
    pub job: String,
    /// Uid of its job.
    pub job_uid: String,
    /// Its generation.
    pub generation: Generation,
    /// Where it has got to.
    pub phase: SnapshotPhase,
    /// It is being deleted.
    pub deleting: bool,
}

/// The answer to a request for slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reply {
    /// The submission it answers.
    pub submission: u32,
    /// The answer.
    #[serde(serialize_with = "reply")]
    pub outcome: Result<SlotId, SiteError>,
}

fn reply<S: serde::Serializer>(outcome: &Result<SlotId, SiteError>, serializer: S) -> Result<S::Ok, S::Error> {
    match outcome {
        Ok(id) => serializer.collect_str(id),
        Err(error) => serializer.collect_str(error),
    }
}

#[expect(clippy::ref_option, reason = "what serde calls it with")]
fn site_error<S: serde::Serializer>(error: &Option<SiteError>, serializer: S) -> Result<S::Ok, S::Error> {
    error.as_ref().map(ToString::to_string).serialize(serializer)
}

/// An agent's pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PodSeen {
    /// The node it is on.
    pub node: String,
    /// The incarnation it belongs to.
    pub incarnation: Incarnation,
    /// Its container has ended, as its kubelet says; the text says how. Proof that its VM is dead.
    pub ended: Option<String>,
    /// Why it does not start.
    pub waiting: Option<String>,
    /// It is being deleted.
    pub deleting: bool,
}

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AgentSeen {
    /// Its last words.
    pub state: Option<AgentState>,
    /// When this leader heard them.
    pub heard: Option<Timestamp>,
    /// When this leader last heard its VM get on: to another state, or by some bytes that it fetched.
    pub moved: Option<Timestamp>,
    /// Since when this leader listens to it (safety B13).
    pub listening: Timestamp,
}

/// A capture this process conducts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BarrierSeen {
    /// What is captured.
    pub job: CaptureJob,
    /// When it was begun.
    pub since: Timestamp,
    /// How far it is.
    pub state: BarrierState,
}

/// How far a capture is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum BarrierState {
    /// Agents are preparing, stopping or being cut.
    Conducting,
    /// All were stopped together and cut; they are writing.
    Cut,
    /// Void.
    Failed(String),
}

/// A Snapshot object.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SnapshotSeen {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Why it was made.
    pub reason: SnapshotReason,
    /// Kept until it is deleted.
    pub retain: bool,
    /// It is being deleted.
    pub deleting: bool,
    /// Its status.
    pub status: SnapshotStatus,
}

impl SnapshotSeen {
    /// Whether something in the repository is to be kept for it, also after its job. One that was never taken has
    /// nothing there.
    pub fn keeps_content(&self) -> bool {
        self.retain && self.status.generation.is_some()
    }

    /// Whether nobody but us keeps it.
    pub fn is_ours(&self) -> bool {
        self.reason != SnapshotReason::User && !self.retain
    }
}

/// The stored generations of a job beyond the number to keep, without those that a person keeps: newest first. Only
/// those that are whole count.
pub fn beyond<'a>(
    job: &crate::api::BestEffortJob,
    snapshots: &'a [SnapshotSeen],
    is_whole: impl Fn(Generation) -> bool,
) -> Vec<&'a SnapshotSeen> {
    let keep = usize::try_from(job.spec.snapshots.keep).unwrap_or(usize::MAX).max(2);
    let stored = snapshots.iter().filter(|one| one.status.phase == SnapshotPhase::Stored && !one.deleting);
    let mut stored: Vec<(Generation, &SnapshotSeen)> =
        stored.filter_map(|one| Some((one.status.generation?, one))).collect();
    stored.sort_by_key(|(generation, _)| std::cmp::Reverse(*generation));
    let mut newer = 0;
    let mut old = Vec::new();
    for (generation, one) in stored {
        if newer >= keep && one.is_ours() {
            old.push(one);
        }
        newer += usize::from(is_whole(generation));
    }
    old
}

/// The job's uid as a name.
pub fn uid(job: &crate::api::BestEffortJob) -> JobUid {
    JobUid(job.metadata.uid.clone().unwrap_or_default())
}
