//! What the repository does with a job's generations, on a directory. Blocking.
//!
//! One lock per job: a fence, the arrival of a part and a publication never overlap, so that what was
//! checked still holds when it is written (safety B1, B10).

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use jiff::{SignedDuration, Timestamp};

use super::{
    adopt::Adoptions,
    collect::Collections,
    damage::Damage,
    durable::{Root, Staged, Steps, disk_error},
    files::Opened,
    indices::Indices,
    receive::Received,
    recipes,
    room::Limits,
    uploads::{Origin, Uploads},
    usage::Known,
};
use crate::{
    driver::repository::{DamagedGeneration, GenerationSummary, JobContent, KeptPart, RepositoryError},
    names::{Generation, Incarnation, JobUid, MemberIndex},
    store::{
        admission::{JobRecord, part_is_void},
        layout::{self, BadName, JOBS, MANIFEST, PartName},
        manifest::{FileForm, FileKind, Manifest, PartFile},
    },
};

/// How long it is remembered that a job was removed: longer than any ticket lasts.
const REMEMBER_REMOVED: SignedDuration = SignedDuration::from_hours(48);

/// The directory store.
pub struct Store {
    /// Its directory.
    pub(super) root: Root,
    locks: Mutex<HashMap<JobUid, Arc<Mutex<()>>>>,
    /// Held while images come and go; taken after a job's.
    pub(super) images: Mutex<()>,
    /// Held while the pieces of an image are named.
    pub(super) naming: Mutex<()>,
    /// Where the blocks of the jobs are.
    pub(super) indices: Indices,
    /// What came for files that are not published.
    pub(super) uploads: Uploads,
    /// Which generations cannot be restored any more.
    pub(super) damage: Damage,
    /// Which jobs are to be swept for packs.
    pub(super) collections: Collections,
    /// Which generations are being taken over.
    pub(super) adoptions: Adoptions,
    /// Since when it is known what is promised.
    pub(super) started: Instant,
    /// How much of each job there was when it was last looked at.
    pub(super) known: Known,
    /// Held while a recipe is unpacked: it may take much memory.
    pub(super) reading: Mutex<()>,
}

/// What the store answers.
pub(super) type Outcome<T> = Result<T, RepositoryError>;

impl From<BadName> for RepositoryError {
    fn from(error: BadName) -> Self {
        Self::Refused(error.0)
    }
}

pub(super) fn guard(lock: &Mutex<()>) -> MutexGuard<'_, ()> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn refused(why: impl std::fmt::Display) -> RepositoryError {
    RepositoryError::Refused(why.to_string())
}

impl Store {
    /// Opens a directory and sweeps what a crash, a removed job or an older incarnation left.
    pub fn open(path: &Path, steps: Box<dyn Steps>, now: Timestamp) -> Outcome<Self> {
        Self::of(Root::open(path, steps).map_err(|e| disk_error(&e))?, now)
    }

    /// The same, with a directory or bucket that is open.
    pub(super) fn of(root: Root, now: Timestamp) -> Outcome<Self> {
        let store = Self {
            root,
            locks: Mutex::default(),
            images: Mutex::default(),
            naming: Mutex::default(),
            indices: Indices::default(),
            uploads: Uploads::default(),
            damage: Damage::default(),
            collections: Collections::default(),
            adoptions: Adoptions::default(),
            started: Instant::now(),
            known: Known::default(),
            reading: Mutex::default(),
        };
        for name in store.root.list(Path::new(JOBS)).map_err(|e| disk_error(&e))? {
            let job = JobUid(name);
            if let Err(error) = store.sweep_at_start(&job, now) {
                // one job that cannot be read must not keep the others from their data
                tracing::warn!(%job, %error, "failed to sweep a job");
            }
        }
        Ok(store)
    }

    fn sweep_at_start(&self, job: &JobUid, now: Timestamp) -> Outcome<()> {
        let record = self.record(job)?;
        match record.removed {
            Some(removed) if now.duration_since(removed) > REMEMBER_REMOVED => {
                self.root.clear(&layout::job(job)?).map_err(|e| disk_error(&e))
            }
            Some(_) => self.drop_content(job),
            None => self.sweep(job, &record),
        }
    }

    pub(super) fn lock(&self, job: &JobUid) -> Arc<Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // nobody holds the others
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(job.clone()).or_default().clone()
    }

    pub(super) fn record(&self, job: &JobUid) -> Outcome<JobRecord> {
        match self.root.read(&layout::record(job)?).map_err(|e| disk_error(&e))? {
            None => Ok(JobRecord::default()),
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| RepositoryError::Damaged(format!("the record of job {job}: {e}"))),
        }
    }

    pub(super) fn keep_record(&self, job: &JobUid, old: &JobRecord, new: &JobRecord) -> Outcome<()> {
        if old == new {
            return Ok(());
        }
        let bytes = serde_json::to_vec(new).map_err(refused)?;
        self.root.directory(&layout::job(job)?).map_err(|e| disk_error(&e))?;
        self.root.write(&layout::record(job)?, &bytes).map_err(|e| disk_error(&e))
    }

    pub(super) fn published(&self, job: &JobUid, generation: Generation) -> Outcome<Option<Manifest>> {
        let path = layout::generation(job, generation)?.join(MANIFEST);
        match self.root.read(&path).map_err(|e| disk_error(&e))? {
            None => Ok(None),
            Some(bytes) => Manifest::parse(&bytes)
                .map(Some)
                .map_err(|e| RepositoryError::Damaged(format!("manifest of generation {generation}: {e}"))),
        }
    }

    pub(super) fn numbers(&self, job: &JobUid) -> Outcome<Vec<Generation>> {
        let names = self.root.list(&layout::generations(job)?).map_err(|e| disk_error(&e))?;
        let mut numbers: Vec<Generation> = names.iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// What it has of a job.
    pub fn content(&self, job: &JobUid) -> Outcome<JobContent> {
        let record = self.record(job)?;
        if record.removed.is_some() {
            return Ok(JobContent::default());
        }
        let known = self.known_damage(job)?;
        let (mut generations, mut damaged) = (Vec::new(), Vec::new());
        for generation in self.numbers(job)? {
            let why = match (self.published(job, generation), known.get(&generation)) {
                (Ok(None), _) => continue,
                (Ok(Some(manifest)), None) => {
                    generations.push(GenerationSummary::from(&manifest));
                    continue;
                }
                // no source for a restore (safety B7), and no reason to hide the others
                (Ok(Some(_)), Some(why)) => why.clone(),
                (Err(RepositoryError::Damaged(why)), _) => why,
                (Err(other), _) => return Err(other),
            };
            damaged.push(DamagedGeneration { generation, why });
        }
        Ok(JobContent { generations, damaged, highest: record.highest, fence: record.fence })
    }

    /// The manifest of a complete generation.
    pub fn manifest(&self, job: &JobUid, generation: Generation) -> Outcome<Manifest> {
        let manifest = self.published(job, generation)?;
        manifest.ok_or_else(|| RepositoryError::NotFound(format!("generation {generation} of job {job}")))
    }

    /// Raises the fence, then removes what it made void.
    pub fn fence(&self, job: &JobUid, incarnation: Incarnation) -> Outcome<()> {
        let lock = self.lock(job);
        let _held = guard(&lock);
        let old = self.record(job)?;
        let new = old.fenced(incarnation).map_err(refused)?;
        self.keep_record(job, &old, &new)?;
        self.uploads.end(job, |origin| part_is_void(&new, origin.incarnation));
        self.sweep(job, &new)
    }

    /// Removes parts that can never be published, of generations without a manifest.
    fn sweep(&self, job: &JobUid, record: &JobRecord) -> Outcome<()> {
        for number in self.numbers(job)? {
            let directory = layout::generation(job, number)?;
            let names = self.root.list(&directory).map_err(|e| disk_error(&e))?;
            if names.iter().any(|name| name == MANIFEST) {
                continue;
            }
            let void = |name: &String| PartName::parse(name).is_some_and(|p| part_is_void(record, p.incarnation()));
            if names.iter().all(void) {
                self.root.clear(&directory).map_err(|e| disk_error(&e))?;
            } else {
                for name in names.iter().filter(|name| void(name)) {
                    self.root.discard(&directory.join(name)).map_err(|e| disk_error(&e))?;
                }
            }
        }
        Ok(())
    }

    /// A part of this generation is about to arrive: its number is used from now on (safety B2).
    pub fn admit_part(&self, job: &JobUid, generation: Generation, incarnation: Incarnation) -> Outcome<()> {
        let lock = self.lock(job);
        let _held = guard(&lock);
        let old = self.record(job)?;
        let new = old.with_part(generation, incarnation).map_err(refused)?;
        self.keep_record(job, &old, &new)
    }

    /// Gives a received file of a part its name, unless it became void meanwhile, or the part with it has
    /// more than `most` bytes. The file, with the bytes of the packs that came for it.
    pub fn keep_file(
        &self,
        job: &JobUid,
        generation: Generation,
        (incarnation, member): (Incarnation, MemberIndex),
        file: &PartFile,
        staged: &Staged,
        most: u64,
    ) -> Outcome<PartFile> {
        let needs = match file.form {
            FileForm::Whole => None,
            FileForm::Recipe => {
                let _reading = guard(&self.reading);
                Some(recipes::read(File::open(staged.path())).map_err(refused)?)
            }
        };
        self.record(job)?.with_part(generation, incarnation).map_err(refused)?;
        self.root
            .send(staged, &Self::file_path(job, generation, incarnation, member, file)?)
            .map_err(|e| disk_error(&e))?;
        let place = |check: &dyn Fn() -> Outcome<()>| {
            self.place_file(job, generation, (incarnation, member), file, staged, (most, check))
        };
        match needs {
            Some(needs) => self.with_index(job, |held| place(&|| self.check_needs(held, job, &needs))),
            None => {
                let lock = self.lock(job);
                let _held = guard(&lock);
                place(&|| Ok(()))
            }
        }
    }

    /// The same, with the job's lock held; `check` says whether what the file needs is there.
    fn place_file(
        &self,
        job: &JobUid,
        generation: Generation,
        (incarnation, member): (Incarnation, MemberIndex),
        file: &PartFile,
        staged: &Staged,
        (most, check): (u64, &dyn Fn() -> Outcome<()>),
    ) -> Outcome<PartFile> {
        self.record(job)?.with_part(generation, incarnation).map_err(refused)?;
        // the part's other files may have arrived at the same time
        if file.stored > self.room_in_part(job, generation, (incarnation, member, file.kind), most)? {
            return Err(RepositoryError::TooLarge(format!("the member's part is more than {most} bytes")));
        }
        if let Some(manifest) = self.published(job, generation)? {
            return match manifest.file(member, file.kind, &file.digest).filter(|known| known.form == file.form) {
                Some(known) => Ok(known.clone()),
                None => Err(RepositoryError::Refused(format!("generation {generation} is published without it"))),
            };
        }
        let directory = layout::generation(job, generation)?;
        let own = PartName::of_file(incarnation, member, file);
        let packed = match file.form {
            FileForm::Whole => 0,
            FileForm::Recipe => {
                let origin = Origin { generation, incarnation, member, kind: file.kind };
                self.uploads.bytes(job, |its| *its == origin)
            }
        };
        let kept = PartFile { packed, ..file.clone() };
        let present = self.root.list(&directory).map_err(|e| disk_error(&e))?;
        let noted = PartName::Record { incarnation, member }.to_string();
        if present.contains(&noted) {
            return if present.contains(&own.to_string()) {
                Ok(kept)
            } else {
                Err(RepositoryError::Refused("the member's part was noted without it".into()))
            };
        }
        check()?;
        self.root.directory(&directory).map_err(|e| disk_error(&e))?;
        self.root.place(staged, &directory.join(own.to_string())).map_err(|e| disk_error(&e))?;
        // one file of a kind: what was sent before cannot be meant any more
        for name in present {
            if PartName::parse(&name).is_some_and(|earlier| earlier != own && earlier.is_same_kind(&own)) {
                self.root.discard(&directory.join(name)).map_err(|e| disk_error(&e))?;
            }
        }
        Ok(kept)
    }

    pub(super) fn file_path(
        job: &JobUid,
        generation: Generation,
        incarnation: Incarnation,
        member: MemberIndex,
        file: &PartFile,
    ) -> Outcome<PathBuf> {
        file.check().map_err(refused)?;
        Ok(layout::generation(job, generation)?.join(PartName::of_file(incarnation, member, file).to_string()))
    }

    /// Opens a file that a published manifest names.
    pub(super) fn open_file(
        &self,
        job: &JobUid,
        generation: Generation,
        member: MemberIndex,
        kind: FileKind,
        digest: &str,
    ) -> Outcome<Opened> {
        let manifest = self.manifest(job, generation)?;
        let absent = || RepositoryError::NotFound(format!("{kind} of member {member}, generation {generation}"));
        let file = manifest.file(member, kind, digest).ok_or_else(absent)?;
        let path = Self::file_path(job, generation, manifest.incarnation, member, file)?;
        self.root.whole(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                self.damage.changed(job, None);
                RepositoryError::Damaged(format!("{} is missing", path.display()))
            }
            _ => disk_error(&e),
        })
    }

    /// Notes a member's part as all arrived.
    pub fn keep_part(&self, job: &JobUid, generation: Generation, kept: &KeptPart) -> Outcome<()> {
        kept.part.check().map_err(refused)?;
        let lock = self.lock(job);
        let _held = guard(&lock);
        self.record(job)?.with_part(generation, kept.incarnation).map_err(refused)?;
        for file in &kept.part.files {
            let path = Self::file_path(job, generation, kept.incarnation, kept.part.index, file)?;
            match self.root.found(&path).map_err(|e| disk_error(&e))? {
                Some(found) if found.len() == file.stored => {}
                Some(_) => return Err(RepositoryError::Damaged(format!("{} has another size", path.display()))),
                None => {
                    let what = format!("{} of member {}, generation {generation}", file.kind, kept.part.index);
                    return Err(RepositoryError::NotFound(what));
                }
            }
        }
        let name = PartName::Record { incarnation: kept.incarnation, member: kept.part.index }.to_string();
        let bytes = serde_json::to_vec(kept).map_err(refused)?;
        self.root.write(&layout::generation(job, generation)?.join(name), &bytes).map_err(|e| disk_error(&e))
    }

    /// The parts noted for a generation, by member.
    pub fn kept_parts(&self, job: &JobUid, generation: Generation) -> Outcome<Vec<KeptPart>> {
        let directory = layout::generation(job, generation)?;
        let mut kept: Vec<KeptPart> = Vec::new();
        for name in self.root.list(&directory).map_err(|e| disk_error(&e))? {
            if !matches!(PartName::parse(&name), Some(PartName::Record { .. })) {
                continue;
            }
            if let Some(bytes) = self.root.read(&directory.join(&name)).map_err(|e| disk_error(&e))? {
                let part = serde_json::from_slice(&bytes)
                    .map_err(|e| RepositoryError::Damaged(format!("{name} of generation {generation}: {e}")))?;
                kept.push(part);
            }
        }
        kept.sort_by_key(|k| k.part.index);
        Ok(kept)
    }

    /// Removes a generation, published or not: in one step it has no manifest any more.
    pub fn retire(&self, job: &JobUid, generation: Generation) -> Outcome<()> {
        let directory = layout::generation(job, generation)?;
        let lock = self.lock(job);
        let _held = guard(&lock);
        self.uploads.end(job, |origin| origin.generation == generation);
        self.root.clear(&directory).map_err(|e| disk_error(&e))
    }

    /// Removes the parts of a generation that will never be complete, and takes no more of them.
    pub fn give_up(&self, job: &JobUid, generation: Generation) -> Outcome<()> {
        let lock = self.lock(job);
        let _held = guard(&lock);
        let old = self.record(job)?;
        if old.removed.is_some() {
            return Ok(());
        }
        if self.published(job, generation)?.is_some() {
            return Err(RepositoryError::Refused(format!("generation {generation} is complete")));
        }
        self.keep_record(job, &old, &old.without(generation))?;
        self.uploads.end(job, |origin| origin.generation == generation);
        self.root.clear(&layout::generation(job, generation)?).map_err(|e| disk_error(&e))
    }

    /// Removes all of a job; what still arrives for it is refused.
    pub fn remove_job(&self, job: &JobUid, now: Timestamp) -> Outcome<()> {
        let lock = self.lock(job);
        let _held = guard(&lock);
        let old = self.record(job)?;
        let new = JobRecord { removed: Some(old.removed.unwrap_or(now)), ..old.clone() };
        self.keep_record(job, &old, &new)?;
        self.drop_content(job)
    }

    pub(super) fn drop_content(&self, job: &JobUid) -> Outcome<()> {
        self.uploads.end(job, |_| true);
        self.indices.close(job);
        self.damage.forget(job);
        for path in [layout::generations(job)?, layout::packs(job)?, layout::outputs(job)?] {
            self.root.clear(&path).map_err(|e| disk_error(&e))?;
        }
        self.root.discard(&layout::blocks(job)?).map_err(|e| disk_error(&e))
    }

    /// Refuses what an older incarnation or a removed job sends.
    pub fn check_writable(&self, job: &JobUid, incarnation: Incarnation) -> Outcome<()> {
        self.record(job)?.writable(incarnation).map_err(refused)
    }

    /// Gives a received output its name; replaces an earlier one of the same path.
    pub(super) fn keep_output(
        &self,
        job: &JobUid,
        incarnation: Incarnation,
        member: MemberIndex,
        path: &str,
        received: &Received,
        limits: &Limits,
    ) -> Outcome<()> {
        let name = layout::output_name(member, path)?;
        let directory = layout::outputs(job)?;
        let lock = self.lock(job);
        let _held = guard(&lock);
        self.check_writable(job, incarnation)?;
        // others may have arrived since it was admitted
        if received.length > self.room_for_output(job, member, path, limits)? {
            return Err(RepositoryError::TooLarge("the job's results are too large together".into()));
        }
        self.root.directory(&directory).map_err(|e| disk_error(&e))?;
        self.root.place(&received.staged, &directory.join(name)).map_err(|e| disk_error(&e))
    }
}
