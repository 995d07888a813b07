//! Kills the operator right after its n-th write to the outside: a fuse in front of every driver.
//!
//! A process that is dead does nothing any more: every later call of it waits for ever, those of its
//! background tasks included. What the last call did is done; its reply is lost.

use std::{
    collections::BTreeMap,
    future::{Future, pending},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{Node, Pod, Secret},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use tokio::sync::Notify;

use crate::{
    api::{BestEffortJob, BestEffortJobStatus, Snapshot, SnapshotStatus, VmImage, VmImageStatus},
    driver::{
        agent::{
            AgentAddress, AgentError, AgentState, Agents, Authority, CaptureOrder, CollectOrder, GuestAccess,
            LeaveCode, NodeAgent, UploadOrder,
        },
        cluster::{
            Cluster, ClusterError, ClusterView, EventRecord, Kind, Shown,
            importers::{ImporterState, Importers},
            joins::{Answer, JoinOffer, Joins},
        },
        kadeploy::{
            DeployRequest, Environment, EnvironmentName, EnvironmentToDeploy, Kadeploy, KadeployError, Observation,
            Workflow, WorkflowId,
        },
        launcher::{LaunchKey, LaunchOrder, LaunchedAgent, Launcher, LauncherError, Launchers},
        repository::{DiskRecord, GenerationSummary, JobContent, JobUsage, OutputSummary, Repository, RepositoryError},
        site::{Capabilities, Glance, Site, SiteError, SlotFacts, SlotRequest},
    },
    names::{Generation, Incarnation, JobUid, NodeName, SlotId},
    store::{adoption::Adoption, images::ImageReview, manifest::Manifest},
};

/// The life of one operator process.
#[derive(Debug)]
pub(super) struct Fuse {
    /// Writes after which it dies.
    limit: usize,
    writes: AtomicUsize,
    dead: AtomicBool,
    died: Notify,
    log: Mutex<Vec<&'static str>>,
}

impl Fuse {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            writes: AtomicUsize::new(0),
            dead: AtomicBool::new(false),
            died: Notify::new(),
            log: Mutex::default(),
        })
    }

    /// Writes so far, in order.
    pub(super) fn log(&self) -> Vec<&'static str> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Ends the process now.
    pub(super) fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.died.notify_waiters();
    }

    /// Returns when the process has died.
    pub(super) async fn died(&self) {
        loop {
            let notified = self.died.notified();
            if self.is_dead() {
                return;
            }
            notified.await;
        }
    }

    async fn alive(&self) {
        if self.is_dead() {
            pending::<()>().await;
        }
    }

    async fn read<T>(&self, call: impl Future<Output = T>) -> T {
        self.alive().await;
        call.await
    }

    async fn write<T>(&self, what: &'static str, call: impl Future<Output = T>) -> T {
        self.alive().await;
        let result = call.await;
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(what);
        if self.writes.fetch_add(1, Ordering::SeqCst) + 1 == self.limit {
            self.kill();
        }
        self.alive().await;
        result
    }
}

/// Something behind a fuse.
pub(super) struct Fused<T: ?Sized> {
    pub(super) fuse: Arc<Fuse>,
    pub(super) inner: Arc<T>,
}

#[async_trait]
impl Cluster for Fused<dyn Cluster> {
    async fn patch_job_status(&self, job: &ObjectMeta, status: &BestEffortJobStatus) -> Result<String, ClusterError> {
        self.fuse.write("patch_job_status", self.inner.patch_job_status(job, status)).await
    }
    async fn add_finalizer(&self, kind: Kind, object: &ObjectMeta) -> Result<(), ClusterError> {
        self.fuse.write("add_finalizer", self.inner.add_finalizer(kind, object)).await
    }
    async fn remove_finalizer(&self, kind: Kind, object: &ObjectMeta) -> Result<(), ClusterError> {
        self.fuse.write("remove_finalizer", self.inner.remove_finalizer(kind, object)).await
    }
    async fn create_agent_pod(&self, pod: &Pod) -> Result<Pod, ClusterError> {
        self.fuse.write("create_agent_pod", self.inner.create_agent_pod(pod)).await
    }
    async fn create_agent_secret(&self, secret: &Secret, pod: &Pod) -> Result<(), ClusterError> {
        self.fuse.write("create_agent_secret", self.inner.create_agent_secret(secret, pod)).await
    }
    async fn delete_agent(&self, pod: &str, grace: Duration) -> Result<(), ClusterError> {
        self.fuse.write("delete_agent", self.inner.delete_agent(pod, grace)).await
    }
    async fn create_snapshot(&self, snapshot: &Snapshot) -> Result<(), ClusterError> {
        self.fuse.write("create_snapshot", self.inner.create_snapshot(snapshot)).await
    }
    async fn apply_snapshot_status(&self, snapshot: &ObjectMeta, status: &SnapshotStatus) -> Result<(), ClusterError> {
        self.fuse.write("apply_snapshot_status", self.inner.apply_snapshot_status(snapshot, status)).await
    }
    async fn show_stored(&self, on: Shown, object: &ObjectMeta, value: Option<&str>) -> Result<(), ClusterError> {
        self.fuse.write("show_stored", self.inner.show_stored(on, object, value)).await
    }
    async fn delete(&self, kind: Kind, object: &ObjectMeta) -> Result<(), ClusterError> {
        self.fuse.write("delete", self.inner.delete(kind, object)).await
    }
    async fn remove_node(&self, node: &NodeName, uid: &str) -> Result<(), ClusterError> {
        self.fuse.write("remove_node", self.inner.remove_node(node, uid)).await
    }
    async fn record(&self, event: &EventRecord) -> Result<(), ClusterError> {
        self.fuse.write("record", self.inner.record(event)).await
    }
}

#[async_trait]
impl ClusterView for Fused<dyn ClusterView> {
    fn job(&self, namespace: &str, name: &str) -> Option<Arc<BestEffortJob>> {
        self.inner.job(namespace, name)
    }
    fn jobs(&self) -> Vec<Arc<BestEffortJob>> {
        self.inner.jobs()
    }
    async fn job_is_gone(&self, namespace: &str, name: &str, uid: Option<&JobUid>) -> Result<bool, ClusterError> {
        self.fuse.read(self.inner.job_is_gone(namespace, name, uid)).await
    }
    fn has_all_jobs(&self, namespace: &str) -> bool {
        self.inner.has_all_jobs(namespace)
    }
    fn has_all_snapshots(&self, namespace: &str) -> bool {
        self.inner.has_all_snapshots(namespace)
    }
    fn image(&self, namespace: &str, name: &str) -> Option<Arc<VmImage>> {
        self.inner.image(namespace, name)
    }
    fn images(&self) -> Vec<Arc<VmImage>> {
        self.inner.images()
    }
    async fn users_of_images(&self) -> Result<(Vec<VmImage>, Vec<BestEffortJob>), ClusterError> {
        self.fuse.read(self.inner.users_of_images()).await
    }
    fn snapshots(&self, namespace: &str, job: &str) -> Vec<Arc<Snapshot>> {
        self.inner.snapshots(namespace, job)
    }
    fn snapshot(&self, namespace: &str, name: &str) -> Option<Arc<Snapshot>> {
        self.inner.snapshot(namespace, name)
    }
    fn agents(&self, job: &JobUid) -> Vec<Arc<Pod>> {
        self.inner.agents(job)
    }
    fn node(&self, name: &NodeName) -> Option<Arc<Node>> {
        self.inner.node(name)
    }
    fn nodes(&self) -> Vec<Arc<Node>> {
        self.inner.nodes()
    }
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, ClusterError> {
        self.fuse.read(self.inner.secret(namespace, name)).await
    }
    async fn config_value(&self, namespace: &str, name: &str, key: &str) -> Result<Option<String>, ClusterError> {
        self.fuse.read(self.inner.config_value(namespace, name, key)).await
    }
}

#[async_trait]
impl Kadeploy for Fused<dyn Kadeploy> {
    async fn describe(&self, name: &EnvironmentName) -> Result<Environment, KadeployError> {
        self.fuse.read(self.inner.describe(name)).await
    }
    async fn deploy(&self, request: &DeployRequest) -> Result<WorkflowId, KadeployError> {
        self.fuse.write("deploy", self.inner.deploy(request)).await
    }
    async fn workflows(&self) -> Result<Vec<Workflow>, KadeployError> {
        self.fuse.read(self.inner.workflows()).await
    }
    async fn observe(
        &self,
        workflow: &WorkflowId,
        nodes: &[NodeName],
        environment: &EnvironmentToDeploy,
    ) -> Result<Observation, KadeployError> {
        self.fuse.read(self.inner.observe(workflow, nodes, environment)).await
    }
    async fn forget(&self, workflow: &WorkflowId) -> Result<(), KadeployError> {
        self.fuse.write("forget_workflow", self.inner.forget(workflow)).await
    }
}

#[async_trait]
impl Importers for Fused<dyn Importers> {
    async fn state(&self, namespace: &str, name: &str) -> Result<Option<ImporterState>, ClusterError> {
        self.fuse.read(self.inner.state(namespace, name)).await
    }
    async fn start(&self, job: &Job, secret: Option<&Secret>) -> Result<(), ClusterError> {
        self.fuse.write("start", self.inner.start(job, secret)).await
    }
    async fn remove(&self, namespace: &str, name: &str) -> Result<(), ClusterError> {
        self.fuse.write("remove", self.inner.remove(namespace, name)).await
    }
    async fn patch_image_status(&self, image: &ObjectMeta, status: &VmImageStatus) -> Result<(), ClusterError> {
        self.fuse.write("patch_image_status", self.inner.patch_image_status(image, status)).await
    }
}

#[async_trait]
impl Joins for Fused<dyn Joins> {
    async fn offer(&self, offer: &JoinOffer) -> Result<(), ClusterError> {
        self.fuse.write("offer", self.inner.offer(offer)).await
    }
    async fn withdraw(&self, id: &str) -> Result<(), ClusterError> {
        self.fuse.write("withdraw", self.inner.withdraw(id)).await
    }
    async fn answer(&self, request: &ObjectMeta, answer: Answer, message: &str) -> Result<(), ClusterError> {
        self.fuse.write("answer", self.inner.answer(request, answer, message)).await
    }
}

#[async_trait]
impl Site for Fused<dyn Site> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn submit(&self, request: &SlotRequest) -> Result<Vec<SlotId>, SiteError> {
        self.fuse.write("submit", self.inner.submit(request)).await
    }
    async fn look_up(&self, prefix: &str, since: Option<Timestamp>) -> Result<BTreeMap<SlotId, Glance>, SiteError> {
        self.fuse.read(self.inner.look_up(prefix, since)).await
    }
    async fn glance(&self, ids: &[SlotId]) -> Result<BTreeMap<SlotId, Glance>, SiteError> {
        self.fuse.read(self.inner.glance(ids)).await
    }
    async fn status(&self, ids: &[SlotId]) -> Result<BTreeMap<SlotId, SlotFacts>, SiteError> {
        self.fuse.read(self.inner.status(ids)).await
    }
    async fn release(&self, id: &SlotId) -> Result<(), SiteError> {
        self.fuse.write("release", self.inner.release(id)).await
    }
}

impl GuestAccess for Fused<dyn NodeAgent> {}

#[async_trait]
impl NodeAgent for Fused<dyn NodeAgent> {
    async fn state(&self) -> Result<AgentState, AgentError> {
        self.fuse.read(self.inner.state()).await
    }
    async fn watch(&self) -> Result<BoxStream<'static, AgentState>, AgentError> {
        self.fuse.read(self.inner.watch()).await
    }
    async fn go(&self, authority: Authority) -> Result<(), AgentError> {
        self.fuse.write("go", self.inner.go(authority)).await
    }
    async fn prepare(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.fuse.write("prepare", self.inner.prepare(order)).await
    }
    async fn stop(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.fuse.write("stop", self.inner.stop(order)).await
    }
    async fn cut(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.fuse.write("cut", self.inner.cut(order)).await
    }
    async fn abandon(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.fuse.write("abandon", self.inner.abandon(order)).await
    }
    async fn stay_down(&self, order: &CaptureOrder, limit: Duration) -> Result<(), AgentError> {
        self.fuse.write("stay_down", self.inner.stay_down(order, limit)).await
    }
    async fn upload(&self, order: &UploadOrder) -> Result<(), AgentError> {
        self.fuse.write("upload", self.inner.upload(order)).await
    }
    async fn collect(&self, order: &CollectOrder) -> Result<(), AgentError> {
        self.fuse.write("collect", self.inner.collect(order)).await
    }
    async fn leave(&self, authority: Authority, code: LeaveCode) -> Result<(), AgentError> {
        self.fuse.write("leave", self.inner.leave(authority, code)).await
    }
}

impl Agents for Fused<dyn Agents> {
    fn agent(&self, address: &AgentAddress) -> Arc<dyn NodeAgent> {
        Arc::new(Fused { fuse: self.fuse.clone(), inner: self.inner.agent(address) })
    }
}

#[async_trait]
impl Launchers for Fused<dyn Launchers> {
    async fn find(&self, host: &str, port: u16) -> Result<SocketAddr, LauncherError> {
        self.fuse.read(self.inner.find(host, port)).await
    }
    fn at(&self, address: SocketAddr, key: &LaunchKey) -> Arc<dyn Launcher> {
        Arc::new(Fused { fuse: self.fuse.clone(), inner: self.inner.at(address, key) })
    }
}

#[async_trait]
impl Launcher for Fused<dyn Launcher> {
    async fn agents(&self) -> Result<Vec<LaunchedAgent>, LauncherError> {
        self.fuse.read(self.inner.agents()).await
    }
    async fn start(&self, name: &str, order: &LaunchOrder) -> Result<(), LauncherError> {
        self.fuse.write("start_agent", self.inner.start(name, order)).await
    }
    async fn end(&self, name: &str) -> Result<(), LauncherError> {
        self.fuse.write("end_agent", self.inner.end(name)).await
    }
}

#[async_trait]
impl Repository for Fused<dyn Repository> {
    async fn content(&self, job: &JobUid) -> Result<JobContent, RepositoryError> {
        self.fuse.read(self.inner.content(job)).await
    }
    async fn manifest(&self, job: &JobUid, generation: Generation) -> Result<Manifest, RepositoryError> {
        self.fuse.read(self.inner.manifest(job, generation)).await
    }
    async fn fence(&self, job: &JobUid, incarnation: Incarnation) -> Result<(), RepositoryError> {
        self.fuse.write("fence", self.inner.fence(job, incarnation)).await
    }
    async fn publish(&self, manifest: &Manifest) -> Result<GenerationSummary, RepositoryError> {
        self.fuse.write("publish", self.inner.publish(manifest)).await
    }
    async fn adopt(&self, job: &JobUid, order: &Adoption) -> Result<GenerationSummary, RepositoryError> {
        self.fuse.write("adopt", self.inner.adopt(job, order)).await
    }
    async fn retire(&self, job: &JobUid, generation: Generation) -> Result<(), RepositoryError> {
        self.fuse.write("retire", self.inner.retire(job, generation)).await
    }
    async fn give_up(&self, job: &JobUid, generation: Generation) -> Result<(), RepositoryError> {
        self.fuse.write("give_up", self.inner.give_up(job, generation)).await
    }
    async fn remove_job(&self, job: &JobUid) -> Result<(), RepositoryError> {
        self.fuse.write("remove_job", self.inner.remove_job(job)).await
    }
    async fn usage(&self) -> Result<Vec<JobUsage>, RepositoryError> {
        self.fuse.read(self.inner.usage()).await
    }
    async fn outputs(&self, job: &JobUid) -> Result<Vec<OutputSummary>, RepositoryError> {
        self.fuse.read(self.inner.outputs(job)).await
    }
    async fn image(&self, digest: &str) -> Result<Option<u64>, RepositoryError> {
        self.fuse.read(self.inner.image(digest)).await
    }
    async fn disk_record(&self, digest: &str) -> Result<Option<DiskRecord>, RepositoryError> {
        self.fuse.read(self.inner.disk_record(digest)).await
    }
    async fn review_images(&self, review: &ImageReview) -> Result<Vec<String>, RepositoryError> {
        self.fuse.write("review_images", self.inner.review_images(review)).await
    }
}
