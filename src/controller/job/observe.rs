//! Gathers the facts a decision is made from. Reads only, and of the API server only what no watch
//! brings: a pass with nothing to do asks nobody anything.

mod cluster;
mod hypervisor;
mod key;
mod launched;
mod partly;
mod repository;
mod room;

use std::net::IpAddr;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Node;

use self::{
    cluster::{agents, node_address, nodes, pod_seen, snapshots, unfit},
    repository::{content, missing_image, source},
};
pub(super) use self::{key::token, repository::why_not_adopted};
use super::{
    Context, Error, SlotsSeen, account, decide,
    memory::Account,
    plan::{ImageSeen, NetworkSeen, Seen, Setup, SiteSeen, uid},
};
use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, ConditionType, JobPhase, Reason, VmImage, conditions,
        job::{Allocation, LauncherKind, Master},
        job_status::{ResolvedImage, SlotState, SlotStatus},
    },
    driver::{
        Fact,
        agent::HostKey,
        site::{Credentials, SlotFacts, SlotPhase},
    },
    names::{NodeName, SlotId},
};

/// How long an account that was read from a Secret is used before it is read again, while the job
/// waits for a person.
const ACCOUNT_AGE: SignedDuration = SignedDuration::from_secs(10);

/// Gathers the facts.
pub async fn observe(job: &BestEffortJob, ctx: &Context) -> Result<Seen, Error> {
    let uid = uid(job);
    let status = job.status.clone().unwrap_or_default();
    let account = credentials(job, &status, ctx).await?;
    let SlotsSeen { slots, looked_up, reads_good_since, error } = slots(job, &status, ctx, &account);
    let agents = agents(&uid, &status, ctx);
    let snapshots = snapshots(job, ctx);
    let unfit = unfit(job, &status, &slots, ctx);
    let content = content(job, &status, (&slots, &snapshots, &unfit), ctx).await;
    let missing_image = missing_image(job, &status, &slots, ctx).await;
    let room = room::observe(job, &status, ctx).await;
    let environment = hypervisor::named_environment(job, &status, &slots, &account, ctx);
    let deployments = hypervisor::deployments(job, &status, &account, ctx);
    let launch_key = key::key(job, &status, &account, ctx).await?;
    let launchers = launched::launchers(job, &status, &launch_key, ctx);
    let mut nodes = nodes(job, &status, &slots, ctx);
    if job.spec.launcher == LauncherKind::TakTuk {
        nodes = launchers.nodes;
    }
    let pods = ctx.view.agents(&uid);
    let pods = pods.iter().filter_map(|pod| pod_seen(pod)).chain(launchers.pods).collect();
    let remembered = ctx.memory.get(&uid);
    Ok(Seen {
        leader: ctx.leadership,
        setup: Setup {
            port_first: ctx.config.agents.port_first,
            port_count: ctx.config.agents.port_count,
            sites: ctx.config.sites.keys().cloned().collect(),
            accelerator: ctx.config.agents.accelerator,
            shared_images: ctx.config.agents.shared_images.is_some(),
            agents: agents_in_a_word(ctx),
            offer: ctx.offer.clone(),
        },
        site: site(job, ctx, &account),
        account: account.map(|found| found.map(drop)),
        image: image(job, ctx),
        source: source(job, &status, ctx).await,
        network: network(job, &status, ctx),
        missing_inputs: missing_inputs(job, &status, ctx).await?,
        nodes,
        silent_launchers: launchers.silent,
        deployments,
        tokens: key::tokens(job, &status, &launch_key, ctx),
        launch_key: launch_key.map(|found| found.map(drop)),
        environment,
        slots,
        looked_up,
        reads_good_since,
        site_error: error,
        releases: remembered
            .releases
            .into_iter()
            .filter(|(id, _)| status.slots.iter().any(|slot| slot.id == *id))
            .map(|(id, said)| (id, said.map(|error| error.to_string())))
            .collect(),
        reply: remembered.reply,
        pods,
        agents,
        barrier: remembered.barrier,
        content,
        missing_image,
        repository_silent: remembered.repository_silent,
        snapshots,
        unread_snapshots: !ctx.view.has_all_snapshots(namespace(job)),
        room,
        unfit,
        partly_started: partly::started(job, &status, ctx),
        others: ctx.history.others(job),
        sent: remembered.sent,
    })
}

fn namespace(job: &BestEffortJob) -> &str {
    job.metadata.namespace.as_deref().unwrap_or_default()
}

/// The agents' image; an operator of another version brings other agents with the same one, as does a QEMU that is
/// known to be another.
fn agents_in_a_word(ctx: &Context) -> String {
    format!("{} vmdeploy {} QEMU {}", ctx.config.agents.image, env!("CARGO_PKG_VERSION"), ctx.offer.qemu)
}

/// The account; read from its Secret once, and again only while something is wrong.
async fn credentials(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    ctx: &Context,
) -> Result<Fact<Result<Credentials, String>>, Error> {
    let Some(site) = ctx.config.sites.get(&job.spec.slots.site) else { return Ok(Fact::Absent) };
    let found = match &job.spec.slots.credentials {
        None => account::configured(site, namespace(job)).map(Ok),
        Some(reference) => {
            let (uid, now) = (uid(job), ctx.clock.now());
            let remembered = ctx.memory.get(&uid);
            let waits = status.phase == JobPhase::Pending || status.retry.is_some() || remembered.account_refused();
            let cached = remembered.account_in(&reference.name).cloned();
            if let Some(cached) = &cached
                && (!waits || now.duration_since(cached.read) < ACCOUNT_AGE)
            {
                return Ok(Fact::Known(Ok(cached.credentials.clone())));
            }
            let read = account::read(&*ctx.view, namespace(job), &reference.name).await?;
            let read = read.and_then(|secret| account::from_secret(&reference.name, &secret));
            // slots are given back with the account they were asked for with, also if its Secret is gone
            let held = !status.slots.is_empty() || status.pending_submission.is_some();
            let read = match (read, cached) {
                (Err(_), Some(cached)) if held => Ok(cached.credentials),
                (read, _) => read,
            };
            if let Ok(credentials) = &read {
                let (secret, credentials) = (reference.name.clone(), credentials.clone());
                let account = Account { secret, credentials, read: now };
                ctx.memory.update(&uid, |memory| memory.account = Some(account));
            }
            Some(read)
        }
    };
    let found = found.map(|found| found.and_then(|found| account::owner(site, &found).map(|_| found)));
    Ok(found.map_or(Fact::Absent, Fact::Known))
}

fn slots(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    ctx: &Context,
    account: &Fact<Result<Credentials, String>>,
) -> SlotsSeen {
    let unknown = SlotsSeen {
        slots: Fact::Unknown { since: ctx.leadership.since },
        looked_up: None,
        reads_good_since: None,
        error: None,
    };
    let Some(Ok(credentials)) = account.known() else { return unknown };
    // a job that ended and holds nothing needs nobody to poll for it
    let idle = matches!(status.phase, JobPhase::Succeeded | JobPhase::Failed | JobPhase::Suspended | JobPhase::Pending)
        && status.slots.is_empty()
        && status.pending_submission.is_none();
    if idle && job.metadata.deletion_timestamp.is_none() && status.submission > 0 {
        ctx.sites.forget(&uid(job));
        return unknown;
    }
    let ids: Vec<SlotId> = status.slots.iter().map(|slot| SlotId(slot.id.clone())).collect();
    let doubt = status.pending_submission.as_ref().map(|pending| pending.since.0);
    ctx.sites.slots(&job.spec.slots.site, credentials, &uid(job), &ids, doubt).unwrap_or(unknown)
}

fn site(job: &BestEffortJob, ctx: &Context, account: &Fact<Result<Credentials, String>>) -> Option<SiteSeen> {
    let config = ctx.config.sites.get(&job.spec.slots.site)?;
    let real = match account.known() {
        Some(Ok(credentials)) => ctx.sites.account(&job.spec.slots.site, credentials),
        Some(Err(_)) | None => None,
    };
    Some(SiteSeen {
        capabilities: real
            .map_or(crate::driver::site::Capabilities { notice: true, per_member: false }, |site| site.capabilities()),
        isolation: config.isolation.into(),
        agent_wait: config.agent_wait.into(),
        launches: config.launch.is_some(),
        deployment_wait: config.kadeploy.as_ref().map(|kadeploy| kadeploy.wait.into()),
        max_memory: config.max_memory.map(|bytes| bytes.0),
        properties: config.properties.clone(),
    })
}

/// The image: of this namespace, or a standard one of the operator's.
fn image(job: &BestEffortJob, ctx: &Context) -> Fact<ImageSeen> {
    let operator = ctx.config.namespace.as_str();
    let standard = |name: &str| ctx.view.image(operator, name).filter(|image| image.spec.standard);
    let found = match (&job.spec.image, &ctx.config.default_image) {
        (Some(image), _) => ctx.view.image(namespace(job), &image.name).or_else(|| standard(&image.name)),
        (None, Some(name)) => standard(name),
        (None, None) => None,
    };
    found.map_or(Fact::Absent, |image| Fact::Known(image_seen(&image)))
}

/// What there is for the job's network; offers are made only to a job that may take them.
fn network(job: &BestEffortJob, status: &BestEffortJobStatus, ctx: &Context) -> NetworkSeen {
    let (config, now) = (ctx.config.job_network.as_ref(), ctx.clock.now());
    let before = matches!(status.phase, JobPhase::Pending | JobPhase::ImagePreparing | JobPhase::Queued);
    let wanted = before && status.started.is_none();
    let has = status.network.as_ref().is_some_and(|network| decide::fits(network, job.spec.members));
    let pool = config.map(|config| config.pool);
    let port = super::pods::network_port(&ctx.config);
    let mut seen = NetworkSeen { pool, subnet: None, mtu: 0, port, vni: None, overlap: None, host_key: None };
    if decide::wanted(&job.spec) != Master::None {
        seen.host_key = Some(HostKey::of_job(&ctx.authority.key, &uid(job)).public());
    }
    let over = matches!(status.phase, JobPhase::Succeeded | JobPhase::Failed | JobPhase::Terminating);
    if status.network.is_some() && !over {
        seen.vni = Some(ctx.networks.vni(&uid(job), status.incarnation, || ctx.view.jobs(), now));
    }
    if let Some(config) = config.filter(|_| wanted) {
        seen.mtu = config.mtu;
        // guests that go on bring theirs along
        if !has && job.spec.restore_from.is_none() {
            seen.subnet = ctx.networks.subnet(&uid(job), job.spec.members, config.pool, &ctx.view.jobs(), now);
        }
        let inside = |node: &Node| matches!(node_address(node), Some(IpAddr::V4(v4)) if config.pool.contains(&v4));
        let nodes = ctx.view.nodes();
        let node = nodes.iter().find(|node| inside(node));
        seen.overlap = node.and_then(|node| node.metadata.name.clone()).map(NodeName);
    }
    seen
}

fn image_seen(image: &VmImage) -> ImageSeen {
    let status = image.status.clone().unwrap_or_default();
    let name = image.metadata.name.clone().unwrap_or_default();
    let ready = conditions::get(&status.conditions, ConditionType::Ready);
    if let (Some(disk), true) = (&status.digest, ready.is_some_and(|ready| ready.status == "True")) {
        return ImageSeen::Ready(ResolvedImage {
            namespace: image.metadata.namespace.clone().unwrap_or_default(),
            name,
            disk: disk.clone(),
            virtual_size: status.virtual_size.or(status.size).unwrap_or_default().0,
            kernel: status.kernel.clone(),
            initrd: status.initrd.clone(),
            params: image.spec.params(),
        });
    }
    let message = ready.map(|ready| ready.message.clone()).unwrap_or_default();
    let stalled = conditions::get(&status.conditions, ConditionType::Stalled);
    match stalled {
        Some(stalled) if stalled.status == "True" => {
            let reason = serde_json::from_value(serde_json::Value::String(stalled.reason.clone()));
            ImageSeen::Broken(reason.unwrap_or(Reason::ImageFetchFailed), format!("VmImage {name}: {message}"))
        }
        Some(_) | None => ImageSeen::Importing(message),
    }
}

/// Inputs that name what does not exist; looked for only before the first start.
async fn missing_inputs(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    ctx: &Context,
) -> Result<Fact<Vec<String>>, Error> {
    let before = matches!(status.phase, JobPhase::Pending | JobPhase::ImagePreparing | JobPhase::Queued);
    if !before || status.started.is_some() || !status.slots.is_empty() {
        return Ok(Fact::Absent);
    }
    match super::inputs::resolve(job, ctx).await? {
        Ok(_) => Ok(Fact::Absent),
        Err(missing) => Ok(Fact::Known(missing)),
    }
}

/// A request that waits in the scheduler's queue.
fn waiting(status: &BestEffortJobStatus) -> Option<&SlotStatus> {
    let waits = |slot: &&SlotStatus| slot.release.is_none() && slot.state == SlotState::Waiting;
    status.slots.iter().find(waits).filter(|_| status.phase == JobPhase::Queued)
}

/// Whether slots may be asked for: not all are used or waited for.
fn may_ask(job: &BestEffortJob, status: &BestEffortJobStatus, slots: &Fact<Vec<SlotFacts>>) -> bool {
    let over = matches!(status.phase, JobPhase::Succeeded | JobPhase::Failed | JobPhase::Terminating)
        || (status.phase == JobPhase::Suspended && job.spec.suspend);
    let ended = |id: &str| {
        let facts = slots.known().into_iter().flatten().find(|facts| facts.id.0 == id);
        facts.is_some_and(|facts| matches!(facts.phase, SlotPhase::Ended(_)))
    };
    let used = status.slots.iter().filter(|slot| slot.is_in_use() && !ended(&slot.id)).count();
    let reservations = match job.spec.slots.allocation {
        Allocation::Gang => 1,
        Allocation::PerMember => decide::nodes(&job.spec) as usize,
    };
    !over && used < reservations
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::{api::job::ImageReference, controller::job::testing::Stage};

    const OURS: &str = "vmdeploy-system";

    /// An image that has been imported.
    fn imported(namespace: &str, name: &str, standard: bool) -> VmImage {
        let ready = json!({"type": "Ready", "status": "True", "reason": "ImageImported", "message": "",
            "lastTransitionTime": "2026-11-25T12:00:00Z"});
        serde_json::from_value(json!({
            "apiVersion": "vmdeploy.io/v1alpha1", "kind": "VmImage", "metadata": {"name": name, "namespace": namespace},
            "spec": {"standard": standard, "source": {"claim": {"name": "disks", "path": "/disk"}}},
            "status": {"digest": "sha256:1", "conditions": [ready]},
        }))
        .unwrap()
    }

    #[rstest]
    #[case::the_default(None, Some("site"), &[("team", "site", true), (OURS, "site", true)], Some((OURS, "site")))]
    #[case::none_is_configured(None, None, &[(OURS, "site", true)], None)]
    #[case::the_default_must_be_standard(None, Some("site"), &[(OURS, "site", false)], None)]
    #[case::and_the_operators(None, Some("site"), &[("team", "site", true)], None)]
    #[case::its_own(Some("mine"), Some("x"), &[(OURS, "mine", true), ("team", "mine", false)], Some(("team", "mine")))]
    #[case::else_a_standard_one(Some("mine"), Some("site"), &[(OURS, "mine", true)], Some((OURS, "mine")))]
    #[case::never_another(Some("mine"), Some("site"), &[(OURS, "mine", false), (OURS, "site", true)], None)]
    #[case::nor_anothers(Some("mine"), None, &[("others", "mine", true)], None)]
    fn a_job_has_the_image_it_names_or_the_default(
        #[case] named: Option<&str>,
        #[case] configured: Option<&str>,
        #[case] images: &[(&str, &str, bool)],
        #[case] wanted: Option<(&str, &str)>,
    ) {
        let mut stage = Stage::new();
        let mut config = (*stage.ctx.config).clone();
        config.default_image = configured.map(Into::into);
        stage.ctx.config = Arc::new(config);
        for (namespace, name, standard) in images {
            stage.cluster.put_image(imported(namespace, name, *standard));
        }
        let mut job = stage.job();
        job.spec.image = named.map(|name| ImageReference { name: name.into() });
        let found = match image(&job, &stage.ctx) {
            Fact::Known(ImageSeen::Ready(found)) => Some((found.namespace, found.name)),
            Fact::Absent => None,
            other => panic!("{other:?}"),
        };
        let found = found.as_ref().map(|(namespace, name)| (namespace.as_str(), name.as_str()));
        assert_eq!(found, wanted);
    }
}
