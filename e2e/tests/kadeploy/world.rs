//! The server under test, by its settings.

use std::{env, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use e2e::skipped::skipped;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use vmdeploy::{
    config::{SiteConfig, digest},
    driver::{
        kadeploy::{
            EnvironmentName, Kadeploy, connect,
            contract::{Power, World},
        },
        site::Credentials,
    },
    names::NodeName,
};

use crate::{
    raw::{self, Account, Address, PREFIX, Reply},
    simulator::{PASSWORD, Simulator},
};

/// One server for all: one test at a time.
static TURN: Mutex<()> = Mutex::const_new(());

/// A server with settings.
pub(crate) struct Server {
    pub(crate) address: Address,
    pub(crate) account: Account,
    pub(crate) user: String,
    pub(crate) admin: Option<Account>,
    pub(crate) other: Option<Account>,
    pub(crate) nodes: Vec<String>,
    pub(crate) environment: String,
    /// Whose it is.
    pub(crate) owner: String,
    pub(crate) files: Option<Files>,
    pub(crate) simulator: Option<Simulator>,
    client: Arc<dyn Kadeploy>,
    _turn: Option<MutexGuard<'static, ()>>,
}

fn setting(name: &str) -> Option<String> {
    env::var(format!("VMDEPLOY_KADEPLOY_{name}")).ok().filter(|value| !value.is_empty())
}

/// Says that a test, or a part of it, needs a setting that is absent.
pub(crate) fn needs(test: &str, name: &str) {
    skipped(test, &format!("VMDEPLOY_KADEPLOY_{name} is not set")).unwrap();
}

/// Says that a test, or a part of it, is for the simulator only.
pub(crate) fn needs_simulator(test: &str) {
    skipped(test, "a server at an address does not break when it is told to").unwrap();
}

/// A directory that this machine writes and the server reads.
pub(crate) struct Files {
    here: PathBuf,
    /// Where the server has it.
    there: PathBuf,
}

impl Files {
    fn given(text: &str) -> Self {
        let (here, there) = text.split_once('=').unwrap_or((text, text));
        Self { here: here.into(), there: there.into() }
    }

    /// Writes an image, which is another one with another text.
    pub(crate) fn write(&self, image: &str, text: &str) {
        std::fs::write(self.here.join(image), text).unwrap();
    }

    pub(crate) fn remove(&self, image: &str) {
        std::fs::remove_file(self.here.join(image)).unwrap();
    }

    /// An environment with this image.
    pub(crate) fn described(&self, name: &str, image: &str) -> Value {
        json!({
            "name": name, "version": 1, "description": "for tests", "author": "a@b.c", "os": "linux",
            "image": {"file": self.address(image), "kind": "tar", "compression": "gzip"}, "filesystem": "ext4",
            "boot": {"kernel": "/vmlinuz", "initrd": "/initrd.img"},
        })
    }

    pub(crate) fn address(&self, image: &str) -> String {
        format!("server://{}", self.there.join(image).display())
    }
}

impl Server {
    /// The server under test, with an environment and, where that is in our power, rights to both nodes.
    pub(crate) async fn find() -> Self {
        let server = match setting("URL") {
            Some(url) => Self::given(url).await,
            None => Self::simulated(Simulator::start(), |user| Account::Header(user.into())).await,
        };
        server.with_rights().await
    }

    /// A simulator of its own, as servers are by default: with TLS by a certificate that nobody has signed, and users
    /// with passwords.
    pub(crate) async fn secure() -> Self {
        let account = |user: &str| Account::Basic(user.into(), PASSWORD.into());
        Self::simulated(Simulator::secure(), account).await.with_rights().await
    }

    async fn with_rights(self) -> Self {
        for node in &self.nodes {
            self.grant(&self.user, node).await;
        }
        self
    }

    async fn given(url: String) -> Self {
        let wanted = |name: &str| setting(name).unwrap_or_else(|| panic!("VMDEPLOY_KADEPLOY_{name} is not set"));
        let address = Address { url, prefix: setting("PREFIX").unwrap_or_else(|| PREFIX.into()), pin: setting("PIN") };
        if let Some(pin) = &address.pin {
            assert!(digest(pin).is_some(), "VMDEPLOY_KADEPLOY_PIN must be sha256: and 64 hexadecimal digits");
            assert!(address.url.starts_with("https://"), "VMDEPLOY_KADEPLOY_PIN is of an https server");
        }
        let account = Account::given(&setting("USER").unwrap_or_else(|| "alice".into()));
        let user = account.user().to_owned();
        let environment = wanted("ENVIRONMENT");
        let (environment, owner) = match environment.split_once('@') {
            Some((name, owner)) => (name, owner.to_owned()),
            None => (environment.as_str(), user.clone()),
        };
        let nodes: Vec<String> = wanted("NODES").split(',').map(str::to_owned).collect();
        assert_eq!(nodes.len(), 2, "VMDEPLOY_KADEPLOY_NODES must name two nodes");
        let server = Self {
            client: client(&address, &account),
            account,
            user,
            admin: setting("ADMIN").map(|text| Account::given(&text)),
            other: setting("OTHER").map(|text| Account::given(&text)),
            nodes,
            environment: environment.to_owned(),
            owner,
            files: setting("FILES").map(|text| Files::given(&text)),
            simulator: None,
            address,
            _turn: Some(TURN.lock().await),
        };
        server.clear().await;
        server
    }

    /// Ends what a test that failed has left on the nodes: those are ours alone, the account may not be.
    async fn clear(&self) {
        let workflows = self.get("/deployment").await.json();
        for workflow in workflows.as_array().unwrap() {
            let nodes = workflow["nodes"].to_string();
            if self.nodes.iter().any(|node| nodes.contains(&format!("\"{node}\""))) {
                let id = workflow["wid"].as_str().unwrap();
                self.ask("DELETE", &format!("/deployment/{id}"), None).await;
            }
        }
    }

    async fn simulated(simulator: Simulator, account_of: impl Fn(&str) -> Account) -> Self {
        let account = account_of("alice");
        let files = Files { here: simulator.files(), there: simulator.files() };
        simulator.spoil(false);
        let environment = files.described("hv", "hv.tgz");
        let server = Self {
            client: client(&simulator.address, &account),
            address: simulator.address.clone(),
            account,
            user: "alice".into(),
            admin: Some(account_of("oar")),
            other: Some(account_of("bob")),
            nodes: vec!["node-1.test".into(), "node-2.test".into()],
            environment: "hv".into(),
            owner: "alice".into(),
            files: Some(files),
            simulator: Some(simulator),
            _turn: None,
        };
        let reply = server.post("/environments", &json!({"environment": environment})).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        server
    }

    /// Asks as the account under test.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Reply {
        raw::ask(&self.address, &self.account, method, path, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.ask("POST", path, Some(body)).await
    }

    /// Gives a user rights to a node, if that is in our power; it is no matter if there are some.
    pub(crate) async fn grant(&self, user: &str, node: &str) -> bool {
        let Some(admin) = &self.admin else { return false };
        let body = json!({"username": user, "nodes": [node], "overwrite": true});
        let reply = raw::ask(&self.address, admin, "POST", "/rights", Some(&body)).await;
        assert!(matches!(reply.codes(), (200, None) | (400, Some(14))), "{reply:?}");
        true
    }

    /// Takes them away.
    pub(crate) async fn revoke(&self, user: &str, node: &str) -> bool {
        let Some(admin) = &self.admin else { return false };
        let body = json!({"nodes": [node]});
        let reply = raw::ask(&self.address, admin, "DELETE", &format!("/rights/{user}"), Some(&body)).await;
        assert!(matches!(reply.codes(), (200, None) | (400, Some(14))), "{reply:?}");
        true
    }

    /// The body of a request for a deployment of the environment on these nodes.
    pub(crate) fn deployment(&self, nodes: &[String]) -> Value {
        json!({"nodes": nodes, "environment": {"kind": "database", "name": self.environment, "user": self.owner}})
    }

    /// Begins a deployment on these nodes.
    pub(crate) async fn begin(&self, nodes: &[String]) -> String {
        let reply = self.post("/deployment", &self.deployment(nodes)).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()["wid"].as_str().unwrap().to_owned()
    }

    /// Waits until a workflow is over.
    pub(crate) async fn over(&self, id: &str) -> Value {
        for _ in 0..4000 {
            let poll = self.get(&format!("/deployment/{id}")).await.json();
            if poll["done"] == true {
                return poll;
            }
            self.pass().await;
        }
        panic!("{id} does not end");
    }
}

/// The product's client.
pub(crate) fn client(address: &Address, account: &Account) -> Arc<dyn Kadeploy> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let site = json!({"kind": "oar2", "url": "http://nowhere", "uids": {}, "kadeploy": address.section()});
    let site: SiteConfig = serde_json::from_value(site).unwrap();
    let credentials = match account {
        Account::Basic(username, password) => {
            Credentials::Basic { username: username.clone(), password: password.clone() }
        }
        Account::Header(user) => Credentials::Header { user: user.clone() },
        Account::Nobody => panic!("a client is somebody's"),
    };
    connect(&site, &credentials).unwrap()
}

#[async_trait]
impl World for Server {
    fn server(&self) -> &dyn Kadeploy {
        self.client.as_ref()
    }
    fn nodes(&self) -> Vec<NodeName> {
        self.nodes.iter().map(|node| node.as_str().into()).collect()
    }
    fn environment(&self) -> EnvironmentName {
        EnvironmentName::newest(&self.environment)
    }
    async fn pass(&self) {
        tokio::time::sleep(Duration::from_millis(if self.simulator.is_some() { 50 } else { 500 })).await;
    }
    async fn use_power(&self, power: Power<'_>) -> bool {
        match power {
            Power::Grant(node) => self.grant(&self.user, &node.0).await,
            Power::Revoke(node) => self.revoke(&self.user, &node.0).await,
            Power::Break(node, broken) => {
                self.simulator.iter().for_each(|simulator| simulator.break_node(&node.0, broken));
                self.simulator.is_some()
            }
            Power::Spoil(spoilt) => {
                self.simulator.iter().for_each(|simulator| simulator.spoil(spoilt));
                self.simulator.is_some()
            }
            Power::Restart => {
                self.simulator.iter().for_each(Simulator::restart);
                self.simulator.is_some()
            }
        }
    }
}
