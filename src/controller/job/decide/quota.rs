//! Room for generations: before a job is accepted, and before a capture that can be left out (safety C2).
//!
//! What leaves its slots is captured whatever the quota says.

use super::draft::{Draft, Problem, wrong};
use crate::{
    api::{Reason, job_status::ResolvedImage, snapshot::SnapshotReason},
    driver::Fact,
    store::quota::{REMEDY, Wanted, full_generation, next_generation, roughly},
};

/// The newest snapshots whose sizes are looked at.
const MEASURED: usize = 5;

impl Draft<'_> {
    /// What a job would need that is accepted, if that is more than its namespace may have. Nothing is known: none.
    pub(super) fn no_room(&self, image: &ResolvedImage) -> Result<(), Problem> {
        let room = match &self.seen.room {
            Fact::Absent => return Ok(()),
            Fact::Known(room) => room,
            Fact::Unknown { .. } => return Err(None),
        };
        let wanted = Wanted::by(&self.job.spec, image.virtual_size);
        let (generations, needed) = (wanted.generations, wanted.bytes());
        if room.holds(needed) {
            return Ok(());
        }
        let accepted = match room.accepted {
            0 => String::new(),
            accepted => format!(" and were accepted for {} more", roughly(accepted)),
        };
        let message = format!(
            "this job needs room for {generations} generations of up to {}, which is {}, and its namespace may keep {} in \
             the repository, of which others have {}{accepted}: {REMEDY}, or lower vm.memory, vm.disk, members or snapshots.keep",
            roughly(wanted.full),
            roughly(needed),
            roughly(room.limit),
            roughly(room.others())
        );
        wrong(Reason::QuotaExceeded, message)
    }

    /// Bytes that the next generation may bring.
    pub(super) fn next_bytes(&self) -> u64 {
        let spec = &self.job.spec;
        let image = self.status.image.as_ref().map_or(0, |image| image.virtual_size);
        let mut stored: Vec<(Option<u32>, u64)> = self
            .seen
            .snapshots
            .iter()
            .filter_map(|snapshot| Some((snapshot.status.generation, snapshot.status.bytes?.stored)))
            .filter(|(_, stored)| *stored > 0)
            .collect();
        stored.sort_by_key(|(generation, _)| std::cmp::Reverse(*generation));
        let full = full_generation(&spec.vm, image, spec.members);
        next_generation(full, stored.into_iter().take(MEASURED).map(|(_, stored)| stored))
    }

    /// What the repository is to hold a capture to: one that can be left out.
    pub(super) fn quota_of(&self, reason: SnapshotReason) -> Option<u64> {
        match reason {
            SnapshotReason::Periodic | SnapshotReason::User => self.seen.room.known().map(|room| room.limit),
            SnapshotReason::Notice | SnapshotReason::Walltime | SnapshotReason::Suspend => None,
        }
    }

    /// Whether another generation may come. If not, a condition says why; a repository that does not answer
    /// takes it once it does.
    pub(super) fn has_room(&mut self) -> bool {
        let Some(room) = self.seen.room.known().copied() else { return true };
        let more = self.next_bytes();
        if room.takes(more) {
            return true;
        }
        let under_way = match room.reserved {
            0 => String::new(),
            reserved => format!(", up to {} more is on its way", roughly(reserved)),
        };
        let message = format!(
            "no snapshot is taken: its namespace may keep {} in the repository and has {} (this job {}){under_way}, and the \
             next one may take {}: {REMEDY}. A notice is still heeded with a last snapshot",
            roughly(room.limit),
            roughly(room.used),
            roughly(room.own),
            roughly(more)
        );
        self.snapshot_failed(Reason::QuotaExceeded, message);
        self.because("the quota has no room for a snapshot");
        false
    }
}
