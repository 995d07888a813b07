//! Agents over HTTP with mutual TLS: the bodies of orders, and the client.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use reqwest::{Method, RequestBuilder, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_util::{
    codec::{FramedRead, LinesCodec},
    io::StreamReader,
};

use super::{
    AgentAddress, AgentError, AgentState, Agents, Authority, CaptureOrder, CollectOrder, ExecOrder, ExecReply,
    GuestAccess, LeaveCode, NodeAgent, UploadOrder,
};
use crate::{
    driver::repository::ByteStream,
    names::Identity,
    stream::{self, Connection},
    tls::{Credentials, base_url},
};

/// Body of `/v1/go`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GoOrder {
    /// Who asks.
    pub authority: Authority,
}

/// Body of `/v1/stay-down`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StayDownOrder {
    /// The capture.
    pub order: CaptureOrder,
    /// How long at most.
    pub limit: Duration,
}

/// Body of `/v1/leave`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaveOrder {
    /// Who asks.
    pub authority: Authority,
    /// How.
    pub code: LeaveCode,
}

/// Body of a reply to an order that was not obeyed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Refusal {
    /// Why.
    pub message: String,
}

/// Header with the epoch of the operator that asks: only the present leader is a contact.
pub const EPOCH: &str = "vmdeploy-epoch";

/// Longest line of an event stream.
const MAX_LINE: usize = 1 << 20;
/// An event stream is silent for a second at most; this much silence means that it is broken.
const SILENCE: Duration = Duration::from_secs(5);
/// Time for a question.
const QUESTION: Duration = Duration::from_secs(3);
/// Time for a connection to a guest.
const CONNECT: Duration = Duration::from_secs(15);
/// Time for an order that takes QEMU or the disk.
const ORDER: Duration = Duration::from_secs(40);

/// One agent, by HTTP.
pub struct AgentHttp {
    client: Result<reqwest::Client, String>,
    base: String,
    epoch: Option<u64>,
}

fn unreachable(error: impl std::error::Error) -> AgentError {
    // reqwest keeps the cause in the source
    let cause = std::iter::successors(error.source(), |error| error.source()).last().map(ToString::to_string);
    AgentError::Unreachable(cause.unwrap_or_else(|| error.to_string()))
}

impl AgentHttp {
    /// Makes a client of the agent at this address.
    pub fn new(credentials: &Credentials, address: &AgentAddress) -> Self {
        let peer =
            Identity::Agent { job: address.job.clone(), member: address.member, incarnation: address.incarnation };
        let client = credentials.http_client(&peer, &address.endpoint.to_string()).map_err(|e| e.to_string());
        Self { client, base: base_url(&peer), epoch: None }
    }

    /// The same, for an operator that leads with this epoch.
    #[must_use]
    pub fn of_leader(self, epoch: u64) -> Self {
        Self { epoch: Some(epoch), ..self }
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, AgentError> {
        let client = self.client.as_ref().map_err(|error| AgentError::Failed(error.clone()))?;
        let request = client.request(method, format!("{}/v1/{path}", self.base));
        Ok(self.epoch.iter().fold(request, |request, epoch| request.header(EPOCH, *epoch)))
    }

    async fn order(&self, path: &str, body: &(impl Serialize + Sync), limit: Duration) -> Result<(), AgentError> {
        let request = self.request(Method::POST, path)?.json(body).timeout(limit);
        check(request.send().await.map_err(unreachable)?).await.map(|_| ())
    }

    /// Asks for something whose end may be long in coming.
    pub(super) async fn ask(&self, method: Method, path: &str) -> Result<reqwest::Response, AgentError> {
        let reply = tokio::time::timeout(QUESTION, self.request(method, path)?.send()).await;
        check(reply.map_err(|_| AgentError::Unreachable("no answer".into()))?.map_err(unreachable)?).await
    }

    /// Asks for a stream to or from the guest.
    async fn stream(&self, path: &str) -> Result<Connection, AgentError> {
        let request = self
            .request(Method::GET, path)?
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, generate_key())
            .header(header::SEC_WEBSOCKET_PROTOCOL, stream::PROTOCOL);
        let reply = tokio::time::timeout(CONNECT, request.send()).await;
        let reply = reply.map_err(|_| AgentError::Unreachable("no answer".into()))?.map_err(unreachable)?;
        if reply.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Box::new(reply.upgrade().await.map_err(unreachable)?));
        }
        check(reply).await?;
        Err(AgentError::Failed("the agent does not agree to a connection".into()))
    }
}

async fn check(reply: reqwest::Response) -> Result<reqwest::Response, AgentError> {
    let status = reply.status();
    if status.is_success() {
        return Ok(reply);
    }
    let text = String::from_utf8_lossy(&bounded(reply).await?).into_owned();
    let message = serde_json::from_str::<Refusal>(&text).map_or(text, |refusal| refusal.message);
    let message: String = message.chars().take(500).collect();
    Err(match status {
        StatusCode::PRECONDITION_FAILED => AgentError::Superseded(message),
        refused if refused.is_client_error() => AgentError::Refused(message),
        _ => AgentError::Failed(message),
    })
}

/// The body of an answer, which is no longer than a state may be: what a node sends is not trusted.
async fn bounded(mut reply: reqwest::Response) -> Result<Vec<u8>, AgentError> {
    let mut body = Vec::new();
    while let Some(piece) = reply.chunk().await.map_err(unreachable)? {
        if body.len() + piece.len() > MAX_LINE {
            return Err(AgentError::Failed(format!("the agent sent more than {MAX_LINE} bytes")));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

#[async_trait]
impl GuestAccess for AgentHttp {
    async fn output(&self, from: u64) -> Result<ByteStream, AgentError> {
        let reply = self.ask(Method::GET, &format!("output?from={from}")).await?;
        Ok(reply.bytes_stream().map_err(std::io::Error::other).boxed())
    }

    async fn connect(&self, port: u16) -> Result<Connection, AgentError> {
        self.stream(&format!("connect?port={port}")).await
    }

    async fn console(&self) -> Result<Connection, AgentError> {
        self.stream("console").await
    }

    async fn exec(&self, order: &ExecOrder) -> Result<ExecReply, AgentError> {
        let limit = Duration::from_secs(order.timeout.into()) + ORDER;
        let request = self.request(Method::POST, "exec")?.json(order).timeout(limit);
        let reply = bounded(check(request.send().await.map_err(unreachable)?).await?).await?;
        serde_json::from_slice(&reply).map_err(|error| AgentError::Failed(error.to_string()))
    }
}

#[async_trait]
impl NodeAgent for AgentHttp {
    async fn state(&self) -> Result<AgentState, AgentError> {
        let request = self.request(Method::GET, "state")?.timeout(QUESTION);
        let reply = check(request.send().await.map_err(unreachable)?).await?;
        let state = bounded(reply).await?;
        serde_json::from_slice(&state).map_err(|error| AgentError::Failed(error.to_string()))
    }

    async fn watch(&self) -> Result<BoxStream<'static, AgentState>, AgentError> {
        let request = self.request(Method::GET, "events")?.send();
        let reply = tokio::time::timeout(QUESTION, request).await;
        let reply = reply.map_err(|_| AgentError::Unreachable("no answer".into()))?.map_err(unreachable)?;
        let body = check(reply).await?.bytes_stream().map_err(std::io::Error::other);
        let lines = FramedRead::new(StreamReader::new(body.boxed()), LinesCodec::new_with_max_length(MAX_LINE));
        let states = futures::stream::unfold(lines, |mut lines| async move {
            let line = tokio::time::timeout(SILENCE, lines.next()).await.ok()??.ok()?;
            Some((serde_json::from_str(&line).ok()?, lines))
        });
        Ok(states.boxed())
    }

    async fn go(&self, authority: Authority) -> Result<(), AgentError> {
        self.order("go", &GoOrder { authority }, ORDER).await
    }

    async fn prepare(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.order("prepare", order, ORDER).await
    }

    async fn stop(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.order("stop", order, ORDER).await
    }

    async fn cut(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.order("cut", order, ORDER).await
    }

    async fn abandon(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.order("abandon", order, ORDER).await
    }

    async fn stay_down(&self, order: &CaptureOrder, limit: Duration) -> Result<(), AgentError> {
        self.order("stay-down", &StayDownOrder { order: order.clone(), limit }, QUESTION).await
    }

    async fn upload(&self, order: &UploadOrder) -> Result<(), AgentError> {
        self.order("upload", order, QUESTION).await
    }

    async fn collect(&self, order: &CollectOrder) -> Result<(), AgentError> {
        self.order("collect", order, QUESTION).await
    }

    async fn leave(&self, authority: Authority, code: LeaveCode) -> Result<(), AgentError> {
        self.order("leave", &LeaveOrder { authority, code }, ORDER).await
    }
}

/// Makes clients that speak for whoever the credentials are of.
pub struct AgentsHttp {
    credentials: Credentials,
    epoch: Option<u64>,
}

impl AgentsHttp {
    /// With these credentials; with an epoch, for an operator that leads.
    pub fn new(credentials: Credentials, epoch: Option<u64>) -> Self {
        Self { credentials, epoch }
    }
}

impl Agents for AgentsHttp {
    fn agent(&self, address: &AgentAddress) -> Arc<dyn NodeAgent> {
        let client = AgentHttp::new(&self.credentials, address);
        Arc::new(AgentHttp { epoch: self.epoch, ..client })
    }
}
