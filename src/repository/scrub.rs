//! Reads all packs now and again, a few at a time: what has rotted is known before it is needed, and a publication
//! finds that its old packs were read lately.

use std::{path::Path, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::{
    durable::disk_error,
    readback::TRUSTED,
    store::{Outcome, Store},
};
use crate::{
    clock::Clock,
    driver::repository::RepositoryError,
    names::JobUid,
    store::{layout::JOBS, manifest::is_uid, pack::PackRef},
};

/// How often.
const EVERY: Duration = Duration::from_secs(3600);
/// What was read within this time is left alone.
pub(super) const FRESH: SignedDuration = SignedDuration::from_hours(12);
/// Of what is older, as many as make all of a job's packs in so many turns.
const TURNS: u32 = 8;
/// So many packs are read in one go.
const AT_ONCE: usize = 8;
/// Others have the disk for so many times as long.
const PAUSE: u32 = 3;
// every pack is read again before a publication would have to
const _: () = assert!(TRUSTED.as_secs() > FRESH.as_secs() + (TURNS as i64) * (EVERY.as_secs() as i64));

/// Reads on until it is told to stop.
pub(super) async fn keep_reading(store: Arc<Store>, clock: Clock, stop: CancellationToken) {
    let start = tokio::time::Instant::now() + EVERY / 6;
    let mut turns = tokio::time::interval_at(start, EVERY);
    while stop.run_until_cancelled(turns.tick()).await.is_some() {
        let names = match store.root.list(Path::new(JOBS)) {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!(error = %disk_error(&error), "failed to list the jobs");
                continue;
            }
        };
        for job in names.into_iter().map(JobUid).filter(is_uid) {
            if stop.run_until_cancelled(read_job(&store, &clock, &job)).await.is_none() {
                return;
            }
        }
    }
}

async fn read_job(store: &Arc<Store>, clock: &Clock, job: &JobUid) {
    let (own, uid, now) = (store.clone(), job.clone(), clock.now());
    let due = match tokio::task::spawn_blocking(move || own.due(&uid, now)).await {
        Ok(Ok(due)) => due,
        Ok(Err(error)) => return tracing::warn!(%job, %error, "failed to look which packs are to be read"),
        Err(error) => return tracing::warn!(%job, %error, "looking which packs are to be read has failed"),
    };
    for some in due.chunks(AT_ONCE) {
        let (own, uid, some, now) = (store.clone(), job.clone(), some.to_vec(), clock.now());
        let begun = tokio::time::Instant::now();
        match tokio::task::spawn_blocking(move || own.read_packs_back(&uid, &some, FRESH, now, None)).await {
            Ok(Err(RepositoryError::Damaged(what))) => tracing::error!(%job, what, "a pack has rotted"),
            // it was swept meanwhile
            Ok(Ok(_) | Err(RepositoryError::NotFound(_))) => {}
            Ok(Err(error)) => return tracing::warn!(%job, %error, "failed to read packs again"),
            Err(error) => return tracing::warn!(%job, %error, "reading packs again has failed"),
        }
        tokio::time::sleep(begun.elapsed() * PAUSE).await;
    }
}

impl Store {
    /// The packs of a job that are to be read in this turn, the one read longest ago first.
    pub(super) fn due(&self, job: &JobUid, now: Timestamp) -> Outcome<Vec<PackRef>> {
        if !self.has_packs(job)? {
            return Ok(Vec::new());
        }
        let since = now.checked_sub(FRESH * self.root.trusted_times()).unwrap_or(Timestamp::MIN);
        let (all, mut old) = self.with_index(job, |held| held.ask(|index| index.unread_since(since)))?;
        old.truncate(all.div_ceil(TURNS as usize));
        Ok(old)
    }
}
