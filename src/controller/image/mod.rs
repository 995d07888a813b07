//! The controller of `VmImage`: observe, decide, act.
//!
//! An image becomes ready by one import, made by an importer of its own; its record in the status
//! says what was imported. One that is imported again because a person asks for it stays ready as it was, until that
//! has ended well. Nothing holds an object that is being deleted: an importer ends by itself
//! and what it brought stays in the repository under its digest, until nothing has named it for a while (`review`).

pub mod act;
pub mod decide;
mod environment;
pub mod importer;
pub mod logins;
pub mod observe;
pub mod recorded;
pub mod review;
pub mod status;

use std::sync::Arc;

use kube::runtime::controller::Action;

use crate::{
    api::VmImage,
    clock::Clock,
    config::Config,
    driver::{
        cluster::{Cluster, ClusterError, ClusterView, importers::Importers},
        kadeploy::Deployers,
        repository::Repository,
    },
    tls::Authority,
};

/// Everything a pass may use.
#[derive(Clone)]
pub struct Context {
    /// What the administrator decided.
    pub config: Arc<Config>,
    /// The time.
    pub clock: Clock,
    /// Importers and the status of images.
    pub importers: Arc<dyn Importers>,
    /// Events.
    pub cluster: Arc<dyn Cluster>,
    /// Reads from Kubernetes.
    pub view: Arc<dyn ClusterView>,
    /// Accounts at the sites' deployment servers.
    pub deployers: Arc<dyn Deployers>,
    /// The repository.
    pub repository: Arc<dyn Repository>,
    /// Signs the certificates of importers that run in a user's namespace.
    pub authority: Arc<Authority>,
}

/// One pass.
pub async fn reconcile(image: Arc<VmImage>, context: Arc<Context>) -> Result<Action, ClusterError> {
    let seen = observe::observe(&image, &context).await;
    let plan = decide::decide(&image, &seen, context.clock.now());
    act::act(&image, &seen, &plan, &context).await
}
