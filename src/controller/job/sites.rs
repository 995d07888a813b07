//! The configured sites as the job controller sees them.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Sites, SlotsSeen};
use crate::{
    driver::site::{Credentials, Site, directory::SiteDirectory},
    names::{JobUid, SlotId},
};

impl Sites for SiteDirectory {
    fn account(&self, site: &str, credentials: &Credentials) -> Option<Arc<dyn Site>> {
        Some(self.poller(site, credentials)?.site().clone())
    }

    fn slots(
        &self,
        site: &str,
        credentials: &Credentials,
        job: &JobUid,
        ids: &[SlotId],
        doubt: Option<Timestamp>,
    ) -> Option<SlotsSeen> {
        let (facts, reads_good_since) = Self::slots(self, site, credentials, job, ids, doubt)?;
        Some(SlotsSeen { slots: facts.slots, looked_up: facts.looked_up, reads_good_since, error: facts.error })
    }

    fn nudge(&self, job: &JobUid) {
        Self::nudge(self, job);
    }

    fn forget(&self, job: &JobUid) {
        Self::forget(self, job);
    }
}
