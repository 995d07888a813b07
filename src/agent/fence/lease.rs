//! The lease as the agent sees it: its directory, its nonce, the holder's lock and beat. The other
//! side is the hold; the contract is written down there.
//!
//! The directory belongs to the site's user, so every name in it is a stranger's: opened without
//! following links, checked for type and owner, and never written through an existing name.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::Path,
    time::Instant,
};

use rustix::{
    fs::{AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, Uid},
    io::Errno,
};

use crate::driver::agent::LeaseConfig;

/// Types of file systems whose locks are the node's own.
const LOCAL: [i64; 8] = [
    0xef53,      // ext2, 3, 4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs
    0x794c_7630, // overlayfs
    0x2fc1_2fc1, // zfs
    0xf2f5_2010, // f2fs
    0x3153_464a, // jfs
];
/// Name of the holder's file.
pub(super) const LOCK: &str = "lock";
/// Name of the file that is locked for as long as its agent lives, however that ends.
const PRESENCE: &str = "agent";
/// A line of the lock is shorter than this.
const LINE: usize = 256;

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The directory.
    #[error("failed to {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// Something in it is not what it must be.
    #[error("refused the lease: {0}")]
    Refused(String),
    /// No hold has taken it in time.
    #[error("no hold took the lease in time")]
    NotHeld,
}

fn failed(what: &'static str) -> impl Fn(Errno) -> LeaseError {
    move |errno| LeaseError::Io { what, source: errno.into() }
}

/// The directory of a lease.
#[derive(Debug)]
pub struct Lease {
    root: OwnedFd,
    name: String,
    directory: OwnedFd,
    owner: Uid,
    slot: String,
    nonce: String,
    /// Tells the holder, by its lock, that this agent lives.
    _presence: File,
}

/// The holder's line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    slot: String,
    nonce: String,
    beat: u64,
}

/// Reads the holder's line; a half-written one is none.
fn parse(bytes: &[u8]) -> Option<Line> {
    let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    let mut words = text.split(' ');
    let (slot, nonce, beat) = (words.next()?, words.next()?, words.next()?);
    let whole = words.next().is_none() && beat.len() == 10 && beat.bytes().all(|byte| byte.is_ascii_digit());
    whole.then(|| Line { slot: slot.into(), nonce: nonce.into(), beat: beat.parse().unwrap_or_default() })
}

impl Lease {
    /// Makes the directory, or takes over the one of an earlier agent of this slot, and puts a new
    /// nonce into it.
    pub fn make(config: &LeaseConfig, slot: &str) -> Result<Self, LeaseError> {
        let root = open_root(Path::new(&config.root))?;
        let owner = Uid::from_raw(config.owner);
        let nonce = new_nonce();
        let name = config.directory.clone();
        if name.contains('/') || name.starts_with('.') {
            return Err(LeaseError::Refused(format!("{name:?} is no name of a directory")));
        }
        let directory = match open_directory(&root, &name) {
            Err(Errno::NOENT) => create(&root, &root, &name, owner)?,
            other => other.map_err(failed("open the lease's directory"))?,
        };
        check_owner(&directory, config)?;
        if exists(&directory, "release") {
            return Err(LeaseError::Refused("it was given back".into()));
        }
        let presence = put(&directory, PRESENCE, &nonce)?;
        put(&directory, "nonce", &nonce)?;
        Ok(Self { root, name, directory, owner, slot: slot.into(), nonce, _presence: presence })
    }

    /// Whether the hold was told that the slot is wanted back.
    pub fn notice(&self) -> bool {
        exists(&self.directory, "notice")
    }

    /// Gives the slot up. Called when nothing of the VM is left.
    pub fn release(&self, word: &str) -> Result<(), LeaseError> {
        put(&self.directory, "release", word).map(drop)
    }

    /// Removes the directory: the lease is over.
    pub fn remove(&self) {
        self.close_passages();
        remove_files(&self.directory);
        if let Err(error) = rustix::fs::unlinkat(&self.root, &self.name, AtFlags::REMOVEDIR) {
            tracing::warn!(%error, "the lease's directory stays");
        }
    }

    /// Nothing comes in or goes out through the directory any more.
    pub fn close_passages(&self) {
        for name in names(&self.directory) {
            if let Some(name) = name.to_str().ok().filter(|name| is_passage(name)) {
                remove_directory(&self.directory, name);
            }
        }
    }

    /// Opens the lock if it is there.
    pub fn lock(&self) -> Result<Option<Lock>, LeaseError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.directory, LOCK, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(LeaseError::Refused("the lock is a link".into())),
            Err(errno) => return Err(failed("open the lock")(errno)),
        };
        let seen = rustix::fs::fstat(&file).map_err(failed("look at the lock"))?;
        if FileType::from_raw_mode(seen.st_mode) != FileType::RegularFile || seen.st_uid != self.owner.as_raw() {
            return Err(LeaseError::Refused("the lock is not a file of the site's user".into()));
        }
        Ok(Some(Lock { file: file.into(), slot: self.slot.clone(), nonce: self.nonce.clone() }))
    }
}

/// The holder's lock.
#[derive(Debug)]
pub struct Lock {
    file: File,
    slot: String,
    nonce: String,
}

impl Lock {
    /// The beat, if the line names this slot and this agent's nonce.
    pub fn beat(&self) -> Option<u64> {
        let mut bytes = [0; LINE];
        let count = self.file.read_at(&mut bytes, 0).ok()?;
        let line = parse(&bytes[..count])?;
        (line.slot == self.slot && line.nonce == self.nonce).then_some(line.beat)
    }

    /// Whether somebody holds it. Must not be asked before the line is there.
    pub fn held(&self) -> Result<bool, LeaseError> {
        match rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(errno) => Err(failed("try the lock")(errno)),
        }
    }

    /// Waits, as long as it takes, until nobody holds it any more.
    pub fn wait_until_lost(&self) -> Result<(), LeaseError> {
        loop {
            match rustix::fs::flock(&self.file, FlockOperation::LockShared) {
                Err(Errno::INTR) => {}
                other => return other.map_err(failed("wait for the lock")),
            }
        }
    }

    /// Another handle of the same lock.
    pub fn share(&self) -> Result<Self, LeaseError> {
        let file = self.file.try_clone().map_err(|source| LeaseError::Io { what: "share the lock", source })?;
        Ok(Self { file, slot: self.slot.clone(), nonce: self.nonce.clone() })
    }
}

/// Follows the beat on this machine's monotonic clock.
#[derive(Debug)]
pub struct Beat {
    last: Option<u64>,
    /// When it was seen to rise.
    pub risen: Instant,
}

impl Beat {
    /// Begins now.
    pub fn new(now: Instant) -> Self {
        Self { last: None, risen: now }
    }

    /// Takes note of a beat.
    pub fn see(&mut self, beat: Option<u64>, now: Instant) {
        let Some(beat) = beat else { return };
        if self.last.is_some_and(|last| beat > last) {
            self.risen = now;
        }
        self.last = Some(self.last.unwrap_or(beat).max(beat));
    }
}

fn exists(directory: &OwnedFd, name: &str) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Puts a file with this line into a directory by a rename, and locks it first, for as long as it is open.
fn put(directory: &OwnedFd, name: &str, line: &str) -> Result<File, LeaseError> {
    let what = "write to the lease's directory";
    let new = format!(".{name}-{}", new_nonce());
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, &new, flags, Mode::from_raw_mode(0o444)).map_err(failed(what))?;
    let mut file = File::from(file);
    file.write_all(format!("{line}\n").as_bytes()).map_err(|source| LeaseError::Io { what, source })?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(failed(what))?;
    // whatever our umask is, the user must be able to read it
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o444)).map_err(failed("open a file to the site's user"))?;
    rustix::fs::renameat(directory, &new, directory, name).map_err(failed(what))?;
    Ok(file)
}

fn new_nonce() -> String {
    format!("{:032x}", rand::random::<u128>())
}

pub(super) fn open_root(path: &Path) -> Result<OwnedFd, LeaseError> {
    std::fs::create_dir_all(path).map_err(|source| LeaseError::Io { what: "make the root of the leases", source })?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty()).map_err(failed("open the root of the leases"))?;
    let seen = rustix::fs::fstat(&root).map_err(failed("look at the root of the leases"))?;
    if seen.st_uid != rustix::process::geteuid().as_raw() || seen.st_mode & 0o022 != 0 {
        return Err(LeaseError::Refused("others can write to the root of the leases".into()));
    }
    // the site's users must be able to reach their own directories below it
    rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).map_err(failed("open the root of the leases"))?;
    let kind = rustix::fs::fstatfs(&root).map_err(failed("look at the file system"))?.f_type;
    check_file_system(kind)?;
    Ok(root)
}

fn check_file_system(kind: i64) -> Result<(), LeaseError> {
    if LOCAL.contains(&kind) {
        return Ok(());
    }
    Err(LeaseError::Refused(format!("its file system (type {kind:#x}) is not known to be the node's own")))
}

pub(super) fn open_directory(root: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(root, name, flags, Mode::empty())
}

/// Makes a directory of this owner, 0700, in another one. Nobody else can have it until it has its name.
pub(in crate::agent) fn create(
    root: &OwnedFd,
    within: &OwnedFd,
    name: &str,
    owner: Uid,
) -> Result<OwnedFd, LeaseError> {
    let what = failed("make the lease's directory");
    let new = format!(".{}", new_nonce());
    rustix::fs::mkdirat(root, &new, Mode::from_raw_mode(0o700)).map_err(&what)?;
    let directory = open_directory(root, &new).map_err(&what)?;
    rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o700)).map_err(&what)?;
    rustix::fs::fchown(&directory, Some(owner), None::<Gid>).map_err(&what)?;
    rustix::fs::renameat(root, &new, within, name).map_err(&what)?;
    Ok(directory)
}

/// The root of the leases, and the directory of one that was made.
pub(in crate::agent) fn open(config: &LeaseConfig) -> Result<(OwnedFd, OwnedFd), LeaseError> {
    let root = open_root(Path::new(&config.root))?;
    let directory = open_directory(&root, &config.directory).map_err(failed("open the lease's directory"))?;
    check_owner(&directory, config)?;
    Ok((root, directory))
}

fn check_owner(directory: &OwnedFd, config: &LeaseConfig) -> Result<(), LeaseError> {
    let seen = rustix::fs::fstat(directory).map_err(failed("look at the lease's directory"))?;
    if seen.st_uid != config.owner || seen.st_mode & 0o777 != 0o700 {
        return Err(LeaseError::Refused(format!("{} is not the site's user's alone", config.directory)));
    }
    Ok(())
}

/// Whether pieces of images pass through a directory of this name, in the lease's.
pub(super) fn is_passage(name: &str) -> bool {
    name.starts_with("in-") || name.starts_with("out-")
}

/// Removes a directory with the files in it, if it is there. What is another thing than a directory goes as well.
pub(in crate::agent) fn remove_directory(within: &OwnedFd, name: &str) {
    if let Ok(directory) = open_directory(within, name) {
        remove_files(&directory);
    }
    // where it is not empty its user has put something there again: it is his own
    let _ = rustix::fs::unlinkat(within, name, AtFlags::REMOVEDIR);
    let _ = rustix::fs::unlinkat(within, name, AtFlags::empty());
}

fn remove_files(directory: &OwnedFd) {
    for name in names(directory) {
        // "." and ".." fail, and what else fails keeps the directory
        let _ = rustix::fs::unlinkat(directory, name.as_c_str(), AtFlags::empty());
    }
}

fn names(directory: &OwnedFd) -> Vec<CString> {
    let entries = rustix::fs::Dir::read_from(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_owned()).collect()
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
