//! What the tests of the supervisor share: a configuration, and a repository that is a directory.

use std::{
    collections::BTreeMap,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};

use super::{Supervisor, vm::Paths};
use crate::{
    api::{
        job::{RunMembers, RunSpec, VmSpec},
        job_status::ResolvedImage,
        quantity::Bytes,
    },
    clock::Clock,
    driver::{
        agent::{Accelerator, AgentConfig, GuestNetwork, LeaseConfig, PROTOCOL},
        repository::{Brought, ByteStore, ByteStream, DiskRecord, RepositoryError},
    },
    names::{Generation, JobUid, MemberIndex},
    store::manifest::{FileForm, FileKind, Manifest, PartFile},
};

/// An agent's configuration, with its lease below `root`.
pub(crate) fn config(root: &Path) -> AgentConfig {
    AgentConfig {
        protocol: PROTOCOL,
        job: "3f2b8a10-9c1d-4e5f-8a7b-112233445566".into(),
        job_name: "count".into(),
        namespace: "default".into(),
        member: 0,
        members: 1,
        incarnation: 1,
        slot: "77".into(),
        listen: ([127, 0, 0, 1], 0).into(),
        lease: LeaseConfig {
            root: root.join("leases").to_string_lossy().into(),
            directory: "3f2b8a10-77".into(),
            owner: rustix::process::geteuid().as_raw(),
            arm_within: Duration::from_secs(5),
            beat_limit: Duration::from_secs(3),
        },
        isolation: Duration::from_secs(30),
        not_after: jiff::Timestamp::now() + Duration::from_secs(3600),
        repository: "127.0.0.1:1".into(),
        image: ResolvedImage {
            namespace: "default".into(),
            name: "light".into(),
            disk: String::new(),
            virtual_size: 0,
            kernel: None,
            initrd: None,
            params: None,
        },
        vm: VmSpec { memory: Bytes::mebibytes(192), ..VmSpec::default() },
        restore: None,
        run: Some(RunSpec {
            command: vec!["true".into()],
            members: RunMembers::All,
            env: BTreeMap::new(),
            user: None,
            working_dir: None,
        }),
        outputs: Vec::new(),
        inputs: BTreeMap::new(),
        ssh_keys: Vec::new(),
        hostname: "count-0".into(),
        network: None,
        master: None,
        role: crate::driver::agent::Role::Member,
        max_pause: Duration::from_secs(2),
        guest_silence: Duration::from_secs(600),
        accelerator: Accelerator::Tcg,
        guest_network: GuestNetwork::Isolated,
        image_cache: 1 << 40,
        kept: None,
        chain: Vec::new(),
        shared_images: None,
        images_by_taktuk: false,
    }
}

/// Makes a supervisor below a directory: with [`config`] and a repository of its own there, and the real time,
/// unless something else is said.
pub(super) struct Making {
    config: AgentConfig,
    paths: Paths,
    store: Arc<dyn ByteStore>,
    fence: Option<UnixStream>,
}

impl Making {
    pub(super) fn below(root: &Path) -> Self {
        Self {
            config: config(root),
            paths: Paths { vm: root.join("vm"), cache: root.join("cache") },
            store: Arc::new(FileStore::new(&root.join("store"))),
            fence: None,
        }
    }

    pub(super) fn config(self, config: AgentConfig) -> Self {
        Self { config, ..self }
    }

    /// With its VM's files in this directory.
    pub(super) fn vm_in(mut self, directory: &Path) -> Self {
        self.paths.vm = directory.into();
        self
    }

    pub(super) fn store(self, store: Arc<dyn ByteStore>) -> Self {
        Self { store, ..self }
    }

    pub(super) fn fence(self, fence: UnixStream) -> Self {
        Self { fence: Some(fence), ..self }
    }

    pub(super) fn make(self) -> Arc<Supervisor> {
        Supervisor::new(self.config, self.paths, self.store, None, Arc::default(), Clock::system(), self.fence)
    }
}

/// A repository that is a directory, without compression or tickets.
pub(crate) struct FileStore(PathBuf);

impl FileStore {
    pub(crate) fn new(root: &Path) -> Self {
        std::fs::create_dir_all(root).unwrap();
        Self(root.into())
    }

    /// Adds an image; its digest.
    pub(crate) fn add_image(&self, content: &[u8]) -> String {
        let digest = format!("sha256:{:x}", Sha256::digest(content));
        std::fs::write(self.0.join(&digest), content).unwrap();
        digest
    }

    pub(crate) fn publish(&self, manifest: &Manifest) {
        let text = serde_json::to_vec(manifest).unwrap();
        std::fs::write(self.0.join(format!("manifest-{}", manifest.generation)), text).unwrap();
    }

    pub(crate) fn output(&self, member: MemberIndex, path: &str) -> Option<Vec<u8>> {
        std::fs::read(self.0.join(format!("output-{member}-{}", path.replace('/', "_")))).ok()
    }

    /// Puts other bytes in place of a stored part's.
    pub(crate) fn replace(
        &self,
        generation: Generation,
        member: MemberIndex,
        kind: FileKind,
        with: impl FnOnce(Vec<u8>) -> Vec<u8>,
    ) {
        let path = self.part(generation, member, kind);
        let content = with(std::fs::read(&path).unwrap());
        let text = std::fs::read(self.0.join(format!("manifest-{generation}"))).unwrap();
        let mut manifest: Manifest = serde_json::from_slice(&text).unwrap();
        let part = manifest.members.iter_mut().find(|part| part.index == member).unwrap();
        let file = part.files.iter_mut().find(|file| file.kind == kind).unwrap();
        *file = whole(kind, &content);
        std::fs::write(path, content).unwrap();
        self.publish(&manifest);
    }

    fn part(&self, generation: Generation, member: MemberIndex, kind: FileKind) -> PathBuf {
        self.0.join(format!("part-{generation}-{member}-{kind}"))
    }
}

/// A file that is kept as it is.
fn whole(kind: FileKind, content: &[u8]) -> PartFile {
    let size = content.len() as u64;
    PartFile { kind, form: FileForm::Whole, size, stored: size, packed: 0, digest: blake3::hash(content).to_string() }
}

fn unwritten(error: &std::io::Error) -> RepositoryError {
    RepositoryError::local("the test's file", error)
}

fn broken(error: impl std::fmt::Display) -> RepositoryError {
    RepositoryError::NotFound(error.to_string())
}

impl crate::driver::repository::carry::Carrying for FileStore {}

impl crate::driver::repository::piecewise::Piecewise for FileStore {}

#[async_trait]
impl ByteStore for FileStore {
    async fn get_manifest(&self, _: &JobUid, generation: Generation) -> Result<Manifest, RepositoryError> {
        let text = std::fs::read(self.0.join(format!("manifest-{generation}"))).map_err(broken)?;
        serde_json::from_slice(&text).map_err(broken)
    }

    async fn put_part(
        &self,
        _: &str,
        _: &JobUid,
        generation: Generation,
        member: MemberIndex,
        kind: FileKind,
        file: &Path,
        progress: crate::driver::repository::SendingProgress<'_>,
    ) -> Result<PartFile, RepositoryError> {
        let size = std::fs::copy(file, self.part(generation, member, kind)).map_err(broken)?;
        let content = std::fs::read(file).map_err(broken)?;
        progress(crate::driver::repository::Sending::Bytes(size));
        Ok(whole(kind, &content))
    }

    async fn ready(&self, _: FileKind, _: &Path) -> Result<Option<u64>, RepositoryError> {
        Ok(None)
    }

    async fn get_part(
        &self,
        _: &JobUid,
        generation: Generation,
        member: MemberIndex,
        file: &PartFile,
        to: &Path,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Brought, RepositoryError> {
        let content = std::fs::read(self.part(generation, member, file.kind)).map_err(broken)?;
        if blake3::hash(&content).to_string() != file.digest {
            return Err(RepositoryError::Damaged(file.kind.to_string()));
        }
        std::fs::write(to, &content).map_err(broken)?;
        progress(content.len() as u64);
        Ok(Brought { fetched: content.len() as u64, local: 0 })
    }

    async fn put_output(
        &self,
        _: &JobUid,
        member: MemberIndex,
        path: &str,
        body: ByteStream,
    ) -> Result<(), RepositoryError> {
        let pieces: Vec<bytes::Bytes> = body.try_collect().await.map_err(broken)?;
        std::fs::write(self.0.join(format!("output-{member}-{}", path.replace('/', "_"))), pieces.concat())
            .map_err(broken)
    }

    async fn get_output(&self, _: &JobUid, _: MemberIndex, path: &str) -> Result<ByteStream, RepositoryError> {
        Err(broken(path))
    }

    async fn put_image(&self, digest: &str, _: &Path) -> Result<(), RepositoryError> {
        Err(broken(digest))
    }

    async fn note_disk(&self, digest: &str, _: &DiskRecord) -> Result<(), RepositoryError> {
        Err(broken(digest))
    }

    async fn get_image(
        &self,
        digest: &str,
        to: &Path,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RepositoryError> {
        let content = std::fs::read(self.0.join(digest)).map_err(broken)?;
        std::fs::write(to, &content).map_err(|error| unwritten(&error))?;
        progress(content.len() as u64);
        Ok(())
    }
}

/// A small file system, for as long as it is held.
pub(crate) struct Small(pub(crate) PathBuf);

impl Small {
    pub(crate) fn mount(at: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        let size = format!("size={size}");
        let mount = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at).status();
        assert!(mount.unwrap().success());
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").args(["--lazy"]).arg(&self.0).status();
    }
}
