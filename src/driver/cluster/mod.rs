//! The Kubernetes writes a controller makes ([`Cluster`]) and what it reads there ([`ClusterView`]); what only some use
//! is apart: `importers`, `joins`, `transfers`; `events` are for people.
//!
//! Small traits, the kube client (`kube.rs`), a double in memory (`fake.rs`). Nothing here
//! decides anything: every method is one idempotent write, or a read.

pub mod client;
pub mod count;
pub mod events;
pub mod fake;
pub mod importers;
pub mod joins;
pub mod kube;
pub mod transfers;
pub mod unread;
pub mod view;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::{
    api::core::v1::{Node, ObjectReference, Pod, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{DriverError, Retry};
use crate::{
    api::{BestEffortJob, BestEffortJobStatus, Reason, Snapshot, SnapshotStatus, VmImage},
    names::{JobUid, NodeName},
};

/// The kinds whose finalizers and deletion are written through [`Cluster`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `BestEffortJob`.
    Job,
    /// `Snapshot`.
    Snapshot,
    /// `VmImage`.
    Image,
    /// `Secret`: the account at a site, kept while slots are held with it (safety C4).
    Secret,
}

/// On what is shown what is stored of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The job itself.
    Job,
    /// An agent's pod.
    Agent,
}

/// An event, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRecord {
    /// The object it is about.
    pub about: ObjectReference,
    /// Whether a person should look at it.
    pub warning: bool,
    /// The reason.
    pub reason: Reason,
    /// What was done.
    pub action: String,
    /// What happened, in a sentence.
    pub message: String,
}

/// Why Kubernetes did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ClusterError {
    /// The object was changed since it was read: observe again.
    #[error("the object was changed by somebody else: {0}")]
    Conflict(String),
    /// The object does not exist.
    #[error("no such object: {0}")]
    NotFound(String),
    /// No answer, or one of a server in trouble.
    #[error("failed to reach the API server: {0}")]
    Unreachable(String),
    /// The operator may not do this.
    #[error("the API server forbids it: {0}")]
    Forbidden(String),
    /// The object is not valid.
    #[error("the API server refused the object: {0}")]
    Invalid(String),
}

impl DriverError for ClusterError {
    fn reason(&self) -> Reason {
        Reason::AgentFailed
    }
    fn retry(&self) -> Retry {
        match self {
            Self::Conflict(_) => Retry::After(Duration::from_millis(100)),
            Self::Unreachable(_) => Retry::After(Duration::from_secs(1)),
            Self::NotFound(_) => Retry::Gone,
            Self::Forbidden(_) => Retry::Denied,
            Self::Invalid(_) => Retry::Bug,
        }
    }
}

/// The writes. All may be repeated.
#[async_trait]
pub trait Cluster: Send + Sync {
    /// Replaces the status of a job if the job still has the `resourceVersion` of `job`, which also
    /// names it; [`ClusterError::Conflict`] if not. Returns the new version.
    async fn patch_job_status(&self, job: &ObjectMeta, status: &BestEffortJobStatus) -> Result<String, ClusterError>;

    /// Adds our finalizer, if the list is still as in `object`. Writes nothing if it is there.
    async fn add_finalizer(&self, kind: Kind, object: &ObjectMeta) -> Result<(), ClusterError>;

    /// Removes our finalizer, if the list is still as in `object`. An object that is gone is no error.
    async fn remove_finalizer(&self, kind: Kind, object: &ObjectMeta) -> Result<(), ClusterError>;

    /// Makes an agent's pod, and gives it as it is; one that exists under this name is left as it is. It does not
    /// start without its Secret.
    async fn create_agent_pod(&self, pod: &Pod) -> Result<Pod, ClusterError>;

    /// Makes the Secret with an agent's configuration, owned by its pod; one that this very pod has is left as it is.
    async fn create_agent_secret(&self, secret: &Secret, pod: &Pod) -> Result<(), ClusterError>;

    /// Removes an agent's pod, which gets `grace` to end, and its Secret, which has the pod's name.
    /// Gone already is no error.
    async fn delete_agent(&self, pod: &str, grace: Duration) -> Result<(), ClusterError>;

    /// Creates a snapshot object. One of that name that is labelled with the same job's uid is left as it
    /// is; any other is not ours, and [`ClusterError::Invalid`].
    async fn create_snapshot(&self, snapshot: &Snapshot) -> Result<(), ClusterError>;

    /// Writes what the operator owns of a snapshot's status: everything but `transfer` and the
    /// condition `Stored`, which are left out of what is sent (safety B14). `snapshot` names it.
    async fn apply_snapshot_status(&self, snapshot: &ObjectMeta, status: &SnapshotStatus) -> Result<(), ClusterError>;

    /// Says in the annotation [`crate::api::LAST_STORED`] of an object with the name and uid in `object` what is
    /// stored of the job, or takes it away; other annotations stay.
    async fn show_stored(&self, on: Shown, object: &ObjectMeta, value: Option<&str>) -> Result<(), ClusterError>;

    /// Deletes an object, if it is still the one with the uid in `object`. Gone already is no error.
    async fn delete(&self, kind: Kind, object: &ObjectMeta) -> Result<(), ClusterError>;

    /// Removes the Node object with this uid: the node leaves the cluster. Gone already is no error.
    async fn remove_node(&self, node: &NodeName, uid: &str) -> Result<(), ClusterError>;

    /// Records an event.
    async fn record(&self, event: &EventRecord) -> Result<(), ClusterError>;
}

/// The reads: caches filled by watches, and single reads of what must not be cached.
#[async_trait]
pub trait ClusterView: Send + Sync {
    /// A job, as last seen.
    fn job(&self, namespace: &str, name: &str) -> Option<Arc<BestEffortJob>>;

    /// All jobs, as last seen.
    fn jobs(&self) -> Vec<Arc<BestEffortJob>>;

    /// Whether the job does not exist, asked of the API server itself: one that is not seen may only not be
    /// readable, or not be known yet. With a uid: whether that job does not, whatever has its name now.
    async fn job_is_gone(&self, namespace: &str, name: &str, uid: Option<&JobUid>) -> Result<bool, ClusterError>;

    /// Whether [`ClusterView::jobs`] has all jobs of a namespace: none is there that cannot be read.
    fn has_all_jobs(&self, namespace: &str) -> bool;

    /// The same of [`ClusterView::snapshots`].
    fn has_all_snapshots(&self, namespace: &str) -> bool;

    /// A VmImage, as last seen.
    fn image(&self, namespace: &str, name: &str) -> Option<Arc<VmImage>>;

    /// All VmImages, as last seen.
    fn images(&self) -> Vec<Arc<VmImage>>;

    /// All images and all jobs, asked of the API server itself. An error if any of them cannot be read: an image that
    /// none of these names is named by none there is.
    async fn users_of_images(&self) -> Result<(Vec<VmImage>, Vec<BestEffortJob>), ClusterError>;

    /// The snapshots that name this job, as last seen.
    fn snapshots(&self, namespace: &str, job: &str) -> Vec<Arc<Snapshot>>;

    /// A snapshot, as last seen.
    fn snapshot(&self, namespace: &str, name: &str) -> Option<Arc<Snapshot>>;

    /// The agent pods of a job, as last seen.
    fn agents(&self, job: &JobUid) -> Vec<Arc<Pod>>;

    /// A node, as last seen.
    fn node(&self, name: &NodeName) -> Option<Arc<Node>>;

    /// All nodes, as last seen.
    fn nodes(&self) -> Vec<Arc<Node>>;

    /// The data of a Secret, or none if it does not exist.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, ClusterError>;

    /// The value of a key of a ConfigMap, or none if either does not exist.
    async fn config_value(&self, namespace: &str, name: &str, key: &str) -> Result<Option<String>, ClusterError>;
}
