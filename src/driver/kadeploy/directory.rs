//! The deployment servers of all configured sites: a client for each account, made when first asked for.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use super::{Deployers, Kadeploy, KadeployError, connect};
use crate::{config::SiteConfig, driver::site::Credentials};

/// Clients by site and account.
pub struct KadeployDirectory {
    sites: BTreeMap<String, SiteConfig>,
    clients: Mutex<HashMap<(String, Credentials), Arc<dyn Kadeploy>>>,
}

impl KadeployDirectory {
    /// The sites of the configuration. Nothing is asked of any server yet.
    pub fn new(sites: BTreeMap<String, SiteConfig>) -> Self {
        Self { sites, clients: Mutex::default() }
    }
}

impl Deployers for KadeployDirectory {
    fn account(&self, site: &str, credentials: &Credentials) -> Result<Arc<dyn Kadeploy>, KadeployError> {
        let missing = || KadeployError::Configuration(format!("site {site} is not configured"));
        let config = self.sites.get(site).ok_or_else(missing)?;
        let key = (site.to_owned(), credentials.clone());
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = connect(config, credentials)?;
        clients.insert(key, client.clone());
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
        let directory = KadeployDirectory::new(crate::yaml::read(text).unwrap());
        let account = |site, user: &str| directory.account(site, &Credentials::Header { user: user.into() });
        let (first, again) = (account("rennes", "alice").ok().unwrap(), account("rennes", "alice").ok().unwrap());
        assert!(Arc::ptr_eq(&first, &again));
        assert!(!Arc::ptr_eq(&first, &account("rennes", "bob").ok().unwrap()));
        for site in ["bare", "nowhere"] {
            assert!(matches!(account(site, "alice"), Err(KadeployError::Configuration(_))), "{site}");
        }
    }
}
