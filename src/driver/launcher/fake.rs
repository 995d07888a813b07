//! Launchers in memory, one for each node that is up.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;

use super::{LaunchKey, LaunchOrder, LaunchedAgent, Launcher, LauncherError, Launchers};

/// An agent that was to be started.
#[derive(Clone, Debug)]
pub struct Started {
    /// What it was started with.
    pub order: LaunchOrder,
    /// As its launcher tells of it.
    pub agent: LaunchedAgent,
}

/// A node with a launcher.
#[derive(Clone, Debug, Default)]
pub struct FakeNode {
    /// Its agents, by name.
    pub agents: BTreeMap<String, Started>,
}

/// The launchers. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct FakeLaunchers {
    nodes: Arc<Mutex<BTreeMap<IpAddr, FakeNode>>>,
    names: Arc<Mutex<BTreeMap<String, IpAddr>>>,
    refuse: Arc<Mutex<Option<String>>>,
    silent: Arc<AtomicBool>,
}

impl FakeLaunchers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, FakeNode>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host's name is resolved from now on.
    pub fn name(&self, host: &str, address: IpAddr) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(host.into(), address);
    }

    /// A hold has started a launcher on a node, or it has ended with all of its agents.
    pub fn set_up(&self, address: IpAddr, up: bool) {
        if up {
            self.lock().entry(address).or_default();
        } else {
            self.lock().remove(&address);
        }
    }

    /// Why they start nothing from now on.
    pub fn refuse(&self, why: Option<&str>) {
        *self.refuse.lock().unwrap_or_else(PoisonError::into_inner) = why.map(str::to_owned);
    }

    /// Whether none of them answers from now on.
    pub fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }

    /// Looks at a node, and changes it.
    pub fn with<T>(&self, address: IpAddr, change: impl FnOnce(&mut FakeNode) -> T) -> Option<T> {
        self.lock().get_mut(&address).map(change)
    }
}

#[async_trait]
impl Launchers for FakeLaunchers {
    async fn find(&self, host: &str, port: u16) -> Result<SocketAddr, LauncherError> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let address = names.get(host).copied();
        let unknown = || LauncherError::Unreachable("its name is not resolved".into());
        Ok(SocketAddr::new(address.ok_or_else(unknown)?, port))
    }

    fn at(&self, address: SocketAddr, _key: &LaunchKey) -> Arc<dyn Launcher> {
        Arc::new(FakeLauncher { all: self.clone(), address: address.ip() })
    }
}

struct FakeLauncher {
    all: FakeLaunchers,
    address: IpAddr,
}

impl FakeLauncher {
    fn with<T>(&self, change: impl FnOnce(&mut FakeNode) -> T) -> Result<T, LauncherError> {
        let nobody = || LauncherError::Unreachable("connection refused".into());
        if self.all.silent.load(Ordering::SeqCst) {
            return Err(nobody());
        }
        self.all.with(self.address, change).ok_or_else(nobody)
    }
}

#[async_trait]
impl Launcher for FakeLauncher {
    async fn agents(&self) -> Result<Vec<LaunchedAgent>, LauncherError> {
        self.with(|node| node.agents.values().map(|started| started.agent.clone()).collect())
    }

    async fn start(&self, name: &str, order: &LaunchOrder) -> Result<(), LauncherError> {
        if let Some(why) = self.all.refuse.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Err(LauncherError::Refused(why));
        }
        self.with(|node| {
            let incarnation = order.incarnation;
            let agent = LaunchedAgent { name: name.into(), incarnation, ended: None, ending: false };
            node.agents.entry(name.into()).or_insert_with(|| Started { order: order.clone(), agent });
        })
    }

    async fn end(&self, name: &str) -> Result<(), LauncherError> {
        self.with(|node| match node.agents.get_mut(name) {
            Some(started) if started.agent.ended.is_none() => started.agent.ending = true,
            _ => drop(node.agents.remove(name)),
        })
    }
}
