//! What is said of a transfer: the condition `Stored`. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::api::{
    ConditionType, Reason, Snapshot,
    conditions::{self, Truth},
    snapshot::{Transfer, TransferState},
};

/// The condition that goes with a transfer.
pub fn stored(snapshot: &Snapshot, transfer: &Transfer, now: jiff::Timestamp) -> Option<Condition> {
    let (value, reason) = match transfer.state {
        TransferState::Pending => (Truth::Unknown, Reason::NotYet),
        TransferState::Sending => (Truth::Unknown, Reason::Transferring),
        TransferState::Published => (Truth::True, Reason::SnapshotStored),
        TransferState::Failed => (Truth::False, Reason::TransferFailed),
    };
    let message = match (&transfer.message, transfer.state) {
        (Some(message), _) => message.clone(),
        (None, TransferState::Published) => "the generation is complete in the repository".into(),
        (None, _) => format!("{} of {} bytes have left the nodes", transfer.sent, transfer.total),
    };
    let mut list = snapshot.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
    let generation = snapshot.metadata.generation.unwrap_or_default();
    conditions::set(&mut list, ConditionType::Stored, value, reason, message, generation, now);
    conditions::get(&list, ConditionType::Stored).cloned()
}
