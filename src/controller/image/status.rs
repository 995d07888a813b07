//! The conditions of an image: pure.

use jiff::Timestamp;

use crate::api::{
    ANNOTATION_IMPORT, ConditionType, Reason, VmImageStatus,
    conditions::{Truth, clear, set},
};

/// What is said of an image that is ready as it was imported before.
const AS_BEFORE: &str = "the image is in the repository as it was imported before";

/// What readers are to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// On its way; how far.
    Importing(String),
    /// What it depends on does not answer.
    Unknown(Reason, String),
    /// Ready.
    Imported,
    /// Ready still as it was imported before; why what is to take its place is not there yet.
    Kept(Reason, String),
    /// Ready still as it was imported before; why nothing takes its place until a person asks again.
    Remains(String),
    /// Failed, and tried again.
    Failed(Reason, String),
    /// Failed until a person changes something.
    Refused(Reason, String),
}

impl Notice {
    /// The same of an image that is ready as it was imported before, while it is imported again.
    #[must_use]
    pub fn kept(self) -> Self {
        match self {
            Self::Importing(words) => Self::Kept(Reason::ImageImporting, format!("importing again: {words}")),
            Self::Unknown(reason, words) => Self::Kept(reason, format!("importing again: {words}")),
            Self::Failed(_, words) => Self::Kept(Reason::BackingOff, words),
            Self::Refused(_, words) => Self::Remains(words),
            other @ (Self::Imported | Self::Kept(..) | Self::Remains(_)) => other,
        }
    }
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
        Notice::Kept(reason, message) => {
            let ready = format!("{AS_BEFORE}; {message}");
            put(ConditionType::Ready, Truth::True, Reason::ImageImported, &ready);
            put(ConditionType::ImageReady, Truth::True, Reason::ImageImported, &ready);
            put(ConditionType::Reconciling, Truth::True, *reason, message);
            clear(list, ConditionType::Stalled);
        }
        Notice::Remains(message) => {
            // not stalled: tools would take the image for one that cannot be used
            let ready = format!(
                "{AS_BEFORE}; {message}. For another try set the annotation {ANNOTATION_IMPORT} to another value"
            );
            put(ConditionType::Ready, Truth::True, Reason::ImageImported, &ready);
            put(ConditionType::ImageReady, Truth::True, Reason::ImageImported, &ready);
            clear(list, ConditionType::Reconciling);
            clear(list, ConditionType::Stalled);
        }
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
