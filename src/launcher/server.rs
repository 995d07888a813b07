//! What a launcher answers to the operator, and to nobody else.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, Path, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, put},
};

use super::agents::LaunchedAgents;
use crate::{
    driver::launcher::{LaunchOrder, LaunchedAgent, paths},
    names::Identity,
    tls::{Peer, forbidden},
};

/// What an agent is told is no longer.
const LONGEST: usize = 4 << 20;

pub(super) fn router(agents: Arc<LaunchedAgents>) -> Router {
    Router::new()
        .route(paths::AGENTS, get(list))
        .route(paths::AGENT, put(start).delete(end))
        .layer(DefaultBodyLimit::max(LONGEST))
        .layer(middleware::from_fn(operator_only))
        .with_state(agents)
}

async fn operator_only(Extension(Peer(peer)): Extension<Peer>, request: Request, next: Next) -> Response {
    if peer == Identity::Operator { next.run(request).await } else { forbidden("only the operator has agents started") }
}

async fn list(State(agents): State<Arc<LaunchedAgents>>) -> Json<Vec<LaunchedAgent>> {
    Json(agents.list())
}

async fn start(
    State(agents): State<Arc<LaunchedAgents>>,
    Path(name): Path<String>,
    Json(order): Json<LaunchOrder>,
) -> Response {
    match agents.start(&name, &order) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => (StatusCode::CONFLICT, format!("{error:#}")).into_response(),
    }
}

async fn end(State(agents): State<Arc<LaunchedAgents>>, Path(name): Path<String>) -> StatusCode {
    agents.end(&name);
    StatusCode::NO_CONTENT
}
