//! The paths, and what is in memory.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::ConnectInfo,
    http::{HeaderMap, Method, Response, Uri},
    serve::ListenerExt as _,
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    Settings, auth,
    deploy::{self, Workflow},
    environments::{self, Query},
    nodes,
    reply::{self, Answer, Refusal},
    rights,
    store::{Recorded, Store},
    tls::Encrypted,
};

/// What changes.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) store: Store,
    /// Only here: they go with the process.
    pub(crate) workflows: BTreeMap<String, Workflow>,
}

/// The server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) settings: Settings,
    state: Mutex<State>,
}

impl Server {
    pub(crate) fn new(settings: Settings, store: Store) -> Self {
        Self { settings, state: Mutex::new(State { store, workflows: BTreeMap::new() }) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_admin(&self, user: &str) -> bool {
        self.settings.almighty.iter().any(|name| name == user)
    }
}

/// Serves, over TLS if there is what speaks it, until it is told to end; workflows end with it.
pub(crate) async fn run(server: Arc<Server>, listener: TcpListener, tls: Option<TlsAcceptor>) -> Result<()> {
    let asked = server.clone();
    let handle = move |ConnectInfo(from): ConnectInfo<SocketAddr>, method, uri, headers, body| {
        answer(asked.clone(), from, method, uri, headers, body)
    };
    let app = Router::new().fallback(handle).into_make_service_with_connect_info::<SocketAddr>();
    let mut ends = signal(SignalKind::terminate())?;
    let served = async move {
        match tls {
            // with a tap the address of who asks is known of any kind of connection
            Some(acceptor) => axum::serve(Encrypted::new(listener, acceptor).tap_io(|_| {}), app).await,
            None => axum::serve(listener, app).await,
        }
    };
    tokio::select! {
        served = served => served?,
        _ = ends.recv() => {}
    }
    server.state().workflows.clear();
    Ok(())
}

/// A request taken apart.
pub(crate) struct Asked<'a> {
    pub(crate) user: String,
    pub(crate) admin: bool,
    pub(crate) path: Vec<&'a str>,
    pub(crate) body: Value,
}

async fn answer(
    server: Arc<Server>,
    from: SocketAddr,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    match routed(&server, from, &method, &uri, &headers, &body).await {
        Ok(reply) => reply,
        Err(refusal) => refusal.into(),
    }
}

async fn routed(
    server: &Arc<Server>,
    from: SocketAddr,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
) -> Answer {
    let path: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
    // no user is needed for these
    match (method.as_str(), path.as_slice()) {
        ("GET", ["version"]) => return reply::text("3.3.11"),
        ("GET", ["auth_headers_prefix"]) => return reply::text(&server.settings.prefix),
        ("GET", ["clusters"]) => {
            return reply::json(&server.settings.clusters.keys().map(|name| json!(name)).collect());
        }
        ("GET", ["info"]) => return reply::json(&json!({"pxe": "PXElinux"})),
        _ => {}
    }
    if !matches!(path.first(), Some(&("environments" | "deployment" | "nodes" | "rights"))) {
        return Err(Refusal::NoPage(uri.path().into()));
    }
    let user = auth::user(&server.settings, from.ip(), headers)?;
    let asked = Asked { admin: server.is_admin(&user), body: document(headers, body)?, user, path };
    let query = query(uri.query().unwrap_or_default());
    let answer = match asked.path[0] {
        "environments" => environments(server, method, &asked, &query).await,
        "deployment" => deploy::routed(server, method, &asked).await,
        "nodes" => {
            let node = asked.path.get(1).copied();
            match method.as_str() {
                "GET" => nodes::get(&server.settings, &server.state().store.kept, node, query.contains_key("list")),
                _ => Err(Refusal::Method("GET,HEAD")),
            }
        }
        _ => rights(server, method, &asked),
    };
    if *method != Method::GET {
        // whatever was changed is on disk before anybody is told
        server.state().store.save().map_err(|error| Refusal::Plain(500, error.to_string()))?;
    }
    answer
}

/// The body of a request.
fn document(headers: &HeaderMap, body: &[u8]) -> Result<Value, Refusal> {
    let wrong = |why: &str| Refusal::Plain(415, format!("Unsupported Media Type -- {why}"));
    if body.is_empty() {
        return Ok(Value::Null);
    }
    let kind = headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("application/json") {
        return Err(wrong("The request's content-type must be application/json"));
    }
    serde_json::from_slice(body).map_err(|_| wrong("Invalid JSON content in request's body"))
}

/// The query; names in it need no escapes.
fn query(text: &str) -> BTreeMap<String, String> {
    let pair = |part: &str| match part.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (part.to_owned(), String::new()),
    };
    text.split('&').filter(|part| !part.is_empty()).map(pair).collect()
}

async fn environments(
    server: &Arc<Server>,
    method: &Method,
    asked: &Asked<'_>,
    query: &BTreeMap<String, String>,
) -> Answer {
    let rest = &asked.path[1..];
    match (method.as_str(), rest.is_empty()) {
        ("GET", true) => {
            let query = Query {
                name: query.get("name").cloned(),
                username: query.get("username").cloned(),
                version: query.get("version").and_then(|version| version.parse().ok()),
                last: query.contains_key("last"),
            };
            environments::list(&server.state().store.kept, &asked.user, &query)
        }
        ("POST", true) => {
            let description = &asked.body["environment"];
            let admit = || environments::admit(&server.state().store.kept, asked.admin, &asked.user, description);
            let (_, file) = admit()?;
            let checksum = environments::checksum(&file).await?;
            let (fields, _) = admit()?;
            let recorded = Recorded { user: asked.user.clone(), fields: fields.clone(), checksum };
            server.state().store.kept.environments.push(recorded);
            reply::json(&fields)
        }
        ("PUT", false) if asked.body["update_image_checksum"] == true => {
            let [user, name, version] = *rest else { return Err(Refusal::no_record()) };
            let version = version.parse().ok();
            let file = environments::newest(&server.state().store.kept, user, name, version)
                .and_then(|found| found.fields["image"]["file"].as_str().map(str::to_owned))
                .ok_or_else(Refusal::no_record)?;
            let checksum = environments::checksum(&file).await?;
            let mut state = server.state();
            let same = |e: &&mut Recorded| e.user == user && e.name() == name && Some(e.version()) == version;
            match state.store.kept.environments.iter_mut().find(same) {
                Some(found) if found.checksum != checksum => {
                    found.checksum = checksum;
                    reply::json(&found.fields)
                }
                _ => Err(Refusal::coded(14, "")),
            }
        }
        ("PUT", false) => environments::put(&mut server.state(), rest, &asked.user, asked.admin, &asked.body),
        ("DELETE", false) => environments::delete(&mut server.state(), rest, &asked.user, asked.admin),
        // an older API's
        ("GET", false) => Err(Refusal::no_record()),
        _ => Err(Refusal::Method("GET,HEAD,POST")),
    }
}

fn rights(server: &Arc<Server>, method: &Method, asked: &Asked<'_>) -> Answer {
    if !asked.admin {
        return Err(Refusal::forbidden("Only administrators are allowed to manage rights"));
    }
    let rest = &asked.path[1..];
    let mut state = server.state();
    match (method.as_str(), rest) {
        ("GET", rest) => rights::get(&state, rest),
        ("POST", []) => rights::post(server, &mut state, &asked.body),
        ("DELETE", [user, node @ ..]) => rights::delete(server, &mut state, user, node.first().copied(), &asked.body),
        _ => Err(Refusal::Method("GET,HEAD,POST,DELETE")),
    }
}
