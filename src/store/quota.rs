//! How much a namespace may keep in the repository, and how much a job will want. Pure.
//!
//! The quota is soft: what must not be lost is stored whatever it says (safety C2).

use serde::{Deserialize, Serialize};

use crate::{
    api::job::{BestEffortJobSpec, VmSpec},
    driver::repository::JobUsage,
    names::JobUid,
};

/// What makes room, for whoever is refused.
pub const REMEDY: &str =
    "delete Snapshots that are retained or that people took, or jobs that have ended, or have the quota raised";

/// What the jobs of a namespace have in the repository, and what they may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Room {
    /// Most bytes.
    pub limit: u64,
    /// Bytes of all of them.
    pub used: u64,
    /// Those of the job in question among them.
    pub own: u64,
    /// Bytes that captures of other jobs, which are under way, may bring.
    pub reserved: u64,
    /// Bytes that other jobs were accepted for which have stored nothing yet.
    pub accepted: u64,
}

impl Room {
    /// Whether the job may have so much beyond what others have, or were accepted for.
    pub fn holds(&self, wanted: u64) -> bool {
        self.others().saturating_add(self.accepted).saturating_add(wanted) <= self.limit
    }

    /// Whether so much may come beyond what is there.
    pub fn takes(&self, more: u64) -> bool {
        self.used.saturating_add(self.reserved).saturating_add(more) <= self.limit
    }

    /// What other jobs have or will have soon.
    pub fn others(&self) -> u64 {
        self.used.saturating_sub(self.own).saturating_add(self.reserved)
    }
}

/// A generation's share of what its namespace may have. The operator sees others that begin in the same moment too
/// late: the repository, where all bytes come by, claims it before the first of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// The namespace.
    pub namespace: String,
    /// Most bytes of all its jobs.
    pub limit: u64,
    /// Bytes that the whole generation may bring.
    pub bytes: u64,
}

/// What a job needs room for before it is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Generations: those that it keeps, the one that comes, and what it began with, which stays for its whole life.
    pub generations: u64,
    /// Most bytes of each.
    pub full: u64,
}

impl Wanted {
    /// By a job whose image has so many bytes.
    pub fn by(spec: &BestEffortJobSpec, image: u64) -> Self {
        let generations = u64::from(spec.snapshots.keep.max(2)) + 1 + u64::from(spec.restore_from.is_some());
        Self { generations, full: full_generation(&spec.vm, image, spec.members) }
    }

    /// Bytes of all of them.
    pub fn bytes(self) -> u64 {
        self.full.saturating_mul(self.generations)
    }
}

/// What the jobs of a namespace have: those that are known to be its own, and those whose data says so. One that has
/// no generation yet is not known to be of a namespace in the repository.
pub fn of_namespace<'a>(
    usage: &'a [JobUsage],
    namespace: &str,
    known: impl Fn(&JobUid) -> bool,
) -> impl Iterator<Item = &'a JobUsage> {
    usage.iter().filter(move |of| known(&of.job) || of.owner.as_ref().is_some_and(|owner| owner.namespace == namespace))
}

/// Bytes of all of them.
pub fn sum<'a>(usage: impl Iterator<Item = &'a JobUsage>) -> u64 {
    usage.fold(0, |sum, of| sum.saturating_add(of.bytes))
}

/// Most bytes of memory and disks of all members: a generation that shares nothing with any other.
pub fn full_generation(vm: &VmSpec, image: u64, members: u32) -> u64 {
    vm.memory.0.saturating_add(vm.disk_over(image)).saturating_mul(u64::from(members))
}

/// Bytes that the next generation may bring: twice as much as any of the last ones, at most a full one.
pub fn next_generation(full: u64, last: impl Iterator<Item = u64>) -> u64 {
    last.filter(|stored| *stored > 0).max().map_or(full, |most| full.min(most.saturating_mul(2)))
}

/// Bytes for people, roughly: a figure that changes seldom.
pub fn roughly(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    if bytes < GIB {
        return format!("{} MiB", bytes >> 20);
    }
    let tenths = bytes / (GIB / 10);
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::quantity::Bytes, driver::repository::JobOwner};

    #[test]
    fn c2_a_job_gets_what_others_leave() {
        let room = Room { limit: 100, used: 60, own: 20, reserved: 10, accepted: 0 };
        assert!(room.holds(50) && !room.holds(51));
        assert!(room.takes(30) && !room.takes(31));
        // what was accepted takes no room from one that runs
        let room = Room { accepted: 15, ..room };
        assert!(room.holds(35) && !room.holds(36) && room.takes(30));
        assert!(!room.takes(u64::MAX) && !room.holds(u64::MAX));
    }

    #[test]
    fn c2_the_next_generation_is_guessed_from_the_last_ones() {
        assert_eq!(next_generation(100, std::iter::empty()), 100);
        assert_eq!(next_generation(100, [0, 20, 5].into_iter()), 40);
        assert_eq!(next_generation(100, [80].into_iter()), 100);
    }

    #[test]
    fn a_full_generation_is_all_that_its_guests_have() {
        let vm = VmSpec { memory: Bytes(1 << 30), disk: Some(Bytes(4 << 30)), ..VmSpec::default() };
        assert_eq!(full_generation(&vm, 2 << 30, 3), 15 << 30);
        assert_eq!(full_generation(&VmSpec { disk: None, ..vm }, 2 << 30, 1), 3 << 30);
    }

    #[test]
    fn c2_all_that_is_known_to_be_of_a_namespace_counts() {
        let of = |job: &str, namespace: Option<&str>, bytes| JobUsage {
            job: job.into(),
            owner: namespace.map(|namespace| JobOwner { namespace: namespace.into(), name: "a".into() }),
            bytes,
        };
        let usage = [of("a", Some("team"), 1), of("b", None, 2), of("c", None, 4), of("d", Some("others"), 8)];
        assert_eq!(sum(of_namespace(&usage, "team", |job| job.0 == "b")), 3);
        assert_eq!(sum([of("a", None, u64::MAX), of("b", None, 1)].iter()), u64::MAX);
    }

    #[test]
    fn figures_are_rough() {
        assert_eq!([roughly(5 << 20), roughly(3 << 29), roughly(1 << 40)], ["5 MiB", "1.5 GiB", "1024.0 GiB"]);
    }
}
