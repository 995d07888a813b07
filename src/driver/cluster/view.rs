//! The reads: stores that watches fill, and single reads of Secrets and ConfigMaps, which are not
//! cached because the operator may only get the ones a job names.

use std::sync::Arc;

use ::kube::{
    Api, Client,
    api::ListParams,
    runtime::reflector::{ObjectRef, Store},
};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret};

use super::{ClusterError, ClusterView, kube::refused, unread::Unread};
use crate::{
    api::{BestEffortJob, LABEL_JOB_UID, Snapshot, VmImage},
    names::{JobUid, NodeName},
};

/// What the watches of one operator have filled.
#[derive(Clone)]
pub struct KubeView {
    /// For what is not cached.
    pub client: Client,
    /// The operator's namespace, where the agents are.
    pub namespace: String,
    /// All jobs.
    pub jobs: Store<BestEffortJob>,
    /// Jobs that cannot be read.
    pub unread_jobs: Unread,
    /// All images.
    pub images: Store<VmImage>,
    /// All snapshots.
    pub snapshots: Store<Snapshot>,
    /// Snapshots that cannot be read.
    pub unread_snapshots: Unread,
    /// The agent pods, and nothing but them.
    pub agents: Store<Pod>,
    /// The nodes.
    pub nodes: Store<Node>,
}

#[async_trait]
impl ClusterView for KubeView {
    fn job(&self, namespace: &str, name: &str) -> Option<Arc<BestEffortJob>> {
        self.jobs.get(&ObjectRef::new(name).within(namespace))
    }

    fn jobs(&self) -> Vec<Arc<BestEffortJob>> {
        self.jobs.state()
    }

    async fn job_is_gone(&self, namespace: &str, name: &str, uid: Option<&JobUid>) -> Result<bool, ClusterError> {
        job_is_gone(&self.client, namespace, name, uid).await
    }

    fn has_all_jobs(&self, namespace: &str) -> bool {
        !self.unread_jobs.any_in(namespace)
    }

    fn has_all_snapshots(&self, namespace: &str) -> bool {
        !self.unread_snapshots.any_in(namespace)
    }

    fn image(&self, namespace: &str, name: &str) -> Option<Arc<VmImage>> {
        self.images.get(&ObjectRef::new(name).within(namespace))
    }

    fn images(&self) -> Vec<Arc<VmImage>> {
        self.images.state()
    }

    async fn users_of_images(&self) -> Result<(Vec<VmImage>, Vec<BestEffortJob>), ClusterError> {
        // one that cannot be read fails the whole list
        let images = Api::<VmImage>::all(self.client.clone()).list(&ListParams::default()).await;
        let jobs = Api::<BestEffortJob>::all(self.client.clone()).list(&ListParams::default()).await;
        Ok((images.map_err(|e| refused(&e))?.items, jobs.map_err(|e| refused(&e))?.items))
    }

    fn snapshots(&self, namespace: &str, job: &str) -> Vec<Arc<Snapshot>> {
        self.snapshots.state_filter(|snapshot| {
            snapshot.spec.job == job && snapshot.metadata.namespace.as_deref() == Some(namespace)
        })
    }

    fn snapshot(&self, namespace: &str, name: &str) -> Option<Arc<Snapshot>> {
        self.snapshots.get(&ObjectRef::new(name).within(namespace))
    }

    fn agents(&self, job: &JobUid) -> Vec<Arc<Pod>> {
        self.agents.state_filter(|pod| is_of(pod, job))
    }

    fn node(&self, name: &NodeName) -> Option<Arc<Node>> {
        self.nodes.get(&ObjectRef::new(&name.0))
    }

    fn nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.state()
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, ClusterError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        api.get_opt(name).await.map_err(|e| refused(&e))
    }

    async fn config_value(&self, namespace: &str, name: &str, key: &str) -> Result<Option<String>, ClusterError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let map = api.get_opt(name).await.map_err(|e| refused(&e))?;
        Ok(map.and_then(|map| map.data?.remove(key)))
    }
}

/// Asks for nothing but the metadata, which can be read of whatever there is.
pub(super) async fn job_is_gone(
    client: &Client,
    namespace: &str,
    name: &str,
    uid: Option<&JobUid>,
) -> Result<bool, ClusterError> {
    let api: Api<BestEffortJob> = Api::namespaced(client.clone(), namespace);
    let found = api.get_metadata_opt(name).await.map_err(|e| refused(&e))?;
    Ok(found.is_none_or(|found| uid.is_some_and(|uid| found.metadata.uid.as_ref() != Some(&uid.0))))
}

/// Whether an agent pod is one of the job's.
pub(super) fn is_of(pod: &Pod, job: &JobUid) -> bool {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_JOB_UID)) == Some(&job.0)
}
