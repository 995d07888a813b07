//! The bucket in which a store keeps everything, if it has one: then the directory is a cache of it, with the same
//! names. A change counts once the bucket has it.
//!
//! Blocking. Which requests may be made at all is decided by the owner (`owner`); what is on the disk too, by use
//! (`cache`). Nothing of the layout is known here but what never changes and what decides (`store::layout`).

mod address;
mod ahead;
mod cache;
mod error;
mod mirror;
mod moment;
mod note;
mod objects;
mod owner;
mod remote;
#[cfg(test)]
pub(crate) mod testing;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::address::Address;
use self::{
    cache::Cache,
    error::error,
    mirror::Mirror,
    owner::{Holder, Owner, Seen},
};
pub(super) use self::{cache::is_absent, error::is_of_bucket, moment::Moment, objects::Objects, remote::Remote};
use crate::store::layout::{BUCKET, IMAGES, JOBS, MANIFEST, RECORD, STAGING, decides};

/// So many files are removed at a time: as many as a request to the store has.
const REMOVED: usize = 1000;
/// A file is fetched again so often when it goes from the disk before it is opened.
const TRIES: u32 = 4;
/// A file of more bytes is passed on as it comes, to whoever wants it.
const PASSED_ON: u64 = 64 << 20;

/// What a directory says of itself that is the cache of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    bucket: String,
    /// As it was when it was taken last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seen: Option<Seen>,
}

impl Marker {
    fn read(root: &Path) -> io::Result<Option<Self>> {
        match fs::read(root.join(BUCKET)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&self, root: &Path) -> io::Result<()> {
        let staged = root.join(STAGING).join(BUCKET);
        fs::write(&staged, serde_json::to_vec(self)?)?;
        File::open(&staged)?.sync_all()?;
        fs::rename(&staged, root.join(BUCKET))?;
        File::open(root)?.sync_all()
    }
}

/// Refuses a directory that is only a cache.
pub(super) fn is_no_cache(root: &Path) -> io::Result<()> {
    match Marker::read(root)? {
        None => Ok(()),
        Some(Marker { bucket, .. }) => {
            Err(error(format!("{} is a cache of the bucket {bucket}: say --bucket", root.display())))
        }
    }
}

/// How a bucket is used.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Most bytes of it on the disk, besides what is being received or sent.
    pub cache: u64,
    /// How long the last requests of another repository may last.
    pub handover: Duration,
}

impl Use {
    /// With a cache of so many bytes.
    pub fn with_cache(cache: u64) -> Self {
        Self { cache, handover: address::HANDOVER }
    }
}

/// The bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    objects: Arc<Objects>,
    owner: Option<Owner>,
    /// Held by all that change it, and alone by whoever gives it up.
    under_way: RwLock<()>,
    /// What of it is here.
    pub(super) cache: Cache,
}

impl Bucket {
    /// Takes it over, and makes a directory show what is in it, which nobody else uses.
    pub(super) fn take(objects: Objects, root: &Path, how: Use) -> io::Result<Self> {
        match Marker::read(root)? {
            Some(marker) if marker.bucket == objects.name() => {
                marker.seen.map_or(Ok(()), |seen| seen.check(&objects, root))?;
            }
            Some(marker) => {
                let (is, wanted) = (marker.bucket, objects.name());
                return Err(error(format!("{} is a cache of the bucket {is}, not of {wanted}", root.display())));
            }
            None if has_data(root)? => {
                return Err(error(format!(
                    "{} has data that may not be in the bucket: copy it there first, or take an empty directory",
                    root.display()
                )));
            }
            None => {
                Marker { bucket: objects.name().to_owned(), seen: None }.write(root)?;
            }
        }
        let objects = Arc::new(objects);
        let owner = Owner::take(&objects, Holder::this(), how.handover)?;
        Marker { bucket: objects.name().to_owned(), seen: Some(owner.seen()) }.write(root)?;
        let bucket = Self { objects, owner: Some(owner), under_way: RwLock::default(), cache: Cache::new(how.cache) };
        bucket.show_in(root)?;
        Ok(bucket)
    }

    /// Makes an empty directory show what is in it, whoever it belongs to.
    pub(super) fn look(objects: Objects, root: &Path) -> io::Result<Self> {
        for folder in [STAGING, IMAGES, JOBS] {
            fs::create_dir_all(root.join(folder))?;
        }
        let bucket =
            Self { objects: Arc::new(objects), owner: None, under_way: RwLock::default(), cache: Cache::new(0) };
        bucket.show_in(root)?;
        Ok(bucket)
    }

    fn show_in(&self, root: &Path) -> io::Result<()> {
        let (objects, owner, cache) = (&*self.objects, self.owner.as_ref(), &self.cache);
        let scratch = root.join(STAGING).join("shown");
        Mirror { objects, owner, cache, root, scratch: &scratch }.run()?;
        self.make_room(root, 0, || scratch.clone())
    }

    fn owner(&self) -> io::Result<&Owner> {
        self.owner.as_ref().ok_or_else(|| error("the bucket is only looked at"))
    }

    /// An error unless it still belongs to this process, as far as was certain a moment ago.
    pub(super) fn confirm(&self) -> io::Result<()> {
        self.owner()?.confirm()
    }

    /// Something is about to be changed in it.
    fn begin(&self) -> io::Result<RwLockReadGuard<'_, ()>> {
        let begun = self.under_way.read().unwrap_or_else(PoisonError::into_inner);
        self.confirm()?;
        Ok(begun)
    }

    /// Nothing more is written to it.
    pub(super) fn resign(&self) -> io::Result<()> {
        let _alone = self.under_way.write().unwrap_or_else(PoisonError::into_inner);
        self.owner()?.resign()
    }

    /// Sends a file.
    pub(super) fn send(&self, from: &Path, below: &Path) -> io::Result<()> {
        let _begun = self.begin()?;
        self.objects.upload(from, below)
    }

    /// Whether it has a file of this length.
    pub(super) fn has(&self, below: &Path, length: u64) -> io::Result<bool> {
        Ok(self.objects.length(below)? == Some(length))
    }

    /// Writes a note.
    pub(super) fn write(&self, below: &Path, content: &[u8]) -> io::Result<()> {
        let _begun = self.begin()?;
        if decides(below) {
            return self.owner()?.commit(below, content);
        }
        self.objects.put(below, content.to_vec())
    }

    /// Copies a file within it, unless it is too large for that.
    pub(super) fn copy(&self, below: &Path, length: u64, to: &Path) -> io::Result<bool> {
        let _begun = self.begin()?;
        self.objects.copy(below, length, to)
    }

    /// What is below a path, in the order in which it goes: a generation is not complete any more before anything
    /// else of it is gone, and of a job goes last what says that it was removed.
    pub(super) fn doomed(&self, below: &Path) -> io::Result<[Vec<PathBuf>; 3]> {
        let mut doomed = [vec![], vec![], vec![]];
        for found in self.objects.list(below)? {
            let turn = match found.below.file_name().and_then(|name| name.to_str()) {
                Some(MANIFEST) => 0,
                Some(RECORD) => 2,
                _ => 1,
            };
            doomed[turn].push(found.below);
        }
        Ok(doomed)
    }

    /// Removes files, for as long as the bucket is this process's. Absence is no error.
    pub(super) fn remove(&self, all: &[PathBuf]) -> io::Result<()> {
        for some in all.chunks(REMOVED) {
            let _begun = self.begin()?;
            self.objects.delete(some)?;
            let owner = self.owner()?;
            for below in some {
                owner.forget(below);
            }
        }
        Ok(())
    }

    /// A file of this length, read where it is.
    pub(super) fn open(&self, below: &Path, length: u64) -> Remote {
        Remote::new(self.objects.clone(), below.to_owned(), length)
    }

    /// Whether a file of this length is better passed on than kept.
    pub(super) fn passes_on(&self, length: u64) -> bool {
        length > PASSED_ON.min(self.cache.limit())
    }

    /// Opens a file on the disk, which is fetched first if it is not there. `scratch` gives names for files in the
    /// making.
    pub(super) fn fetch(&self, root: &Path, below: &Path, scratch: impl Fn() -> PathBuf) -> io::Result<File> {
        let path = root.join(below);
        for _ in 0..TRIES {
            let found = fs::metadata(&path)?;
            if is_absent(&found) {
                self.cache.once(below, || self.fetch_once(root, below, &scratch))?;
            }
            match File::open(&path) {
                // it may have gone from the disk meanwhile
                Ok(file) if !is_absent(&file.metadata()?) => {
                    self.cache.used(below, found.len());
                    return Ok(file);
                }
                Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
                _ => {}
            }
        }
        Err(error(format!(
            "{} cannot be opened: let the repository's user read it, and give it more --cache (repository.s3.cache)",
            path.display()
        )))
    }

    fn fetch_once(&self, root: &Path, below: &Path, scratch: impl Fn() -> PathBuf) -> io::Result<()> {
        let path = root.join(below);
        let found = fs::metadata(&path)?;
        if !is_absent(&found) {
            return Ok(());
        }
        self.make_room(root, found.len(), &scratch)?;
        let staged = scratch();
        let fetched = File::create_new(&staged)
            .and_then(|mut file| self.objects.download(below, found.len(), &mut file))
            .and_then(|()| self.cache.fill(&path, &found, &staged));
        if !matches!(fetched, Ok(true)) {
            // it is cleared at the next start, if not now
            let _ = fs::remove_file(&staged);
        }
        fetched.map(drop)
    }

    /// Takes files from the disk until they are within the limit, with so many bytes to come.
    pub(super) fn make_room(&self, root: &Path, coming: u64, scratch: impl Fn() -> PathBuf) -> io::Result<()> {
        self.cache.evict(root, self.cache.limit().saturating_sub(coming), scratch)
    }

    /// Takes so many bytes of files from the disk, or all.
    pub(super) fn give_room(&self, root: &Path, bytes: u64, scratch: impl Fn() -> PathBuf) -> io::Result<()> {
        self.cache.evict(root, self.cache.bytes().saturating_sub(bytes), scratch)
    }
}

/// Whether a directory has anything that could be lost.
fn has_data(root: &Path) -> io::Result<bool> {
    for folder in [IMAGES, JOBS] {
        if fs::read_dir(root.join(folder))?.next().is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        thread::sleep,
    };

    use object_store::memory::InMemory;

    use super::{
        testing::{LITTLE, Mood, Moody, objects},
        *,
    };

    fn directory() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in [STAGING, IMAGES, JOBS] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        root
    }

    #[test]
    fn b1_a_long_removal_ends_soon_after_another_repository_has_the_bucket() {
        let (memory, removals) = (Arc::<InMemory>::default(), Arc::<AtomicU32>::default());
        let (others, seen) = (memory.clone(), removals.clone());
        let moody = Moody::new(&memory, move |_| {
            // 0 while nothing is removed yet
            if seen.load(Ordering::SeqCst) > 0 && seen.fetch_add(1, Ordering::SeqCst) == 1 {
                Owner::take(&Arc::new(objects(others.clone())), &Holder::new(), Duration::ZERO).unwrap();
                sleep(owner::SEEN);
            }
            Mood::Does
        });
        let root = directory();
        let bucket = Bucket::take(objects(moody), root.path(), LITTLE).unwrap();
        let all: Vec<PathBuf> = (0..3 * REMOVED).map(|n| Path::new("jobs/a").join(n.to_string())).collect();
        let calm = objects(memory);
        let last = all.last().unwrap();
        calm.put(last, b"of the other one".to_vec()).unwrap();
        removals.store(1, Ordering::SeqCst);
        let refused = bucket.remove(&all).unwrap_err();
        assert!(
            refused.to_string().contains("s3://test/a/folder") && refused.to_string().contains("prefix"),
            "{refused}"
        );
        assert!(calm.get(last).unwrap().is_some());
        assert_eq!(removals.load(Ordering::SeqCst), 2, "one request");
    }

    #[test]
    fn a_file_that_goes_again_and_again_is_not_fetched_for_ever() {
        let (root, memory) = (directory(), Arc::<InMemory>::default());
        let bucket = Bucket::take(objects(memory.clone()), root.path(), LITTLE).unwrap();
        let below = Path::new("images/a");
        objects(memory).put(below, vec![1; 10]).unwrap();
        let absent = |at: &Path| cache::make_absent(at, 10, std::time::SystemTime::now()).unwrap();
        absent(&root.path().join(below));
        let scratch = || {
            let another = root.path().join("another");
            absent(&another);
            fs::rename(&another, root.path().join(below)).unwrap();
            root.path().join(STAGING).join("scratch")
        };
        let refused = bucket.fetch(root.path(), below, scratch).unwrap_err();
        assert!(refused.to_string().contains("images/a cannot be opened: "), "{refused}");
        bucket.fetch(root.path(), below, || root.path().join(STAGING).join("scratch")).unwrap();
    }
}
