//! What Kadeploy 3 sends and takes. Only this folder sees these types.
//!
//! Its habits: ids and names are null where they are not known, versions are numbers or text, and what is not known at
//! all is left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::environment::{number, or_none};

/// `GET /deployment/WID`, and an item of `GET /deployment`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Poll {
    #[serde(alias = "id")]
    pub(super) wid: String,
    pub(super) done: bool,
    pub(super) error: bool,
    #[serde(default)]
    pub(super) start_time: Option<f64>,
    #[serde(default, deserialize_with = "or_none")]
    pub(super) environment: Named,
    /// Absent where the workflow broke.
    #[serde(default)]
    pub(super) nodes: Option<Nodes>,
}

/// The nodes of a workflow.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Nodes {
    /// Of one's own.
    Own(Split),
    /// Of somebody else's: all that others are told.
    Others(#[expect(dead_code, reason = "tells the two shapes apart")] Vec<String>),
}

/// Nodes by how they stand.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Split {
    pub(super) ok: Vec<String>,
    pub(super) ko: Vec<String>,
    /// Absent when the workflow is over.
    pub(super) processing: Vec<String>,
}

/// An environment where it is only named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Named {
    pub(super) name: Option<String>,
    pub(super) user: Option<String>,
    #[serde(deserialize_with = "number")]
    pub(super) version: Option<u64>,
}

/// A node in `GET /deployment/WID/state`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Step {
    /// Null when the node is through.
    #[serde(rename = "macro")]
    pub(super) large: Option<String>,
    #[serde(rename = "micro")]
    pub(super) small: Option<String>,
    pub(super) state: Option<String>,
    pub(super) error: Option<String>,
}

pub(super) type State = BTreeMap<String, Step>;

/// A node in `GET /nodes`; null if it was never used.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    pub(super) state: String,
    pub(super) user: Option<String>,
    pub(super) environment: Named,
}

pub(super) type Records = BTreeMap<String, Option<Record>>;

/// The reply to a request for a deployment.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Begun {
    #[serde(alias = "id")]
    pub(super) wid: String,
}

/// A request for a deployment. There are more fields, among them two that the server runs as a program.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Request {
    pub(super) nodes: Vec<String>,
    pub(super) environment: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ssh_authorized_keys: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) block_device: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) force: bool,
    /// The partition, by the name it has there.
    #[serde(flatten)]
    pub(super) partition: BTreeMap<String, String>,
}

/// Parses a body.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_str(&String::from_utf8_lossy(body)).map_err(|error| error.to_string())
}
