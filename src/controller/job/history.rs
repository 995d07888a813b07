//! How often jobs were killed at each site, with each property: what this process has observed, kept in
//! memory only and taken from the jobs' statuses when it begins.
//!
//! What a job did before it was deleted, or before it went to another site, still counts where it was.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;

use super::plan::uid;
use crate::{
    api::{BestEffortJob, job_status::Kills},
    names::JobUid,
};

/// Ends of slots and nodes, and the time in which they were observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Preemptions and lost nodes.
    pub kills: u64,
    /// Those of them that no notice comes before: lost nodes, and preemptions without the notice asked for.
    pub crashes: u64,
    /// Seconds that guests ran, times their CPUs.
    pub cpu_seconds: u64,
}

impl Tally {
    /// That of a job which ran for so many member-seconds.
    pub fn of(kills: &Kills, member_seconds: u64, cpus: u32) -> Self {
        Self {
            kills: u64::from(kills.preempted) + u64::from(kills.node),
            crashes: u64::from(kills.abrupt) + u64::from(kills.node),
            cpu_seconds: member_seconds.saturating_mul(cpus.into()),
        }
    }

    fn in_status(job: &BestEffortJob) -> Self {
        let Some(status) = &job.status else { return Self::default() };
        Self::of(&status.kills, status.work.useful.saturating_add(status.work.lost), job.spec.vm.cpus)
    }

    fn plus(self, other: Self) -> Self {
        Self {
            kills: self.kills.saturating_add(other.kills),
            crashes: self.crashes.saturating_add(other.crashes),
            cpu_seconds: self.cpu_seconds.saturating_add(other.cpu_seconds),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            kills: self.kills.saturating_sub(other.kills),
            crashes: self.crashes.saturating_sub(other.crashes),
            cpu_seconds: self.cpu_seconds.saturating_sub(other.cpu_seconds),
        }
    }
}

/// A site and a property of its nodes.
type Place = (String, Option<String>);

fn place(job: &BestEffortJob) -> Place {
    let slots = &job.spec.slots;
    (slots.site.clone(), slots.oar.as_ref().and_then(|oar| oar.property.clone()))
}

/// What was observed of all jobs. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    begun: bool,
    places: HashMap<Place, Tally>,
    jobs: HashMap<JobUid, Known>,
}

/// What is counted of one job already.
#[derive(Debug)]
struct Known {
    place: Place,
    total: Tally,
    /// The part that is counted for its present place.
    here: Tally,
}

impl Inner {
    fn note(&mut self, job: &BestEffortJob) {
        // the last look at one that is going may come after it was forgotten
        if job.metadata.deletion_timestamp.is_some() {
            return;
        }
        let (place, total) = (place(job), Tally::in_status(job));
        let known = self.jobs.entry(uid(job)).or_insert_with(|| Known {
            place: place.clone(),
            total: Tally::default(),
            here: Tally::default(),
        });
        if known.place != place {
            known.place = place;
            known.here = Tally::default();
        }
        let growth = total.minus(known.total);
        known.total = known.total.plus(growth);
        known.here = known.here.plus(growth);
        let all = self.places.entry(known.place.clone()).or_default();
        *all = all.plus(growth);
    }
}

impl History {
    /// Takes note of a job, at first of all `jobs`, and tells what was observed of the others at its place.
    pub fn others(&self, job: &BestEffortJob, jobs: impl FnOnce() -> Vec<Arc<BestEffortJob>>) -> Tally {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.begun {
            inner.begun = true;
            for job in jobs() {
                inner.note(&job);
            }
        }
        inner.note(job);
        let all = inner.places.get(&place(job)).copied().unwrap_or_default();
        let own = inner.jobs.get(&uid(job)).map(|known| known.here).unwrap_or_default();
        all.minus(own)
    }

    /// Forgets a job that is gone; what it did still counts.
    pub fn forget(&self, job: &JobUid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).jobs.remove(job);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(name: &str, property: Option<&str>, preempted: u32, useful: u64) -> BestEffortJob {
        let job = json!({
            "apiVersion": "vmdeploy.io/v1alpha1", "kind": "BestEffortJob",
            "metadata": {"name": name, "uid": name},
            "spec": {"run": {"command": ["true"]}, "vm": {"cpus": 2},
                "slots": {"site": "rennes", "walltime": "1h", "oar": {"property": property}}},
            "status": {"kills": {"preempted": preempted, "node": 1, "abrupt": 0, "walltime": 9}, "work": {"useful": useful}},
        });
        serde_json::from_value(job).unwrap()
    }

    fn tally(kills: u64, crashes: u64, cpu_seconds: u64) -> Tally {
        Tally { kills, crashes, cpu_seconds }
    }

    #[test]
    fn a_job_learns_from_the_others_of_its_site_and_property() {
        let gpu = Some("gpu > 0");
        let all = [job("a", gpu, 2, 100), job("b", gpu, 3, 50), job("c", None, 7, 1)];
        let there = || all.iter().cloned().map(Arc::new).collect();
        let history = History::default();
        assert_eq!(history.others(&all[0], there), tally(4, 1, 100), "b, at the first look of the process");
        assert_eq!(history.others(&all[1], Vec::new), tally(3, 1, 200), "a");
        assert_eq!(history.others(&all[2], Vec::new), tally(0, 0, 0), "nobody has no property as well");
        // what grows is counted once, and not for itself
        let later = job("a", gpu, 4, 130);
        for _ in 0..3 {
            assert_eq!(history.others(&later, Vec::new), tally(4, 1, 100));
        }
        assert_eq!(history.others(&all[1], Vec::new), tally(5, 1, 260));
    }

    #[test]
    fn what_was_observed_outlives_its_job_and_moves_nowhere() {
        let history = History::default();
        let (mut gone, other) = (job("a", None, 2, 100), job("b", None, 0, 0));
        history.others(&gone, Vec::new);
        history.forget(&"a".into());
        gone.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-11-25T20:00:00Z")).unwrap());
        history.others(&gone, Vec::new);
        assert_eq!(history.others(&other, Vec::new), tally(3, 1, 200), "counted once");
        // one that goes elsewhere brings nothing along
        let (before, after) = (job("c", None, 5, 10), job("c", Some("x = 1"), 6, 10));
        history.others(&before, Vec::new);
        history.others(&after, Vec::new);
        assert_eq!(history.others(&other, Vec::new), tally(9, 2, 220));
        assert_eq!(history.others(&job("d", Some("x = 1"), 0, 0), Vec::new), tally(1, 0, 0));
    }
}
