//! How often something was killed within which time. Pure: counts, no place and no clock.

use serde::Serialize;

use crate::api::{BestEffortJob, job_status::Kills};

/// Ends of slots and nodes, and the time in which they were observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Preemptions and lost nodes.
    pub kills: u64,
    /// Those of them that no notice comes before: lost nodes, and preemptions without the notice asked for.
    pub crashes: u64,
    /// Seconds that guests ran, times their CPUs.
    pub cpu_seconds: u64,
}

impl Tally {
    /// That of a job which ran for so many member-seconds.
    pub fn of(kills: &Kills, member_seconds: u64, cpus: u32) -> Self {
        Self {
            kills: u64::from(kills.preempted) + u64::from(kills.node),
            crashes: u64::from(kills.abrupt) + u64::from(kills.node),
            cpu_seconds: member_seconds.saturating_mul(cpus.into()),
        }
    }

    /// What a job's status says.
    pub fn in_status(job: &BestEffortJob) -> Self {
        let Some(status) = &job.status else { return Self::default() };
        Self::of(&status.kills, status.work.useful.saturating_add(status.work.lost), job.spec.vm.cpus)
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            kills: self.kills.saturating_add(other.kills),
            crashes: self.crashes.saturating_add(other.crashes),
            cpu_seconds: self.cpu_seconds.saturating_add(other.cpu_seconds),
        }
    }

    /// What is left without the other's part.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            kills: self.kills.saturating_sub(other.kills),
            crashes: self.crashes.saturating_sub(other.crashes),
            cpu_seconds: self.cpu_seconds.saturating_sub(other.cpu_seconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_that_nobody_else_caused_are_no_kills() {
        let kills = Kills { preempted: 5, node: 1, abrupt: 2, walltime: 9, cancelled: 9, failed: 9 };
        assert_eq!(Tally::of(&kills, 100, 4), Tally { kills: 6, crashes: 3, cpu_seconds: 400 });
    }
}
