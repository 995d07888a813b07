//! What the operator knows of a job's snapshots, and when it takes the next: a part of the job's status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Snapshots taken and due.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotsStatus {
    /// Newest captured generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<u32>,
    /// Newest complete generation: read back in the repository and published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_stored: Option<u32>,
    /// When the state of the newest complete generation was captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_stored_at: Option<Time>,
    /// When the next periodic snapshot is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Time>,
    /// Time between two snapshots: the spec's, or what was chosen for an adaptive one. It is chosen at
    /// each start and each snapshot, and changed only by more than a tenth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<Duration>,
    /// Why an adaptive period was chosen as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_reason: Option<String>,
    /// Number reserved for the next generation, so that a capture at a notice needs no write before it.
    /// Never used twice: a capture that fails burns it.
    pub next_generation: u32,
    /// The capture in progress or being stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture: Option<CaptureStatus>,
}

impl SnapshotsStatus {
    /// What [`super::LAST_STORED`] says, if nothing is damaged.
    pub fn shown(&self) -> Option<String> {
        Some(shown(self.last_stored?, self.last_stored_at.as_ref()?.0))
    }
}

/// What [`super::LAST_STORED`] says of a generation.
pub fn shown(generation: u32, captured_at: jiff::Timestamp) -> String {
    // to the second, as Kubernetes writes times
    let at = captured_at.strftime("%Y-%m-%dT%H:%M:%SZ");
    format!(r#"{{"generation":{generation},"capturedAt":"{at}"}}"#)
}

/// A capture in progress or being stored.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaptureStatus {
    /// Its generation.
    pub generation: u32,
    /// The incarnation it belongs to; a later one makes it void.
    pub incarnation: u32,
    /// Why it was taken.
    pub reason: super::snapshot::SnapshotReason,
    /// When it was decided.
    pub since: Time,
    /// Name of its Snapshot object.
    #[serde(default)]
    pub snapshot: String,
    /// Whether the guests run on after it.
    #[serde(default)]
    pub resume: bool,
    /// Whether all members have all bytes on local disk.
    pub captured: bool,
    /// When the members were cut, once captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<Time>,
    /// Member-seconds computed by then, once captured.
    #[serde(default)]
    pub work: u64,
    /// Bytes that it may bring into the repository: reserved for it until it is stored.
    #[serde(default)]
    pub reserved: u64,
    /// Bytes that its namespace may have in the repository, which takes no more for it; absent where it is not left
    /// out for that, or nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<u64>,
}
