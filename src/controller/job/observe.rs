//! Gathers the facts a decision is made from. Reads only, and of the API server only what no watch
//! brings: a pass with nothing to do asks nobody anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;

use super::{
    Context, Error, SlotsSeen, account, decide,
    memory::Account,
    plan::{
        AgentSeen, ImageSeen, NetworkSeen, PodSeen, Seen, Setup, SiteSeen, SnapshotSeen, SourceSeen, SourceSnapshot,
        beyond, uid,
    },
};
use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, ConditionType, JobPhase, LABEL_INCARNATION, LABEL_JOB_UID, Reason, VmImage,
        conditions,
        job::Master,
        job_status::{MemberPhase, ResolvedImage, SlotState, SlotStatus, UnfitNode},
        snapshot::SnapshotPhase,
    },
    driver::{
        Fact,
        agent::{AgentAddress, HostKey},
        cluster::ClusterError,
        repository::{JobContent, RepositoryError},
        site::{Credentials, SlotPhase},
    },
    names::{JobUid, NodeName, SlotId},
    store::adoption::ADOPTED,
};

/// How long an account that was read from a Secret is used before it is read again, while the job
/// waits for a person.
const ACCOUNT_AGE: SignedDuration = SignedDuration::from_secs(10);

/// How old what is known of a running job's generations may be.
const CONTENT_AGE: SignedDuration = SignedDuration::from_mins(5);

/// Gathers the facts.
pub async fn observe(job: &BestEffortJob, ctx: &Context) -> Result<Seen, Error> {
    let uid = uid(job);
    let status = job.status.clone().unwrap_or_default();
    let account = credentials(job, &status, ctx).await?;
    let SlotsSeen { slots, looked_up, reads_good_since, error } = slots(job, &status, ctx, &account);
    let agents = agents(&uid, &status, ctx);
    let snapshots = snapshots(job, ctx);
    let content = content(job, &status, (&slots, &snapshots), ctx).await;
    let missing_image = missing_image(job, &status, &slots, ctx).await;
    let unfit = unfit(job, &status, &slots, ctx);
    let room = super::quota::observe(job, &status, ctx).await;
    let remembered = ctx.memory.get(&uid);
    Ok(Seen {
        leader: ctx.leadership,
        setup: Setup {
            port_first: ctx.config.agents.port_first,
            port_count: ctx.config.agents.port_count,
            sites: ctx.config.sites.keys().cloned().collect(),
            accelerator: ctx.config.agents.accelerator,
            offer: ctx.offer.clone(),
        },
        site: site(job, ctx, &account),
        account: match account {
            Fact::Known(Ok(_)) => Fact::Known(Ok(())),
            Fact::Known(Err(message)) => Fact::Known(Err(message)),
            Fact::Absent => Fact::Absent,
            Fact::Unknown { since } => Fact::Unknown { since },
        },
        image: image(job, ctx),
        source: source(job, &status, ctx).await,
        network: network(job, &status, ctx),
        missing_inputs: missing_inputs(job, &status, ctx).await?,
        nodes: nodes(&status, &slots, ctx),
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
        pods: ctx.view.agents(&uid).iter().filter_map(|pod| pod_seen(pod)).collect(),
        agents,
        barrier: remembered.barrier,
        content,
        missing_image,
        repository_silent: remembered.repository_silent,
        snapshots,
        unread_snapshots: !ctx.view.has_all_snapshots(namespace(job)),
        room,
        unfit,
        others: ctx.history.others(job),
        sent: remembered.sent,
    })
}

fn namespace(job: &BestEffortJob) -> &str {
    job.metadata.namespace.as_deref().unwrap_or_default()
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
            let read = match ctx.view.secret(namespace(job), &reference.name).await {
                Ok(Some(secret)) => account::from_secret(&reference.name, &secret),
                Ok(None) => Err(format!("there is no Secret {} in this namespace", reference.name)),
                Err(ClusterError::Forbidden(_)) => Err(format!("Secret {}: {}", reference.name, account::MAY_NOT_READ)),
                Err(error) => return Err(error.into()),
            };
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

/// What the job is to start from instead of its image; looked for only before it asks for slots.
async fn source(job: &BestEffortJob, status: &BestEffortJobStatus, ctx: &Context) -> Option<SourceSeen> {
    let asks = match status.phase {
        JobPhase::Pending | JobPhase::ImagePreparing => true,
        JobPhase::Queued => status.slots.is_empty() && status.pending_submission.is_none(),
        _ => false,
    };
    let from = job.spec.restore_from.as_ref().filter(|_| asks && status.started.is_none())?;
    let own = uid(job);
    let snapshot = ctx.view.snapshot(namespace(job), &from.snapshot).map(|snapshot| {
        let status = snapshot.status.clone().unwrap_or_default();
        SourceSnapshot {
            job: snapshot.spec.job.clone(),
            job_uid: status.job_uid,
            generation: status.generation.unwrap_or_default(),
            phase: status.phase,
            deleting: snapshot.metadata.deletion_timestamp.is_some(),
        }
    });
    let wanted = match &status.adopted {
        Some(adopted) if adopted.complete.is_some() => Some((own.clone(), ADOPTED)),
        Some(adopted) => Some((JobUid(adopted.job_uid.clone()), adopted.generation)),
        None => snapshot
            .as_ref()
            .filter(|snapshot| snapshot.phase == SnapshotPhase::Stored && !snapshot.deleting)
            .map(|snapshot| (JobUid(snapshot.job_uid.clone()), snapshot.generation)),
    };
    let since = ctx.clock.now();
    let manifest = match wanted {
        None => Fact::Unknown { since },
        Some((of, generation)) => match ctx.repository.manifest(&of, generation).await {
            Ok(manifest) => Fact::Known(Box::new(manifest)),
            Err(RepositoryError::Unreachable(why)) => {
                tracing::warn!(job = %own, why, "the repository does not answer");
                Fact::Unknown { since }
            }
            Err(error) => {
                tracing::warn!(job = %own, %error, "the generation to start from cannot be had");
                Fact::Absent
            }
        },
    };
    Some(SourceSeen { name: from.snapshot.clone(), snapshot, manifest, refused: ctx.memory.get(&own).adoption })
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
            params: image.spec.os.as_ref().and_then(|os| os.params.clone()),
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

fn agents(uid: &JobUid, status: &BestEffortJobStatus, ctx: &Context) -> BTreeMap<String, AgentSeen> {
    let over = matches!(status.phase, JobPhase::Succeeded | JobPhase::Failed | JobPhase::Suspended);
    let wanted: Vec<(String, AgentAddress)> = status
        .everyone()
        .filter(|member| !over || member.phase != MemberPhase::Dead)
        .filter_map(|member| {
            let agent = member.agent.as_ref()?;
            let address = AgentAddress {
                endpoint: agent.endpoint.parse().ok()?,
                job: uid.clone(),
                member: member.index,
                incarnation: agent.incarnation,
            };
            Some((agent.pod.clone(), address))
        })
        .collect();
    let addresses: Vec<AgentAddress> = wanted.iter().map(|(_, address)| address.clone()).collect();
    ctx.hearing.listen(uid, &addresses);
    wanted
        .into_iter()
        .filter_map(|(pod, address)| {
            let heard = ctx.hearing.heard(&address)?;
            let (at, state) = heard.last.unzip();
            Some((pod, AgentSeen { state, heard: at, moved: heard.moved, listening: heard.listening }))
        })
        .collect()
}

/// What the repository has; asked only where a decision may depend on it.
async fn content(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    (slots, snapshots): (&Fact<Vec<crate::driver::site::SlotFacts>>, &[SnapshotSeen]),
    ctx: &Context,
) -> Fact<JobContent> {
    let (uid, since) = (&uid(job), ctx.clock.now());
    let runs = |id: &str| {
        slots.known().into_iter().flatten().any(|facts| facts.id.0 == id && facts.phase == SlotPhase::Running)
    };
    let waits = status.slots.iter().any(|s| s.release.is_none() && s.state != SlotState::Ended && runs(&s.id));
    let needed = match status.phase {
        JobPhase::Queued => waits,
        JobPhase::Deploying | JobPhase::Starting | JobPhase::Restoring | JobPhase::Terminating => true,
        JobPhase::Evacuating => status.snapshots.capture.as_ref().is_some_and(|capture| capture.captured),
        JobPhase::Pending | JobPhase::ImagePreparing => {
            status.adopted.as_ref().is_some_and(|adopted| adopted.complete.is_none())
        }
        // what has rotted is told of, and no sound generation goes for it
        JobPhase::Running | JobPhase::Snapshotting => {
            let asked = ctx.memory.get(uid).content_asked;
            !beyond(job, snapshots, |_| true).is_empty()
                || asked.is_none_or(|asked| since.duration_since(asked) > CONTENT_AGE)
        }
        JobPhase::Completing | JobPhase::Succeeded | JobPhase::Failed | JobPhase::Suspended => false,
    };
    // what would be restored must be known before slots are asked for
    let restores = status.started.is_some() || status.adopted.is_some();
    let needed = needed || (restores && may_ask(job, status, slots));
    if !needed {
        return Fact::Unknown { since };
    }
    ctx.memory.update(uid, |memory| memory.content_asked = Some(since));
    match ctx.repository.content(uid).await {
        Ok(content) => Fact::Known(content),
        Err(error) => {
            tracing::warn!(job = %uid, %error, "the repository does not answer");
            ctx.memory.update(uid, |memory| memory.repository_silent = Some(since));
            Fact::Unknown { since }
        }
    }
}

/// What the repository no longer has of a started job's image. Asked once no slot is left: another is
/// of no use without it. The job's own right to it is the digest, whatever became of the VmImage.
async fn missing_image(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    slots: &Fact<Vec<crate::driver::site::SlotFacts>>,
    ctx: &Context,
) -> Fact<String> {
    let since = ctx.clock.now();
    let asked = status.started.is_some() && may_ask(job, status, slots);
    let Some(image) = status.image.as_ref().filter(|_| asked) else {
        return Fact::Unknown { since };
    };
    for digest in [Some(&image.disk), image.kernel.as_ref(), image.initrd.as_ref()].into_iter().flatten() {
        match ctx.repository.image(digest).await {
            Ok(Some(_)) => {}
            Ok(None) => return Fact::Known(digest.clone()),
            Err(error) => {
                let uid = uid(job);
                tracing::warn!(job = %uid, %error, "the repository does not answer");
                ctx.memory.update(&uid, |memory| memory.repository_silent = Some(since));
                return Fact::Unknown { since };
            }
        }
    }
    Fact::Absent
}

/// Whether slots may be asked for: none are used or waited for.
fn may_ask(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    slots: &Fact<Vec<crate::driver::site::SlotFacts>>,
) -> bool {
    let over = matches!(status.phase, JobPhase::Succeeded | JobPhase::Failed | JobPhase::Terminating)
        || (status.phase == JobPhase::Suspended && job.spec.suspend);
    let ended = |id: &str| {
        let facts = slots.known().into_iter().flatten().find(|facts| facts.id.0 == id);
        facts.is_some_and(|facts| matches!(facts.phase, SlotPhase::Ended(_)))
    };
    let used = |slot: &SlotStatus| slot.release.is_none() && slot.state != SlotState::Ended;
    !over && !status.slots.iter().any(|slot| used(slot) && !ended(&slot.id))
}

/// What other jobs found out about nodes.
fn unfit(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    slots: &Fact<Vec<crate::driver::site::SlotFacts>>,
    ctx: &Context,
) -> Vec<UnfitNode> {
    if !may_ask(job, status, slots) {
        return Vec::new();
    }
    let others = ctx.view.jobs().into_iter().filter(|other| other.metadata.uid != job.metadata.uid);
    others.flat_map(|job| job.status.iter().flat_map(|status| status.unfit.clone()).collect::<Vec<_>>()).collect()
}

fn nodes(
    status: &BestEffortJobStatus,
    slots: &Fact<Vec<crate::driver::site::SlotFacts>>,
    ctx: &Context,
) -> BTreeMap<NodeName, IpAddr> {
    let in_status = status.slots.iter().flat_map(|slot| slot.nodes.iter().cloned().map(NodeName));
    let seen = slots.known().into_iter().flatten().flat_map(|facts| facts.nodes.iter().cloned());
    let names: BTreeSet<NodeName> = in_status.chain(seen).collect();
    names
        .into_iter()
        .filter_map(|name| {
            let address = node_address(&*ctx.view.node(&name)?)?;
            Some((name, address))
        })
        .collect()
}

fn node_address(node: &Node) -> Option<IpAddr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().find(|address| address.type_ == "InternalIP")?.address.parse().ok()
}

fn snapshots(job: &BestEffortJob, ctx: &Context) -> Vec<SnapshotSeen> {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let uid = uid(job);
    let mut all: Vec<SnapshotSeen> = ctx
        .view
        .snapshots(namespace(job), name)
        .iter()
        // those of an earlier job of the same name are not this one's
        .filter(|snapshot| snapshot.labels().get(LABEL_JOB_UID).is_none_or(|label| *label == uid.0))
        .map(|snapshot| SnapshotSeen {
            name: snapshot.metadata.name.clone().unwrap_or_default(),
            uid: snapshot.metadata.uid.clone().unwrap_or_default(),
            reason: snapshot.spec.reason,
            retain: snapshot.spec.retain,
            deleting: snapshot.metadata.deletion_timestamp.is_some(),
            status: snapshot.status.clone().unwrap_or_default(),
        })
        .filter(|snapshot| snapshot.status.job_uid.is_empty() || snapshot.status.job_uid == uid.0)
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// What a pod says; its absence says nothing.
fn pod_seen(pod: &Pod) -> Option<(String, PodSeen)> {
    let name = pod.metadata.name.clone()?;
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    let states: Vec<_> = containers.iter().filter_map(|container| container.state.as_ref()).collect();
    let ended = states.iter().find_map(|state| state.terminated.as_ref()).map(|end| {
        let reason = end.reason.as_deref().unwrap_or("ended");
        let message = end.message.as_deref().map(|text| format!(": {}", text.trim())).unwrap_or_default();
        format!("{reason}, exit code {}{message}", end.exit_code)
    });
    // a kubelet that refuses a pod never starts a container of it
    let refused = status.reason.filter(|reason| reason.starts_with("OutOf") || reason == "UnexpectedAdmissionError");
    let refused = refused.filter(|_| status.phase.as_deref() == Some("Failed") && containers.is_empty());
    let waiting = states.iter().filter_map(|state| state.waiting.as_ref()).find_map(|waiting| {
        let reason = waiting.reason.clone()?;
        let usual = matches!(reason.as_str(), "ContainerCreating" | "PodInitializing");
        (!usual).then_some(reason)
    });
    let incarnation = pod.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_INCARNATION)?.parse().ok());
    let seen = PodSeen {
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        incarnation: incarnation.unwrap_or_default(),
        ended: ended.or(refused),
        waiting,
        deleting: pod.metadata.deletion_timestamp.is_some(),
    };
    Some((name, seen))
}
