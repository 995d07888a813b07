//! The agent's HTTP side: one address per order, for the operator; state and events also for kget.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    body::{Body, Bytes},
    extract::{Query, Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use futures::StreamExt as _;
use serde::{Deserialize, de::DeserializeOwned};

use super::{Supervisor, chain, collect, orders::Orders, visit};
use crate::{
    driver::agent::{
        AgentError, CaptureOrder, CollectOrder, ExecOrder, GuestAccess as _, NodeAgent as _, UploadOrder,
        http::{EPOCH, GoOrder, LeaveOrder, Refusal, StayDownOrder},
    },
    names::Identity,
    tls::{Peer, forbidden},
};

/// The addresses an agent serves.
pub(super) fn router(supervisor: Arc<Supervisor>) -> Router {
    let orders = Router::new()
        .route("/v1/go", post(|s, o| order(s, o, |a, o: GoOrder| async move { a.go(o.authority).await })))
        .route("/v1/prepare", post(|s, o| order(s, o, |a, o: CaptureOrder| async move { a.prepare(&o).await })))
        .route("/v1/stop", post(|s, o| order(s, o, |a, o: CaptureOrder| async move { a.stop(&o).await })))
        .route("/v1/cut", post(|s, o| order(s, o, |a, o: CaptureOrder| async move { a.cut(&o).await })))
        .route("/v1/abandon", post(|s, o| order(s, o, |a, o: CaptureOrder| async move { a.abandon(&o).await })))
        .route(
            "/v1/stay-down",
            post(|s, o| order(s, o, |a, o: StayDownOrder| async move { a.stay_down(&o.order, o.limit).await })),
        )
        .route(
            "/v1/leave",
            post(|s, o| order(s, o, |a, o: LeaveOrder| async move { a.leave(o.authority, o.code).await })),
        )
        .route("/v1/output", get(output))
        .route("/v1/connect", get(visit::connect))
        .route("/v1/console", get(visit::console))
        .route("/v1/exec", post(exec))
        .layer(middleware::from_fn(operator_only));
    Router::new()
        .route("/v1/state", get(state))
        .route("/v1/events", get(events))
        .route("/v1/upload", post(|s, o| order(s, o, |a, o: UploadOrder| async move { a.upload(&o).await })))
        .merge(orders)
        .route("/v1/collect", post(|s, o| order(s, o, |a, o: CollectOrder| async move { a.collect(&o).await })))
        .layer(middleware::from_fn_with_state(supervisor.clone(), known_only))
        // from other agents of the job; it is looked at there who sends what
        .merge(collect::routes())
        .merge(chain::routes())
        .with_state(supervisor)
}

/// Refuses everybody but operator and kget. Only the operator that leads is a contact: an agent that
/// lives on because of anybody else may be taken for dead by the one who decides that (safety A1).
async fn known_only(
    State(supervisor): State<Arc<Supervisor>>,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    match peer {
        Identity::Operator => heard(&supervisor, epoch(request.headers()), Duration::ZERO),
        Identity::Kget => {}
        Identity::Repository | Identity::Importer | Identity::Launcher | Identity::Agent { .. } => {
            return forbidden("only the operator and kget speak with agents");
        }
    }
    next.run(request).await
}

/// The epoch of an operator's request.
fn epoch(headers: &HeaderMap) -> Option<u64> {
    headers.get(EPOCH)?.to_str().ok()?.parse().ok()
}

/// An operator was heard, so long ago.
fn heard(supervisor: &Supervisor, epoch: Option<u64>, ago: Duration) {
    if epoch.is_some_and(|epoch| supervisor.view.quietly(|facts| facts.barrier.leads(epoch))) {
        supervisor.contact.heard(ago);
    }
}

async fn operator_only(Extension(Peer(peer)): Extension<Peer>, request: Request, next: Next) -> Response {
    if peer == Identity::Operator { next.run(request).await } else { forbidden("only the operator gives this order") }
}

/// Obeys an order to its end, whether or not the one who gave it still waits.
async fn order<O, F, R>(State(supervisor): State<Arc<Supervisor>>, Json(order): Json<O>, obey: F) -> Response
where
    O: DeserializeOwned + Send + 'static,
    F: FnOnce(Orders, O) -> R + Send + 'static,
    R: Future<Output = Result<(), AgentError>> + Send + 'static,
{
    match tokio::spawn(obey(Orders(supervisor), order)).await {
        Ok(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(error)) => refusal(&error),
        Err(error) => refusal(&AgentError::Failed(error.to_string())),
    }
}

pub(super) fn refusal(error: &AgentError) -> Response {
    let (status, message) = match error {
        AgentError::Refused(why) => (StatusCode::CONFLICT, why),
        AgentError::Superseded(why) => (StatusCode::PRECONDITION_FAILED, why),
        AgentError::Failed(why) | AgentError::Unreachable(why) => (StatusCode::INTERNAL_SERVER_ERROR, why),
    };
    (status, Json(Refusal { message: message.clone() })).into_response()
}

/// From which byte on.
#[derive(Deserialize)]
pub(super) struct From {
    #[serde(default)]
    pub(super) from: u64,
}

async fn output(State(supervisor): State<Arc<Supervisor>>, Query(From { from }): Query<From>) -> Response {
    match Orders(supervisor).output(from).await {
        Ok(bytes) => Body::from_stream(bytes).into_response(),
        Err(error) => refusal(&error),
    }
}

/// A command that somebody gave up waiting for goes on to its end or its limit.
async fn exec(State(supervisor): State<Arc<Supervisor>>, Json(order): Json<ExecOrder>) -> Response {
    match tokio::spawn(async move { Orders(supervisor).exec(&order).await }).await {
        Ok(Ok(reply)) => Json(reply).into_response(),
        Ok(Err(error)) => refusal(&error),
        Err(error) => refusal(&AgentError::Failed(error.to_string())),
    }
}

async fn state(State(supervisor): State<Arc<Supervisor>>) -> Response {
    Json(supervisor.view.render()).into_response()
}

async fn events(
    State(supervisor): State<Arc<Supervisor>>,
    Extension(Peer(peer)): Extension<Peer>,
    headers: HeaderMap,
) -> Response {
    let epoch = epoch(&headers).filter(|_| peer == Identity::Operator);
    let states = match Orders(supervisor.clone()).watch().await {
        Ok(states) => states,
        Err(error) => return refusal(&error),
    };
    // a peer that does not acknowledge loses its connection after this time, so that a stream which
    // goes on proves that it was there that long ago
    let lag = supervisor.silence_limit();
    let lines = states.map(move |state| {
        heard(&supervisor, epoch, lag);
        let mut line = serde_json::to_vec(&state).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    Body::from_stream(lines).into_response()
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
