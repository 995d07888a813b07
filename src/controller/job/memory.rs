//! What one process remembers of a job beside its status: answers it was given, what it has sent and
//! when, the capture it conducts. All of it may be lost at any time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;

use super::plan::{BarrierSeen, DeploymentSeen, Reply};
use crate::{
    api::{BestEffortJobStatus, Reason, hypervisor::EnvironmentReference},
    driver::{
        launcher::{LaunchKey, LaunchedAgent, LauncherError},
        site::{Credentials, SiteError},
    },
    names::{JobUid, NodeName},
};

/// What one process remembers of one job.
#[derive(Clone, Debug, Default)]
pub struct Remembered {
    /// The answer to its last request for slots.
    pub reply: Option<Reply>,
    /// Why the repository did not copy what the job is to start from, when it was last asked to.
    pub adoption: Option<(Reason, String)>,
    /// When it last did what is repeated until it works.
    pub sent: BTreeMap<String, Timestamp>,
    /// The capture it conducts or has conducted last.
    pub barrier: Option<BarrierSeen>,
    /// When the repository was last asked in vain.
    pub repository_silent: Option<Timestamp>,
    /// When it was asked last what it has of the job.
    pub content_asked: Option<Timestamp>,
    /// What the site said when slots were given back: nothing if it obeyed, or why it refused.
    pub releases: BTreeMap<String, Option<SiteError>>,
    /// The account at the site.
    pub account: Option<Account>,
    /// Whether the deployment server has an environment.
    pub environment: Option<Checked>,
    /// It is being asked.
    pub checking: bool,
    /// What is known of deployments, by slot.
    pub deploying: BTreeMap<String, Deploying>,
    /// Tokens that were taken back.
    pub withdrawn: BTreeSet<String>,
    /// Why the cluster did not take a token, by its id.
    pub unoffered: BTreeMap<String, String>,
    /// Why a request was denied that was made with a token, by its id.
    pub denied: BTreeMap<String, String>,
    /// The public key whose certificate was approved, by the token that it was asked for with.
    pub certified: BTreeMap<String, Vec<u8>>,
    /// The launch key of the account.
    pub launch_key: Option<KeyRead>,
    /// What is known of launchers, by slot and node.
    pub launchers: BTreeMap<(String, NodeName), LauncherKnown>,
}

/// A launch key as it was read from a Secret.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyRead {
    /// When.
    pub read: Timestamp,
    /// The key, or what to change.
    pub found: Result<LaunchKey, String>,
}

/// What is known of the launcher on a node of a slot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LauncherKnown {
    /// Where it has answered, and by which key: its hold has read that at its beginning.
    pub found: Option<(SocketAddr, LaunchKey)>,
    /// The agents it told of last.
    pub agents: Vec<LaunchedAgent>,
    /// Since when it does not answer any more, if it does not.
    pub silent: Option<Timestamp>,
    /// Agents that it would not start, and why.
    pub refused: BTreeMap<String, String>,
    /// What the last question failed with, if it failed.
    pub error: Option<LauncherError>,
    /// When a question last came to an end, with an answer or without.
    pub looked: Option<Timestamp>,
    /// It is being asked.
    pub looking: bool,
}

/// Whether the deployment server has an environment.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// The environment.
    pub environment: EnvironmentReference,
    /// When it was asked.
    pub at: Timestamp,
    /// Whether it has it, or what to change.
    pub found: Result<(), (Reason, String)>,
}

/// What is known of the workflow under way on a slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Deploying {
    /// Its number.
    pub number: u32,
    /// What is known of it.
    pub seen: DeploymentSeen,
    /// When a look last came to an end, with an answer or without.
    pub looked: Option<Timestamp>,
    /// It is being looked at.
    pub looking: bool,
}

impl Deploying {
    /// Nothing is known of it.
    pub fn of(number: u32) -> Self {
        Self { number, seen: DeploymentSeen::default(), looked: None, looking: false }
    }
}

/// An account as it was read from a Secret.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// The Secret.
    pub secret: String,
    /// What was in it.
    pub credentials: Credentials,
    /// When.
    pub read: Timestamp,
}

impl Remembered {
    /// Whether the site refuses to take a slot back from the account.
    pub fn account_refused(&self) -> bool {
        self.releases.values().any(|said| matches!(said, Some(SiteError::Credentials(_))))
    }

    /// Forgets what belongs to slots that the status does not name any more.
    pub fn retain(&mut self, status: &BestEffortJobStatus) {
        let known = |id: &String| status.slots.iter().any(|slot| slot.id == *id);
        let deployments = || status.slots.iter().filter_map(|slot| slot.deployment.as_ref());
        let offered = |id: &String| deployments().any(|it| it.nodes.iter().any(|node| node.token.as_ref() == Some(id)));
        self.releases.retain(|slot, _| known(slot));
        self.deploying.retain(|slot, _| known(slot));
        self.withdrawn.retain(offered);
        self.unoffered.retain(|id, _| offered(id));
        self.denied.retain(|id, _| offered(id));
        self.certified.retain(|id, _| offered(id));
    }

    /// What was read from this Secret. A job may name another one once it holds nothing at the site.
    pub fn account_in(&self, secret: &str) -> Option<&Account> {
        self.account.as_ref().filter(|account| account.secret == secret)
    }
}

/// What one process remembers of all jobs. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<HashMap<JobUid, Remembered>>>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobUid, Remembered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is remembered of a job.
    pub fn get(&self, job: &JobUid) -> Remembered {
        self.lock().get(job).cloned().unwrap_or_default()
    }

    /// Changes what is remembered of a job.
    pub fn update<T>(&self, job: &JobUid, change: impl FnOnce(&mut Remembered) -> T) -> T {
        change(self.lock().entry(job.clone()).or_default())
    }

    /// Promises the one certificate of a token to a public key. False if another key has it.
    pub fn certify(&self, job: &JobUid, token: &str, key: &[u8]) -> bool {
        self.update(job, |known| {
            known.certified.entry(token.to_owned()).or_insert_with(|| key.to_owned()).as_slice() == key
        })
    }

    /// Changes what is remembered of a job that was not forgotten meanwhile.
    pub fn update_known<T>(&self, job: &JobUid, change: impl FnOnce(&mut Remembered) -> T) -> Option<T> {
        self.lock().get_mut(job).map(change)
    }

    /// Forgets a job that is gone.
    pub fn forget(&self, job: &JobUid) {
        self.lock().remove(job);
    }
}
