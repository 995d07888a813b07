//! The agent on a node: what it is told at its start, what it says of itself, what it is asked.
//!
//! An agent learns everything about its VM from the configuration in its pod ([`AgentConfig`]), so
//! that it needs nobody to load the VM; the operator only says when to begin ([`NodeAgent::go`]),
//! when to take part in a capture and when to leave. Each message carries the protocol's version,
//! the epoch of the leadership and the incarnation; an agent refuses what is older than the highest
//! it has seen (safety rules A9, B2).

pub mod barrier;
mod config;
#[cfg(test)]
pub(crate) mod contract;
mod derived;
pub mod fake;
mod host_key;
pub mod http;
pub mod limits;
mod orders;
pub mod peer;
mod state;

use std::{net::SocketAddr, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;

pub use self::{
    config::{
        Accelerator, AgentConfig, CONFIG_DIR, ChainPeer, GuestNetwork, IMAGE_DIR, KeptConfig, LEASE_ROOT, LeaseConfig,
        MasterConfig, MasterPlace, MemberNetwork, NODE_DIR, NetworkMember, Role, SHARED_DIR, SharedImages, VM_DIR,
        VNI_LIMIT, guest_silence,
    },
    derived::KeptKey,
    host_key::HostKey,
    orders::{
        Authority, CaptureOrder, CollectOrder, Collector, EXEC_LIMIT, ExecOrder, ExecReply, LeaveCode,
        STAY_DOWN_WITHIN, UploadOrder,
    },
    state::{AgentState, CapturePart, GuestState, HeldPart, LeaseState, LoadFault, PartState, UploadState, VmState},
};
use super::{DriverError, Retry, repository::ByteStream};
use crate::{
    api::Reason,
    names::{Incarnation, JobUid, MemberIndex},
    stream::Connection,
};

/// Version of this protocol. A new operator speaks with agents of the version before.
pub const PROTOCOL: u32 = 1;

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

/// What people see and do of a guest, through its agent. One that has nothing of it refuses.
#[async_trait]
pub trait GuestAccess: Send + Sync {
    /// What the command has printed so far, from a byte on.
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
}

/// One agent: what it says, and the orders it obeys. All methods may be called several times.
#[async_trait]
pub trait NodeAgent: GuestAccess {
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

    /// Takes another member's part from its agent, and brings it to the repository; progress is in the state. Refused
    /// by one that has no room for it.
    async fn collect(&self, order: &CollectOrder) -> Result<(), AgentError>;

    /// Kills the VM, removes its files, gives the slot up as `code` says, and ends the agent.
    async fn leave(&self, authority: Authority, code: LeaveCode) -> Result<(), AgentError>;
}

/// Makes the clients of agents.
pub trait Agents: Send + Sync {
    /// The agent at this address, which must have this identity.
    fn agent(&self, address: &AgentAddress) -> std::sync::Arc<dyn NodeAgent>;
}
