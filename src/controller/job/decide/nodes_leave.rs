//! Deployed nodes come to the cluster and leave it: the Node object of the system before goes when another one is put
//! on the node, and that one's when its slot is over. A system is known by its object's uid and its kernel's start
//! together: an object may be taken over by the next system, and a start is not told apart where machines share a
//! kernel.

use std::{collections::BTreeMap, time::Duration};

use super::draft::{Draft, since};
use crate::{
    api::{
        Reason,
        job_status::{DeployedNode, DeploymentState, DeploymentStatus, SlotState},
    },
    controller::job::plan::{DeploymentSeen, Effect, NodeSeen},
    driver::{
        Fact,
        kadeploy::{EnvironmentName, KadeployError, NodeState, WorkflowId},
    },
    names::NodeName,
};

/// The Node object of a system that is gone is removed this often, and is no longer waited for after that long.
const REMOVE_EVERY: Duration = Duration::from_secs(10);
const GONE_WITHIN: Duration = Duration::from_secs(120);
/// A workflow is cancelled this often.
const CANCEL_EVERY: Duration = Duration::from_secs(5);

impl Draft<'_> {
    /// Takes in which deployed nodes have joined the cluster.
    pub(super) fn join(&mut self, deployment: &mut DeploymentStatus, seen: &DeploymentSeen) {
        let (now, mut joined) = (self.time(), Vec::new());
        for node in &mut deployment.nodes {
            if !matches!(node.state, DeploymentState::Deploying | DeploymentState::Joining) {
                continue;
            }
            let name = NodeName(node.node.clone());
            let Some(known) = self.seen.nodes.get(&name) else { continue };
            if node.before.as_ref() != Some(&known.system) {
                node.system = Some(known.system.clone());
                if node.state == DeploymentState::Joining && known.ready {
                    (node.state, node.since) = (DeploymentState::Ready, now.clone());
                    joined.push(node.node.clone());
                }
            } else if !known.control_plane && is_being_replaced(node, seen) {
                self.repeat(Effect::RemoveNode { node: name, uid: known.system.uid.clone() }, REMOVE_EVERY);
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

    /// Ends the deployments of slots that are not in use any more: workflows are cancelled, and deployed nodes leave
    /// the cluster once their slot is over and all that was on them is dead.
    pub(super) fn end_deployments(&mut self) {
        let now = self.time();
        for at in 0..self.status.slots.len() {
            let slot = &self.status.slots[at];
            let (in_use, ended, id) = (slot.is_in_use(), slot.state == SlotState::Ended, slot.id.clone());
            let Some(mut deployment) = slot.deployment.clone().filter(|_| !in_use) else { continue };
            self.cancel(&id, &mut deployment);
            if ended && self.is_buried(&id) {
                let over = deployment.over_since.get_or_insert_with(|| now.clone()).0;
                for (node, uid) in left_behind(&deployment, &self.seen.nodes) {
                    self.repeat(Effect::RemoveNode { node, uid }, REMOVE_EVERY);
                }
                if since(over, self.now) >= GONE_WITHIN {
                    self.give_up_deployment(&mut deployment);
                }
            }
            self.status.slots[at].deployment = Some(deployment);
        }
    }

    /// Cancels a workflow until the server says that it is; one whose id is not known is looked for first.
    fn cancel(&mut self, slot: &str, deployment: &mut DeploymentStatus) {
        let Some(mut workflow) = deployment.workflow.clone() else { return };
        let nobody = DeploymentSeen::default();
        let seen = self.seen.deployments.get(slot).unwrap_or(&nobody);
        if workflow.id.is_none() && !seen.asking {
            let begun = match seen.reply.as_ref().map(|(_, reply)| reply) {
                Some(Ok(id)) => Fact::Known(id.clone()),
                Some(Err(KadeployError::Unreachable(_))) | None => self.found(deployment, &workflow, seen),
                Some(Err(_)) => Fact::Absent,
            };
            match begun {
                Fact::Known(id) => workflow.id = Some(id.0),
                Fact::Absent => {
                    deployment.workflow = None;
                    return;
                }
                Fact::Unknown { .. } => {}
            }
        }
        match workflow.id.clone() {
            Some(id) if seen.forgotten.as_ref().is_some_and(|forgotten| forgotten.0 == id) => {
                deployment.workflow = None;
            }
            Some(id) => {
                deployment.workflow = Some(workflow);
                let (slot, id) = (slot.to_owned().into(), WorkflowId(id));
                self.repeat(Effect::ForgetWorkflow { slot, id }, CANCEL_EVERY);
            }
            None => self.wake(CANCEL_EVERY),
        }
    }

    /// What could not be ended in time is no longer waited for; Node objects and workflows that stay are told.
    fn give_up_deployment(&mut self, deployment: &mut DeploymentStatus) {
        let left: Vec<String> = left_behind(deployment, &self.seen.nodes).map(|(node, _)| node.0).collect();
        if !left.is_empty() {
            let message = format!(
                "the Node objects of {} could not be removed, though their slot is over: the operator may lack the right to \
                 (the chart gives it where a site has a kadeploy section)",
                left.join(", ")
            );
            self.warn(Reason::NodeLost, message);
        }
        if let Some(id) = deployment.workflow.take().and_then(|workflow| workflow.id) {
            let message = format!("the deployment server did not cancel workflow {id}, whose slot is over");
            self.warn(Reason::KadeployUnreachable, message);
        }
        let tokens = deployment.nodes.iter_mut().filter_map(|node| node.token.take());
        let tokens: Vec<String> = tokens.map(|id| format!("bootstrap-token-{id}")).collect();
        if !tokens.is_empty() {
            let message = format!(
                "the tokens of nodes whose slot is over could not be taken back: the operator may lack the right to (the chart \
                 gives it where a site has kadeploy.join), or the Secrets can be deleted in kube-system by hand: {}",
                tokens.join(", ")
            );
            self.warn(Reason::NodeLost, message);
        }
        deployment.nodes.iter_mut().for_each(|node| node.system = None);
    }
}

/// Whether the system that was on a node before has gone, or is about to.
fn is_being_replaced(node: &DeployedNode, seen: &DeploymentSeen) -> bool {
    let stand = seen.observation.as_ref().and_then(|stand| stand.nodes.get(&NodeName(node.node.clone())));
    node.state == DeploymentState::Joining || matches!(stand, Some(NodeState::Working { .. } | NodeState::Deployed))
}

/// The Node objects of the systems that were put on nodes, as far as they are still there.
pub(super) fn left_behind<'a>(
    deployment: &'a DeploymentStatus,
    nodes: &'a BTreeMap<NodeName, NodeSeen>,
) -> impl Iterator<Item = (NodeName, String)> + 'a {
    deployment.nodes.iter().filter_map(|node| {
        let (name, system) = (NodeName(node.node.clone()), node.system.as_ref()?);
        (nodes.get(&name)?.system == *system).then(|| (name, system.uid.clone()))
    })
}
