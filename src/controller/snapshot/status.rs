//! What the status says of an outcome: phase, conditions, sizes. Pure.

use jiff::Timestamp;

use crate::{
    api::{
        ConditionType, Reason, SnapshotStatus,
        conditions::{self, Truth},
        snapshot::SnapshotPhase,
    },
    controller::note::Note,
};

/// Where a snapshot is, in a word and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not begun; why.
    Waiting(String),
    /// The members are being captured.
    Capturing,
    /// On the nodes; how far the transfer is.
    Transferring(String),
    /// Complete, and the bytes it takes if they are known.
    Stored {
        /// Bytes in the repository.
        bytes: Option<u64>,
    },
    /// Void; why.
    Void(Reason, String),
    /// Deleted by somebody, but still needed; its phase, and why.
    Held(SnapshotPhase, String),
}

impl Outcome {
    /// The phase of the outcome.
    pub fn phase(&self) -> SnapshotPhase {
        match self {
            Self::Waiting(_) => SnapshotPhase::Pending,
            Self::Capturing => SnapshotPhase::Capturing,
            Self::Transferring(_) => SnapshotPhase::Captured,
            Self::Stored { .. } => SnapshotPhase::Stored,
            Self::Void(..) => SnapshotPhase::Failed,
            Self::Held(phase, _) => *phase,
        }
    }
}

/// Writes the outcome into the status. Returns what people may want to be told of it.
pub fn set(status: &mut SnapshotStatus, outcome: &Outcome) -> Option<Note> {
    status.phase = outcome.phase();
    let mut condition = |kind, value, reason, message: &str| {
        conditions::set(&mut status.conditions, kind, value, reason, message, 0, Timestamp::UNIX_EPOCH);
    };
    let note = |warning, reason, message: String| Some(Note { warning, reason, message });
    let (reason, message, note) = match outcome {
        Outcome::Waiting(message) => (Reason::NotYet, message.clone(), None),
        Outcome::Capturing => (Reason::NotYet, "all members are being captured".into(), None),
        Outcome::Transferring(message) => (Reason::Transferring, message.clone(), None),
        Outcome::Stored { bytes } => {
            let generation = status.generation.unwrap_or_default();
            let message = format!("generation {generation} is complete in the repository");
            if let Some(stored) = bytes {
                status.bytes.get_or_insert_default().stored = *stored;
            }
            (Reason::SnapshotStored, message.clone(), note(false, Reason::SnapshotStored, message))
        }
        Outcome::Void(reason, message) => (*reason, message.clone(), note(true, *reason, message.clone())),
        Outcome::Held(_, message) => {
            condition(ConditionType::Stalled, Truth::True, Reason::LastGeneration, message);
            return None;
        }
    };
    match outcome {
        Outcome::Stored { .. } => condition(ConditionType::Ready, Truth::True, reason, &message),
        Outcome::Void(..) => {
            condition(ConditionType::Ready, Truth::False, reason, &message);
            condition(ConditionType::Stalled, Truth::True, reason, &message);
        }
        _ => {
            condition(ConditionType::Ready, Truth::Unknown, reason, &message);
            condition(ConditionType::Reconciling, Truth::True, reason, &message);
        }
    }
    if matches!(outcome, Outcome::Stored { .. } | Outcome::Void(..)) {
        conditions::clear(&mut status.conditions, ConditionType::Reconciling);
    }
    if !matches!(outcome, Outcome::Void(..)) {
        conditions::clear(&mut status.conditions, ConditionType::Stalled);
    }
    note
}

/// Puts generation and time into the conditions that [`set`] has changed.
pub fn stamp(status: &mut SnapshotStatus, now: Timestamp) {
    for condition in &mut status.conditions {
        if condition.type_ != "Stored" {
            condition.observed_generation = Some(status.observed_generation);
        }
        if condition.last_transition_time.0 == Timestamp::UNIX_EPOCH {
            condition.last_transition_time.0 = now;
        }
    }
}
