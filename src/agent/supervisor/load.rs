//! Makes the VM: fetches what it is made of, starts QEMU, loads the memory of a generation. At the
//! end the guest stands still and waits for `go`.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    Supervisor,
    console::Console,
    fetch::{Fetched, Progress},
    output,
    output::Output,
    vm::Vm,
};
use crate::{
    driver::{
        agent::{LeaseState, LoadFault, VmState, limits::PATIENCE},
        guest::{channel::Channel, seed::Seed},
        qemu::{
            QemuError,
            cmdline::{Layer, VmDefinition, sockets},
            img::{self, Chain},
            priority::Threads,
            probe,
            process::{self, Qemu},
            qmp::{Qmp, QmpError},
            restore,
        },
        repository::RepositoryError,
    },
    store::{
        machine::{Lack, MachineRecord, named},
        manifest::{FileKind, MemberPart},
    },
};

/// Hardware address of every guest's first card: each is alone behind its own NAT.
const FIRST_CARD: &str = "02:76:00:00:00:01";
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
    pub(super) fn of_part(error: RepositoryError) -> Self {
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

/// A QEMU whose guest has no memory yet.
struct Started {
    qmp: Arc<Qmp>,
    threads: Option<Threads>,
    machine: MachineRecord,
    base_format: img::Format,
    disk_size: u64,
    chain: Chain,
}

impl Supervisor {
    /// Makes the VM. Its memory, the largest of all, comes while everything else does and QEMU starts.
    pub(super) async fn load(self: &Arc<Self>) -> Result<(), LoadError> {
        let part = self.part_to_restore().await?;
        let progress = Progress::of(part.as_ref());
        let starting = async {
            let fetched = self.fetch(part.as_ref(), &progress).await?;
            Ok((self.start(&fetched, part.as_ref()).await?, fetched))
        };
        let ((started, fetched), mut brought) =
            tokio::try_join!(starting, self.fetch_memory(part.as_ref(), &progress))?;
        let Started { qmp, threads, machine, base_format, disk_size, chain } = started;
        if let Some(part) = &part {
            brought += fetched.brought;
            tracing::info!(fetched = brought.fetched, local = brought.local, "the generation is here");
            self.view.change(|facts| facts.restored = Some(brought));
            self.load_memory(&qmp).await?;
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
            base_format,
            disk_size,
            memory: machine.memory,
            next: u32::try_from(chain.overlays.len()).unwrap_or(u32::MAX),
            chain,
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

    /// Starts QEMU, once the lease is held (safety A4).
    async fn start(self: &Arc<Self>, fetched: &Fetched, part: Option<&MemberPart>) -> Result<Started, LoadError> {
        self.view.until(|facts| facts.lease == LeaseState::Held).await;
        let (mut machine, offer) = self.machine(fetched, part).await?;
        self.make_directories().await?;
        let (format, base_size) = img::inspect_base(&fetched.disk).await?;
        let disk_size = self.config.vm.disk.map_or(base_size, |size| size.0);
        if disk_size < base_size {
            let text = format!("a disk of {disk_size} bytes is smaller than its image of {base_size}");
            return Err(LoadError::Unusable(text));
        }
        let mut chain = Chain::default();
        let (mut below, mut below_format) = (fetched.disk.clone(), format);
        if part.is_some() {
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
            kernel: fetched.kernel.clone(),
            network: self.config.guest_network,
            mac: FIRST_CARD.into(),
            job_card: self.job_card(),
            sockets: self.paths.sockets(),
            incoming: part.is_some(),
        };
        let tap = self.join_network().await?;
        self.serve_master();
        let qemu = Qemu::start(&definition, &self.paths.log(), tap).await?;
        let (qmp, threads) = (qemu.qmp.clone(), qemu.threads);
        tokio::spawn(self.clone().follow_disk(qmp.clone()));
        self.watch_over(qemu);
        self.compare_cpu(&qmp, &mut machine, offer, part).await?;
        Ok(Started { qmp, threads, machine, base_format: format, disk_size, chain })
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
