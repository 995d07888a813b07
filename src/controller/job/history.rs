//! How often jobs were killed at each site, with each property: what the watch of jobs has told this process,
//! kept in memory only. A process begins with what the jobs' statuses say.
//!
//! What a job did before it was deleted, or before it went to another site, still counts where it was.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use super::{plan::uid, tally::Tally};
use crate::{api::BestEffortJob, names::JobUid};

/// The most places that are remembered: a property is any text of a user's.
const PLACES: usize = 1000;

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
    places: HashMap<Place, Observed>,
    jobs: HashMap<JobUid, Known>,
    /// Goes up with everything that is added.
    age: u64,
}

/// What was observed at a place.
#[derive(Debug, Default)]
struct Observed {
    tally: Tally,
    /// The age at which something was last added.
    at: u64,
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
    fn add(&mut self, place: Place, growth: Tally) {
        if !self.places.contains_key(&place) && self.places.len() >= PLACES {
            self.drop_one();
        }
        self.age += 1;
        let observed = self.places.entry(place).or_default();
        observed.tally = observed.tally.plus(growth);
        observed.at = self.age;
    }

    /// Drops the place where nothing was observed for longest, one without jobs if there is any.
    fn drop_one(&mut self) {
        let used: HashSet<&Place> = self.jobs.values().map(|known| &known.place).collect();
        let oldest = self.places.iter().min_by_key(|(place, observed)| (used.contains(place), observed.at));
        if let Some(place) = oldest.map(|(place, _)| place.clone()) {
            self.places.remove(&place);
        }
    }
}

impl History {
    /// Takes note of what a job has lived through since the last note of it.
    pub fn note(&self, job: &BestEffortJob) {
        // the last look at one that is going may come after it was forgotten
        if job.metadata.deletion_timestamp.is_some() {
            return;
        }
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (uid, place, total) = (uid(job), place(job), Tally::in_status(job));
        if !inner.jobs.contains_key(&uid) && total == Tally::default() {
            return;
        }
        let known = inner.jobs.entry(uid).or_insert_with(|| Known {
            place: place.clone(),
            total: Tally::default(),
            here: Tally::default(),
        });
        if known.place != place {
            known.place.clone_from(&place);
            known.here = Tally::default();
        }
        let growth = total.minus(known.total);
        known.total = known.total.plus(growth);
        known.here = known.here.plus(growth);
        if growth != Tally::default() {
            inner.add(place, growth);
        }
    }

    /// What was observed of the other jobs at a job's place.
    pub fn others(&self, job: &BestEffortJob) -> Tally {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = place(job);
        let all = inner.places.get(&place).map(|observed| observed.tally).unwrap_or_default();
        let own = inner.jobs.get(&uid(job)).filter(|known| known.place == place);
        all.minus(own.map(|known| known.here).unwrap_or_default())
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
        let history = History::default();
        for job in &all {
            history.note(job);
        }
        assert_eq!(history.others(&all[0]), tally(4, 1, 100), "b");
        assert_eq!(history.others(&all[1]), tally(3, 1, 200), "a");
        assert_eq!(history.others(&all[2]), tally(0, 0, 0), "nobody has no property as well");
        // what grows is counted once, and not for itself
        let later = job("a", gpu, 4, 130);
        for _ in 0..3 {
            history.note(&later);
            assert_eq!(history.others(&later), tally(4, 1, 100));
        }
        assert_eq!(history.others(&all[1]), tally(5, 1, 260));
    }

    #[test]
    fn what_was_observed_outlives_its_job_and_moves_nowhere() {
        let history = History::default();
        let (mut gone, other) = (job("a", None, 2, 100), job("b", None, 0, 0));
        history.note(&gone);
        history.forget(&"a".into());
        gone.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-11-25T20:00:00Z")).unwrap());
        history.note(&gone);
        assert_eq!(history.others(&other), tally(3, 1, 200), "counted once");
        // one that goes elsewhere brings nothing along, also before that is noted
        let (before, after) = (job("c", None, 5, 10), job("c", Some("x = 1"), 6, 10));
        history.note(&before);
        assert_eq!(history.others(&after), tally(0, 0, 0));
        history.note(&after);
        assert_eq!(history.others(&other), tally(9, 2, 220));
        assert_eq!(history.others(&job("d", Some("x = 1"), 0, 0)), tally(1, 0, 0));
    }

    #[test]
    fn the_places_of_invented_properties_do_not_grow_without_end() {
        let history = History::default();
        let stays = job("stays", Some("old"), 1, 5);
        history.note(&stays);
        for n in 0..PLACES + 20 {
            let property = format!("n = {n}");
            let name = property.as_str();
            history.note(&job(name, Some(name), 1, 5));
            history.forget(&name.into());
        }
        let at = |property: &str| history.others(&job("new", Some(property), 0, 0)).kills;
        assert_eq!(history.0.lock().unwrap().places.len(), PLACES);
        assert_eq!((at("old"), at("n = 20"), at("n = 21"), at("n = 1019")), (2, 0, 2, 2), "the oldest without jobs go");
        // one that has lived through nothing takes no place
        let mut fresh = job("fresh", Some("fresh"), 0, 0);
        fresh.status = None;
        history.note(&fresh);
        assert_eq!(at("n = 21"), 2);
    }
}
