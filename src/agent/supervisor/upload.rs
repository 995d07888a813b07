//! Sends a captured generation to the repository. A repository that does not answer or has no room is
//! tried until it takes the bytes, refuses them, the ticket expires, or a later generation is to be sent instead:
//! nobody else has them. How fast it goes is kget's to say at any time, and whether it stands still for others.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Supervisor;
use crate::{
    backoff::Backoff,
    driver::{
        agent::{AgentAddress, AgentError, Collector, UploadOrder, UploadState},
        repository::{ByteStore, RepositoryError, Sending, pace::Pace},
    },
    names::Generation,
    store::{
        manifest::{FileKind, PartFile},
        ticket,
    },
};

pub(super) const KINDS: [FileKind; 3] = [FileKind::Memory, FileKind::Disk, FileKind::Output];

/// Between two attempts.
pub(super) const AGAIN: Backoff =
    Backoff { first: std::time::Duration::from_secs(1), longest: std::time::Duration::from_secs(20) };
/// A file of the node's own that cannot be read so often never will be.
pub(super) const LOCAL_TRIES: u32 = 4;

/// The guest and its next capture come before what is kept of the last one.
const NICE: i32 = 10;

/// The upload that was ordered last.
pub(super) struct Upload {
    pub(super) state: UploadState,
    /// Bytes that will have left the agent once it is done, as far as that is known.
    goal: Option<u64>,
    /// Ends it: another is to be sent.
    replaced: CancellationToken,
    pace: Arc<Pace>,
}

impl Upload {
    /// As others see it.
    pub(super) fn shown(&self) -> UploadState {
        let moved = self.pace.moved();
        let left = self.goal.map(|goal| goal.saturating_sub(moved));
        UploadState { limit: self.pace.limit(), moved: Some(moved), left, ..self.state.clone() }
    }

    fn is_over(&self) -> bool {
        self.state.done || self.state.error.is_some()
    }
}

impl Supervisor {
    /// The generation that is being sent now.
    pub(super) fn uploading(&self) -> Option<Generation> {
        self.view.read(|facts| facts.upload.as_ref().filter(|now| !now.is_over()).map(|now| now.state.generation))
    }

    /// Begins to send a generation; a repetition goes on with what is being done or is done.
    pub(super) async fn start_upload(self: &Arc<Self>, order: &UploadOrder) -> Result<(), AgentError> {
        self.view.quietly(|facts| facts.barrier.admit_kget(order.epoch, order.incarnation))?;
        // not asked of the VM, which a capture or merge may hold
        let known = self.view.read(|facts| facts.captured.iter().any(|part| part.generation == order.generation));
        if !known {
            return Err(AgentError::Refused(format!("generation {} is not captured here", order.generation)));
        }
        let mut total = 0;
        for kind in KINDS {
            let path = self.paths.part(order.generation, kind);
            let data = tokio::fs::metadata(&path).await.map_err(|error| AgentError::Failed(error.to_string()))?;
            total += data.len();
        }
        let store = match &order.collector {
            None => self.store.clone(),
            Some(Collector { member, endpoint }) => {
                let (job, incarnation) = (self.config.job.clone(), self.config.incarnation);
                let address = AgentAddress { endpoint: *endpoint, job, member: *member, incarnation };
                self.store.through(&address).map_err(|error| AgentError::Refused(error.to_string()))?
            }
        };
        let collector = order.collector.as_ref().map(|collector| collector.member);
        let fresh = self.view.change(|facts| {
            match &facts.upload {
                // what the repository has needs no collector any more
                Some(now)
                    if now.state.generation == order.generation
                        && now.state.error.is_none()
                        && (now.state.collector == collector || (now.state.done && now.state.collector.is_none())) =>
                {
                    self.pace.set(order.limit);
                    return Ok(None);
                }
                Some(now) if !now.is_over() && now.state.generation > order.generation => {
                    return Err(AgentError::Refused(format!("generation {} is being sent", now.state.generation)));
                }
                Some(now) => now.replaced.cancel(),
                None => {}
            }
            let state = UploadState { generation: order.generation, total, collector, ..UploadState::default() };
            let replaced = CancellationToken::new();
            self.pace.set(order.limit);
            facts.upload = Some(Upload { state, goal: None, replaced: replaced.clone(), pace: self.pace.clone() });
            Ok(Some(replaced))
        })?;
        if let Some(replaced) = fresh {
            let (own, order) = (self.clone(), order.clone());
            tokio::spawn(async move {
                let stop = own.stop.clone();
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = replaced.cancelled() => {}
                    () = own.upload(&order, &*store) => {}
                }
            });
        }
        Ok(())
    }

    /// What is said of the upload of this generation, if it was not replaced.
    fn note(&self, generation: Generation, note: impl FnOnce(&mut UploadState)) {
        self.view.change(|facts| {
            if let Some(now) = facts.upload.as_mut().filter(|now| now.state.generation == generation) {
                note(&mut now.state);
            }
        });
    }

    async fn upload(self: &Arc<Self>, order: &UploadOrder, store: &dyn ByteStore) {
        self.look_ahead(order.generation).await;
        let mut files: Vec<PartFile> = Vec::new();
        for kind in KINDS {
            match self.send(order, store, kind, files.iter().map(|file| file.size).sum()).await {
                Ok(file) => files.push(file),
                Err(error) => {
                    tracing::warn!(%error, generation = order.generation, "a generation cannot be sent");
                    // its room is wanted
                    if let Some(kept) = &self.kept {
                        kept.let_go();
                    }
                    return self.note(order.generation, |upload| {
                        upload.waiting = None;
                        upload.error = Some(error.to_string());
                    });
                }
            }
        }
        self.note(order.generation, |upload| {
            upload.sent = upload.total;
            upload.files = files;
            upload.done = true;
        });
        self.settle(order.generation);
    }

    /// How much is to be sent, by the memory: of the other files as much is taken to have changed.
    async fn look_ahead(&self, generation: Generation) {
        let memory = self.paths.part(generation, FileKind::Memory);
        // what is wrong is found out when it is sent
        let Ok(Some(changed)) = self.store.ready(FileKind::Memory, &memory).await else { return };
        let Ok(size) = tokio::fs::metadata(&memory).await.map(|data| data.len()) else { return };
        self.view.change(|facts| {
            if let Some(now) = facts.upload.as_mut().filter(|now| now.state.generation == generation) {
                let share = changed as f64 / size.max(1) as f64;
                now.goal = Some(now.pace.moved() + (now.state.total as f64 * share) as u64);
            }
        });
    }

    /// Keeps what was sent for the next agent here: it is not long before it is complete, and nothing of the
    /// transfer waits for it.
    fn settle(self: &Arc<Self>, generation: Generation) {
        let Some(kept) = self.kept.clone() else { return };
        let own = self.clone();
        std::thread::spawn(move || {
            // of this thread only; one that may not be nice does it all the same
            let _ = rustix::process::nice(NICE);
            match kept.settle(generation, &|| own.stop.is_cancelled()) {
                Ok(true) => own.view.change(|facts| facts.kept = Some(generation)),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, generation, "the node does not keep what was captured"),
            }
        });
    }

    /// Sends one file, however often that takes.
    async fn send(
        &self,
        order: &UploadOrder,
        store: &dyn ByteStore,
        kind: FileKind,
        before: u64,
    ) -> Result<PartFile, RepositoryError> {
        let generation = order.generation;
        let progress = |how_far: Sending| {
            self.view.quietly(|facts| {
                if let Some(now) = facts.upload.as_mut().filter(|now| now.state.generation == generation) {
                    now.state.waiting = None;
                    match how_far {
                        Sending::Bytes(sent) => (now.state.sent, now.state.reading_back) = (before + sent, None),
                        Sending::ReadingBack(packs) => now.state.reading_back = Some(packs),
                    }
                }
            });
        };
        let until = ticket::valid_until(&order.ticket);
        let path = self.paths.part(generation, kind);
        let (mut failures, mut local) = (0, 0);
        loop {
            let (job, member) = (&self.config.job, self.config.member);
            if self.pace.limit() == Some(0) {
                self.note(generation, |upload| (upload.waiting, upload.reading_back) = (None, None));
                // it is the sooner on its way later; what is wrong is found out then, too
                let _ = self.store.ready(kind, &path).await;
            }
            self.pace.goes().await;
            let sending = store.put_part(&order.ticket, job, generation, member, kind, &path, &progress);
            let sent = tokio::select! {
                biased;
                // nothing half sent waits at the repository: what is whole there is not sent again
                () = self.pace.stopped() => continue,
                sent = sending => sent,
            };
            let error = match sent {
                Ok(file) => {
                    self.note(generation, |upload| (upload.waiting, upload.reading_back) = (None, None));
                    return Ok(file);
                }
                // then it goes to the repository: kget says so
                Err(error) if order.collector.is_some() => return Err(error),
                Err(error @ (RepositoryError::Unreachable(_) | RepositoryError::Full(_))) => error,
                Err(error @ RepositoryError::Local { .. }) if local + 1 < LOCAL_TRIES => {
                    local += 1;
                    error
                }
                Err(error) => return Err(error),
            };
            failures += 1;
            let wait = AGAIN.wait(failures, &mut rand::rng());
            if until.is_some_and(|until| self.view.now() + wait >= until) {
                return Err(error);
            }
            tracing::warn!(%error, generation, failures, "an upload is tried again");
            let said = match until {
                Some(until) => format!("{error}; tried again until {}", until.strftime("%Y-%m-%dT%H:%MZ")),
                None => error.to_string(),
            };
            self.note(generation, |upload| (upload.waiting, upload.reading_back) = (Some(said), None));
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
#[path = "upload_tests.rs"]
mod tests;
