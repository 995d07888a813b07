//! Turns what the watches bring into metrics: jobs by phase, and the growth of what statuses count.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::runtime::reflector::Store;

use crate::{
    api::{
        BestEffortJob, JobPhase, Snapshot,
        job_status::{Kills, Work},
    },
    config::QuotaConfig,
    driver::{
        cluster::count::RequestCounts,
        site::{directory::SiteDirectory, poller::Reads},
    },
    metrics::{Call, Metrics},
};

/// Time between two counts of jobs and requests.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);

/// What was counted so far.
pub(super) struct Figures {
    metrics: Metrics,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    jobs: HashMap<String, Counted>,
    restoring: HashMap<String, Instant>,
    reads: HashMap<String, Reads>,
    snapshots: HashMap<String, Measured>,
    requests: std::collections::BTreeMap<String, u64>,
}

/// Which figures of a job are counted already.
#[derive(Clone, Copy, Default)]
struct Counted {
    kills: Kills,
    work: Work,
    period: Option<kube::core::Duration>,
}

/// Which figures of a snapshot are counted already.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Measured {
    pause: bool,
    captured: bool,
    stored: bool,
}

impl Figures {
    /// Nothing counted yet. What a status says at the first sight is where counting begins.
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { metrics, seen: Mutex::default() }
    }

    /// A job has changed.
    pub(super) fn job(&self, job: &BestEffortJob) {
        let Some(uid) = job.metadata.uid.clone() else { return };
        let now = job.status.as_ref().map(|status| Counted {
            kills: status.kills,
            work: status.work,
            period: status.snapshots.period,
        });
        let now = now.unwrap_or_default();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        self.restored(&mut seen.restoring, &uid, job);
        let before = seen.jobs.insert(uid, now).unwrap_or(now);
        let (old, new, old_work, new_work) = (before.kills, now.kills, before.work, now.work);
        if let Some(period) = now.period.filter(|_| now.period != before.period) {
            self.metrics.snapshot_period.observe(Duration::from(period).as_secs_f64());
        }
        for (cause, old, new) in [
            ("preempted", old.preempted, new.preempted),
            ("walltime", old.walltime, new.walltime),
            ("node", old.node, new.node),
            ("cancelled", old.cancelled, new.cancelled),
            ("failed", old.failed, new.failed),
        ] {
            self.metrics.kills.get_or_create(&cause.into()).inc_by(u64::from(new.saturating_sub(old)));
        }
        for (kind, old, new) in [
            ("useful", old_work.useful, new_work.useful),
            ("lost", old_work.lost, new_work.lost),
            ("saved", old_work.saved, new_work.saved),
            ("overhead", old_work.overhead, new_work.overhead),
        ] {
            self.metrics.work.get_or_create(&kind.into()).inc_by(new.saturating_sub(old));
        }
    }

    /// Measures the time from slots that run to guests that go on from a generation.
    fn restored(&self, restoring: &mut HashMap<String, Instant>, uid: &str, job: &BestEffortJob) {
        let Some(status) = &job.status else { return };
        if matches!(status.phase, JobPhase::Deploying | JobPhase::Restoring) {
            restoring.entry(uid.to_owned()).or_insert_with(Instant::now);
        } else if let Some(begun) = restoring.remove(uid) {
            let restored = status.origin.as_ref().is_some_and(|origin| origin.generation.is_some());
            if status.phase == JobPhase::Running && restored {
                self.metrics.restore.observe(begun.elapsed().as_secs_f64());
                for brought in status.members.iter().filter_map(|member| member.restored) {
                    let count = |source: &str, n| self.metrics.restored.get_or_create(&source.into()).inc_by(n);
                    count("repository", brought.fetched);
                    count("node", brought.local);
                }
            }
        }
    }

    /// A snapshot has changed.
    pub(super) fn snapshot(&self, snapshot: &Snapshot) {
        let (Some(uid), Some(status)) = (snapshot.metadata.uid.clone(), &snapshot.status) else { return };
        let bytes = status.bytes.unwrap_or_default();
        let now =
            Measured { pause: status.pause_ms.is_some(), captured: status.bytes.is_some(), stored: bytes.stored > 0 };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let first_sight = !seen.snapshots.contains_key(&uid) && snapshot.metadata.generation.is_some() && now.captured;
        let before = seen.snapshots.insert(uid, now).unwrap_or_default();
        if first_sight {
            // complete before this process began
            return;
        }
        let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
        if now.pause && !before.pause {
            status.pause_ms.into_iter().for_each(|ms| self.metrics.capture_pause.observe(seconds(ms)));
            status.skew_ms.into_iter().for_each(|ms| self.metrics.capture_skew.observe(seconds(ms)));
        }
        let count = |kind: &str, n| self.metrics.bytes.get_or_create(&kind.into()).inc_by(n);
        if now.captured && !before.captured {
            count("logical", bytes.logical);
        }
        if now.stored && !before.stored {
            count("stored", bytes.stored);
        }
    }

    /// Counts what has no event of its own.
    pub(super) fn count(
        &self,
        jobs: &Store<BestEffortJob>,
        quota: &QuotaConfig,
        requests: &RequestCounts,
        sites: &SiteDirectory,
    ) {
        let all = jobs.state();
        let named = all.iter().filter_map(|job| job.metadata.namespace.as_deref());
        self.metrics.show_quota(&named.filter_map(|name| Some((name, quota.of(name)?))).collect());
        let mut by_phase: HashMap<JobPhase, i64> = HashMap::new();
        let mut alive = std::collections::HashSet::new();
        for job in all {
            *by_phase.entry(job.status.as_ref().map(|status| status.phase).unwrap_or_default()).or_default() += 1;
            alive.extend(job.metadata.uid.clone());
        }
        self.metrics.jobs.clear();
        for (phase, n) in by_phase {
            self.metrics.jobs.get_or_create(&format!("{phase:?}").as_str().into()).set(n);
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.jobs.retain(|uid, _| alive.contains(uid));
        seen.restoring.retain(|uid, _| alive.contains(uid));
        for (site, reads) in sites.reads() {
            let before = seen.reads.insert(site.clone(), reads).unwrap_or_default();
            let failed = reads.failed.saturating_sub(before.failed);
            self.metrics.unknown_facts.get_or_create(&site.as_str().into()).inc_by(failed);
            let call = Call { system: site, verb: "read".into() };
            self.metrics.api_calls.get_or_create(&call).inc_by(reads.calls.saturating_sub(before.calls));
        }
        for (verb, total) in requests.by_verb() {
            let before = seen.requests.insert(verb.clone(), total).unwrap_or_default();
            let call = Call { system: "kubernetes".into(), verb };
            self.metrics.api_calls.get_or_create(&call).inc_by(total.saturating_sub(before));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{
        BestEffortJobStatus, SnapshotStatus,
        job_status::{MemberStatus, Origin, RestoredBytes},
        snapshot::{SnapshotBytes, SnapshotSpec},
    };

    fn job(preempted: u32, lost: u64) -> BestEffortJob {
        let spec = serde_json::from_value(serde_json::json!({
            "run": {"command": ["true"]}, "slots": {"site": "rennes", "walltime": "2h"}}));
        let mut job = BestEffortJob::new("pi", spec.unwrap());
        job.metadata.uid = Some("u".into());
        let (kills, work) = (Kills { preempted, ..Kills::default() }, Work { lost, ..Work::default() });
        job.status = Some(BestEffortJobStatus { kills, work, ..BestEffortJobStatus::default() });
        job
    }

    #[test]
    fn what_happened_before_this_process_is_not_counted_again() {
        let metrics = Metrics::new();
        let figures = Figures::new(metrics.clone());
        figures.job(&job(3, 100));
        figures.job(&job(3, 100));
        figures.job(&job(4, 130));
        assert_eq!(metrics.kills.get_or_create(&"preempted".into()).get(), 1);
        assert_eq!(metrics.work.get_or_create(&"lost".into()).get(), 30);
    }

    #[test]
    fn a_period_is_counted_when_it_is_chosen() {
        let metrics = Metrics::new();
        let figures = Figures::new(metrics.clone());
        for seconds in [60, 60, 42, 42] {
            let mut job = job(0, 0);
            job.status.as_mut().unwrap().snapshots.period = Some(Duration::from_secs(seconds).into());
            figures.job(&job);
        }
        let text = metrics.encode();
        assert!(text.lines().any(|line| line == "vmdeploy_snapshot_period_seconds_sum 42.0"), "{text}");
    }

    #[test]
    fn only_a_restore_is_measured_as_one() {
        let metrics = Metrics::new();
        let figures = Figures::new(metrics.clone());
        for (phase, generation) in [
            ("Deploying", None),
            ("Running", None),
            ("Queued", None),
            ("Deploying", None),
            ("Restoring", Some(3)),
            ("Running", Some(3)),
            ("Running", Some(3)),
        ] {
            let mut job = job(0, 0);
            let status = job.status.as_mut().unwrap();
            status.phase = serde_json::from_value(phase.into()).unwrap();
            status.origin = Some(Origin { generation, ..Origin::default() });
            let restored = generation.map(|_| RestoredBytes { fetched: 5, local: 70 });
            status.members = vec![MemberStatus { restored, ..MemberStatus::default() }; 2];
            figures.job(&job);
        }
        let text = metrics.encode();
        let bytes = |source: &str, n| format!("vmdeploy_restored_bytes_total{{source=\"{source}\"}} {n}");
        for line in ["vmdeploy_restore_seconds_count 1".into(), bytes("repository", 10), bytes("node", 140)] {
            assert!(text.lines().any(|l| l == line), "{line} is missing from\n{text}");
        }
    }

    #[test]
    fn a_snapshot_is_measured_once() {
        let metrics = Metrics::new();
        let figures = Figures::new(metrics.clone());
        let spec = SnapshotSpec { job: "pi".into(), reason: Default::default(), retain: false };
        let mut snapshot = Snapshot::new("pi-1", spec);
        snapshot.metadata.uid = Some("s".into());
        snapshot.status = Some(SnapshotStatus { pause_ms: Some(20), ..SnapshotStatus::default() });
        figures.snapshot(&snapshot);
        for stored in [0, 5, 5] {
            snapshot.status.as_mut().unwrap().bytes = Some(SnapshotBytes { logical: 9, stored });
            figures.snapshot(&snapshot);
        }
        let text = metrics.encode();
        let bytes = |kind: &str, n| format!("vmdeploy_generation_bytes_total{{kind=\"{kind}\"}} {n}");
        for line in ["vmdeploy_capture_pause_seconds_count 1".into(), bytes("logical", 9), bytes("stored", 5)] {
            assert!(text.lines().any(|l| l == line), "{line} is missing from\n{text}");
        }
    }
}
