//! Fetches what a VM is made of: images, and this member's part of the generation to restore.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{Supervisor, images, load::LoadError};
use crate::{
    driver::{
        agent::VmState,
        qemu::cmdline::Kernel,
        repository::{Brought, RepositoryError},
    },
    store::manifest::{FileKind, MemberPart},
};

/// How long until the repository is asked again.
const AGAIN: Duration = Duration::from_secs(2);

/// An image that the repository does not have, or has damaged, is imported again: it is waited for, as
/// long as the operator waits for this agent. No generation is to blame.
fn awaited(error: RepositoryError) -> RepositoryError {
    match error {
        RepositoryError::NotFound(_) | RepositoryError::Damaged(_) => {
            RepositoryError::Unreachable(format!("an image: {error}; waiting until it is imported again"))
        }
        other => other,
    }
}

/// What a VM starts with.
pub(super) struct Fetched {
    pub(super) disk: PathBuf,
    pub(super) kernel: Option<Kernel>,
    /// Keeps the node from removing these files.
    pub(super) held: Vec<images::Cached>,
    /// Where the bytes of the part's smaller files came from.
    pub(super) brought: Brought,
}

/// How far all that is fetched at the same time has come, in bytes.
#[derive(Default)]
pub(super) struct Progress {
    part: u64,
    memory: AtomicU64,
    others: AtomicU64,
    /// Of the image that is being fetched.
    image: AtomicU64,
    /// What that one has as a whole; where nobody says it, its end does.
    image_size: AtomicU64,
}

impl Progress {
    pub(super) fn of(part: Option<&MemberPart>) -> Self {
        let part = part.map_or(0, |part| part.files.iter().map(|file| file.size).sum());
        Self { part, ..Self::default() }
    }

    fn shown(&self) -> VmState {
        let image = self.image.load(Ordering::Relaxed);
        let done = image + self.memory.load(Ordering::Relaxed) + self.others.load(Ordering::Relaxed);
        VmState::Fetching { done, total: self.part + image.max(self.image_size.load(Ordering::Relaxed)) }
    }
}

impl Supervisor {
    /// This member's part of the generation to restore, if there is one and the node will do as far as that is known;
    /// waits for a repository that does not answer.
    pub(super) async fn part_to_restore(&self) -> Result<Option<MemberPart>, LoadError> {
        let part = self.patiently(|| self.find_part()).await.map_err(LoadError::of_part)?;
        self.check_node(part.as_ref()).await?;
        Ok(part)
    }

    /// Fetches all but the memory.
    pub(super) async fn fetch(&self, part: Option<&MemberPart>, progress: &Progress) -> Result<Fetched, LoadError> {
        // before the part, since an image may have to be waited for
        let (disk, kernel, held) = self.patiently(|| self.fetch_images(progress)).await?;
        let mut fetched = Fetched { disk, kernel, held, brought: Brought::default() };
        if let Some(part) = part {
            let brought = self.patiently(|| self.fetch_files(part, false, progress)).await;
            fetched.brought = brought.map_err(LoadError::of_part)?;
        }
        Ok(fetched)
    }

    /// Fetches the memory, if there is a generation to restore.
    pub(super) async fn fetch_memory(
        &self,
        part: Option<&MemberPart>,
        progress: &Progress,
    ) -> Result<Brought, LoadError> {
        let Some(part) = part else { return Ok(Brought::default()) };
        self.patiently(|| self.fetch_files(part, true, progress)).await.map_err(LoadError::of_part)
    }

    /// Until the repository answers, has what is wanted or refuses; no longer than the agent may start anything.
    async fn patiently<T, F>(&self, mut fetch: impl FnMut() -> F) -> Result<T, RepositoryError>
    where
        F: Future<Output = Result<T, RepositoryError>>,
    {
        let mut cleared = false;
        loop {
            match fetch().await {
                Err(RepositoryError::Local { why, full: true }) if !cleared => {
                    tracing::warn!(why, "the disk of the node is full");
                    self.make_room().await;
                    cleared = true;
                }
                Err(RepositoryError::Unreachable(why)) if self.view.now() < self.config.not_after => {
                    tracing::warn!(why, "the repository does not answer");
                    let until = self.config.not_after.strftime("%Y-%m-%dT%H:%MZ");
                    self.view.wait(Some(format!("the repository: {why}; tried again until {until}")));
                    tokio::time::sleep(AGAIN).await;
                }
                other => {
                    self.view.wait(None);
                    return other;
                }
            }
        }
    }

    /// This member's part of the generation to restore, if there is one.
    async fn find_part(&self) -> Result<Option<MemberPart>, RepositoryError> {
        let Some(generation) = self.config.restore else { return Ok(None) };
        let manifest = self.store.get_manifest(&self.config.job, generation).await?;
        let found = manifest.members.into_iter().find(|part| part.index == self.config.member);
        found.ok_or_else(|| RepositoryError::NotFound(format!("member of generation {generation}"))).map(Some)
    }

    /// The memory of the part, or its other files.
    async fn fetch_files(
        &self,
        part: &MemberPart,
        memory: bool,
        progress: &Progress,
    ) -> Result<Brought, RepositoryError> {
        let generation = self.config.restore.unwrap_or_default();
        let moved = if memory { &progress.memory } else { &progress.others };
        let (mut before, mut brought) = (0, Brought::default());
        for file in part.files.iter().filter(|file| (file.kind == FileKind::Memory) == memory) {
            let to = self.paths.vm.join(format!("load-{}", file.kind));
            let (job, member) = (&self.config.job, self.config.member);
            let progress = |done: u64| {
                moved.store(before + done, Ordering::Relaxed);
                self.view.quietly(|facts| facts.set_vm(progress.shown()));
            };
            brought += self.store.get_part(job, generation, member, file, &to, &progress).await?;
            before += file.size;
        }
        Ok(brought)
    }

    /// The disk, the kernel if it is given, and what keeps the node from removing their files.
    async fn fetch_images(
        &self,
        progress: &Progress,
    ) -> Result<(PathBuf, Option<Kernel>, Vec<images::Cached>), RepositoryError> {
        let image = &self.config.image;
        let mut held = Vec::new();
        let mut place = |cached: images::Cached| {
            let path = cached.path.clone();
            held.push(cached);
            path
        };
        let disk = place(self.fetch_image(&image.disk, progress).await?);
        let kernel = match &image.kernel {
            None => None,
            Some(kernel) => {
                let kernel = place(self.fetch_image(kernel, progress).await?);
                let initrd = match &image.initrd {
                    None => None,
                    Some(initrd) => Some(place(self.fetch_image(initrd, progress).await?)),
                };
                Some(Kernel { kernel, initrd, params: image.params.clone().unwrap_or_default() })
            }
        };
        Ok((disk, kernel, held))
    }

    /// An image as the node has it, fetched where that is not yet so.
    async fn fetch_image(&self, digest: &str, progress: &Progress) -> Result<images::Cached, RepositoryError> {
        let progress = |done: u64| {
            progress.image.store(done, Ordering::Relaxed);
            progress.image_size.store(self.chain.size(digest).unwrap_or_default(), Ordering::Relaxed);
            self.view.quietly(|facts| facts.set_vm(progress.shown()));
        };
        let cache = images::Cache { directory: &self.paths.cache, limit: self.config.image_cache };
        images::image(self.store.as_ref(), &self.chain, &cache, digest, &progress).await.map_err(awaited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_image_all_is_wanted_from_its_first_byte_on() {
        let progress = Progress::default();
        progress.image.store(5, Ordering::Relaxed);
        assert_eq!(progress.shown(), VmState::Fetching { done: 5, total: 5 }, "nobody says how large it is");
        progress.image_size.store(9, Ordering::Relaxed);
        assert_eq!(progress.shown(), VmState::Fetching { done: 5, total: 9 });
    }
}
