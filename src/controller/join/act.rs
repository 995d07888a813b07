//! Answers a request, if that was decided. Decides nothing but, of two that ask at once, who was the first.

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::runtime::controller::Action;

use super::{
    Context,
    decide::{Plan, Seen, taken},
};
use crate::driver::cluster::{ClusterError, joins::Answer};

/// Carries a plan out. The node's job is told why it was denied.
pub(super) async fn act(
    plan: &Plan,
    seen: &Seen,
    request: &CertificateSigningRequest,
    context: &Context,
) -> Result<Action, ClusterError> {
    let name = request.metadata.name.as_deref().unwrap_or_default();
    match plan {
        Plan::Nothing => Ok(Action::await_change()),
        Plan::Wait(time) => Ok(Action::requeue(*time)),
        Plan::Complain(why) => {
            tracing::warn!(request = name, why, "somebody else has approved a request with a token of a node");
            tell(
                seen,
                format!("somebody else has approved its request for a certificate, {name}, though {why}"),
                context,
            );
            Ok(Action::await_change())
        }
        Plan::Say(answer, why) => {
            // two that ask at once do not see each other
            let refusal = if *answer == Answer::Approved { promise(seen, context) } else { None };
            let (answer, why) = refusal.map_or((*answer, why.clone()), |refusal| (Answer::Denied, refusal));
            tracing::info!(request = name, ?answer, why, "answering a request for a certificate");
            match context.joins.answer(&request.metadata, answer, &why).await {
                // collected meanwhile
                Ok(()) | Err(ClusterError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
            if answer == Answer::Denied {
                tell(seen, format!("its request for a certificate, {name}, was denied: {why}"), context);
            }
            Ok(Action::await_change())
        }
    }
}

/// Promises the certificate to the key that it is asked for with; says why not, if another one has it.
fn promise(seen: &Seen, context: &Context) -> Option<String> {
    let (token, newcomer, subject) = (seen.token.as_ref()?, seen.newcomer.as_ref()?, seen.asked.subject.as_ref()?);
    let is_ours = context.memory.certify(&newcomer.job, token, &subject.key);
    (!is_ours).then(|| taken(&newcomer.name, "a moment ago"))
}

fn tell(seen: &Seen, what: String, context: &Context) {
    let (Some(token), Some(newcomer)) = (&seen.token, &seen.newcomer) else { return };
    context.memory.update_known(&newcomer.job, |memory| memory.denied.insert(token.clone(), what));
    (context.wake)(&newcomer.job);
}
