//! What the image controller asks of Kubernetes: importers, and the status of images.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ::kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy},
};
use async_trait::async_trait;
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{Pod, Secret},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::json;

use super::{
    ClusterError,
    kube::{FIELD_MANAGER, refused},
};
use crate::api::{VmImage, VmImageStatus};

/// An importer, as Kubernetes sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImporterState {
    /// Its container does not run yet; what it waits for.
    Waiting(String),
    /// The same, but whoever started it may have ended before its Secret was made: [`Importers::start`] is to be repeated.
    Unfinished(String),
    /// It works.
    Running,
    /// It has ended; its termination message, if it left one.
    Ended(Option<String>),
}

/// Importers and the status of images. All methods may be repeated.
#[async_trait]
pub trait Importers: Send + Sync {
    /// The importer of this name, if there is one.
    async fn state(&self, namespace: &str, name: &str) -> Result<Option<ImporterState>, ClusterError>;

    /// Starts an importer, and makes the Secret that its pod waits for, if there is one, as the
    /// importer's own. What exists is left as it is.
    async fn start(&self, job: &Job, secret: Option<&Secret>) -> Result<(), ClusterError>;

    /// Removes an importer with its pod. Gone already is no error.
    async fn remove(&self, namespace: &str, name: &str) -> Result<(), ClusterError>;

    /// Replaces the status of an image if the image still has the `resourceVersion` of `image`, which
    /// also names it.
    async fn patch_image_status(&self, image: &ObjectMeta, status: &VmImageStatus) -> Result<(), ClusterError>;
}

/// Importers as batch Jobs of a cluster.
#[derive(Clone)]
pub struct KubeImporters {
    client: Client,
    /// Namespace and name of those that this process has started, with their Secrets, which it may not read.
    started: Arc<Mutex<HashSet<(String, String)>>>,
}

impl KubeImporters {
    /// Nothing is known of those that another process has started.
    pub fn new(client: Client) -> Self {
        Self { client, started: Arc::default() }
    }

    fn started(&self) -> MutexGuard<'_, HashSet<(String, String)>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Importers for KubeImporters {
    async fn state(&self, namespace: &str, name: &str) -> Result<Option<ImporterState>, ClusterError> {
        let jobs: Api<Job> = Api::namespaced(self.client.clone(), namespace);
        let key = (namespace.to_owned(), name.to_owned());
        let Some(job) = jobs.get_opt(name).await.map_err(|e| refused(&e))? else {
            self.started().remove(&key);
            return Ok(None);
        };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let of_job = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={name}"));
        let pods = pods.list(&of_job).await.map_err(|e| refused(&e))?;
        Ok(Some(match state_of(&job, pods.items.first()) {
            ImporterState::Waiting(why) if !self.started().contains(&key) => ImporterState::Unfinished(why),
            ImporterState::Ended(message) => {
                self.started().remove(&key);
                ImporterState::Ended(message)
            }
            state => state,
        }))
    }

    async fn start(&self, job: &Job, secret: Option<&Secret>) -> Result<(), ClusterError> {
        let namespace = job.namespace().unwrap_or_default();
        let jobs: Api<Job> = Api::namespaced(self.client.clone(), &namespace);
        let made = match jobs.create(&PostParams::default(), job).await.map_err(|e| refused(&e)) {
            Err(ClusterError::Conflict(_)) => jobs.get(&job.name_any()).await.map_err(|e| refused(&e))?,
            other => other?,
        };
        if let Some(secret) = secret {
            let mut secret = secret.clone();
            secret.metadata.owner_references = made.owner_ref(&()).map(|owner| vec![owner]);
            let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
            match secrets.create(&PostParams::default(), &secret).await.map_err(|e| refused(&e)) {
                Err(ClusterError::Conflict(_)) => {}
                other => drop(other?),
            }
        }
        self.started().insert((namespace, job.name_any()));
        Ok(())
    }

    async fn remove(&self, namespace: &str, name: &str) -> Result<(), ClusterError> {
        let jobs: Api<Job> = Api::namespaced(self.client.clone(), namespace);
        let with_pods =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
        match jobs.delete(name, &with_pods).await.map_err(|e| refused(&e)) {
            Err(ClusterError::NotFound(_)) => Ok(()),
            other => other.map(drop),
        }
    }

    async fn patch_image_status(&self, image: &ObjectMeta, status: &VmImageStatus) -> Result<(), ClusterError> {
        let invalid = |e: serde_json::Error| ClusterError::Invalid(e.to_string());
        let patch = json!([
            {"op": "replace", "path": "/metadata/resourceVersion", "value": image.resource_version},
            {"op": "add", "path": "/status", "value": status},
        ]);
        let patch = Patch::Json::<()>(serde_json::from_value(patch).map_err(invalid)?);
        let images: Api<VmImage> = Api::namespaced(self.client.clone(), image.namespace.as_deref().unwrap_or_default());
        let name = image.name.as_deref().unwrap_or_default();
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        images.patch_status(name, &parameters, &patch).await.map(drop).map_err(|e| refused(&e))
    }
}

/// Reads a Job and its pod.
fn state_of(job: &Job, pod: Option<&Pod>) -> ImporterState {
    let status = pod.and_then(|pod| pod.status.as_ref());
    if let Some(evicted) = status.filter(|s| s.reason.as_deref() == Some("Evicted")) {
        // which says more than a program that was killed
        return ImporterState::Ended(evicted.message.clone());
    }
    let container = status.and_then(|s| s.container_statuses.as_ref()).and_then(|c| c.first()?.state.as_ref());
    if let Some(ended) = container.and_then(|state| state.terminated.as_ref()) {
        return ImporterState::Ended(ended.message.clone());
    }
    let failed = job.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == "Failed");
    if let Some(failed) = failed.filter(|c| c.status == "True") {
        return ImporterState::Ended(failed.message.clone());
    }
    if container.is_some_and(|state| state.running.is_some()) {
        return ImporterState::Running;
    }
    let waiting = container.and_then(|state| state.waiting.as_ref()).and_then(|waiting| {
        let reason = waiting.reason.clone()?;
        Some(waiting.message.as_ref().map_or_else(|| reason.clone(), |message| format!("{reason}: {message}")))
    });
    let unplaced = || {
        let conditions = status.and_then(|s| s.conditions.as_ref());
        conditions.and_then(|c| c.iter().find(|c| c.status == "False")?.message.clone())
    };
    ImporterState::Waiting(waiting.or_else(unplaced).unwrap_or_else(|| "its pod is being made".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "status": status})).unwrap()
    }

    fn job(status: serde_json::Value) -> Job {
        serde_json::from_value(json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {}, "status": status}))
            .unwrap()
    }

    #[test]
    fn an_importer_is_read_from_its_pod_and_from_its_job() {
        let container = |state: serde_json::Value| {
            let of_importer = json!({"name": "importer", "ready": false, "restartCount": 0, "image": "", "imageID": "",
                "state": state});
            pod(json!({"containerStatuses": [of_importer]}))
        };
        let open = job(json!({}));
        let ended = container(json!({"terminated": {"exitCode": 1, "message": "why"}}));
        assert_eq!(state_of(&open, Some(&ended)), ImporterState::Ended(Some("why".into())));
        let evicted = pod(json!({"phase": "Failed", "reason": "Evicted", "message": "it has used too much",
            "containerStatuses": [{"name": "importer", "ready": false, "restartCount": 0, "image": "", "imageID": "",
                "state": {"terminated": {"exitCode": 137}}}]}));
        assert_eq!(state_of(&open, Some(&evicted)), ImporterState::Ended(Some("it has used too much".into())));
        let runs = container(json!({"running": {}}));
        assert_eq!(state_of(&open, Some(&runs)), ImporterState::Running);
        let waits = container(json!({"waiting": {"reason": "ErrImagePull", "message": "no such image"}}));
        assert_eq!(state_of(&open, Some(&waits)), ImporterState::Waiting("ErrImagePull: no such image".into()));
        let unplaced = pod(json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "message": "claim \"x\" not found"}]}));
        assert_eq!(state_of(&open, Some(&unplaced)), ImporterState::Waiting("claim \"x\" not found".into()));
        let late = job(json!({"conditions": [
            {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too long"}]}));
        assert_eq!(state_of(&late, None), ImporterState::Ended(Some("too long".into())));
    }
}
