//! From the nodes to the repository: sees generations completed, and lets old ones go.
//!
//! kget moves the bytes; the manifests in the repository are the truth. The snapshot controller says
//! in the Snapshot object what has become of a captured generation; here it is taken up.

use std::time::Duration;

use super::{draft::Draft, place::restorable};
use crate::{
    api::{
        LAST_STORED, Reason,
        conditions::{ConditionType, clear, get},
        job_snapshots::shown,
        job_status::CaptureStatus,
        snapshot::SnapshotPhase,
    },
    controller::job::plan::{Effect, PodSeen, SnapshotSeen, beyond},
};

/// What is shown to others is written again if it is not seen after this time.
const SHOWN_AGAIN: Duration = Duration::from_secs(60);

impl Draft<'_> {
    /// Follows a captured generation on its way to the repository.
    pub(super) fn track_storing(&mut self, capture: &CaptureStatus) {
        let snapshot = self.snapshot_of(capture);
        let phase = snapshot.map(|snapshot| snapshot.status.phase);
        let complete = self.seen.content.known().is_some_and(|content| {
            content
                .generations
                .iter()
                .any(|found| found.generation == capture.generation && found.incarnation == capture.incarnation)
        });
        if complete || phase == Some(SnapshotPhase::Stored) {
            self.stored(capture);
        } else if phase == Some(SnapshotPhase::Failed) {
            let message = snapshot.and_then(|s| s.status.transfer.as_ref()).and_then(|t| t.message.clone());
            self.void_capture(&message.unwrap_or_else(|| "its bytes could not be stored".into()));
        } else if capture.incarnation == self.status.incarnation && !self.living_members().is_empty() {
            self.show_captured(capture);
        }
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
        self.plan_again();
        self.because("a generation is complete");
    }

    /// Deletes Snapshot objects of ours beyond the number to keep: never the newest complete one, a
    /// retained one, or one that a user made. Their own finalizers remove the generations.
    pub(super) fn retain(&mut self) {
        let Some(last) = self.status.snapshots.last_stored else { return };
        let void = self.seen.snapshots.iter().filter(|snapshot| {
            snapshot.status.phase == SnapshotPhase::Failed && !snapshot.deleting && snapshot.is_ours()
        });
        // damaged ones do not count: they go once enough newer ones are whole
        let old = match self.seen.content.known() {
            Some(content) => beyond(self.job, &self.seen.snapshots, |one| content.damage(one).is_none()),
            None => Vec::new(),
        };
        let doomed: Vec<SnapshotSeen> = (old.into_iter().chain(void))
            .filter(|snapshot| snapshot.status.generation.is_some_and(|generation| generation < last))
            .cloned()
            .collect();
        for snapshot in &doomed {
            self.drop_snapshot(snapshot);
        }
    }

    /// Shows other schedulers what is stored, on the job and on its agents' pods: once for each change.
    pub(super) fn show_stored(&mut self) {
        if self.job.metadata.deletion_timestamp.is_some() {
            return;
        }
        let (value, before) = (self.shown(), self.shown_before());
        let mut behind = Vec::new();
        if before != value.as_ref() {
            behind.push(None);
        }
        let present = |pod: &PodSeen| {
            !pod.launched && !pod.deleting && pod.ended.is_none() && pod.incarnation == self.status.incarnation
        };
        let pods = self.seen.pods.iter().filter(|(_, pod)| present(pod) && pod.shows != value);
        behind.extend(pods.map(|(name, pod)| Some((name.clone(), pod.uid.clone()))));
        for pod in behind {
            self.repeat(Effect::ShowStored { pod, value: value.clone() }, SHOWN_AGAIN);
        }
    }

    fn shown_before(&self) -> Option<&String> {
        self.job.metadata.annotations.as_ref()?.get(LAST_STORED)
    }

    /// The newest generation that can be restored. What the repository has not been asked for again stays as it was
    /// shown, once something was damaged there.
    fn shown(&self) -> Option<String> {
        let snapshots = &self.status.snapshots;
        let last = snapshots.last_stored?;
        let Some(content) = self.seen.content.known() else {
            let damaged = get(&self.status.conditions, ConditionType::SnapshotDamaged).is_some();
            return if damaged { self.shown_before().cloned() } else { snapshots.shown() };
        };
        // one that is complete since then is not in it yet
        if content.highest < last || content.generations.iter().any(|summary| summary.generation == last) {
            return snapshots.shown();
        }
        let origin = self.status.origin.clone().unwrap_or_default();
        let whole = restorable(content, &origin, &origin.bad, self.job.spec.members)?;
        Some(shown(whole.generation, whole.taken_at))
    }

    pub(super) fn drop_snapshot(&mut self, snapshot: &SnapshotSeen) {
        let (name, uid) = (snapshot.name.clone(), snapshot.uid.clone());
        self.repeat(Effect::DeleteSnapshot { name, uid }, Duration::from_secs(30));
    }
}
