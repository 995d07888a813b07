//! The files of a store, to be read: on a directory, or in a bucket of which the directory is a cache. Blocking;
//! changes nothing but what is in the cache.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::bucket::{self, Bucket, Objects, Remote};
use crate::store::layout::STAGING;

/// The files.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    names: AtomicU64,
    pub(super) bucket: Option<Bucket>,
}

/// A file of a store, wherever its bytes are.
#[derive(Debug)]
pub(super) enum Opened {
    /// On the disk.
    Here(File),
    /// In the bucket.
    There(Remote),
}

impl Opened {
    /// Its length.
    pub(super) fn length(&self) -> io::Result<u64> {
        match self {
            Self::Here(file) => Ok(file.metadata()?.len()),
            Self::There(remote) => Ok(remote.length()),
        }
    }
}

impl Read for Opened {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Here(file) => file.read(to),
            Self::There(remote) => remote.read(to),
        }
    }
}

impl Seek for Opened {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self {
            Self::Here(file) => file.seek(to),
            Self::There(remote) => remote.seek(to),
        }
    }
}

/// Which file it was, and that nothing was written to it since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileIdentity {
    /// Device and number; of a file of a bucket, which comes to the disk and goes, none.
    place: Option<(u64, u64)>,
    length: u64,
    changed: (i64, i64),
}

impl Files {
    /// Those of a directory, served or not.
    pub fn directory(path: &Path) -> io::Result<Self> {
        bucket::is_no_cache(path)?;
        Ok(Self::new(path, None))
    }

    /// Those of a bucket, served or not; an empty directory is made to show them.
    pub(super) fn of_bucket(objects: Objects, scratch: &Path) -> io::Result<Self> {
        Ok(Self::new(scratch, Some(Bucket::look(objects, scratch)?)))
    }

    pub(super) fn new(path: &Path, bucket: Option<Bucket>) -> Self {
        Self { path: path.to_owned(), names: AtomicU64::new(0), bucket }
    }

    /// A path below the root.
    pub fn at(&self, below: &Path) -> PathBuf {
        self.path.join(below)
    }

    /// The root.
    pub(super) fn root(&self) -> &Path {
        &self.path
    }

    /// A name that nothing has had.
    pub(super) fn fresh(&self) -> String {
        self.names.fetch_add(1, Ordering::Relaxed).to_string()
    }

    /// A path for a file in the making.
    pub(super) fn scratch(&self) -> PathBuf {
        self.path.join(STAGING).join(self.fresh())
    }

    /// Names in a directory below the root; none if it does not exist.
    pub fn list(&self, below: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.at(below)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            // names of ours are text; anything else is not ours
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Reads a note; nothing if it does not exist.
    pub fn read(&self, below: &Path) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.at(below)) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What there is of a file; nothing if it does not exist.
    pub(super) fn found(&self, below: &Path) -> io::Result<Option<fs::Metadata>> {
        match fs::metadata(self.at(below)) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn is(&self, found: &fs::Metadata) -> FileIdentity {
        let place = self.bucket.is_none().then(|| (found.dev(), found.ino()));
        FileIdentity { place, length: found.len(), changed: (found.mtime(), found.mtime_nsec()) }
    }

    /// Which file it is; nothing if it does not exist.
    pub(super) fn identity(&self, below: &Path) -> io::Result<Option<FileIdentity>> {
        Ok(self.found(below)?.map(|found| self.is(&found)))
    }

    /// Opens a file where a part of it is had soonest.
    pub(super) fn open(&self, below: &Path) -> io::Result<Opened> {
        let found = fs::metadata(self.at(below))?;
        match &self.bucket {
            Some(bucket) if bucket::is_absent(&found) => Ok(Opened::There(bucket.open(below, found.len()))),
            Some(bucket) => bucket.fetch(&self.path, below, || self.scratch()).map(Opened::Here),
            None => File::open(self.at(below)).map(Opened::Here),
        }
    }

    /// Opens what counts of a file: in the bucket, if there is one. Which it is.
    pub(super) fn original(&self, below: &Path) -> io::Result<(Opened, FileIdentity)> {
        if let Some(bucket) = &self.bucket {
            let found = fs::metadata(self.at(below))?;
            return Ok((Opened::There(bucket.open(below, found.len())), self.is(&found)));
        }
        let file = File::open(self.at(below))?;
        let identity = self.is(&file.metadata()?);
        Ok((Opened::Here(file), identity))
    }

    /// Opens a file to be read as a whole, by others too. It is fetched, unless it is large. One that the bucket does
    /// not have in this length is not there.
    pub(super) fn whole(&self, below: &Path) -> io::Result<Opened> {
        let Some(bucket) = &self.bucket else { return File::open(self.at(below)).map(Opened::Here) };
        let found = fs::metadata(self.at(below))?;
        if bucket::is_absent(&found) && bucket.passes_on(found.len()) {
            // whoever gets its bytes as they come would not know an end that comes too early from a broken connection
            return if bucket.has(below, found.len())? {
                Ok(Opened::There(bucket.open(below, found.len())))
            } else {
                Err(io::ErrorKind::NotFound.into())
            };
        }
        match bucket.fetch(&self.path, below, || self.scratch()) {
            Err(error) if bucket::is_of_bucket(&error) && !bucket.has(below, found.len())? => {
                Err(io::ErrorKind::NotFound.into())
            }
            fetched => fetched.map(Opened::Here),
        }
    }

    /// Whether a file of this length is where it counts: in the bucket, if there is one.
    pub(super) fn has(&self, below: &Path, length: u64) -> io::Result<bool> {
        match &self.bucket {
            Some(bucket) => bucket.has(below, length),
            None => Ok(self.found(below)?.is_some_and(|found| found.len() == length)),
        }
    }

    /// How many times as long what was read is trusted than on a disk: a store of objects reads its bytes itself.
    pub(super) fn trusted_times(&self) -> i32 {
        if self.bucket.is_some() { 14 } else { 1 }
    }

    /// How many files are best read at the same time.
    pub(super) fn parallel_reads(&self) -> usize {
        if self.bucket.is_some() { 4 } else { 1 }
    }

    /// Takes so many bytes from the disk that the bucket has too. Whether there is one.
    pub(super) fn give_room(&self, bytes: u64) -> io::Result<bool> {
        let Some(bucket) = &self.bucket else { return Ok(false) };
        bucket.give_room(&self.path, bytes, || self.scratch()).map(|()| true)
    }

    /// Whether what was read before it got its place was read back from where it is kept.
    pub(super) fn arrival_proves_storage(&self) -> bool {
        self.bucket.is_none()
    }

    /// What is on the disk of a file is not to be trusted, where there is another one.
    pub(super) fn doubt(&self, below: &Path) -> io::Result<()> {
        self.bucket.as_ref().map_or(Ok(()), |bucket| bucket.cache.drop_copy(&self.path, below, &self.scratch()))
    }
}
