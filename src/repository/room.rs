//! How much may still arrive: of one part, of a job's results, and on the disk at all (safety C2, D2).

use std::path::Path;

use jiff::Timestamp;

use super::{
    durable::{Root, disk_error},
    store::{Outcome, Store},
    uploads::Origin,
};
use crate::{
    driver::repository::RepositoryError,
    names::{Generation, Incarnation, JobUid, MemberIndex},
    store::{
        layout::{self, PartName},
        manifest::FileKind,
        quota::{Share, of_namespace, sum},
    },
};

/// Most bytes and files, by what they are.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A member's part of a generation; less if its ticket says so.
    pub part: u64,
    /// All packs of a job.
    pub packs: u64,
    /// An image.
    pub image: u64,
    /// A file of a job's result.
    pub output: u64,
    /// All files of a job's result.
    pub outputs: u64,
    /// Number of these files.
    pub output_files: usize,
    /// Bytes of the disk that stay free whatever arrives: fences and manifests must always be written.
    pub free: u64,
}

/// Most bytes of what a pack belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    /// Of the part.
    pub(super) part: u64,
    /// Of all packs of the job.
    pub(super) job: u64,
}

/// Room on the disk for what is on its way. What is written is not counted twice; what is left of it is given back
/// at its end.
pub(super) struct Claim<'a> {
    root: &'a Root,
    left: u64,
    floor: u64,
}

impl Root {
    /// Room for so many bytes that are not written yet: refused if less than `floor` would be left when all that
    /// is on its way has come.
    pub(super) fn claim(&self, bytes: u64, floor: u64) -> Outcome<Claim<'_>> {
        let mut claim = Claim { root: self, left: 0, floor };
        claim.more(bytes)?;
        Ok(claim)
    }
}

impl Root {
    fn free(&self) -> Outcome<u64> {
        let disk = rustix::fs::statvfs(self.at(Path::new(""))).map_err(|e| disk_error(&e.into()))?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

impl Claim<'_> {
    fn more(&mut self, bytes: u64) -> Outcome<()> {
        let mut claimed = self.root.claimed();
        let (floor, coming) = (self.floor, *claimed);
        let mut free = self.root.free()?;
        let lacking = floor.saturating_add(coming).saturating_add(bytes).saturating_sub(free);
        if lacking > 0 && self.root.give_room(lacking).map_err(|e| disk_error(&e))? {
            free = self.root.free()?;
        }
        if free < floor.saturating_add(coming).saturating_add(bytes) {
            return Err(RepositoryError::Full(format!(
                "{free} bytes are free, {floor} are kept free, {coming} are on their way, and {bytes} are to come"
            )));
        }
        *claimed += bytes;
        self.left += bytes;
        Ok(())
    }

    /// These bytes are about to be written; more room is claimed if that is needed.
    pub(super) fn take(&mut self, bytes: u64, at_least: u64) -> Outcome<()> {
        if bytes > self.left {
            self.more(at_least.max(bytes))?;
        }
        self.give_back(bytes);
        Ok(())
    }

    fn give_back(&mut self, bytes: u64) {
        let mut claimed = self.root.claimed();
        *claimed = claimed.saturating_sub(bytes);
        self.left = self.left.saturating_sub(bytes);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.give_back(self.left);
    }
}

impl Store {
    /// Bytes that a file of a part, or a pack for it, may still have: `most` less what the part's other files
    /// take, and the packs that came for any of them.
    pub(super) fn room_in_part(
        &self,
        job: &JobUid,
        generation: Generation,
        (incarnation, member, kind): (Incarnation, MemberIndex, FileKind),
        most: u64,
    ) -> Outcome<u64> {
        let directory = layout::generation(job, generation)?;
        let of_part = |origin: &Origin| {
            (origin.generation, origin.incarnation, origin.member) == (generation, incarnation, member)
        };
        let mut taken = self.uploads.bytes(job, of_part);
        for name in self.root.list(&directory).map_err(|e| disk_error(&e))? {
            match PartName::parse(&name) {
                Some(PartName::File { incarnation: i, member: m, kind: k, .. })
                    if (i, m) == (incarnation, member) && k != kind =>
                {
                    taken = taken.saturating_add(self.length(&directory.join(name))?);
                }
                _ => {}
            }
        }
        Ok(most.saturating_sub(taken))
    }

    /// Claims a generation's share of what its namespace may have, before the first byte of it comes.
    pub(super) fn claim_share(&self, job: &JobUid, origin: Origin, share: &Share, now: Timestamp) -> Outcome<()> {
        self.uploads.claims.claim(&self.uploads, job, origin, share, |jobs| {
            Ok(sum(of_namespace(&self.usage(now)?, &share.namespace, |job| jobs.contains(job))))
        })
    }

    /// Bytes that a file of a job's result may still have.
    pub(super) fn room_for_output(
        &self,
        job: &JobUid,
        member: MemberIndex,
        path: &str,
        limits: &Limits,
    ) -> Outcome<u64> {
        let (directory, own) = (layout::outputs(job)?, layout::output_name(member, path)?);
        let mut names = self.root.list(&directory).map_err(|e| disk_error(&e))?;
        names.retain(|name| *name != own);
        if names.len() >= limits.output_files {
            return Err(RepositoryError::TooLarge(format!("a job keeps at most {} files", limits.output_files)));
        }
        let mut taken: u64 = 0;
        for name in names {
            taken = taken.saturating_add(self.length(&directory.join(name))?);
        }
        match limits.outputs.saturating_sub(taken) {
            0 => Err(RepositoryError::TooLarge(format!("the job's results have {taken} bytes already"))),
            room => Ok(room.min(limits.output)),
        }
    }

    /// Length of a file; 0 if it went meanwhile.
    fn length(&self, below: &Path) -> Outcome<u64> {
        let found = self.root.found(below).map_err(|e| disk_error(&e))?;
        Ok(found.map_or(0, |found| found.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::durable::AllSteps;

    #[test]
    fn c2_two_that_come_at_once_do_not_see_the_same_room() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(&directory.path().join("root"), Box::new(AllSteps)).unwrap();
        let disk = rustix::fs::statvfs(directory.path()).unwrap();
        // others write to this disk as well
        let (most, slack) = (disk.f_bavail * disk.f_frsize, 1 << 30);
        let floor = most.saturating_sub(4 * slack);
        let mut first = root.claim(3 * slack, floor).unwrap();
        assert!(matches!(root.claim(3 * slack, floor).map(drop), Err(RepositoryError::Full(_))));
        // what is written shows on the disk itself
        first.take(2 * slack, 0).unwrap();
        assert_eq!(*root.claimed(), slack);
        first.take(slack, 0).unwrap();
        assert!(matches!(first.take(5 * slack, 0), Err(RepositoryError::Full(_))));
        let second = root.claim(slack, floor).unwrap();
        drop((first, second));
        assert_eq!(*root.claimed(), 0);
    }
}
