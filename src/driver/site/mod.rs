//! A site: where slots come from.

#[cfg(test)]
pub(crate) mod contract;
pub mod directory;
pub mod fake;
pub mod poller;

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{DriverError, Retry};
use crate::{
    api::Reason,
    names::{NodeName, SlotId},
};

/// What a site can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Announces a preemption before it kills.
    pub notice: bool,
    /// Can give back one slot of several.
    pub per_member: bool,
}

/// A request for slots. The name is the idempotency key: a site never dedups by itself, so it is
/// looked up before every request that follows a doubt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotRequest {
    /// Deterministic name, see `names::slot_name`.
    pub name: String,
    /// Nodes wanted in each reservation.
    pub nodes: u32,
    /// So many reservations alike, which start, are taken and are given back one by one.
    #[serde(skip_serializing_if = "is_one")]
    pub reservations: u32,
    /// How long the first of several may have to wait for the last; zero for one.
    #[serde(skip_serializing_if = "Duration::is_zero")]
    pub acquire: Duration,
    /// Whether its nodes are to be deployed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub deploy: bool,
    /// Whether the hold is to put images to its nodes, where the site's holds do that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub puts_images: bool,
    /// Whether agents are started in the slot itself, by launchers.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub launch: bool,
    /// Length of the slot.
    pub walltime: Duration,
    /// Seconds of notice wanted; zero for none.
    pub grace: Duration,
    /// Directory on each node, below the site's lease root, in which the lease is taken: everything
    /// before the slot's own id, which the hold appends.
    pub lease_prefix: String,
    /// Filters of the site's own kind.
    pub queue: Option<String>,
    /// See `queue`.
    pub project: Option<String>,
    /// See `queue`.
    pub property: Option<String>,
    /// Further conditions of the same kind, from the site's configuration: all must hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub narrowed: Vec<String>,
    /// Nodes that are of no use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub avoid: Vec<NodeName>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls it with")]
fn is_one(count: &u32) -> bool {
    *count == 1
}

/// How a slot that is over came to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum End {
    /// The hold was told that the job is done.
    Done,
    /// The hold was told that everything is saved, after a notice of preemption.
    SavedAtPreemption,
    /// The same, when its time was nearly over.
    SavedAtWalltime,
    /// The same, without a notice: we gave it back ourselves.
    Released,
    /// Preempted, hard.
    Preempted,
    /// Its time was over, hard.
    Walltime,
    /// A node or the site's own machinery failed.
    Infrastructure(String),
    /// Deleted by this user of the site. Whether it was us is decided from the intent in the status.
    Deleted(String),
    /// Our request was wrong; the text says how.
    Rejected(String),
    /// The hold ended by itself; the text says how.
    HoldFailed(String),
}

/// What a notice announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum NoticeKind {
    /// Somebody else's job.
    Preemption,
    /// The end of the slot's time.
    Walltime,
    /// A person asked for a checkpoint; nothing will be killed.
    Person,
}

/// An announcement that a slot will be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Notice {
    /// What it announces.
    pub kind: NoticeKind,
    /// When it was first made: the grace counts from here.
    pub at: Timestamp,
}

/// The state of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum SlotPhase {
    /// In the queue; the site's own words about it.
    Waiting {
        /// The scheduler's message.
        message: String,
        /// When the scheduler thinks it will start.
        expected: Option<Timestamp>,
    },
    /// The nodes are ours.
    Running,
    /// On its way out.
    Ending,
    /// Over.
    Ended(End),
    /// The site says something we do not know.
    Unknown(String),
}

/// What is known of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotFacts {
    /// Its id.
    pub id: SlotId,
    /// Its name.
    pub name: String,
    /// Its state.
    pub phase: SlotPhase,
    /// Nodes assigned, as Kubernetes calls them, in the site's order.
    pub nodes: Vec<NodeName>,
    /// When it started.
    pub since: Option<Timestamp>,
    /// When its walltime ends.
    pub until: Option<Timestamp>,
    /// First announcement that it will be taken for somebody else or is nearly over.
    pub notice: Option<Notice>,
    /// The site failed to reach a node of it, whatever it was ended for: what ran there may run on.
    pub unreached: bool,
}

/// What a list tells of a slot: enough to see that something has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Glance {
    /// Its name.
    pub name: String,
    /// The site's own word for its state.
    pub state: String,
    /// Whether it has nodes, so that a notice may come without a change of state.
    pub running: bool,
}

/// Why a site did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SiteError {
    /// No answer, or one of a server in trouble. For a request for slots: it may have been accepted.
    #[error("failed to reach the site: {0}")]
    Unreachable(String),
    /// The account is not accepted.
    #[error("the site refused the account: {0}")]
    Credentials(String),
    /// The request cannot be met as it is; the site's own words.
    #[error("the site refused the request: {0}")]
    Refused(String),
    /// There are not as many nodes.
    #[error("the site has not enough nodes: {0}")]
    NotEnoughNodes(String),
    /// No such slot. Never a reason to destroy anything.
    #[error("no such slot: {0}")]
    NotFound(String),
    /// The address of the site does not answer as a site.
    #[error("the site is not configured right: {0}")]
    Configuration(String),
    /// We sent something wrong.
    #[error("the site did not understand the request: {0}")]
    Bug(String),
}

impl DriverError for SiteError {
    fn reason(&self) -> Reason {
        match self {
            Self::Unreachable(_) | Self::Configuration(_) | Self::NotFound(_) => Reason::SiteUnreachable,
            Self::Credentials(_) => Reason::CredentialsRefused,
            Self::Refused(_) | Self::Bug(_) => Reason::SubmissionRefused,
            Self::NotEnoughNodes(_) => Reason::NotEnoughNodes,
        }
    }
    fn retry(&self) -> Retry {
        match self {
            Self::Unreachable(_) => Retry::After(Duration::from_secs(5)),
            Self::Credentials(_) | Self::Refused(_) | Self::NotEnoughNodes(_) | Self::Configuration(_) => Retry::Denied,
            Self::NotFound(_) => Retry::Gone,
            Self::Bug(_) => Retry::Bug,
        }
    }
}

/// One account at one site.
#[async_trait]
pub trait Site: Send + Sync {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Asks for slots: as many as there are to be reservations, all of the request's name. The outcome of an error
    /// other than a refusal is not known.
    async fn submit(&self, request: &SlotRequest) -> Result<Vec<SlotId>, SiteError>;

    /// All unfinished slots of this account whose names begin with `prefix`, all pages of them; with
    /// `since`, also those that ended after that time.
    async fn look_up(&self, prefix: &str, since: Option<Timestamp>) -> Result<BTreeMap<SlotId, Glance>, SiteError>;

    /// What a list tells of slots, finished ones too: cheap. An id the site does not know is missing.
    async fn glance(&self, ids: &[SlotId]) -> Result<BTreeMap<SlotId, Glance>, SiteError>;

    /// Everything about slots, finished ones too. An id the site does not know is missing.
    async fn status(&self, ids: &[SlotId]) -> Result<BTreeMap<SlotId, SlotFacts>, SiteError>;

    /// Gives a slot back. Repeated until its state is final; a slot that is over is no error.
    async fn release(&self, id: &SlotId) -> Result<(), SiteError>;
}

/// Account at a site, from a Secret of the job's namespace or from the site's configuration.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// A header set by us, trusted by the site: only from the operator's configuration.
    Header {
        /// The user of the site.
        user: String,
    },
    /// Basic authentication.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// A client certificate, PEM.
    Certificate {
        /// Certificate chain.
        certificate: String,
        /// Private key.
        key: String,
    },
}

impl std::fmt::Debug for Credentials {
    /// Never shows a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header { user } => write!(f, "Header({user})"),
            Self::Basic { username, .. } => write!(f, "Basic({username})"),
            Self::Certificate { .. } => write!(f, "Certificate"),
        }
    }
}
