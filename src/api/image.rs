//! `VmImage`: what the guests boot from.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::quantity::Bytes;

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
#[x_kube(cel)]
#[serde(rename_all = "camelCase")]
pub struct VmImageSpec {
    /// Where the disk comes from.
    pub source: ImageSource,
    /// Processor architecture of the guest.
    #[serde(default)]
    pub arch: Architecture,
    /// Format of the disk.
    #[serde(default)]
    pub format: DiskFormat,
    /// How the guest is started, if not from the boot loader of its disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<OsSpec>,
    /// In the operator's namespace: makes the image usable from every namespace.
    #[serde(default)]
    pub standard: bool,
}

/// Where a file comes from.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("(has(self.http)?1:0) + (has(self.claim)?1:0) == 1", "a source takes exactly one of http and claim"))]
pub struct ImageSource {
    /// From a web server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// From a file on a PersistentVolumeClaim of this namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimSource>,
}

/// A file on a web server.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// Address, `http://` or `https://`.
    #[x_kube(validation = ("self.matches('^https?://[^/@ ]+(/[^ ]*)?$')", "url must be an http or https address without user name, for example https://example.org/disk.qcow2"))]
    #[schemars(length(min = 1, max = 2048))]
    pub url: String,
    /// Digest the file must have.
    #[x_kube(validation = ("self.matches('^sha256:[0-9a-f]{64}$')", "digest must be sha256: and 64 hexadecimal digits, as sha256sum prints them"))]
    #[schemars(length(max = 80))]
    pub digest: String,
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
    pub kernel: ImageSource,
    /// The initial ram disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<ImageSource>,
    /// Kernel command line.
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
    /// Failures in a row of the import.
    pub failures: u32,
    /// The newest import that came to an end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import: Option<ImportRecord>,
    /// Conditions.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
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
