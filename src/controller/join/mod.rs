//! The controller of certificate requests of deployed nodes: which of them may be signed (safety A12).
//!
//! A node that was deployed asks with the bootstrap token that the hold of its slot has put there. It gets a certificate for
//! its own name, while it is on its way into the cluster, that ends with its slot; whatever else is asked for with such a
//! token is denied. Requests of all others are left to others.

mod act;
mod decide;
mod observe;

use std::sync::Arc;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::runtime::controller::Action;

use crate::{
    clock::Clock,
    config::Config,
    driver::cluster::{ClusterError, ClusterView, joins::Joins},
};

/// Everything a pass may use.
#[derive(Clone)]
pub struct Context {
    /// The operator's configuration.
    pub config: Arc<Config>,
    /// The time.
    pub clock: Clock,
    /// Reads from Kubernetes.
    pub view: Arc<dyn ClusterView>,
    /// Answers to requests.
    pub joins: Arc<dyn Joins>,
}

/// Whether nodes of any site join in this way.
pub fn is_needed(config: &Config) -> bool {
    config.sites.values().any(|site| site.kadeploy.as_ref().is_some_and(|kadeploy| kadeploy.join.is_some()))
}

/// One pass.
pub async fn reconcile(request: Arc<CertificateSigningRequest>, context: Arc<Context>) -> Result<Action, ClusterError> {
    let seen = observe::observe(&request, &context);
    let plan = decide::decide(&seen, context.clock.now());
    act::act(&plan, &request, &context).await
}

#[cfg(test)]
mod tests;
