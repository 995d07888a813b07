//! A directory that one process has for itself. Blocking.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use crate::{
    lock,
    store::layout::{IMAGES, JOBS, LOCK, STAGING, TRASH},
};

/// Holds a directory for this process, clears what a crash left half done, and makes what is in each.
pub(super) fn hold(path: &Path) -> io::Result<File> {
    make(path)?;
    let file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path.join(LOCK))?;
    lock::take(&file).map_err(|e| io::Error::new(e.kind(), "another process serves this directory"))?;
    for scratch in [STAGING, TRASH] {
        match fs::remove_dir_all(path.join(scratch)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => make(&path.join(scratch))?,
        }
    }
    make(&path.join(IMAGES))?;
    make(&path.join(JOBS))?;
    sync(path)?;
    Ok(file)
}

/// Makes a directory, with those above it.
pub(super) fn make(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes certain that the names in a directory stay.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
