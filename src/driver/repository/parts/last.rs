//! The file that was named last, as long as it is being sent: to name all blocks of a memory takes time and room on
//! the disk, and a repository that is away for a moment is no reason to do it again. Blocking.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::named::NamedFile;
use crate::store::manifest::FileKind;

/// Which file it was, and that nothing was written to it since.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    path: PathBuf,
    kind: FileKind,
    file: (u64, u64, u64),
    changed: (i64, i64),
}

type Named = Option<(Identity, Arc<NamedFile>)>;

/// At most one.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct LastNamed(Arc<Mutex<Named>>);

impl LastNamed {
    /// The names of a file's blocks: known, or found out now. Others are forgotten.
    pub(super) fn get(&self, path: &Path, kind: FileKind) -> io::Result<Arc<NamedFile>> {
        let found = std::fs::metadata(path)?;
        let identity = Identity {
            path: path.to_owned(),
            kind,
            file: (found.dev(), found.ino(), found.len()),
            changed: (found.mtime(), found.mtime_nsec()),
        };
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let named = match known {
            Some((its, named)) if its == identity => named,
            // what it took on the disk is free before the next one needs it
            other => {
                drop(other);
                Arc::new(NamedFile::read(path, kind)?)
            }
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((identity, named.clone()));
        Ok(named)
    }

    /// It is sent, or will never be.
    pub(super) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_once_until_it_changes_or_is_sent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, vec![1; 100_000]).unwrap();
        let last = LastNamed::default();
        let first = last.get(&path, FileKind::Disk).unwrap();
        assert!(Arc::ptr_eq(&first, &last.get(&path, FileKind::Disk).unwrap()));
        assert!(!Arc::ptr_eq(&first, &last.get(&path, FileKind::Output).unwrap()));
        let again = last.get(&path, FileKind::Disk).unwrap();
        assert!(!Arc::ptr_eq(&first, &again), "only the last one");
        std::fs::write(&path, vec![2; 90_000]).unwrap();
        let changed = last.get(&path, FileKind::Disk).unwrap();
        assert!(changed.size == 90_000 && !Arc::ptr_eq(&changed, &again));
        last.forget();
        assert!(!Arc::ptr_eq(&changed, &last.get(&path, FileKind::Disk).unwrap()));
    }
}
