//! The indices of blocks that are open, and the way to one: opened, compared with the packs that are there,
//! and made again if it cannot be read.

use std::{
    collections::HashSet,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    blocks::{BlockIndex, Done, Entry},
    durable::disk_error,
    packs::read_index,
    store::{Outcome, Store},
};
use crate::{
    driver::repository::RepositoryError,
    names::JobUid,
    store::{layout, pack::PackName},
};

/// Indices that stay open.
const OPEN: usize = 8;

/// The open ones, the one used last in front.
#[derive(Default)]
pub(super) struct Indices(Mutex<Vec<(JobUid, Arc<BlockIndex>)>>);

impl Indices {
    fn lock(&self) -> MutexGuard<'_, Vec<(JobUid, Arc<BlockIndex>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, job: &JobUid) -> Option<Arc<BlockIndex>> {
        let mut open = self.lock();
        let at = open.iter().position(|(its, _)| its == job)?;
        let found = open.remove(at);
        open.insert(0, found.clone());
        Some(found.1)
    }

    fn keep(&self, job: &JobUid, index: Arc<BlockIndex>) {
        let mut open = self.lock();
        open.insert(0, (job.clone(), index));
        // closed before anybody can look for it again: a file is not opened twice
        open.truncate(OPEN);
    }

    /// Closes one.
    pub(super) fn close(&self, job: &JobUid) {
        self.lock().retain(|(its, _)| its != job);
    }
}

/// What becomes of an index that failed.
enum Failure {
    /// The disk did: it may be in order.
    Disk(io::Error),
    /// It cannot be read.
    Broken(String),
}

/// A database that was damaged may do anything; nothing of it is used after it did.
fn guarded<T>(work: impl FnOnce() -> Done<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(redb::Error::Io(error))) if disk_is_to_blame(&error) => Err(Failure::Disk(error)),
        Ok(Err(error)) => Err(Failure::Broken(error.to_string())),
        Err(_) => Err(Failure::Broken("it panicked".into())),
    }
}

fn disk_is_to_blame(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::StorageFull | Kind::QuotaExceeded | Kind::PermissionDenied | Kind::ReadOnlyFilesystem)
}

impl Store {
    /// Asks or changes the index of a job. Its lock is held.
    pub(super) fn with_index<T>(&self, job: &JobUid, work: impl Fn(&BlockIndex) -> Done<T>) -> Outcome<T> {
        let mut again = true;
        loop {
            let done = self.index(job).and_then(|index| guarded(|| work(&index)));
            let failure = match done {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            self.indices.close(job);
            match failure {
                Failure::Disk(error) => return Err(disk_error(&error)),
                Failure::Broken(why) if again => {
                    again = false;
                    tracing::warn!(%job, why, "an index of blocks cannot be read and is made again");
                    self.root.discard(&layout::blocks(job)?).map_err(|e| disk_error(&e))?;
                }
                Failure::Broken(why) => {
                    return Err(RepositoryError::Unreachable(format!("its index of blocks: {why}")));
                }
            }
        }
    }

    fn index(&self, job: &JobUid) -> Result<Arc<BlockIndex>, Failure> {
        if let Some(index) = self.indices.get(job) {
            return Ok(index);
        }
        let (path, packs) = match (layout::blocks(job), layout::packs(job)) {
            (Ok(path), Ok(packs)) => (path, packs),
            (Err(error), _) | (_, Err(error)) => return Err(Failure::Broken(error.to_string())),
        };
        self.root.directory(path.parent().unwrap_or(&path)).map_err(Failure::Disk)?;
        let names = self.root.list(&packs).map_err(Failure::Disk)?;
        let there: HashSet<PackName> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let index = guarded(|| {
            let index = BlockIndex::open(&self.root.at(&path))?;
            reconcile(&index, &there, &self.root.at(&packs))?;
            Ok(index)
        })?;
        let index = Arc::new(index);
        self.indices.keep(job, index.clone());
        Ok(index)
    }
}

/// Makes an index say what is there.
fn reconcile(index: &BlockIndex, there: &HashSet<PackName>, directory: &Path) -> Done<()> {
    let known = index.packs()?;
    for gone in known.difference(there) {
        index.remove(*gone, &[])?;
    }
    for new in there.difference(&known) {
        match read_index(&directory.join(new.to_string()), *new) {
            Ok((pack, read)) => index.add(&Entry::of(pack, &read, None), read.blocks())?,
            // found out again by whoever needs it
            Err(error) => tracing::error!(pack = %new, %error, "a pack cannot be read"),
        }
    }
    Ok(())
}
