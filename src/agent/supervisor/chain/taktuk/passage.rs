//! The directory of the lease, as images pass through it. Blocking, for moments.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, Uid},
    io::Errno,
};

use crate::{
    agent::fence::lease::{self, LeaseError},
    driver::agent::LeaseConfig,
};

/// Longest word of the hold.
const WORD: u64 = 16;
/// Entries of a directory that are looked at.
const MOST: usize = 64;
/// A piece that is being written.
const NEW: &str = ".new";

/// The directory of the lease.
pub(in super::super) struct Directory {
    root: OwnedFd,
    opened: OwnedFd,
    owner: Uid,
}

impl Directory {
    /// The one that the fence has made.
    pub(super) fn open(config: &LeaseConfig) -> Result<Self, LeaseError> {
        let (root, opened) = lease::open(config)?;
        Ok(Self { root, opened, owner: Uid::from_raw(config.owner) })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        is_there(&self.opened, name)
    }

    /// What the hold says in a file.
    pub(super) fn word(&self, name: &str) -> Option<String> {
        let (file, length) = open_file(&self.opened, name, self.owner).ok()??;
        let mut word = String::new();
        File::from(file).take(length.min(WORD)).read_to_string(&mut word).ok()?;
        // one without a line end is being written
        Some(word.strip_suffix('\n')?.into())
    }

    /// Puts an empty file there.
    pub(super) fn say(&self, name: &str) -> io::Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.opened, name, flags, Mode::from_raw_mode(0o444)) {
            // it was said before
            Ok(_) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes a file away, if it is there.
    pub(super) fn take_back(&self, name: &str) {
        remove(&self.opened, name);
    }

    /// Makes a directory for the user, empty, in place of an old one.
    pub(super) fn make(&self, name: &str) -> io::Result<Passage> {
        self.remove(name);
        let made = lease::create(&self.root, &self.opened, name, self.owner).map_err(io::Error::other)?;
        Ok(Passage { directory: made, owner: self.owner })
    }

    /// Removes a directory with its files, if it is there.
    pub(super) fn remove(&self, name: &str) {
        lease::remove_directory(&self.opened, name);
    }
}

/// A directory through which pieces pass: agent and user can both make files in it.
pub(super) struct Passage {
    directory: OwnedFd,
    owner: Uid,
}

impl Passage {
    pub(super) fn has(&self, piece: u64) -> bool {
        is_there(&self.directory, &piece.to_string())
    }

    /// Pieces that are there, some of them if there are very many.
    pub(super) fn pieces(&self) -> io::Result<Vec<u64>> {
        let entries = rustix::fs::Dir::read_from(&self.directory)?;
        let number = |entry: Result<rustix::fs::DirEntry, Errno>| entry.ok()?.file_name().to_str().ok()?.parse().ok();
        Ok(entries.take(MOST).filter_map(number).collect())
    }

    /// A piece that the user has brought, and its length so far.
    pub(super) fn open(&self, piece: u64) -> io::Result<Option<(File, u64)>> {
        Ok(open_file(&self.directory, &piece.to_string(), self.owner)?.map(|(file, length)| (file.into(), length)))
    }

    pub(super) fn remove(&self, piece: u64) {
        remove(&self.directory, &piece.to_string());
    }

    /// A file that the user can read once it is placed.
    pub(super) fn create(&self) -> io::Result<File> {
        remove(&self.directory, NEW);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.directory, NEW, flags, Mode::from_raw_mode(0o400))?.into())
    }

    pub(super) fn place(&self, file: &File, piece: u64) -> io::Result<()> {
        rustix::fs::fchmod(file, Mode::from_raw_mode(0o444))?;
        Ok(rustix::fs::renameat(&self.directory, NEW, &self.directory, piece.to_string())?)
    }
}

fn is_there(directory: impl AsFd, name: &str) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

fn remove(directory: impl AsFd, name: &str) {
    // what cannot be removed is in the way of nobody but its owner
    let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
}

/// A regular file of this owner, and its length.
fn open_file(directory: impl AsFd, name: &str, owner: Uid) -> io::Result<Option<(OwnedFd, u64)>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    let seen = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(seen.st_mode) != FileType::RegularFile || seen.st_uid != owner.as_raw() {
        return Err(io::Error::other(format!("{name} is not a file of the site's user")));
    }
    Ok(Some((file, u64::try_from(seen.st_size).unwrap_or_default())))
}
