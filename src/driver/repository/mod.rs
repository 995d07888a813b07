//! The repository: the durable store of images and generations, outside every reservation.

pub mod carry;
#[cfg(test)]
pub(crate) mod contract;
pub mod fake;
pub mod http;
pub mod pace;
#[cfg(test)]
mod pace_tests;
mod parts;
pub mod piecewise;
mod streams;
pub mod wire;
#[cfg(test)]
mod wire_tests;

use std::{path::Path, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::parts::Kept;
use super::{DriverError, Retry};
use crate::{
    api::{Reason, image::DiskFormat},
    names::{Generation, Incarnation, JobUid, MemberIndex},
    store::{
        adoption::Adoption,
        images::ImageReview,
        machine::MachineRecord,
        manifest::{FileKind, Manifest, MemberPart, PartFile},
    },
};

/// A question that moves no files is answered within this time, or not at all.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A complete generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GenerationSummary {
    /// Its number.
    pub generation: Generation,
    /// The incarnation it was captured in.
    pub incarnation: Incarnation,
    /// The generation that incarnation had started from.
    pub parent: Option<Generation>,
    /// When the members were cut.
    pub taken_at: Timestamp,
    /// Bytes it takes.
    pub stored: u64,
    /// Members in it.
    pub members: u32,
    /// What a node must offer to restore any of them; absent where an older repository answers.
    #[serde(default)]
    pub machine: Option<MachineRecord>,
}

impl From<&Manifest> for GenerationSummary {
    fn from(manifest: &Manifest) -> Self {
        Self {
            generation: manifest.generation,
            incarnation: manifest.incarnation,
            parent: manifest.parent,
            taken_at: manifest.taken_at,
            stored: manifest.stored(),
            members: u32::try_from(manifest.members.len()).unwrap_or(u32::MAX),
            machine: manifest.machine(),
        }
    }
}

/// A complete generation that cannot be restored any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DamagedGeneration {
    /// Its number.
    pub generation: Generation,
    /// What is wrong with it.
    pub why: String,
}

/// What the repository knows of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobContent {
    /// Complete generations that can be restored as far as is known, oldest first.
    pub generations: Vec<GenerationSummary>,
    /// Complete ones of which something is damaged or missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<DamagedGeneration>,
    /// Highest generation number ever seen, complete or not.
    pub highest: Generation,
    /// Lowest incarnation that may still publish.
    pub fence: Incarnation,
}

/// What a job has in the repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobUsage {
    /// The job.
    pub job: JobUid,
    /// Its namespace and name, as the newest complete generation says; absent as long as there is none.
    pub owner: Option<JobOwner>,
    /// Bytes of its generations, complete or not, and of its results.
    pub bytes: u64,
}

/// Whose a job's data is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobOwner {
    /// Namespace of the job.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl From<&Manifest> for JobOwner {
    fn from(manifest: &Manifest) -> Self {
        Self { namespace: manifest.namespace.clone(), name: manifest.job_name.clone() }
    }
}

impl JobContent {
    /// What is wrong with a generation, if it is complete and cannot be restored.
    pub fn damage(&self, generation: Generation) -> Option<&str> {
        self.damaged.iter().find(|damaged| damaged.generation == generation).map(|damaged| damaged.why.as_str())
    }
}

/// A member's part whose bytes are all in the repository, published or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptPart {
    /// The incarnation it was captured in.
    pub incarnation: Incarnation,
    /// The barrier's nonce.
    pub nonce: String,
    /// What the manifest will say of it.
    pub part: MemberPart,
}

/// A file of a job's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutputSummary {
    /// The member it is of.
    pub member: MemberIndex,
    /// Path in the guest; `output` for what the command printed.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
}

/// What an import found out about a disk, so that the next one need not fetch it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskRecord {
    /// Its format.
    pub format: DiskFormat,
    /// Size of the disk as the guest sees it, in bytes.
    pub virtual_size: u64,
}

/// Why the repository did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RepositoryError {
    /// No answer.
    #[error("failed to reach the repository: {0}")]
    Unreachable(String),
    /// It refuses: no or wrong ticket, older incarnation, a name that exists.
    #[error("the repository refused: {0}")]
    Refused(String),
    /// It has no such thing.
    #[error("not in the repository: {0}")]
    NotFound(String),
    /// What it holds or received is not what its digest says.
    #[error("damaged: {0}")]
    Damaged(String),
    /// No room.
    #[error("the repository is full: {0}")]
    Full(String),
    /// More than this job or member may store.
    #[error("too large for the repository: {0}")]
    TooLarge(String),
    /// A file of the own machine's could not be read or written: the repository has no part in it.
    #[error("on this machine: {why}")]
    Local {
        /// Which, and why.
        why: String,
        /// Whether there is no room.
        full: bool,
    },
}

impl RepositoryError {
    /// A file of the own machine's that could not be used for this.
    pub fn local(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        let full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        Self::Local { why: format!("{what}: {error}"), full }
    }
}

impl DriverError for RepositoryError {
    fn reason(&self) -> Reason {
        match self {
            Self::Unreachable(_) => Reason::RepositoryUnreachable,
            Self::Full(_) => Reason::RepositoryFull,
            Self::Refused(_) | Self::NotFound(_) | Self::Damaged(_) | Self::TooLarge(_) | Self::Local { .. } => {
                Reason::TransferFailed
            }
        }
    }
    fn retry(&self) -> Retry {
        match self {
            Self::Unreachable(_) => Retry::After(Duration::from_secs(2)),
            Self::Full(_) | Self::Local { .. } => Retry::After(Duration::from_secs(30)),
            Self::Refused(_) | Self::TooLarge(_) => Retry::Denied,
            Self::NotFound(_) => Retry::Gone,
            Self::Damaged(_) => Retry::Bug,
        }
    }
}

/// Where a file that was fetched came from, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Brought {
    /// From the repository, as stored there.
    pub fetched: u64,
    /// Found on the own machine, as they are in the file.
    pub local: u64,
}

impl std::ops::AddAssign for Brought {
    fn add_assign(&mut self, other: Self) {
        self.fetched += other.fetched;
        self.local += other.local;
    }
}

/// Bytes on their way.
pub type ByteStream = BoxStream<'static, Result<Bytes, std::io::Error>>;

/// What the controllers ask of the repository.
#[async_trait]
pub trait Repository: Send + Sync {
    /// What it has of a job; an unknown job is empty.
    async fn content(&self, job: &JobUid) -> Result<JobContent, RepositoryError>;

    /// The manifest of a complete generation.
    async fn manifest(&self, job: &JobUid, generation: Generation) -> Result<Manifest, RepositoryError>;

    /// From now on only this incarnation or a later one publishes; unfinished generations of older
    /// ones are void (safety B1). Repeating it is no error, lowering it is refused.
    async fn fence(&self, job: &JobUid, incarnation: Incarnation) -> Result<(), RepositoryError>;

    /// Reads back every file the manifest names, then publishes it atomically. A generation that is
    /// published with the same content is no error; with another it is refused.
    async fn publish(&self, manifest: &Manifest) -> Result<GenerationSummary, RepositoryError>;

    /// Makes a complete generation of another job of the same namespace this job's own generation 0, with all that
    /// it needs (safety B11). That it was done already is no error; refused once an incarnation was let in.
    async fn adopt(&self, job: &JobUid, order: &Adoption) -> Result<GenerationSummary, RepositoryError>;

    /// Removes a generation. The caller decides that it may go.
    async fn retire(&self, job: &JobUid, generation: Generation) -> Result<(), RepositoryError>;

    /// Removes the parts of a generation that will never be complete and takes no more of them; refused
    /// for one that is complete. Repeating it is no error.
    async fn give_up(&self, job: &JobUid, generation: Generation) -> Result<(), RepositoryError>;

    /// Removes all unfinished and complete generations and outputs of a job.
    async fn remove_job(&self, job: &JobUid) -> Result<(), RepositoryError>;

    /// How much it has of each job.
    async fn usage(&self) -> Result<Vec<JobUsage>, RepositoryError>;

    /// What was kept of a job's result.
    async fn outputs(&self, job: &JobUid) -> Result<Vec<OutputSummary>, RepositoryError>;

    /// Size in bytes of an image (`sha256:...`), if it is there.
    async fn image(&self, digest: &str) -> Result<Option<u64>, RepositoryError>;

    /// What was noted of an image when it was imported as a disk, if it was.
    async fn disk_record(&self, digest: &str) -> Result<Option<DiskRecord>, RepositoryError>;

    /// Says which images are named by anything outside the repository. Those that neither the review nor a complete
    /// generation names for the grace are removed, and returned (safety B12).
    async fn review_images(&self, review: &ImageReview) -> Result<Vec<String>, RepositoryError>;
}

/// Which members of a generation are safe before it is complete: asked by kget, so that it goes on
/// where its predecessor stopped and needs no agent for what has arrived (safety B15).
#[async_trait]
pub trait PartLedger: Send + Sync {
    /// Notes that all bytes of a member's part have arrived. Refused unless the repository has every
    /// file it names; repeating it with the same content is no error.
    async fn keep_part(&self, job: &JobUid, generation: Generation, part: &KeptPart) -> Result<(), RepositoryError>;

    /// The parts noted for a generation, by member; empty for an unknown one.
    async fn kept_parts(&self, job: &JobUid, generation: Generation) -> Result<Vec<KeptPart>, RepositoryError>;
}

/// How far a file is that is being sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// So many of its bytes have been read.
    Bytes(u64),
    /// All have come, and the repository reads so many packs again that it shares with earlier ones.
    ReadingBack(usize),
}

/// Is told how far a file is.
pub type SendingProgress<'a> = &'a (dyn Fn(Sending) + Send + Sync);

/// What agents and importers ask of the repository: bytes.
#[async_trait]
pub trait ByteStore: carry::Carrying + piecewise::Piecewise {
    /// The manifest of a complete generation: what a member restores from.
    async fn get_manifest(&self, job: &JobUid, generation: Generation) -> Result<Manifest, RepositoryError>;

    /// Sends a file of a generation; compresses it on the way, compares digests at the end.
    /// `progress` is told how far it is.
    #[expect(clippy::too_many_arguments, reason = "each is a different thing, and none has a default")]
    async fn put_part(
        &self,
        ticket: &str,
        job: &JobUid,
        generation: Generation,
        member: MemberIndex,
        kind: FileKind,
        file: &Path,
        progress: SendingProgress<'_>,
    ) -> Result<PartFile, RepositoryError>;

    /// Does with a file what needs no repository, before it is sent. Bytes of it that are not as the node kept them of
    /// an earlier generation; nothing where it kept none.
    async fn ready(&self, kind: FileKind, file: &Path) -> Result<Option<u64>, RepositoryError>;

    /// Fetches a file of a generation to `to`, checked against its digest while it is written. Where it came from.
    async fn get_part(
        &self,
        job: &JobUid,
        generation: Generation,
        member: MemberIndex,
        file: &PartFile,
        to: &Path,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Brought, RepositoryError>;

    /// Keeps a file of the job's result. Sent by the member's agent itself.
    async fn put_output(
        &self,
        job: &JobUid,
        member: MemberIndex,
        path: &str,
        body: ByteStream,
    ) -> Result<(), RepositoryError>;

    /// Reads a file of the job's result.
    async fn get_output(&self, job: &JobUid, member: MemberIndex, path: &str) -> Result<ByteStream, RepositoryError>;

    /// Sends an image file; the repository refuses one that is not what its digest says.
    async fn put_image(&self, digest: &str, file: &Path) -> Result<(), RepositoryError>;

    /// Notes that an image that is there was checked as a disk. Refused if its head says otherwise.
    async fn note_disk(&self, digest: &str, record: &DiskRecord) -> Result<(), RepositoryError>;

    /// Fetches an image file to `to`, checked against its digest.
    async fn get_image(
        &self,
        digest: &str,
        to: &Path,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RepositoryError>;
}
