//! The custom resources of `vmdeploy.io/v1alpha1`: types only.
//!
//! No client, no runtime and no clock may be used here; what a field means is said in its
//! documentation, which becomes `kubectl explain`. Validation is CEL in the schema, so that a
//! mistake is refused by the API server with a message a person can act on.

#![expect(unreachable_pub, reason = "the schema derive makes public types in private places")]

pub mod conditions;
pub mod crds;
pub mod hypervisor;
pub mod image;
pub mod job;
pub mod job_snapshots;
pub mod job_status;
pub mod period;
mod policy;
pub mod quantity;
#[cfg(test)]
mod rejected;
#[cfg(test)]
mod rules;
pub mod snapshot;

pub use conditions::{ConditionType, Reason};
pub use image::{VmImage, VmImageSpec, VmImageStatus};
pub use job::{BestEffortJob, BestEffortJobSpec};
pub use job_status::{BestEffortJobStatus, JobPhase};
pub use snapshot::{Snapshot, SnapshotSpec, SnapshotStatus};

/// The API group of the three kinds.
pub const GROUP: &str = "vmdeploy.io";
/// The API version of the three kinds.
pub const VERSION: &str = "v1alpha1";
/// The finalizer that holds an object while anything of it exists outside Kubernetes.
pub const FINALIZER: &str = "vmdeploy.io/cleanup";
/// Label on every object the operator makes for a job: the job's uid.
pub const LABEL_JOB_UID: &str = "vmdeploy.io/job-uid";
/// Label: the job's name (for people; the uid decides).
pub const LABEL_JOB: &str = "vmdeploy.io/job";
/// Label: the job's namespace, on objects in the operator's namespace.
pub const LABEL_JOB_NAMESPACE: &str = "vmdeploy.io/job-namespace";
/// Label: the member's index.
pub const LABEL_MEMBER: &str = "vmdeploy.io/member";
/// Label: the incarnation an agent pod belongs to.
pub const LABEL_INCARNATION: &str = "vmdeploy.io/incarnation";
/// Annotation on a job and its agents' pods, for other schedulers: the newest complete generation and when its state
/// was captured, as `{"generation":7,"capturedAt":"2026-11-26T16:00:00Z"}`. What was computed since then is lost if
/// the job is killed now. Absent as long as nothing is stored.
pub const LAST_STORED: &str = "vmdeploy.io/last-stored";
/// Label of a node: the switch that it is on, by whatever name.
pub const LABEL_SWITCH: &str = "vmdeploy.io/switch";
/// Of a VmImage: another value has it imported again, though its spec is the same.
pub const ANNOTATION_IMPORT: &str = "vmdeploy.io/import";
/// Label: which part of vmdeploy an object is (`agent`, `operator`, `kget`, `repository`, `importer`).
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
