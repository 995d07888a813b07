//! The controller of certificate requests of deployed nodes: which of them may be signed (safety A12).
//!
//! A node that was deployed asks with the bootstrap token that the hold of its slot has put there. It gets one
//! certificate, for its own name, while it is to join, that ends with its slot; another kubelet's certificate that is
//! asked for with such a token is denied. Requests of all others, and to other signers, are left to others: the
//! operator has no right to answer them.

mod act;
mod decide;
mod observe;

use std::sync::Arc;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::runtime::controller::Action;

use crate::{
    clock::Clock,
    config::Config,
    controller::job::memory::Memory,
    driver::cluster::{ClusterError, ClusterView, joins::Joins},
    names::JobUid,
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
    /// All requests that are known.
    pub requests: Arc<dyn Fn() -> Vec<Arc<CertificateSigningRequest>> + Send + Sync>,
    /// What is remembered of jobs, which are told why a node of theirs was denied.
    pub memory: Memory,
    /// Brings about a pass of a job.
    pub wake: Arc<dyn Fn(&JobUid) + Send + Sync>,
}

/// Whether nodes of any site join in this way.
pub fn is_needed(config: &Config) -> bool {
    config.sites.values().any(|site| site.kadeploy.as_ref().is_some_and(|kadeploy| kadeploy.join.is_some()))
}

/// One pass.
pub async fn reconcile(request: Arc<CertificateSigningRequest>, context: Arc<Context>) -> Result<Action, ClusterError> {
    let seen = observe::observe(&request, &context);
    let plan = decide::decide(&seen, context.clock.now());
    act::act(&plan, &seen, &request, &context).await
}

#[cfg(test)]
mod tests;
