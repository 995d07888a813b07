//! What a pass of the job controller takes and gives: facts ([`Seen`], a file of its own) and a [`Plan`].
//!
//! Data only. An [`Effect`] is one write to the outside; it can be logged, compared and replayed.
//! All effects but [`Effect::SubmitSlots`] may be repeated.

mod deployment;
mod seen;

pub use self::{
    deployment::{DeployOrder, DeploymentSeen, TokenOrder, TokenSeen},
    seen::{
        AgentSeen, BarrierSeen, BarrierState, ImageSeen, Leadership, NetworkSeen, NodeSeen, PodSeen, Reply, Seen,
        Setup, SiteSeen, SnapshotSeen, SourceSeen, SourceSnapshot, beyond,
    },
};

use std::{net::SocketAddr, time::Duration};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    api::{BestEffortJobStatus, SnapshotStatus, snapshot::SnapshotReason},
    controller::note::Note,
    driver::{agent::LeaveCode, kadeploy::WorkflowId, site::SlotRequest},
    names::{Generation, Incarnation, JobUid, MemberIndex, NodeName, SlotId},
    store::adoption::Adoption,
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
    /// Has an environment put on nodes of a slot. May be repeated under its number once the server's list, or its
    /// answer, says that it has begun nothing.
    Deploy(DeployOrder),
    /// Cancels a workflow, or has its server forget it.
    ForgetWorkflow {
        /// The slot.
        slot: SlotId,
        /// The workflow.
        id: WorkflowId,
    },
    /// Removes the Node object of a system that is not on the node any more, or is about to go.
    RemoveNode {
        /// The node.
        node: NodeName,
        /// Its uid: the object of another system is left alone.
        uid: String,
    },
    /// Lets a node join the cluster with a token.
    OfferToken(TokenOrder),
    /// Takes such a token back.
    WithdrawToken {
        /// Its id.
        id: String,
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
    /// Shows others what is stored ([`crate::api::LAST_STORED`]).
    ShowStored {
        /// Name and uid of an agent's pod; absent: on the job itself.
        pod: Option<(String, String)>,
        /// What is shown; absent: nothing any more.
        value: Option<String>,
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
            Self::Deploy(_) => "Deploy",
            Self::ForgetWorkflow { .. } => "ForgetWorkflow",
            Self::RemoveNode { .. } => "RemoveNode",
            Self::OfferToken(_) => "OfferToken",
            Self::WithdrawToken { .. } => "WithdrawToken",
            Self::FenceRepository { .. } => "FenceRepository",
            Self::Adopt(_) => "Adopt",
            Self::CreateAgent(_) => "CreateAgent",
            Self::DeleteAgent { .. } => "DeleteAgent",
            Self::Go { .. } => "Go",
            Self::Capture(_) => "Capture",
            Self::AbandonCapture(_) => "AbandonCapture",
            Self::Leave { .. } => "Leave",
            Self::CreateSnapshot { .. } => "CreateSnapshot",
            Self::ShowStored { .. } => "ShowStored",
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

/// The job's uid as a name.
pub fn uid(job: &crate::api::BestEffortJob) -> JobUid {
    JobUid(job.metadata.uid.clone().unwrap_or_default())
}
