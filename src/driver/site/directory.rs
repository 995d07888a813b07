//! All accounts at all configured sites: a client and a running poller for each, made when first
//! asked for and ended when no job uses it any more.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::{sync::broadcast::error::RecvError, task::JoinHandle};
use tracing::Instrument as _;

use super::{
    Capabilities, Credentials, Glance, Site, SiteError, SlotFacts, SlotRequest,
    poller::{JobFacts, Poller, Reads},
};
use crate::{
    clock::Clock,
    config::{SiteConfig, SiteKind},
    driver::oar::OarRest,
    names::{JobUid, SlotId},
};

type Key = (String, Credentials);

struct Account {
    poller: Arc<Poller>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Account {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Sites by name and account.
pub struct SiteDirectory {
    sites: BTreeMap<String, SiteConfig>,
    clock: Clock,
    wake: Arc<dyn Fn(&JobUid) + Send + Sync>,
    accounts: Mutex<HashMap<Key, Account>>,
}

impl SiteDirectory {
    /// The sites of the configuration. `wake` is called with every job whose slots' facts change.
    pub fn new(sites: BTreeMap<String, SiteConfig>, clock: Clock, wake: Arc<dyn Fn(&JobUid) + Send + Sync>) -> Self {
        Self { sites, clock, wake, accounts: Mutex::default() }
    }

    /// The poller of an account; none if the site is not configured. Starts tasks: needs a runtime.
    pub fn poller(&self, site: &str, credentials: &Credentials) -> Option<Arc<Poller>> {
        let config = self.sites.get(site)?;
        let mut accounts = self.accounts();
        let key = (site.to_owned(), credentials.clone());
        let account = accounts.entry(key).or_insert_with(|| self.start(site, config, credentials.clone()));
        Some(account.poller.clone())
    }

    /// What is known of a job's slots; registers it with this account and with no other.
    pub fn slots(
        &self,
        site: &str,
        credentials: &Credentials,
        job: &JobUid,
        ids: &[SlotId],
        doubt: Option<Timestamp>,
    ) -> Option<(JobFacts, Option<Timestamp>)> {
        let poller = self.poller(site, credentials)?;
        self.forget_but(job, Some(&poller));
        poller.watch(job, ids, doubt);
        Some((poller.facts(job), poller.reads_good_since()))
    }

    /// Somebody knows that a job's slots have changed.
    pub fn nudge(&self, job: &JobUid) {
        for account in self.accounts().values() {
            account.poller.nudge(job);
        }
    }

    /// Forgets a job, and accounts that no job uses.
    pub fn forget(&self, job: &JobUid) {
        self.forget_but(job, None);
    }

    /// Reads so far of the accounts in use, by site.
    pub fn reads(&self) -> BTreeMap<String, Reads> {
        let mut all: BTreeMap<String, Reads> = BTreeMap::new();
        for ((site, _), account) in self.accounts().iter() {
            let (sum, one) = (all.entry(site.clone()).or_default(), account.poller.reads());
            sum.calls += one.calls;
            sum.failed += one.failed;
        }
        all
    }

    fn forget_but(&self, job: &JobUid, kept: Option<&Arc<Poller>>) {
        self.accounts().retain(|_, account| {
            if kept.is_some_and(|k| Arc::ptr_eq(k, &account.poller)) {
                return true;
            }
            !account.poller.forget(job) || account.poller.watches_any()
        });
    }

    fn start(&self, name: &str, config: &SiteConfig, credentials: Credentials) -> Account {
        let SiteKind::Oar2 = config.kind;
        let site: Arc<dyn Site> = match OarRest::new(config, credentials, self.clock.clone()) {
            Ok(site) => Arc::new(site),
            Err(error) => Arc::new(Unusable(error)),
        };
        let poller = Arc::new(Poller::new(site, self.clock.clone()));
        let (running, wake, mut changes) = (poller.clone(), self.wake.clone(), poller.subscribe());
        let span = tracing::error_span!("account", site = name);
        let run = tokio::spawn(async move { running.run().await }.instrument(span));
        let tell = tokio::spawn(async move {
            loop {
                match changes.recv().await {
                    Ok(job) => wake(&job),
                    // too many at once: those that were missed are visited at their next wake-up
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        });
        Account { poller, tasks: [run, tell] }
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<Key, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A site whose client could not be made: every call says why.
struct Unusable(SiteError);

#[async_trait]
impl Site for Unusable {
    fn capabilities(&self) -> Capabilities {
        Capabilities { notice: false, per_member: false }
    }
    async fn submit(&self, _: &SlotRequest) -> Result<Vec<SlotId>, SiteError> {
        Err(self.0.clone())
    }
    async fn look_up(&self, _: &str, _: Option<Timestamp>) -> Result<BTreeMap<SlotId, Glance>, SiteError> {
        Err(self.0.clone())
    }
    async fn glance(&self, _: &[SlotId]) -> Result<BTreeMap<SlotId, Glance>, SiteError> {
        Err(self.0.clone())
    }
    async fn status(&self, _: &[SlotId]) -> Result<BTreeMap<SlotId, SlotFacts>, SiteError> {
        Err(self.0.clone())
    }
    async fn release(&self, _: &SlotId) -> Result<(), SiteError> {
        Err(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> SiteDirectory {
        crate::tls::install_provider();
        let config = "kind: oar2\nurl: http://127.0.0.1:9/oarapi\nuids: {}\n";
        let sites = BTreeMap::from([("rennes".to_owned(), serde_yaml::from_str(config).unwrap())]);
        SiteDirectory::new(sites, Clock::system(), Arc::new(|_| {}))
    }

    fn header(user: &str) -> Credentials {
        Credentials::Header { user: user.into() }
    }

    #[tokio::test]
    async fn one_poller_for_each_account() {
        let all = directory();
        assert!(all.poller("nowhere", &header("alice")).is_none());
        let alice = all.poller("rennes", &header("alice")).unwrap();
        assert!(Arc::ptr_eq(&alice, &all.poller("rennes", &header("alice")).unwrap()));
        assert!(!Arc::ptr_eq(&alice, &all.poller("rennes", &header("bob")).unwrap()));
    }

    #[tokio::test]
    async fn an_account_ends_with_its_last_job() {
        let all = directory();
        let (a, b) = ("aaaaaaaa".into(), "bbbbbbbb".into());
        all.slots("rennes", &header("alice"), &a, &[], None).unwrap();
        all.slots("rennes", &header("alice"), &b, &[], None).unwrap();
        // the job's Secret has changed: it moves to another account
        all.slots("rennes", &header("bob"), &a, &[], None).unwrap();
        assert_eq!(all.accounts().len(), 2);
        all.forget(&b);
        assert_eq!(all.accounts().len(), 1);
        all.forget(&a);
        assert_eq!(all.accounts().len(), 0);
    }

    #[tokio::test]
    async fn a_certificate_that_cannot_be_read_is_said_at_each_call() {
        let all = directory();
        let broken = Credentials::Certificate { certificate: "x".into(), key: "y".into() };
        let poller = all.poller("rennes", &broken).unwrap();
        assert!(matches!(poller.site().release(&"1".into()).await, Err(SiteError::Credentials(_))));
    }
}
