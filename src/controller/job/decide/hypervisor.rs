//! Deploying, before agents are placed: the environment is put on the nodes of slots, and they join the cluster.
//!
//! Each slot has its own workflows, one after the other. The number of a workflow is in the status before it is asked for;
//! where the answer was lost, the server's own list is looked through before there is another. A request too many does no
//! harm: nodes that a workflow is at work on are left out of it. Some nodes may fail where others do not: only those are
//! asked for again, a bounded number of times, and then their slot is given back (safety A12 for what its end proves).

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::draft::{Draft, after, since};
use crate::{
    api::{
        Reason,
        hypervisor::{Deploy, EnvironmentReference},
        job_status::{
            DeployedNode, DeploymentState, DeploymentStatus, ReleaseReason, SlotState, SlotStatus, WorkflowStatus,
        },
    },
    controller::job::plan::{DeployOrder, DeploymentSeen, Effect, NodeSeen},
    driver::{
        DriverError as _,
        kadeploy::{EnvironmentName, KadeployError, NodeState, Remains, Workflow, WorkflowId},
    },
    names::NodeName,
};

/// Workflows that may come to nothing on a node: the server tries a node again by itself within each.
const FAILURES: u32 = 3;
/// How often a workflow is looked at.
const POLL: Duration = Duration::from_secs(3);
/// Before a workflow is asked for again.
const REST: Duration = Duration::from_secs(5);
/// The site gives rights to the nodes within this time.
const RIGHTS: Duration = Duration::from_secs(300);
/// A request that was not answered has begun nothing if the server shows nothing for so long.
const SURE_AFTER: Duration = Duration::from_secs(10);
/// The server's clock is not ours.
const SKEW: Duration = Duration::from_secs(60);
/// A Node object of a system that is gone is removed this often, and is no longer waited for after that long.
const REMOVE_EVERY: Duration = Duration::from_secs(10);
const REMOVED_WITHIN: Duration = Duration::from_secs(120);

/// How the deployment of a slot goes.
enum Outcome {
    /// All of its nodes are ready.
    Ready,
    /// It is under way.
    Working,
    /// It came to nothing, by the fault of these nodes, if of any.
    Failed(Reason, String, Vec<String>),
}

impl Draft<'_> {
    /// Whether slots are asked for whose nodes are deployed.
    pub(super) fn deploys(&self) -> bool {
        self.job.spec.deployed().is_some()
    }

    /// Whether the nodes of all slots have their hypervisor; brings it about. If they cannot have it their slots are given
    /// back.
    pub(super) fn hypervisors(&mut self) -> bool {
        let Some(environment) = self.job.spec.deployed() else { return true };
        let mut ready = true;
        for mut slot in self.in_use().cloned().collect::<Vec<_>>() {
            let mut deployment = match slot.deployment.take() {
                Some(begun) => begun,
                None => self.new_deployment(&slot, environment),
            };
            let outcome = self.advance(&slot, &mut deployment);
            let known = self.status.slots.iter_mut().find(|known| known.id == slot.id);
            known.into_iter().for_each(|known| known.deployment = Some(deployment.clone()));
            match outcome {
                Outcome::Ready => {}
                Outcome::Working => ready = false,
                Outcome::Failed(reason, why, nodes) => {
                    self.note_undeployed(&nodes);
                    self.back_off(reason, why);
                    self.ends_before_running();
                    self.give_up(&[slot.id].into(), ReleaseReason::BadNode);
                    self.because("the hypervisor does not come to a slot's nodes");
                    return false;
                }
            }
        }
        ready
    }

    fn new_deployment(&self, slot: &SlotStatus, environment: &EnvironmentReference) -> DeploymentStatus {
        let how = self.job.spec.hypervisor.as_ref().map(|hypervisor| hypervisor.deploy);
        let nodes = slot.nodes.iter().map(|node| {
            let seen = self.seen.nodes.get(&NodeName(node.clone()));
            let there = how == Some(Deploy::IfMissing) && seen.is_some_and(|seen| seen.ready);
            DeployedNode {
                node: node.clone(),
                state: if there { DeploymentState::Ready } else { DeploymentState::Waiting },
                since: self.time(),
                failures: 0,
                error: None,
                // what was there before is not ours to remove
                uid: seen.filter(|_| !there).map(|seen| seen.uid.clone()),
            }
        });
        DeploymentStatus {
            environment: environment.clone(),
            since: self.time(),
            workflow: None,
            not_before: None,
            takes_over: None,
            workflows: 0,
            over: None,
            nodes: nodes.collect(),
        }
    }

    fn advance(&mut self, slot: &SlotStatus, deployment: &mut DeploymentStatus) -> Outcome {
        self.join(deployment);
        let nobody = DeploymentSeen::default();
        let seen = self.seen.deployments.get(&slot.id).unwrap_or(&nobody);
        let refused = match deployment.workflow.clone() {
            None => None,
            Some(workflow) => match &workflow.id {
                None => self.learn_id(slot, deployment, workflow, seen),
                Some(id) => {
                    self.look(deployment, &WorkflowId(id.clone()), seen);
                    None
                }
            },
        };
        if let Some((reason, why)) = refused {
            return Outcome::Failed(reason, why, Vec::new());
        }
        if let Some(failed) = self.judge(deployment, seen) {
            return failed;
        }
        if deployment.nodes.iter().all(|node| node.state == DeploymentState::Ready) {
            return Outcome::Ready;
        }
        self.ask(slot, deployment);
        self.because(match &deployment.workflow {
            None => "deployed nodes are to join the cluster",
            Some(_) => "the hypervisor is put on nodes",
        });
        self.wake(POLL);
        Outcome::Working
    }

    /// Deployed nodes that are ready nodes of the cluster by now.
    fn join(&mut self, deployment: &mut DeploymentStatus) {
        let (now, mut joined) = (self.time(), Vec::new());
        for node in &mut deployment.nodes {
            let seen = self.seen.nodes.get(&NodeName(node.node.clone()));
            let Some(NodeSeen { uid, ready, permanent, .. }) = seen else { continue };
            if node.state == DeploymentState::Joining && *ready && node.uid.as_ref() != Some(uid) {
                (node.state, node.since, node.uid) = (DeploymentState::Ready, now.clone(), Some(uid.clone()));
                joined.push(node.node.clone());
            } else if matches!(node.state, DeploymentState::Deploying | DeploymentState::Joining)
                && node.uid.as_ref() == Some(uid)
                && !permanent
            {
                // of the system before: the new one's is another
                let (node, uid) = (NodeName(node.node.clone()), uid.clone());
                self.repeat(Effect::RemoveNode { node, uid }, REMOVE_EVERY);
            }
        }
        if !joined.is_empty() {
            let took = since(deployment.since.0, self.now).as_secs();
            let what = EnvironmentName::from(&deployment.environment);
            self.note(
                Reason::HypervisorReady,
                format!("{what} runs on {}, {took} s after the slot", joined.join(", ")),
            );
        }
    }

    /// What became of a request: the id of its workflow, or what stands against it for good.
    fn learn_id(
        &mut self,
        slot: &SlotStatus,
        deployment: &mut DeploymentStatus,
        workflow: WorkflowStatus,
        seen: &DeploymentSeen,
    ) -> Option<(Reason, String)> {
        match &seen.reply {
            Some(Ok(id)) => self.begun(deployment, workflow, id),
            Some(Err(error @ KadeployError::RightsMissing(_))) => {
                for node in deployment.nodes.iter_mut().filter(|node| workflow.nodes.contains(&node.node)) {
                    node.error = Some(error.to_string());
                }
                self.repeat(Effect::Deploy(order(slot, deployment, &workflow)), REST);
            }
            Some(Err(KadeployError::Unreachable(_))) | None => {
                let ours = |known: &&Workflow| {
                    let late = || known.started.is_none_or(|at| at >= super::draft::before(workflow.since.0, SKEW));
                    known.nodes.iter().any(|node| workflow.nodes.contains(&node.0)) && (!known.done || late())
                };
                let found = seen.workflows.as_ref().map(|all| all.iter().filter(ours).max_by_key(|one| one.started));
                match found {
                    Some(Some(found)) => self.begun(deployment, workflow, &found.id),
                    Some(None) if since(self.by_our_clock(workflow.since.0), self.now) >= SURE_AFTER => {
                        self.repeat(Effect::Deploy(order(slot, deployment, &workflow)), REST);
                    }
                    Some(None) | None => {}
                }
            }
            Some(Err(
                error @ (KadeployError::Credentials(_)
                | KadeployError::NoEnvironment(_)
                | KadeployError::Refused(_)
                | KadeployError::Configuration(_)
                | KadeployError::Bug(_)),
            )) => {
                deployment.workflow = None;
                return Some((error.reason(), error.to_string()));
            }
        }
        None
    }

    fn begun(&self, deployment: &mut DeploymentStatus, workflow: WorkflowStatus, id: &WorkflowId) {
        deployment.takes_over = None;
        for node in deployment.nodes.iter_mut().filter(|node| workflow.nodes.contains(&node.node)) {
            (node.state, node.since, node.error) = (DeploymentState::Deploying, self.time(), None);
        }
        deployment.workflow = Some(WorkflowStatus { id: Some(id.0.clone()), ..workflow });
    }

    /// Takes in how the nodes of a workflow stand; it is over with it once nothing more will change.
    fn look(&mut self, deployment: &mut DeploymentStatus, id: &WorkflowId, seen: &DeploymentSeen) {
        let Some(stand) = seen.stand.as_ref().filter(|stand| stand.done) else { return };
        let now = self.time();
        for node in deployment.nodes.iter_mut().filter(|node| node.state == DeploymentState::Deploying) {
            // what is not the node's fault does not count: what is so now is told by the answer to the next request
            let (failed, error) = match stand.nodes.get(&NodeName(node.node.clone())) {
                Some(NodeState::Deployed | NodeState::Lost(Remains::Deployed)) => (false, None),
                Some(NodeState::Failed { reason }) => (true, Some(reason.clone())),
                Some(NodeState::Lost(Remains::Stale)) => {
                    deployment.takes_over = Some(id.0.clone());
                    (false, Some("the deployment server has forgotten its workflow".into()))
                }
                Some(NodeState::Lost(Remains::Aborted)) => {
                    (false, Some("its workflow was cancelled, or the rights to it were taken away".into()))
                }
                Some(NodeState::Lost(Remains::Other(word))) => {
                    (false, Some(format!("the deployment server has forgotten its workflow, and says of it: {word}")))
                }
                Some(NodeState::Discarded | NodeState::Working { .. }) | None => {
                    (false, Some("another operation of the deployment server has it".into()))
                }
            };
            let state = if error.is_none() { DeploymentState::Joining } else { DeploymentState::Waiting };
            (node.state, node.since, node.error) = (state, now.clone(), error);
            node.failures += u32::from(failed);
        }
        deployment.workflow = None;
        deployment.not_before = Some(Time(after(self.now, REST)));
        self.effect(Effect::ForgetWorkflow { id: id.clone() });
    }

    /// Whether the slot is of no use.
    fn judge(&self, deployment: &mut DeploymentStatus, seen: &DeploymentSeen) -> Option<Outcome> {
        let what = EnvironmentName::from(&deployment.environment);
        let (now, site) = (self.now, self.seen.site.as_ref()?);
        let old = |node: &DeployedNode, state, age: Duration| node.state == state && since(node.since.0, now) >= age;
        for node in &mut deployment.nodes {
            if old(node, DeploymentState::Joining, site.agent_wait) {
                node.error = Some(format!(
                    "it did not become a ready node of this cluster within {} s: the environment must start a kubelet that joins it",
                    site.agent_wait.as_secs()
                ));
                node.state = DeploymentState::Failed;
            } else if node.state == DeploymentState::Waiting && node.failures >= FAILURES {
                node.state = DeploymentState::Failed;
            }
        }
        let named = |those: &dyn Fn(&DeployedNode) -> bool| -> Vec<String> {
            deployment.nodes.iter().filter(|node| those(node)).map(|node| node.node.clone()).collect()
        };
        let bad = |node: &DeployedNode| node.state == DeploymentState::Failed;
        if let Some(first) = deployment.nodes.iter().find(|node| bad(node)) {
            let error = first.error.as_deref().unwrap_or("the server does not say why");
            let why = format!("{what} did not come to run on {}: {error}", first.node);
            return Some(Outcome::Failed(Reason::DeploymentFailed, why, named(&bad)));
        }
        let refused = |node: &&DeployedNode| node.error.is_some() && old(node, DeploymentState::Waiting, RIGHTS);
        if matches!(seen.reply, Some(Err(KadeployError::RightsMissing(_))))
            && let Some(node) = deployment.nodes.iter().find(refused)
        {
            let error = node.error.as_deref().unwrap_or_default();
            let why = format!("{error}. It was waited for {} s: its administrator can say why", RIGHTS.as_secs());
            return Some(Outcome::Failed(Reason::RightsMissing, why, Vec::new()));
        }
        let late = |node: &DeployedNode| node.state != DeploymentState::Ready;
        let limit = site.deploys.unwrap_or(RIGHTS);
        if since(deployment.since.0, now) >= limit && deployment.nodes.iter().any(late) {
            let nodes = named(&late);
            let known = deployment.nodes.iter().find_map(|node| node.error.clone());
            let error = seen.error.as_ref().map(ToString::to_string).or(known);
            let why = format!(
                "{what} did not come to run on {} within {} s{}",
                nodes.join(", "),
                limit.as_secs(),
                error.iter().map(|error| format!(": {error}")).collect::<String>()
            );
            return Some(match &seen.error {
                Some(error) => Outcome::Failed(error.reason(), why, Vec::new()),
                None => Outcome::Failed(Reason::DeploymentFailed, why, nodes),
            });
        }
        None
    }

    /// Asks for the next workflow, if there is to be one.
    fn ask(&mut self, slot: &SlotStatus, deployment: &mut DeploymentStatus) {
        if deployment.workflow.is_some() || deployment.not_before.as_ref().is_some_and(|at| self.now < at.0) {
            return;
        }
        let waiting = deployment.nodes.iter().filter(|node| node.state == DeploymentState::Waiting);
        let nodes: Vec<String> = waiting.map(|node| node.node.clone()).collect();
        if nodes.is_empty() {
            return;
        }
        let number = deployment.workflows + 1;
        let what = EnvironmentName::from(&deployment.environment);
        if deployment.workflows == 0 {
            self.note(Reason::DeployingHypervisor, format!("{what} is put on {}", nodes.join(", ")));
        }
        let workflow = WorkflowStatus { number, id: None, since: self.time(), nodes };
        self.effect(Effect::Deploy(order(slot, deployment, &workflow)));
        deployment.workflows = number;
        deployment.workflow = Some(workflow);
    }

    /// Ends the deployments of slots that are not in use any more: workflows are cancelled, and deployed nodes leave the
    /// cluster once their slot is over and all that was on them is dead.
    pub(super) fn end_deployments(&mut self) {
        let now = self.time();
        let mut cancelled = Vec::new();
        let mut leaving = Vec::new();
        for at in 0..self.status.slots.len() {
            let slot = &self.status.slots[at];
            let (in_use, ended) = (slot.is_in_use(), slot.state == SlotState::Ended);
            let buried = self.is_buried(&slot.id);
            let Some(deployment) = self.status.slots[at].deployment.as_mut().filter(|_| !in_use) else { continue };
            cancelled.extend(deployment.workflow.take().and_then(|workflow| workflow.id));
            if ended && buried {
                deployment.over.get_or_insert_with(|| now.clone());
                leaving.extend(still_there(deployment, &self.seen.nodes));
            }
        }
        for id in cancelled {
            self.effect(Effect::ForgetWorkflow { id: WorkflowId(id) });
        }
        for (node, uid) in leaving {
            self.repeat(Effect::RemoveNode { node, uid }, REMOVE_EVERY);
        }
    }

    /// Whether nodes of a slot that is over are still to leave the cluster.
    pub(super) fn nodes_leave(&self, slot: &SlotStatus) -> bool {
        let Some(deployment) = &slot.deployment else { return false };
        let over = deployment.over.as_ref().map_or(self.now, |over| over.0);
        still_there(deployment, &self.seen.nodes).next().is_some() && since(over, self.now) < REMOVED_WITHIN
    }
}

fn order(slot: &SlotStatus, deployment: &DeploymentStatus, workflow: &WorkflowStatus) -> DeployOrder {
    DeployOrder {
        slot: slot.id.clone().into(),
        number: workflow.number,
        nodes: workflow.nodes.iter().cloned().map(NodeName).collect(),
        environment: deployment.environment.clone(),
        takes_over: deployment.takes_over.clone().map(WorkflowId),
    }
}

/// The Node objects of the systems that were put on nodes, as far as they are still there.
fn still_there<'a>(
    deployment: &'a DeploymentStatus,
    nodes: &'a std::collections::BTreeMap<NodeName, NodeSeen>,
) -> impl Iterator<Item = (NodeName, String)> + 'a {
    let ready = deployment.nodes.iter().filter(|node| node.state == DeploymentState::Ready);
    ready.filter_map(|node| {
        let (name, uid) = (NodeName(node.node.clone()), node.uid.clone()?);
        (nodes.get(&name)?.uid == uid).then_some((name, uid))
    })
}
