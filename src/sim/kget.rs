//! A small kget: fetches captured parts one after the other and publishes what is complete.

use std::collections::{BTreeMap, BTreeSet};

use super::World;
use crate::{
    api::{
        Snapshot,
        snapshot::{SnapshotPhase, Transfer, TransferState},
    },
    driver::{
        agent::{NodeAgent, UploadOrder},
        cluster::ClusterView as _,
        repository::{Repository, RepositoryError},
    },
    names::{Generation, JobUid, MemberIndex},
    store::{
        adoption::GuestRecord,
        manifest::{Manifest, MemberPart, VERSION},
    },
};

/// What kget knows.
#[derive(Default)]
pub(super) struct Kget {
    /// Parts whose bytes are safe, with the nonce of their cut.
    safe: BTreeMap<(JobUid, Generation), BTreeMap<MemberIndex, (MemberPart, String)>>,
    /// Whether it does nothing at all.
    pub(super) stopped: bool,
    /// All manifests it has published.
    pub(super) published: Vec<Manifest>,
}

impl Kget {
    /// Its process has ended, and another one begins without what it knew.
    pub(super) fn restart(&mut self) {
        self.safe.clear();
        self.stopped = false;
    }
}

impl World {
    /// One round of kget.
    pub(super) async fn transfer(&mut self) {
        if self.kget.stopped {
            return;
        }
        for snapshot in self.cluster.all_snapshots() {
            let status = snapshot.status.clone().unwrap_or_default();
            let state = status.transfer.as_ref().map_or(TransferState::Pending, |transfer| transfer.state);
            let settled = matches!(state, TransferState::Published | TransferState::Failed);
            if status.phase == SnapshotPhase::Captured && !settled {
                self.transfer_one(&snapshot).await;
            }
        }
    }

    async fn transfer_one(&mut self, snapshot: &Snapshot) {
        let status = snapshot.status.clone().unwrap_or_default();
        let (job, generation) = (JobUid(status.job_uid.clone()), status.generation.unwrap_or_default());
        let (incarnation, ticket) = (status.incarnation, status.incarnation.to_string());
        let order = UploadOrder { epoch: 1, generation, incarnation, ticket, limit: None, collector: None };
        let safe = self.kget.safe.entry((job.clone(), generation)).or_default();
        let mut lost = false;
        for member in &status.members {
            if safe.contains_key(&member.index) {
                continue;
            }
            let Some(agent) = self.agents.get(&job, member.index, status.incarnation) else { continue };
            let alive = self.bodies.iter().any(|body| body.alive() && std::sync::Arc::ptr_eq(&body.agent, &agent));
            lost |= !alive;
            if agent.upload(&order).await.is_err() {
                continue;
            }
            let state = agent.peek();
            let part = state.capture.filter(|part| part.generation == generation);
            let upload = state.upload.filter(|upload| upload.generation == generation && upload.done);
            if let (Some(part), Some(upload)) = (part, upload)
                && let Some(record) = part.record
            {
                safe.insert(member.index, (MemberPart { files: upload.files, ..record }, part.nonce));
            }
        }
        let safe = safe.clone();
        let mut transfer = Transfer {
            state: TransferState::Sending,
            sent: safe.len() as u64,
            total: status.members.len() as u64,
            safe: safe.keys().copied().collect(),
            ..Transfer::default()
        };
        if safe.len() == status.members.len() && !safe.is_empty() {
            match self.publish(snapshot, &job, &safe).await {
                Ok(()) => transfer.state = TransferState::Published,
                Err(RepositoryError::Unreachable(_)) => {}
                Err(error) => {
                    transfer.state = TransferState::Failed;
                    transfer.message = Some(error.to_string());
                }
            }
        } else if lost {
            transfer.state = TransferState::Failed;
            transfer.message = Some("a member's bytes are gone with its node".into());
        }
        if status.transfer.as_ref() != Some(&transfer) {
            let name = snapshot.metadata.name.clone().unwrap_or_default();
            self.cluster.set_transfer(super::NAMESPACE, &name, transfer);
        }
    }

    async fn publish(
        &mut self,
        snapshot: &Snapshot,
        job: &JobUid,
        safe: &BTreeMap<MemberIndex, (MemberPart, String)>,
    ) -> Result<(), RepositoryError> {
        let status = snapshot.status.clone().unwrap_or_default();
        let nonces: BTreeSet<&String> = safe.values().map(|(_, nonce)| nonce).collect();
        assert_eq!(nonces.len(), 1, "b2: parts of different cuts in one generation: {nonces:?}");
        let owner = self.cluster.job(super::NAMESPACE, &snapshot.spec.job).expect("a job that was captured is there");
        let manifest = Manifest {
            version: VERSION,
            job: job.clone(),
            job_name: snapshot.spec.job.clone(),
            namespace: super::NAMESPACE.into(),
            generation: status.generation.unwrap_or_default(),
            incarnation: status.incarnation,
            parent: status.parent,
            reason: snapshot.reason(),
            taken_at: status.taken_at.map_or(self.clock.now(), |time| time.0),
            nonce: nonces.into_iter().next().cloned().unwrap_or_default(),
            image: owner
                .status
                .as_ref()
                .and_then(|status| status.image.clone())
                .expect("a job that was captured has an image"),
            members: safe.values().map(|(part, _)| part.clone()).collect(),
            guests: Some(GuestRecord::of(&owner)),
            ancestor: None,
        };
        self.repository.publish(&manifest).await?;
        self.kget.published.push(manifest);
        Ok(())
    }
}
