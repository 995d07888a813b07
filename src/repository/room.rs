//! How much may still arrive: of one part, of a job's results, and on the disk at all (safety C2, D2).

use std::path::Path;

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
    },
};

/// Most bytes and files, by what they are.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A member's part of a generation; less if its ticket says so.
    pub part: u64,
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

impl Root {
    /// Refuses when the disk has less than `floor` bytes left.
    pub(super) fn check_free(&self, floor: u64) -> Outcome<()> {
        let disk = rustix::fs::statvfs(self.at(Path::new(""))).map_err(|e| disk_error(&e.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < floor {
            return Err(RepositoryError::Full(format!("{free} bytes are free, and {floor} are kept free")));
        }
        Ok(())
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
        match std::fs::metadata(self.root.at(below)) {
            Ok(found) => Ok(found.len()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(disk_error(&error)),
        }
    }
}
