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
    blocks::Entry,
    durable::disk_error,
    packs::{Trouble, damaged_pack},
    recipes,
    store::{Outcome, Store, guard, refused},
    uploads::Origin,
};
use crate::{
    driver::repository::{GenerationSummary, RepositoryError},
    names::JobUid,
    store::{
        admission::Publish,
        adoption::{ADOPTED, Adoption},
        layout,
        manifest::{FileForm, FileKind, Manifest},
        pack::PackName,
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
        let done = self.take_over(&made, &source, free).and_then(|()| self.publish(&made, now));
        self.doubt_source(&made.job, &source.job, done.as_ref().err());
        done
    }

    /// What was found to be damaged here is so there, too, or was copied wrongly: it is read again there.
    fn doubt_source(&self, job: &JobUid, source: &JobUid, error: Option<&RepositoryError>) {
        if matches!(error, Some(RepositoryError::Damaged(_))) {
            self.damage.changed(source, None);
        }
        let doubted = self
            .packs_aside(job)
            .and_then(|aside| aside.into_keys().try_for_each(|pack| self.doubt_pack(source, pack).map(drop)));
        if let Err(error) = doubted {
            tracing::warn!(%job, %source, %error, "failed to look at what another job began with");
        }
    }

    /// Copies outside the job's lock, which a fence must get at once. Whatever it changes meanwhile is heeded at the
    /// end.
    fn take_over(&self, made: &Manifest, source: &Manifest, free: u64) -> Outcome<()> {
        let job = &made.job;
        let lock = self.lock(job);
        {
            let _held = guard(&lock);
            let old = self.record(job)?;
            if let Publish::Refuse(why) = old.publish(made, None) {
                return Err(RepositoryError::Refused(why));
            }
            let new = old.with_part(made.generation, made.incarnation).map_err(refused)?;
            self.root.directory(&layout::generation(job, made.generation)?).map_err(|e| disk_error(&e))?;
            self.keep_record(job, &old, &new)?;
        }
        let copied = self.share_all(made, source, free);
        let _held = guard(&lock);
        let record = self.record(job)?;
        if let Publish::Refuse(why) = record.publish(made, None) {
            if record.removed.is_some() {
                self.drop_content(job)?;
            }
            return Err(RepositoryError::Refused(why));
        }
        copied
    }

    fn share_all(&self, made: &Manifest, source: &Manifest, free: u64) -> Outcome<()> {
        let job = &made.job;
        let mut packs = BTreeSet::new();
        for part in &source.members {
            for file in &part.files {
                let path = |of: &Manifest| Self::file_path(&of.job, of.generation, of.incarnation, part.index, file);
                let from = path(source)?;
                if file.form == FileForm::Recipe {
                    packs.extend(recipes::check(&self.root, &from, file)?.1.into_iter().map(|pack| pack.name));
                }
                self.share(&from, &path(made)?, free)?;
            }
        }
        if packs.is_empty() {
            return Ok(());
        }
        {
            // a sweep that has begun without knowing of them is over then
            let lock = self.lock(job);
            let _held = guard(&lock);
            let origin =
                Origin { generation: made.generation, incarnation: made.incarnation, member: 0, kind: FileKind::Disk };
            self.uploads.promise(job, origin, packs.iter().copied());
            self.root.directory(&layout::packs(job)?).map_err(|e| disk_error(&e))?;
        }
        for pack in &packs {
            self.share_pack((&source.job, job), *pack, free)?;
        }
        self.index_packs(job, &packs)
    }

    /// Shares a pack; one that is damaged, as such: what is needed of it may be sound.
    fn share_pack(&self, (from, to): (&JobUid, &JobUid), pack: PackName, free: u64) -> Outcome<()> {
        let (sound, own) = (layout::pack(from, pack)?, layout::pack(to, pack)?);
        let (aside, own_aside) = (damaged_pack(from, pack)?, damaged_pack(to, pack)?);
        if self.root.at(&own).exists() {
            return Ok(());
        }
        let shared = match self.share(&sound, &own, free) {
            Err(RepositoryError::NotFound(_)) if self.root.at(&own_aside).exists() => return Ok(()),
            Err(RepositoryError::NotFound(_)) => match self.share(&aside, &own_aside, free) {
                // it was put back meanwhile, if it is anywhere
                Err(RepositoryError::NotFound(_)) => self.share(&sound, &own, free),
                shared => return shared,
            },
            shared => shared,
        };
        shared?;
        if self.root.at(&own_aside).exists() {
            self.root.discard(&own_aside).map_err(|e| disk_error(&e))?;
        }
        Ok(())
    }

    /// Has the blocks of packs found: the index may have been opened by somebody before they came.
    fn index_packs(&self, job: &JobUid, packs: &BTreeSet<PackName>) -> Outcome<()> {
        self.with_index(job, |held| {
            let known = held.ask(|index| index.entries(packs))?;
            for name in packs.iter().filter(|name| !known.contains_key(name)) {
                match self.index_of(job, *name) {
                    Ok((pack, index)) => {
                        held.ask(|known| known.add(&Entry::of(pack, &index, None), index.blocks()))?;
                    }
                    Err(Trouble::Disk(error)) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(disk_error(&error));
                    }
                    // it is set aside, or found to be damaged when all is read back
                    Err(Trouble::Disk(_) | Trouble::Damaged(_)) => {}
                }
            }
            Ok(())
        })
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
