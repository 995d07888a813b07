//! The writes, made with the kube client. No cache is read here and nothing is decided.

use std::{fmt::Debug, time::Duration};

use ::kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::NamespaceResourceScope,
};
use async_trait::async_trait;
use k8s_openapi::{
    api::core::v1::{Node, Pod, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Cluster, ClusterError, EventRecord, Kind, Shown, events::Events};
use crate::api::{
    BestEffortJob, BestEffortJobStatus, ConditionType, FINALIZER, GROUP, LABEL_JOB_UID, LAST_STORED, Snapshot,
    SnapshotStatus, VERSION, VmImage,
};
use crate::names::NodeName;

/// Name under which the operator owns fields. All its controllers share it: those of jobs and of
/// snapshots both derive a snapshot's `phase` and conditions, one after the other and in one process,
/// so that with a name for each every step from one to the other would be a conflict of owners, or a
/// write by force. The other owner of that status is kget, with a name and fields of its own.
pub const FIELD_MANAGER: &str = "vmdeploy-operator";

/// The writes of one operator.
#[derive(Clone)]
pub struct KubeCluster {
    client: Client,
    namespace: String,
    events: Events,
}

impl KubeCluster {
    /// Writes through `client`; agents live in `namespace`; events are reported as from `instance`.
    pub fn new(client: Client, namespace: impl Into<String>, instance: Option<String>) -> Self {
        let events = Events::new(client.clone(), FIELD_MANAGER, instance);
        Self { client, namespace: namespace.into(), events }
    }

    fn api<K>(&self, namespace: Option<&str>) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace.unwrap_or(&self.namespace))
    }

    async fn patch_metadata(&self, kind: Kind, object: &ObjectMeta, patch: Value) -> Result<(), ClusterError> {
        let namespace = object.namespace.as_deref();
        match kind {
            Kind::Job => patch_json(&self.api::<BestEffortJob>(namespace), object, patch).await,
            Kind::Snapshot => patch_json(&self.api::<Snapshot>(namespace), object, patch).await,
            Kind::Image => patch_json(&self.api::<VmImage>(namespace), object, patch).await,
            Kind::Secret => patch_json(&self.api::<Secret>(namespace), object, patch).await,
        }
    }
}

#[async_trait]
impl Cluster for KubeCluster {
    async fn patch_job_status(&self, job: &ObjectMeta, status: &BestEffortJobStatus) -> Result<String, ClusterError> {
        let patch = json!([
            {"op": "replace", "path": "/metadata/resourceVersion", "value": job.resource_version},
            {"op": "add", "path": "/status", "value": status},
        ]);
        let api = self.api::<BestEffortJob>(job.namespace.as_deref());
        let patch = Patch::Json::<()>(serde_json::from_value(patch).map_err(|e| invalid(&e))?);
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let written = api.patch_status(name_of(job)?, &parameters, &patch).await.map_err(|e| refused(&e))?;
        Ok(written.resource_version().unwrap_or_default())
    }

    async fn add_finalizer(&self, kind: Kind, object: &ObjectMeta) -> Result<(), ClusterError> {
        let patch = match object.finalizers.as_deref() {
            Some(list) if list.iter().any(|f| f == FINALIZER) => return Ok(()),
            Some(list) if !list.is_empty() => json!([
                {"op": "test", "path": "/metadata/finalizers", "value": list},
                {"op": "add", "path": "/metadata/finalizers/-", "value": FINALIZER},
            ]),
            // the absence of a list cannot be tested
            _ => json!([
                {"op": "replace", "path": "/metadata/resourceVersion", "value": object.resource_version},
                {"op": "add", "path": "/metadata/finalizers", "value": [FINALIZER]},
            ]),
        };
        self.patch_metadata(kind, object, patch).await
    }

    async fn remove_finalizer(&self, kind: Kind, object: &ObjectMeta) -> Result<(), ClusterError> {
        let list = object.finalizers.as_deref().unwrap_or_default();
        let Some(place) = list.iter().position(|f| f == FINALIZER) else { return Ok(()) };
        let path = format!("/metadata/finalizers/{place}");
        let patch = json!([
            {"op": "test", "path": path, "value": FINALIZER},
            {"op": "remove", "path": path},
        ]);
        gone_is_fine(self.patch_metadata(kind, object, patch).await)
    }

    async fn create_agent_pod(&self, pod: &Pod) -> Result<Pod, ClusterError> {
        let api = self.api::<Pod>(pod.metadata.namespace.as_deref());
        match api.create(&PostParams::default(), pod).await.map_err(|e| refused(&e)) {
            Err(ClusterError::Conflict(_)) => api.get(&pod.name_any()).await.map_err(|e| refused(&e)),
            other => other,
        }
    }

    async fn create_agent_secret(&self, secret: &Secret, pod: &Pod) -> Result<(), ClusterError> {
        let mut secret = secret.clone();
        secret.metadata.owner_references = pod.owner_ref(&()).map(|owner| vec![owner]);
        let api = self.api::<Secret>(secret.metadata.namespace.as_deref());
        match api.create(&PostParams::default(), &secret).await.map_err(|e| refused(&e)) {
            Err(ClusterError::Conflict(_)) => {}
            other => return other.map(drop),
        }
        // gone meanwhile, when the collector took it with an earlier pod of the same name
        if let Some(old) = api.get_opt(&secret.name_any()).await.map_err(|e| refused(&e))? {
            if old.owner_references().iter().any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref()) {
                return Ok(());
            }
            gone_is_fine(delete(&api, &old.metadata, DeleteParams::default()).await)?;
        }
        api.create(&PostParams::default(), &secret).await.map(drop).map_err(|e| refused(&e))
    }

    async fn delete_agent(&self, pod: &str, grace: Duration) -> Result<(), ClusterError> {
        let meta = ObjectMeta { name: Some(pod.into()), ..ObjectMeta::default() };
        let seconds = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX);
        let how = DeleteParams::default().grace_period(seconds);
        gone_is_fine(delete(&self.api::<Pod>(None), &meta, how).await)?;
        gone_is_fine(delete(&self.api::<Secret>(None), &meta, DeleteParams::default()).await)
    }

    async fn create_snapshot(&self, snapshot: &Snapshot) -> Result<(), ClusterError> {
        let api = self.api::<Snapshot>(snapshot.metadata.namespace.as_deref());
        match api.create(&PostParams::default(), snapshot).await.map_err(|e| refused(&e)) {
            Err(ClusterError::Conflict(_)) => {
                let old = api.get(name_of(&snapshot.metadata)?).await.map_err(|e| refused(&e))?;
                same_job(&old, snapshot)
            }
            other => other.map(drop),
        }
    }

    async fn apply_snapshot_status(&self, snapshot: &ObjectMeta, status: &SnapshotStatus) -> Result<(), ClusterError> {
        let body = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "Snapshot",
            "metadata": {"name": snapshot.name, "uid": snapshot.uid},
            "status": owned_part(status),
        });
        let api = self.api::<Snapshot>(snapshot.namespace.as_deref());
        let parameters = PatchParams::apply(FIELD_MANAGER);
        api.patch_status(name_of(snapshot)?, &parameters, &Patch::Apply(&body)).await.map(drop).map_err(|e| refused(&e))
    }

    async fn show_stored(&self, on: Shown, object: &ObjectMeta, value: Option<&str>) -> Result<(), ClusterError> {
        let namespace = object.namespace.as_deref();
        match on {
            Shown::Job => annotate(&self.api::<BestEffortJob>(namespace), object, value).await,
            Shown::Agent => annotate(&self.api::<Pod>(namespace), object, value).await,
        }
    }

    async fn delete(&self, kind: Kind, object: &ObjectMeta) -> Result<(), ClusterError> {
        let namespace = object.namespace.as_deref();
        let how = DeleteParams::default();
        let result = match kind {
            Kind::Job => delete(&self.api::<BestEffortJob>(namespace), object, how).await,
            Kind::Snapshot => delete(&self.api::<Snapshot>(namespace), object, how).await,
            Kind::Image => delete(&self.api::<VmImage>(namespace), object, how).await,
            Kind::Secret => delete(&self.api::<Secret>(namespace), object, how).await,
        };
        gone_is_fine(result)
    }

    async fn remove_node(&self, node: &NodeName, uid: &str) -> Result<(), ClusterError> {
        let object = ObjectMeta { name: Some(node.0.clone()), uid: Some(uid.into()), ..ObjectMeta::default() };
        gone_is_fine(delete(&Api::<Node>::all(self.client.clone()), &object, DeleteParams::default()).await)
    }

    async fn record(&self, event: &EventRecord) -> Result<(), ClusterError> {
        self.events.record(event).await
    }
}

/// Whether an object that is there already is of the same job, and not of an earlier one of its name.
pub(super) fn same_job(old: &Snapshot, new: &Snapshot) -> Result<(), ClusterError> {
    let job = |snapshot: &Snapshot| snapshot.labels().get(LABEL_JOB_UID).cloned();
    if job(old).is_some() && job(old) == job(new) {
        return Ok(());
    }
    Err(ClusterError::Invalid(format!("snapshot {} exists already and is not of this job", new.name_any())))
}

/// The part of a snapshot's status that the operator owns.
pub fn owned_part(status: &SnapshotStatus) -> SnapshotStatus {
    let mut part = status.clone();
    part.transfer = None;
    let stored = format!("{:?}", ConditionType::Stored);
    part.conditions.retain(|condition| condition.type_ != stored);
    part
}

fn name_of(object: &ObjectMeta) -> Result<&str, ClusterError> {
    object.name.as_deref().ok_or_else(|| ClusterError::Invalid("the object has no name".into()))
}

async fn patch_json<K>(api: &Api<K>, object: &ObjectMeta, patch: Value) -> Result<(), ClusterError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let patch = Patch::Json::<()>(serde_json::from_value(patch).map_err(|e| invalid(&e))?);
    match api.patch(name_of(object)?, &PatchParams::default(), &patch).await.map_err(|e| refused(&e)) {
        // a test that failed: the list of finalizers is not what was read
        Err(ClusterError::Invalid(text)) => Err(ClusterError::Conflict(text)),
        other => other.map(drop),
    }
}

/// Applies our one annotation. With the uid, so that none is made that is not there.
async fn annotate<K>(api: &Api<K>, object: &ObjectMeta, value: Option<&str>) -> Result<(), ClusterError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let annotations = value.map_or_else(|| json!({}), |value| json!({LAST_STORED: value}));
    let body = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": object.name, "uid": object.uid, "annotations": annotations},
    });
    // nobody else has anything to say in it, whoever copied it there
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(name_of(object)?, &parameters, &Patch::Apply(&body)).await.map(drop).map_err(|e| refused(&e))
}

async fn delete<K>(api: &Api<K>, object: &ObjectMeta, how: DeleteParams) -> Result<(), ClusterError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let only_this = object.uid.clone().map(|uid| Preconditions { uid: Some(uid), resource_version: None });
    let how = DeleteParams { preconditions: only_this, ..how };
    api.delete(name_of(object)?, &how).await.map(drop).map_err(|e| refused(&e))
}

pub(super) fn gone_is_fine(result: Result<(), ClusterError>) -> Result<(), ClusterError> {
    match result {
        Err(ClusterError::NotFound(_)) => Ok(()),
        other => other,
    }
}

fn invalid(error: &serde_json::Error) -> ClusterError {
    ClusterError::Invalid(error.to_string())
}

/// What an error of the client means to a controller.
pub(super) fn refused(error: &::kube::Error) -> ClusterError {
    let ::kube::Error::Api(status) = error else { return ClusterError::Unreachable(error.to_string()) };
    let text = status.message.clone();
    match status.code {
        404 => ClusterError::NotFound(text),
        409 => ClusterError::Conflict(text),
        401 | 403 => ClusterError::Forbidden(text),
        400 | 413 | 415 | 422 => ClusterError::Invalid(text),
        _ => ClusterError::Unreachable(text),
    }
}
