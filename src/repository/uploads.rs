//! What has come for files that are not published yet, and what was promised for them: in memory only.
//! After a restart the promise lasts as long as a pack is young (`store::sweep`), and what a part may still
//! have begins anew.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::store::Outcome;
use crate::{
    driver::repository::RepositoryError,
    names::{Generation, Incarnation, JobUid, MemberIndex},
    store::{
        manifest::FileKind,
        pack::{PackName, PackRef},
        quota::{Share, roughly},
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

/// A generation's share of what its namespace may have.
#[derive(Debug)]
struct Claim {
    job: JobUid,
    /// The file with which it began.
    first: Origin,
    share: Share,
}

impl Claim {
    fn is_of(&self, job: &JobUid, origin: &Origin) -> bool {
        let of = |origin: &Origin| (origin.generation, origin.incarnation);
        self.job == *job && of(&self.first) == of(origin)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    files: Mutex<HashMap<JobUid, HashMap<Origin, Upload>>>,
    /// Locked before the files.
    claims: Mutex<Vec<Claim>>,
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

    /// Claims a generation's share, once, unless its namespace has so much already or it is promised to others.
    /// `used` says what the jobs of it have that are published, or are these. Nobody else claims meanwhile.
    pub(super) fn claim(
        &self,
        job: &JobUid,
        origin: Origin,
        share: &Share,
        used: impl FnOnce(&HashSet<JobUid>) -> Outcome<u64>,
    ) -> Outcome<()> {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if claims.iter().any(|claim| claim.is_of(job, &origin)) {
            return Ok(());
        }
        // a job sends one at a time
        claims.retain(|claim| claim.job != *job);
        let others = || claims.iter().filter(|claim| claim.share.namespace == share.namespace);
        let jobs: HashSet<JobUid> = others().map(|claim| claim.job.clone()).chain([job.clone()]).collect();
        // what has come of theirs is used already
        let left = |claim: &Claim| {
            let arrived = self.bytes(&claim.job, |origin| claim.is_of(&claim.job, origin));
            claim.share.bytes.saturating_sub(arrived)
        };
        let coming = others().map(left).fold(0, u64::saturating_add);
        let used = used(&jobs)?;
        if used.saturating_add(coming).saturating_add(share.bytes) > share.limit {
            return Err(RepositoryError::TooLarge(format!(
                "namespace {} may keep {} in the repository and has {}, up to {} more is on its way, and this snapshot may \
                 take {}",
                share.namespace,
                roughly(share.limit),
                roughly(used),
                roughly(coming),
                roughly(share.bytes)
            )));
        }
        claims.push(Claim { job: job.clone(), first: origin, share: share.clone() });
        Ok(())
    }

    /// Forgets files that are published or void; a recipe names their packs now, or nothing will.
    pub(super) fn end(&self, job: &JobUid, ends: impl Fn(&Origin) -> bool) {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.retain(|claim| claim.job != *job || !ends(&claim.first));
        drop(claims);
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
    fn c2_two_generations_that_come_at_once_do_not_see_the_same_room() {
        let uploads = Uploads::default();
        let share = |bytes| Share { namespace: "team".into(), limit: 1000, bytes };
        let claim = |job: &str, generation, bytes, used| {
            let origin = Origin { generation, ..ORIGIN };
            uploads.claim(&JobUid(job.into()), origin, &share(bytes), |_| Ok(used))
        };
        claim("a", 1, 600, 300).unwrap();
        claim("a", 1, 600, 900).unwrap();
        let refused = claim("b", 1, 200, 300).unwrap_err();
        assert!(matches!(&refused, RepositoryError::TooLarge(why) if why.contains("namespace team")), "{refused}");
        let other = Share { namespace: "others".into(), ..share(1000) };
        uploads.claim(&JobUid("c".into()), ORIGIN, &other, |_| Ok(0)).unwrap();
        // what has arrived is not counted twice
        uploads.arrived(&JobUid("a".into()), ORIGIN, PackRef { name: PackName([1; 32]), stored: 500, index: 10 });
        claim("b", 1, 100, 800).unwrap();
        claim("b", 2, 101, 800).unwrap_err();
        // once it is published or void, only what is there counts
        uploads.end(&JobUid("a".into()), |origin| origin.generation == 1);
        claim("b", 2, 200, 800).unwrap();
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
