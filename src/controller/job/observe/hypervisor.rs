//! What the site's deployment server says: asked only where a workflow is under way, and of the environment before slots
//! are asked for.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::may_ask;
use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, Reason,
        job_status::{SlotStatus, WorkflowStatus},
    },
    controller::job::{
        Context,
        memory::{Checked, Deploying},
        plan::{DeploymentSeen, uid},
    },
    driver::{
        DriverError as _, Fact,
        kadeploy::{EnvironmentSource, Kadeploy, KadeployError, WorkflowId},
        site::{Credentials, SlotFacts},
    },
    names::NodeName,
};

/// What is known of a workflow is as good as new for so long.
const FRESH: Duration = Duration::from_secs(2);
/// Longest wait for one answer: other facts wait with it.
const LIMIT: Duration = Duration::from_secs(10);
/// That an environment is there is asked again after this time, and that it is not.
const FOUND: Duration = Duration::from_secs(300);
const NOT_FOUND: Duration = Duration::from_secs(15);

fn account(
    job: &BestEffortJob,
    ctx: &Context,
    account: &Fact<Result<Credentials, String>>,
) -> Option<Result<Arc<dyn Kadeploy>, KadeployError>> {
    let Some(Ok(credentials)) = account.known() else { return None };
    Some(ctx.deployers.account(&job.spec.slots.site, credentials))
}

/// Whether the server has the environment that the spec names, or what to change.
pub(super) async fn named_environment(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    slots: &Fact<Vec<SlotFacts>>,
    credentials: &Fact<Result<Credentials, String>>,
    ctx: &Context,
) -> Fact<Result<(), (Reason, String)>> {
    let unknown = Fact::Unknown { since: ctx.leadership.since };
    let Some(environment) = job.spec.deployed() else { return Fact::Absent };
    if !may_ask(job, status, slots) {
        return unknown;
    }
    let (uid, now) = (uid(job), ctx.clock.now());
    let known = ctx.memory.get(&uid).environment.filter(|checked| checked.environment == *environment);
    let fresh = |checked: &Checked| {
        let age = if checked.found.is_ok() { FOUND } else { NOT_FOUND };
        now.duration_since(checked.at).unsigned_abs() < age
    };
    if let Some(checked) = known.filter(fresh) {
        return Fact::Known(checked.found);
    }
    let found = match account(job, ctx, credentials) {
        None => return unknown,
        Some(Err(error)) => Err(error),
        Some(Ok(server)) => limited(server.describe(&environment.into())).await.map(|_| ()),
    };
    let site = &job.spec.slots.site;
    let found = found.map_err(|error| (error.reason(), format!("site {site}: {error}")));
    let checked = Checked { environment: environment.clone(), at: now, found: found.clone() };
    ctx.memory.update(&uid, |memory| memory.environment = Some(checked));
    Fact::Known(found)
}

async fn limited<T>(asked: impl Future<Output = Result<T, KadeployError>>) -> Result<T, KadeployError> {
    let late = || KadeployError::Unreachable(format!("no answer within {} s", LIMIT.as_secs()));
    tokio::time::timeout(LIMIT, asked).await.unwrap_or_else(|_| Err(late()))
}

/// What is known of the workflows under way on the job's slots.
pub(super) async fn deployments(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    credentials: &Fact<Result<Credentials, String>>,
    ctx: &Context,
) -> BTreeMap<String, DeploymentSeen> {
    let mut all = BTreeMap::new();
    for slot in status.slots.iter().filter(|slot| slot.is_in_use()) {
        let under_way = slot.deployment.as_ref().and_then(|deployment| deployment.workflow.as_ref());
        if let Some(workflow) = under_way {
            all.insert(slot.id.clone(), deployment(job, slot, workflow, credentials, ctx).await);
        }
    }
    all
}

async fn deployment(
    job: &BestEffortJob,
    slot: &SlotStatus,
    workflow: &WorkflowStatus,
    credentials: &Fact<Result<Credentials, String>>,
    ctx: &Context,
) -> DeploymentSeen {
    let (uid, now) = (uid(job), ctx.clock.now());
    let known = ctx.memory.get(&uid).deploying.remove(&slot.id).filter(|known| known.number == workflow.number);
    let mut known = known.unwrap_or_else(|| Deploying::of(workflow.number));
    let fresh = known.asked.is_some_and(|at| now.duration_since(at).unsigned_abs() < FRESH);
    // an answer tells more than the server's list, unless there was none
    let certain = known.seen.reply.as_ref().is_some_and(|reply| !matches!(reply, Err(KadeployError::Unreachable(_))));
    if fresh || (workflow.id.is_none() && certain) {
        return known.seen;
    }
    if let Some(server) = account(job, ctx, credentials) {
        known.seen.error = match server {
            Ok(server) => ask(&*server, slot, workflow, &mut known.seen).await.err(),
            Err(error) => Some(error),
        };
        known.asked = Some(now);
        let seen = known.seen.clone();
        ctx.memory.update(&uid, |memory| memory.deploying.insert(slot.id.clone(), known));
        return seen;
    }
    known.seen
}

async fn ask(
    server: &dyn Kadeploy,
    slot: &SlotStatus,
    workflow: &WorkflowStatus,
    seen: &mut DeploymentSeen,
) -> Result<(), KadeployError> {
    let Some(id) = &workflow.id else {
        seen.workflows = Some(limited(server.workflows()).await?);
        return Ok(());
    };
    let Some(deployment) = &slot.deployment else { return Ok(()) };
    let nodes: Vec<NodeName> = workflow.nodes.iter().cloned().map(NodeName).collect();
    let environment = EnvironmentSource::Recorded((&deployment.environment).into());
    seen.stand = Some(limited(server.observe(&WorkflowId(id.clone()), &nodes, &environment)).await?);
    Ok(())
}
