//! The way into running guests: what a person asks is passed to the member's agent.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Query, Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;

use super::{
    api::{failure, refusal},
    source::{Source, SourceError},
};
use crate::{
    driver::agent::{AgentError, ExecOrder, NodeAgent},
    names::MemberIndex,
    stream::{self, Connection},
};

/// Bytes on their way, in each direction.
const BUFFER: usize = 32 << 10;

/// What is asked of a member.
#[derive(Debug, Deserialize)]
pub(super) struct Of {
    #[serde(default)]
    member: MemberIndex,
}

/// A port of a member.
#[derive(Debug, Deserialize)]
pub(super) struct Port {
    #[serde(default)]
    member: MemberIndex,
    port: u16,
}

impl From<AgentError> for SourceError {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Refused(why) => Self::Refused(why),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// Who asks, as the API server says.
fn user(headers: &HeaderMap) -> &str {
    headers.get("x-remote-user").and_then(|user| user.to_str().ok()).unwrap_or_default()
}

fn agent(source: &Source, namespace: &str, name: &str, member: u32) -> Result<Arc<dyn NodeAgent>, SourceError> {
    source.agent(&*source.job(namespace, name, member)?, member)
}

/// Joins the person with a port of the guest.
pub(super) async fn connect(
    State(source): State<Arc<Source>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(Port { member, port }): Query<Port>,
    request: Request,
) -> Response {
    let way = async { Ok(agent(&source, &namespace, &name, member)?.connect(port).await?) };
    join(request, way, format!("port {port} of {namespace}/{name}, member {member}")).await
}

/// Joins the person with the guest's serial console.
pub(super) async fn console(
    State(source): State<Arc<Source>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(Of { member }): Query<Of>,
    request: Request,
) -> Response {
    let way = async { Ok(agent(&source, &namespace, &name, member)?.console().await?) };
    join(request, way, format!("the console of {namespace}/{name}, member {member}")).await
}

/// Joins the person with the agent; the stream is theirs, and only passes through here.
async fn join(
    mut request: Request,
    way: impl Future<Output = Result<Connection, SourceError>>,
    to: String,
) -> Response {
    let key = match stream::asked(request.headers()) {
        Ok(key) => key,
        Err(why) => return failure(StatusCode::BAD_REQUEST, why),
    };
    let mut guest = match way.await {
        Ok(guest) => guest,
        Err(error) => return refusal(&error),
    };
    let user = user(request.headers()).to_owned();
    tracing::info!(user, to, "a connection to a guest");
    let (reply, connection) = stream::agree(&key, &mut request);
    tokio::spawn(async move {
        if let Ok(connection) = connection.await {
            let mut person = TokioIo::new(connection);
            let ended = tokio::io::copy_bidirectional_with_sizes(&mut person, &mut guest, BUFFER, BUFFER).await;
            tracing::info!(user, to, ?ended, "a connection to a guest has ended");
        }
    });
    reply.into_response()
}

/// Runs a command in the guest.
pub(super) async fn exec(
    State(source): State<Arc<Source>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(Of { member }): Query<Of>,
    headers: HeaderMap,
    Json(order): Json<ExecOrder>,
) -> Response {
    let ran = async {
        let agent = agent(&source, &namespace, &name, member)?;
        let (user, program) = (user(&headers), order.command.first());
        tracing::info!(user, namespace, job = name, member, program, "a command in a guest");
        Ok(agent.exec(&order).await?)
    };
    match ran.await {
        Ok(reply) => Json(reply).into_response(),
        Err(error) => refusal(&error),
    }
}

#[cfg(test)]
#[path = "guest_tests.rs"]
mod tests;
