//! Kadeploy 3 as a deployment server, by its own REST API.
//!
//! Reads facts and passes orders on; it never repeats an order by itself.

use std::collections::BTreeMap;

use async_trait::async_trait;
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    DeployRequest, Environment, EnvironmentName, EnvironmentToDeploy, Kadeploy, KadeployError, Observation, Workflow,
    WorkflowId,
    errors::Refusal,
    hosts::HostNames,
    http::Http,
    judge::{self, Hosts},
    wire::{Begun, Named, Nodes, Poll, Records, Request, Split, State},
};
use crate::{
    config::{KadeployConfig, SiteConfig},
    driver::site::Credentials,
    names::NodeName,
};

/// One account at one Kadeploy 3.
pub(super) struct KadeployRest {
    http: Http,
    hosts: HostNames,
    block_device: Option<String>,
    partition: BTreeMap<String, String>,
}

impl KadeployRest {
    /// A client for one account. Nothing is asked of the server yet.
    pub(super) fn new(
        site: &SiteConfig,
        server: &KadeployConfig,
        credentials: &Credentials,
    ) -> Result<Self, KadeployError> {
        let partition = server.partition.iter().map(|value| (server.partition_field.clone(), value.clone()));
        Ok(Self {
            http: Http::new(site, server, credentials)?,
            hosts: HostNames::new(site),
            block_device: server.block_device.clone(),
            partition: partition.collect(),
        })
    }

    /// The poll of a workflow of ours; none if the server does not know it.
    async fn poll(&self, workflow: &WorkflowId) -> Result<Option<(Poll, Split)>, KadeployError> {
        let poll: Poll = match self.http.get(&path(workflow)?).await?.read() {
            Ok(poll) => poll,
            Err(Refusal::NoWorkflow) => return Ok(None),
            Err(other) => return Err(other.into_error()),
        };
        if poll.wid != workflow.0 {
            let text = format!("asked for {workflow}, got another answer: {:?}", poll.wid);
            return Err(KadeployError::Unreachable(text));
        }
        match poll.nodes.clone() {
            Some(Nodes::Others(_)) => Err(KadeployError::Refused(format!("{workflow} is another user's"))),
            Some(Nodes::Own(split)) => Ok(Some((poll, split))),
            None if poll.error => Ok(Some((poll, Split::default()))),
            None => Err(KadeployError::Unreachable(format!("the answer for {workflow} has no nodes"))),
        }
    }

    /// What the server says of a workflow; none if it does not know it, or no longer.
    async fn known(&self, workflow: &WorkflowId, hosts: &Hosts) -> Result<Option<Observation>, KadeployError> {
        let Some((poll, split)) = self.poll(workflow).await? else { return Ok(None) };
        if poll.done && poll.error {
            let reply = self.http.get(&format!("{}/error", path(workflow)?)).await?;
            return match (reply.status, reply.refusal()) {
                (400, Refusal::NoWorkflow) => Ok(None),
                // here a refusal is the answer
                (400, _) if reply.code.is_some() => {
                    let text = String::from_utf8_lossy(&reply.body);
                    Ok(Some(judge::broken(hosts, reply.code, &text)))
                }
                (200..=299, _) => Ok(Some(judge::broken(hosts, None, "the server does not say why"))),
                (_, refusal) => Err(refusal.into_error()),
            };
        }
        // reasons are in the state, and go with the workflow
        let state: State = match self.http.get(&format!("{}/state", path(workflow)?)).await?.read() {
            Ok(state) => state,
            Err(Refusal::NoWorkflow) => return Ok(None),
            Err(other) => return Err(other.into_error()),
        };
        let judged = if poll.done { judge::over } else { judge::working };
        Ok(Some(judged(hosts, &split, &state)))
    }

    /// The environment of a request, as the server takes it.
    async fn environment(&self, environment: &EnvironmentToDeploy) -> Result<Value, KadeployError> {
        let name = match environment {
            EnvironmentToDeploy::Inline(description) => return inline(description),
            EnvironmentToDeploy::Recorded(name) => name,
        };
        // without a user it means one's own only, and the newest may change before the nodes are looked at
        let found = match self.describe(name).await {
            Err(KadeployError::NoEnvironment(text)) => {
                return Err(KadeployError::Refused(format!("there is no environment {text}")));
            }
            found => found?,
        };
        Ok(json!({"kind": "database", "name": found.name, "user": found.user, "version": found.version}))
    }
}

/// A description as it is sent along with a request.
fn inline(environment: &Environment) -> Result<Value, KadeployError> {
    let mut value = serde_json::to_value(environment).map_err(|error| KadeployError::Bug(error.to_string()))?;
    if let Value::Object(fields) = &mut value {
        fields.insert("kind".into(), "anonymous".into());
        fields.remove("user");
        // the server's own clients fail on environments without
        fields.entry("description").or_insert_with(|| environment.name.clone().into());
    }
    Ok(value)
}

/// Where a workflow is found.
fn path(workflow: &WorkflowId) -> Result<String, KadeployError> {
    let plain = !workflow.0.is_empty() && workflow.0.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if plain {
        Ok(format!("/deployment/{workflow}"))
    } else {
        Err(KadeployError::Bug(format!("{workflow:?} is no id")))
    }
}

#[async_trait]
impl Kadeploy for KadeployRest {
    async fn describe(&self, name: &EnvironmentName) -> Result<Environment, KadeployError> {
        name.check()?;
        let none = || KadeployError::NoEnvironment(name.to_string());
        let mut query = format!("/environments?name={}", name.name);
        query.extend(name.user.iter().map(|user| format!("&username={user}")));
        query.push_str(&name.version.map_or("&last".into(), |version| format!("&version={version}")));
        let found: Vec<Environment> = match self.http.get(&query).await?.read() {
            Ok(found) => found,
            Err(Refusal::NotFound(_)) => return Err(none()),
            Err(other) => return Err(other.into_error()),
        };
        let wanted = |e: &Environment| {
            e.name == name.name
                && (name.version.is_none() || e.version == name.version)
                && (name.user.is_none() || e.user.is_none() || e.user == name.user)
        };
        // one's own before others' public ones
        let rank = |e: &Environment| (e.user.as_deref() == Some(self.http.user()), e.version);
        let mut found = found.into_iter().filter(wanted).max_by_key(rank).ok_or_else(none)?;
        found.user = found.user.or_else(|| name.user.clone());
        found.check().map_err(|error| KadeployError::Unreachable(error.to_string()))?;
        Ok(found)
    }

    async fn deploy(&self, request: &DeployRequest) -> Result<WorkflowId, KadeployError> {
        request.check()?;
        if let Some(old) = &request.takes_over
            && self.poll(old).await?.is_some()
        {
            return Err(KadeployError::Refused(format!("the workflow {old} is known: nothing is to be taken over")));
        }
        let body = Request {
            nodes: self.hosts.of(&request.nodes)?.into_values().collect(),
            environment: self.environment(&request.environment).await?,
            ssh_authorized_keys: request.key_url.clone(),
            block_device: self.block_device.clone(),
            force: request.takes_over.is_some(),
            partition: self.partition.clone(),
        };
        let begun: Begun =
            self.http.send(Method::POST, "/deployment", Some(&body)).await?.read().map_err(Refusal::into_error)?;
        let id = WorkflowId(begun.wid);
        path(&id).map_err(|_| KadeployError::Unreachable(format!("it began a workflow with the id {:?}", id.0)))?;
        Ok(id)
    }

    async fn workflows(&self) -> Result<Vec<Workflow>, KadeployError> {
        let all: Vec<Poll> = self.http.get("/deployment").await?.read().map_err(Refusal::into_error)?;
        let workflow = |poll: Poll| {
            let nodes = match poll.nodes {
                Some(Nodes::Others(_)) => return None,
                Some(Nodes::Own(split)) => [split.ok, split.ko, split.processing].concat(),
                None => Vec::new(),
            };
            let Named { name, user, version } = poll.environment;
            Some(Workflow {
                id: WorkflowId(poll.wid),
                nodes: nodes.iter().map(|host| self.hosts.node(host)).collect(),
                environment: EnvironmentName { name: name.unwrap_or_default(), user, version },
                done: poll.done,
                started: poll.start_time.and_then(|second| Timestamp::from_second(second as i64).ok()),
            })
        };
        Ok(all.into_iter().filter_map(workflow).collect())
    }

    async fn observe(
        &self,
        workflow: &WorkflowId,
        nodes: &[NodeName],
        environment: &EnvironmentToDeploy,
    ) -> Result<Observation, KadeployError> {
        let hosts = self.hosts.of(nodes)?;
        if let Some(observation) = self.known(workflow, &hosts).await? {
            return Ok(observation);
        }
        let records: Records = self.http.get("/nodes").await?.read().map_err(Refusal::into_error)?;
        Ok(judge::lost(&hosts, &records, environment, self.http.user()))
    }

    async fn forget(&self, workflow: &WorkflowId) -> Result<(), KadeployError> {
        let reply = self.http.send(Method::DELETE, &path(workflow)?, None::<&()>).await?;
        match (reply.status, reply.refusal()) {
            // it does not know the workflow
            (200..=299 | 405, _) | (_, Refusal::NoWorkflow | Refusal::NotFound(_)) => Ok(()),
            (_, other) => Err(other.into_error()),
        }
    }
}
