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
    fn the_operator_waits_longer_than_any_agent_may_take() {
        for (memory, disk) in [(1 << 28, 1 << 30), (64 << 30, 20 << 30), (512 << 30, 1 << 40)] {
            let agent = write_limit(PATIENCE, memory, SLOWEST) + write_limit(PATIENCE, disk + MOST_OUTPUT, SLOWEST);
            assert!(capture_limit(memory, disk) > agent);
            assert!(write_limit(PATIENCE, memory, SLOWEST_PAUSED) <= write_limit(PATIENCE, memory, SLOWEST));
        }
    }
}
