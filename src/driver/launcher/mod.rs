//! Launchers: they start agents on nodes that have no kubelet. TakTuk starts one on each node of a slot, inside the OAR
//! job; it ends with the hold, and all that it has started ends with it.
//!
//! A launcher and the operator know each other by a key of the account's, which lies in a file of the site's user and
//! in a Secret: from it both derive the same authority, which signs for either ([`LaunchKey`]). The hold's script,
//! which every user of the site may read, has the file's name only.

pub mod fake;
mod http;
mod key;

pub use http::LauncherDirectory;
pub use key::{BadKey, LEAST_KEY, LaunchKey};

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::names::Incarnation;

/// What a launcher answers at, below the address of its node.
pub mod paths {
    /// `GET`: all agents it has started, [`super::LaunchedAgent`].
    pub const AGENTS: &str = "/v1/agents";
    /// `PUT` an order, [`super::LaunchOrder`]; `DELETE`: end it, and forget it once it has ended.
    pub const AGENT: &str = "/v1/agents/{name}";
}

/// What an agent is started with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LaunchOrder {
    /// The incarnation it belongs to.
    pub incarnation: Incarnation,
    /// The files of its configuration, by name.
    pub files: BTreeMap<String, String>,
    /// What it logs, as `RUST_LOG` is written.
    pub log: String,
    /// Directory of its lease, which goes with the launcher when that could not leave it to the agent.
    pub lease: PathBuf,
}

impl std::fmt::Debug for LaunchOrder {
    /// Never shows the files: there are keys among them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LaunchOrder({})", self.incarnation)
    }
}

/// An agent as its launcher knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LaunchedAgent {
    /// The name it was started under.
    pub name: String,
    /// The incarnation it belongs to.
    pub incarnation: Incarnation,
    /// How it has ended, if it has, with all that it had started. Proof that its VM is dead.
    pub ended: Option<String>,
    /// It was told to end.
    pub ending: bool,
}

/// Why a launcher did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LauncherError {
    /// No answer.
    #[error("no answer: {0}")]
    Unreachable(String),
    /// Whoever answers has another key.
    #[error("it has another launch key: what the Secret has must be what the file of the site's user has")]
    OtherKey,
    /// It refuses.
    #[error("{0}")]
    Refused(String),
}

/// The launcher of one node. All may be repeated.
#[async_trait]
pub trait Launcher: Send + Sync {
    /// The agents it has started, and has not been told to forget.
    async fn agents(&self) -> Result<Vec<LaunchedAgent>, LauncherError>;

    /// Starts an agent. One that was started under this name is left as it is, also if it has ended.
    async fn start(&self, name: &str, order: &LaunchOrder) -> Result<(), LauncherError>;

    /// Has an agent end, which gets some seconds for it, and forgets it. One that is not known is no error.
    async fn end(&self, name: &str) -> Result<(), LauncherError>;
}

/// The launchers of all nodes.
#[async_trait]
pub trait Launchers: Send + Sync {
    /// Where the launcher of a host is to be found.
    async fn find(&self, host: &str, port: u16) -> Result<SocketAddr, LauncherError>;

    /// The launcher there.
    fn at(&self, address: SocketAddr, key: &LaunchKey) -> Arc<dyn Launcher>;
}
