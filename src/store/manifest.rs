//! The manifest of a generation: the truth about what can be restored.

use std::{collections::BTreeSet, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    adoption::{Ancestor, GuestRecord},
    machine::MachineRecord,
};
use crate::{
    api::{job::VmSpec, job_status::ResolvedImage, snapshot::SnapshotReason},
    names::{Generation, Incarnation, JobUid, MemberIndex},
};

/// Version of the format. Since 2, files may be recipes; those of 1 are whole.
pub const VERSION: u32 = 2;
/// Largest manifest that is read, in bytes.
pub const MAX_BYTES: usize = 4 << 20;
/// Most members a job has.
pub const MAX_MEMBERS: usize = 4096;
/// As much of a command's output is kept, in bytes: its beginning.
pub const MOST_OUTPUT: u64 = 4 << 30;
/// Largest file of a part, in bytes.
pub const MAX_FILE: u64 = 1 << 42;

/// Devices, tables of the disk's format, blocks that do not compress.
const FORMATS: u64 = 256 << 20;

/// Most bytes of a member's part: memory, disk and output, and something for their formats. `image` is
/// the size of the image as the guest sees it.
pub fn most_of_part(vm: &VmSpec, image: u64) -> u64 {
    let content = vm.memory.0.saturating_add(vm.disk_over(image)).saturating_add(MOST_OUTPUT);
    content.saturating_add(content / 64).saturating_add(FORMATS)
}

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
    /// What the guests know of themselves. Absent where an earlier version has stored it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guests: Option<GuestRecord>,
    /// Where it was adopted from, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ancestor: Option<Ancestor>,
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
    /// How it is stored.
    #[serde(default)]
    pub form: FileForm,
    /// Size on the node, in bytes.
    pub size: u64,
    /// Size as stored (zstd), in bytes; of a recipe, without its blocks.
    pub stored: u64,
    /// Bytes of the packs that were stored for it: blocks that the repository had not.
    #[serde(default)]
    pub packed: u64,
    /// BLAKE3 of the stored bytes, hexadecimal.
    pub digest: String,
}

/// How a file of a part is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FileForm {
    /// As it is, compressed.
    #[default]
    Whole,
    /// A recipe (`store::recipe`), compressed; the content is in packs of the job.
    Recipe,
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

/// What is wrong with a manifest.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    /// Larger than [`MAX_BYTES`].
    #[error("a manifest of {0} bytes is too large")]
    TooLarge(usize),
    /// Not a manifest at all.
    #[error("not a manifest: {0}")]
    Syntax(String),
    /// Written by a version this one does not know.
    #[error("manifest version {0} is not known here")]
    Version(u32),
    /// A field is out of range or does not go with the others.
    #[error("the manifest is wrong: {0}")]
    Content(String),
}

impl Manifest {
    /// Reads and checks a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_BYTES {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| ManifestError::Syntax(e.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks that a restore could work from it: every member is there once, with memory and disk.
    pub fn check(&self) -> Result<(), ManifestError> {
        let wrong = |what: String| Err(ManifestError::Content(what));
        if !(1..=VERSION).contains(&self.version) {
            return Err(ManifestError::Version(self.version));
        }
        if !is_uid(&self.job) {
            return wrong("the job's uid is none".into());
        }
        if self.nonce.is_empty() || self.nonce.len() > 128 {
            return wrong("the nonce is missing or too long".into());
        }
        if self.parent.is_some_and(|parent| parent >= self.generation) {
            return wrong("its parent is not older".into());
        }
        if self.members.is_empty() || self.members.len() > MAX_MEMBERS {
            return wrong(format!("{} members", self.members.len()));
        }
        for (position, part) in self.members.iter().enumerate() {
            if part.index as usize != position {
                return wrong(format!("member {position} is missing or out of order"));
            }
            part.check()?;
        }
        Ok(())
    }

    /// The file of a member with this digest, if the manifest names it.
    pub fn file(&self, member: MemberIndex, kind: FileKind, digest: &str) -> Option<&PartFile> {
        let part = self.members.get(usize::try_from(member).ok()?)?;
        part.files.iter().find(|f| f.kind == kind && f.digest == digest)
    }

    /// The digests of all images a restore needs.
    pub fn images(&self) -> impl Iterator<Item = &String> {
        self.image.files()
    }

    /// What a node must offer to restore any of its members.
    pub fn machine(&self) -> Option<MachineRecord> {
        MachineRecord::of_all(self.members.iter().map(|member| &member.machine))
    }

    /// Bytes that came into the repository with it.
    pub fn stored(&self) -> u64 {
        self.members
            .iter()
            .flat_map(|m| &m.files)
            .fold(0, |sum, f| sum.saturating_add(f.stored).saturating_add(f.packed))
    }
}

impl MemberPart {
    /// Checks that the part can be restored from: memory and disk are named, each file once.
    pub fn check(&self) -> Result<(), ManifestError> {
        let wrong = |what: &str| Err(ManifestError::Content(format!("member {}: {what}", self.index)));
        let kinds: BTreeSet<FileKind> = self.files.iter().map(|f| f.kind).collect();
        if kinds.len() != self.files.len() {
            return wrong("a file is named twice");
        }
        if !kinds.contains(&FileKind::Memory) || !kinds.contains(&FileKind::Disk) {
            return wrong("memory or disk is missing");
        }
        if !self.ran.is_finite() || self.ran < 0.0 {
            return wrong("impossible running time");
        }
        if !self.machine.is_plain() {
            return wrong("its machine has an impossible CPU");
        }
        if self.files.iter().any(|f| f.check().is_err()) {
            return wrong("a file has an impossible size or digest");
        }
        Ok(())
    }
}

impl PartFile {
    /// Checks sizes and the form of the digest.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.size > MAX_FILE || self.stored > MAX_FILE || self.packed > MAX_FILE || !is_digest(&self.digest) {
            return Err(ManifestError::Content(format!("{}: impossible size or digest", self.kind)));
        }
        Ok(())
    }
}

impl std::str::FromStr for FileKind {
    type Err = ManifestError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "memory" => Ok(Self::Memory),
            "disk" => Ok(Self::Disk),
            "output" => Ok(Self::Output),
            _ => Err(ManifestError::Content("no such kind of file".into())),
        }
    }
}

/// Whether a text is a digest as this format writes it: 64 lower-case hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether a uid can be the name of a directory: letters, digits and inner hyphens.
pub fn is_uid(job: &JobUid) -> bool {
    let name = &job.0;
    !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
pub(crate) mod tests;
