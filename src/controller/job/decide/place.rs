//! A new incarnation: where each member goes and what it starts from.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    draft::{Draft, after, since},
    master::{beside, serves_way_in},
    seats::{Seat, called_slots},
};
use crate::{
    api::{
        JobPhase, Reason,
        job::LauncherKind,
        job_status::{AgentStatus, MemberPhase, MemberStatus, Origin, ReleaseReason},
    },
    controller::job::plan::{AgentPlacement, Effect},
    driver::{
        agent::LeaveCode,
        repository::{GenerationSummary, JobContent},
    },
    names::{Generation, NodeName, agent_pod_name},
    store::adoption::ADOPTED,
};

/// Incarnations in a row from one generation without progress, before an older one is tried.
const TRIES: u32 = 3;
/// How long a node of a slot may be missing in Kubernetes.
const NODE_PATIENCE: Duration = Duration::from_secs(60);

impl Draft<'_> {
    /// Decides the next incarnation; it is in the status before anything of it is made.
    pub(super) fn place(&mut self) {
        self.phase(JobPhase::Deploying);
        self.wake(Duration::from_secs(2));
        if self.must_adopt() {
            self.give_up(&BTreeSet::new(), ReleaseReason::Incomplete);
            self.because("it is to start from a snapshot, which it has not yet");
            return;
        }
        let strangers =
            self.seen.pods.values().any(|pod| pod.incarnation > self.status.incarnation && pod.ended.is_none());
        if strangers {
            self.because("agents of an incarnation that the status does not know are being removed");
            return;
        }
        let seats = self.seats();
        let taken = |node: &String| seats.iter().any(|seat| seat.node == *node);
        if self.seen.pods.values().any(|pod| taken(&pod.node) && pod.ended.is_none()) {
            // what they still do there, they do to files and locks that the next ones will use
            self.leave(LeaveCode::KeepSlot);
            self.because("old agents are still on the nodes");
            return;
        }
        if !self.may_retry() {
            if self.status.retry.as_ref().is_some_and(|retry| retry.stalled) {
                self.give_up(&BTreeSet::new(), ReleaseReason::Incomplete);
                self.because("stalled until the spec is changed");
            }
            return;
        }
        let Some(content) = self.seen.content.known() else {
            self.because("the repository does not answer");
            return;
        };
        if self.incompatible().is_some() {
            self.give_up(&BTreeSet::new(), ReleaseReason::Incomplete);
            self.because("no node can restore the newest generation");
            return;
        }
        let wanted = usize::try_from(self.nodes()).unwrap_or(usize::MAX);
        if seats.len() < wanted {
            if let Some(slots) = called_slots(self.in_use(), [" has", " have"]) {
                let message = format!("{slots} {} nodes, and the job needs {wanted}", seats.len());
                self.back_off(Reason::NotEnoughNodes, message);
            }
            self.give_up(&BTreeSet::new(), ReleaseReason::Incomplete);
            self.because("too few nodes");
            return;
        }
        let Some(addresses) = self.addresses(&seats) else { return };
        let Some(origin) = self.origin(content) else {
            self.give_up(&BTreeSet::new(), ReleaseReason::Incomplete);
            self.because("no generation restores");
            return;
        };
        if self.status.network.is_some() && self.seen.network.vni.is_none() {
            self.because("the network of the next incarnation has no number yet");
            return;
        }
        self.begin(&seats, &addresses, origin, content);
    }

    /// Addresses of the seats' nodes.
    fn addresses(&mut self, seats: &[Seat]) -> Option<Vec<std::net::IpAddr>> {
        let address = |seat: &Seat| self.seen.nodes.get(&NodeName(seat.node.clone())).map(|node| node.address);
        let Some(Seat { slot, node, since: begun, .. }) = seats.iter().find(|seat| address(seat).is_none()) else {
            return Some(seats.iter().filter_map(address).collect());
        };
        let launched = self.job.spec.launcher == LauncherKind::TakTuk;
        self.because(if launched { "a launcher does not answer yet" } else { "a node is not in Kubernetes" });
        if begun.map_or(Duration::ZERO, |begun| since(begun, self.now)) >= NODE_PATIENCE {
            let site = &self.job.spec.slots.site;
            let (reason, message) = match self.seen.silent_launchers.get(&NodeName(node.clone())) {
                _ if !launched => (
                    Reason::UnknownNode,
                    format!(
                        "node {node} of slot {slot} is not a node of this cluster: have sites.{site}.nodes give its \
                         Kubernetes name, or leave it out with slots.oar.property; on nodes without a kubelet set \
                         launcher to TakTuk or hypervisor.deploy to IfMissing"
                    ),
                ),
                Some(why) => (Reason::NodeLost, format!("the launcher on node {node} of slot {slot}: {why}")),
                None => (Reason::NodeLost, format!("the launcher on node {node} of slot {slot} was not asked yet")),
            };
            self.back_off(reason, message);
            self.give_up(&BTreeSet::from([slot.clone()]), ReleaseReason::BadNode);
        }
        None
    }

    /// What the next incarnation starts from: the newest complete generation that may be restored. One
    /// that was tried too often gives way to an older one; never to the image (safety C3).
    fn origin(&mut self, content: &JobContent) -> Option<Origin> {
        let old = self.status.origin.clone().unwrap_or_default();
        let mut bad = old.bad.clone();
        // held for this job, and so never taken away by us
        let stored = self.status.snapshots.last_stored.filter(|stored| may_restore(*stored, &old, &bad));
        if let Some(stored) = stored
            && !content.generations.iter().any(|summary| summary.generation == stored)
        {
            let lost = match content.damage(stored) {
                Some(why) => format!("generation {stored} is damaged in the repository ({why})"),
                None => format!("the repository no longer has generation {stored}"),
            };
            match restorable(content, &old, &bad, self.job.spec.members) {
                Some(older) => {
                    self.warn(Reason::RestoreFailed, format!("{lost}: going back to {}", older.generation));
                }
                None => {
                    self.stall(
                        Reason::RestoreFailed,
                        format!(
                            "{lost}, and there is no other: bring its data back, then set \
                             suspend to true and to false again; to begin from the image make another job"
                        ),
                    );
                    return None;
                }
            }
        }
        loop {
            let newest = restorable(content, &old, &bad, self.job.spec.members);
            let generation = newest.map(|summary| summary.generation);
            let same = old.incarnation > 0 && old.generation == generation;
            let tries = if same { old.tries + 1 } else { 1 };
            // never from the image what began otherwise
            let none_left =
                generation.is_none() && (self.status.adopted.is_some() || bad.iter().any(|bad| *bad > old.floor));
            if !none_left && tries <= TRIES {
                return Some(Origin {
                    incarnation: 0,
                    generation,
                    since: Some(self.time()),
                    tries,
                    bad_nodes: old.bad_nodes,
                    bad,
                    floor: old.floor,
                    work: self.work_of(generation),
                    ..Origin::default()
                });
            }
            match generation {
                Some(generation) if !none_left => {
                    self.warn(
                        Reason::RestoreFailed,
                        format!("generation {generation} made no progress {TRIES} times: an older one is tried"),
                    );
                    bad.push(generation);
                }
                Some(_) | None => {
                    let message = if none_left {
                        format!("none of the generations {bad:?} restores; they are kept in the repository")
                    } else {
                        format!("the guests did not start {TRIES} times: {}", self.last_failure())
                    };
                    self.status.origin = Some(Origin { bad, ..old });
                    self.stall(Reason::RestoreFailed, message);
                    return None;
                }
            }
        }
    }

    fn last_failure(&self) -> String {
        self.status.retry.as_ref().map_or_else(|| "no reason known".into(), |retry| retry.message.clone())
    }

    /// Member-seconds of work in a generation.
    fn work_of(&self, generation: Option<Generation>) -> u64 {
        let Some(generation) = generation else { return 0 };
        let recorded = self.seen.snapshots.iter().find(|s| s.status.generation == Some(generation));
        let capture = self.status.snapshots.capture.as_ref().filter(|c| c.generation == generation && c.captured);
        match (recorded, capture) {
            (Some(snapshot), _) if snapshot.status.work > 0 => snapshot.status.work,
            (_, Some(capture)) => capture.work,
            _ if self.status.snapshots.last_stored == Some(generation) => self.status.work.useful,
            _ => 0,
        }
    }

    fn begin(&mut self, seats: &[Seat], addresses: &[std::net::IpAddr], mut origin: Origin, content: &JobContent) {
        let incarnation = self.status.incarnation.max(content.fence) + 1;
        origin.incarnation = incarnation;
        (origin.silent, origin.fenced) = self.inherited_silence();
        self.void_capture("the members were lost before it was stored");
        self.status.incarnation = incarnation;
        if let (Some(network), Some(vni)) = (&mut self.status.network, self.seen.network.vni) {
            network.vni = vni;
            network.port = self.seen.network.port;
        }
        self.status.work.lost += self.status.work.useful.saturating_sub(origin.work);
        self.status.work.useful = origin.work;
        self.status.snapshots.last_stored = origin.generation;
        self.status.snapshots.last_stored_at = origin
            .generation
            .and_then(|number| content.generations.iter().find(|summary| summary.generation == number))
            .map(|summary| Time(summary.taken_at));
        self.status.snapshots.next_generation = self.status.snapshots.next_generation.max(content.highest + 1).max(1);
        let message = match origin.generation {
            Some(generation) => format!("incarnation {incarnation} starts from generation {generation}"),
            None => format!("incarnation {incarnation} starts from the image"),
        };
        self.note(if origin.generation.is_some() { Reason::Resuming } else { Reason::AgentsStarting }, message);
        let restore = origin.generation;
        // agents load by themselves: from here on guests are on their way
        self.phase(if restore.is_some() { JobPhase::Restoring } else { JobPhase::Starting });
        let now = self.time();
        self.status.started.get_or_insert(now);
        self.status.origin = Some(origin);
        self.effect(Effect::FenceRepository { incarnation });
        let port = self.port(incarnation);
        self.seat_master();
        let ports = self.seen.setup.port_count;
        let latest = self.agents_until(self.now);
        let mut placements = Vec::new();
        for ((member, seat), address) in self.status.everyone_mut().zip(seats).zip(addresses) {
            let pod = agent_pod_name(&self.uid, member.index, incarnation);
            let endpoint = SocketAddr::new(*address, port);
            let way_in = serves_way_in(self.job, member.index).then(|| beside(endpoint, ports)).flatten();
            member.node = Some(seat.node.clone());
            member.phase = MemberPhase::Placing;
            member.exit_code = None;
            member.restored = None;
            member.agent = Some(AgentStatus {
                pod: pod.clone(),
                endpoint: endpoint.to_string(),
                incarnation,
                slot: seat.slot.clone(),
                way_in: way_in.map(|at| at.to_string()),
                unproven: false,
            });
            placements.push(AgentPlacement {
                member: member.index,
                incarnation,
                slot: seat.slot.clone().into(),
                node: NodeName(seat.node.clone()),
                pod,
                endpoint,
                way_in,
                restore,
                not_after: seat.until.map_or(latest, |until| until.min(latest)),
            });
        }
        for placement in placements {
            self.effect(Effect::CreateAgent(placement));
        }
        self.because("a new incarnation is placed");
    }

    /// Whether a member that is being replaced, or one before it whose time is not over yet, was only
    /// silent; and since when the repository refuses that one, if it is known to.
    fn inherited_silence(&self) -> (bool, Option<Time>) {
        let unproven = |member: &MemberStatus| member.agent.as_ref().is_some_and(|agent| agent.unproven);
        if self.status.everyone().any(unproven) {
            return (true, None);
        }
        let old = self.status.origin.as_ref().filter(|_| self.silent_until().is_none_or(|end| self.now < end));
        old.filter(|origin| origin.silent).map_or((false, None), |origin| (true, origin.fenced.clone()))
    }

    /// When agents that were placed then must be there.
    fn agents_until(&self, placed: Timestamp) -> Timestamp {
        after(placed, self.seen.site.as_ref().map_or(Duration::from_secs(300), |site| site.agent_wait))
    }

    /// The port of an incarnation's agents: another one for each, so that a port that is taken, or
    /// still held by the agent before, does not fail twice.
    fn port(&self, incarnation: u32) -> u16 {
        let count = u32::from(self.seen.setup.port_count.max(1));
        let hash = blake3::hash(self.uid.0.as_bytes());
        let start = u32::from(hash.as_bytes()[0]) << 8 | u32::from(hash.as_bytes()[1]);
        let offset = u16::try_from((start + incarnation) % count).unwrap_or_default();
        self.seen.setup.port_first.saturating_add(offset)
    }

    /// Makes again what the pass that decided the incarnation may not have made: a pod, or its Secret, without
    /// which it does not start and says nothing.
    pub(super) fn make_agents_again(&mut self) {
        let Some(origin) = self.status.origin.clone() else { return };
        let placed = origin.since.as_ref().map_or(self.now, |at| at.0);
        let latest = self.agents_until(placed);
        let missing: Vec<AgentPlacement> = self
            .status
            .everyone()
            .filter(|member| super::members::state(self.seen, member).is_none())
            .filter_map(|member| {
                let (agent, slot) = (member.agent.as_ref()?, self.slot_of(member)?);
                let pod = self.seen.pods.get(&agent.pod);
                if pod.is_some_and(|pod| pod.ended.is_some() || pod.deleting) {
                    return None;
                }
                Some(AgentPlacement {
                    member: member.index,
                    incarnation: agent.incarnation,
                    slot: slot.id.clone().into(),
                    node: NodeName(member.node.clone()?),
                    pod: agent.pod.clone(),
                    endpoint: agent.endpoint.parse().ok()?,
                    way_in: self.way_in_of(member.index, agent),
                    restore: origin.generation,
                    not_after: slot.until.as_ref().map_or(latest, |until| until.0.min(latest)),
                })
            })
            .collect();
        if !missing.is_empty() && since(placed, self.now) >= Duration::from_secs(2) {
            self.repeat(Effect::FenceRepository { incarnation: origin.incarnation }, Duration::from_secs(5));
            for placement in missing {
                self.repeat(Effect::CreateAgent(placement), Duration::from_secs(5));
            }
        }
    }
}

/// The newest generation that may be restored.
pub(super) fn restorable<'a>(
    content: &'a JobContent,
    origin: &Origin,
    bad: &[Generation],
    members: u32,
) -> Option<&'a GenerationSummary> {
    content
        .generations
        .iter()
        .filter(|summary| summary.members == members)
        .filter(|summary| may_restore(summary.generation, origin, bad))
        .max_by_key(|summary| summary.generation)
}

/// Whether a generation is neither bad nor of a run that failed. What the job began with is of no run.
fn may_restore(generation: Generation, origin: &Origin, bad: &[Generation]) -> bool {
    (generation > origin.floor || generation == ADOPTED) && !bad.contains(&generation)
}
