//! What a node keeps of a member's captures, for the next agent of the same member there: it fetches only what is
//! missing. Blocking.
//!
//! Kept are the blocks of the newest generation that was sent, in packs of the node's own, and the names of its
//! blocks and of the one before. Nothing here is trusted: each block is compared with a name, and all names with what
//! the repository's recipe says of them. Nothing is readable without the job's key, which no node's disk has: whoever
//! is given the node next finds noise. And nothing here is needed: what is torn, strange or missing is fetched, and
//! all of it goes where the node's disk wants the room.

mod changed;
mod fill;
mod names;
mod sealed;
mod settle;
mod shelf;
mod sweep;

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use self::sealed::Seal;
use super::named::NamedFile;
use crate::{
    driver::agent::KeptConfig,
    names::{Generation, JobUid, MemberIndex},
    store::manifest::FileKind,
};

/// Who uses a directory holds this file.
const LOCK: &str = "lock";

/// What the node keeps of a member.
#[derive(Debug)]
pub struct Kept {
    /// Of all jobs.
    root: PathBuf,
    directory: PathBuf,
    seal: Seal,
    /// Most bytes of all jobs.
    limit: u64,
    /// Files that were sent, until they are settled.
    sent: Mutex<Sent>,
    /// One at a time changes the directory; none any more once it is over.
    work: Mutex<Work>,
    /// So many want its room back at once: nothing is written meanwhile.
    wanted: AtomicUsize,
    held: File,
}

#[derive(Debug, PartialEq, Eq)]
enum Work {
    Goes,
    Over,
}

#[derive(Debug, Default)]
struct Sent {
    generation: Generation,
    files: Vec<(FileKind, Arc<NamedFile>)>,
}

impl Kept {
    /// Opens what the node keeps of a member, below `root`. None while another agent has it.
    pub fn open(root: &Path, job: &JobUid, member: MemberIndex, config: &KeptConfig) -> io::Result<Option<Self>> {
        make(root)?;
        let name = format!("{job}-{member}");
        if name.contains('/') || name.starts_with('.') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no uid of a job"));
        }
        let directory = root.join(name);
        make(&directory)?;
        let Some(lock) = lock(&directory)? else { return Ok(None) };
        sweep::sweep(root, config.limit);
        // of now: it is not among those that nobody has used for long
        lock.set_modified(std::time::SystemTime::now())?;
        for entry in std::fs::read_dir(&directory)?.flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            if name != LOCK && !shelf::is_pack(&name) && names::generation(&name).is_none() {
                remove(&entry.path());
            }
        }
        Ok(Some(Self {
            root: root.into(),
            directory,
            seal: Seal(config.key.0),
            limit: config.limit,
            sent: Mutex::default(),
            work: Mutex::new(Work::Goes),
            wanted: AtomicUsize::new(0),
            held: lock,
        }))
    }

    /// A file of a capture has been sent; it is kept when [`Self::settle`] says so.
    pub(super) fn offer(&self, generation: Generation, kind: FileKind, file: Arc<NamedFile>) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.generation != generation {
            *sent = Sent { generation, files: Vec::new() };
        }
        sent.files.retain(|(other, _)| *other != kind);
        sent.files.push((kind, file));
    }

    /// Removes everything: the job has ended.
    pub fn forget(&self) {
        *self.work.lock().unwrap_or_else(PoisonError::into_inner) = Work::Over;
        self.clear();
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::warn!(%error, "what the node kept of the job's captures stays");
        }
    }

    /// Gives all room back; what is being written ends soon.
    pub fn give_way(&self) {
        self.wanted.fetch_add(1, Ordering::AcqRel);
        {
            let _work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
            self.clear();
            // an open file of a capture takes its room, whether it has a name or not
            self.let_go();
        }
        self.wanted.fetch_sub(1, Ordering::AcqRel);
        sweep::sweep(&self.root, 0);
    }

    /// Nothing of what was sent will be kept.
    pub fn let_go(&self) {
        *self.sent.lock().unwrap_or_else(PoisonError::into_inner) = Sent::default();
    }

    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire) > 0
    }

    fn clear(&self) {
        for entry in std::fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            if entry.file_name() != LOCK {
                remove(&entry.path());
            }
        }
    }
}

/// Makes a directory for nobody else; one that is there is closed to others.
fn make(directory: &Path) -> io::Result<()> {
    // others may have to pass through what is above
    directory.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if !std::fs::symlink_metadata(directory)?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, directory.display().to_string()));
    }
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
}

/// The lock of a directory, unless another has it.
fn lock(directory: &Path) -> io::Result<Option<File>> {
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(directory.join(LOCK))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes what should not be there, whatever it is.
fn remove(path: &Path) {
    let is_directory = std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    let removed = if is_directory { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    if let Err(error) = removed {
        tracing::warn!(%error, path = %path.display(), "a file stays");
    }
}

#[cfg(test)]
mod tests;
