//! QEMU: its command line, its control channel (QMP), captures, restores and disk images.
//!
//! Nothing here knows of jobs, leases or barriers. What QEMU says is a stranger's word (a guest may
//! have taken it over): replies are bounded in size and time.

pub mod capture;
pub mod cmdline;
pub mod cpu;
pub mod img;
pub mod priority;
pub mod probe;
pub mod process;
pub mod qmp;
pub mod restore;

/// What goes wrong with QEMU.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// The control channel.
    #[error(transparent)]
    Qmp(#[from] qmp::QmpError),
    /// A program cannot be started or a file not be used.
    #[error("failed to {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A program of QEMU's failed.
    #[error("{program} failed: {message}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What it said, shortened.
        message: String,
    },
    /// The memory could not be written or loaded.
    #[error("failed to {what}: QEMU reports {status}")]
    Migration {
        /// What was tried.
        what: &'static str,
        /// What QEMU says.
        status: String,
    },
    /// An image that must not be used.
    #[error("refused the image {path}: {why}")]
    Image {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
    /// The memory was not written in time: the writing may go on for ever.
    #[error("the memory was not written within {} s", .0.as_secs())]
    Unwritten(std::time::Duration),
    /// Something did not happen in time.
    #[error("{0} took too long")]
    Late(&'static str),
}

impl QemuError {
    /// Whether a disk of the node has no room.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            Self::Program { message, .. } => message.contains("No space left"),
            Self::Qmp(_) | Self::Migration { .. } | Self::Image { .. } | Self::Unwritten(_) | Self::Late(_) => false,
        }
    }

    /// Says what was tried when an IO error came.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
