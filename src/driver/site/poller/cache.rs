//! What is known of all slots of an account, and what to read next. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;

use super::JobFacts;
use crate::{
    driver::{
        Fact,
        site::{Glance, SiteError, SlotFacts, SlotPhase},
    },
    names::{JobUid, SlotId, slot_name_prefix},
};

/// What all names of ours begin with.
const OURS: &str = "vmdeploy-";
/// Time between two look-ups by name, if nobody asks for one.
const LOOK_UP_EVERY: Duration = Duration::from_secs(10);
/// Facts older than this are not known any more. Above the time between two look-ups, which are all
/// that is read for jobs whose slots are over.
const STALE: Duration = Duration::from_secs(15);
/// Running slots whose events are read in one round, the longest unread first.
const RUNNING_BUDGET: usize = 20;
/// Slots read in full in one round.
const ROUND_BUDGET: usize = 100;

/// What a site fails with is replaced once so many rounds in a row have failed with something else: statuses show it,
/// and a site in trouble says now this and now that.
const LASTS: u32 = 3;

/// What to read first in a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    /// Slots to glance at.
    pub(super) glance: Vec<SlotId>,
    /// The look-up by name, if it is due: prefix, and since when finished slots count.
    pub(super) look_up: Option<(String, Option<Timestamp>)>,
}

#[derive(Clone, Debug)]
struct Watched {
    ids: BTreeSet<SlotId>,
    doubt: Option<Timestamp>,
    registered: Timestamp,
    looked_up: Option<Timestamp>,
    read: Option<Timestamp>,
    nudged: bool,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    glance: Option<Glance>,
    facts: Option<SlotFacts>,
    facts_at: Option<Timestamp>,
    /// The glance changed, or somebody knows better, since the facts were read.
    due: bool,
}

impl Seen {
    fn over(&self) -> bool {
        self.facts.as_ref().is_some_and(|f| matches!(f.phase, SlotPhase::Ended(_)))
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Cache {
    jobs: BTreeMap<JobUid, Watched>,
    slots: BTreeMap<SlotId, Seen>,
    looked_up: Option<Timestamp>,
    good_since: Option<Timestamp>,
    error: Option<SiteError>,
    /// What the last rounds failed with, if not with that, and how many did.
    other: Option<(SiteError, u32)>,
}

impl Cache {
    /// Registers a job, or what changed about it. Says whether a round should follow at once.
    pub(super) fn watch(&mut self, job: &JobUid, ids: &[SlotId], doubt: Option<Timestamp>, now: Timestamp) -> bool {
        let ids: BTreeSet<SlotId> = ids.iter().cloned().collect();
        if let Some(old) = self.jobs.get_mut(job) {
            let changed = !ids.is_subset(&old.ids) || (doubt.is_some() && old.doubt.is_none());
            if doubt.is_some() && old.doubt.is_none() {
                old.looked_up = None;
            }
            old.doubt = doubt;
            old.ids.extend(ids);
            return changed;
        }
        let new = Watched { ids, doubt, registered: now, looked_up: None, read: None, nudged: false };
        self.jobs.insert(job.clone(), new);
        true
    }

    /// Forgets a job and its slots. Says whether it was watched.
    pub(super) fn forget(&mut self, job: &JobUid) -> bool {
        if self.jobs.remove(job).is_none() {
            return false;
        }
        let wanted: BTreeSet<&SlotId> = self.jobs.values().flat_map(|j| &j.ids).collect();
        self.slots.retain(|id, _| wanted.contains(id));
        true
    }

    /// Whether any job is watched.
    pub(super) fn watches_any(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Somebody knows that a job's slots have changed: everything about it is read again.
    /// Says whether it is watched.
    pub(super) fn nudge(&mut self, job: &JobUid) -> bool {
        self.jobs.get_mut(job).map(|job| job.nudged = true).is_some()
    }

    /// What to read first.
    pub(super) fn plan(&self, now: Timestamp) -> Round {
        if self.jobs.is_empty() {
            return Round::default();
        }
        let ids: BTreeSet<&SlotId> = self.jobs.values().flat_map(|j| &j.ids).collect();
        let glance = ids.into_iter().filter(|id| !self.slots.get(*id).is_some_and(Seen::over)).cloned().collect();
        let due = self.looked_up.is_none_or(|at| older(at, LOOK_UP_EVERY, now));
        let asked = self.jobs.values().any(|j| j.looked_up.is_none() || j.nudged);
        let since = self.jobs.values().filter_map(|j| j.doubt).min();
        Round { glance, look_up: (due || asked).then(|| (OURS.to_owned(), since)) }
    }

    /// Takes in a look-up. Slots that were not known become part of their job.
    pub(super) fn looked_up(&mut self, found: &BTreeMap<SlotId, Glance>, now: Timestamp) {
        self.looked_up = Some(now);
        for (uid, job) in &mut self.jobs {
            job.looked_up = Some(now);
            let prefix = slot_name_prefix(uid);
            for (id, _) in found.iter().filter(|(_, g)| g.name.starts_with(&prefix)) {
                job.ids.insert(id.clone());
            }
        }
        self.glanced(found);
    }

    /// Takes in what a list told.
    pub(super) fn glanced(&mut self, found: &BTreeMap<SlotId, Glance>) {
        let wanted: BTreeSet<&SlotId> = self.jobs.values().flat_map(|j| &j.ids).collect();
        for (id, glance) in found.iter().filter(|(id, _)| wanted.contains(id)) {
            let seen = self.slots.entry(id.clone()).or_default();
            if seen.glance.as_ref() != Some(glance) {
                seen.glance = Some(glance.clone());
                seen.due = true;
            }
        }
    }

    /// Slots to read in full now: those that changed, then running ones, the longest unread first.
    pub(super) fn take_due(&mut self) -> Vec<SlotId> {
        for job in self.jobs.values_mut().filter(|j| j.nudged) {
            job.nudged = false;
            for id in &job.ids {
                if let Some(seen) = self.slots.get_mut(id).filter(|s| !s.over()) {
                    seen.due = true;
                }
            }
        }
        let mut ids: Vec<SlotId> = self.slots.iter().filter(|(_, s)| s.due).map(|(id, _)| id.clone()).collect();
        let mut running: Vec<(Option<Timestamp>, &SlotId)> = self
            .slots
            .iter()
            .filter(|(_, s)| !s.due && !s.over() && s.glance.as_ref().is_some_and(|g| g.running))
            .map(|(id, s)| (s.facts_at, id))
            .collect();
        running.sort();
        ids.extend(running.into_iter().take(RUNNING_BUDGET).map(|(_, id)| id.clone()));
        ids.truncate(ROUND_BUDGET);
        ids
    }

    /// Takes in a whole good round. Gives the jobs whose facts are new.
    pub(super) fn read(&mut self, asked: &[SlotId], found: BTreeMap<SlotId, SlotFacts>, now: Timestamp) -> Vec<JobUid> {
        let mut changed = BTreeSet::new();
        for id in asked {
            let Some(seen) = self.slots.get_mut(id) else { continue };
            // a slot that a list showed and that has vanished since is asked for again
            seen.due = !found.contains_key(id);
            seen.facts_at = Some(now);
        }
        for (id, facts) in found {
            let Some(seen) = self.slots.get_mut(&id) else { continue };
            if seen.facts.as_ref() != Some(&facts) {
                seen.facts = Some(facts);
                changed.insert(id);
            }
        }
        self.good_since.get_or_insert(now);
        (self.error, self.other) = (None, None);
        let mut jobs = Vec::new();
        for (uid, job) in &mut self.jobs {
            let was_known = job.read.is_some_and(|at| !older(at, STALE, now));
            // a job registered while the round was under way is read in the next one
            if job.looked_up.is_some() {
                job.read = Some(now);
                if !was_known || !job.ids.is_disjoint(&changed) {
                    jobs.push(uid.clone());
                }
            }
        }
        jobs
    }

    /// Takes in a round that failed. Says whether what it failed with is news.
    pub(super) fn failed(&mut self, error: SiteError) -> bool {
        self.good_since = None;
        let other = self.other.take();
        if self.error.as_ref() == Some(&error) {
            return false;
        }
        let rounds = other.filter(|(other, _)| *other == error).map_or(1, |(_, rounds)| rounds + 1);
        if self.error.is_none() || rounds >= LASTS {
            self.error = Some(error);
            return true;
        }
        self.other = Some((error, rounds));
        false
    }

    /// Since when every read has been answered.
    pub(super) fn good_since(&self) -> Option<Timestamp> {
        self.good_since
    }

    /// What is known of a job.
    pub(super) fn facts(&self, uid: &JobUid, now: Timestamp) -> JobFacts {
        let Some(job) = self.jobs.get(uid) else {
            let slots = Fact::Unknown { since: now };
            return JobFacts { slots, read: None, looked_up: None, error: self.error.clone() };
        };
        let slots = match job.read {
            Some(at) if !older(at, STALE, now) => Fact::Known(job.ids.iter().map(|id| self.slot(id)).collect()),
            _ => Fact::Unknown { since: job.read.unwrap_or(job.registered) },
        };
        JobFacts { slots, read: job.read, looked_up: job.looked_up, error: self.error.clone() }
    }

    fn slot(&self, id: &SlotId) -> SlotFacts {
        let seen = self.slots.get(id);
        seen.and_then(|s| s.facts.clone()).unwrap_or_else(|| SlotFacts {
            id: id.clone(),
            name: seen.and_then(|s| s.glance.clone()).map(|g| g.name).unwrap_or_default(),
            // never a reason to destroy anything
            phase: SlotPhase::Unknown("not read yet, or not known to the site".into()),
            nodes: Vec::new(),
            since: None,
            until: None,
            notice: None,
            unreached: false,
        })
    }
}

fn older(time: Timestamp, limit: Duration, now: Timestamp) -> bool {
    now.duration_since(time).unsigned_abs() > limit && now > time
}
