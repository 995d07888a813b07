//! A job takes another one's generation over as its own generation 0 (safety B11). Blocking.
//!
//! Files and packs get a second name where the disk can do that, and are copied where it cannot: no byte
//! passes through a node, and none is lost when the other job goes. The recipes come first, so that no pack is
//! there that nothing needs; the manifest comes last, after all was read back.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;

use super::{
    durable::disk_error,
    recipes,
    store::{Outcome, Store, guard, refused},
};
use crate::{
    driver::repository::{GenerationSummary, RepositoryError},
    names::JobUid,
    store::{
        admission::Publish,
        adoption::{ADOPTED, Adoption},
        layout,
        manifest::{FileForm, Manifest},
    },
};

/// The jobs for which one is under way: it may go on after whoever asked has stopped waiting.
#[derive(Debug, Default)]
pub(super) struct Adoptions(Mutex<HashSet<JobUid>>);

struct UnderWay<'a>(&'a Adoptions, JobUid);

impl Adoptions {
    fn lock(&self) -> MutexGuard<'_, HashSet<JobUid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, job: &JobUid) -> Outcome<UnderWay<'_>> {
        if self.lock().insert(job.clone()) {
            Ok(UnderWay(self, job.clone()))
        } else {
            Err(RepositoryError::Unreachable("it is still copying".into()))
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

impl Store {
    /// Makes a generation of another job this one's generation 0; `free` bytes of the disk stay free. What an
    /// attempt before has brought stays. Whatever goes meanwhile of the other job, what is published is whole.
    pub fn adopt(&self, job: &JobUid, order: &Adoption, free: u64, now: Timestamp) -> Outcome<GenerationSummary> {
        layout::job(&order.from.job)?;
        if let Some(own) = self.published(job, ADOPTED)? {
            return order.is(&own).map(|()| (&own).into()).map_err(refused);
        }
        let _under_way = self.adoptions.begin(job)?;
        let source = self.manifest(&order.from.job, order.from.generation)?;
        let made = order.manifest(job, &source).map_err(refused)?;
        self.take_over(&made, &source, free)?;
        self.publish(&made, now)
    }

    fn take_over(&self, made: &Manifest, source: &Manifest, free: u64) -> Outcome<()> {
        let job = &made.job;
        let lock = self.lock(job);
        let _held = guard(&lock);
        let old = self.record(job)?;
        if let Publish::Refuse(why) = old.publish(made, None) {
            return Err(RepositoryError::Refused(why));
        }
        let new = old.with_part(made.generation, made.incarnation).map_err(refused)?;
        self.root.directory(&layout::generation(job, made.generation)?).map_err(|e| disk_error(&e))?;
        self.keep_record(job, &old, &new)?;
        let mut packs = BTreeSet::new();
        for part in &source.members {
            for file in &part.files {
                let path = |of: &Manifest| Self::file_path(&of.job, of.generation, of.incarnation, part.index, file);
                let from = path(source)?;
                if file.form == FileForm::Recipe {
                    packs.extend(recipes::check(&self.root.at(&from), file)?.1.into_iter().map(|pack| pack.name));
                }
                self.share(&from, &path(made)?, free)?;
            }
        }
        self.root.directory(&layout::packs(job)?).map_err(|e| disk_error(&e))?;
        for pack in packs {
            let to = layout::pack(job, pack)?;
            if !self.root.at(&to).exists() {
                self.share(&layout::pack(&source.job, pack)?, &to, free)?;
            }
        }
        // it finds the packs when it is opened
        self.indices.close(job);
        Ok(())
    }

    /// Gives a file a second name, or makes a copy of it.
    fn share(&self, from: &Path, to: &Path, free: u64) -> Outcome<()> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => RepositoryError::NotFound(from.display().to_string()),
            _ => disk_error(&error),
        };
        if self.root.link(from, to).map_err(failed)? {
            return Ok(());
        }
        let length = std::fs::metadata(self.root.at(from)).map_err(failed)?.len();
        let _claim = self.root.claim(length, free)?;
        self.root.copy(from, to).map_err(failed)
    }
}

#[cfg(test)]
#[path = "adopt_tests.rs"]
mod tests;
