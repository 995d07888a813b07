//! Sends a captured generation to the repository.

use std::sync::Arc;

use super::Supervisor;
use crate::{
    driver::{
        agent::{AgentError, UploadOrder, UploadState},
        repository::RepositoryError,
    },
    names::Generation,
    store::manifest::{FileKind, PartFile},
};

const KINDS: [FileKind; 3] = [FileKind::Memory, FileKind::Disk, FileKind::Output];

impl Supervisor {
    /// The generation that is being sent now.
    pub(super) fn uploading(&self) -> Option<Generation> {
        let running = |upload: &&UploadState| !upload.done && upload.error.is_none();
        self.view.read(|facts| facts.upload.as_ref().filter(running).map(|upload| upload.generation))
    }

    /// Begins to send a generation; a repetition goes on with what is being done or is done.
    pub(super) async fn start_upload(self: &Arc<Self>, order: &UploadOrder) -> Result<(), AgentError> {
        if order.incarnation != self.config.incarnation {
            return Err(AgentError::Refused(format!("this is incarnation {}", self.config.incarnation)));
        }
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
        let fresh = self.view.change(|facts| {
            match &facts.upload {
                Some(now) if now.generation == order.generation && now.error.is_none() => return Ok(false),
                Some(now) if !now.done && now.error.is_none() => {
                    return Err(AgentError::Refused(format!("generation {} is being sent", now.generation)));
                }
                _ => {}
            }
            facts.upload = Some(UploadState { generation: order.generation, total, ..UploadState::default() });
            Ok(true)
        })?;
        if fresh {
            let (own, order) = (self.clone(), order.clone());
            tokio::spawn(async move {
                let stop = own.stop.clone();
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = own.upload(&order) => {}
                }
            });
        }
        Ok(())
    }

    async fn upload(&self, order: &UploadOrder) {
        let result = self.send(order).await;
        self.view.change(|facts| {
            let Some(upload) = &mut facts.upload else { return };
            match result {
                Ok(files) => {
                    upload.sent = upload.total;
                    upload.files = files;
                    upload.done = true;
                }
                Err(error) => upload.error = Some(error.to_string()),
            }
        });
    }

    async fn send(&self, order: &UploadOrder) -> Result<Vec<PartFile>, RepositoryError> {
        let mut files: Vec<PartFile> = Vec::new();
        for kind in KINDS {
            let before: u64 = files.iter().map(|file| file.size).sum();
            let progress = |sent: u64| {
                self.view.quietly(|facts| {
                    if let Some(upload) = &mut facts.upload {
                        upload.sent = before + sent;
                    }
                });
            };
            let path = self.paths.part(order.generation, kind);
            let (ticket, job, member) = (&order.ticket, &self.config.job, self.config.member);
            let generation = order.generation;
            files.push(self.store.put_part(ticket, job, generation, member, kind, &path, &progress).await?);
        }
        Ok(files)
    }
}
