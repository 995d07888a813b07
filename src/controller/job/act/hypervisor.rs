//! Orders to the site's deployment server. What it answers is a fact of the next pass.

use std::sync::Arc;

use super::credentials;
use crate::{
    api::BestEffortJob,
    controller::job::{Context, account, memory::Deploying, plan::DeployOrder},
    driver::kadeploy::{DeployRequest, EnvironmentSource, Kadeploy, KadeployError, WorkflowId},
    names::JobUid,
};

fn server(job: &BestEffortJob, uid: &JobUid, ctx: &Context) -> Result<Arc<dyn Kadeploy>, KadeployError> {
    let account = credentials(job, uid, ctx).map_err(|error| KadeployError::Credentials(error.to_string()))?;
    ctx.deployers.account(&job.spec.slots.site, &account)
}

/// Asks for a workflow.
pub(super) async fn deploy(order: &DeployOrder, job: &BestEffortJob, uid: &JobUid, ctx: &Context) {
    let asked = async {
        let server = server(job, uid, ctx)?;
        let site = ctx.config.sites.get(&job.spec.slots.site);
        let kadeploy = site.and_then(|site| site.kadeploy.as_ref());
        let user = credentials(job, uid, ctx).ok().zip(site).and_then(|(found, site)| account::user(site, &found).ok());
        let request = DeployRequest {
            nodes: order.nodes.clone(),
            environment: EnvironmentSource::Recorded((&order.environment).into()),
            key_url: kadeploy.zip(user).and_then(|(kadeploy, user)| kadeploy.keys_of(&user)),
            takes_over: order.takes_over.clone(),
        };
        server.deploy(&request).await
    };
    let reply = asked.await;
    if let Err(error) = &reply {
        tracing::warn!(job = %uid, slot = %order.slot, number = order.number, %error, "failed to begin a deployment");
    }
    let mut known = Deploying::of(order.number);
    known.seen.reply = Some(reply);
    ctx.memory.update(uid, |memory| memory.deploying.insert(order.slot.0.clone(), known));
    (ctx.wake)(uid);
}

/// Cancels a workflow, or has it forgotten. One that stays does no harm: the server forgets it by itself.
pub(super) async fn forget(id: &WorkflowId, job: &BestEffortJob, uid: &JobUid, ctx: &Context) {
    let forgotten = async { server(job, uid, ctx)?.forget(id).await };
    if let Err(error) = forgotten.await {
        tracing::warn!(job = %uid, %id, %error, "failed to end a workflow");
    }
}
