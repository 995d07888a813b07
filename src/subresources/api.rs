//! The addresses of the API.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    guest,
    paths::{GROUP, VERSION},
    source::{Source, SourceError},
};
use crate::names::MemberIndex;

/// Time between two looks for more output.
const FOLLOW: Duration = Duration::from_secs(1);

/// What is asked of a member.
#[derive(Debug, Deserialize)]
struct Of {
    /// Its index.
    #[serde(default)]
    member: MemberIndex,
    /// Goes on until nothing can follow.
    #[serde(default)]
    follow: bool,
}

/// All addresses.
pub fn router(source: Arc<Source>) -> Router {
    let root = format!("/apis/{GROUP}/{VERSION}");
    let job = format!("{root}/namespaces/{{namespace}}/besteffortjobs/{{name}}");
    Router::new()
        .route(&format!("/apis/{GROUP}"), get(|| async { Json(group()) }))
        .route(&root, get(|| async { Json(resources()) }))
        .route(&format!("{job}/logs"), get(logs))
        .route(&format!("{job}/outputs/{{*path}}"), get(output))
        .route(&format!("{job}/portforward"), get(guest::connect))
        .route(&format!("{job}/attach"), post(guest::console))
        .route(&format!("{job}/exec"), post(guest::exec))
        .fallback(|| async { failure(StatusCode::NOT_FOUND, "no such subresource") })
        .with_state(source)
}

fn group() -> Value {
    let version = json!({"groupVersion": format!("{GROUP}/{VERSION}"), "version": VERSION});
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": GROUP, "versions": [version], "preferredVersion": version})
}

fn resources() -> Value {
    let resource = |name: &str, verb: &str| {
        json!({"name": format!("besteffortjobs/{name}"), "singularName": "", "namespaced": true,
            "kind": "BestEffortJob", "verbs": [verb]})
    };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/{VERSION}"),
        "resources": [resource("logs", "get"), resource("outputs", "get"), resource("portforward", "get"),
            resource("attach", "create"), resource("exec", "create")]})
}

async fn logs(
    State(source): State<Arc<Source>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(of): Query<Of>,
) -> Response {
    // a first look, so that what is wrong is said with a status
    let job = match source.job(&namespace, &name, of.member) {
        Ok(job) => job,
        Err(error) => return refusal(&error),
    };
    let piece = match source.printed(&job, of.member, 0).await {
        Ok(piece) => piece,
        Err(error) => return refusal(&error),
    };
    if !of.follow || piece.last {
        return Body::from_stream(piece.bytes).into_response();
    }
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(follow(source, namespace, name, of.member, sender));
    Body::from_stream(ReceiverStream::new(receiver)).into_response()
}

/// Sends what is printed as it comes. A job that goes on from a snapshot prints again what it had
/// printed since; that is not sent twice.
async fn follow(
    source: Arc<Source>,
    namespace: String,
    name: String,
    member: MemberIndex,
    to: mpsc::Sender<std::io::Result<Bytes>>,
) {
    let mut sent = 0;
    loop {
        let piece = match source.job(&namespace, &name, member) {
            Ok(job) => source.printed(&job, member, sent).await,
            Err(error) => Err(error),
        };
        let last = match piece {
            Ok(mut piece) => {
                while let Some(Ok(chunk)) = piece.bytes.next().await {
                    sent += chunk.len() as u64;
                    if to.send(Ok(chunk)).await.is_err() {
                        return;
                    }
                }
                piece.last
            }
            Err(SourceError::NotFound(_) | SourceError::Refused(_)) => true,
            Err(SourceError::Unavailable(_)) => false,
        };
        if last {
            return;
        }
        tokio::select! {
            () = to.closed() => return,
            () = tokio::time::sleep(FOLLOW) => {}
        }
    }
}

async fn output(
    State(source): State<Arc<Source>>,
    Path((namespace, name, path)): Path<(String, String, String)>,
    Query(of): Query<Of>,
) -> Response {
    let job = match source.job(&namespace, &name, of.member) {
        Ok(job) => job,
        Err(error) => return refusal(&error),
    };
    match source.file(&job, of.member, &format!("/{path}")).await {
        Ok(bytes) => Body::from_stream(bytes).into_response(),
        Err(error) => refusal(&error),
    }
}

pub(super) fn refusal(error: &SourceError) -> Response {
    let status = match error {
        SourceError::NotFound(_) => StatusCode::NOT_FOUND,
        // not 503: clients of Kubernetes would silently try again for minutes
        SourceError::Unavailable(_) => StatusCode::BAD_GATEWAY,
        SourceError::Refused(_) => StatusCode::CONFLICT,
    };
    failure(status, &error.to_string())
}

/// A failure as clients of Kubernetes read it.
pub(super) fn failure(status: StatusCode, message: &str) -> Response {
    let reason = match status {
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::CONFLICT => "Conflict",
        StatusCode::BAD_REQUEST => "BadRequest",
        _ => "InternalError",
    };
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message,
        "reason": reason, "code": status.as_u16()});
    (status, Json(body)).into_response()
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
