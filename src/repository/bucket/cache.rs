//! Which files of a bucket are on the disk too, and which were used least recently.
//!
//! A file that is not has its name, its length and its time there nevertheless: it is empty, sparse, and cannot be
//! read, which is how it is known.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// What nobody may read is not here.
const ABSENT: u32 = 0o200;
const READABLE: u32 = 0o400;

/// Whether only the name of a file is on the disk.
pub(in crate::repository) fn is_absent(found: &fs::Metadata) -> bool {
    found.is_file() && found.mode() & READABLE == 0
}

/// Makes a file that only has a length and a time.
pub(super) fn make_absent(path: &Path, length: u64, modified: SystemTime) -> io::Result<()> {
    let file = OpenOptions::new().create_new(true).write(true).mode(ABSENT).open(path)?;
    file.set_len(length)?;
    file.set_modified(modified)
}

#[derive(Debug, Default)]
struct Uses {
    clock: u64,
    bytes: u64,
    /// When each was used last, and its length.
    files: HashMap<PathBuf, (u64, u64)>,
    order: BTreeMap<u64, PathBuf>,
}

impl Uses {
    fn remove(&mut self, below: &Path) {
        if let Some((at, length)) = self.files.remove(below) {
            self.order.remove(&at);
            self.bytes -= length;
        }
    }

    fn put(&mut self, below: PathBuf, length: u64) {
        self.remove(&below);
        self.clock += 1;
        self.bytes += length;
        self.order.insert(self.clock, below.clone());
        self.files.insert(below, (self.clock, length));
    }
}

/// Holds the names of files as they are.
pub(in crate::repository) type Names<'a> = MutexGuard<'a, ()>;

/// The files that are here.
#[derive(Debug)]
pub(in crate::repository) struct Cache {
    limit: u64,
    uses: Mutex<Uses>,
    /// Held while a file gets or loses its name, so that none comes back that has just gone.
    names: Mutex<()>,
    /// Held by whoever fetches a file: one is not fetched twice.
    fetching: Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>,
}

impl Cache {
    /// Of at most so many bytes, besides what is being received or sent.
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, uses: Mutex::default(), names: Mutex::default(), fetching: Mutex::default() }
    }

    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Most bytes.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Holds the names as they are, for a moment.
    pub(in crate::repository) fn names(&self) -> Names<'_> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file is here, and is used.
    pub(in crate::repository) fn used(&self, below: &Path, length: u64) {
        self.uses().put(below.to_owned(), length);
    }

    /// What is below a path is gone.
    pub(in crate::repository) fn forget(&self, below: &Path) {
        let mut uses = self.uses();
        let gone: Vec<PathBuf> = uses.files.keys().filter(|path| path.starts_with(below)).cloned().collect();
        for path in &gone {
            uses.remove(path);
        }
    }

    /// The file used longest ago, if there are more bytes than so many.
    fn oldest_above(&self, most: u64) -> Option<PathBuf> {
        let mut uses = self.uses();
        if uses.bytes <= most {
            return None;
        }
        let oldest = uses.order.values().next().cloned()?;
        uses.remove(&oldest);
        Some(oldest)
    }

    /// Bytes of what is here.
    pub(super) fn bytes(&self) -> u64 {
        self.uses().bytes
    }

    /// Takes files from the disk until there are no more than so many bytes. `scratch` gives names for files in the
    /// making.
    pub(super) fn evict(&self, root: &Path, most: u64, scratch: impl Fn() -> PathBuf) -> io::Result<()> {
        while let Some(below) = self.oldest_above(most) {
            self.drop_copy(root, &below, &scratch())?;
        }
        Ok(())
    }

    /// Takes a file from the disk, and leaves its name there.
    pub(in crate::repository) fn drop_copy(&self, root: &Path, below: &Path, scratch: &Path) -> io::Result<()> {
        let path = root.join(below);
        let _names = self.names();
        self.uses().remove(below);
        let found = match fs::metadata(&path) {
            Ok(found) if found.is_file() && !is_absent(&found) => found,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(()),
        };
        make_absent(scratch, found.len(), found.modified()?)?;
        fs::rename(scratch, &path)
    }

    /// Puts a fetched file where its name is. Not done if something else has its name by now, or nothing.
    pub(super) fn fill(&self, path: &Path, absent: &fs::Metadata, fetched: &Path) -> io::Result<bool> {
        let _names = self.names();
        let now = match fs::metadata(path) {
            Ok(now) => now,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if !is_absent(&now) || (now.ino(), now.len()) != (absent.ino(), absent.len()) {
            return Ok(false);
        }
        File::open(fetched)?.set_modified(now.modified()?)?;
        fs::rename(fetched, path)?;
        Ok(true)
    }

    /// Fetches a file, unless somebody does already: then waits until they have.
    pub(super) fn once<T>(&self, below: &Path, fetch: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let own = {
            let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            fetching.entry(below.to_owned()).or_default().clone()
        };
        let done = {
            let _one = own.lock().unwrap_or_else(PoisonError::into_inner);
            fetch()
        };
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        // this one and the map's: nobody waits
        if Arc::strong_count(&own) <= 2 {
            fetching.remove(below);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, cache: &Cache, name: &str, length: usize) {
        fs::write(root.join(name), vec![7; length]).unwrap();
        cache.used(Path::new(name), length as u64);
    }

    fn is_here(root: &Path, name: &str) -> bool {
        !is_absent(&fs::metadata(root.join(name)).unwrap())
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_keeps_its_name_length_and_time() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let cache = Cache::new(250);
        let evict = |most| cache.evict(root, most, || root.join("scratch")).unwrap();
        for name in ["a", "b", "c"] {
            put(root, &cache, name, 100);
        }
        cache.used(Path::new("a"), 100);
        let before = fs::metadata(root.join("b")).unwrap().modified().unwrap();
        evict(cache.limit());
        assert!(is_here(root, "a") && !is_here(root, "b") && is_here(root, "c"));
        let left = fs::metadata(root.join("b")).unwrap();
        assert_eq!((left.len(), left.modified().unwrap(), left.blocks()), (100, before, 0));
        evict(150);
        assert!(is_here(root, "a") && !is_here(root, "c"));
        assert_eq!(cache.bytes(), 100);
    }

    #[test]
    fn what_has_gone_meanwhile_does_not_come_back() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let cache = Cache::new(0);
        put(root, &cache, "a", 100);
        fs::remove_file(root.join("a")).unwrap();
        cache.evict(root, 0, || root.join("scratch")).unwrap();
        assert!(!root.join("a").exists());
        make_absent(&root.join("a"), 100, SystemTime::now()).unwrap();
        let absent = fs::metadata(root.join("a")).unwrap();
        fs::remove_file(root.join("a")).unwrap();
        fs::write(root.join("fetched"), [1; 100]).unwrap();
        assert!(!cache.fill(&root.join("a"), &absent, &root.join("fetched")).unwrap());
        assert!(!root.join("a").exists());
    }
}
