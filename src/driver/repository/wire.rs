//! What client and server of the repository agree on: paths, names of parameters, errors.

use std::{fmt, time::Duration};

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::RepositoryError;
use crate::{
    names::{Generation, Incarnation, JobUid, MemberIndex},
    store::{
        manifest::{FileForm, FileKind},
        pack::{BlockName, PackName},
    },
};

/// Header that carries a ticket.
pub const TICKET: &str = "x-vmdeploy-ticket";
/// Header with [`VERSION`], on what is asked and on what is answered.
pub const PROTOCOL: &str = "x-vmdeploy-protocol";
/// What is spoken here. 1, which does not say so, knows only whole files; since 2 there are blocks and recipes.
pub const VERSION: u32 = 2;
/// What is said to a request that is not known.
pub const NO_PATH: &str = "no such path";
/// What is said to a request of a later version that is not understood, with an [`ErrorReply`].
pub const TOO_NEW: StatusCode = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
/// Which bytes of an image are wanted.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct BytesQuery {
    /// The first.
    pub from: u64,
    /// The one after the last.
    pub to: u64,
}

/// Largest error that is read.
pub const MAX_ERROR: usize = 16 << 10;
/// Limit of a request that moves no files.
pub const SHORT: Duration = super::ANSWER_WITHIN;
/// Limit of a publication, which reads all files back.
pub const LONG: Duration = Duration::from_secs(1800);

/// Sent with a file: its size before it was compressed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct FileQuery {
    /// Size on the node, in bytes.
    pub size: u64,
    /// How it is sent.
    #[serde(default)]
    pub form: FileForm,
}

/// The answer to a recipe whose packs are not all read back yet: it is to be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// How many are left.
    pub packs: usize,
}

/// Most names of one question for blocks; it is their bytes, one behind the other.
pub const MOST_NAMES: usize = 8192;

/// A question for blocks, as it travels.
pub fn write_names(names: &[BlockName]) -> Vec<u8> {
    names.iter().flat_map(|name| name.0).collect()
}

/// Reads a question for blocks.
pub fn read_names(bytes: &[u8]) -> Option<Vec<BlockName>> {
    let (names, rest) = bytes.as_chunks::<32>();
    (rest.is_empty() && names.len() <= MOST_NAMES).then(|| names.iter().copied().map(BlockName).collect())
}

/// Which content of a file is wanted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DigestQuery {
    /// BLAKE3 of the stored bytes.
    pub digest: String,
}

/// Which file of a job's result is meant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutputQuery {
    /// Path in the guest.
    pub path: String,
}

/// Body of a request to raise the fence.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct FenceOrder {
    /// The lowest incarnation that may publish.
    pub incarnation: Incarnation,
}

/// An error as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// Which one.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
}

/// The kinds of error, as in [`RepositoryError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ErrorKind {
    /// Something of the repository's own failed; trying again can help.
    Unavailable,
    /// Refused.
    Refused,
    /// No such thing.
    NotFound,
    /// Not what its digest says.
    Damaged,
    /// No room.
    Full,
    /// More than this job or member may store.
    TooLarge,
}

impl ErrorReply {
    /// The status that it is sent with.
    pub fn status(&self) -> StatusCode {
        match self.kind {
            ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Refused => StatusCode::FORBIDDEN,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Damaged => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::Full => StatusCode::INSUFFICIENT_STORAGE,
            ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }
}

impl From<RepositoryError> for ErrorReply {
    fn from(error: RepositoryError) -> Self {
        let (kind, message) = match error {
            RepositoryError::Unreachable(message) | RepositoryError::Local { why: message, .. } => {
                (ErrorKind::Unavailable, message)
            }
            RepositoryError::Refused(message) => (ErrorKind::Refused, message),
            RepositoryError::NotFound(message) => (ErrorKind::NotFound, message),
            RepositoryError::Damaged(message) => (ErrorKind::Damaged, message),
            RepositoryError::Full(message) => (ErrorKind::Full, message),
            RepositoryError::TooLarge(message) => (ErrorKind::TooLarge, message),
        };
        Self { kind, message }
    }
}

impl From<ErrorReply> for RepositoryError {
    fn from(ErrorReply { kind, message }: ErrorReply) -> Self {
        match kind {
            ErrorKind::Unavailable => Self::Unreachable(message),
            ErrorKind::Refused => Self::Refused(message),
            ErrorKind::NotFound => Self::NotFound(message),
            ErrorKind::Damaged => Self::Damaged(message),
            ErrorKind::Full => Self::Full(message),
            ErrorKind::TooLarge => Self::TooLarge(message),
        }
    }
}

/// Path of a job.
pub fn job_path(job: &JobUid) -> String {
    format!("/v1/jobs/{}", Segment(&job.0))
}

/// Path of what a job has adopted.
pub fn adopted_path(job: &JobUid) -> String {
    format!("{}/adopted", job_path(job))
}

/// Path of a generation.
pub fn generation_path(job: &JobUid, generation: Generation) -> String {
    format!("{}/generations/{generation}", job_path(job))
}

/// Path of the parts noted for a generation.
pub fn parts_path(job: &JobUid, generation: Generation) -> String {
    format!("{}/parts", generation_path(job, generation))
}

/// Path of a file of a part.
pub fn file_path(job: &JobUid, generation: Generation, member: MemberIndex, kind: FileKind) -> String {
    format!("{}/members/{member}/files/{kind}", generation_path(job, generation))
}

/// Path of the question for blocks of a file of a part.
pub fn blocks_path(job: &JobUid, generation: Generation, member: MemberIndex, kind: FileKind) -> String {
    format!("{}/blocks", file_path(job, generation, member, kind))
}

/// Path of a pack that comes with a file of a part.
pub fn new_pack_path(
    job: &JobUid,
    generation: Generation,
    member: MemberIndex,
    kind: FileKind,
    pack: PackName,
) -> String {
    format!("{}/packs/{pack}", file_path(job, generation, member, kind))
}

/// Path of a pack of a job; `POST` has it read again by who doubts it.
pub fn pack_path(job: &JobUid, pack: PackName) -> String {
    format!("{}/packs/{pack}", job_path(job))
}

/// Path of the results of a job.
pub fn outputs_path(job: &JobUid) -> String {
    format!("{}/outputs", job_path(job))
}

/// Path of a file of a member's result.
pub fn output_path(job: &JobUid, member: MemberIndex, path: &str) -> String {
    format!("{}/{member}?path={}", outputs_path(job), Coded(path))
}

/// Path of what each job has.
pub const USAGE_PATH: &str = "/v1/usage";

/// Path of all images.
pub const IMAGES_PATH: &str = "/v1/images";

/// Path of an image.
pub fn image_path(digest: &str) -> String {
    format!("/v1/images/{}", Segment(digest))
}

/// Path of what is noted of an image as a disk.
pub fn disk_record_path(digest: &str) -> String {
    format!("{}/disk", image_path(digest))
}

/// Path of the names of an image's pieces. A repository that does not know it is of an earlier version.
pub fn image_pieces_path(digest: &str) -> String {
    format!("{}/pieces", image_path(digest))
}

/// Path of some of an image's bytes.
pub fn image_bytes_path(digest: &str, BytesQuery { from, to }: BytesQuery) -> String {
    format!("{}/bytes?from={from}&to={to}", image_path(digest))
}

/// Text as one segment of a path: whatever it holds, it stays one.
struct Segment<'a>(&'a str);

impl fmt::Display for Segment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // a client would resolve a segment of dots even when it is coded
        if matches!(self.0, "" | "." | "..") {
            return f.write_str("_");
        }
        Coded(self.0).fmt(f)
    }
}

/// Text in an address: only characters without a meaning of their own there.
pub(super) struct Coded<'a>(pub(super) &'a str);

impl fmt::Display for Coded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._:".contains(&byte) {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_segment() {
        assert_eq!(job_path(&"../a b".into()), "/v1/jobs/..%2Fa%20b");
        assert_eq!(job_path(&"..".into()), "/v1/jobs/_");
    }

    #[test]
    fn errors_survive_the_way() {
        for error in [
            RepositoryError::Unreachable("a".into()),
            RepositoryError::Refused("b".into()),
            RepositoryError::NotFound("c".into()),
            RepositoryError::Damaged("d".into()),
            RepositoryError::Full("e".into()),
            RepositoryError::TooLarge("f".into()),
        ] {
            assert_eq!(RepositoryError::from(ErrorReply::from(error.clone())), error);
        }
    }
}
