//! What has come for files that are not published yet, and what was promised for them: in memory only.
//! After a restart the promise lasts as long as a pack is young (`store::sweep`), and what a part may still
//! have begins anew.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::claims::Claims;
use crate::{
    driver::repository::RepositoryError,
    names::{Generation, Incarnation, JobUid, MemberIndex},
    store::{
        manifest::FileKind,
        pack::{PackName, PackRef},
    },
};

/// Most packs of a file that are received at the same time: what is staged is bounded like the rest.
const MOST_ARRIVING: usize = 16;

/// The file of a part that something comes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Its generation.
    pub generation: Generation,
    /// The incarnation it was captured in.
    pub incarnation: Incarnation,
    /// The member.
    pub member: MemberIndex,
    /// What it is.
    pub kind: FileKind,
}

#[derive(Debug, Default)]
struct Upload {
    /// The packs that it may name; the bytes of those that came with it.
    packs: HashMap<PackName, u64>,
    arriving: usize,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    files: Mutex<HashMap<JobUid, HashMap<Origin, Upload>>>,
    pub(super) claims: Claims,
}

/// A pack on its way; its end is its removal.
#[derive(Debug)]
pub(super) struct Arriving<'a> {
    uploads: &'a Uploads,
    job: JobUid,
    origin: Origin,
}

impl Uploads {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobUid, HashMap<Origin, Upload>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to receive a pack.
    pub(super) fn begin(&self, job: &JobUid, origin: Origin) -> Result<Arriving<'_>, RepositoryError> {
        let mut all = self.lock();
        let upload = all.entry(job.clone()).or_default().entry(origin).or_default();
        if upload.arriving >= MOST_ARRIVING {
            return Err(RepositoryError::Unreachable(format!("{MOST_ARRIVING} packs of this file are on their way")));
        }
        upload.arriving += 1;
        Ok(Arriving { uploads: self, job: job.clone(), origin })
    }

    /// These packs stay until the file is published or void.
    pub(super) fn promise(&self, job: &JobUid, origin: Origin, packs: impl IntoIterator<Item = PackName>) {
        let mut all = self.lock();
        let upload = all.entry(job.clone()).or_default().entry(origin).or_default();
        for pack in packs {
            upload.packs.entry(pack).or_default();
        }
    }

    /// A pack came that was not there.
    pub(super) fn arrived(&self, job: &JobUid, origin: Origin, pack: PackRef) {
        let mut all = self.lock();
        let upload = all.entry(job.clone()).or_default().entry(origin).or_default();
        upload.packs.insert(pack.name, pack.stored.into());
    }

    /// Bytes of the packs that came with these files.
    pub(super) fn bytes(&self, job: &JobUid, of: impl Fn(&Origin) -> bool) -> u64 {
        let all = self.lock();
        let uploads = all.get(job).into_iter().flatten().filter(|(origin, _)| of(origin));
        uploads.flat_map(|(_, upload)| upload.packs.values()).fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// The packs that must stay for what is being sent.
    pub(super) fn promised(&self, job: &JobUid) -> HashSet<PackName> {
        let all = self.lock();
        all.get(job).into_iter().flatten().flat_map(|(_, upload)| upload.packs.keys()).copied().collect()
    }

    /// Forgets files that are published or void; a recipe names their packs now, or nothing will.
    pub(super) fn end(&self, job: &JobUid, ends: impl Fn(&Origin) -> bool) {
        self.claims.end(job, &ends);
        let mut all = self.lock();
        if let Some(uploads) = all.get_mut(job) {
            uploads.retain(|origin, _| !ends(origin));
            if uploads.is_empty() {
                all.remove(job);
            }
        }
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        let mut all = self.uploads.lock();
        if let Some(upload) = all.get_mut(&self.job).and_then(|uploads| uploads.get_mut(&self.origin)) {
            upload.arriving = upload.arriving.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin { generation: 1, incarnation: 1, member: 0, kind: FileKind::Disk };

    #[test]
    fn d2_so_many_packs_are_received_at_a_time() {
        let (uploads, job) = (Uploads::default(), JobUid("a".into()));
        let mut some: Vec<_> = (0..MOST_ARRIVING).map(|_| uploads.begin(&job, ORIGIN).unwrap()).collect();
        assert!(uploads.begin(&job, ORIGIN).is_err());
        assert!(uploads.begin(&job, Origin { member: 1, ..ORIGIN }).is_ok());
        some.pop();
        assert!(uploads.begin(&job, ORIGIN).is_ok());
    }

    #[test]
    fn what_came_is_counted_once_and_until_its_end() {
        let (uploads, job) = (Uploads::default(), JobUid("a".into()));
        let pack = |n| PackRef { name: PackName([n; 32]), stored: 100, index: 10 };
        uploads.promise(&job, ORIGIN, [pack(1).name, pack(2).name]);
        uploads.arrived(&job, ORIGIN, pack(3));
        uploads.arrived(&job, ORIGIN, pack(3));
        uploads.promise(&job, ORIGIN, [pack(3).name]);
        assert_eq!(uploads.bytes(&job, |origin| *origin == ORIGIN), 100);
        assert_eq!(uploads.promised(&job).len(), 3);
        uploads.end(&job, |origin| origin.generation == 2);
        assert_eq!(uploads.promised(&job).len(), 3);
        uploads.end(&job, |origin| origin.generation == 1);
        assert!(uploads.promised(&job).is_empty() && uploads.lock().is_empty());
    }
}
