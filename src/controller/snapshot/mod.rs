//! The controller of `Snapshot`: a captured generation becomes stored or void, a deleted object
//! retires its generation.
//!
//! When a capture is taken, and what is written of it until all members are captured, is the job
//! controller's. The transfer is kget's, who owns `status.transfer` and the condition `Stored`; the
//! manifest in the repository is the truth about both.

pub mod act;
pub mod decide;
pub mod observe;
pub mod status;

use std::sync::Arc;

use kube::runtime::controller::Action;

use crate::{
    api::Snapshot,
    clock::Clock,
    driver::{
        cluster::{Cluster, ClusterView},
        repository::Repository,
    },
};

/// Everything a pass may use.
#[derive(Clone)]
pub struct Context {
    /// The time.
    pub clock: Clock,
    /// Writes to Kubernetes.
    pub cluster: Arc<dyn Cluster>,
    /// Reads from Kubernetes.
    pub view: Arc<dyn ClusterView>,
    /// The repository.
    pub repository: Arc<dyn Repository>,
}

/// One pass.
pub async fn reconcile(snapshot: Arc<Snapshot>, context: Arc<Context>) -> Result<Action, act::Error> {
    let seen = observe::observe(&snapshot, &context).await;
    let plan = decide::decide(&snapshot, &seen, context.clock.now());
    act::act(&plan, &snapshot, &context).await
}
