//! What survives the server: environments, rights, and what it last knew of each node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// An environment as it was recorded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Recorded {
    pub(crate) user: String,
    /// The description, but for the user.
    pub(crate) fields: Value,
    /// Of its image, when it was recorded.
    pub(crate) checksum: String,
}

impl Recorded {
    pub(crate) fn name(&self) -> &str {
        self.fields["name"].as_str().unwrap_or_default()
    }
    pub(crate) fn version(&self) -> u64 {
        self.fields["version"].as_u64().unwrap_or_default()
    }
    pub(crate) fn is_public(&self) -> bool {
        self.fields["visibility"] == "public"
    }
}

/// What is known of a node that was used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) state: String,
    pub(crate) user: String,
    /// Name, version and user; nothing where it came along with the request.
    pub(crate) environment: Option<(String, u64, String)>,
    pub(crate) since: Timestamp,
}

impl Node {
    pub(crate) fn view(&self) -> Value {
        let environment = match &self.environment {
            Some((name, version, user)) => json!({"name": name, "version": version, "user": user}),
            None => json!({"name": null, "version": null, "user": null}),
        };
        json!({"state": self.state, "user": self.user, "environment": environment})
    }
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) environments: Vec<Recorded>,
    /// Nodes by user.
    pub(crate) rights: BTreeMap<String, BTreeSet<String>>,
    pub(crate) nodes: BTreeMap<String, Node>,
}

/// The file.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    pub(crate) kept: Kept,
}

impl Store {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let kept = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| path.display().to_string())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        Ok(Self { path: path.into(), kept })
    }

    /// Writes what has changed.
    pub(crate) fn save(&self) -> Result<()> {
        let new = self.path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(&self.kept)?)?;
        fs::rename(&new, &self.path).with_context(|| self.path.display().to_string())
    }

    pub(crate) fn mark(&mut self, node: &str, state: &str, user: &str, environment: Option<(String, u64, String)>) {
        let node_now = Node { state: state.into(), user: user.into(), environment, since: Timestamp::now() };
        self.kept.nodes.insert(node.into(), node_now);
    }
}
