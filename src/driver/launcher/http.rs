//! Launchers over HTTP with mutual TLS.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use reqwest::Method;

use super::{LaunchKey, LaunchOrder, LaunchedAgent, Launcher, LauncherError, Launchers, paths};
use crate::{
    clock::Clock,
    driver::exchange::{BAD_CERTIFICATE, body, causes, shown},
    names::Identity,
    tls::base_url,
};

/// Time for one answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Time for a name to be resolved.
const RESOLVE: Duration = Duration::from_secs(3);
/// A client's certificate lasts as long, and so does the client.
const LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// A slot's node has no more agents, over all incarnations that are not forgotten yet.
const MOST: usize = 64;
/// What is told of an agent's end is cut to this.
const LONGEST_TEXT: usize = 500;
/// An answer is no longer.
const LONGEST: usize = 1 << 20;

struct LauncherHttp {
    client: Result<reqwest::Client, String>,
    base: String,
    address: SocketAddr,
}

impl LauncherHttp {
    fn new(address: SocketAddr, key: &LaunchKey, now: jiff::Timestamp) -> Self {
        let peer = Identity::Launcher;
        let credentials = key.authority(now).and_then(|authority| {
            // clients are made anew before it is over
            authority.issue(&Identity::Operator, now, LIFETIME * 2)
        });
        let client = credentials.and_then(|credentials| credentials.http_client(&peer, &address.to_string()));
        Self { client: client.map_err(|error| error.to_string()), base: base_url(&peer), address }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        order: Option<&LaunchOrder>,
    ) -> Result<reqwest::Response, LauncherError> {
        let client = self.client.as_ref().map_err(|error| LauncherError::Unreachable(error.clone()))?;
        let mut request = client.request(method, format!("{}{path}", self.base)).timeout(LIMIT);
        if let Some(order) = order {
            request = request.json(order);
        }
        let reply = request.send().await.map_err(|error| unreachable(&error, self.address))?;
        if reply.status().is_success() {
            return Ok(reply);
        }
        Err(LauncherError::Refused(shown(&bounded(reply).await?, LONGEST_TEXT)))
    }
}

fn unreachable(error: &reqwest::Error, address: SocketAddr) -> LauncherError {
    let causes = causes(error);
    // who has another key has another authority
    if causes.contains(BAD_CERTIFICATE) {
        LauncherError::OtherKey
    } else if error.is_connect() || error.is_timeout() {
        let (ip, port) = (address.ip(), address.port());
        LauncherError::Unreachable(format!("{causes}: TCP {port} of {ip} must be open to the operator"))
    } else {
        LauncherError::Unreachable(causes)
    }
}

async fn bounded(reply: reqwest::Response) -> Result<Vec<u8>, LauncherError> {
    body(reply, LONGEST).await.map_err(LauncherError::Refused)
}

fn agent(name: &str) -> String {
    paths::AGENT.replace("{name}", name)
}

#[async_trait]
impl Launcher for LauncherHttp {
    async fn agents(&self) -> Result<Vec<LaunchedAgent>, LauncherError> {
        let body = bounded(self.ask(Method::GET, paths::AGENTS, None).await?).await?;
        let said: Result<Vec<LaunchedAgent>, _> = serde_json::from_slice(&body);
        let mut agents = said.map_err(|error| LauncherError::Refused(format!("it said nonsense: {error}")))?;
        agents.truncate(MOST);
        for agent in &mut agents {
            agent.ended = agent.ended.take().map(|how| shown(how.as_bytes(), LONGEST_TEXT));
        }
        Ok(agents)
    }

    async fn start(&self, name: &str, order: &LaunchOrder) -> Result<(), LauncherError> {
        self.ask(Method::PUT, &agent(name), Some(order)).await.map(|_| ())
    }

    async fn end(&self, name: &str) -> Result<(), LauncherError> {
        self.ask(Method::DELETE, &agent(name), None).await.map(|_| ())
    }
}

/// A client, and when it was made.
type Made = (jiff::Timestamp, Arc<LauncherHttp>);

/// The launchers of all nodes: a client for each, made when first asked for.
pub struct LauncherDirectory {
    clock: Clock,
    clients: Mutex<HashMap<(SocketAddr, LaunchKey), Made>>,
}

impl LauncherDirectory {
    /// Nobody is asked anything yet.
    pub fn new(clock: Clock) -> Self {
        Self { clock, clients: Mutex::default() }
    }
}

#[async_trait]
impl Launchers for LauncherDirectory {
    async fn find(&self, host: &str, port: u16) -> Result<SocketAddr, LauncherError> {
        let unknown = |why: String| {
            let text = format!("its name is not resolved ({why}): sites.*.launch.addresses may give its address");
            LauncherError::Unreachable(text)
        };
        let found = tokio::time::timeout(RESOLVE, tokio::net::lookup_host((host, port))).await;
        let found = found.map_err(|_| unknown("no answer".into()))?.map_err(|error| unknown(error.to_string()))?;
        // VXLANs among agents go by IPv4
        let all: Vec<SocketAddr> = found.collect();
        let chosen = all.iter().find(|address| address.is_ipv4()).or(all.first()).copied();
        chosen.ok_or_else(|| unknown("it has no address".into()))
    }

    fn at(&self, address: SocketAddr, key: &LaunchKey) -> Arc<dyn Launcher> {
        let now = self.clock.now();
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|_, (made, _)| now.duration_since(*made).unsigned_abs() < LIFETIME);
        let (_, client) = clients
            .entry((address, key.clone()))
            .or_insert_with(|| (now, Arc::new(LauncherHttp::new(address, key, now))));
        client.clone()
    }
}
