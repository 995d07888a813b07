//! The outside systems, one folder each: the trait and our own closed types in `mod.rs`, the wire
//! format and the real client beside it, the double beside that.
//!
//! A method returns facts, never policy; it neither sleeps nor retries, and it may be called several
//! times. Errors say of themselves whether trying again can help.

pub mod agent;
pub mod cluster;
pub(crate) mod exchange;
pub mod guest;
pub mod kadeploy;
pub mod launcher;
pub mod network;
pub mod oar;
pub mod qemu;
pub mod repository;
pub mod site;

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::api::Reason;

/// A fact about the outside. Not knowing is not the same as absence, and only absence that is known
/// may ever lead to something being destroyed or started again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Fact<T> {
    /// Seen.
    Known(T),
    /// Looked for, and the answer was that there is none.
    Absent,
    /// No answer since this time.
    Unknown {
        /// Since when.
        since: Timestamp,
    },
}

impl<T> Fact<T> {
    /// Another fact, which follows from this one where it is known.
    pub fn map<U>(self, known: impl FnOnce(T) -> U) -> Fact<U> {
        match self {
            Self::Known(value) => Fact::Known(known(value)),
            Self::Absent => Fact::Absent,
            Self::Unknown { since } => Fact::Unknown { since },
        }
    }

    /// The fact, if it is known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Absent | Self::Unknown { .. } => None,
        }
    }
}

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Retry {
    /// Yes, not before this long.
    After(Duration),
    /// Not until a person changes something.
    Denied,
    /// The thing does not exist (any more).
    Gone,
    /// We sent something wrong.
    Bug,
}

/// An error of a driver, as the controllers see it.
pub trait DriverError: std::error::Error {
    /// The reason for the condition and the event.
    fn reason(&self) -> Reason;
    /// Whether trying again can help.
    fn retry(&self) -> Retry;
}
