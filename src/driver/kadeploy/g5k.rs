//! Kadeploy behind the deployments of the Grid'5000 API.
//!
//! Written from public descriptions and its public source; it was never called. What differs from Kadeploy's own API:
//! a deployment is kept in a database, so that it is not forgotten; what a read says is as old as the last `PUT`, which
//! has the API ask Kadeploy; environments are named in one text and cannot be described; Kadeploy's refusals are passed
//! on as text, without their codes.

use std::collections::BTreeMap;

use async_trait::async_trait;
use jiff::Timestamp;
use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::{
    DeployRequest, Environment, EnvironmentName, EnvironmentToDeploy, Kadeploy, KadeployError, NodeState, Observation,
    Remains, Workflow, WorkflowId,
    environment::{number, or_none},
    errors::Refusal,
    hosts::HostNames,
    http::{Http, Reply},
};
use crate::{
    config::{KadeployConfig, SiteConfig},
    driver::{exchange::shown, site::Credentials},
    names::NodeName,
};

/// Longest text of the API's that is kept.
const SHOWN: usize = 1000;
/// Most deployments that it lists.
const LISTED: u32 = 500;
/// In Kadeploy's text where the account has no rights to all of the nodes.
const NO_RIGHTS: &str = "sufficient rights";
/// Its text of a deployment that Kadeploy does not know any more.
const FORGOTTEN: &str = "no longer exists on the Kadeploy server";

/// One account at one site of Grid'5000.
pub(super) struct Grid5000 {
    http: Http,
    hosts: HostNames,
    block_device: Option<String>,
    partition: Option<String>,
}

/// A deployment as the API has it.
#[derive(Clone, Debug, Deserialize)]
struct Deployment {
    uid: String,
    status: Status,
    #[serde(default, deserialize_with = "or_none")]
    nodes: Vec<String>,
    #[serde(default, deserialize_with = "or_none")]
    environment: String,
    #[serde(default, deserialize_with = "number")]
    version: Option<u64>,
    #[serde(default)]
    created_at: Option<i64>,
    /// Absent until Kadeploy was asked.
    #[serde(default, deserialize_with = "or_none")]
    result: BTreeMap<String, Outcome>,
    #[serde(default, deserialize_with = "or_none")]
    output: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Waiting,
    Processing,
    Canceled,
    /// Also with nodes that failed.
    Terminated,
    Error,
}

impl Status {
    fn is_over(self) -> bool {
        !matches!(self, Self::Waiting | Self::Processing)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Outcome {
    #[serde(rename = "macro")]
    large: Option<String>,
    #[serde(rename = "micro")]
    small: Option<String>,
    /// `OK`, `KO`.
    state: Option<String>,
    error: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct List {
    items: Vec<Deployment>,
}

#[derive(Clone, Debug, Serialize)]
struct Request {
    nodes: Vec<String>,
    environment: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition_label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    block_device: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ignore_nodes_deploying: bool,
}

impl Grid5000 {
    pub(super) fn new(
        site: &SiteConfig,
        server: &KadeployConfig,
        credentials: &Credentials,
    ) -> Result<Self, KadeployError> {
        Ok(Self {
            http: Http::new(site, server, credentials)?,
            hosts: HostNames::new(site),
            block_device: server.block_device.clone(),
            partition: server.partition.clone(),
        })
    }

    /// A deployment as Kadeploy has it now; none if the API does not know it.
    async fn look(&self, workflow: &WorkflowId) -> Result<Option<Deployment>, KadeployError> {
        let path = path(workflow)?;
        let read = |reply: Reply| match reply.read::<Deployment>() {
            Ok(deployment) => Ok(Some(deployment)),
            Err(Refusal::NotFound(_) | Refusal::NoWorkflow) => Ok(None),
            Err(other) => Err(other.into_error()),
        };
        let Some(old) = read(self.http.get(&path).await?)? else { return Ok(None) };
        if old.status.is_over() {
            return Ok(Some(old));
        }
        let asked = self.http.send(Method::PUT, &path, None::<&()>).await?;
        if asked.status >= 400 {
            return Err(asked.refusal().into_error());
        }
        read(self.http.get(&path).await?)
    }
}

/// Where a deployment is found.
fn path(workflow: &WorkflowId) -> Result<String, KadeployError> {
    let plain = !workflow.0.is_empty() && workflow.0.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if plain {
        Ok(format!("/deployments/{workflow}"))
    } else {
        Err(KadeployError::Bug(format!("{workflow:?} is no id")))
    }
}

/// Why a deployment was not begun.
fn not_begun(reply: &Reply) -> KadeployError {
    let text = shown(&reply.body, SHOWN);
    match reply.status {
        200..=399 => KadeployError::Unreachable(format!("HTTP status {} where 201 was expected", reply.status)),
        // the account is known, a wrong one is a 401: it may not deploy here, or not yet
        403 => KadeployError::RightsMissing(text),
        400.. if text.contains(NO_RIGHTS) => KadeployError::RightsMissing(text),
        400 if !text.starts_with('<') => KadeployError::Refused(text),
        _ => reply.refusal().into_error(),
    }
}

/// How a node stands in a deployment.
fn state(deployment: &Deployment, host: &str) -> NodeState {
    let outcome = deployment.result.get(host);
    let step = outcome.map_or_else(String::new, |outcome| {
        let known: Vec<&str> = [&outcome.large, &outcome.small].into_iter().flatten().map(String::as_str).collect();
        shown(known.join(": ").as_bytes(), SHOWN)
    });
    let word = outcome.and_then(|outcome| outcome.state.as_deref()).unwrap_or_default();
    let error = outcome.and_then(|outcome| outcome.error.as_deref()).map(|error| shown(error.as_bytes(), SHOWN));
    let output = shown(deployment.output.as_bytes(), SHOWN);
    match deployment.status {
        Status::Waiting | Status::Processing => NodeState::Working { step },
        Status::Canceled => NodeState::Lost(Remains::Aborted),
        // its rights were taken away, or Kadeploy died: nothing says that it was the node's fault
        Status::Error if output.contains(FORGOTTEN) => NodeState::Lost(Remains::Other(output)),
        Status::Error => NodeState::Failed { reason: output },
        Status::Terminated if word.eq_ignore_ascii_case("ok") => NodeState::Deployed,
        Status::Terminated if word.eq_ignore_ascii_case("ko") => NodeState::Failed { reason: error.unwrap_or(step) },
        Status::Terminated => NodeState::Discarded,
    }
}

#[async_trait]
impl Kadeploy for Grid5000 {
    async fn describe(&self, name: &EnvironmentName) -> Result<Environment, KadeployError> {
        name.check()?;
        Err(KadeployError::Refused(format!(
            "the API of Grid'5000 does not describe environments: give the description of {name} instead of its name"
        )))
    }

    async fn deploy(&self, request: &DeployRequest) -> Result<WorkflowId, KadeployError> {
        request.check()?;
        let EnvironmentToDeploy::Recorded(name) = &request.environment else {
            let text = "the API of Grid'5000 takes no descriptions of environments: record it and give its name";
            return Err(KadeployError::Refused(text.into()));
        };
        if let Some(old) = &request.takes_over
            && self.look(old).await?.is_some_and(|deployment| !deployment.status.is_over())
        {
            return Err(KadeployError::Refused(format!(
                "the deployment {old} is at work: nothing is to be taken over"
            )));
        }
        let body = Request {
            nodes: self.hosts.of(&request.nodes)?.into_values().collect(),
            environment: name.user.as_ref().map_or(name.name.clone(), |user| format!("{}@{user}", name.name)),
            version: name.version,
            key: request.key_url.clone(),
            partition_label: self.partition.clone(),
            block_device: self.block_device.clone(),
            ignore_nodes_deploying: request.takes_over.is_some(),
        };
        let reply = self.http.send(Method::POST, "/deployments", Some(&body)).await?;
        if reply.status != 201 {
            return Err(not_begun(&reply));
        }
        let last = reply.location.as_deref().and_then(|location| location.trim_end_matches('/').rsplit('/').next());
        let id = last.map(|id| WorkflowId(id.into())).filter(|id| path(id).is_ok());
        id.ok_or_else(|| KadeployError::Unreachable("it began a deployment without an id".into()))
    }

    async fn workflows(&self) -> Result<Vec<Workflow>, KadeployError> {
        // the newest come first
        let path = format!("/deployments?user={}&limit={LISTED}", self.http.user());
        let list: List = self.http.get(&path).await?.read().map_err(Refusal::into_error)?;
        let workflow = |deployment: Deployment| {
            let (name, user) = match deployment.environment.split_once('@') {
                Some((name, user)) => (name, Some(user.to_owned())),
                None => (deployment.environment.as_str(), None),
            };
            Workflow {
                environment: EnvironmentName { name: name.into(), user, version: deployment.version },
                id: WorkflowId(deployment.uid),
                nodes: deployment.nodes.iter().map(|host| self.hosts.node(host)).collect(),
                done: deployment.status.is_over(),
                started: deployment.created_at.and_then(|second| Timestamp::from_second(second).ok()),
            }
        };
        Ok(list.items.into_iter().map(workflow).collect())
    }

    async fn observe(
        &self,
        workflow: &WorkflowId,
        nodes: &[NodeName],
        _: &EnvironmentToDeploy,
    ) -> Result<Observation, KadeployError> {
        let hosts = self.hosts.of(nodes)?;
        let found = self.look(workflow).await?;
        let of = |host: &str| match &found {
            Some(deployment) => state(deployment, host),
            None => NodeState::Lost(Remains::Other("the API does not know the deployment".into())),
        };
        let done = found.as_ref().is_none_or(|deployment| deployment.status.is_over());
        Ok(Observation { done, nodes: hosts.iter().map(|(node, host)| (node.clone(), of(host))).collect() })
    }

    async fn forget(&self, workflow: &WorkflowId) -> Result<(), KadeployError> {
        if self.look(workflow).await?.is_none_or(|deployment| deployment.status.is_over()) {
            return Ok(());
        }
        let reply = self.http.send(Method::DELETE, &path(workflow)?, None::<&()>).await?;
        match (reply.status, reply.refusal()) {
            (200..=299, _) | (_, Refusal::NotFound(_)) => Ok(()),
            (_, other) => Err(other.into_error()),
        }
    }
}
