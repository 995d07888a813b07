//! `Snapshot`: one numbered generation of a job.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One generation of a job: made by the operator on the period, or by a user at any time.
///
/// The repository's manifests are the truth; this object is a view of them.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "vmdeploy.io",
    version = "v1alpha1",
    kind = "Snapshot",
    plural = "snapshots",
    shortname = "vmsnap",
    category = "vmdeploy",
    namespaced,
    cel,
    doc = "One generation of a job: made by the operator on the period, or by a user at any time.",
    status = "SnapshotStatus",
    printcolumn = r#"{"name":"Job","type":"string","jsonPath":".spec.job"}"#,
    printcolumn = r#"{"name":"Generation","type":"integer","jsonPath":".status.generation"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".spec.reason"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Pause-ms","type":"integer","jsonPath":".status.pauseMs"}"#,
    printcolumn = r#"{"name":"Safe","type":"string","jsonPath":".status.transfer.safe","description":"Members whose bytes are in the repository."}"#,
    printcolumn = r#"{"name":"Sent","type":"integer","jsonPath":".status.transfer.sent","description":"Bytes that have left the nodes."}"#,
    printcolumn = r#"{"name":"Total","type":"integer","jsonPath":".status.transfer.total","description":"Bytes to send.","priority":1}"#,
    printcolumn = r#"{"name":"Rate","type":"integer","jsonPath":".status.transfer.rate","description":"Bytes a second.","priority":1}"#,
    printcolumn = r#"{"name":"ETA","type":"string","jsonPath":".status.transfer.eta","description":"When all bytes will have left the nodes."}"#,
    printcolumn = r#"{"name":"Stored","type":"integer","jsonPath":".status.bytes.stored"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[x_kube(cel)]
#[x_kube(
    validation = ("self.job == oldSelf.job && self.reason == oldSelf.reason", "only retain can be changed: make another Snapshot")
)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSpec {
    /// Name of the BestEffortJob, in this namespace.
    #[schemars(length(min = 1, max = 63))]
    pub job: String,
    /// Why it is taken. What the operator has not made is taken as asked for by a user, whatever it says here.
    #[serde(default)]
    pub reason: SnapshotReason,
    /// Keeps the generation until this object is deleted.
    #[serde(default)]
    pub retain: bool,
}

impl Snapshot {
    /// Why it is taken. The operator labels those that it makes; all others were asked for by somebody, who may have
    /// copied one of its own.
    pub fn reason(&self) -> SnapshotReason {
        let labels = self.metadata.labels.as_ref();
        if labels.is_some_and(|labels| labels.contains_key(super::LABEL_JOB_UID)) {
            self.spec.reason
        } else {
            SnapshotReason::User
        }
    }
}

/// Why a snapshot is taken.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SnapshotReason {
    /// The period was over.
    Periodic,
    /// The scheduler wants the nodes back.
    Notice,
    /// The slot's time is nearly over.
    Walltime,
    /// Before a suspension.
    Suspend,
    /// A user asked for it.
    #[default]
    User,
}

/// Where a snapshot has got to.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotPhase {
    /// Waiting for its turn.
    #[default]
    Pending,
    /// All members are being cut.
    Capturing,
    /// On the nodes' local disks; the job goes on.
    Captured,
    /// Read back in the repository and published: it can be restored.
    Stored,
    /// Void; its number is not used again.
    Failed,
}

/// What became of a snapshot. The operator owns everything but `transfer`, which is kget's.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotStatus {
    /// The spec's generation this status speaks of.
    pub observed_generation: i64,
    /// Number of the generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// Where it has got to.
    pub phase: SnapshotPhase,
    /// The incarnation it was taken in.
    pub incarnation: u32,
    /// The generation this incarnation had started from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<u32>,
    /// Uid of the job.
    pub job_uid: String,
    /// When the members were cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<Time>,
    /// Longest time a guest stood still, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<u64>,
    /// Time between the first and the last member's stop, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skew_ms: Option<u64>,
    /// Member-seconds the job had computed when the members were cut.
    pub work: u64,
    /// The members' parts, once captured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<SnapshotMember>,
    /// Members whose slots are wanted, where not all are: their bytes are sent first, and those of the members that
    /// stay after everything else. Empty: all leave, if the members leave at all after a snapshot of this reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub leaving: Vec<u32>,
    /// Sizes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<SnapshotBytes>,
    /// How far its bytes are; owned by kget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Transfer>,
    /// Conditions.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// One member's part of a snapshot.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotMember {
    /// The member.
    pub index: u32,
    /// The node its bytes are on.
    pub node: String,
    /// Name of the agent pod that has them.
    pub pod: String,
    /// `address:port` of that agent.
    pub endpoint: String,
}

/// Sizes of a snapshot, in bytes.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotBytes {
    /// Memory and disk as the guests see them.
    pub logical: u64,
    /// What came into the repository with it: what no earlier one had brought, compressed.
    pub stored: u64,
}

/// How far the bytes of a snapshot are.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Transfer {
    /// Where the transfer has got to.
    pub state: TransferState,
    /// Bytes that have left the nodes; those that the repository has already count as soon as it has said so.
    pub sent: u64,
    /// Bytes to send.
    pub total: u64,
    /// Bytes a second by which `sent` grows, measured over some seconds; absent while it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// When all bytes will have left the nodes at this rate; absent while that cannot be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta: Option<Time>,
    /// Members whose bytes are safe in the repository.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub safe: Vec<u32>,
    /// Since when the bytes of each of them are, or another member has them for it: from then on the snapshot needs its
    /// node no longer. In the order in which it came about.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub freed: Vec<FreedMember>,
    /// Members whose bytes go by way of another one, so that their nodes are free before the repository has them. It is
    /// said here before anybody is told to send any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub collected: Vec<CollectedMember>,
    /// Members whose slots may be given back: their bytes are in the repository or with a collector, and they will be
    /// given none of others any more. Absent: those that are safe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released: Option<Vec<u32>>,
    /// What went wrong, if anything did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Transfer {
    /// Members whose nodes this snapshot needs no longer.
    pub fn needs_not(&self) -> &[u32] {
        self.released.as_deref().unwrap_or(&self.safe)
    }
}

/// A member whose bytes go by way of another one.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CollectedMember {
    /// The member.
    pub member: u32,
    /// The member whose node takes them.
    pub by: u32,
    /// How far that is.
    pub state: CollectedState,
}

/// How far a member's bytes are on their way by another one.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CollectedState {
    /// They are being sent there.
    Sending,
    /// The other one lists them all, or did before it brought them to the repository.
    Held,
    /// They are sent to the repository after all.
    GivenUp,
}

/// A member whose node is not needed any more.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FreedMember {
    /// The member.
    pub member: u32,
    /// Since when.
    pub at: Time,
    /// The member that holds its bytes, until they are in the repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<u32>,
}

/// Where a transfer has got to.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransferState {
    /// Not started.
    #[default]
    Pending,
    /// Bytes move.
    Sending,
    /// The manifest is published: the generation is complete.
    Published,
    /// It cannot be completed.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_operator_has_not_made_was_asked_for_by_a_user_whatever_it_says() {
        let spec = SnapshotSpec { job: "pi".into(), reason: SnapshotReason::Periodic, retain: false };
        let mut snapshot = Snapshot::new("copied", spec);
        assert_eq!(snapshot.reason(), SnapshotReason::User);
        snapshot.metadata.labels = Some([(super::super::LABEL_JOB_UID.to_owned(), "3f2b".to_owned())].into());
        assert_eq!(snapshot.reason(), SnapshotReason::Periodic);
    }
}
