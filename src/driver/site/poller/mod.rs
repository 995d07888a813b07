//! The poller: one for each account of a site reads for all its jobs and keeps what it saw.
//!
//! Controllers register what they are interested in and read the cache; they never wait for a site.
//! One round reads one list for all jobs, and slots in full only where something may have changed.
//! What to read is decided in `cache`, without IO.

mod cache;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::{Notify, broadcast};

use self::cache::Cache;
use super::{Site, SiteError, SlotFacts};
use crate::{
    clock::Clock,
    driver::Fact,
    names::{JobUid, SlotId},
};

/// Time between two rounds.
pub const ROUND_EVERY: Duration = Duration::from_secs(2);

/// What is known of a job's slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFacts {
    /// All slots of the job, those registered and those found by name. Never `Absent`: an empty list
    /// says that a look-up found none. A slot that the site does not know has an unknown phase.
    pub slots: Fact<Vec<SlotFacts>>,
    /// When they were read.
    pub read: Option<Timestamp>,
    /// When the site was last searched for slots by the job's name.
    pub looked_up: Option<Timestamp>,
    /// What rounds fail with, if the last one has failed.
    pub error: Option<SiteError>,
}

/// Reads of a site, by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Calls to the site, whatever came of them.
    pub calls: u64,
    /// Those that failed.
    pub failed: u64,
}

/// Reads one account of a site for all its jobs.
pub struct Poller {
    site: Arc<dyn Site>,
    clock: Clock,
    cache: Mutex<Cache>,
    wake: Notify,
    changes: broadcast::Sender<JobUid>,
    calls: AtomicU64,
    failed: AtomicU64,
}

impl Poller {
    /// A poller that has not read anything yet.
    pub fn new(site: Arc<dyn Site>, clock: Clock) -> Self {
        Self {
            site,
            clock,
            cache: Mutex::default(),
            wake: Notify::new(),
            changes: broadcast::channel(1024).0,
            calls: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// The site it reads, for writing to it.
    pub fn site(&self) -> &Arc<dyn Site> {
        &self.site
    }

    /// Registers a job and the slots it knows of; to be called at each visit of the job. `doubt` is
    /// when a request for slots was sent whose outcome is not known: finished slots are looked for
    /// since then, too.
    pub fn watch(&self, job: &JobUid, ids: &[SlotId], doubt: Option<Timestamp>) {
        if self.cache().watch(job, ids, doubt, self.clock.now()) {
            self.wake.notify_one();
        }
    }

    /// Forgets a job. Says whether it was watched.
    pub fn forget(&self, job: &JobUid) -> bool {
        self.cache().forget(job)
    }

    /// Whether any job is watched.
    pub fn watches_any(&self) -> bool {
        self.cache().watches_any()
    }

    /// Reads everything about a job at once: somebody knows that its slots have changed. Does nothing
    /// for a job that is not watched.
    pub fn nudge(&self, job: &JobUid) {
        if self.cache().nudge(job) {
            self.wake.notify_one();
        }
    }

    /// What is known of a job.
    pub fn facts(&self, job: &JobUid) -> JobFacts {
        self.cache().facts(job, self.clock.now())
    }

    /// Since when every read has been answered; absent after one that was not. A request for slots
    /// that follows a doubt waits until this is some time ago and a later look-up found nothing.
    pub fn reads_good_since(&self) -> Option<Timestamp> {
        self.cache().good_since()
    }

    /// The jobs whose facts change, as they change.
    pub fn subscribe(&self) -> broadcast::Receiver<JobUid> {
        self.changes.subscribe()
    }

    /// Reads so far.
    pub fn reads(&self) -> Reads {
        Reads { calls: self.calls.load(Ordering::Relaxed), failed: self.failed.load(Ordering::Relaxed) }
    }

    /// Reads for ever, every two seconds and when nudged.
    pub async fn run(&self) {
        loop {
            self.round().await;
            // a wake-up that comes early waits a little, so that many of them make one round
            if tokio::time::timeout(ROUND_EVERY, self.wake.notified()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// One round.
    pub async fn round(&self) {
        match self.read().await {
            Ok(changed) => {
                for job in changed {
                    // nobody listens: nobody needs to be told
                    let _ = self.changes.send(job);
                }
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                let why = error.to_string();
                if self.cache().failed(error) {
                    tracing::warn!(error = %why, "a site cannot be read");
                }
            }
        }
    }

    async fn read(&self) -> Result<Vec<JobUid>, SiteError> {
        let round = self.cache().plan(self.clock.now());
        if round.glance.is_empty() && round.look_up.is_none() {
            return Ok(Vec::new());
        }
        if let Some((prefix, since)) = &round.look_up {
            self.count();
            let found = self.site.look_up(prefix, *since).await?;
            self.cache().looked_up(&found, self.clock.now());
        }
        if !round.glance.is_empty() {
            self.count();
            let found = self.site.glance(&round.glance).await?;
            self.cache().glanced(&found);
        }
        let ids = self.cache().take_due();
        let found = if ids.is_empty() {
            std::collections::BTreeMap::new()
        } else {
            self.count();
            self.site.status(&ids).await?
        };
        Ok(self.cache().read(&ids, found, self.clock.now()))
    }

    fn count(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
