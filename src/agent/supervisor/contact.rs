//! When the leading operator or the repository was heard: an agent that hears neither for too long
//! must kill its VM (safety A1). Only notes it; the fence does the killing.

use std::{
    io::Write as _,
    os::unix::net::UnixStream,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::agent::fence::words;

/// The fence is told this often at most.
const PACE: Duration = Duration::from_millis(500);

/// Tells the fence when somebody was heard.
pub(super) struct Contact {
    fence: Option<UnixStream>,
    told: Mutex<Option<Instant>>,
}

impl Contact {
    /// With a fence to tell, or with none (the fence is another's task then).
    pub(super) fn new(fence: Option<UnixStream>) -> Self {
        Self { fence, told: Mutex::new(None) }
    }

    /// Somebody was heard, so long ago.
    pub(super) fn heard(&self, ago: Duration) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = Instant::now().checked_sub(ago) else { return };
        if told.is_some_and(|told| at < told + PACE) {
            return;
        }
        *told = Some(at);
        if let Some(mut fence) = self.fence.as_ref() {
            // a fence that has ended takes us along
            let _ = writeln!(fence, "{} {}", words::CONTACT, ago.as_millis());
        }
    }
}
