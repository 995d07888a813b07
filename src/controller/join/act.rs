//! Answers a request, if that was decided. Decides nothing.

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::runtime::controller::Action;

use super::{Context, decide::Plan};
use crate::driver::cluster::ClusterError;

/// Carries a plan out.
pub(super) async fn act(
    plan: &Plan,
    request: &CertificateSigningRequest,
    context: &Context,
) -> Result<Action, ClusterError> {
    match plan {
        Plan::Nothing => Ok(Action::await_change()),
        Plan::Wait(time) => Ok(Action::requeue(*time)),
        Plan::Say(answer, why) => {
            tracing::info!(request = request.metadata.name, ?answer, why, "answering a request for a certificate");
            match context.joins.answer(&request.metadata, *answer, why).await {
                // collected meanwhile
                Ok(()) | Err(ClusterError::NotFound(_)) => Ok(Action::await_change()),
                Err(error) => Err(error),
            }
        }
    }
}
