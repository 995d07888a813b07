//! The guest: qemu-guest-agent, the command in it, its clock and randomness, its seed.
//!
//! Everything a guest says is a stranger's word: replies are bounded in size and time. Requests are
//! made so that a repetition does no harm, because a restore may replay or lose any of them.

pub mod after_restore;
pub mod channel;
pub mod command;
pub mod exec;
pub mod files;
pub mod seed;

/// What goes wrong with a guest.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum GuestError {
    /// The socket of its agent.
    #[error("failed to reach the guest's agent: {0}")]
    Socket(String),
    /// No reply in time.
    #[error("the guest's agent did not answer {0} in time")]
    Late(&'static str),
    /// The reply is not what was asked for.
    #[error("the guest's agent sent a reply to {0} that makes no sense")]
    Strange(&'static str),
    /// It refuses.
    #[error("the guest's agent refused {command}: {text}")]
    Refused {
        /// The command.
        command: &'static str,
        /// What it said, shortened.
        text: String,
    },
    /// A program in the guest failed.
    #[error("{what} failed in the guest: {text}")]
    Program {
        /// What was tried.
        what: &'static str,
        /// What it said, shortened.
        text: String,
    },
}
