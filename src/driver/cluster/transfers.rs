//! What kget sees and writes of Kubernetes: captured snapshots, and how far their bytes are. Written
//! under a field manager of its own and never by force, so that the two writers of a snapshot's
//! status cannot undo each other (safety B14).

use std::sync::Arc;

use ::kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::reflector::{ObjectRef, Store},
};
use async_trait::async_trait;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use serde_json::json;

use super::{ClusterError, EventRecord, events::Events, kube::refused, view};
use crate::{
    api::{BestEffortJob, GROUP, Snapshot, VERSION, snapshot::Transfer},
    names::JobUid,
};

/// Name under which kget owns fields.
pub const FIELD_MANAGER: &str = "vmdeploy-kget";

/// What kget sees and writes.
#[async_trait]
pub trait TransferBoard: Send + Sync {
    /// All snapshots, as last seen.
    fn snapshots(&self) -> Vec<Arc<Snapshot>>;

    /// A job, as last seen.
    fn job_of(&self, namespace: &str, name: &str) -> Option<Arc<BestEffortJob>>;

    /// Whether that job does not exist, asked of the API server itself.
    async fn job_is_gone(&self, namespace: &str, name: &str, uid: &JobUid) -> Result<bool, ClusterError>;

    /// Writes `status.transfer` and the condition `Stored` of a snapshot, and nothing else.
    async fn report(&self, snapshot: &ObjectMeta, transfer: &Transfer, stored: &Condition) -> Result<(), ClusterError>;

    /// Records an event.
    async fn announce(&self, event: &EventRecord) -> Result<(), ClusterError>;
}

/// The board on a real cluster.
#[derive(Clone)]
pub struct KubeBoard {
    /// For the writes.
    pub client: Client,
    /// All snapshots.
    pub snapshots: Store<Snapshot>,
    /// All jobs.
    pub jobs: Store<BestEffortJob>,
    /// What people are told.
    pub events: Events,
}

impl KubeBoard {
    /// Writes through `client`.
    pub fn new(client: Client, snapshots: Store<Snapshot>, jobs: Store<BestEffortJob>) -> Self {
        Self { events: Events::new(client.clone(), FIELD_MANAGER, None), client, snapshots, jobs }
    }
}

#[async_trait]
impl TransferBoard for KubeBoard {
    fn snapshots(&self) -> Vec<Arc<Snapshot>> {
        self.snapshots.state()
    }

    fn job_of(&self, namespace: &str, name: &str) -> Option<Arc<BestEffortJob>> {
        self.jobs.get(&ObjectRef::new(name).within(namespace))
    }

    async fn job_is_gone(&self, namespace: &str, name: &str, uid: &JobUid) -> Result<bool, ClusterError> {
        view::job_is_gone(&self.client, namespace, name, Some(uid)).await
    }

    async fn report(&self, snapshot: &ObjectMeta, transfer: &Transfer, stored: &Condition) -> Result<(), ClusterError> {
        let name = snapshot.name.as_deref().ok_or_else(|| ClusterError::Invalid("the object has no name".into()))?;
        let body = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "Snapshot",
            // the uid keeps this from reaching a later object of the same name
            "metadata": {"name": name, "uid": snapshot.uid},
            "status": {"transfer": transfer, "conditions": [stored]},
        });
        let namespace = snapshot.namespace.as_deref().unwrap_or_default();
        let api: Api<Snapshot> = Api::namespaced(self.client.clone(), namespace);
        let parameters = PatchParams::apply(FIELD_MANAGER);
        api.patch_status(name, &parameters, &Patch::Apply(&body)).await.map(drop).map_err(|e| refused(&e))
    }

    async fn announce(&self, event: &EventRecord) -> Result<(), ClusterError> {
        self.events.record(event).await
    }
}
