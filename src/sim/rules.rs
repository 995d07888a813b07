//! The safety rules, checked after every step of every simulated world.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::World;
use crate::{
    api::{BestEffortJobStatus, JobPhase, job::Allocation},
    controller::job::decide::nodes,
    driver::cluster::ClusterView as _,
    names::{Generation, Incarnation, JobUid, SlotId},
};

/// Longest time a guest may stand still, whatever happens: evacuations included.
const LONGEST_STOP: Duration = Duration::from_secs(600);

/// What was seen so far.
#[derive(Default)]
pub(super) struct Rules {
    before: Option<BestEffortJobStatus>,
    /// The slots that were used for each submission: as many as it asked for, ever.
    used: BTreeMap<(JobUid, u32), BTreeSet<SlotId>>,
    /// The nonce and the incarnation of each generation's cut.
    cuts: BTreeMap<(JobUid, Generation), (String, Incarnation)>,
    /// Jobs of which a complete generation exists.
    restorable: BTreeSet<JobUid>,
}

impl World {
    /// Checks everything. Panics with the world's story.
    pub(super) fn check(&mut self) {
        let mut rules = std::mem::take(&mut self.rules);
        let broken = rules.broken(self);
        self.rules = rules;
        assert!(broken.is_none(), "{}\n{}", broken.unwrap_or_default(), self.story());
    }
}

impl Rules {
    fn broken(&mut self, world: &World) -> Option<String> {
        one_copy(world)
            .or_else(|| self.one_slot_for_a_submission(world))
            .or_else(|| self.cuts_are_used_once(world))
            .or_else(|| self.something_to_go_back_to(world))
            .or_else(|| images_of_generations_stay(world))
            .or_else(|| self.counters_rise(world))
            .or_else(|| nobody_stands_still(world))
    }

    /// Never more OAR jobs used for one attempt than the job needs: one, or one for each node.
    fn one_slot_for_a_submission(&mut self, world: &World) -> Option<String> {
        let mut running: BTreeMap<&JobUid, BTreeSet<&SlotId>> = BTreeMap::new();
        for body in world.bodies.iter().filter(|body| body.runs()) {
            running.entry(&body.config.job).or_default().insert(&body.config.slot);
        }
        let twice = running.iter().find(|(job, slots)| slots.len() > needed(world, job));
        if let Some((job, slots)) = twice {
            return Some(format!("a10: {job} computes on {slots:?} at the same time"));
        }
        let names: BTreeMap<SlotId, String> = world.site.slots().into_iter().map(|slot| (slot.id, slot.name)).collect();
        for body in &world.bodies {
            let (job, slot) = (&body.config.job, &body.config.slot);
            let Some(submission) = names.get(slot).and_then(|name| crate::names::submission_of(job, name)) else {
                return Some(format!("an agent on slot {slot}, which is not of its job"));
            };
            let used = self.used.entry((job.clone(), submission)).or_default();
            used.insert(slot.clone());
            if used.len() > needed(world, job) {
                return Some(format!("a10: submission {submission} used slots {used:?}"));
            }
        }
        None
    }

    /// A generation's number stands for one cut of one incarnation, for ever (B2).
    fn cuts_are_used_once(&mut self, world: &World) -> Option<String> {
        for body in &world.bodies {
            let Some(part) = body.agent.peek().capture else { continue };
            let cut = (part.nonce.clone(), body.config.incarnation);
            let first = self.cuts.entry((body.config.job.clone(), part.generation)).or_insert_with(|| cut.clone());
            if *first != cut {
                return Some(format!("b2: generation {} is of {first:?}, and of {cut:?}", part.generation));
            }
        }
        None
    }

    /// A complete generation always remains once one has existed, as long as the job lives.
    fn something_to_go_back_to(&mut self, world: &World) -> Option<String> {
        for job in world.cluster.jobs() {
            let uid = JobUid(job.metadata.uid.clone()?);
            let complete = world.repository.complete(&uid);
            let phase = job.status.as_ref().map(|status| status.phase);
            let ended = matches!(phase, None | Some(JobPhase::Succeeded | JobPhase::Failed));
            let deleted = job.metadata.deletion_timestamp.is_some();
            if complete.is_empty() && !deleted && !ended && self.restorable.contains(&uid) {
                return Some("b12: the last complete generation of a live job is gone".into());
            }
            if !complete.is_empty() {
                self.restorable.insert(uid);
            }
        }
        None
    }

    fn counters_rise(&mut self, world: &World) -> Option<String> {
        let new = world.job()?.status.clone()?;
        if let Some(old) = self.before.replace(new.clone()) {
            let counters = |s: &BestEffortJobStatus| {
                let kills = &s.kills;
                [
                    ("attempt", s.attempt),
                    ("submission", s.submission),
                    ("incarnation", s.incarnation),
                    ("nextGeneration", s.snapshots.next_generation),
                    ("kills.preempted", kills.preempted),
                    ("kills.walltime", kills.walltime),
                    ("kills.node", kills.node),
                    ("failures", s.failures),
                ]
            };
            let fallen = counters(&old).into_iter().zip(counters(&new)).find(|((_, old), (_, new))| new < old);
            if let Some(((name, old), (_, new))) = fallen {
                return Some(format!("{name} fell from {old} to {new}"));
            }
        }
        None
    }
}

/// How many slots a job needs, as long as it is there.
fn needed(world: &World, job: &JobUid) -> usize {
    let found = world.cluster.jobs().into_iter().find(|found| found.metadata.uid.as_ref() == Some(&job.0));
    found.map_or(usize::MAX, |job| match job.spec.slots.allocation {
        Allocation::Gang => 1,
        Allocation::PerMember => nodes(&job.spec) as usize,
    })
}

/// Never two copies of a member that could run at the same time (A1).
fn one_copy(world: &World) -> Option<String> {
    let running: Vec<_> = world.bodies.iter().filter(|body| body.runs()).collect();
    for one in &running {
        let other = running.iter().find(|other| {
            other.config.job == one.config.job
                && (other.config.incarnation > one.config.incarnation
                    || (other.config.member == one.config.member && other.uid != one.uid))
        });
        if let Some(other) = other {
            return Some(format!("a1: {} may run while {} does", one.describe(), other.describe()));
        }
    }
    None
}

/// What a complete generation is based on is there (B12).
fn images_of_generations_stay(world: &World) -> Option<String> {
    let missing = world.repository.missing_images();
    (!missing.is_empty()).then(|| format!("b12: complete generations need {missing:?}, which is gone"))
}

/// No guest stands still for ever (B3).
fn nobody_stands_still(world: &World) -> Option<String> {
    let now = world.clock.now();
    let stuck = world
        .bodies
        .iter()
        .find(|body| body.stopped().is_some_and(|since| now.duration_since(since).unsigned_abs() > LONGEST_STOP));
    stuck.map(|body| format!("b3: {} stands still for too long", body.describe()))
}
