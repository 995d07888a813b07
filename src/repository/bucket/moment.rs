//! Moments on this host, by a clock that nobody sets and that goes on while the host is suspended.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::repository) struct Moment(Duration);

impl Moment {
    /// This one.
    pub(in crate::repository) fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        Self(Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0)))
    }

    /// How long ago it was.
    pub(in crate::repository) fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }

    /// So long before it.
    #[cfg(test)]
    pub(in crate::repository) fn before(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(time))
    }
}
