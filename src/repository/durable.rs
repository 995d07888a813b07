//! Changes of the directory store that survive a crash: new name, fsync, rename, fsync of the
//! directory. Blocking; knows nothing of jobs.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::fs::{FlockOperation, flock};

use crate::{
    driver::repository::RepositoryError,
    store::layout::{IMAGES, JOBS, LOCK, STAGING, TRASH},
};

/// Is told of every step that changes the disk before it is taken; an error ends the change there.
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
    path: PathBuf,
    steps: Box<dyn Steps>,
    names: AtomicU64,
    /// Bytes that there is to be room for, of what is on its way (`room`).
    claimed: Mutex<u64>,
    _lock: File,
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
        make_directory(path)?;
        let lock = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path.join(LOCK))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| io::Error::new(e.kind(), "another process serves this directory"))?;
        for scratch in [STAGING, TRASH] {
            match fs::remove_dir_all(path.join(scratch)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => make_directory(&path.join(scratch))?,
            }
        }
        make_directory(&path.join(IMAGES))?;
        make_directory(&path.join(JOBS))?;
        sync_directory(path)?;
        Ok(Self { path: path.into(), steps, names: AtomicU64::new(0), claimed: Mutex::new(0), _lock: lock })
    }

    pub(super) fn claimed(&self) -> MutexGuard<'_, u64> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A path below the root.
    pub fn at(&self, below: &Path) -> PathBuf {
        self.path.join(below)
    }

    /// Name for a file to be received.
    pub fn staged(&self) -> Staged {
        Staged(self.path.join(STAGING).join(self.fresh()))
    }

    fn fresh(&self) -> String {
        self.names.fetch_add(1, Ordering::Relaxed).to_string()
    }

    /// Makes a directory below the root, with those above it.
    pub fn directory(&self, below: &Path) -> io::Result<()> {
        let mut path = self.path.clone();
        for name in below.components() {
            let parent = path.clone();
            path.push(name);
            if !path.is_dir() {
                self.steps.next("make a directory")?;
                make_directory(&path)?;
                sync_directory(&parent)?;
            }
        }
        Ok(())
    }

    /// Gives a received and synced file its name; replaces what had it.
    pub fn place(&self, staged: &Staged, below: &Path) -> io::Result<()> {
        let to = self.at(below);
        self.steps.next("rename")?;
        fs::rename(staged.path(), &to)?;
        self.steps.next("sync the directory")?;
        sync_directory(to.parent().unwrap_or(&self.path))
    }

    /// Writes a small file as a whole.
    pub fn write(&self, below: &Path, content: &[u8]) -> io::Result<()> {
        let staged = self.staged();
        self.steps.next("write")?;
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(staged.path())?;
        file.write_all(content)?;
        self.steps.next("sync")?;
        file.sync_all()?;
        self.place(&staged, below)
    }

    /// Gives a file a second name; replaces what had it. Not done if the disk has no second names.
    pub fn link(&self, below: &Path, to: &Path) -> io::Result<bool> {
        let staged = self.staged();
        self.steps.next("link")?;
        match fs::hard_link(self.at(below), staged.path()) {
            // one that has both names already keeps them
            Ok(()) => self.place(&staged, to).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Makes a copy of a file; replaces what had its name.
    pub fn copy(&self, below: &Path, to: &Path) -> io::Result<()> {
        let staged = self.staged();
        self.steps.next("copy")?;
        fs::copy(self.at(below), staged.path())?;
        self.steps.next("sync a copy")?;
        File::open(staged.path())?.sync_all()?;
        self.place(&staged, to)
    }

    /// Gives a file another name in its directory; replaces what had it.
    pub fn set_aside(&self, below: &Path, to: &Path) -> io::Result<()> {
        let from = self.at(below);
        self.steps.next("set aside")?;
        fs::rename(&from, self.at(to))?;
        self.steps.next("sync after setting aside")?;
        sync_directory(from.parent().unwrap_or(&self.path))
    }

    /// A file that others write is about to be changed.
    pub fn announce(&self, what: &'static str) -> io::Result<()> {
        self.steps.next(what)
    }

    /// Changes the times of a file. They may be lost in a crash.
    pub fn touch(&self, below: &Path, times: fs::FileTimes) -> io::Result<()> {
        self.steps.next("touch")?;
        File::open(self.at(below))?.set_times(times)
    }

    /// Takes a file or directory away in one step, then frees its space. Absence is no error.
    pub fn discard(&self, below: &Path) -> io::Result<()> {
        let from = self.at(below);
        let to = self.path.join(TRASH).join(self.fresh());
        self.steps.next("take away")?;
        match fs::rename(&from, &to) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        self.steps.next("sync after taking away")?;
        sync_directory(from.parent().unwrap_or(&self.path))?;
        self.steps.next("free the space")?;
        let freed = if to.is_dir() { fs::remove_dir_all(&to) } else { fs::remove_file(&to) };
        if let Err(error) = freed {
            // it has no name any more; the next start clears it
            tracing::warn!(%error, path = %to.display(), "failed to free space");
        }
        Ok(())
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

    /// Reads a small file; nothing if it does not exist.
    pub fn read(&self, below: &Path) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.at(below)) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// What a disk's error means to whoever asked.
pub fn disk_error(error: &io::Error) -> RepositoryError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => RepositoryError::Full(error.to_string()),
        _ => RepositoryError::Unreachable(format!("its disk: {error}")),
    }
}
