//! Makes the VM: fetches what it is made of, starts QEMU, loads the memory of a generation. At the
//! end the guest stands still and waits for `go`.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{Supervisor, console::Console, images, output, output::Output, vm::Vm};
use crate::{
    driver::{
        agent::{LeaseState, LoadFault, VmState, limits::PATIENCE},
        guest::{channel::Channel, seed::Seed},
        qemu::{
            QemuError,
            cmdline::{Kernel, Layer, VmDefinition, sockets},
            img::{self, Chain},
            probe,
            process::{self, Qemu},
            qmp::{Qmp, QmpError},
            restore,
        },
        repository::{Brought, RepositoryError},
    },
    store::{
        machine::{Lack, named},
        manifest::{FileKind, MemberPart},
    },
};

/// Hardware address of every guest's first card: each is alone behind its own NAT.
const FIRST_CARD: &str = "02:76:00:00:00:01";
/// How long until the repository is asked again.
const AGAIN: Duration = Duration::from_secs(2);
/// QEMU gives up when it has read nothing of the memory for this long.
const LOAD_LIMIT: Duration = Duration::from_secs(60);

/// Why there is no VM.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// What the agent was given cannot be used, or nobody knows why it could not.
    #[error("{0}")]
    Unusable(String),
    /// This node could not do it.
    #[error("{0}")]
    Node(String),
    /// This node does not offer what the VM needs.
    #[error("this node lacks {}", named(.0))]
    Lacks(Vec<Lack>),
    /// The repository does not have what the generation says of this member.
    #[error("{0}")]
    Part(String),
}

impl LoadError {
    /// Whose fault it is.
    pub(super) fn fault(&self) -> LoadFault {
        match self {
            Self::Unusable(_) => LoadFault::Unknown,
            Self::Node(_) | Self::Lacks(_) => LoadFault::Node,
            Self::Part(_) => LoadFault::Part,
        }
    }

    /// What the node does not offer, if it is that.
    pub(super) fn lacks(&self) -> &[Lack] {
        if let Self::Lacks(lacks) = self { lacks } else { &[] }
    }

    /// What goes wrong with the generation itself, and not with an image that all its members share.
    fn of_part(error: RepositoryError) -> Self {
        match error {
            RepositoryError::NotFound(_) | RepositoryError::Damaged(_) => Self::Part(error.to_string()),
            other => other.into(),
        }
    }
}

impl From<RepositoryError> for LoadError {
    fn from(error: RepositoryError) -> Self {
        match error {
            RepositoryError::Full(_) | RepositoryError::Unreachable(_) | RepositoryError::Local { .. } => {
                Self::Node(error.to_string())
            }
            RepositoryError::NotFound(_)
            | RepositoryError::Damaged(_)
            | RepositoryError::Refused(_)
            | RepositoryError::TooLarge(_) => Self::Unusable(error.to_string()),
        }
    }
}

impl From<QemuError> for LoadError {
    fn from(error: QemuError) -> Self {
        let text = error.to_string();
        match error {
            QemuError::Io { .. }
            | QemuError::Late(_)
            | QemuError::Unwritten(_)
            | QemuError::Qmp(QmpError::Late(_) | QmpError::Closed | QmpError::Socket(_)) => Self::Node(text),
            QemuError::Program { .. } => Self::said(text),
            QemuError::Qmp(QmpError::Refused { .. }) | QemuError::Migration { .. } | QemuError::Image { .. } => {
                Self::Unusable(text)
            }
        }
    }
}

/// What QEMU says where a node lacks something that others may have.
const NODES_WORDS: [&str; 6] =
    ["kvm", "cannot allocate memory", "no space left", "permission denied", "resource busy", "input/output error"];

impl LoadError {
    /// By the last words of a program that failed.
    fn said(text: String) -> Self {
        let words = text.to_lowercase();
        if NODES_WORDS.iter().any(|word| words.contains(word)) { Self::Node(text) } else { Self::Unusable(text) }
    }
}

fn node(what: &'static str) -> impl Fn(std::io::Error) -> LoadError {
    move |error| LoadError::Node(format!("failed to {what}: {error}"))
}

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

/// What was fetched.
pub(super) struct Fetched {
    disk: PathBuf,
    pub(super) kernel: Option<Kernel>,
    pub(super) part: Option<MemberPart>,
    /// Keeps the node from removing these files.
    held: Vec<images::Cached>,
}

impl Supervisor {
    /// Fetches image and generation; waits for a repository that does not answer.
    pub(super) async fn fetch(&self) -> Result<Fetched, LoadError> {
        let part = self.patiently(|| self.find_part()).await.map_err(LoadError::of_part)?;
        self.check_node(part.as_ref()).await?;
        // before the part, since an image may have to be waited for
        let (disk, kernel, held) = self.patiently(|| self.fetch_images()).await?;
        if let Some(part) = &part {
            self.patiently(|| self.fetch_part(part)).await.map_err(LoadError::of_part)?;
        }
        Ok(Fetched { disk, kernel, part, held })
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

    /// The files of the part.
    async fn fetch_part(&self, part: &MemberPart) -> Result<(), RepositoryError> {
        let generation = self.config.restore.unwrap_or_default();
        let total = part.files.iter().map(|file| file.size).sum();
        let (before, mut restored) = (AtomicU64::new(0), Brought::default());
        let progress = |done: u64| {
            let done = before.load(Ordering::Relaxed) + done;
            self.view.quietly(|facts| facts.set_vm(VmState::Fetching { done, total }));
        };
        for file in &part.files {
            let to = self.paths.vm.join(format!("load-{}", file.kind));
            let (job, member) = (&self.config.job, self.config.member);
            restored += self.store.get_part(job, generation, member, file, &to, &progress).await?;
            before.fetch_add(file.size, Ordering::Relaxed);
        }
        tracing::info!(generation, fetched = restored.fetched, local = restored.local, "the generation is here");
        self.view.change(|facts| facts.restored = Some(restored));
        Ok(())
    }

    /// The disk, the kernel if it is given, and what keeps the node from removing their files.
    async fn fetch_images(&self) -> Result<(PathBuf, Option<Kernel>, Vec<images::Cached>), RepositoryError> {
        let image = &self.config.image;
        let progress = |done: u64| {
            self.view.quietly(|facts| facts.set_vm(VmState::Fetching { done, total: done }));
        };
        let cache = &images::Cache { directory: &self.paths.cache, limit: self.config.image_cache };
        let fetched =
            async |digest: &str| images::image(self.store.as_ref(), cache, digest, &progress).await.map_err(awaited);
        let mut held = Vec::new();
        let mut place = |cached: images::Cached| {
            let path = cached.path.clone();
            held.push(cached);
            path
        };
        let disk = place(fetched(&image.disk).await?);
        let kernel = match &image.kernel {
            None => None,
            Some(kernel) => {
                let kernel = place(fetched(kernel).await?);
                let initrd = match &image.initrd {
                    None => None,
                    Some(initrd) => Some(place(fetched(initrd).await?)),
                };
                Some(Kernel { kernel, initrd, params: image.params.clone().unwrap_or_default() })
            }
        };
        Ok((disk, kernel, held))
    }

    /// Makes the VM of what was fetched, once the lease is held (safety A4).
    pub(super) async fn load(self: &Arc<Self>, fetched: Fetched) -> Result<(), LoadError> {
        self.view.until(|facts| facts.lease == LeaseState::Held).await;
        let (mut machine, offer) = self.machine(&fetched).await?;
        self.make_directories().await?;
        let (format, base_size) = img::inspect_base(&fetched.disk).await?;
        let disk_size = self.config.vm.disk.map_or(base_size, |size| size.0);
        if disk_size < base_size {
            let text = format!("a disk of {disk_size} bytes is smaller than its image of {base_size}");
            return Err(LoadError::Unusable(text));
        }
        let mut chain = Chain::default();
        let (mut below, mut below_format) = (fetched.disk.clone(), format);
        if fetched.part.is_some() {
            let delta = self.paths.overlay(0);
            tokio::fs::rename(self.paths.vm.join("load-disk"), &delta).await.map_err(node("place the disk"))?;
            img::set_below(&delta, &fetched.disk, format).await?;
            chain.overlays.push((0, delta.clone()));
            (below, below_format) = (delta, img::Format::Qcow2);
        }
        let top = u32::try_from(chain.overlays.len()).unwrap_or_default();
        img::create_overlay(&self.paths.overlay(top), &below, below_format, disk_size).await?;
        chain.overlays.push((top, self.paths.overlay(top)));
        for (_, path) in &chain.overlays {
            process::give(path)?;
        }
        self.make_seed().await?;

        let layer = |node: String, path: PathBuf, format| Layer { node, path, format };
        let overlays = chain.overlays.iter().map(|(n, path)| layer(Chain::node(*n), path.clone(), img::Format::Qcow2));
        let definition = VmDefinition {
            name: format!("{}-{}", self.config.job_name, self.config.member),
            machine: machine.machine.clone(),
            cpu_model: machine.cpu_model.clone(),
            withheld: machine.withheld.clone(),
            accelerator: machine.accelerator,
            cpus: machine.cpus,
            memory_mib: machine.memory >> 20,
            disk: std::iter::once(layer("base".into(), fetched.disk.clone(), format)).chain(overlays).collect(),
            seed: self.paths.seed(),
            kernel: fetched.kernel,
            network: self.config.guest_network,
            mac: FIRST_CARD.into(),
            job_card: self.job_card(),
            sockets: self.paths.sockets(),
            incoming: fetched.part.is_some(),
        };
        let tap = self.join_network().await?;
        self.serve_master();
        let qemu = Qemu::start(&definition, &self.paths.log(), tap).await?;
        let (qmp, threads) = (qemu.qmp.clone(), qemu.threads);
        tokio::spawn(self.clone().follow_disk(qmp.clone()));
        self.watch_over(qemu);
        self.compare_cpu(&qmp, &mut machine, offer, fetched.part.as_ref()).await?;

        if fetched.part.is_some() {
            self.load_memory(&qmp).await?;
        }
        if let Some(part) = &fetched.part {
            self.restored_ran.store(part.ran.to_bits(), Ordering::Relaxed);
            self.view.change(|facts| facts.guest.started = part.started);
        }
        let sockets = self.paths.sockets();
        let output =
            Output::follow(&sockets.join(sockets::OUTPUT), &self.paths.output(), self.clone(), output::PATIENCE).await;
        let console = Console::follow(&sockets.join(sockets::CONSOLE)).await.map_err(node("follow the console"))?;
        // there is one VM in an agent's life
        let _ = self.console.set(console);
        let channel = Channel::connect(&sockets.join(sockets::GUEST_AGENT)).await;
        *self.guest.lock().await = Some(channel.map_err(|error| LoadError::Node(error.to_string()))?);
        *self.vm.lock().await = Some(Vm {
            qmp,
            threads,
            version: probe::version().await?,
            base: fetched.disk,
            _held: fetched.held,
            base_format: format,
            disk_size,
            memory: machine.memory,
            chain,
            next: top + 1,
            output: output.map_err(node("follow the output"))?,
            prepared: None,
            gate: None,
            being_read: std::collections::BTreeSet::new(),
            patience: PATIENCE,
            captured: std::collections::BTreeMap::new(),
        });
        self.view.change(|facts| {
            facts.machine = Some(machine);
            facts.set_vm(VmState::Loaded);
        });
        Ok(())
    }

    async fn make_directories(&self) -> Result<(), LoadError> {
        let mode = |path: PathBuf, mode: u32| async move {
            tokio::fs::create_dir_all(&path).await?;
            tokio::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).await
        };
        let make = node("make the VM's directory");
        // QEMU passes through these, and lists neither
        mode(self.paths.vm.clone(), 0o711).await.map_err(&make)?;
        mode(self.paths.disks(), 0o711).await.map_err(&make)?;
        mode(self.paths.sockets(), 0o700).await.map_err(&make)?;
        process::give(&self.paths.sockets())?;
        Ok(())
    }

    async fn make_seed(&self) -> Result<(), LoadError> {
        let seed = Seed {
            instance: format!("{}-{}", self.config.job, self.config.member),
            hostname: self.config.hostname.clone(),
            mac: FIRST_CARD.into(),
            job_network: self.job_network(),
            ssh_keys: self.config.ssh_keys.clone(),
            files: self.config.inputs.clone(),
        };
        let path = self.paths.seed();
        seed.write(&self.paths.vm.join("seed"), &path).await.map_err(|error| LoadError::Node(error.to_string()))?;
        let private = std::fs::Permissions::from_mode(0o600);
        tokio::fs::set_permissions(&path, private).await.map_err(node("close the seed to others"))?;
        process::give(&path)?;
        Ok(())
    }

    async fn load_memory(&self, qmp: &Qmp) -> Result<(), LoadError> {
        let path = self.paths.vm.join(format!("load-{}", FileKind::Memory));
        let memory = std::fs::File::open(&path).map_err(node("open the memory"))?;
        let total = memory.metadata().map_err(node("look at the memory"))?.len();
        let progress = |done: u64| self.view.quietly(|facts| facts.set_vm(VmState::Fetching { done, total }));
        if let Err(error) = restore::load(qmp, &memory, LOAD_LIMIT, &progress).await {
            let text = format!("{error}; QEMU said: {}", process::last_words(&self.paths.log()));
            return Err(match error {
                // one that cannot read the stream ends, too: it is not known whose fault that is
                QemuError::Qmp(QmpError::Closed) | QemuError::Migration { .. } => LoadError::said(text),
                other => match LoadError::from(other) {
                    LoadError::Node(_) => LoadError::Node(text),
                    LoadError::Part(_) | LoadError::Lacks(_) | LoadError::Unusable(_) => LoadError::Unusable(text),
                },
            });
        }
        super::vm::remove(&path).await;
        let output = self.paths.vm.join(format!("load-{}", FileKind::Output));
        tokio::fs::rename(&output, self.paths.output()).await.map_err(node("place the output"))
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
