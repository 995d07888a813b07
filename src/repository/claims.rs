//! Shares of what a namespace may have, of generations that are on their way: in memory only, claimed before their
//! first byte. Two that begin at once do not see the same room (safety C2). After a restart they are claimed anew.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    store::Outcome,
    uploads::{Origin, Uploads},
};
use crate::{
    driver::repository::RepositoryError,
    names::JobUid,
    store::quota::{REMEDY, Share, roughly},
};

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

/// All of them; locked before the files of the uploads.
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<Vec<Claim>>);

impl Claims {
    fn lock(&self) -> MutexGuard<'_, Vec<Claim>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims a generation's share, once, unless its namespace has so much already or it is promised to others.
    /// `used` says what the jobs of it have that are published, or are these. Nobody else claims meanwhile.
    pub(super) fn claim(
        &self,
        uploads: &Uploads,
        job: &JobUid,
        origin: Origin,
        share: &Share,
        used: impl FnOnce(&HashSet<JobUid>) -> Outcome<u64>,
    ) -> Outcome<()> {
        let mut claims = self.lock();
        if claims.iter().any(|claim| claim.is_of(job, &origin)) {
            return Ok(());
        }
        // a job sends one at a time
        claims.retain(|claim| claim.job != *job);
        let others = || claims.iter().filter(|claim| claim.share.namespace == share.namespace);
        let jobs: HashSet<JobUid> = others().map(|claim| claim.job.clone()).chain([job.clone()]).collect();
        // what has come of theirs is used already
        let left = |claim: &Claim| {
            let arrived = uploads.bytes(&claim.job, |origin| claim.is_of(&claim.job, origin));
            claim.share.bytes.saturating_sub(arrived)
        };
        let coming = others().map(left).fold(0, u64::saturating_add);
        let used = used(&jobs)?;
        if used.saturating_add(coming).saturating_add(share.bytes) > share.limit {
            return Err(RepositoryError::TooLarge(format!(
                "namespace {} may keep {} in the repository and has {}, up to {} more is on its way, and this snapshot may \
                 take {}: {REMEDY}",
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

    /// Forgets those of generations that are published or void.
    pub(super) fn end(&self, job: &JobUid, ends: impl Fn(&Origin) -> bool) {
        self.lock().retain(|claim| claim.job != *job || !ends(&claim.first));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        manifest::FileKind,
        pack::{PackName, PackRef},
    };

    const ORIGIN: Origin = Origin { generation: 1, incarnation: 1, member: 0, kind: FileKind::Disk };

    #[test]
    fn c2_two_generations_that_come_at_once_do_not_see_the_same_room() {
        let uploads = Uploads::default();
        let share = |bytes| Share { namespace: "team".into(), limit: 1000, bytes };
        let claim = |job: &str, generation, bytes, used| {
            let origin = Origin { generation, ..ORIGIN };
            uploads.claims.claim(&uploads, &JobUid(job.into()), origin, &share(bytes), |_| Ok(used))
        };
        claim("a", 1, 600, 300).unwrap();
        claim("a", 1, 600, 900).unwrap();
        let refused = claim("b", 1, 200, 300).unwrap_err();
        assert!(
            matches!(&refused, RepositoryError::TooLarge(why) if why.contains("namespace team") && why.ends_with(REMEDY)),
            "{refused}"
        );
        let other = Share { namespace: "others".into(), ..share(1000) };
        uploads.claims.claim(&uploads, &JobUid("c".into()), ORIGIN, &other, |_| Ok(0)).unwrap();
        // what has arrived is not counted twice
        uploads.arrived(&JobUid("a".into()), ORIGIN, PackRef { name: PackName([1; 32]), stored: 500, index: 10 });
        claim("b", 1, 100, 800).unwrap();
        claim("b", 2, 101, 800).unwrap_err();
        // once it is published or void, only what is there counts
        uploads.end(&JobUid("a".into()), |origin| origin.generation == 1);
        claim("b", 2, 200, 800).unwrap();
    }
}
