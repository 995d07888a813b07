//! How long a capture may take. One rule for the agent, which ends one that takes longer, and for the
//! operator, which gives one up only when no agent can still be within its time. Pure.

use std::time::Duration;

use crate::store::manifest::MOST_OUTPUT;

/// Beside the time that its bytes take.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The slowest disk that a capture is written to, in bytes a second. On a slower one there is none.
pub const SLOWEST: u64 = 8 << 20;
/// The slowest disk that a guest waits for which stands still while its memory is written, and is to run
/// on afterwards.
pub const SLOWEST_PAUSED: u64 = 32 << 20;
/// What comes before the writing: all members prepare and stop.
const BARRIER: Duration = Duration::from_secs(60);

/// How long the writing of so many bytes may take on the slowest disk.
pub fn write_limit(patience: Duration, bytes: u64, slowest: u64) -> Duration {
    patience + Duration::from_secs(bytes / slowest)
}

/// How long it may take at most from the beginning of a capture until a member of this size has all of
/// it on its disk: the memory first, then disk and output.
pub fn capture_limit(memory: u64, disk: u64) -> Duration {
    let files = disk.saturating_add(MOST_OUTPUT);
    BARRIER + write_limit(PATIENCE, memory, SLOWEST) + write_limit(PATIENCE, files, SLOWEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_guest_has_minutes_and_a_large_one_as_long_as_its_disk_needs() {
        const MINUTE: Duration = Duration::from_secs(60);
        const GIB: u64 = 1 << 30;
        let small = capture_limit(GIB / 4, GIB);
        assert!((4 * MINUTE..30 * MINUTE).contains(&small), "{small:?}");
        // 512 GiB at 8 MiB a second are 65536 seconds, and a TiB of disk as long twice
        let large = capture_limit(512 * GIB, 1024 * GIB);
        assert!(
            (Duration::from_secs(196_608)..Duration::from_secs(196_608) + 15 * MINUTE).contains(&large),
            "{large:?}"
        );
        assert_eq!(write_limit(MINUTE, 0, SLOWEST), MINUTE);
        // who stands still while it is written waits for a faster disk
        assert_eq!(write_limit(Duration::ZERO, 64 * GIB, SLOWEST_PAUSED), Duration::from_secs(2048));
        assert!(capture_limit(u64::MAX, u64::MAX) > large, "no size is too large to be reckoned with");
    }
}
