//! Makes the directory show what is in the bucket: notes as they are, of all else the name and the length, and what is
//! on the disk already if it cannot have changed. What only the directory has was never acknowledged, and goes.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    cache::{Cache, is_absent, make_absent},
    note::note,
    objects::{Listed, Objects},
    owner::Owner,
};
use crate::store::layout::{IMAGES, JOBS, decides, is_derived, is_fixed, is_note};

/// So many notes are in memory at the same time.
const NOTES: usize = 32;

/// What is compared.
pub(super) struct Mirror<'a> {
    /// The bucket.
    pub(super) objects: &'a Objects,
    /// Is told of the notes that it will write again.
    pub(super) owner: Option<&'a Owner>,
    /// Is told of what is on the disk.
    pub(super) cache: &'a Cache,
    /// The directory.
    pub(super) root: &'a Path,
    /// A name for a file in the making.
    pub(super) scratch: &'a Path,
}

impl Mirror<'_> {
    /// Does it.
    pub(super) fn run(&self) -> io::Result<()> {
        self.folder(Path::new(IMAGES))?;
        let jobs: BTreeSet<String> = self.objects.folders(Path::new(JOBS))?.into_iter().collect();
        for entry in fs::read_dir(self.root.join(JOBS))? {
            let entry = entry?;
            if entry.file_name().to_str().is_none_or(|name| !jobs.contains(name)) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        jobs.iter().try_for_each(|job| self.folder(&Path::new(JOBS).join(job)))
    }

    fn folder(&self, below: &Path) -> io::Result<()> {
        let mut there = BTreeSet::new();
        let (notes, files): (Vec<Listed>, Vec<Listed>) =
            self.objects.list(below)?.into_iter().partition(|listed| is_note(&listed.below));
        for some in notes.chunks(NOTES) {
            for (path, found) in self.objects.get_all(some.iter().map(|listed| listed.below.clone()))? {
                let Some((bytes, version)) = found else { continue };
                if decides(&path)
                    && let Some(owner) = self.owner
                {
                    owner.know(path.clone(), version);
                }
                if let Some(content) = if decides(&path) { note(&bytes) } else { Some(bytes) } {
                    self.write(&path, &content)?;
                    there.insert(path);
                }
            }
        }
        for Listed { below, length } in files {
            self.show(&below, length)?;
            there.insert(below);
        }
        self.drop_others(below, &there)
    }

    fn write(&self, below: &Path, content: &[u8]) -> io::Result<()> {
        let path = self.root.join(below);
        if fs::read(&path).is_ok_and(|old| old == content) {
            return Ok(());
        }
        make_folder(&path)?;
        fs::write(self.scratch, content)?;
        fs::rename(self.scratch, &path)
    }

    fn show(&self, below: &Path, length: u64) -> io::Result<()> {
        let path = self.root.join(below);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.len() == length && is_absent(&found) => return Ok(()),
            Ok(found) if found.len() == length && found.is_file() && is_fixed(below) => {
                self.cache.used(below, length);
                return Ok(());
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => make_folder(&path)?,
        }
        // as far as anybody knows it is young, so that nothing goes which was promised to somebody
        make_absent(self.scratch, length, SystemTime::now())?;
        fs::rename(self.scratch, &path)
    }

    fn drop_others(&self, below: &Path, there: &BTreeSet<PathBuf>) -> io::Result<()> {
        let entries = match fs::read_dir(self.root.join(below)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let path = below.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                self.drop_others(&path, there)?;
            } else if !there.contains(&path) && !is_derived(&path) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path.parent().unwrap_or(path))
}
