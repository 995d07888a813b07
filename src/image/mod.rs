//! Import of an image: what an importer is told ([`ImportOrder`]) and what it says at its end
//! ([`Outcome`], in the termination message of its pod).
//!
//! An importer knows nothing of Kubernetes: it fetches files with limits, checks them, and gives
//! them to the repository. Of an archive of a root file system it first makes a disk ([`convert`]).

mod boot_check;
pub mod command;
pub mod convert;
pub mod fetch;
pub mod import;
pub mod login;

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use self::convert::Conversion;
use crate::api::{Reason, image::ImageFormat};

/// What to import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportOrder {
    /// The disk, or the archive it is made of.
    pub disk: FileOrder,
    /// Format the file must have.
    pub format: ImageFormat,
    /// What an archive or a partition is started with, if its description says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootPaths>,
    /// The kernel's command line with which what was made with the kernel in it is started once; not started if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    /// Size of the disk that is made of an archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<u64>,
    /// The kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<FileOrder>,
    /// The initial ram disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<FileOrder>,
}

impl ImportOrder {
    /// All of its files.
    pub fn files_mut(&mut self) -> impl Iterator<Item = &mut FileOrder> {
        [Some(&mut self.disk), self.kernel.as_mut(), self.initrd.as_mut()].into_iter().flatten()
    }
}

/// Paths within an archive or a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BootPaths {
    /// The kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// The initial ram disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
}

/// One file to import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileOrder {
    /// Which part of the spec it stands in; for messages.
    pub field: String,
    /// Where it is.
    pub place: Place,
    /// Digest it must have, `sha256:...`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Bytes it may have at most.
    pub limit: u64,
    /// With what the importer names itself there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<LoginOrder>,
    /// File with certificates, PEM, of who may have signed its server's beside those that the importer knows by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted: Option<PathBuf>,
}

/// Where an importer finds a login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoginOrder {
    /// The Secret it comes from; for messages.
    pub secret: String,
    /// The file it is in.
    pub file: PathBuf,
}

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    /// On a web server.
    Url(String),
    /// In an OCI artifact.
    Oci(OciPlace),
    /// Below a directory, which links must not leave.
    #[serde(rename_all = "camelCase")]
    Beneath {
        /// The directory.
        root: PathBuf,
        /// The path in it.
        path: String,
    },
}

/// A file in an OCI artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OciPlace {
    /// The artifact, `registry/repository:tag` or `registry/repository@sha256:...`.
    pub reference: String,
    /// Title of the layer; the only one if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The manifest that the tag stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Whether the registry is spoken to unencrypted.
    #[serde(default)]
    pub plain_http: bool,
}

/// How an import ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Everything is in the repository.
    #[serde(rename_all = "camelCase")]
    Imported {
        /// The disk.
        disk: StoredFile,
        /// Size of the disk as the guest sees it.
        virtual_size: u64,
        /// The kernel.
        #[serde(skip_serializing_if = "Option::is_none")]
        kernel: Option<StoredFile>,
        /// The initial ram disk.
        #[serde(skip_serializing_if = "Option::is_none")]
        initrd: Option<StoredFile>,
        /// What was found out where the file was not taken as it is.
        #[serde(skip_serializing_if = "Option::is_none")]
        conversion: Option<Conversion>,
        /// The manifests that tags stood for, by the references of artifacts.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        manifests: BTreeMap<String, String>,
    },
    /// It failed.
    Failed(Trouble),
}

/// A file in the repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredFile {
    /// Its digest, `sha256:...`.
    pub digest: String,
    /// Its size.
    pub size: u64,
}

/// Why an import failed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq, Serialize, Deserialize)]
#[error("{message}")]
#[serde(rename_all = "camelCase")]
pub struct Trouble {
    /// Of what kind.
    pub kind: TroubleKind,
    /// What happened and what to change.
    pub message: String,
    /// Whether trying again without a change can help.
    pub again: bool,
}

/// Kinds of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TroubleKind {
    /// The file does not come.
    Fetch,
    /// The login that it needs is not there.
    LoginMissing,
    /// Its server does not accept the login.
    LoginRefused,
    /// The site that it names is not there, or has no deployment server.
    Site,
    /// The site's deployment server has no such environment.
    Environment,
    /// It is another file than the spec says.
    Digest,
    /// It cannot be used as an image.
    Unusable,
    /// The repository does not take it.
    Repository,
    /// The importer itself did not get as far.
    Importer,
}

impl TroubleKind {
    /// The reason for conditions and events.
    pub fn reason(self) -> Reason {
        match self {
            Self::Fetch | Self::Importer => Reason::ImageFetchFailed,
            Self::LoginMissing => Reason::CredentialsMissing,
            Self::LoginRefused => Reason::CredentialsRefused,
            Self::Site => Reason::UnknownSite,
            Self::Environment => Reason::EnvironmentNotFound,
            Self::Digest => Reason::DigestMismatch,
            Self::Unusable => Reason::ImageUnusable,
            Self::Repository => Reason::RepositoryUnreachable,
        }
    }
}

/// Longest message that is kept.
const MAX_MESSAGE: usize = 800;

impl Trouble {
    /// Trouble that only a change of the spec or of the source mends.
    pub fn refused(kind: TroubleKind, message: impl AsRef<str>) -> Self {
        Self { kind, message: bounded(message.as_ref()), again: false }
    }

    /// Trouble that may pass.
    pub fn passing(kind: TroubleKind, message: impl AsRef<str>) -> Self {
        Self { kind, message: bounded(message.as_ref()), again: true }
    }
}

/// A message cut to what conditions and termination messages hold; of control characters, which take more room there,
/// only the ends of lines stay.
pub fn bounded(text: &str) -> String {
    let plain = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
    text.chars().map(plain).take(MAX_MESSAGE).collect()
}

impl Outcome {
    /// Reads the termination message of an importer's pod, which has ended.
    pub fn read(message: Option<&str>) -> Self {
        let Some(text) = message else {
            let why = "the importer ended without a word: see the events of its pod. One that uses more disk than \
                       importers.scratch of the operator's configuration is evicted";
            return Self::Failed(Trouble::passing(TroubleKind::Importer, why));
        };
        serde_json::from_str(text).unwrap_or_else(|_| {
            Self::Failed(Trouble::passing(TroubleKind::Importer, format!("the importer ended with: {}", text.trim())))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_survive_the_termination_message() {
        let file = |n: u64| StoredFile { digest: format!("sha256:{n:064x}"), size: n };
        let all = [
            Outcome::Imported {
                disk: file(1),
                virtual_size: 9,
                kernel: Some(file(2)),
                initrd: None,
                conversion: Some(Conversion { os: Some("Debian".into()), log: "\"".repeat(convert::LOG) }),
                manifests: (1..4).map(|n| (format!("{n:0200}"), file(n).digest)).collect(),
            },
            Outcome::Failed(Trouble::refused(TroubleKind::Digest, "x".repeat(5000))),
            Outcome::Failed(Trouble::refused(TroubleKind::Unusable, "\u{1}".repeat(5000))),
        ];
        for outcome in all {
            let text = serde_json::to_string(&outcome).unwrap();
            assert!(text.len() < 4096, "Kubernetes keeps 4096 bytes");
            assert_eq!(Outcome::read(Some(&text)), outcome);
        }
    }

    #[test]
    fn other_words_and_silence_are_trouble_that_may_pass() {
        for message in [None, Some("killed"), Some("")] {
            let Outcome::Failed(trouble) = Outcome::read(message) else { panic!("{message:?}") };
            assert!(trouble.again && trouble.kind == TroubleKind::Importer);
        }
    }
}
