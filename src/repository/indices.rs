//! The indices of blocks that are open, and the way to one: opened, compared with the packs that are there,
//! and made again if it cannot be read.
//!
//! Making one again reads something of every pack. It happens before the job's lock is taken, which a fence
//! must get at once; until it is done only those wait who need the index.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    blocks::{BlockIndex, Done, Entry},
    bucket::is_of_bucket,
    durable::{Root, disk_error},
    packs::{Trouble, read_index},
    store::{Outcome, Store, guard, refused},
};
use crate::{
    driver::repository::RepositoryError,
    names::JobUid,
    store::{
        layout,
        pack::{Index, PackName, PackRef},
    },
};

/// Indices that stay open.
const OPEN: usize = 8;
/// So many packs are read at the same time to make one again.
const AT_ONCE: usize = 16;
/// An index that is found closed or broken is opened again so often.
const TRIES: u32 = 4;

#[derive(Default)]
struct Open {
    /// The one used last in front.
    indices: Vec<(JobUid, Arc<BlockIndex>)>,
    /// Held by whoever opens one: a file is not opened twice.
    opening: HashMap<JobUid, Arc<Mutex<()>>>,
}

/// The open ones.
#[derive(Default)]
pub(super) struct Indices(Mutex<Open>);

impl Indices {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opening(&self, job: &JobUid) -> Arc<Mutex<()>> {
        self.lock().opening.entry(job.clone()).or_default().clone()
    }

    fn get(&self, job: &JobUid) -> Option<Arc<BlockIndex>> {
        let mut open = self.lock();
        let at = open.indices.iter().position(|(its, _)| its == job)?;
        let found = open.indices.remove(at);
        open.indices.insert(0, found.clone());
        Some(found.1)
    }

    fn has(&self, job: &JobUid, index: &Arc<BlockIndex>) -> bool {
        self.lock().indices.iter().any(|(its, open)| its == job && Arc::ptr_eq(open, index))
    }

    fn keep(&self, job: &JobUid, index: Arc<BlockIndex>) {
        let mut open = self.lock();
        open.indices.insert(0, (job.clone(), index));
        let mut surplus = open.indices.len().saturating_sub(OPEN);
        // from behind; one that is in use stays, or its file would be opened a second time
        for at in (0..open.indices.len()).rev() {
            if surplus > 0 && open.indices.get(at).is_some_and(|(_, index)| Arc::strong_count(index) == 1) {
                open.indices.remove(at);
                surplus -= 1;
            }
        }
    }

    /// Closes one.
    pub(super) fn close(&self, job: &JobUid) {
        self.lock().indices.retain(|(its, _)| its != job);
    }
}

/// What becomes of an index that failed.
enum Failure {
    /// The disk did, or somebody is about to close it: it may be in order.
    Passing(RepositoryError),
    /// It cannot be read.
    Broken(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Passing(disk_error(&error))
    }
}

/// A database that was damaged may do anything; nothing of it is used after it did.
fn guarded<T>(work: impl FnOnce() -> Done<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(redb::Error::Io(error))) if disk_is_to_blame(&error) => Err(error.into()),
        Ok(Err(redb::Error::DatabaseAlreadyOpen)) => {
            Err(Failure::Passing(RepositoryError::Unreachable("an index of blocks is being closed".into())))
        }
        Ok(Err(error)) => Err(Failure::Broken(error.to_string())),
        Err(_) => Err(Failure::Broken("it panicked".into())),
    }
}

fn disk_is_to_blame(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::StorageFull | Kind::QuotaExceeded | Kind::PermissionDenied | Kind::ReadOnlyFilesystem)
}

/// The index of a job whose lock is held.
pub(super) struct Held<'a> {
    store: &'a Store,
    job: &'a JobUid,
    index: Arc<BlockIndex>,
    broken: Cell<bool>,
}

impl Held<'_> {
    /// Asks or changes it. One that cannot be read is thrown away.
    pub(super) fn ask<T>(&self, work: impl FnOnce(&BlockIndex) -> Done<T>) -> Outcome<T> {
        let failure = match guarded(|| work(&self.index)) {
            Ok(done) => return Ok(done),
            Err(failure) => failure,
        };
        match failure {
            Failure::Passing(error) => {
                self.store.indices.close(self.job);
                Err(error)
            }
            Failure::Broken(why) => {
                self.store.forget_index(self.job, &why)?;
                self.broken.set(true);
                Err(RepositoryError::Unreachable(format!("its index of blocks: {why}")))
            }
        }
    }
}

impl Store {
    /// Does something under the lock of a job with its index. It is done again, from its beginning, if the index
    /// turns out to be broken.
    pub(super) fn with_index<T>(&self, job: &JobUid, mut work: impl FnMut(&Held<'_>) -> Outcome<T>) -> Outcome<T> {
        let mut tries = 0;
        loop {
            tries += 1;
            let index = self.opened(job)?;
            let lock = self.lock(job);
            let _held = guard(&lock);
            if self.indices.has(job, &index) {
                let held = Held { store: self, job, index, broken: Cell::new(false) };
                let done = work(&held);
                if done.is_ok() || !held.broken.get() || tries >= TRIES {
                    return done;
                }
            } else if tries >= TRIES {
                return Err(RepositoryError::Unreachable("its index of blocks is closed again and again".into()));
            }
        }
    }

    /// Throws the index of a job away: it is made again by whoever needs it next.
    pub(super) fn forget_index(&self, job: &JobUid, why: &str) -> Outcome<()> {
        tracing::warn!(%job, why, "an index of blocks is made again");
        self.indices.close(job);
        self.root.discard(&layout::blocks(job)?).map_err(|e| disk_error(&e))
    }

    /// Its index, open and as its packs are. The job's lock is not held: nobody changes packs without the index.
    fn opened(&self, job: &JobUid) -> Outcome<Arc<BlockIndex>> {
        let opening = self.indices.opening(job);
        let _one = guard(&opening);
        if let Some(index) = self.indices.get(job) {
            return Ok(index);
        }
        if self.record(job)?.removed.is_some() {
            return Err(removed());
        }
        let mut again = true;
        let index = loop {
            match self.open_index(job) {
                Ok(index) => break Arc::new(index),
                Err(Failure::Passing(error)) => return Err(error),
                Err(Failure::Broken(why)) if again => {
                    again = false;
                    self.forget_index(job, &why)?;
                }
                Err(Failure::Broken(why)) => {
                    return Err(RepositoryError::Unreachable(format!("its index of blocks: {why}")));
                }
            }
        };
        let lock = self.lock(job);
        let _held = guard(&lock);
        if self.record(job)?.removed.is_some() {
            drop(index);
            self.root.discard(&layout::blocks(job)?).map_err(|e| disk_error(&e))?;
            return Err(removed());
        }
        self.indices.keep(job, index.clone());
        Ok(index)
    }

    fn open_index(&self, job: &JobUid) -> Result<BlockIndex, Failure> {
        let (path, packs) = match (layout::blocks(job), layout::packs(job)) {
            (Ok(path), Ok(packs)) => (path, packs),
            (Err(error), _) | (_, Err(error)) => return Err(Failure::Passing(error.into())),
        };
        self.root.directory(path.parent().unwrap_or(&path))?;
        let names = self.root.list(&packs)?;
        let there: HashSet<PackName> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let index = guarded(|| BlockIndex::open(&self.root.at(&path)))?;
        reconcile(&index, &there, &packs, &self.root)?;
        Ok(index)
    }
}

fn removed() -> RepositoryError {
    refused("the job was removed")
}

/// Makes an index say what is there.
fn reconcile(index: &BlockIndex, there: &HashSet<PackName>, packs: &Path, root: &Root) -> Result<(), Failure> {
    let known = guarded(|| index.packs())?;
    for gone in known.difference(there) {
        guarded(|| index.remove(*gone, &[]))?;
    }
    let new: Vec<PackName> = there.difference(&known).copied().collect();
    for some in new.chunks(AT_ONCE) {
        // a bucket answers many as soon as one
        let read: Vec<_> = std::thread::scope(|scope| {
            let reading: Vec<_> = some.iter().map(|name| scope.spawn(|| index_of(root, packs, *name))).collect();
            reading.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        for (name, read) in some.iter().zip(read) {
            root.announce("note the blocks of a pack")?;
            match read.unwrap_or_else(|_| Err(io::Error::other("reading it has failed").into())) {
                Ok((pack, read)) => guarded(|| index.add(&Entry::of(pack, &read, None), read.blocks()))?,
                // nothing is known of it
                Err(Trouble::Disk(error)) if is_of_bucket(&error) && error.kind() != io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                // found out again by whoever needs it
                Err(error) => tracing::error!(pack = %name, %error, "a pack cannot be read"),
            }
        }
    }
    Ok(())
}

fn index_of(root: &Root, packs: &Path, name: PackName) -> Result<(PackRef, Index), Trouble> {
    read_index(&mut root.open(&packs.join(name.to_string()))?, name)
}
