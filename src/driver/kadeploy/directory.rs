//! The deployment servers of all configured sites: a client for each account, made when first asked for.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use super::{Deployers, Kadeploy, KadeployError, connect};
use crate::{clock::Clock, config::SiteConfig, driver::site::Credentials};

/// A client that nobody has asked for in so long is forgotten, with the account that it holds.
const UNUSED: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

/// When somebody last asked for it, and the client.
type Used = (jiff::Timestamp, Arc<dyn Kadeploy>);

/// Clients by site and account.
pub struct KadeployDirectory {
    sites: BTreeMap<String, SiteConfig>,
    clock: Clock,
    clients: Mutex<HashMap<(String, Credentials), Used>>,
}

impl KadeployDirectory {
    /// The sites of the configuration. Nothing is asked of any server yet.
    pub fn new(sites: BTreeMap<String, SiteConfig>, clock: Clock) -> Self {
        Self { sites, clock, clients: Mutex::default() }
    }
}

impl Deployers for KadeployDirectory {
    fn account(&self, site: &str, credentials: &Credentials) -> Result<Arc<dyn Kadeploy>, KadeployError> {
        let missing = || KadeployError::Configuration(format!("site {site} is not configured"));
        let config = self.sites.get(site).ok_or_else(missing)?;
        let key = (site.to_owned(), credentials.clone());
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        clients.retain(|_, (used, _)| now.duration_since(*used) < UNUSED);
        if let Some((used, client)) = clients.get_mut(&key) {
            *used = now;
            return Ok(client.clone());
        }
        let client = connect(config, credentials)?;
        clients.insert(key, (now, client.clone()));
        Ok(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_one_client_and_a_site_without_a_server_none() {
        crate::tls::install_provider();
        let text = "bare: {kind: oar2, url: 'http://x', uids: {}}\n\
            rennes: {kind: oar2, url: 'http://x', uids: {}, kadeploy: {url: 'http://k:25300'}}\n";
        let clock = Clock::manual(jiff::Timestamp::UNIX_EPOCH);
        let directory = KadeployDirectory::new(crate::yaml::read(text).unwrap(), clock.clone());
        let account = |site, user: &str| directory.account(site, &Credentials::Header { user: user.into() });
        let (first, again) = (account("rennes", "alice").ok().unwrap(), account("rennes", "alice").ok().unwrap());
        assert!(Arc::ptr_eq(&first, &again));
        assert!(!Arc::ptr_eq(&first, &account("rennes", "bob").ok().unwrap()));
        clock.advance(UNUSED);
        assert!(!Arc::ptr_eq(&first, &account("rennes", "alice").ok().unwrap()), "it was not forgotten");
        for site in ["bare", "nowhere"] {
            assert!(matches!(account(site, "alice"), Err(KadeployError::Configuration(_))), "{site}");
        }
    }
}
