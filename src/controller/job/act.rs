//! Does what a plan says: the status once, then the effects in order, then the notes.
//!
//! Nothing is decided here. If the status cannot be written nothing else is done, but for what may
//! not wait for the API server ([`Effect::needs_status`], safety B17).

mod hypervisor;
mod launched;

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use futures::future::join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource as _;

use super::{
    Context, Error, account, barrier,
    decide::sent_key,
    inputs,
    observe::why_not_adopted,
    plan::{AgentPlacement, AgentRef, Effect, Plan, Reply, uid},
    pods,
};
use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, FINALIZER, LABEL_JOB, LABEL_JOB_UID, LABEL_SWITCH, Snapshot, SnapshotSpec,
        SnapshotStatus, job::LauncherKind,
    },
    controller::note,
    driver::{
        DriverError as _, Retry,
        agent::{AgentAddress, AgentError, Authority, NodeAgent},
        cluster::{ClusterError, Kind, Shown},
        site::{Credentials, Site, SiteError, SlotRequest},
    },
    names::{Identity, JobUid, MemberIndex, NodeName},
    store::adoption::Adoption,
};

/// Longest wait for one order to an agent.
const ORDER_LIMIT: Duration = Duration::from_secs(5);
/// Time an agent's pod gets to end.
const POD_GRACE: Duration = Duration::from_secs(15);
/// What is repeated is remembered this long.
const MEMORY: Duration = Duration::from_secs(300);
/// Certificates outlive the slot by this much.
const CERTIFICATE_SLACK: Duration = Duration::from_secs(3600);

/// Does what the plan says. Returns when to look again.
pub async fn act(plan: &Plan, job: &BestEffortJob, ctx: &Context) -> Result<Option<Duration>, Error> {
    let uid = uid(job);
    let mut job = job.clone();
    if job.status.as_ref() != Some(&plan.status) && plan.status != BestEffortJobStatus::default() {
        match ctx.cluster.patch_job_status(&job.metadata, &plan.status).await {
            Ok(version) => {
                job.metadata.resource_version = Some(version);
                job.status = Some(plan.status.clone());
            }
            Err(error @ ClusterError::Unreachable(_)) => {
                for effect in plan.effects.iter().filter(|effect| !effect.needs_status()) {
                    perform(effect, &job, &uid, ctx).await?;
                }
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        }
    }
    ctx.memory.update(&uid, |memory| memory.retain(&plan.status));
    for effect in &plan.effects {
        tracing::info!(job = %uid, why = plan.why, effect = effect.name(), "acting");
        perform(effect, &job, &uid, ctx).await?;
    }
    note::record(&*ctx.cluster, &job.object_ref(&()), plan.why, &plan.notes).await;
    Ok(plan.wake)
}

async fn perform(effect: &Effect, job: &BestEffortJob, uid: &JobUid, ctx: &Context) -> Result<(), Error> {
    let now = ctx.clock.now();
    ctx.memory.update(uid, |memory| {
        memory.sent.retain(|_, at| now.duration_since(*at).unsigned_abs() < MEMORY);
        memory.sent.insert(sent_key(effect), now);
    });
    match effect {
        Effect::AddFinalizer => ctx.cluster.add_finalizer(Kind::Job, &job.metadata).await?,
        Effect::RemoveFinalizer => {
            ctx.cluster.remove_finalizer(Kind::Job, &job.metadata).await?;
            forget(uid, ctx);
        }
        Effect::DeleteJob => ctx.cluster.delete(Kind::Job, &job.metadata).await?,
        Effect::SubmitSlots { submission, request } => submit(*submission, request, job, uid, ctx).await?,
        Effect::ReleaseSlot { id } => {
            let said = site(job, uid, ctx)?.release(id).await.err();
            if let Some(error) = &said {
                tracing::warn!(job = %uid, slot = %id, %error, "failed to give a slot back");
            }
            let refused = said.as_ref().is_some_and(|error| matches!(error.retry(), Retry::Denied | Retry::Bug));
            // silence, and a slot that is not known, are nothing new
            if said.is_none() || refused {
                ctx.memory.update(uid, |memory| memory.releases.insert(id.0.clone(), said));
            }
            ctx.sites.nudge(uid);
        }
        Effect::Deploy(order) => hypervisor::deploy(order, job, uid, ctx),
        Effect::ForgetWorkflow { slot, id } => hypervisor::forget(slot, id, job, uid, ctx),
        Effect::RemoveNode { node, uid: of } => {
            // nothing waits for it for good
            if let Err(error) = ctx.cluster.remove_node(node, of).await {
                tracing::warn!(job = %uid, %node, %error, "failed to remove a node from the cluster");
            }
        }
        Effect::OfferToken(order) => hypervisor::offer_token(order, job, uid, ctx).await,
        Effect::WithdrawToken { id } => hypervisor::withdraw_token(id, uid, ctx).await,
        Effect::FenceRepository { incarnation } => ctx.repository.fence(uid, *incarnation).await?,
        Effect::Adopt(order) => adopt(order, uid, ctx).await,
        Effect::CreateAgent(placement) => create_agent(placement, job, uid, ctx).await?,
        Effect::DeleteAgent { pod } => {
            // what a launcher tells of is nobody's pod, whatever its name
            if ctx.view.agents(uid).iter().any(|known| known.metadata.name.as_ref() == Some(pod)) {
                ctx.cluster.delete_agent(pod, POD_GRACE).await?;
            } else {
                launched::end(pod, uid, ctx);
            }
        }
        Effect::Go { agents } => {
            order(agents, uid, ctx, "go", |agent, authority| async move { agent.go(authority).await }).await;
        }
        Effect::Leave { agents, code } => {
            // each takes the time that its VM takes to end, and others have to be told meanwhile
            let (agents, code, uid, ctx) = (agents.clone(), *code, uid.clone(), ctx.clone());
            tokio::spawn(async move {
                let leave =
                    move |agent: Arc<dyn NodeAgent>, authority| async move { agent.leave(authority, code).await };
                order(&agents, &uid, &ctx, "leave", leave).await;
                ctx.sites.nudge(&uid);
                (ctx.wake)(&uid);
            });
        }
        Effect::Capture(capture) => barrier::begin(capture, uid, ctx),
        Effect::AbandonCapture(capture) => barrier::abandon(capture, uid, ctx).await,
        Effect::CreateSnapshot { name, reason } => {
            let spec =
                SnapshotSpec { job: job.metadata.name.clone().unwrap_or_default(), reason: *reason, retain: false };
            let mut snapshot = Snapshot::new(name, spec);
            snapshot.metadata.namespace.clone_from(&job.metadata.namespace);
            let label = |value: &str| value.chars().take(63).collect::<String>();
            snapshot.metadata.labels = Some(
                [
                    (LABEL_JOB_UID.to_owned(), uid.0.clone()),
                    (LABEL_JOB.to_owned(), label(&snapshot.spec.job).trim_end_matches(['.', '-']).to_owned()),
                ]
                .into(),
            );
            ctx.cluster.create_snapshot(&snapshot).await?;
        }
        Effect::ShowStored { pod, value } => show_stored(pod.as_ref(), value.as_deref(), job, uid, ctx).await,
        Effect::WriteSnapshot { name, uid, status } => write_snapshot(&named(name, uid, job), status, ctx).await?,
        Effect::DeleteSnapshot { name, uid } => ctx.cluster.delete(Kind::Snapshot, &named(name, uid, job)).await?,
        Effect::RemoveContent => ctx.repository.remove_job(uid).await?,
    }
    Ok(())
}

/// For others to read: nothing of the job depends on it.
async fn show_stored(
    pod: Option<&(String, String)>,
    value: Option<&str>,
    job: &BestEffortJob,
    uid: &JobUid,
    ctx: &Context,
) {
    let (on, object) = match pod {
        None => (Shown::Job, job.metadata.clone()),
        Some((name, uid)) => {
            let (name, uid) = (Some(name.clone()), Some(uid.clone()));
            (Shown::Agent, ObjectMeta { name, uid, ..ObjectMeta::default() })
        }
    };
    if let Err(error) = ctx.cluster.show_stored(on, &object, value).await {
        tracing::warn!(job = %uid, %error, "failed to show what is stored");
    }
}

fn named(name: &str, uid: &str, job: &BestEffortJob) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: job.metadata.namespace.clone(),
        uid: Some(uid.into()),
        ..ObjectMeta::default()
    }
}

async fn write_snapshot(snapshot: &ObjectMeta, status: &SnapshotStatus, ctx: &Context) -> Result<(), Error> {
    match ctx.cluster.apply_snapshot_status(snapshot, status).await {
        // deleted by somebody meanwhile: there is nothing to write to
        Ok(()) | Err(ClusterError::NotFound(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether nothing of a job is ours to see to any more, though others hold the object back.
pub fn is_let_go(job: &BestEffortJob) -> bool {
    let held = job.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER);
    job.metadata.deletion_timestamp.is_some() && !held
}

/// Forgets a job that is gone.
pub fn forget(uid: &JobUid, ctx: &Context) {
    ctx.hearing.listen(uid, &[]);
    ctx.sites.forget(uid);
    ctx.memory.forget(uid);
    ctx.networks.forget(uid);
    ctx.history.forget(uid);
}

/// The account that the facts were read with.
fn credentials(job: &BestEffortJob, uid: &JobUid, ctx: &Context) -> Result<Credentials, Error> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let configured = ctx.config.sites.get(&job.spec.slots.site).and_then(|site| account::configured(site, namespace));
    let found = match &job.spec.slots.credentials {
        Some(secret) => ctx.memory.get(uid).account_in(&secret.name).map(|account| account.credentials.clone()),
        None => configured,
    };
    found.ok_or_else(|| Error::Vanished("the account at the site is not known".into()))
}

fn site(job: &BestEffortJob, uid: &JobUid, ctx: &Context) -> Result<Arc<dyn Site>, Error> {
    let credentials = credentials(job, uid, ctx)?;
    let site = ctx.sites.account(&job.spec.slots.site, &credentials);
    site.ok_or_else(|| Error::Vanished(format!("site {} is not configured", job.spec.slots.site)))
}

/// Asks for slots. The answer, good or bad, is a fact of the next pass.
async fn submit(
    submission: u32,
    request: &SlotRequest,
    job: &BestEffortJob,
    uid: &JobUid,
    ctx: &Context,
) -> Result<(), Error> {
    let outcome = site(job, uid, ctx)?.submit(request).await;
    if let Err(error) = &outcome {
        tracing::warn!(job = %uid, submission, %error, "failed to ask for slots");
    }
    if matches!(outcome, Err(SiteError::Credentials(_))) {
        ctx.memory.update(uid, |memory| memory.account = None);
    }
    ctx.memory.update(uid, |memory| memory.reply = Some(Reply { submission, outcome }));
    (ctx.wake)(uid);
    Ok(())
}

/// Has a generation copied. How that went is a fact of the next pass; it may go on when nobody waits for it.
async fn adopt(order: &Adoption, uid: &JobUid, ctx: &Context) {
    let said = match ctx.repository.adopt(uid, order).await {
        Ok(_) => None,
        Err(error) => {
            tracing::warn!(job = %uid, %error, "a generation was not copied");
            why_not_adopted(&error)
        }
    };
    ctx.memory.update(uid, |memory| memory.adoption = said);
    (ctx.wake)(uid);
}

async fn create_agent(
    placement: &AgentPlacement,
    job: &BestEffortJob,
    uid: &JobUid,
    ctx: &Context,
) -> Result<(), Error> {
    let vanished = |what: &str| Error::Vanished(what.into());
    let site = ctx.config.sites.get(&job.spec.slots.site).ok_or_else(|| vanished("the site is not configured"))?;
    let owner = match site.kadeploy.as_ref().filter(|_| job.spec.deployed().is_some()) {
        Some(kadeploy) => kadeploy.lease_owner,
        None => account::owner(site, &credentials(job, uid, ctx)?).map_err(Error::Vanished)?,
    };
    let inputs = inputs::resolve(job, ctx).await?;
    // a restored guest has its inputs already; one that boots needs them
    let inputs = match inputs {
        Ok(inputs) => inputs,
        Err(_) if placement.restore.is_some() => BTreeMap::new(),
        Err(missing) => return Err(Error::Vanished(format!("inputs not found: {}", missing.join(", ")))),
    };
    let keys = pods::Keys::of_job(&ctx.authority.key, uid);
    let mut told = pods::config(job, placement, &ctx.config, site, owner, inputs, keys)
        .ok_or_else(|| vanished("the job was never accepted"))?;
    told.chain = pods::chain(job, placement, &switches(job, ctx));
    let identity = Identity::Agent { job: uid.clone(), member: placement.member, incarnation: placement.incarnation };
    let lifetime = Duration::from(job.spec.slots.walltime) + CERTIFICATE_SLACK;
    let issued = ctx.authority.issue(&identity, ctx.clock.now(), lifetime)?;
    if job.spec.launcher == LauncherKind::TakTuk {
        launched::start(placement, pods::files(&told, &issued), &told.lease, uid, ctx);
        return Ok(());
    }
    let secret = pods::secret(job, placement, &ctx.config, &told, &issued);
    let pod = pods::pod(job, placement, &ctx.config);
    let pod = ctx.cluster.create_agent_pod(&pod).await?;
    Ok(ctx.cluster.create_agent_secret(&secret, &pod).await?)
}

/// The switches that the members' nodes are on, as far as their labels say so.
fn switches(job: &BestEffortJob, ctx: &Context) -> BTreeMap<MemberIndex, String> {
    let members = job.status.iter().flat_map(|status| &status.members);
    let of =
        |node: &String| ctx.view.node(&NodeName(node.clone()))?.metadata.labels.as_ref()?.get(LABEL_SWITCH).cloned();
    members.filter_map(|member| Some((member.index, of(member.node.as_ref()?)?))).collect()
}

/// Where an agent is and who it must be.
pub(super) fn address(agent: &AgentRef, uid: &JobUid) -> AgentAddress {
    AgentAddress { endpoint: agent.endpoint, job: uid.clone(), member: agent.member, incarnation: agent.incarnation }
}

/// What orders to this agent carry (safety A9).
pub(super) fn authority(agent: &AgentRef, ctx: &Context) -> Authority {
    Authority { epoch: ctx.leadership.epoch, incarnation: agent.incarnation }
}

/// Gives an order to agents, all at once. One that does not obey is told again by a later pass.
async fn order<F>(
    agents: &[AgentRef],
    uid: &JobUid,
    ctx: &Context,
    what: &str,
    give: impl Fn(Arc<dyn NodeAgent>, Authority) -> F,
) where
    F: Future<Output = Result<(), AgentError>>,
{
    let orders = agents.iter().map(|agent| {
        let order = give(ctx.agents.agent(&address(agent, uid)), authority(agent, ctx));
        async move {
            let result = tokio::time::timeout(ORDER_LIMIT, order).await;
            match result {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(job = %uid, member = agent.member, what, %error, "not obeyed"),
                Err(_) => tracing::warn!(job = %uid, member = agent.member, what, "no answer"),
            }
        }
    });
    join_all(orders).await;
}

#[cfg(test)]
#[path = "act_tests.rs"]
mod tests;
