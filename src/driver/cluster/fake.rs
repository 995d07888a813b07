//! Kubernetes in memory, for simulated time: a map of objects with the rules our writes depend on
//! (versions, preconditions, finalizers). It models no admission, defaulting or garbage collection:
//! those are tested on a real API server.

mod board;
mod joins;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::{
    api::core::v1::{Node, Pod, Secret},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use super::{
    Cluster, ClusterError, ClusterView, EventRecord, Kind, Shown,
    joins::{Answer, JoinOffer},
    kube::{owned_part, same_job},
    view::is_of,
};
use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, FINALIZER, LABEL_MEMBER, LAST_STORED, Snapshot, SnapshotStatus, VmImage,
        VmImageStatus,
    },
    clock::Clock,
    names::{JobUid, NodeName},
};

type Key = (String, String);

/// The objects and what was done to them.
#[derive(Default)]
struct Objects {
    version: u64,
    jobs: BTreeMap<Key, BestEffortJob>,
    images: BTreeMap<Key, VmImage>,
    snapshots: BTreeMap<Key, Snapshot>,
    secrets: BTreeMap<Key, Secret>,
    pods: BTreeMap<String, Pod>,
    nodes: BTreeMap<String, Node>,
    events: Vec<EventRecord>,
    tokens: BTreeMap<String, JoinOffer>,
    answers: Vec<(Answer, String)>,
    writes: BTreeMap<&'static str, u64>,
    conflicts: u32,
    down: bool,
    /// Reports of transfers wait.
    hung: bool,
    /// Jobs and snapshots that cannot be read.
    unread: BTreeSet<(Kind, Key)>,
}

/// Kubernetes in memory.
#[derive(Clone)]
pub struct FakeCluster {
    clock: Clock,
    objects: Arc<Mutex<Objects>>,
}

impl FakeCluster {
    /// An empty cluster.
    pub fn new(clock: Clock) -> Self {
        Self { clock, objects: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, what: &'static str) -> Result<MutexGuard<'_, Objects>, ClusterError> {
        let mut objects = self.lock();
        if objects.down {
            return Err(ClusterError::Unreachable("connection refused".into()));
        }
        *objects.writes.entry(what).or_default() += 1;
        Ok(objects)
    }

    fn now(&self) -> Time {
        Time(self.clock.now())
    }

    /// Refuses every write while `down`.
    pub fn set_down(&self, down: bool) {
        self.lock().down = down;
    }

    /// Makes an object one that cannot be read, or one that can again.
    pub fn set_unread(&self, kind: Kind, namespace: &str, name: &str, unread: bool) {
        let key = (kind, (namespace.to_owned(), name.to_owned()));
        let mut objects = self.lock();
        if unread {
            objects.unread.insert(key)
        } else {
            objects.unread.remove(&key)
        };
    }

    /// Lets this many of the next status writes meet a conflict.
    pub fn conflict(&self, times: u32) {
        self.lock().conflicts = times;
    }

    /// Rises with every change of any object: whoever watches has seen everything up to it.
    pub fn version(&self) -> u64 {
        self.lock().version
    }

    /// Writes so far, by method; those that were refused included.
    pub fn writes(&self) -> BTreeMap<&'static str, u64> {
        self.lock().writes.clone()
    }

    /// Events so far.
    pub fn events(&self) -> Vec<EventRecord> {
        self.lock().events.clone()
    }

    /// Creates a job, or changes its spec, as a user would.
    pub fn put_job(&self, mut job: BestEffortJob) {
        let mut objects = self.lock();
        let key = key(&job.metadata);
        match objects.jobs.get(&key).cloned() {
            Some(old) => {
                let changed = old.spec != job.spec;
                job.metadata = old.metadata;
                job.status = old.status;
                if changed {
                    job.metadata.generation = job.metadata.generation.map(|n| n + 1);
                }
            }
            None => self.born(&mut job.metadata),
        }
        objects.stamp(&mut job.metadata);
        objects.jobs.insert(key, job);
    }

    /// Creates a VmImage with its status.
    pub fn put_image(&self, mut image: VmImage) {
        let mut objects = self.lock();
        self.born(&mut image.metadata);
        objects.stamp(&mut image.metadata);
        objects.images.insert(key(&image.metadata), image);
    }

    /// Replaces the status of a VmImage, if it still has this version.
    pub fn set_image_status(&self, image: &ObjectMeta, status: &VmImageStatus) -> Result<(), ClusterError> {
        let mut objects = self.write("patch_image_status")?;
        let place = key(image);
        let found = objects.images.get(&place).ok_or_else(|| ClusterError::NotFound(place.1.clone()))?;
        if found.metadata.resource_version != image.resource_version {
            return Err(ClusterError::Conflict(place.1));
        }
        let mut found = found.clone();
        found.status = Some(status.clone());
        objects.stamp(&mut found.metadata);
        objects.images.insert(place, found);
        Ok(())
    }

    /// Creates a Secret.
    pub fn put_secret(&self, mut secret: Secret) {
        let mut objects = self.lock();
        self.born(&mut secret.metadata);
        objects.stamp(&mut secret.metadata);
        objects.secrets.insert(key(&secret.metadata), secret);
    }

    /// Registers a node.
    pub fn put_node(&self, node: Node) {
        self.lock().nodes.insert(node.metadata.name.clone().unwrap_or_default(), node);
    }

    /// Takes a node away.
    pub fn take_node(&self, name: &str) {
        self.lock().nodes.remove(name);
    }

    /// The agent pods, for whoever plays the kubelet.
    pub fn pods(&self) -> Vec<Pod> {
        self.lock().pods.values().cloned().collect()
    }

    /// The Secret of an agent pod.
    pub fn agent_secret(&self, pod: &Pod) -> Option<Secret> {
        self.lock().secrets.get(&key(&pod.metadata)).cloned()
    }

    /// Names of all Secrets of agents.
    pub fn agent_secrets(&self) -> Vec<String> {
        let objects = self.lock();
        let of_agents =
            objects.secrets.values().filter(|s| s.metadata.labels.iter().flatten().any(|(k, _)| k == LABEL_MEMBER));
        of_agents.filter_map(|secret| secret.metadata.name.clone()).collect()
    }

    /// Writes a pod's status, as a kubelet does.
    pub fn set_pod_status(&self, name: &str, status: k8s_openapi::api::core::v1::PodStatus) {
        let mut objects = self.lock();
        objects.version += 1;
        if let Some(pod) = objects.pods.get_mut(name) {
            pod.status = Some(status);
        }
    }

    /// Removes a pod that has ended, as a kubelet does.
    pub fn remove_pod(&self, name: &str) {
        let mut objects = self.lock();
        objects.version += 1;
        objects.pods.remove(name);
    }

    /// All snapshots.
    pub fn all_snapshots(&self) -> Vec<Snapshot> {
        self.lock().snapshots.values().cloned().collect()
    }

    /// Changes whether a snapshot is kept, as a user would.
    pub fn retain_snapshot(&self, namespace: &str, name: &str, retain: bool) {
        let mut objects = self.lock();
        if let Some(snapshot) = objects.snapshots.get_mut(&(namespace.into(), name.into())) {
            snapshot.spec.retain = retain;
        }
        objects.version += 1;
    }

    /// Gives a new object its uid, age and first generation.
    fn born(&self, meta: &mut ObjectMeta) {
        let name = meta.name.clone().unwrap_or_default();
        meta.uid.get_or_insert_with(|| uid_of(&name));
        meta.creation_timestamp.get_or_insert_with(|| self.now());
        meta.generation.get_or_insert(1);
    }
}

/// A uid that is the same in every run.
fn uid_of(name: &str) -> String {
    let hash = blake3::hash(name.as_bytes()).to_hex();
    format!("{}-{}-4{}-8{}-{}", &hash[..8], &hash[8..12], &hash[13..16], &hash[17..20], &hash[20..32])
}

fn key(meta: &ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

impl Objects {
    fn stamp(&mut self, meta: &mut ObjectMeta) {
        self.version += 1;
        meta.resource_version = Some(self.version.to_string());
    }

    fn metadata(&mut self, kind: Kind, key: &Key) -> Option<&mut ObjectMeta> {
        match kind {
            Kind::Job => self.jobs.get_mut(key).map(|o| &mut o.metadata),
            Kind::Snapshot => self.snapshots.get_mut(key).map(|o| &mut o.metadata),
            Kind::Image => self.images.get_mut(key).map(|o| &mut o.metadata),
            Kind::Secret => self.secrets.get_mut(key).map(|o| &mut o.metadata),
        }
    }

    fn change_finalizers(
        &mut self,
        kind: Kind,
        object: &ObjectMeta,
        change: impl FnOnce(&mut Vec<String>),
    ) -> Result<(), ClusterError> {
        self.version += 1;
        let version = self.version.to_string();
        let place = key(object);
        let meta = self.metadata(kind, &place).ok_or_else(|| ClusterError::NotFound(place.1.clone()))?;
        let list = meta.finalizers.get_or_insert_default();
        if *list != object.finalizers.clone().unwrap_or_default() {
            return Err(ClusterError::Conflict("the finalizers are not what was read".into()));
        }
        change(list);
        meta.resource_version = Some(version);
        if list.is_empty() && meta.deletion_timestamp.is_some() {
            self.remove(kind, &place);
        }
        Ok(())
    }

    fn remove(&mut self, kind: Kind, key: &Key) {
        match kind {
            Kind::Job => drop(self.jobs.remove(key)),
            Kind::Snapshot => drop(self.snapshots.remove(key)),
            Kind::Image => drop(self.images.remove(key)),
            Kind::Secret => drop(self.secrets.remove(key)),
        }
    }
}

#[async_trait]
impl Cluster for FakeCluster {
    async fn patch_job_status(&self, job: &ObjectMeta, status: &BestEffortJobStatus) -> Result<String, ClusterError> {
        let mut objects = self.write("patch_job_status")?;
        if objects.conflicts > 0 {
            objects.conflicts -= 1;
            return Err(ClusterError::Conflict("made by the test".into()));
        }
        objects.version += 1;
        let version = objects.version.to_string();
        let place = key(job);
        let old = objects.jobs.get_mut(&place).ok_or_else(|| ClusterError::NotFound(place.1.clone()))?;
        if old.metadata.resource_version != job.resource_version {
            return Err(ClusterError::Conflict("the job has another version".into()));
        }
        old.metadata.resource_version = Some(version.clone());
        old.status = Some(status.clone());
        Ok(version)
    }

    async fn add_finalizer(&self, kind: Kind, object: &ObjectMeta) -> Result<(), ClusterError> {
        if object.finalizers.iter().flatten().any(|f| f == FINALIZER) {
            return Ok(());
        }
        self.write("add_finalizer")?.change_finalizers(kind, object, |list| list.push(FINALIZER.into()))
    }

    async fn remove_finalizer(&self, kind: Kind, object: &ObjectMeta) -> Result<(), ClusterError> {
        if !object.finalizers.iter().flatten().any(|f| f == FINALIZER) {
            return Ok(());
        }
        let removed =
            self.write("remove_finalizer")?.change_finalizers(kind, object, |list| list.retain(|f| f != FINALIZER));
        if matches!(removed, Err(ClusterError::NotFound(_))) { Ok(()) } else { removed }
    }

    async fn create_agent_pod(&self, pod: &Pod) -> Result<Pod, ClusterError> {
        let mut objects = self.write("create_agent_pod")?;
        let name = pod.metadata.name.clone().unwrap_or_default();
        if let Some(old) = objects.pods.get(&name) {
            return Ok(old.clone());
        }
        let mut pod = pod.clone();
        // a pod's uid is its own, whatever its name
        pod.metadata.uid = Some(uid_of(&format!("{name}{}", objects.version)));
        self.born(&mut pod.metadata);
        objects.stamp(&mut pod.metadata);
        objects.pods.insert(name, pod.clone());
        Ok(pod)
    }

    async fn create_agent_secret(&self, secret: &Secret, _pod: &Pod) -> Result<(), ClusterError> {
        let mut objects = self.write("create_agent_secret")?;
        objects.secrets.entry(key(&secret.metadata)).or_insert_with(|| secret.clone());
        Ok(())
    }

    async fn delete_agent(&self, pod: &str, grace: Duration) -> Result<(), ClusterError> {
        let mut objects = self.write("delete_agent")?;
        let since = self.now();
        objects.version += 1;
        objects.secrets.retain(|(_, name), _| name != pod);
        if grace.is_zero() {
            objects.pods.remove(pod);
        } else if let Some(pod) = objects.pods.get_mut(pod) {
            pod.metadata.deletion_timestamp.get_or_insert(since);
            pod.metadata.deletion_grace_period_seconds = i64::try_from(grace.as_secs()).ok();
        }
        Ok(())
    }

    async fn show_stored(&self, on: Shown, object: &ObjectMeta, value: Option<&str>) -> Result<(), ClusterError> {
        let mut objects = self.write("show_stored")?;
        objects.version += 1;
        let version = Some(objects.version.to_string());
        let meta = match on {
            Shown::Job => objects.metadata(Kind::Job, &key(object)),
            Shown::Agent => objects.pods.get_mut(&key(object).1).map(|pod| &mut pod.metadata),
        };
        let meta = meta.filter(|meta| meta.uid == object.uid);
        let meta = meta.ok_or_else(|| ClusterError::NotFound(key(object).1))?;
        meta.annotations = value.map(|value| [(LAST_STORED.into(), value.into())].into());
        meta.resource_version = version;
        Ok(())
    }

    async fn create_snapshot(&self, snapshot: &Snapshot) -> Result<(), ClusterError> {
        let mut objects = self.write("create_snapshot")?;
        let place = key(&snapshot.metadata);
        if let Some(old) = objects.snapshots.get(&place) {
            return same_job(old, snapshot);
        }
        let mut snapshot = snapshot.clone();
        snapshot.status = None;
        self.born(&mut snapshot.metadata);
        objects.stamp(&mut snapshot.metadata);
        objects.snapshots.insert(place, snapshot);
        Ok(())
    }

    async fn apply_snapshot_status(&self, snapshot: &ObjectMeta, status: &SnapshotStatus) -> Result<(), ClusterError> {
        let mut objects = self.write("apply_snapshot_status")?;
        let place = key(snapshot);
        let old = objects.snapshots.get_mut(&place).ok_or_else(|| ClusterError::NotFound(place.1.clone()))?;
        if snapshot.uid.is_some() && snapshot.uid != old.metadata.uid {
            return Err(ClusterError::Conflict("another object has this name".into()));
        }
        let theirs = old.status.take().unwrap_or_default();
        let mut new = owned_part(status);
        new.conditions.extend(theirs.conditions.into_iter().filter(|c| c.type_ == "Stored"));
        new.transfer = theirs.transfer;
        old.status = Some(new);
        objects.version += 1;
        Ok(())
    }

    async fn delete(&self, kind: Kind, object: &ObjectMeta) -> Result<(), ClusterError> {
        let mut objects = self.write("delete")?;
        let place = key(object);
        let since = self.now();
        let Some(meta) = objects.metadata(kind, &place) else { return Ok(()) };
        if object.uid.is_some() && meta.uid != object.uid {
            return Err(ClusterError::Conflict("another object has this name".into()));
        }
        if meta.finalizers.as_deref().unwrap_or_default().is_empty() {
            objects.remove(kind, &place);
        } else {
            meta.deletion_timestamp.get_or_insert(since);
        }
        objects.version += 1;
        let version = objects.version.to_string();
        if let Some(meta) = objects.metadata(kind, &place) {
            meta.resource_version = Some(version);
        }
        Ok(())
    }

    async fn remove_node(&self, node: &NodeName, uid: &str) -> Result<(), ClusterError> {
        let mut objects = self.write("remove_node")?;
        if objects.nodes.get(&node.0).is_some_and(|known| known.metadata.uid.as_deref() == Some(uid)) {
            objects.nodes.remove(&node.0);
            objects.version += 1;
        }
        Ok(())
    }

    async fn record(&self, event: &EventRecord) -> Result<(), ClusterError> {
        self.write("record")?.events.push(event.clone());
        Ok(())
    }
}

#[async_trait]
impl ClusterView for FakeCluster {
    fn job(&self, namespace: &str, name: &str) -> Option<Arc<BestEffortJob>> {
        let objects = self.lock();
        let key = (namespace.into(), name.into());
        objects.jobs.get(&key).filter(|_| !objects.unread.contains(&(Kind::Job, key.clone()))).cloned().map(Arc::new)
    }

    fn jobs(&self) -> Vec<Arc<BestEffortJob>> {
        let objects = self.lock();
        let read = objects.jobs.iter().filter(|(key, _)| !objects.unread.contains(&(Kind::Job, (*key).clone())));
        read.map(|(_, job)| Arc::new(job.clone())).collect()
    }

    async fn job_is_gone(&self, namespace: &str, name: &str, uid: Option<&JobUid>) -> Result<bool, ClusterError> {
        let objects = self.lock();
        if objects.down {
            return Err(ClusterError::Unreachable("connection refused".into()));
        }
        let found = objects.jobs.get(&(namespace.into(), name.into()));
        Ok(found.is_none_or(|found| uid.is_some_and(|uid| found.metadata.uid.as_ref() != Some(&uid.0))))
    }

    fn has_all_jobs(&self, namespace: &str) -> bool {
        !self.lock().unread.iter().any(|(kind, (of, _))| *kind == Kind::Job && of == namespace)
    }

    fn has_all_snapshots(&self, namespace: &str) -> bool {
        !self.lock().unread.iter().any(|(kind, (of, _))| *kind == Kind::Snapshot && of == namespace)
    }

    fn image(&self, namespace: &str, name: &str) -> Option<Arc<VmImage>> {
        self.lock().images.get(&(namespace.into(), name.into())).cloned().map(Arc::new)
    }

    fn images(&self) -> Vec<Arc<VmImage>> {
        self.lock().images.values().cloned().map(Arc::new).collect()
    }

    async fn users_of_images(&self) -> Result<(Vec<VmImage>, Vec<BestEffortJob>), ClusterError> {
        let objects = self.lock();
        if objects.down || objects.unread.iter().any(|(kind, _)| matches!(kind, Kind::Image | Kind::Job)) {
            return Err(ClusterError::Unreachable("not all can be read".into()));
        }
        Ok((objects.images.values().cloned().collect(), objects.jobs.values().cloned().collect()))
    }

    fn snapshots(&self, namespace: &str, job: &str) -> Vec<Arc<Snapshot>> {
        let objects = self.lock();
        let read =
            objects.snapshots.iter().filter(|(key, _)| !objects.unread.contains(&(Kind::Snapshot, (*key).clone())));
        let of_job = read.filter(|((ns, _), s)| ns == namespace && s.spec.job == job);
        of_job.map(|(_, snapshot)| Arc::new(snapshot.clone())).collect()
    }

    fn snapshot(&self, namespace: &str, name: &str) -> Option<Arc<Snapshot>> {
        let key = (namespace.to_owned(), name.to_owned());
        let objects = self.lock();
        let unread = objects.unread.contains(&(Kind::Snapshot, key.clone()));
        objects.snapshots.get(&key).filter(|_| !unread).cloned().map(Arc::new)
    }

    fn agents(&self, job: &JobUid) -> Vec<Arc<Pod>> {
        self.lock().pods.values().filter(|pod| is_of(pod, job)).cloned().map(Arc::new).collect()
    }

    fn node(&self, name: &NodeName) -> Option<Arc<Node>> {
        self.lock().nodes.get(&name.0).cloned().map(Arc::new)
    }

    fn nodes(&self) -> Vec<Arc<Node>> {
        self.lock().nodes.values().cloned().map(Arc::new).collect()
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, ClusterError> {
        Ok(self.lock().secrets.get(&(namespace.into(), name.into())).cloned())
    }

    /// There are no ConfigMaps.
    async fn config_value(&self, _: &str, _: &str, _: &str) -> Result<Option<String>, ClusterError> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn cluster() -> FakeCluster {
        let cluster = FakeCluster::new(Clock::manual(Timestamp::UNIX_EPOCH));
        let spec = serde_json::json!({"run": {"command": ["true"]}, "slots": {"site": "a", "walltime": "1h"}});
        let mut job = BestEffortJob::new("pi", serde_json::from_value(spec).unwrap());
        job.metadata.namespace = Some("x".into());
        cluster.put_job(job);
        cluster
    }

    #[tokio::test]
    async fn a_status_needs_the_version_it_was_decided_from() {
        let cluster = cluster();
        let job = cluster.job("x", "pi").unwrap();
        let status = BestEffortJobStatus { attempt: 1, ..BestEffortJobStatus::default() };
        let version = cluster.patch_job_status(&job.metadata, &status).await.unwrap();
        let again = cluster.patch_job_status(&job.metadata, &BestEffortJobStatus::default()).await;
        assert!(matches!(again, Err(ClusterError::Conflict(_))), "{again:?}");
        let job = cluster.job("x", "pi").unwrap();
        assert_eq!((job.metadata.resource_version.clone(), job.status.clone()), (Some(version), Some(status)));
    }

    #[tokio::test]
    async fn a_finalizer_holds_a_deleted_object() {
        let cluster = cluster();
        let before = cluster.job("x", "pi").unwrap();
        cluster.add_finalizer(Kind::Job, &before.metadata).await.unwrap();
        let stale = cluster.remove_finalizer(Kind::Job, &before.metadata).await;
        assert_eq!(stale, Ok(()), "nothing to remove in what was read");
        let held = cluster.job("x", "pi").unwrap();
        cluster.delete(Kind::Job, &held.metadata).await.unwrap();
        assert!(cluster.job("x", "pi").unwrap().metadata.deletion_timestamp.is_some());
        cluster.remove_finalizer(Kind::Job, &held.metadata).await.unwrap();
        assert!(cluster.job("x", "pi").is_none());
        cluster.remove_finalizer(Kind::Job, &held.metadata).await.unwrap();
    }
}
