//! The manifest of a generation: the truth about what can be restored.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    api::{job_status::ResolvedImage, snapshot::SnapshotReason},
    driver::agent::Accelerator,
    names::{Generation, Incarnation, JobUid, MemberIndex},
};

/// Version of the format.
pub const VERSION: u32 = 1;

/// One generation of a job. Published last and atomically; never changed afterwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Uid of the job.
    pub job: JobUid,
    /// Its name.
    pub job_name: String,
    /// Its namespace.
    pub namespace: String,
    /// The generation.
    pub generation: Generation,
    /// The incarnation it was captured in.
    pub incarnation: Incarnation,
    /// The generation this incarnation had started from.
    pub parent: Option<Generation>,
    /// Why it was taken.
    pub reason: SnapshotReason,
    /// When the members were cut.
    pub taken_at: Timestamp,
    /// The barrier's nonce, the same for all parts.
    pub nonce: String,
    /// The image the disks are based on.
    pub image: ResolvedImage,
    /// One part for each member, by index.
    pub members: Vec<MemberPart>,
}

/// One member's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberPart {
    /// The member.
    pub index: MemberIndex,
    /// Its files.
    pub files: Vec<PartFile>,
    /// How its VM is made.
    pub machine: MachineRecord,
    /// Bytes of the command's output that belong to this generation.
    pub output_bytes: u64,
    /// Whether the command had been started.
    pub started: bool,
    /// Seconds the guest had run, in all incarnations that lead here.
    pub ran: f64,
}

/// A file of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartFile {
    /// What it is.
    pub kind: FileKind,
    /// Size on the node, in bytes.
    pub size: u64,
    /// Size as stored (zstd), in bytes.
    pub stored: u64,
    /// BLAKE3 of the stored bytes, hexadecimal.
    pub digest: String,
}

/// What a file of a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// The whole migration stream of QEMU.
    Memory,
    /// A qcow2 overlay: everything that differs from the base image.
    Disk,
    /// The command's output up to the cut.
    Output,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Output => "output",
        })
    }
}

/// How a VM is made: what a node must match to restore it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineRecord {
    /// QEMU's version.
    pub qemu: String,
    /// Versioned machine name, for example `pc-q35-7.2`.
    pub machine: String,
    /// CPU model.
    pub cpu_model: String,
    /// Accelerator: TCG and KVM do not restore each other.
    pub accelerator: Accelerator,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
}
