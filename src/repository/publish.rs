//! Publication: all that a manifest names is read back from where it is kept, then the manifest is written. Blocking.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{
    durable::disk_error,
    files::{FileIdentity, Files, Opened},
    packs::damaged_pack,
    readback::TRUSTED,
    recipes,
    store::{Outcome, Store, guard, refused},
};
use crate::{
    driver::repository::{GenerationSummary, RepositoryError},
    store::{
        admission::{JobRecord, Publish},
        layout::{self, MANIFEST},
        manifest::{FileForm, Manifest, PartFile},
        pack::{PackName, PackRef},
    },
};

/// What was read back for a manifest.
struct ReadBack {
    files: Vec<(FileIdentity, PathBuf)>,
    packs: Vec<PackRef>,
    /// Those of them that are damaged, and of which nothing is needed that is.
    aside: BTreeSet<PackName>,
}

impl Store {
    /// Reads back all a manifest names, then publishes it. Never replaces one.
    ///
    /// The reading may take minutes and happens outside the job's lock, which a fence must get at
    /// once; under the lock it is checked that the files are still those that were read.
    pub fn publish(&self, manifest: &Manifest, now: Timestamp) -> Outcome<GenerationSummary> {
        manifest.check().map_err(refused)?;
        let job = &manifest.job;
        let lock = self.lock(job);
        {
            let _held = guard(&lock);
            if self.check_publish(manifest)?.is_none() {
                return Ok(manifest.into());
            }
        }
        let read = self.read_back(manifest, now);
        let _held = guard(&lock);
        let Some(old) = self.check_publish(manifest)? else { return Ok(manifest.into()) };
        // a fence may have taken away what was being read: its refusal says more
        let ReadBack { files, packs, aside } = read?;
        for (identity, path) in &files {
            match self.root.identity(path).map_err(|e| disk_error(&e))? {
                Some(found) if found == *identity => {}
                Some(_) => return Err(RepositoryError::Unreachable(format!("{} has just arrived", path.display()))),
                None => return Err(RepositoryError::NotFound(path.display().to_string())),
            }
        }
        for pack in &packs {
            let is_aside = aside.contains(&pack.name) && self.root.at(&damaged_pack(job, pack.name)?).exists();
            if !is_aside && !self.has_pack(job, pack)? {
                return Err(RepositoryError::NotFound(format!("pack {}", pack.name)));
            }
        }
        let new = old.with_part(manifest.generation, manifest.incarnation).map_err(refused)?;
        self.keep_record(job, &old, &new)?;
        let bytes = serde_json::to_vec_pretty(manifest).map_err(refused)?;
        let path = layout::generation(job, manifest.generation)?.join(MANIFEST);
        let _images = self.hold_images();
        self.root.write(&path, &bytes).map_err(|e| disk_error(&e))?;
        self.uploads.end(job, |origin| origin.generation == manifest.generation);
        Ok(manifest.into())
    }

    fn read_back(&self, manifest: &Manifest, now: Timestamp) -> Outcome<ReadBack> {
        let mut files = Vec::new();
        let mut packs = BTreeMap::new();
        for part in &manifest.members {
            for file in &part.files {
                let path = Self::file_path(&manifest.job, manifest.generation, manifest.incarnation, part.index, file)?;
                let identity = match file.form {
                    FileForm::Whole => check_file(&self.root, &path, file)?,
                    FileForm::Recipe => {
                        let (identity, needed) = recipes::check(&self.root, &path, file)?;
                        packs.extend(needed.into_iter().map(|pack| (pack.name, pack)));
                        identity
                    }
                };
                files.push((identity, path));
            }
        }
        let packs: Vec<PackRef> = packs.into_values().collect();
        let mut aside = BTreeSet::new();
        if !packs.is_empty() {
            match self.read_packs_back(&manifest.job, &packs, TRUSTED, now, None) {
                Ok(_) => {}
                // what of them this one needs may be sound (safety B7)
                Err(error @ (RepositoryError::Damaged(_) | RepositoryError::NotFound(_))) => {
                    aside = self.needs_nothing_lost(manifest).map_err(|lost| match lost {
                        RepositoryError::Damaged(_) | RepositoryError::NotFound(_) => error,
                        other => other,
                    })?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(ReadBack { files, packs, aside })
    }

    /// The job's record if the manifest may be written; nothing if it is there already.
    fn check_publish(&self, manifest: &Manifest) -> Outcome<Option<JobRecord>> {
        let record = self.record(&manifest.job)?;
        match record.publish(manifest, self.published(&manifest.job, manifest.generation)?.as_ref()) {
            Publish::Already => Ok(None),
            Publish::Refuse(why) => Err(RepositoryError::Refused(why)),
            Publish::Write => Ok(Some(record)),
        }
    }
}

/// Opens what counts of a stored file, unless it went meanwhile.
pub(super) fn open(files: &Files, below: &Path) -> Outcome<(Opened, FileIdentity)> {
    files.original(below).map_err(|e| absent_or(&e, files, below))
}

fn absent_or(error: &io::Error, files: &Files, below: &Path) -> RepositoryError {
    match error.kind() {
        io::ErrorKind::NotFound => RepositoryError::NotFound(files.at(below).display().to_string()),
        _ => disk_error(error),
    }
}

/// Reads a stored file back and compares it with what is said of it.
pub(super) fn check_file(files: &Files, below: &Path, file: &PartFile) -> Outcome<FileIdentity> {
    let (opened, identity) = open(files, below)?;
    let (stored, digest) = hash(opened).map_err(|e| absent_or(&e, files, below))?;
    if stored != file.stored || digest != file.digest {
        return Err(RepositoryError::Damaged(format!("{} is not what was stored", files.at(below).display())));
    }
    Ok(identity)
}

fn hash(mut file: impl Read) -> io::Result<(u64, String)> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 18];
    let mut length = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((length, hasher.finalize().to_hex().to_string()));
        }
        hasher.update(&buffer[..read]);
        length += read as u64;
    }
}
