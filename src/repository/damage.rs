//! Which complete generations cannot be restored any more, as far as anybody has seen: in memory. What has been set
//! aside is found on the disk again; what is gone or cut short, when a job is swept.
//!
//! A pack that is damaged takes only those generations that need its bad frames.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    durable::disk_error,
    packs::{Trouble, bad_frames, damaged_pack},
    recipes::{self, Lost},
    store::{Outcome, Store, guard},
};
use crate::{
    driver::repository::RepositoryError,
    names::{Generation, JobUid},
    store::{
        layout::{self, DAMAGED},
        manifest::{FileForm, Manifest, PartFile},
        pack::PackName,
    },
};

#[derive(Default)]
struct Known {
    generations: BTreeMap<Generation, String>,
    /// What they lack: when it comes, they may be whole again.
    packs: BTreeSet<PackName>,
    changed: bool,
}

/// What is known of all jobs.
#[derive(Default)]
pub(super) struct Damage {
    jobs: Mutex<HashMap<JobUid, Known>>,
    /// Held while a job is judged: it may take some memory.
    judging: Mutex<()>,
}

impl Damage {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobUid, Known>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was set aside, was put back, or is gone; a pack that came matters only if it was missed.
    pub(super) fn changed(&self, job: &JobUid, came: Option<PackName>) {
        let mut jobs = self.lock();
        match came {
            None => jobs.entry(job.clone()).or_default().changed = true,
            // of a job that nobody has looked at nothing is known, also not that all is well
            Some(pack) => {
                if let Some(known) = jobs.get_mut(job) {
                    known.changed |= known.packs.contains(&pack);
                }
            }
        }
    }

    /// A job was removed.
    pub(super) fn forget(&self, job: &JobUid) {
        self.lock().remove(job);
    }

    /// What is known of a job, if it is still so.
    fn get(&self, job: &JobUid) -> Option<BTreeMap<Generation, String>> {
        self.lock().get(job).filter(|known| !known.changed).map(|known| known.generations.clone())
    }
}

impl Store {
    /// The generations of a job that are known to be damaged, and why.
    pub(super) fn known_damage(&self, job: &JobUid) -> Outcome<BTreeMap<Generation, String>> {
        if let Some(known) = self.damage.get(job) {
            return Ok(known);
        }
        let is_new = !self.damage.lock().contains_key(job);
        if is_new && self.packs_aside(job)?.is_empty() {
            // the first sweep looks closer
            self.damage.lock().entry(job.clone()).or_default();
            return Ok(BTreeMap::new());
        }
        self.judge(job)?;
        Ok(self.damage.get(job).unwrap_or_default())
    }

    /// Looks at all that the generations of a job need, without reading the packs that are in their place.
    pub(super) fn judge(&self, job: &JobUid) -> Outcome<()> {
        let _one = guard(&self.damage.judging);
        // what changes from here on is looked at again
        self.damage.lock().entry(job.clone()).or_default().changed = false;
        let judged = self.judged(job);
        let mut jobs = self.damage.lock();
        let known = jobs.entry(job.clone()).or_default();
        match judged {
            Ok((generations, packs)) => {
                for (generation, why) in &generations {
                    if known.generations.get(generation) != Some(why) {
                        tracing::error!(%job, generation, why, "a generation is damaged");
                    }
                }
                (known.generations, known.packs) = (generations, packs);
                Ok(())
            }
            Err(error) => {
                known.changed = true;
                Err(error)
            }
        }
    }

    fn judged(&self, job: &JobUid) -> Outcome<(BTreeMap<Generation, String>, BTreeSet<PackName>)> {
        let mut lost = self.packs_aside(job)?;
        let there = self.root.list(&layout::packs(job)?).map_err(|e| disk_error(&e))?;
        let there: BTreeSet<PackName> = there.iter().filter_map(|name| name.parse().ok()).collect();
        let mut damaged = BTreeMap::new();
        for number in self.numbers(job)? {
            match self.published(job, number) {
                Ok(None) => {}
                Ok(Some(manifest)) => match self.judge_generation(&manifest, &there, &mut lost) {
                    Ok(()) => {}
                    Err(RepositoryError::Damaged(why)) => drop(damaged.insert(number, why)),
                    Err(other) => return Err(other),
                },
                Err(RepositoryError::Damaged(why)) => drop(damaged.insert(number, why)),
                Err(other) => return Err(other),
            }
        }
        Ok((damaged, lost.into_keys().collect()))
    }

    /// Whether a generation needs nothing of what is lost of its job's packs. Those that are lost, in part or all.
    pub(super) fn needs_nothing_lost(&self, manifest: &Manifest) -> Outcome<BTreeSet<PackName>> {
        let mut lost = self.packs_aside(&manifest.job)?;
        let there = self.root.list(&layout::packs(&manifest.job)?).map_err(|e| disk_error(&e))?;
        let there = there.iter().filter_map(|name| name.parse().ok()).collect();
        self.judge_generation(manifest, &there, &mut lost)?;
        Ok(lost.into_keys().collect())
    }

    fn judge_generation(&self, manifest: &Manifest, there: &BTreeSet<PackName>, lost: &mut Lost) -> Outcome<()> {
        for part in &manifest.members {
            for file in &part.files {
                let path = Self::file_path(&manifest.job, manifest.generation, manifest.incarnation, part.index, file)?;
                let told = |error| match error {
                    RepositoryError::Damaged(why) | RepositoryError::NotFound(why) => {
                        RepositoryError::Damaged(format!("{} of member {}: {why}", file.kind, part.index))
                    }
                    other => other,
                };
                self.judge_file(file, &path, there, lost).map_err(told)?;
            }
        }
        Ok(())
    }

    fn judge_file(
        &self,
        file: &PartFile,
        below: &std::path::Path,
        there: &BTreeSet<PackName>,
        lost: &mut Lost,
    ) -> Outcome<()> {
        if file.form == FileForm::Whole {
            return match self.root.found(below).map_err(|e| disk_error(&e))? {
                Some(found) if found.len() == file.stored => {
                    let has = self.root.has(below, file.stored).map_err(|e| disk_error(&e))?;
                    let lost = || RepositoryError::Damaged("its file is missing or cut short in the bucket".into());
                    has.then_some(()).ok_or_else(lost)
                }
                Some(_) => Err(RepositoryError::Damaged("its file is cut short".into())),
                None => Err(RepositoryError::Damaged("its file is missing".into())),
            };
        }
        let (_, packs) = recipes::check(&self.root, below, file)?;
        for pack in &packs {
            if !there.contains(&pack.name) {
                lost.entry(pack.name).or_insert(None);
            }
        }
        if !packs.iter().any(|pack| lost.contains_key(&pack.name)) {
            return Ok(());
        }
        let _reading = guard(&self.reading);
        let needs = recipes::read(self.root.open(below)).map_err(RepositoryError::Damaged)?;
        match needs.lacks(lost) {
            Some(name) if lost.get(&name).is_some_and(Option::is_some) => {
                Err(RepositoryError::Damaged(format!("pack {name} is damaged")))
            }
            Some(name) => Err(RepositoryError::Damaged(format!("pack {name} is missing or cannot be read"))),
            None => Ok(()),
        }
    }

    /// The packs that were set aside and did not come again, and what of each is bad.
    pub(super) fn packs_aside(&self, job: &JobUid) -> Outcome<Lost> {
        let mut lost = Lost::new();
        for file in self.root.list(&layout::packs(job)?).map_err(|e| disk_error(&e))? {
            let name = file.strip_suffix(DAMAGED).and_then(|rest| rest.strip_suffix('.'));
            let Some(name) = name.and_then(|name| name.parse::<PackName>().ok()) else { continue };
            if self.root.at(&layout::pack(job, name)?).exists() {
                continue;
            }
            let opened = self.root.original(&damaged_pack(job, name)?);
            match opened.map_err(Trouble::from).and_then(|(file, _)| bad_frames(file, name)) {
                Ok(frames) => drop(lost.insert(name, frames)),
                // it was put back meanwhile
                Err(trouble) if trouble.is_absence() => {}
                Err(Trouble::Disk(error)) => return Err(disk_error(&error)),
                Err(Trouble::Damaged(_)) => drop(lost.insert(name, None)),
            }
        }
        Ok(lost)
    }
}
