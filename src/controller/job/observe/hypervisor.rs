//! What the site's deployment server says: asked only where a workflow is under way, and of the environment before
//! slots are asked for. It is asked beside the passes, which take what is known by then: a server that hangs holds
//! nothing else up.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use super::may_ask;
use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, Reason,
        job_status::{SlotStatus, WorkflowStatus},
    },
    config::Flavour,
    controller::job::{
        Context,
        memory::{Checked, Deploying},
        plan::{DeploymentSeen, uid},
    },
    driver::{
        DriverError as _, Fact,
        kadeploy::{EnvironmentToDeploy, Kadeploy, KadeployError, Observation, Workflow, WorkflowId},
        site::{Credentials, SlotFacts},
    },
    names::NodeName,
};

/// What is known of a workflow is as good as new for so long.
const FRESH: Duration = Duration::from_secs(2);
/// Longest wait for one answer.
const LIMIT: Duration = Duration::from_secs(10);
/// That an environment is there is asked again after this time, and that it is not.
const FOUND: Duration = Duration::from_secs(300);
const NOT_FOUND: Duration = Duration::from_secs(15);

type Account = Fact<Result<Credentials, String>>;

fn server(job: &BestEffortJob, ctx: &Context, account: &Account) -> Option<Result<Arc<dyn Kadeploy>, KadeployError>> {
    let Some(Ok(credentials)) = account.known() else { return None };
    Some(ctx.deployers.account(&job.spec.slots.site, credentials))
}

async fn limited<T>(asked: impl Future<Output = Result<T, KadeployError>>) -> Result<T, KadeployError> {
    let late = || KadeployError::Unreachable(format!("no answer within {} s", LIMIT.as_secs()));
    tokio::time::timeout(LIMIT, asked).await.unwrap_or_else(|_| Err(late()))
}

/// Whether the server has the environment that the spec names, or what to change.
pub(super) fn named_environment(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    slots: &Fact<Vec<SlotFacts>>,
    account: &Account,
    ctx: &Context,
) -> Fact<Result<(), (Reason, String)>> {
    let Some(environment) = job.spec.deployed() else { return Fact::Absent };
    let site = &job.spec.slots.site;
    let kadeploy = ctx.config.sites.get(site).and_then(|site| site.kadeploy.as_ref());
    // Grid'5000's API tells nothing of environments before it is to deploy one
    let is_asked = kadeploy.is_some_and(|kadeploy| kadeploy.flavour == Flavour::Native);
    if !is_asked || !may_ask(job, status, slots) {
        return Fact::Absent;
    }
    let (uid, now) = (uid(job), ctx.clock.now());
    let remembered = ctx.memory.get(&uid);
    let known = remembered.environment.filter(|checked| checked.environment == *environment);
    let age = |checked: &Checked| if checked.found.is_ok() { FOUND } else { NOT_FOUND };
    let fresh = known.as_ref().is_some_and(|it| now.duration_since(it.at).unsigned_abs() < age(it));
    if !fresh
        && !remembered.checking
        && let Some(server) = server(job, ctx, account)
    {
        ctx.memory.update(&uid, |memory| memory.checking = true);
        let (environment, site, uid, ctx) = (environment.clone(), site.clone(), uid, ctx.clone());
        tokio::spawn(async move {
            let found = match server {
                Ok(server) => limited(server.describe(&(&environment).into())).await.map(|_| ()),
                Err(error) => Err(error),
            };
            let found = found.map_err(|error| (error.reason(), format!("site {site}: {error}")));
            ctx.memory.update_known(&uid, |memory| {
                memory.checking = false;
                memory.environment = Some(Checked { environment, at: ctx.clock.now(), found });
            });
            (ctx.wake)(&uid);
        });
    }
    // what was known is, until there is another answer
    known.map_or(Fact::Unknown { since: ctx.leadership.since }, |checked| Fact::Known(checked.found))
}

/// What is known of the workflows under way on the job's slots, or to be ended there.
pub(super) fn deployments(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    account: &Account,
    ctx: &Context,
) -> BTreeMap<String, DeploymentSeen> {
    let under_way = |slot: &SlotStatus| Some((slot.clone(), slot.deployment.as_ref()?.workflow.clone()?));
    let all = status.slots.iter().filter_map(under_way);
    all.map(|(slot, workflow)| (slot.id.clone(), deployment(job, slot, workflow, account, ctx))).collect()
}

fn deployment(
    job: &BestEffortJob,
    slot: SlotStatus,
    workflow: WorkflowStatus,
    account: &Account,
    ctx: &Context,
) -> DeploymentSeen {
    let (uid, now) = (uid(job), ctx.clock.now());
    let known = ctx.memory.get(&uid).deploying.remove(&slot.id).filter(|known| known.number == workflow.number);
    let mut known = known.unwrap_or_else(|| Deploying::of(workflow.number));
    let seen = known.seen.clone();
    let fresh = known.looked.is_some_and(|at| now.duration_since(at).unsigned_abs() < FRESH);
    // an answer tells more than the server's list, unless there was none
    let answered = |reply: &Result<WorkflowId, KadeployError>| !matches!(reply, Err(KadeployError::Unreachable(_)));
    let certain = workflow.id.is_none() && seen.reply.as_ref().is_some_and(|(_, reply)| answered(reply));
    if fresh || known.looking || seen.asking || certain {
        return seen;
    }
    let Some(server) = server(job, ctx, account) else { return seen };
    known.looking = true;
    ctx.memory.update(&uid, |memory| memory.deploying.insert(slot.id.clone(), known));
    let ctx = ctx.clone();
    tokio::spawn(async move {
        let said = match server {
            Ok(server) => look(&*server, &slot, &workflow).await,
            Err(error) => Err(error),
        };
        let now = ctx.clock.now();
        ctx.memory.update_known(&uid, |memory| {
            let same = |known: &&mut Deploying| known.number == workflow.number;
            let Some(known) = memory.deploying.get_mut(&slot.id).filter(same) else { return };
            (known.looking, known.looked, known.seen.error) = (false, Some(now), None);
            match said {
                Ok(Said::Stand(stand)) => known.seen.observation = Some(stand),
                Ok(Said::List(all)) => known.seen.workflows = Some((now, all)),
                Err(error) => known.seen.error = Some(error),
            }
        });
        (ctx.wake)(&uid);
    });
    seen
}

enum Said {
    Stand(Observation),
    List(Vec<Workflow>),
}

async fn look(server: &dyn Kadeploy, slot: &SlotStatus, workflow: &WorkflowStatus) -> Result<Said, KadeployError> {
    let (Some(id), Some(deployment)) = (&workflow.id, &slot.deployment) else {
        return limited(server.workflows()).await.map(Said::List);
    };
    let nodes: Vec<NodeName> = workflow.nodes.iter().cloned().map(NodeName).collect();
    let environment = EnvironmentToDeploy::Recorded((&deployment.environment).into());
    limited(server.observe(&WorkflowId(id.clone()), &nodes, &environment)).await.map(Said::Stand)
}
