//! What kget sees and writes, of the same objects in memory.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};

use super::{
    super::{Cluster, ClusterError, ClusterView, EventRecord, transfers::TransferBoard},
    FakeCluster,
};
use crate::{
    api::{BestEffortJob, Snapshot, snapshot::Transfer},
    names::JobUid,
};

impl FakeCluster {
    /// Answers no report of a transfer while `hung`.
    pub fn set_hung(&self, hung: bool) {
        self.lock().hung = hung;
    }

    /// Writes what kget owns of a snapshot's status.
    pub fn set_transfer(&self, namespace: &str, name: &str, transfer: Transfer) {
        let mut objects = self.lock();
        if let Some(snapshot) = objects.snapshots.get_mut(&(namespace.into(), name.into())) {
            snapshot.status.get_or_insert_default().transfer = Some(transfer);
        }
        objects.version += 1;
    }
}

#[async_trait]
impl TransferBoard for FakeCluster {
    fn snapshots(&self) -> Vec<Arc<Snapshot>> {
        self.all_snapshots().into_iter().map(Arc::new).collect()
    }

    fn job_of(&self, namespace: &str, name: &str) -> Option<Arc<BestEffortJob>> {
        ClusterView::job(self, namespace, name)
    }

    async fn job_is_gone(&self, namespace: &str, name: &str, uid: &JobUid) -> Result<bool, ClusterError> {
        ClusterView::job_is_gone(self, namespace, name, Some(uid)).await
    }

    async fn report(&self, snapshot: &ObjectMeta, transfer: &Transfer, _: &Condition) -> Result<(), ClusterError> {
        while self.lock().hung {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(self.write("report")?);
        let (namespace, name) = (snapshot.namespace.as_deref(), snapshot.name.as_deref());
        self.set_transfer(namespace.unwrap_or_default(), name.unwrap_or_default(), transfer.clone());
        Ok(())
    }

    async fn announce(&self, event: &EventRecord) -> Result<(), ClusterError> {
        Cluster::record(self, event).await
    }
}
