//! From the nodes to the repository: sees generations completed, and lets old ones go.
//!
//! kget moves the bytes; the manifests in the repository are the truth, Snapshot objects a view.

use std::time::Duration;

use super::draft::Draft;
use crate::{
    api::{
        Reason,
        conditions::{ConditionType, clear},
        job_status::CaptureStatus,
        snapshot::{SnapshotBytes, SnapshotPhase, SnapshotReason, SnapshotStatus, TransferState},
    },
    controller::job::plan::{Effect, SnapshotSeen},
    driver::repository::GenerationSummary,
    names::Generation,
};

const AGAIN: Duration = Duration::from_secs(10);

impl Draft<'_> {
    /// Follows a captured generation on its way to the repository.
    pub(super) fn track_storing(&mut self, capture: &CaptureStatus) {
        let snapshot = self.seen.snapshots.iter().find(|snapshot| snapshot.name == capture.snapshot);
        let transfer = snapshot
            .and_then(|s| s.status.transfer.as_ref())
            .filter(|_| snapshot.is_some_and(|snapshot| snapshot.status.generation == Some(capture.generation)));
        let published = transfer.is_some_and(|transfer| transfer.state == TransferState::Published);
        if published || self.summary(capture.generation).is_some() {
            self.stored(capture);
            return;
        }
        if let Some(transfer) = transfer.filter(|transfer| transfer.state == TransferState::Failed) {
            let why = transfer.message.clone().unwrap_or_else(|| "its bytes could not be stored".into());
            self.void_capture(&why);
            return;
        }
        if capture.incarnation == self.status.incarnation && !self.living().is_empty() {
            self.show_captured(capture);
        }
    }

    /// The complete generation of this number, as the repository says.
    fn summary(&self, generation: Generation) -> Option<&GenerationSummary> {
        self.seen.content.known()?.generations.iter().find(|summary| summary.generation == generation)
    }

    fn stored(&mut self, capture: &CaptureStatus) {
        self.status.snapshots.last_stored = Some(capture.generation);
        self.status.snapshots.last_stored_at.clone_from(&capture.taken_at);
        self.status.snapshots.capture = None;
        clear(&mut self.status.conditions, ConditionType::SnapshotFailed);
        if let Some(origin) = &mut self.status.origin {
            origin.tries = 0;
        }
        self.status.work.useful = self.status.work.useful.max(capture.work);
        self.note(Reason::SnapshotStored, format!("generation {} is complete", capture.generation));
        self.because("a generation is complete");
        if let Some(snapshot) = self.seen.snapshots.iter().find(|snapshot| snapshot.name == capture.snapshot) {
            self.show_stored(snapshot);
        }
    }

    fn show_stored(&mut self, snapshot: &SnapshotSeen) {
        let summary = snapshot.status.generation.and_then(|generation| self.summary(generation));
        let bytes = snapshot.status.bytes.unwrap_or_default();
        let stored = summary.map_or(bytes.stored, |summary| summary.stored);
        let status = SnapshotStatus {
            phase: SnapshotPhase::Stored,
            bytes: Some(SnapshotBytes { unique: stored, stored, ..bytes }),
            ..snapshot.status.clone()
        };
        self.repeat(Effect::WriteSnapshot { name: snapshot.name.clone(), status: Box::new(status) }, AGAIN);
    }

    /// Puts right what Snapshot objects say, and deletes those of ours beyond the number to keep: never
    /// the newest complete one, a retained one, or one that a user made.
    pub(super) fn retain(&mut self) {
        let keep = usize::try_from(self.job.spec.snapshots.keep).unwrap_or(usize::MAX).max(2);
        let capturing = self.status.snapshots.capture.as_ref().map(|capture| capture.generation);
        let last_stored = self.status.snapshots.last_stored;
        let mut stored = Vec::new();
        for snapshot in &self.seen.snapshots {
            let Some(generation) = snapshot.status.generation else { continue };
            if snapshot.deleting {
                continue;
            }
            let ours = snapshot.reason != SnapshotReason::User && !snapshot.retain;
            match snapshot.status.phase {
                SnapshotPhase::Stored => stored.push((generation, ours, snapshot)),
                SnapshotPhase::Captured if Some(generation) != capturing => {
                    let transfer = snapshot.status.transfer.as_ref().map(|transfer| transfer.state);
                    if transfer == Some(TransferState::Published) || self.summary(generation).is_some() {
                        self.show_stored(snapshot);
                    } else if last_stored.is_some_and(|last| last > generation)
                        || snapshot.status.incarnation < self.status.incarnation
                    {
                        let status = SnapshotStatus { phase: SnapshotPhase::Failed, ..snapshot.status.clone() };
                        self.repeat(
                            Effect::WriteSnapshot { name: snapshot.name.clone(), status: Box::new(status) },
                            AGAIN,
                        );
                    }
                }
                SnapshotPhase::Failed if ours && last_stored.is_some_and(|last| last > generation) => {
                    self.drop_snapshot(snapshot);
                }
                SnapshotPhase::Captured | SnapshotPhase::Failed | SnapshotPhase::Pending | SnapshotPhase::Capturing => {
                }
            }
        }
        stored.sort_by_key(|(generation, _, _)| std::cmp::Reverse(*generation));
        let in_use = self.status.origin.as_ref().and_then(|origin| origin.generation);
        let old: Vec<&SnapshotSeen> = stored
            .into_iter()
            .skip(keep)
            .filter(|(generation, ours, _)| {
                *ours
                    && last_stored.is_some_and(|last| *generation < last)
                    && Some(*generation) != in_use.filter(|_| last_stored == in_use)
            })
            .map(|(_, _, snapshot)| snapshot)
            .collect();
        for snapshot in old {
            self.drop_snapshot(snapshot);
        }
    }

    pub(super) fn drop_snapshot(&mut self, snapshot: &SnapshotSeen) {
        let (name, uid) = (snapshot.name.clone(), snapshot.uid.clone());
        self.repeat(Effect::DeleteSnapshot { name, uid }, Duration::from_secs(30));
    }
}
