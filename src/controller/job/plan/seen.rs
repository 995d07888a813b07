//! The facts a decision about a job is made from. Data only: what was read, and when it is not known.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;

use super::{CaptureJob, DeploymentSeen, TokenSeen};
use crate::{
    api::{
        Reason, SnapshotStatus,
        job_status::{ResolvedImage, SystemIdentity, UnfitNode},
        snapshot::{SnapshotPhase, SnapshotReason},
    },
    config::NodeProperties,
    controller::job::tally::Tally,
    driver::{
        Fact,
        agent::{Accelerator, AgentState},
        repository::JobContent,
        site::{Capabilities, SiteError, SlotFacts},
    },
    names::{Generation, Incarnation, NodeName, SlotId},
    store::{machine::Offer, manifest::Manifest, quota::Room},
};

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
    /// The agent pods of the job, by name, and the agents that launchers have started.
    pub pods: BTreeMap<String, PodSeen>,
    /// What the agents in the status say, by pod.
    pub agents: BTreeMap<String, AgentSeen>,
    /// The nodes of the job's slots that Kubernetes knows, or on which a launcher has answered.
    pub nodes: BTreeMap<NodeName, NodeSeen>,
    /// Why nothing is known of a node on which a launcher is to be.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub silent_launchers: BTreeMap<NodeName, String>,
    /// Whether the account has a launch key, or what to change; `Absent` where none is needed.
    #[serde(skip_serializing_if = "is_absent")]
    pub launch_key: Fact<Result<(), String>>,
    /// What is known of what is put on the nodes of its slots, by slot; only where a workflow is under way.
    pub deployments: BTreeMap<String, DeploymentSeen>,
    /// The tokens by which nodes that are deployed may join the cluster, by slot and node.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tokens: BTreeMap<String, BTreeMap<NodeName, TokenSeen>>,
    /// Whether the site's deployment server has the environment that the spec names, or what to change; asked only
    /// before slots are, and `Absent` where none is named.
    pub environment: Fact<Result<(), (Reason, String)>>,
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
    /// Another job of the same account that has some of its slots and waits for the rest (safety C1); looked for only
    /// before the first slot is asked for.
    pub partly_started: Option<String>,
    /// How often other jobs were killed where this one runs.
    pub others: Tally,
    /// When this process last did what is repeated until it works, by [`super::Effect`] and object.
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
    /// There is a claim of shared images.
    pub shared_images: bool,
    /// The agents that are made now, in a word that changes with their image.
    pub agents: String,
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
    /// How long deployments of its nodes may take; absent where they are not deployed.
    pub deployment_wait: Option<Duration>,
    /// Whether agents can be started in its slots.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub launches: bool,
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
    /// Why its manifest cannot be used, although the repository has one or does not say that it has none.
    pub trouble: Option<(Reason, String)>,
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
    pub outcome: Result<Vec<SlotId>, SiteError>,
}

fn is_absent<T>(fact: &Fact<T>) -> bool {
    matches!(fact, Fact::Absent)
}

fn reply<S: serde::Serializer>(outcome: &Result<Vec<SlotId>, SiteError>, serializer: S) -> Result<S::Ok, S::Error> {
    match outcome {
        Ok(ids) => ids.serialize(serializer),
        Err(error) => serializer.collect_str(error),
    }
}

#[expect(clippy::ref_option, reason = "what serde calls it with")]
fn site_error<S: serde::Serializer>(error: &Option<SiteError>, serializer: S) -> Result<S::Ok, S::Error> {
    error.as_ref().map(ToString::to_string).serialize(serializer)
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeSeen {
    /// The address by which others reach it.
    pub address: std::net::IpAddr,
    /// The system on it.
    pub system: SystemIdentity,
    /// Another slot's deployment has put that system there.
    pub of_another_slot: bool,
    /// Its kubelet is at work.
    pub ready: bool,
    /// The cluster's own control plane is on it.
    pub control_plane: bool,
}

impl NodeSeen {
    /// A node of which only its address is known.
    pub fn at(address: std::net::IpAddr) -> Self {
        let system = SystemIdentity { uid: String::new(), boot: String::new() };
        Self { address, system, of_another_slot: false, ready: false, control_plane: false }
    }
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
    /// Its uid.
    pub uid: String,
    /// What it shows others of the job's snapshots.
    pub shows: Option<String>,
    /// It is no pod: a launcher has started it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub launched: bool,
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
