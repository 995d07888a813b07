//! The conditions of an image: pure.

use jiff::Timestamp;

use crate::api::{
    ConditionType, Reason, VmImageStatus,
    conditions::{Truth, clear, set},
};

/// What readers are to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// On its way; how far.
    Importing(String),
    /// What it depends on does not answer.
    Unknown(Reason, String),
    /// Ready.
    Imported,
    /// Ready still; what is to take its place is not known, because what it depends on does not answer.
    Kept(Reason, String),
    /// Failed, and tried again.
    Failed(Reason, String),
    /// Failed until a person changes something.
    Refused(Reason, String),
}

/// Writes the conditions of a notice.
pub fn show(status: &mut VmImageStatus, notice: &Notice, now: Timestamp) {
    let generation = status.observed_generation;
    let list = &mut status.conditions;
    let mut put = |kind, truth, reason, message: &str| set(list, kind, truth, reason, message, generation, now);
    match notice {
        Notice::Importing(message) => {
            put(ConditionType::Ready, Truth::False, Reason::ImageImporting, message);
            put(ConditionType::ImageReady, Truth::False, Reason::ImageImporting, message);
            put(ConditionType::Reconciling, Truth::True, Reason::ImageImporting, message);
            clear(list, ConditionType::Stalled);
        }
        Notice::Unknown(reason, message) => {
            put(ConditionType::Ready, Truth::False, *reason, message);
            put(ConditionType::ImageReady, Truth::False, *reason, message);
            put(ConditionType::Reconciling, Truth::True, *reason, message);
            clear(list, ConditionType::Stalled);
        }
        Notice::Kept(reason, message) => put(ConditionType::Reconciling, Truth::True, *reason, message),
        Notice::Imported => {
            let message = "the image is in the repository";
            put(ConditionType::Ready, Truth::True, Reason::ImageImported, message);
            put(ConditionType::ImageReady, Truth::True, Reason::ImageImported, message);
            clear(list, ConditionType::Reconciling);
            clear(list, ConditionType::Stalled);
        }
        Notice::Failed(reason, message) => {
            put(ConditionType::Ready, Truth::False, *reason, message);
            put(ConditionType::ImageReady, Truth::False, *reason, message);
            put(ConditionType::Reconciling, Truth::True, Reason::BackingOff, message);
            clear(list, ConditionType::Stalled);
        }
        Notice::Refused(reason, message) => {
            put(ConditionType::Ready, Truth::False, *reason, message);
            put(ConditionType::ImageReady, Truth::False, *reason, message);
            put(ConditionType::Stalled, Truth::True, *reason, message);
            clear(list, ConditionType::Reconciling);
        }
    }
}
