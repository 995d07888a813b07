//! Changes of the store that survive a crash: new name, fsync, rename, fsync of the directory; with a bucket
//! (`bucket`), there first. Blocking; knows nothing of jobs.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    ops::Deref,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    bucket::{self, Bucket, Objects, Use, is_of_bucket},
    directory::{hold, make, sync},
    files::{Files, Opened},
};
use crate::{
    driver::repository::RepositoryError,
    store::layout::{TRASH, is_derived, is_fixed},
};

/// Is told of every step that changes the disk or the bucket before it is taken; an error ends the change there.
/// This is where tests let the process die.
pub trait Steps: Send + Sync {
    /// The next step is this.
    fn next(&self, what: &'static str) -> io::Result<()>;
}

/// Takes every step.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllSteps;

impl Steps for AllSteps {
    fn next(&self, _: &'static str) -> io::Result<()> {
        Ok(())
    }
}

/// The root directory, held by this process alone.
pub struct Root {
    files: Files,
    steps: Box<dyn Steps>,
    /// Bytes that there is to be room for, of what is on its way (`room`).
    claimed: Mutex<u64>,
    _lock: File,
}

impl Deref for Root {
    type Target = Files;

    fn deref(&self) -> &Files {
        &self.files
    }
}

/// A file that is being received. Removed when dropped, unless it was put in its place.
#[derive(Debug)]
pub struct Staged(PathBuf);

impl Staged {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // gone already when it was put in its place
        let _ = fs::remove_file(&self.0);
    }
}

impl Root {
    /// Takes the directory over and clears what a crash left half done.
    pub fn open(path: &Path, steps: Box<dyn Steps>) -> io::Result<Self> {
        let lock = hold(path)?;
        bucket::is_no_cache(path)?;
        Ok(Self::with(path, steps, lock, None))
    }

    /// The same, with the bucket that it is a cache of.
    pub(super) fn in_front_of(objects: Objects, how: Use, path: &Path, steps: Box<dyn Steps>) -> io::Result<Self> {
        let lock = hold(path)?;
        let bucket = Bucket::take(objects, path, how)?;
        Ok(Self::with(path, steps, lock, Some(bucket)))
    }

    fn with(path: &Path, steps: Box<dyn Steps>, lock: File, bucket: Option<Bucket>) -> Self {
        let files = Files::new(path, bucket);
        Self { files, steps, claimed: Mutex::new(0), _lock: lock }
    }

    pub(super) fn claimed(&self) -> MutexGuard<'_, u64> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error if there is a bucket, and it may not be this process's any more.
    pub(super) fn confirm(&self) -> io::Result<()> {
        self.bucket.as_ref().map_or(Ok(()), Bucket::confirm)
    }

    /// Nothing more is written to the bucket.
    pub(super) fn resign(&self) -> io::Result<()> {
        self.bucket.as_ref().map_or(Ok(()), Bucket::resign)
    }

    /// Name for a file to be received.
    pub fn staged(&self) -> Staged {
        Staged(self.scratch())
    }

    /// The bucket is about to be changed, if there is one and it knows of such a file.
    fn bucket_for(&self, below: &Path, what: &'static str) -> io::Result<Option<&Bucket>> {
        match &self.bucket {
            Some(bucket) if !is_derived(below) => self.steps.next(what).map(|()| Some(bucket)),
            _ => Ok(None),
        }
    }

    /// Makes a directory below the root, with those above it.
    pub fn directory(&self, below: &Path) -> io::Result<()> {
        let mut path = self.root().to_owned();
        for name in below.components() {
            let parent = path.clone();
            path.push(name);
            if !path.is_dir() {
                self.steps.next("make a directory")?;
                make(&path)?;
                sync(&parent)?;
            }
        }
        Ok(())
    }

    /// Has the bucket receive a file before it gets its name, which may last: so nobody waits for that. Only for files
    /// whose name says what is in them; whoever places it looks whether it is still there.
    pub(super) fn send(&self, staged: &Staged, below: &Path) -> io::Result<()> {
        match self.bucket_for(below, "send to the bucket")? {
            Some(bucket) => bucket.send(staged.path(), below),
            None => Ok(()),
        }
    }

    /// Gives a received and synced file its name; replaces what had it.
    pub fn place(&self, staged: &Staged, below: &Path) -> io::Result<()> {
        if let Some(bucket) = self.bucket_for(below, "place in the bucket")? {
            let length = fs::metadata(staged.path())?.len();
            if !(is_fixed(below) && bucket.has(below, length)?) {
                bucket.send(staged.path(), below)?;
            }
            self.settle(staged, below)?;
            bucket.cache.used(below, length);
            return bucket.make_room(self.root(), 0, || self.scratch());
        }
        self.settle(staged, below)
    }

    /// Gives a file its name on the disk.
    fn settle(&self, staged: &Staged, below: &Path) -> io::Result<()> {
        let to = self.at(below);
        self.steps.next("rename")?;
        {
            let _names = self.bucket.as_ref().map(|bucket| bucket.cache.names());
            fs::rename(staged.path(), &to)?;
        }
        self.steps.next("sync the directory")?;
        sync(to.parent().unwrap_or(self.root()))
    }

    /// Writes a note as a whole.
    pub fn write(&self, below: &Path, content: &[u8]) -> io::Result<()> {
        if let Some(bucket) = self.bucket_for(below, "write to the bucket")? {
            bucket.write(below, content)?;
        }
        let staged = self.staged();
        self.steps.next("write")?;
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(staged.path())?;
        file.write_all(content)?;
        self.steps.next("sync")?;
        file.sync_all()?;
        self.settle(&staged, below)
    }

    /// Gives a file a second name; replaces what had it. Not done if the disk has no second names.
    pub fn link(&self, below: &Path, to: &Path) -> io::Result<bool> {
        if let Some(bucket) = self.bucket_for(to, "copy in the bucket")?
            && !bucket.copy(below, fs::metadata(self.at(below))?.len(), to)?
        {
            return Ok(false);
        }
        let staged = self.staged();
        self.steps.next("link")?;
        match fs::hard_link(self.at(below), staged.path()) {
            // one that has both names already keeps them
            Ok(()) => self.settle(&staged, to).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Makes a copy of a file; replaces what had its name.
    pub fn copy(&self, below: &Path, to: &Path) -> io::Result<()> {
        let staged = self.staged();
        self.steps.next("copy")?;
        let mut copy = OpenOptions::new().create_new(true).write(true).mode(0o600).open(staged.path())?;
        match self.open(below)? {
            // the disk may do it by itself
            Opened::Here(mut file) => io::copy(&mut file, &mut copy)?,
            Opened::There(mut remote) => io::copy(&mut remote, &mut copy)?,
        };
        self.steps.next("sync a copy")?;
        copy.sync_all()?;
        self.place(&staged, to)
    }

    /// Gives a file another name in its directory; replaces what had it.
    pub fn set_aside(&self, below: &Path, to: &Path) -> io::Result<()> {
        let from = self.at(below);
        if let Some(bucket) = self.bucket_for(below, "copy aside in the bucket")? {
            self.doubt(below)?;
            if !bucket.copy(below, fs::metadata(&from)?.len(), to)? {
                self.copy(below, to)?;
            }
            self.steps.next("remove what was copied aside")?;
            bucket.remove(&[below.to_owned()])?;
        }
        self.steps.next("set aside")?;
        {
            let _names = self.bucket.as_ref().map(|bucket| bucket.cache.names());
            fs::rename(&from, self.at(to))?;
        }
        self.steps.next("sync after setting aside")?;
        sync(from.parent().unwrap_or(self.root()))
    }

    /// A file that others write is about to be changed.
    pub fn announce(&self, what: &'static str) -> io::Result<()> {
        self.steps.next(what)
    }

    /// Changes the times of a file. They may be lost in a crash.
    pub fn touch(&self, below: &Path, times: fs::FileTimes) -> io::Result<()> {
        self.steps.next("touch")?;
        let _names = self.bucket.as_ref().map(|bucket| bucket.cache.names());
        // nobody may read what is not here
        OpenOptions::new().write(true).open(self.at(below))?.set_times(times)
    }

    /// Takes a file away in one step, then frees its space. Absence is no error.
    pub fn discard(&self, below: &Path) -> io::Result<()> {
        if self.found(below)?.is_none() {
            return Ok(());
        }
        if let Some(bucket) = self.bucket_for(below, "remove from the bucket")? {
            bucket.remove(&[below.to_owned()])?;
        }
        self.take_away(below)
    }

    /// Takes a directory away with all that is in it. In a bucket it goes in steps, but no generation of it is complete
    /// after the first; where that ends early, what is left is taken away when this is done again.
    pub fn clear(&self, below: &Path) -> io::Result<()> {
        let Some(bucket) = self.bucket_for(below, "look what is to go")? else { return self.take_away(below) };
        let [first, then, last] = bucket.doomed(below)?;
        self.steps.next("remove manifests from the bucket")?;
        bucket.remove(&first)?;
        self.take_away(below)?;
        for some in [then, last] {
            self.steps.next("remove the rest from the bucket")?;
            bucket.remove(&some)?;
        }
        Ok(())
    }

    fn take_away(&self, below: &Path) -> io::Result<()> {
        let from = self.at(below);
        let to = self.root().join(TRASH).join(self.fresh());
        self.steps.next("take away")?;
        {
            let _names = self.bucket.as_ref().map(|bucket| bucket.cache.names());
            match fs::rename(&from, &to) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if let Some(bucket) = &self.bucket {
            bucket.cache.forget(below);
        }
        self.steps.next("sync after taking away")?;
        sync(from.parent().unwrap_or(self.root()))?;
        self.steps.next("free the space")?;
        let freed = if to.is_dir() { fs::remove_dir_all(&to) } else { fs::remove_file(&to) };
        if let Err(error) = freed {
            // it has no name any more; the next start clears it
            tracing::warn!(%error, path = %to.display(), "failed to free space");
        }
        Ok(())
    }
}

/// What a disk's error means to whoever asked.
pub fn disk_error(error: &io::Error) -> RepositoryError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => RepositoryError::Full(error.to_string()),
        _ if is_of_bucket(error) => RepositoryError::Unreachable(format!("its bucket: {error}")),
        _ => RepositoryError::Unreachable(format!("its disk: {error}")),
    }
}
