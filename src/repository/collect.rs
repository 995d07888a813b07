//! Removes packs that nothing needs any more, and has the blocks of packs forgotten of which little is used.
//! What may go is decided in `store::sweep`; here it is found out what is needed (safety B10).
//!
//! Recipes are read outside the job's lock, which a fence must get at once. Under the lock those are read
//! that have arrived since, and packs go, some at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::{
    blocks::BlockIndex,
    durable::disk_error,
    indices::Held,
    recipes,
    store::{Outcome, Store, guard},
};
use crate::{
    clock::Clock,
    driver::repository::RepositoryError,
    names::{Generation, JobUid},
    store::{
        layout::{self, DAMAGED, JOBS, PartName},
        manifest::{FileForm, FileKind, Manifest, PartFile, is_uid},
        pack::PackName,
        sweep::{sparse, unneeded},
    },
};

/// So many packs go before others get the job's lock.
const AT_ONCE: usize = 8;
/// How long they have to take it.
const BREATH: Duration = Duration::from_millis(2);
/// How often all jobs are swept, whatever happens.
const EVERY: Duration = Duration::from_secs(3600);

#[derive(Default)]
struct Waiting {
    running: bool,
    jobs: BTreeSet<JobUid>,
}

/// The jobs that are to be swept; one is at a time.
#[derive(Default)]
pub(super) struct Collections(Mutex<Waiting>);

impl Collections {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sweep that panics must not be the last one.
struct Running<'a>(&'a Collections);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().running = false;
        }
    }
}

/// The packs that each recipe names, by generation and file name.
type Recipes = BTreeMap<(Generation, String), Vec<PackName>>;

/// Has jobs swept, soon and off the event loop.
pub fn request(store: &Arc<Store>, clock: &Clock, jobs: impl IntoIterator<Item = JobUid>) {
    {
        let mut waiting = store.collections.lock();
        waiting.jobs.extend(jobs);
        if waiting.jobs.is_empty() || std::mem::replace(&mut waiting.running, true) {
            return;
        }
    }
    let (store, clock) = (store.clone(), clock.clone());
    tokio::task::spawn_blocking(move || {
        let _running = Running(&store.collections);
        loop {
            let next = {
                let mut waiting = store.collections.lock();
                let next = waiting.jobs.pop_first();
                waiting.running = next.is_some();
                next
            };
            let Some(job) = next else { return };
            if let Err(error) = store.collect(&job, clock.now()) {
                tracing::warn!(%job, %error, "failed to sweep the packs of a job");
            }
        }
    });
}

/// Has all jobs swept at once and then now and again: what was promised when a job was swept last may be
/// needed no more.
pub async fn keep_collecting(store: Arc<Store>, clock: Clock, stop: CancellationToken) {
    let mut turns = tokio::time::interval(EVERY);
    while stop.run_until_cancelled(turns.tick()).await.is_some() {
        match store.root.list(Path::new(JOBS)) {
            Ok(names) => request(&store, &clock, names.into_iter().map(JobUid).filter(is_uid)),
            Err(error) => tracing::warn!(%error, "failed to list the jobs"),
        }
    }
}

impl Store {
    /// Sweeps the packs of a job. Those that went.
    pub fn collect(&self, job: &JobUid, now: Timestamp) -> Outcome<Vec<PackName>> {
        self.collect_after(self.started.elapsed(), job, now)
    }

    /// The same, when the process has run for so long: what was promised since it began is in its memory.
    pub(super) fn collect_after(&self, running: Duration, job: &JobUid, now: Timestamp) -> Outcome<Vec<PackName>> {
        if let Err(error) = self.judge(job) {
            tracing::warn!(%job, %error, "failed to look what a job's generations need");
        }
        if !self.has_packs(job)? {
            return Ok(Vec::new());
        }
        let mut recipes = Recipes::new();
        self.read_recipes(job, &mut recipes)?;
        match self.tidy(job, &recipes) {
            Err(RepositoryError::Full(why)) => tracing::warn!(%job, why, "no room to note which packs are sparse"),
            tidied => tidied?,
        }
        let mut gone = Vec::new();
        loop {
            let last = self.with_index(job, |held| {
                self.read_recipes(job, &mut recipes)?;
                let mut needed: BTreeSet<PackName> = recipes.values().flatten().copied().collect();
                needed.extend(self.uploads.promised(job));
                let mut surplus = unneeded(self.packs_by_age(job, now)?, &needed, running);
                let last = surplus.len() <= AT_ONCE;
                surplus.truncate(AT_ONCE);
                for name in surplus {
                    self.remove_pack(held, job, name)?;
                    gone.push(name);
                }
                Ok(last)
            })?;
            if last {
                break;
            }
            // a lock goes to whoever is awake
            std::thread::sleep(BREATH);
        }
        if !gone.is_empty() {
            tracing::info!(%job, packs = gone.len(), "removed packs that nothing needs");
        }
        Ok(gone)
    }

    /// Reads the recipes that are not known yet and drops those that are gone. If one of them cannot be read, it
    /// may need any pack.
    fn read_recipes(&self, job: &JobUid, recipes: &mut Recipes) -> Outcome<()> {
        let mut there = Recipes::new();
        for number in self.numbers(job)? {
            let directory = layout::generation(job, number)?;
            for name in self.root.list(&directory).map_err(|e| disk_error(&e))? {
                let Some(PartName::File { kind, form: FileForm::Recipe, size, digest, .. }) = PartName::parse(&name)
                else {
                    continue;
                };
                let path = directory.join(&name);
                let key = (number, name);
                let packs = match recipes.remove(&key) {
                    Some(packs) => packs,
                    None => {
                        let found = self.root.found(&path).map_err(|e| disk_error(&e))?;
                        let Some(stored) = found.map(|found| found.len()) else { continue };
                        let file = PartFile { kind, form: FileForm::Recipe, size, stored, packed: 0, digest };
                        match recipes::check(&self.root, &path, &file) {
                            Ok((_, packs)) => packs.into_iter().map(|pack| pack.name).collect(),
                            // its generation went meanwhile
                            Err(RepositoryError::NotFound(_)) => continue,
                            Err(error) => return Err(error),
                        }
                    }
                };
                there.insert(key, packs);
            }
        }
        *recipes = there;
        Ok(())
    }

    /// The packs that are there, set aside or not, and how long.
    fn packs_by_age(&self, job: &JobUid, now: Timestamp) -> Outcome<BTreeMap<PackName, SignedDuration>> {
        let directory = layout::packs(job)?;
        let mut packs = BTreeMap::new();
        for file in self.root.list(&directory).map_err(|e| disk_error(&e))? {
            let name = file.strip_suffix(DAMAGED).and_then(|rest| rest.strip_suffix('.')).unwrap_or(&file);
            let Ok(name) = name.parse() else { continue };
            let found = std::fs::metadata(self.root.at(&directory.join(&file))).map_err(|e| disk_error(&e))?;
            let written = found.modified().map_err(|e| disk_error(&e))?;
            let written = Timestamp::try_from(written).unwrap_or(Timestamp::MAX);
            let age = now.duration_since(written);
            let youngest = packs.entry(name).or_insert(age);
            *youngest = age.min(*youngest);
        }
        Ok(packs)
    }

    /// Whether there is any pack of a job, set aside or not.
    pub(super) fn has_packs(&self, job: &JobUid) -> Outcome<bool> {
        match std::fs::read_dir(self.root.at(&layout::packs(job)?)) {
            Ok(mut entries) => Ok(entries.next().is_some()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(disk_error(&error)),
        }
    }

    fn remove_pack(&self, held: &Held<'_>, job: &JobUid, name: PackName) -> Outcome<()> {
        let path = layout::pack(job, name)?;
        let index = self.index_of(job, name);
        let blocks = index.as_ref().map(|(_, index)| index.blocks()).unwrap_or_default();
        // first: nobody finds what is about to go
        let announced = self.root.announce("change the index").map_err(|e| disk_error(&e));
        match announced.and_then(|()| held.ask(|index| index.remove(name, blocks))) {
            // it is made again from the packs that are left, once there is room
            Err(RepositoryError::Full(_)) => {
                self.indices.close(job);
                self.root.discard(&layout::blocks(job)?).map_err(|e| disk_error(&e))?;
            }
            removed => removed?,
        }
        self.root.discard(&path).map_err(|e| disk_error(&e))?;
        self.root.discard(&path.with_extension(DAMAGED)).map_err(|e| disk_error(&e))
    }

    /// After a new complete generation: has the blocks of packs forgotten of which it uses little. They are sent
    /// again with the next one, and the packs go with the generations before.
    fn tidy(&self, job: &JobUid, recipes: &Recipes) -> Outcome<()> {
        let mut newest = None;
        for number in self.numbers(job)?.into_iter().rev() {
            newest = match self.published(job, number) {
                Ok(manifest) => manifest,
                // the next older one says less of what is in use
                Err(RepositoryError::Damaged(_)) => return Ok(()),
                Err(error) => return Err(error),
            };
            if newest.is_some() {
                break;
            }
        }
        let Some(manifest) = newest else { return Ok(()) };
        let tidied = self.with_index(job, |held| held.ask(BlockIndex::tidied))?;
        if tidied.is_some_and(|tidied| tidied >= manifest.generation) {
            return Ok(());
        }
        let used = match self.used(&manifest) {
            // it was retired while it was read
            Err(RepositoryError::Damaged(_)) if self.published(job, manifest.generation)?.is_none() => return Ok(()),
            used => used?,
        };
        let Some(used) = used else { return Ok(()) };
        // what came for a generation after it is in use soon
        let older = recipes.iter().filter(|((number, _), _)| *number <= manifest.generation);
        let named: BTreeSet<PackName> = older.flat_map(|(_, packs)| packs).copied().collect();
        self.with_index(job, |held| {
            held.ask(|index| {
                let entries = index.entries(&named)?;
                let slots: BTreeMap<_, _> = entries.into_iter().map(|(name, entry)| (name, entry.slots)).collect();
                index.forget(&sparse(&slots, &used))?;
                index.note_tidied(manifest.generation)
            })
        })
    }

    /// How many blocks of each pack a generation uses. None if memory or a disk of it is stored whole: then it
    /// says nothing of what the next one will need.
    fn used(&self, manifest: &Manifest) -> Outcome<Option<BTreeMap<PackName, u64>>> {
        let mut used: BTreeMap<PackName, u64> = BTreeMap::new();
        for part in &manifest.members {
            for file in &part.files {
                match (file.form, file.kind) {
                    (FileForm::Whole, FileKind::Memory | FileKind::Disk) => return Ok(None),
                    (FileForm::Whole, FileKind::Output) => continue,
                    (FileForm::Recipe, _) => {}
                }
                let (job, generation) = (&manifest.job, manifest.generation);
                let path = Self::file_path(job, generation, manifest.incarnation, part.index, file)?;
                let _reading = guard(&self.reading);
                let needs = recipes::read(self.root.open(&path)).map_err(RepositoryError::Damaged)?;
                for (name, blocks) in needs.used {
                    *used.entry(name).or_default() += blocks;
                }
            }
        }
        Ok(Some(used))
    }
}
