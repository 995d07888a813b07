//! When somebody of the system was last heard, on this machine's monotonic clock.

use std::time::{Duration, Instant};

/// What the fence knows of it.
#[derive(Debug)]
pub(super) struct Contact {
    limit: Duration,
    last: Instant,
    lost: bool,
}

impl Contact {
    /// Begins now; nobody may be silent for longer than this.
    pub(super) fn new(limit: Duration, now: Instant) -> Self {
        Self { limit, last: now, lost: false }
    }

    /// The lease is held from now on: what was before counts no longer.
    pub(super) fn begin(&mut self, now: Instant) {
        (self.last, self.lost) = (now, false);
    }

    /// Somebody was heard. Who is heard again too late stays lost: others have counted on the end of this VM by then,
    /// even where this process stood still and could not see the time pass.
    pub(super) fn hear(&mut self, at: Instant) {
        self.lost |= self.is_silent(at);
        self.last = self.last.max(at);
    }

    /// Whether nobody was heard for too long, now or at any time since the beginning.
    pub(super) fn is_lost(&self, now: Instant) -> bool {
        self.lost || self.is_silent(now)
    }

    fn is_silent(&self, at: Instant) -> bool {
        at.saturating_duration_since(self.last) > self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a1_who_is_heard_too_late_stays_lost() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut contact = Contact::new(Duration::from_secs(10), start);
        // before the lease is held nobody has to be heard
        contact.hear(at(100));
        contact.begin(at(101));
        assert!(!contact.is_lost(at(111)));
        contact.hear(at(110));
        // an older word than the last one
        contact.hear(at(105));
        assert!(!contact.is_lost(at(120)) && contact.is_lost(at(121)));
        contact.hear(at(121));
        assert!(contact.is_lost(at(121)), "it was heard again before anybody looked");
    }
}
