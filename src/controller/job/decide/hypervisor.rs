//! Deploying, before agents are placed: the environment is put on the nodes of slots, and they join the cluster.
//!
//! Each slot has its own workflows, one after the other. The number of a workflow is in the status before it is asked
//! for; where the answer was lost, the server's own list is looked through before it is asked for again. A request too
//! many does no harm: nodes that a workflow is at work on are left out of it. Some nodes may fail where others do not:
//! only those are asked for again, a bounded number of times, and then their slot is given back. What the server
//! refuses gives it back at once and is said, whether it does so before or in the middle: that is no node's fault. What
//! the slot's end proves of them: nothing (safety A12).

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    draft::{Draft, after, before, since},
    nodes_leave::left_behind,
};
use crate::{
    api::{
        Reason,
        hypervisor::{Deploy, EnvironmentReference},
        job_status::{
            DeployedNode, DeploymentState, DeploymentStatus, ReleaseReason, SlotState, SlotStatus, WorkflowStatus,
        },
    },
    backoff::Backoff,
    controller::job::plan::{DeployOrder, DeploymentSeen, Effect},
    driver::{
        DriverError as _, Fact,
        kadeploy::{EnvironmentName, KadeployError, NodeState, Remains, Workflow, WorkflowId},
    },
    names::NodeName,
};

/// Workflows that may come to nothing on a node: the server tries a node again by itself within each.
const FAILURES: u32 = 3;
/// How often a workflow is looked at.
const POLL: Duration = Duration::from_secs(3);
/// Before a workflow is asked for again: longer with each that came to nothing by no fault of the nodes.
const PAUSE: Backoff = Backoff { first: Duration::from_secs(5), longest: Duration::from_secs(80) };
/// The site gives rights to the nodes within this time.
const RIGHTS: Duration = Duration::from_secs(300);
/// A request that was not answered has begun nothing if the server's list shows nothing so long after that.
const SURE_AFTER: Duration = Duration::from_secs(10);
/// The same of one that takes nodes over: the server then leaves out no node that a workflow is at work on, so that a
/// second one would do harm. Longer than the longest that a request may be on its way.
const SURE_AFTER_FORCE: Duration = Duration::from_secs(70);
/// The server's clock is not ours.
const SKEW: Duration = Duration::from_secs(60);

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

    /// Whether the nodes of all slots that run have their hypervisor; brings it about. Slots whose nodes cannot have it
    /// are given back.
    pub(super) fn provide_hypervisors(&mut self) -> bool {
        let Some(environment) = self.job.spec.deployed() else { return true };
        let mut ready = true;
        let runs = |slot: &&SlotStatus| slot.state == SlotState::Running && !slot.nodes.is_empty();
        for mut slot in self.in_use().filter(runs).cloned().collect::<Vec<_>>() {
            let mut deployment = match slot.deployment.take() {
                Some(begun) => begun,
                None => self.new_deployment(&slot, environment),
            };
            let outcome = self.advance(&slot, &mut deployment);
            if let Some(known) = self.status.slots.iter_mut().find(|known| known.id == slot.id) {
                known.deployment = Some(deployment);
            }
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
        let missing_only = self.job.spec.hypervisor.as_ref().is_some_and(|it| it.deploy == Deploy::IfMissing);
        let nodes = slot.nodes.iter().map(|node| {
            let seen = self.seen.nodes.get(&NodeName(node.clone()));
            // a system that another slot's deployment has put there goes with that slot
            let there = missing_only && seen.is_some_and(|seen| seen.ready && !seen.of_another_slot);
            DeployedNode {
                node: node.clone(),
                state: if there { DeploymentState::Ready } else { DeploymentState::Waiting },
                since: self.time(),
                failures: 0,
                error: None,
                before: seen.map(|seen| seen.system.clone()),
                system: None,
                token: None,
            }
        });
        DeploymentStatus {
            environment: environment.clone(),
            since: self.time(),
            workflow: None,
            fruitless: 0,
            not_before: None,
            takes_over: None,
            last_workflow: 0,
            over_since: None,
            nodes: nodes.collect(),
        }
    }

    /// Nodes of a slot that were ready when it began are deployed after all: the slot's hold does not reach them.
    /// Whether there are any.
    pub(super) fn deploy_after_all(&mut self, slot: &str) -> bool {
        let now = self.time();
        let slot = self.status.slots.iter_mut().find(|known| known.id == slot);
        let Some(deployment) = slot.and_then(|slot| slot.deployment.as_mut()) else { return false };
        let found = |node: &&mut DeployedNode| node.state == DeploymentState::Ready && node.system.is_none();
        let mut any = false;
        for node in deployment.nodes.iter_mut().filter(found) {
            (node.state, node.since, any) = (DeploymentState::Waiting, now.clone(), true);
        }
        if any {
            deployment.since = now;
        }
        any
    }

    fn advance(&mut self, slot: &SlotStatus, deployment: &mut DeploymentStatus) -> Outcome {
        let nobody = DeploymentSeen::default();
        let seen = self.seen.deployments.get(&slot.id).unwrap_or(&nobody);
        self.join(deployment, seen);
        // limits are for what has stood still
        let before = deployment.clone();
        let refused = match deployment.workflow.clone() {
            None => None,
            Some(workflow) => match &workflow.id {
                None => self.learn_id(slot, deployment, workflow, seen),
                Some(id) => self.look(slot, deployment, &WorkflowId(id.clone()), seen),
            },
        };
        if let Some((reason, why)) = refused {
            return Outcome::Failed(reason, why, Vec::new());
        }
        let stood_still = before == *deployment;
        self.give_up_nodes(deployment);
        if let Some(failed) = self.judge(deployment, seen, stood_still) {
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

    /// What became of a request: the id of its workflow, or what stands against it for good.
    fn learn_id(
        &mut self,
        slot: &SlotStatus,
        deployment: &mut DeploymentStatus,
        workflow: WorkflowStatus,
        seen: &DeploymentSeen,
    ) -> Option<(Reason, String)> {
        if seen.asking {
            return None;
        }
        match &seen.reply {
            Some((_, Ok(id))) => self.begun(deployment, workflow, id),
            Some((_, Err(error @ KadeployError::RightsMissing(_)))) => {
                for node in deployment.nodes.iter_mut().filter(|node| workflow.nodes.contains(&node.node)) {
                    node.error = Some(error.to_string());
                }
                self.repeat(Effect::Deploy(order(slot, deployment, &workflow)), PAUSE.first);
            }
            Some((_, Err(KadeployError::Unreachable(_)))) | None => match self.found(deployment, &workflow, seen) {
                Fact::Known(id) => self.begun(deployment, workflow, &id),
                Fact::Absent => self.repeat(Effect::Deploy(order(slot, deployment, &workflow)), PAUSE.first),
                Fact::Unknown { .. } => {}
            },
            Some((
                _,
                Err(
                    error @ (KadeployError::Credentials(_)
                    | KadeployError::NoEnvironment(_)
                    | KadeployError::Refused(_)
                    | KadeployError::Configuration(_)
                    | KadeployError::Bug(_)),
                ),
            )) => {
                deployment.workflow = None;
                // whatever it refuses, the account included: the site itself has accepted that
                return Some((Reason::DeploymentRefused, error.to_string()));
            }
        }
        None
    }

    /// A workflow of ours over these nodes in the server's list, whose request was not answered.
    pub(super) fn found(
        &self,
        deployment: &DeploymentStatus,
        workflow: &WorkflowStatus,
        seen: &DeploymentSeen,
    ) -> Fact<WorkflowId> {
        let sent = self.by_our_clock(workflow.since.0);
        let Some((listed, all)) = &seen.workflows else { return Fact::Unknown { since: sent } };
        let late = |one: &Workflow| one.started.is_none_or(|at| at >= before(workflow.since.0, SKEW));
        let wanted = &deployment.environment;
        let same = |one: &Workflow| {
            let user = &one.environment.user;
            one.environment.name == wanted.name && (wanted.user.is_none() || user.is_none() || *user == wanted.user)
        };
        // one that is over may be the slot's last one, which the server did not forget when it was to
        let current = |one: &Workflow| !one.done || (workflow.number == 1 && late(one));
        let ours = |one: &&Workflow| {
            one.nodes.iter().any(|node| workflow.nodes.contains(&node.0)) && same(one) && current(one)
        };
        if let Some(found) = all.iter().filter(ours).max_by_key(|one| one.started) {
            return Fact::Known(found.id.clone());
        }
        let silent = seen.reply.as_ref().map_or(sent, |(at, _)| sent.max(*at));
        let sure = if deployment.takes_over.is_some() { SURE_AFTER_FORCE } else { SURE_AFTER };
        if since(silent, *listed) >= sure { Fact::Absent } else { Fact::Unknown { since: sent } }
    }

    fn begun(&self, deployment: &mut DeploymentStatus, workflow: WorkflowStatus, id: &WorkflowId) {
        deployment.takes_over = None;
        for node in deployment.nodes.iter_mut().filter(|node| workflow.nodes.contains(&node.node)) {
            (node.state, node.since, node.error) = (DeploymentState::Deploying, self.time(), None);
        }
        deployment.workflow = Some(WorkflowStatus { id: Some(id.0.clone()), ..workflow });
    }

    /// Takes in how the nodes stand of a workflow that is over. What stands against another one for good, if it broke
    /// by that: the same as if the server had refused it.
    fn look(
        &mut self,
        slot: &SlotStatus,
        deployment: &mut DeploymentStatus,
        id: &WorkflowId,
        seen: &DeploymentSeen,
    ) -> Option<(Reason, String)> {
        let stand = seen.observation.as_ref().filter(|stand| stand.done)?;
        let (now, mut idle, mut against) = (self.time(), true, None);
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
                Some(NodeState::Broke(KadeployError::Unreachable(text))) => {
                    (false, Some(format!("the deployment server is in trouble: {text}")))
                }
                Some(NodeState::Broke(error)) => {
                    against = Some((Reason::DeploymentRefused, error.to_string()));
                    (false, Some(error.to_string()))
                }
                Some(NodeState::Discarded | NodeState::Working { .. }) | None => {
                    (false, Some("another operation of the deployment server has it".into()))
                }
            };
            idle &= error.is_some() && !failed;
            let state = if error.is_none() { DeploymentState::Joining } else { DeploymentState::Waiting };
            (node.state, node.since, node.error) = (state, now.clone(), error);
            node.failures += u32::from(failed);
        }
        deployment.workflow = None;
        deployment.fruitless = if idle { deployment.fruitless.saturating_add(1) } else { 0 };
        deployment.not_before = Some(Time(after(self.now, PAUSE.full(deployment.fruitless))));
        self.effect(Effect::ForgetWorkflow { slot: slot.id.clone().into(), id: id.clone() });
        against
    }

    /// Gives up nodes that have failed too often or do not come to the cluster.
    fn give_up_nodes(&self, deployment: &mut DeploymentStatus) {
        let Some(site) = &self.seen.site else { return };
        for node in deployment.nodes.iter_mut().filter(|node| node.state != DeploymentState::Ready) {
            if node.state == DeploymentState::Joining && self.age(&node.since) >= site.agent_wait {
                let why = node.error.take().unwrap_or_else(|| match node.token {
                    None => "the environment must start a kubelet that joins it".into(),
                    Some(_) => "the environment must start a kubelet that joins it with the token in the file that \
                                kadeploy.join.tokenFile of the site's configuration names, again and again until it has"
                        .into(),
                });
                let (limit, name) = (site.agent_wait.as_secs(), &self.job.spec.slots.site);
                node.error = Some(format!(
                    "it did not become a ready node of this cluster within {limit} s (sites.{name}.agentWait): {why}"
                ));
                node.state = DeploymentState::Failed;
            } else if node.state == DeploymentState::Waiting && node.failures >= FAILURES {
                node.state = DeploymentState::Failed;
            }
        }
    }

    fn age(&self, time: &Time) -> Duration {
        since(self.by_our_clock(time.0), self.now)
    }

    /// Why the slot is of no use, if it is not.
    fn judge(&self, deployment: &DeploymentStatus, seen: &DeploymentSeen, stood_still: bool) -> Option<Outcome> {
        let what = EnvironmentName::from(&deployment.environment);
        let named = |those: &dyn Fn(&DeployedNode) -> bool| -> Vec<String> {
            deployment.nodes.iter().filter(|node| those(node)).map(|node| node.node.clone()).collect()
        };
        let bad = |node: &DeployedNode| node.state == DeploymentState::Failed;
        if let Some(first) = deployment.nodes.iter().find(|node| bad(node)) {
            let error = first.error.as_deref().unwrap_or("the server does not say why");
            let why = format!("{what} did not come to run on {}: {error}", first.node);
            return Some(Outcome::Failed(Reason::DeploymentFailed, why, named(&bad)));
        }
        // a site that was taken out of the configuration gives its slots back after the same time as one without rights
        let limit = self.seen.site.as_ref().and_then(|site| site.deployment_wait).unwrap_or(RIGHTS);
        let patience = RIGHTS.min(limit);
        let refused =
            |node: &&DeployedNode| node.state == DeploymentState::Waiting && self.age(&node.since) >= patience;
        if matches!(seen.reply, Some((_, Err(KadeployError::RightsMissing(_)))))
            && let Some(error) = deployment.nodes.iter().find(refused).and_then(|node| node.error.as_deref())
        {
            let why = format!(
                "{error}. It was waited for {} s: OAR's prologue must give the job's user rights to the nodes when the \
                 job begins",
                patience.as_secs()
            );
            return Some(Outcome::Failed(Reason::RightsMissing, why, Vec::new()));
        }
        let late = |node: &DeployedNode| node.state != DeploymentState::Ready;
        if !stood_still || self.age(&deployment.since) < limit || !deployment.nodes.iter().any(late) {
            return None;
        }
        let known = deployment.nodes.iter().find_map(|node| node.error.clone());
        let error = seen.error.as_ref().map(ToString::to_string).or(known);
        let error = error.map(|error| format!(": {error}")).unwrap_or_default();
        let (nodes, limit) = (named(&late).join(", "), limit.as_secs());
        let why = format!("{what} did not come to run on {nodes} within {limit} s{error}");
        // nothing was tried on those that wait
        let tried = |node: &DeployedNode| late(node) && (node.state != DeploymentState::Waiting || node.failures > 0);
        Some(match &seen.error {
            Some(error) => Outcome::Failed(error.reason(), why, Vec::new()),
            None => Outcome::Failed(Reason::DeploymentFailed, why, named(&tried)),
        })
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
        let number = deployment.last_workflow + 1;
        let what = EnvironmentName::from(&deployment.environment);
        if deployment.last_workflow == 0 {
            self.note(Reason::DeployingHypervisor, format!("{what} is put on {}", nodes.join(", ")));
        }
        let workflow = WorkflowStatus { number, id: None, since: self.time(), nodes };
        // the other operation may be one of ours whose answer was lost: then the list shows it
        if deployment.fruitless == 0 || deployment.takes_over.is_some() {
            self.effect(Effect::Deploy(order(slot, deployment, &workflow)));
        }
        deployment.last_workflow = number;
        deployment.workflow = Some(workflow);
    }

    /// Whether nodes of a slot that is over are still to leave the cluster, its workflow is to be ended, or a token is
    /// to be taken back.
    pub(super) fn deployment_ends(&self, slot: &SlotStatus) -> bool {
        let Some(deployment) = &slot.deployment else { return false };
        let tokens = deployment.nodes.iter().any(|node| node.token.is_some());
        left_behind(deployment, &self.seen.nodes).next().is_some() || deployment.workflow.is_some() || tokens
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
