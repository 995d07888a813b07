//! What the cluster's watches and the agents' own words tell of the job.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;

use super::{may_ask, namespace, waiting};
use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, JobPhase, LABEL_INCARNATION, LABEL_JOB_UID, LAST_STORED,
        job_status::{MemberPhase, SystemIdentity, UnfitNode},
    },
    controller::job::{
        Context,
        plan::{AgentSeen, NodeSeen, PodSeen, SnapshotSeen, uid},
    },
    driver::{Fact, agent::AgentAddress, site::SlotFacts},
    names::{JobUid, NodeName},
};

/// Label of the nodes of the control plane.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

pub(super) fn agents(uid: &JobUid, status: &BestEffortJobStatus, ctx: &Context) -> BTreeMap<String, AgentSeen> {
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

pub(super) fn nodes(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    slots: &Fact<Vec<SlotFacts>>,
    ctx: &Context,
) -> BTreeMap<NodeName, NodeSeen> {
    let others = deployed_by_others(job, status, ctx);
    let in_status = status.slots.iter().flat_map(|slot| slot.nodes.iter().cloned().map(NodeName));
    let seen = slots.known().into_iter().flatten().flat_map(|facts| facts.nodes.iter().cloned());
    let names: BTreeSet<NodeName> = in_status.chain(seen).collect();
    names
        .into_iter()
        .filter_map(|name| {
            let node = ctx.view.node(&name)?;
            let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let ready = conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True");
            let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
            let uid = node.metadata.uid.clone().unwrap_or_default();
            let system = SystemIdentity { uid, boot: info.map(|info| info.boot_id.clone()).unwrap_or_default() };
            let control_plane = node.labels().contains_key(CONTROL_PLANE);
            let of_another_slot = others.contains(&system);
            let address = node_address(&node)?;
            Some((name, NodeSeen { address, system, of_another_slot, ready, control_plane }))
        })
        .collect()
}

/// The systems that are on nodes for slots other than the job's present ones; looked for only by a job that has nodes
/// deployed.
fn deployed_by_others(job: &BestEffortJob, status: &BestEffortJobStatus, ctx: &Context) -> Vec<SystemIdentity> {
    let own: BTreeSet<&str> =
        status.slots.iter().filter(|slot| slot.is_in_use()).map(|slot| slot.id.as_str()).collect();
    if own.is_empty() || job.spec.deployed().is_none() {
        return Vec::new();
    }
    let jobs = ctx.view.jobs();
    let slots = jobs.iter().filter_map(|job| job.status.as_ref()).flat_map(|status| &status.slots);
    let others = slots.filter(|slot| !own.contains(slot.id.as_str())).filter_map(|slot| slot.deployment.as_ref());
    others.flat_map(|deployment| &deployment.nodes).filter_map(|node| node.system.clone()).collect()
}

/// The address by which other nodes reach it.
pub(super) fn node_address(node: &Node) -> Option<IpAddr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().find(|address| address.type_ == "InternalIP")?.address.parse().ok()
}

pub(super) fn snapshots(job: &BestEffortJob, ctx: &Context) -> Vec<SnapshotSeen> {
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
            reason: snapshot.reason(),
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
pub(super) fn pod_seen(pod: &Pod) -> Option<(String, PodSeen)> {
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
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        shows: pod.annotations().get(LAST_STORED).cloned(),
        launched: false,
    };
    Some((name, seen))
}

/// What other jobs found out about nodes.
pub(super) fn unfit(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    slots: &Fact<Vec<SlotFacts>>,
    ctx: &Context,
) -> Vec<UnfitNode> {
    if !may_ask(job, status, slots) && waiting(status).is_none() {
        return Vec::new();
    }
    let others = ctx.view.jobs().into_iter().filter(|other| other.metadata.uid != job.metadata.uid);
    others.flat_map(|job| job.status.iter().flat_map(|status| status.unfit.clone()).collect::<Vec<_>>()).collect()
}
