//! Directories of leases whose agent could not remove them, since its node crashed.
//!
//! Only what has the name of a lease, was not written to for a day and is locked by nobody is removed: a lease that
//! is held is written to at each beat, and stays locked while its holder stands still. All in it are a stranger's
//! names: nothing is followed, and a directory with other directories in it stays, but for those of images on their
//! way.

use std::{
    ffi::CString,
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, Stat},
    io::Errno,
};

use super::lease::{LOCK, LeaseError, is_passage, open_directory, open_root, remove_directory};

/// Younger ones stay. No agent waits longer for its hold.
const AGE: Duration = Duration::from_secs(24 * 3600);
/// Entries of a directory that are looked at: a lease has few.
const MOST: usize = 256;

/// Removes them, but for `own`; says which.
pub(super) fn remove(root: &Path, own: &str, now: SystemTime) -> Result<Vec<String>, LeaseError> {
    let root = open_root(root)?;
    let before = now.checked_sub(AGE).and_then(|then| then.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let mut removed = Vec::new();
    for name in entries(&root).into_iter().flatten() {
        let Some(name) = name.to_str().ok().filter(|name| *name != own && is_of_lease(name)) else { continue };
        match remove_one(&root, name, before) {
            Ok(true) => removed.push(name.to_owned()),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, name, "the directory of an old lease stays"),
        }
    }
    Ok(removed)
}

/// Whether a lease's directory could be called so, or one that was being made.
fn is_of_lease(name: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if let Some(nonce) = name.strip_prefix('.') {
        return nonce.len() == 32 && is_hex(nonce);
    }
    name.split_once('-').is_some_and(|(job, slot)| {
        job.len() == 8 && is_hex(job) && !slot.is_empty() && slot.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// False where it is to stay.
fn remove_one(root: &OwnedFd, name: &str, before: Duration) -> Result<bool, Errno> {
    // a link or a file is none of ours
    let directory = match open_directory(root, name) {
        Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => return Ok(false),
        other => other?,
    };
    if !is_older(&rustix::fs::fstat(&directory)?, before) {
        return Ok(false);
    }
    let Some(Old { files, passages }) = old(&directory, before)? else { return Ok(false) };
    for passage in &passages {
        let inner = old(&open_directory(&directory, passage)?, before)?;
        if inner.is_none_or(|inner| !inner.passages.is_empty()) {
            return Ok(false);
        }
    }
    // nobody can take the lock while it is looked at; shared, as agents do: none of them is deceived by it
    let _lock = match lock(&directory)? {
        Held::Nobody(lock) => lock,
        Held::Somebody => return Ok(false),
    };
    for passage in passages {
        remove_directory(&directory, &passage);
    }
    for name in files {
        rustix::fs::unlinkat(&directory, name.as_c_str(), AtFlags::empty())?;
    }
    rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR)?;
    Ok(true)
}

/// What a directory holds that was not written to for long.
struct Old {
    files: Vec<CString>,
    /// Directories through which images pass.
    passages: Vec<String>,
}

/// None if anything in it is of another kind or too young.
fn old(directory: &OwnedFd, before: Duration) -> Result<Option<Old>, Errno> {
    let mut old = Old { files: Vec::new(), passages: Vec::new() };
    for entry in entries(directory)? {
        let seen = rustix::fs::statat(directory, entry.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        if old.files.len() + old.passages.len() == MOST || !is_older(&seen, before) {
            return Ok(None);
        }
        match entry.to_str().ok().filter(|name| is_passage(name)) {
            _ if FileType::from_raw_mode(seen.st_mode) != FileType::Directory => old.files.push(entry),
            Some(name) => old.passages.push(name.to_owned()),
            None => return Ok(None),
        }
    }
    Ok(Some(old))
}

enum Held {
    /// And cannot be, as long as this is there.
    Nobody(Option<File>),
    Somebody,
}

fn lock(directory: &OwnedFd) -> Result<Held, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(directory, LOCK, flags, Mode::empty()) {
        // a link is nothing that a holder could have locked
        Err(Errno::NOENT | Errno::LOOP) => return Ok(Held::Nobody(None)),
        other => other?,
    };
    match rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Held::Nobody(Some(file.into()))),
        Err(Errno::WOULDBLOCK) => Ok(Held::Somebody),
        Err(errno) => Err(errno),
    }
}

fn is_older(seen: &Stat, before: Duration) -> bool {
    u64::try_from(seen.st_mtime).is_ok_and(|written| written < before.as_secs())
}

fn entries(directory: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
#[path = "leftovers_tests.rs"]
mod tests;
