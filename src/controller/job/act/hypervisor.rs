//! Orders to the site's deployment server. Nobody waits for its answers, which are facts of later passes: a server that
//! hangs holds nothing else up.

use std::sync::Arc;

use super::credentials;
use crate::{
    api::BestEffortJob,
    controller::job::{
        Context, account,
        memory::Deploying,
        observe::token,
        plan::{DeployOrder, TokenOrder},
    },
    driver::{
        cluster::joins::{JoinOffer, LEAST_LIFE},
        kadeploy::{DeployRequest, EnvironmentToDeploy, Kadeploy, KadeployError, WorkflowId},
    },
    names::{JobUid, SlotId},
};

fn server(job: &BestEffortJob, uid: &JobUid, ctx: &Context) -> Result<Arc<dyn Kadeploy>, KadeployError> {
    let account = credentials(job, uid, ctx).map_err(|error| KadeployError::Unreachable(error.to_string()))?;
    ctx.deployers.account(&job.spec.slots.site, &account)
}

/// Where the server finds the ssh keys for the nodes, if the site has them put there.
fn keys(job: &BestEffortJob, uid: &JobUid, ctx: &Context) -> Result<Option<String>, KadeployError> {
    let Some(site) = ctx.config.sites.get(&job.spec.slots.site) else { return Ok(None) };
    let Some(kadeploy) = site.kadeploy.as_ref().filter(|kadeploy| kadeploy.keys.is_some()) else { return Ok(None) };
    let account = credentials(job, uid, ctx).map_err(|error| KadeployError::Unreachable(error.to_string()))?;
    let user = account::user(site, &account).map_err(KadeployError::Configuration)?;
    Ok(kadeploy.keys_of(&user))
}

/// Asks for a workflow.
pub(super) fn deploy(order: &DeployOrder, job: &BestEffortJob, uid: &JobUid, ctx: &Context) {
    let prepared = server(job, uid, ctx).and_then(|server| {
        let request = DeployRequest {
            nodes: order.nodes.clone(),
            environment: EnvironmentToDeploy::Recorded((&order.environment).into()),
            key_url: keys(job, uid, ctx)?,
            takes_over: order.takes_over.clone(),
        };
        Ok((server, request))
    });
    let mut known = Deploying::of(order.number);
    known.seen.asking = true;
    ctx.memory.update(uid, |memory| memory.deploying.insert(order.slot.0.clone(), known));
    let (order, uid, ctx) = (order.clone(), uid.clone(), ctx.clone());
    tokio::spawn(async move {
        let reply = match prepared {
            Ok((server, request)) => server.deploy(&request).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &reply {
            tracing::warn!(job = %uid, slot = %order.slot, number = order.number, %error, "failed to begin a deployment");
        }
        learn(&uid, &order.slot, &ctx, |known| {
            if known.number == order.number {
                (known.seen.asking, known.seen.reply) = (false, Some((ctx.clock.now(), reply)));
            }
        });
    });
}

/// Cancels a workflow, or has it forgotten.
pub(super) fn forget(slot: &SlotId, id: &WorkflowId, job: &BestEffortJob, uid: &JobUid, ctx: &Context) {
    let server = server(job, uid, ctx);
    let (slot, id, uid, ctx) = (slot.clone(), id.clone(), uid.clone(), ctx.clone());
    tokio::spawn(async move {
        let forgotten = match server {
            Ok(server) => server.forget(&id).await,
            Err(error) => Err(error),
        };
        match forgotten {
            Ok(()) => learn(&uid, &slot, &ctx, |known| known.seen.forgotten = Some(id)),
            Err(error) => tracing::warn!(job = %uid, %id, %error, "failed to end a workflow"),
        }
    });
}

/// Lets a node join the cluster. Nothing waits for it but the node.
pub(super) async fn offer_token(order: &TokenOrder, job: &BestEffortJob, uid: &JobUid, ctx: &Context) {
    let key = ctx.memory.get(uid).launch_key.and_then(|read| read.found.ok());
    let found = key.and_then(|key| token(job, &order.slot.0, &order.node, &key, ctx));
    let Some(token) = found.filter(|token| token.id == order.id) else { return };
    let site = ctx.config.sites.get(&job.spec.slots.site);
    let join = site.and_then(|site| site.kadeploy.as_ref()?.join.as_ref());
    let offer = JoinOffer {
        token,
        description: format!("{} of slot {} of the job with uid {uid}", order.node, order.slot),
        expires: ctx.clock.now() + order.life.max(LEAST_LIFE),
        certificate: join.filter(|join| join.short_certificates).map(|_| order.life),
    };
    let offered = ctx.joins.offer(&offer).await;
    if let Err(error) = &offered {
        tracing::warn!(job = %uid, node = %order.node, %error, "failed to let a node join the cluster");
    }
    ctx.memory.update(uid, |memory| {
        memory.withdrawn.remove(&order.id);
        match offered {
            Ok(()) => memory.unoffered.remove(&order.id),
            Err(error) => memory.unoffered.insert(
                order.id.clone(),
                format!("its token could not be put into kube-system (the chart gives the right to, where a site has kadeploy.join): {error}"),
            ),
        }
    });
}

/// Takes a token back. One that stays ends by itself.
pub(super) async fn withdraw_token(id: &str, uid: &JobUid, ctx: &Context) {
    match ctx.joins.withdraw(id).await {
        Ok(()) => {
            ctx.memory.update(uid, |memory| memory.withdrawn.insert(id.to_owned()));
            (ctx.wake)(uid);
        }
        Err(error) => tracing::warn!(job = %uid, id, %error, "failed to take a token back"),
    }
}

fn learn(uid: &JobUid, slot: &SlotId, ctx: &Context, what: impl FnOnce(&mut Deploying)) {
    ctx.memory.update_known(uid, |memory| memory.deploying.get_mut(&slot.0).map(what));
    (ctx.wake)(uid);
}
