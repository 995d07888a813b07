//! A repository in memory, for simulated time. Runs the contract suite of the real one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{
    Brought, ByteStore, ByteStream, DamagedGeneration, DiskRecord, GenerationSummary, JobContent, JobOwner, JobUsage,
    KeptPart, OutputSummary, PartLedger, Repository, RepositoryError,
};
use crate::{
    driver::qemu::img::inspect,
    names::{Generation, Incarnation, JobUid, MemberIndex},
    store::{
        admission::{JobRecord, Publish, no_such_uid, part_is_void},
        adoption::{ADOPTED, Adoption, Ancestor, BEFORE},
        images::{Fate, ImageReview, fate},
        layout,
        manifest::{FileForm, FileKind, Manifest, PartFile, is_uid},
    },
};

/// What is wrong with the repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// It does not answer.
    Unreachable,
    /// It has no room for anything new.
    Full,
}

/// A repository in memory. Clones share their content.
#[derive(Clone, Debug, Default)]
pub struct FakeRepository(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    trouble: Trouble,
    /// Nothing is checked against files received: agents that have no real files announce theirs.
    trusting: bool,
    jobs: BTreeMap<JobUid, Job>,
    images: BTreeMap<String, Bytes>,
    image_sizes: BTreeMap<String, u64>,
    disks: BTreeMap<String, DiskRecord>,
    /// Since when nothing names an image.
    unnamed: BTreeMap<String, Timestamp>,
}

#[derive(Debug, Default)]
struct Job {
    record: JobRecord,
    manifests: BTreeMap<Generation, Manifest>,
    kept: BTreeMap<(Generation, MemberIndex), KeptPart>,
    files: BTreeMap<(Generation, MemberIndex), Vec<File>>,
    /// The packs that each complete generation needs. A pack is named by the generation it came with; later ones
    /// need what those before them need, as far as it is there.
    packs: BTreeMap<Generation, BTreeSet<Generation>>,
    /// The packs that are gone or were set aside.
    lost: BTreeSet<Generation>,
    outputs: BTreeMap<(MemberIndex, String), Bytes>,
}

#[derive(Clone, Debug)]
struct File {
    incarnation: Incarnation,
    said: PartFile,
    content: Bytes,
}

impl FakeRepository {
    /// An empty one that knows only what it was sent.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty one that believes in the files a manifest names, for worlds without real files.
    pub fn trusting() -> Self {
        let fake = Self::default();
        fake.lock().trusting = true;
        fake
    }

    /// Sets what is wrong with it from now on.
    pub fn set_trouble(&self, trouble: Trouble) {
        self.lock().trouble = trouble;
    }

    /// Makes an image of this digest and size appear.
    pub fn add_image(&self, digest: &str, size: u64) {
        let mut inner = self.lock();
        inner.unnamed.remove(digest);
        inner.image_sizes.insert(digest.into(), size);
    }

    /// Loses an image, as a disk that breaks would.
    pub fn lose_image(&self, digest: &str) {
        let mut inner = self.lock();
        inner.image_sizes.remove(digest);
        inner.images.remove(digest);
    }

    /// Makes a file of a part appear, as if an agent of `incarnation` had sent it.
    pub fn add_part(
        &self,
        job: &JobUid,
        generation: Generation,
        incarnation: Incarnation,
        member: MemberIndex,
        file: PartFile,
        content: Bytes,
    ) -> Result<(), RepositoryError> {
        let mut inner = self.working()?;
        inner.has_room()?;
        let job = inner.job(job)?;
        job.record = job.record.with_part(generation, incarnation).map_err(RepositoryError::Refused)?;
        let files = job.files.entry((generation, member)).or_default();
        files.retain(|f| f.said != file);
        files.push(File { incarnation, said: file, content });
        Ok(())
    }

    /// Spoils what was stored of a member's part, as a bad disk would.
    pub fn damage(&self, job: &JobUid, generation: Generation, member: MemberIndex) {
        let mut inner = self.lock();
        let files = inner.jobs.get_mut(job).and_then(|j| j.files.get_mut(&(generation, member)));
        for file in files.into_iter().flatten() {
            file.content = Bytes::from_static(b"spoilt");
        }
    }

    /// Loses the pack that came with a generation, with all that need it.
    pub fn lose_pack(&self, job: &JobUid, generation: Generation) {
        if let Some(job) = self.lock().jobs.get_mut(job) {
            job.lost.insert(generation);
        }
    }

    /// Numbers of the complete generations of a job.
    pub fn complete(&self, job: &JobUid) -> BTreeSet<Generation> {
        self.lock().jobs.get(job).into_iter().flat_map(|j| j.manifests.keys().copied()).collect()
    }

    /// Images that complete generations need and that are not there.
    pub fn missing_images(&self) -> BTreeSet<String> {
        let inner = self.lock();
        let needed = inner.jobs.values().flat_map(|job| job.manifests.values()).flat_map(Manifest::images);
        let is_there = |digest: &String| inner.images.contains_key(digest) || inner.image_sizes.contains_key(digest);
        needed.filter(|digest| !is_there(digest)).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn working(&self) -> Result<MutexGuard<'_, Inner>, RepositoryError> {
        let inner = self.lock();
        if inner.trouble == Trouble::Unreachable {
            return Err(RepositoryError::Unreachable("switched off".into()));
        }
        Ok(inner)
    }
}

impl Inner {
    fn has_room(&self) -> Result<(), RepositoryError> {
        if self.trouble == Trouble::Full {
            return Err(RepositoryError::Full("switched to full".into()));
        }
        Ok(())
    }

    fn job(&mut self, job: &JobUid) -> Result<&mut Job, RepositoryError> {
        if !is_uid(job) {
            return Err(RepositoryError::Refused(no_such_uid(job)));
        }
        Ok(self.jobs.entry(job.clone()).or_default())
    }
}

impl Job {
    /// What a complete generation needs and is lost.
    fn lacks(&self, generation: Generation) -> Option<String> {
        let lost = self.packs.get(&generation)?.intersection(&self.lost).next()?;
        Some(format!("the pack that came with generation {lost} is missing"))
    }

    fn check(&self, generation: Generation, member: MemberIndex, file: &PartFile) -> Result<(), RepositoryError> {
        let found = self.files.get(&(generation, member)).and_then(|all| all.iter().find(|f| f.said == *file));
        let what = || format!("{} of member {member} in generation {generation}", file.kind);
        let found = found.ok_or_else(|| RepositoryError::NotFound(what()))?;
        if !found.content.is_empty() && blake3::hash(&found.content).to_hex().as_str() != file.digest {
            return Err(RepositoryError::Damaged(what()));
        }
        Ok(())
    }
}

fn refused(why: impl std::fmt::Display) -> RepositoryError {
    RepositoryError::Refused(why.to_string())
}

#[async_trait]
impl Repository for FakeRepository {
    async fn content(&self, job: &JobUid) -> Result<JobContent, RepositoryError> {
        let inner = self.working()?;
        let Some(job) = inner.jobs.get(job).filter(|j| j.record.removed.is_none()) else {
            return Ok(JobContent::default());
        };
        let damaged: Vec<DamagedGeneration> = (job.manifests.keys())
            .filter_map(|generation| Some(DamagedGeneration { generation: *generation, why: job.lacks(*generation)? }))
            .collect();
        let sound = job.manifests.values().filter(|manifest| job.lacks(manifest.generation).is_none());
        Ok(JobContent {
            generations: sound.map(GenerationSummary::from).collect(),
            damaged,
            highest: job.record.highest,
            fence: job.record.fence,
        })
    }

    async fn manifest(&self, job: &JobUid, generation: Generation) -> Result<Manifest, RepositoryError> {
        let inner = self.working()?;
        let found = inner.jobs.get(job).and_then(|j| j.manifests.get(&generation));
        found.cloned().ok_or_else(|| RepositoryError::NotFound(format!("generation {generation}")))
    }

    async fn fence(&self, job: &JobUid, incarnation: Incarnation) -> Result<(), RepositoryError> {
        let mut inner = self.working()?;
        let job = inner.job(job)?;
        job.record = job.record.fenced(incarnation).map_err(refused)?;
        let Job { record, kept, files, manifests, .. } = job;
        kept.retain(|(number, _), part| manifests.contains_key(number) || !part_is_void(record, part.incarnation));
        for ((number, _), files) in files.iter_mut() {
            files.retain(|f| manifests.contains_key(number) || !part_is_void(record, f.incarnation));
        }
        Ok(())
    }

    async fn publish(&self, manifest: &Manifest) -> Result<GenerationSummary, RepositoryError> {
        manifest.check().map_err(refused)?;
        let mut inner = self.working()?;
        let room = inner.has_room();
        let trusting = inner.trusting;
        let job = inner.job(&manifest.job)?;
        match job.record.publish(manifest, job.manifests.get(&manifest.generation)) {
            Publish::Already => return Ok(manifest.into()),
            Publish::Refuse(why) => return Err(RepositoryError::Refused(why)),
            Publish::Write => room?,
        }
        if !trusting {
            for part in &manifest.members {
                for file in &part.files {
                    job.check(manifest.generation, part.index, file)?;
                }
            }
        }
        job.record = job.record.with_part(manifest.generation, manifest.incarnation).map_err(refused)?;
        let before = job.packs.values().next_back().cloned().unwrap_or_default();
        let needs = before.difference(&job.lost).copied().chain([manifest.generation]).collect();
        job.packs.insert(manifest.generation, needs);
        job.manifests.insert(manifest.generation, manifest.clone());
        Ok(manifest.into())
    }

    async fn adopt(&self, job: &JobUid, order: &Adoption) -> Result<GenerationSummary, RepositoryError> {
        layout::job(&order.from.job).map_err(refused)?;
        let mut inner = self.working()?;
        if let Some(own) = inner.job(job)?.manifests.get(&ADOPTED) {
            return order.is(own).map(|()| own.into()).map_err(refused);
        }
        let Ancestor { job: source, generation } = &order.from;
        let absent = || RepositoryError::NotFound(format!("generation {generation} of job {source}"));
        let theirs = inner.jobs.get(source).ok_or_else(absent)?;
        let manifest = theirs.manifests.get(generation).ok_or_else(absent)?;
        let made = order.manifest(job, manifest).map_err(refused)?;
        let mut files = BTreeMap::new();
        for part in &manifest.members {
            for file in part.files.iter().filter(|_| !inner.trusting) {
                theirs.check(*generation, part.index, file)?;
            }
            let of_part = theirs.files.get(&(*generation, part.index)).into_iter().flatten();
            let adopted = of_part.map(|file| File { incarnation: BEFORE, ..file.clone() });
            files.insert((ADOPTED, part.index), adopted.collect());
        }
        inner.has_room()?;
        let own = inner.job(job)?;
        if let Publish::Refuse(why) = own.record.publish(&made, None) {
            return Err(RepositoryError::Refused(why));
        }
        own.files.extend(files);
        let summary = (&made).into();
        own.manifests.insert(ADOPTED, made);
        Ok(summary)
    }

    async fn retire(&self, job: &JobUid, generation: Generation) -> Result<(), RepositoryError> {
        let mut inner = self.working()?;
        let job = inner.job(job)?;
        job.manifests.remove(&generation);
        job.packs.remove(&generation);
        job.kept.retain(|(number, _), _| *number != generation);
        job.files.retain(|(number, _), _| *number != generation);
        Ok(())
    }

    async fn give_up(&self, job: &JobUid, generation: Generation) -> Result<(), RepositoryError> {
        let mut inner = self.working()?;
        let job = inner.job(job)?;
        if job.record.removed.is_some() {
            return Ok(());
        }
        if job.manifests.contains_key(&generation) {
            return Err(refused(format!("generation {generation} is complete")));
        }
        job.record = job.record.without(generation);
        job.kept.retain(|(number, _), _| *number != generation);
        job.files.retain(|(number, _), _| *number != generation);
        Ok(())
    }

    async fn remove_job(&self, job: &JobUid) -> Result<(), RepositoryError> {
        let mut inner = self.working()?;
        let job = inner.job(job)?;
        let removed = Some(jiff::Timestamp::UNIX_EPOCH);
        *job = Job { record: JobRecord { removed, ..job.record.clone() }, ..Job::default() };
        Ok(())
    }

    async fn usage(&self) -> Result<Vec<JobUsage>, RepositoryError> {
        let inner = self.working()?;
        let jobs = inner.jobs.iter().filter(|(_, job)| job.record.removed.is_none());
        Ok(jobs
            .map(|(uid, job)| {
                let newest = job.manifests.values().next_back();
                let outputs: usize = job.outputs.values().map(Bytes::len).sum();
                let manifests: u64 = job.manifests.values().map(Manifest::stored).sum();
                JobUsage {
                    job: uid.clone(),
                    owner: newest.map(JobOwner::from),
                    bytes: manifests.saturating_add(outputs as u64),
                }
            })
            .collect())
    }

    async fn outputs(&self, job: &JobUid) -> Result<Vec<OutputSummary>, RepositoryError> {
        let inner = self.working()?;
        let kept = inner.jobs.get(job).into_iter().flat_map(|j| &j.outputs);
        Ok(kept
            .map(|((member, path), body)| OutputSummary {
                member: *member,
                path: path.clone(),
                size: body.len() as u64,
            })
            .collect())
    }

    async fn image(&self, digest: &str) -> Result<Option<u64>, RepositoryError> {
        layout::image(digest).map_err(refused)?;
        let inner = self.working()?;
        let real = inner.images.get(digest).map(|b| b.len() as u64);
        Ok(real.or_else(|| inner.image_sizes.get(digest).copied()))
    }

    async fn disk_record(&self, digest: &str) -> Result<Option<DiskRecord>, RepositoryError> {
        layout::image(digest).map_err(refused)?;
        Ok(self.working()?.disks.get(digest).copied())
    }

    async fn review_images(&self, review: &ImageReview) -> Result<Vec<String>, RepositoryError> {
        let mut inner = self.working()?;
        let manifests = inner.jobs.values().flat_map(|job| job.manifests.values());
        let needed: BTreeSet<String> = manifests.flat_map(Manifest::images).chain(&review.named).cloned().collect();
        let there: BTreeSet<String> = inner.images.keys().chain(inner.image_sizes.keys()).cloned().collect();
        let mut removed = Vec::new();
        for digest in there {
            match fate(needed.contains(&digest), inner.unnamed.get(&digest).copied(), review) {
                Fate::Named => drop(inner.unnamed.remove(&digest)),
                Fate::Unnamed => drop(inner.unnamed.insert(digest, review.now)),
                Fate::Waits => {}
                Fate::Goes => {
                    inner.images.remove(&digest);
                    inner.image_sizes.remove(&digest);
                    inner.disks.remove(&digest);
                    inner.unnamed.remove(&digest);
                    removed.push(digest);
                }
            }
        }
        Ok(removed)
    }
}

#[async_trait]
impl PartLedger for FakeRepository {
    async fn keep_part(&self, job: &JobUid, generation: Generation, kept: &KeptPart) -> Result<(), RepositoryError> {
        kept.part.check().map_err(refused)?;
        let mut inner = self.working()?;
        inner.has_room()?;
        let trusting = inner.trusting;
        let job = inner.job(job)?;
        job.record = job.record.with_part(generation, kept.incarnation).map_err(refused)?;
        for file in kept.part.files.iter().filter(|_| !trusting) {
            job.check(generation, kept.part.index, file)?;
        }
        job.kept.insert((generation, kept.part.index), kept.clone());
        Ok(())
    }

    async fn kept_parts(&self, job: &JobUid, generation: Generation) -> Result<Vec<KeptPart>, RepositoryError> {
        let inner = self.working()?;
        let kept = inner.jobs.get(job).into_iter().flat_map(|j| &j.kept);
        Ok(kept.filter(|((number, _), _)| *number == generation).map(|(_, part)| part.clone()).collect())
    }
}

/// A ticket of the double: the incarnation, in decimal digits.
fn incarnation_of(ticket: &str) -> Result<Incarnation, RepositoryError> {
    ticket.parse().map_err(|_| refused("not a ticket"))
}

fn disk_of(content: &Bytes) -> Result<DiskRecord, RepositoryError> {
    let (format, virtual_size) = inspect(content, content.len() as u64).map_err(RepositoryError::Damaged)?;
    Ok(DiskRecord { format, virtual_size })
}

async fn read(path: &Path) -> Result<Bytes, RepositoryError> {
    tokio::fs::read(path).await.map(Bytes::from).map_err(|e| refused(format!("{}: {e}", path.display())))
}

async fn write(path: &Path, content: &[u8]) -> Result<(), RepositoryError> {
    tokio::fs::write(path, content).await.map_err(|e| refused(format!("{}: {e}", path.display())))
}

impl crate::driver::repository::carry::Carrying for FakeRepository {}

impl crate::driver::repository::piecewise::Piecewise for FakeRepository {}

#[async_trait]
impl ByteStore for FakeRepository {
    async fn put_part(
        &self,
        ticket: &str,
        job: &JobUid,
        generation: Generation,
        member: MemberIndex,
        kind: FileKind,
        file: &Path,
        progress: crate::driver::repository::SendingProgress<'_>,
    ) -> Result<PartFile, RepositoryError> {
        let content = read(file).await?;
        let digest = blake3::hash(&content).to_hex().to_string();
        let size = content.len() as u64;
        let part = PartFile { kind, form: FileForm::Whole, size, stored: size, packed: 0, digest };
        self.add_part(job, generation, incarnation_of(ticket)?, member, part.clone(), content)?;
        progress(crate::driver::repository::Sending::Bytes(size));
        Ok(part)
    }

    async fn get_manifest(&self, job: &JobUid, generation: Generation) -> Result<Manifest, RepositoryError> {
        self.manifest(job, generation).await
    }

    async fn ready(&self, _: FileKind, _: &Path) -> Result<Option<u64>, RepositoryError> {
        Ok(None)
    }

    async fn get_part(
        &self,
        job: &JobUid,
        generation: Generation,
        member: MemberIndex,
        file: &PartFile,
        to: &Path,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Brought, RepositoryError> {
        let content = {
            let inner = self.working()?;
            let absent = || RepositoryError::NotFound(format!("{} of generation {generation}", file.kind));
            let job = inner.jobs.get(job).filter(|j| j.manifests.contains_key(&generation)).ok_or_else(absent)?;
            if let Some(lost) = job.lacks(generation) {
                return Err(RepositoryError::NotFound(lost));
            }
            job.check(generation, member, file)?;
            let files = job.files.get(&(generation, member)).ok_or_else(absent)?;
            files.iter().find(|f| f.said == *file).ok_or_else(absent)?.content.clone()
        };
        write(to, &content).await?;
        progress(content.len() as u64);
        Ok(Brought { fetched: content.len() as u64, local: 0 })
    }

    async fn put_output(
        &self,
        job: &JobUid,
        member: MemberIndex,
        path: &str,
        body: ByteStream,
    ) -> Result<(), RepositoryError> {
        layout::output_name(member, path).map_err(refused)?;
        let chunks: Vec<Bytes> = body.try_collect().await.map_err(|e| RepositoryError::Unreachable(e.to_string()))?;
        let mut inner = self.working()?;
        inner.has_room()?;
        inner.job(job)?.outputs.insert((member, path.into()), chunks.concat().into());
        Ok(())
    }

    async fn get_output(&self, job: &JobUid, member: MemberIndex, path: &str) -> Result<ByteStream, RepositoryError> {
        let inner = self.working()?;
        let body = inner.jobs.get(job).and_then(|j| j.outputs.get(&(member, path.to_owned())));
        let body = body.cloned().ok_or_else(|| RepositoryError::NotFound(path.into()))?;
        Ok(futures::stream::iter([Ok(body)]).boxed())
    }

    async fn put_image(&self, digest: &str, file: &Path) -> Result<(), RepositoryError> {
        layout::image(digest).map_err(refused)?;
        let content = read(file).await?;
        let found = layout::image_name(&Sha256::digest(&content));
        if digest != found {
            return Err(RepositoryError::Damaged(format!("the file is {found}")));
        }
        let mut inner = self.working()?;
        inner.has_room()?;
        inner.unnamed.remove(digest);
        inner.images.insert(digest.into(), content);
        Ok(())
    }

    async fn note_disk(&self, digest: &str, record: &DiskRecord) -> Result<(), RepositoryError> {
        layout::image(digest).map_err(refused)?;
        let mut inner = self.working()?;
        let content = inner.images.get(digest).ok_or_else(|| RepositoryError::NotFound(digest.into()))?;
        if disk_of(content)? != *record {
            return Err(RepositoryError::Damaged("its head says otherwise".into()));
        }
        inner.disks.entry(digest.into()).or_insert(*record);
        Ok(())
    }

    async fn get_image(
        &self,
        digest: &str,
        to: &Path,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RepositoryError> {
        let content = self.working()?.images.get(digest).cloned();
        let content = content.ok_or_else(|| RepositoryError::NotFound(digest.into()))?;
        write(to, &content).await?;
        progress(content.len() as u64);
        Ok(())
    }
}
