//! `VmImage`: what the guests boot from.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{job::SecretReference, quantity::Bytes};

/// An image that the operator keeps in the repository and the guests boot from.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "vmdeploy.io",
    version = "v1alpha1",
    kind = "VmImage",
    plural = "vmimages",
    shortname = "vmimg",
    category = "vmdeploy",
    namespaced,
    cel,
    doc = "An image that the operator keeps in the repository and the guests of jobs boot from.",
    validation = ("size(self.metadata.name) <= 63", "the name must have at most 63 characters, because it is used as a label"),
    status = "VmImageStatus",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Size","type":"string","jsonPath":".status.size"}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].message"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[x_kube(
    cel,
    validation = ("self.format == 'tar' || !has(self.os) || has(self.os.kernel)", "os.kernel is missing: name a kernel, or leave os out to start by the boot loader or with the kernel in the file"),
    validation = ("self.format != 'tar' || !has(self.os) || !(has(self.os.kernel) || has(self.os.initrd))", "with format tar the kernel and the initial ram disk are those in the archive: leave out os.kernel and os.initrd"),
    validation = ("self.format == 'tar' || !has(self.diskSize)", "diskSize is the size of the disk that is made of an archive: leave it out, or set format to tar"),
    validation = ("!has(self.source.environment) || self.format == 'tar' || self.format == 'dd'", "set format to what image.kind of the environment's description is: tar or dd"),
    validation = ("!has(self.os) || ((!has(self.os.kernel) || !has(self.os.kernel.environment)) && (!has(self.os.initrd) || !has(self.os.initrd.environment)))", "a kernel or an initial ram disk is no environment: name a file by http or claim")
)]
#[serde(rename_all = "camelCase")]
pub struct VmImageSpec {
    /// Where the disk, or the archive it is made of, comes from.
    pub source: ImageSource,
    /// Processor architecture of the guest.
    #[serde(default)]
    pub arch: Architecture,
    /// Format of the file.
    #[serde(default)]
    pub format: ImageFormat,
    /// Size of the disk that is made of an archive; 10Gi if absent. What is not used takes no room.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("quantity(string(self)).compareTo(quantity('256Mi')) >= 0 && quantity(string(self)).compareTo(quantity('1Ti')) <= 0", "diskSize must be between 256Mi and 1Ti"))]
    pub disk_size: Option<Bytes>,
    /// How the guest is started, if not by the boot loader or with the kernel in its file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<OsSpec>,
    /// Whether the disk of an archive, or a partition with its kernel, is taken into use without being started once.
    /// Otherwise it is started under QEMU first, without a network, and refused if it does not come up.
    #[serde(default)]
    pub skip_boot_check: bool,
    /// In the operator's namespace: makes the image usable from every namespace.
    #[serde(default)]
    pub standard: bool,
}

/// Command line with which the kernel in an archive finds the disk that was made of it, or the one in a partition that
/// partition; cards are called eth0 and so on.
const OWN_PARAMS: &str = "root=/dev/vda rw console=ttyS0 net.ifnames=0";
/// Size of the disk that is made of an archive, unless the spec says another one.
const ARCHIVE_DISK: Bytes = Bytes(10 << 30);
/// Where a spec says what is fetched.
pub const SOURCE: &str = "spec.source";
/// The kernel.
pub const KERNEL: &str = "spec.os.kernel";
/// The initial ram disk.
pub const INITRD: &str = "spec.os.initrd";

impl VmImageSpec {
    /// Size of the disk that is made of an archive, in whole MiB; none if the file is a disk.
    pub fn made_disk(&self) -> Option<Bytes> {
        let archive = self.format.disk().is_none();
        archive.then(|| Bytes::mebibytes(self.disk_size.unwrap_or(ARCHIVE_DISK).as_mebibytes()))
    }

    /// The kernel's command line, if there is one.
    pub fn params(&self) -> Option<String> {
        let added = self.os.as_ref().and_then(|os| os.params.clone());
        if !self.has_own_kernel() {
            return added;
        }
        Some(added.map_or_else(|| OWN_PARAMS.into(), |added| format!("{OWN_PARAMS} {added}")))
    }

    /// The command line with which the kernel in the file is started once before the image is ready.
    pub fn check(&self) -> Option<String> {
        self.params().filter(|_| self.has_own_kernel() && !self.skip_boot_check)
    }

    /// Whether the kernel is the one in the file, if there is one.
    fn has_own_kernel(&self) -> bool {
        match self.format {
            ImageFormat::Tar => true,
            ImageFormat::Dd => self.os.as_ref().is_none_or(|os| os.kernel.is_none()),
            ImageFormat::Qcow2 | ImageFormat::Raw => false,
        }
    }

    /// All files that are fetched, and where the spec says so.
    pub fn sources(&self) -> impl Iterator<Item = (&'static str, &ImageSource)> {
        let os = self.os.as_ref();
        let kernel = os.and_then(|os| Some((KERNEL, os.kernel.as_ref()?)));
        let initrd = os.and_then(|os| Some((INITRD, os.initrd.as_ref()?)));
        std::iter::once((SOURCE, &self.source)).chain(kernel).chain(initrd)
    }
}

/// Where a file comes from.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("(has(self.http)?1:0) + (has(self.oci)?1:0) + (has(self.claim)?1:0) + (has(self.environment)?1:0) == 1", "a source takes exactly one of http, oci, claim and environment"))]
pub struct ImageSource {
    /// From a web server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// From an OCI artifact in a registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciSource>,
    /// From a file on a PersistentVolumeClaim of this namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimSource>,
    /// The files of an environment of Kadeploy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<EnvironmentSource>,
}

impl ImageSource {
    /// The web address that it names itself, and the digest of the file there.
    pub fn web(&self) -> Option<&HttpSource> {
        self.http.as_ref().or_else(|| self.environment.as_ref()?.http.as_ref())
    }

    /// The Secret with the login at its server.
    pub fn credentials(&self) -> Option<&SecretReference> {
        let in_registry = self.oci.as_ref().and_then(|oci| oci.credentials.as_ref());
        self.web().and_then(|web| web.credentials.as_ref()).or(in_registry)
    }

    /// The claim.
    pub fn on_claim(&self) -> Option<&ClaimSource> {
        self.claim.as_ref().or_else(|| self.environment.as_ref()?.claim.as_ref())
    }

    /// The digest that the file must have, if it is said.
    pub fn digest(&self) -> Option<&String> {
        let described = self.environment.as_ref().and_then(|environment| environment.digest.as_ref());
        let in_registry = self.oci.as_ref().and_then(|oci| oci.digest.as_ref());
        self.web().map(|web| &web.digest).or_else(|| self.on_claim()?.digest.as_ref()).or(described).or(in_registry)
    }
}

/// An environment of Kadeploy: its description or the name under which a site's server has it, and where its files are.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.description) != has(self.name)", "an environment takes exactly one of description and name"),
    validation = ("has(self.name) == has(self.site)", "site is the one whose deployment server has the environment: give it with name, and leave it out with description"),
    validation = ("has(self.name) || !(has(self.user) || has(self.version) || has(self.credentials))", "user, version and credentials go with name: with description leave them out"),
    validation = ("!has(self.description) || (has(self.digest)?1:0) + (has(self.http)?1:0) + (has(self.claim)?1:0) == 1", "an environment takes exactly one of digest (of the file that image.file names), http and claim"),
    validation = ("(has(self.digest)?1:0) + (has(self.http)?1:0) + (has(self.claim)?1:0) <= 1", "an environment by name takes at most one of digest (of the file that image.file names), http and claim")
)]
pub struct EnvironmentSource {
    /// The description, as `kaenv3 -p` prints it. Its kernel and initial ram disk are used; its command line, its
    /// scripts and what it says of partitions are meant for metal, and are not.
    #[schemars(length(min = 1, max = 65536))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The site whose deployment server has the environment. It is asked with the account that the site's configuration
    /// gives this namespace, unless credentials name another one.
    #[x_kube(validation = ("self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')", "site must be the name of a site of the operator's configuration: lower-case letters, digits, dot and hyphen"))]
    #[schemars(length(min = 1, max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The environment's name there.
    #[x_kube(validation = ("self.matches('^[A-Za-z0-9][A-Za-z0-9._+-]*$')", "the environment's name must begin with a letter or digit and may hold letters, digits and ._+-"))]
    #[schemars(length(min = 1, max = 255))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whose it is; if absent the account's own or a public one.
    #[x_kube(validation = ("self.matches('^[A-Za-z0-9][A-Za-z0-9._+-]*$')", "the environment's user must begin with a letter or digit and may hold letters, digits and ._+-"))]
    #[schemars(length(min = 1, max = 16))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its version; if absent the newest, which is recorded in the status and kept until another import is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Secret of this namespace with the account at the site: `username` and `password`, or `tls.crt` and `tls.key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<SecretReference>,
    /// Digest of the file that image.file of the description names, which must be an http or https address then.
    #[x_kube(validation = ("self.matches('^sha256:[0-9a-f]{64}$')", "digest must be sha256: and 64 hexadecimal digits, as sha256sum prints them"))]
    #[schemars(length(max = 80))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The same file on a web server, where image.file is none that can be fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// The same file on a claim of this namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimSource>,
}

/// A file on a web server.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.credentials) || self.url.startsWith('https://') || (has(self.plainHttp) && self.plainHttp)", "the credentials would go unencrypted to an http address: use https, or set plainHttp to true"))]
pub struct HttpSource {
    /// Address, `http://` or `https://`.
    #[x_kube(validation = ("self.matches('^https?://[^/@ ]+(/[^ ]*)?$')", "url must be an http or https address without user name, for example https://example.org/disk.qcow2"))]
    #[schemars(length(min = 1, max = 2048))]
    pub url: String,
    /// Digest the file must have.
    #[x_kube(validation = ("self.matches('^sha256:[0-9a-f]{64}$')", "digest must be sha256: and 64 hexadecimal digits, as sha256sum prints them"))]
    #[schemars(length(max = 80))]
    pub digest: String,
    /// Secret of this namespace with `username` and `password`, or `token`, for that server. They are sent to the
    /// origin of url only, not where it redirects to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<SecretReference>,
    /// Whether the credentials may be sent unencrypted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain_http: bool,
}

/// A file in an OCI artifact.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OciSource {
    /// The artifact, `registry/repository:tag` or `registry/repository@sha256:...`. The manifest that a tag stands for
    /// is recorded in the status and kept until another import is asked for.
    #[x_kube(validation = ("self.matches('^[A-Za-z0-9.-]+(:[0-9]+)?/[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*(:[A-Za-z0-9_][A-Za-z0-9._-]*|(:[A-Za-z0-9_][A-Za-z0-9._-]*)?@sha256:[0-9a-f]{64})$')", "reference must be registry/repository:tag or registry/repository@sha256:..., for example registry.example.org/images/debian:12"))]
    #[schemars(length(min = 1, max = 300))]
    pub reference: String,
    /// Which of its files: the annotation `org.opencontainers.image.title` of a layer, as `oras push` writes it.
    /// Without it the artifact must have one layer.
    #[schemars(length(min = 1, max = 255))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Digest the file must have.
    #[x_kube(validation = ("self.matches('^sha256:[0-9a-f]{64}$')", "digest must be sha256: and 64 hexadecimal digits, as sha256sum prints them"))]
    #[schemars(length(max = 80))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Secret of this namespace with `username` and `password`, or `token`, for that registry; or one of the type
    /// `kubernetes.io/dockerconfigjson`, as pods have in `imagePullSecrets`, with an entry for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<SecretReference>,
    /// Whether the registry is spoken to unencrypted, with the credentials too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain_http: bool,
}

/// A file on a claim.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimSource {
    /// Name of the PersistentVolumeClaim.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Path of the file on it.
    #[x_kube(validation = ("!self.matches('(^|/)[.][.](/|$)')", "path must not contain .."))]
    #[schemars(length(min = 1, max = 4096))]
    pub path: String,
    /// Digest the file must have; recorded if absent.
    #[x_kube(validation = ("self.matches('^sha256:[0-9a-f]{64}$')", "digest must be sha256: and 64 hexadecimal digits, as sha256sum prints them"))]
    #[schemars(length(max = 80))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// Processor architecture.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Architecture {
    /// 64-bit x86.
    #[default]
    #[serde(rename = "amd64")]
    Amd64,
}

/// Format of the file of an image.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// A disk in QEMU's copy-on-write format.
    #[default]
    Qcow2,
    /// A disk's bytes.
    Raw,
    /// An archive of a root file system, of which a disk is made.
    Tar,
    /// The bytes of a disk or a partition, compressed with gzip, bzip2, xz or zstd, or not at all.
    Dd,
}

impl ImageFormat {
    /// The format, if the file is a disk.
    pub fn disk(self) -> Option<DiskFormat> {
        match self {
            // what was packed is written anew
            Self::Qcow2 | Self::Dd => Some(DiskFormat::Qcow2),
            Self::Raw => Some(DiskFormat::Raw),
            Self::Tar => None,
        }
    }
}

/// Format of a disk.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskFormat {
    /// QEMU's copy-on-write format.
    #[default]
    #[serde(rename = "qcow2")]
    Qcow2,
    /// The disk's bytes.
    #[serde(rename = "raw")]
    Raw,
}

/// How the guest is started.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OsSpec {
    /// The kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<ImageSource>,
    /// The initial ram disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<ImageSource>,
    /// Kernel command line; with an archive, what is added to the one that its disk needs.
    #[schemars(length(max = 2048))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub params: Option<String>,
}

/// What became of an image.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VmImageStatus {
    /// The spec's generation this status speaks of.
    pub observed_generation: i64,
    /// Digest of the disk, `sha256:...`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Digest of the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Digest of the initial ram disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Size of the file in the repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// Size of the disk as the guest sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<Bytes>,
    /// What the system in an archive calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// The end of what was noted while a disk was made of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// What names in the spec stood for when they were looked up; kept until another import is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<Pinned>,
    /// Failures in a row of the import.
    pub failures: u32,
    /// The newest import that came to an end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import: Option<ImportRecord>,
    /// Conditions.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// What names in the spec stand for.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pinned {
    /// Stands for everything of the spec that was to be imported, and for what a person asked of it.
    pub fingerprint: String,
    /// The same without what a person asked.
    pub content: String,
    /// The environment of Kadeploy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<RecordedEnvironment>,
    /// Digests of the manifests of OCI artifacts, by their references.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub manifests: BTreeMap<String, String>,
}

/// An environment as its server had it.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedEnvironment {
    /// Its name.
    pub name: String,
    /// Whose it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Its description.
    pub description: String,
}

/// An import that came to an end.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportRecord {
    /// Stands for everything of the spec that was to be imported.
    pub fingerprint: String,
    /// How it ended.
    pub result: ImportResult,
    /// When it ended.
    pub at: Time,
}

/// How an import ended.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImportResult {
    /// Everything is in the repository.
    Imported,
    /// Not tried again until the spec is changed.
    Refused,
    /// Tried again later.
    Failed,
}
