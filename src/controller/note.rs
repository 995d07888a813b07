//! What passes tell people: events, beside the status and never instead of it.

use k8s_openapi::api::core::v1::ObjectReference;
use serde::Serialize;

use crate::{
    api::Reason,
    driver::cluster::{Cluster, EventRecord},
};

/// An event for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Whether a person should look at it.
    pub warning: bool,
    /// The reason.
    pub reason: Reason,
    /// What happened, in a sentence.
    pub message: String,
}

/// Records notes about an object; `action` says what was done. One that cannot be recorded is logged: all else is done
/// by then, and would not be done better again.
pub async fn record<'a>(
    cluster: &dyn Cluster,
    about: &ObjectReference,
    action: &str,
    notes: impl IntoIterator<Item = &'a Note>,
) {
    for note in notes {
        let event = EventRecord {
            about: about.clone(),
            warning: note.warning,
            reason: note.reason,
            action: action.into(),
            message: note.message.clone(),
        };
        if let Err(error) = cluster.record(&event).await {
            let (namespace, name) = (&about.namespace, &about.name);
            tracing::warn!(namespace, name, %error, message = event.message, "failed to record an event");
        }
    }
}
