//! What the server in memory remembers, and how time changes it.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;

use super::{Fault, HUNG, PURGE};
use crate::{
    driver::kadeploy::{
        DeployRequest, Environment, EnvironmentName, EnvironmentToDeploy, KadeployError, NodeState, Observation,
        Remains, Workflow, WorkflowId,
    },
    names::NodeName,
};

/// The server's steps, each a third of a deployment.
const STEPS: [&str; 3] = ["SetDeploymentEnvDummy: dummy", "BroadcastEnvDummy: dummy", "BootNewEnvDummy: dummy"];

/// What the server keeps of a node, also when it dies.
#[derive(Clone, Debug)]
struct Record {
    word: &'static str,
    environment: Option<EnvironmentName>,
    since: Timestamp,
}

#[derive(Debug, Default)]
struct Node {
    rights: bool,
    busy: bool,
    fault: Option<Fault>,
    record: Option<Record>,
}

/// A workflow, in the server's memory only.
#[derive(Debug)]
struct Running {
    nodes: Vec<NodeName>,
    discarded: Vec<NodeName>,
    environment: EnvironmentToDeploy,
    started: Timestamp,
    ends: Timestamp,
    breaks: Option<KadeployError>,
    settled: bool,
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) length: Duration,
    pub(super) environments: Vec<Environment>,
    pub(super) breaking: Option<KadeployError>,
    nodes: BTreeMap<NodeName, Node>,
    workflows: BTreeMap<WorkflowId, Running>,
    begun: u64,
}

impl Server {
    pub(super) fn new(nodes: &[&str], length: Duration) -> Self {
        let nodes = nodes.iter().map(|name| (NodeName::from(*name), Node::default())).collect();
        Self { length, environments: Vec::new(), breaking: None, nodes, workflows: BTreeMap::new(), begun: 0 }
    }

    pub(super) fn set_fault(&mut self, node: &NodeName, fault: Option<Fault>) {
        self.nodes.entry(node.clone()).or_default().fault = fault;
    }

    pub(super) fn set_busy(&mut self, node: &NodeName, busy: bool) {
        self.nodes.entry(node.clone()).or_default().busy = busy;
    }

    /// Gives rights, or takes them away: then the workflows on the node end at once.
    pub(super) fn set_rights(&mut self, node: &NodeName, rights: bool, now: Timestamp) {
        self.nodes.entry(node.clone()).or_default().rights = rights;
        if !rights {
            let hit = |running: &Running| !running.settled && running.nodes.contains(node);
            let ids: Vec<_> =
                self.workflows.iter().filter(|(_, running)| hit(running)).map(|(id, _)| id.clone()).collect();
            for id in ids {
                self.forget(&id, now);
            }
        }
    }

    /// Forgets the workflows and keeps the nodes' records.
    pub(super) fn restart(&mut self) {
        self.workflows.clear();
    }

    pub(super) fn begun(&self) -> u64 {
        self.begun
    }

    pub(super) fn system(&mut self, node: &NodeName, now: Timestamp) -> Option<Timestamp> {
        self.settle(now);
        let record = self.nodes.get(node)?.record.as_ref()?;
        (record.word == "deployed").then_some(record.since)
    }

    pub(super) fn describe(&self, name: &EnvironmentName) -> Result<Environment, KadeployError> {
        let matches = |e: &&Environment| {
            e.name == name.name
                && (name.user.is_none() || e.user == name.user)
                && (name.version.is_none() || e.version == name.version)
        };
        let newest = self.environments.iter().filter(matches).max_by_key(|e| e.version);
        newest.cloned().ok_or_else(|| KadeployError::NoEnvironment(name.to_string()))
    }

    pub(super) fn deploy(&mut self, request: &DeployRequest, now: Timestamp) -> Result<WorkflowId, KadeployError> {
        request.check()?;
        if let Some(known) = request.takes_over.as_ref().filter(|id| self.workflows.contains_key(id)) {
            return Err(KadeployError::Refused(format!("the workflow {known} is known: nothing is to be taken over")));
        }
        if let Some(unknown) = request.nodes.iter().find(|node| !self.nodes.contains_key(node)) {
            return Err(KadeployError::Refused(format!("The node '{unknown}' does not exist")));
        }
        if let EnvironmentToDeploy::Recorded(name) = &request.environment {
            self.describe(name).map_err(|error| KadeployError::Refused(error.to_string()))?;
        }
        if !request.nodes.iter().all(|node| self.nodes[node].rights) {
            return Err(KadeployError::RightsMissing("not on all the nodes".into()));
        }
        let free = |node: &&NodeName| {
            let Node { busy, record, .. } = &self.nodes[*node];
            let marked = record.as_ref().is_some_and(|record| {
                record.word == "deploying" && now.duration_since(record.since) < PURGE && request.takes_over.is_none()
            });
            !busy && !marked
        };
        let (nodes, discarded): (Vec<_>, Vec<_>) = request.nodes.iter().partition(free);
        let (nodes, discarded): (Vec<_>, Vec<_>) =
            (nodes.into_iter().cloned().collect(), discarded.into_iter().cloned().collect());
        let longest = nodes.iter().map(|node| self.takes(node)).max().unwrap_or_default();
        let environment = match &request.environment {
            EnvironmentToDeploy::Recorded(name) => self.describe(name).ok().map(|environment| environment.id()),
            EnvironmentToDeploy::Inline(_) => None,
        };
        for node in &nodes {
            self.record(node, "deploying", environment.clone(), now);
        }
        self.begun += 1;
        let id = WorkflowId(format!("D-{}", self.begun));
        let running = Running {
            nodes,
            discarded,
            environment: request.environment.clone(),
            started: now,
            ends: now + longest,
            breaks: self.breaking.clone(),
            settled: false,
        };
        self.workflows.insert(id.clone(), running);
        Ok(id)
    }

    pub(super) fn workflows(&mut self, now: Timestamp) -> Vec<Workflow> {
        self.settle(now);
        let environment = |running: &Running| match &running.environment {
            EnvironmentToDeploy::Recorded(name) => self.describe(name).map_or_else(|_| name.clone(), |e| e.id()),
            EnvironmentToDeploy::Inline(environment) => environment.id(),
        };
        let workflow = |(id, running): (&WorkflowId, &Running)| Workflow {
            id: id.clone(),
            nodes: if running.settled && running.breaks.is_some() { Vec::new() } else { running.nodes.clone() },
            environment: environment(running),
            done: running.settled,
            started: Some(running.started),
        };
        self.workflows.iter().map(workflow).collect()
    }

    pub(super) fn observe(
        &mut self,
        id: &WorkflowId,
        nodes: &[NodeName],
        environment: &EnvironmentToDeploy,
        now: Timestamp,
    ) -> Observation {
        self.settle(now);
        let Some(running) = self.workflows.get(id) else {
            let lost = |node: &NodeName| (node.clone(), NodeState::Lost(self.remains(node, environment)));
            return Observation { done: true, nodes: nodes.iter().map(lost).collect() };
        };
        let state = |node: &NodeName| {
            let state = match (&running.breaks, self.nodes.get(node).and_then(|node| node.fault.as_ref())) {
                _ if running.discarded.contains(node) || !running.nodes.contains(node) => NodeState::Discarded,
                _ if !running.settled => NodeState::Working { step: self.step(running, now) },
                (Some(error), _) => NodeState::Broke(error.clone()),
                (None, Some(Fault::Fails(reason))) => NodeState::Failed { reason: reason.clone() },
                (None, Some(Fault::Hangs)) => NodeState::Failed { reason: "Unreachable after the reboot".into() },
                (None, None) => NodeState::Deployed,
            };
            (node.clone(), state)
        };
        Observation { done: running.settled, nodes: nodes.iter().map(state).collect() }
    }

    pub(super) fn forget(&mut self, id: &WorkflowId, now: Timestamp) {
        self.settle(now);
        if let Some(running) = self.workflows.remove(id).filter(|running| !running.settled) {
            for node in &running.nodes {
                self.record(node, "aborted", None, now);
            }
        }
    }

    fn takes(&self, node: &NodeName) -> Duration {
        match self.nodes[node].fault {
            Some(Fault::Hangs) => HUNG,
            Some(Fault::Fails(_)) | None => self.length,
        }
    }

    fn step(&self, running: &Running, now: Timestamp) -> String {
        let passed = now.duration_since(running.started).as_millis() * 3 / (self.length.as_millis() as i128).max(1);
        STEPS[passed.clamp(0, 2) as usize].into()
    }

    fn settle(&mut self, now: Timestamp) {
        let over = self.workflows.values_mut().filter(|running| !running.settled && running.ends <= now);
        let mut ends = Vec::new();
        for running in over {
            running.settled = true;
            ends.extend(running.nodes.iter().map(|node| (node.clone(), running.ends, running.breaks.is_some())));
        }
        for (node, at, broke) in ends {
            let failed = self.nodes[&node].fault.is_some();
            let environment = self.nodes[&node].record.as_ref().and_then(|record| record.environment.clone());
            let (word, environment) = match (broke, failed) {
                (true, _) => ("aborted", None),
                (false, true) => ("deploy_failed", environment),
                (false, false) => ("deployed", environment),
            };
            self.record(&node, word, environment, at);
        }
    }

    fn record(&mut self, node: &NodeName, word: &'static str, environment: Option<EnvironmentName>, since: Timestamp) {
        self.nodes.entry(node.clone()).or_default().record = Some(Record { word, environment, since });
    }

    fn remains(&self, node: &NodeName, wanted: &EnvironmentToDeploy) -> Remains {
        let Some(record) = self.nodes.get(node).and_then(|node| node.record.as_ref()) else {
            return Remains::Other("never used".into());
        };
        let ours = match wanted {
            EnvironmentToDeploy::Inline(_) => record.environment.is_none(),
            EnvironmentToDeploy::Recorded(name) => record.environment.as_ref().is_some_and(|had| {
                had.name == name.name
                    && name.version.is_none_or(|version| had.version == Some(version))
                    && (name.user.is_none() || had.user == name.user)
            }),
        };
        match record.word {
            "deployed" if ours => Remains::Deployed,
            "deploying" if ours => Remains::Stale,
            "aborted" => Remains::Aborted,
            word => Remains::Other(word.into()),
        }
    }
}
