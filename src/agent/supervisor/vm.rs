//! The VM as the supervisor holds it: QEMU, its disk's chain, its captures on local disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::OwnedMutexGuard;

use super::{super::AgentArgs, images::Cached, output::Output};
use crate::{
    driver::{
        guest::channel::Channel,
        qemu::{
            QemuError,
            capture::{self, Mechanism},
            img::{Chain, Format},
            priority::Threads,
            probe::Version,
            qmp::Qmp,
        },
    },
    names::Generation,
    store::manifest::{FileKind, MemberPart},
};

/// Captured generations that are kept on local disk.
const KEPT: usize = 2;

/// Where the files of one VM lie.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// The VM's own directory, removed at the end.
    pub(super) vm: PathBuf,
    /// Images of the node.
    pub(super) cache: PathBuf,
}

impl Paths {
    pub(super) fn of(args: &AgentArgs) -> Self {
        Self { vm: args.vm_dir.clone(), cache: args.node_dir.join("images") }
    }
    pub(super) fn sockets(&self) -> PathBuf {
        self.vm.join("s")
    }
    pub(super) fn disks(&self) -> PathBuf {
        self.vm.join("disks")
    }
    pub(super) fn seed(&self) -> PathBuf {
        self.vm.join("seed.iso")
    }
    pub(super) fn log(&self) -> PathBuf {
        self.vm.join("qemu.log")
    }
    pub(super) fn output(&self) -> PathBuf {
        self.vm.join("output")
    }
    pub(super) fn overlay(&self, number: u32) -> PathBuf {
        self.disks().join(format!("overlay-{number}"))
    }
    pub(super) fn generation(&self, generation: Generation) -> PathBuf {
        self.vm.join(format!("generation-{generation}"))
    }
    /// Parts of other members.
    pub(super) fn held(&self) -> PathBuf {
        self.vm.join("held")
    }
    /// A file of a captured generation.
    pub(super) fn part(&self, generation: Generation, kind: FileKind) -> PathBuf {
        self.generation(generation).join(kind.to_string())
    }
}

/// A capture that was prepared.
pub(super) struct Prepared {
    pub(super) generation: Generation,
    /// Number of the new overlay.
    pub(super) overlay: u32,
    pub(super) mechanism: Mechanism,
    /// When; one that is not followed by a stop is undone.
    pub(super) at: Instant,
}

/// A loaded VM.
pub(super) struct Vm {
    pub(super) qmp: Arc<Qmp>,
    pub(super) threads: Option<Threads>,
    pub(super) version: Version,
    pub(super) base: PathBuf,
    /// The images it uses: the node keeps them.
    pub(super) _held: Vec<Cached>,
    pub(super) base_format: Format,
    pub(super) disk_size: u64,
    pub(super) memory: u64,
    pub(super) chain: Chain,
    /// Number of the next overlay.
    pub(super) next: u32,
    pub(super) output: Output,
    pub(super) prepared: Option<Prepared>,
    /// Keeps the guest's channel idle while the capture of a generation goes on (safety B9).
    pub(super) gate: Option<(Generation, OwnedMutexGuard<Option<Channel>>)>,
    /// Generations for which frozen overlays are being read (safety B8).
    pub(super) being_read: BTreeSet<Generation>,
    /// Writing a capture may take so long, beside the time that its bytes take.
    pub(super) patience: Duration,
    /// What is captured on local disk.
    pub(super) captured: BTreeMap<Generation, MemberPart>,
}

impl Vm {
    /// The overlay that is written now.
    pub(super) fn top(&self) -> Option<(u32, &Path)> {
        self.chain.overlays.last().map(|(number, path)| (*number, path.as_path()))
    }

    /// Undoes what was prepared for a generation.
    pub(super) async fn discard(&mut self, paths: &Paths, generation: Generation) {
        self.gate.take_if(|(of, _)| *of == generation);
        let Some(prepared) = self.prepared.take_if(|prepared| prepared.generation == generation) else { return };
        if let Err(error) = self.close_prepared(&prepared).await {
            tracing::warn!(%error, "failed to undo a prepared capture");
        }
        remove(&paths.overlay(prepared.overlay)).await;
        remove_generation(paths, prepared.generation).await;
    }

    async fn close_prepared(&self, prepared: &Prepared) -> Result<(), QemuError> {
        capture::withdraw(&self.qmp).await?;
        capture::remove_overlay(&self.qmp, &Chain::node(prepared.overlay)).await
    }

    /// Removes the oldest captures, so that two stay.
    pub(super) async fn forget_old(&mut self, paths: &Paths, uploading: Option<Generation>) {
        while self.captured.len() > KEPT {
            let oldest = self.captured.keys().copied().find(|generation| Some(*generation) != uploading);
            let Some(oldest) = oldest else { return };
            self.captured.remove(&oldest);
            remove_generation(paths, oldest).await;
        }
    }
}

/// Removes the files of a generation.
pub(super) async fn remove_generation(paths: &Paths, generation: Generation) {
    if let Err(error) = tokio::fs::remove_dir_all(paths.generation(generation)).await {
        tracing::warn!(%error, generation, "the files of a generation stay");
    }
}

/// Removes a file.
pub(super) async fn remove(path: &Path) {
    if let Err(error) = tokio::fs::remove_file(path).await {
        tracing::warn!(%error, path = %path.display(), "a file stays");
    }
}
