//! Slots of their own for each member, of which some are wanted back.

use std::{collections::BTreeMap, time::Duration};

use super::super::{World, job};
use crate::{
    api::{BestEffortJob, ConditionType, JobPhase, conditions, job::Allocation},
    driver::{
        cluster::ClusterView as _,
        site::{End, SlotPhase},
    },
    names::SlotId,
};

fn one_by_one(members: u32) -> BestEffortJob {
    let mut job = job(members);
    job.spec.slots.allocation = Allocation::PerMember;
    job
}

/// The slot and the node of each member.
fn places(world: &World) -> BTreeMap<u32, (String, String)> {
    let place = |member: crate::api::job_status::MemberStatus| Some((member.index, (member.agent?.slot, member.node?)));
    world.status().members.into_iter().filter_map(place).collect()
}

/// A world in which one of four members has to leave; which slot that is, and where all were.
async fn one_of_four(limit: usize) -> (World, SlotId, BTreeMap<u32, (String, String)>) {
    let mut world = World::with_limit(5, limit);
    world.cluster.put_job(one_by_one(4));
    world.until(300, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    world.until_phase(60, JobPhase::Running).await;
    let before = places(&world);
    let slot = SlotId(before[&2].0.clone());
    world.site.preempt(&slot);
    (world, slot, before)
}

#[tokio::test(start_paused = true)]
async fn one_of_four_leaves_and_the_others_wait_where_they_are() {
    let (mut world, slot, before) = one_of_four(usize::MAX).await;
    let over = |world: &World| {
        world.site.slots().iter().any(|facts| facts.id == slot && matches!(facts.phase, SlotPhase::Ended(_)))
    };
    world.until(30, "the slot is given back within its grace", over).await;
    let ended = world.site.slots().into_iter().find(|facts| facts.id == slot).map(|facts| facts.phase);
    assert_eq!(ended, Some(SlotPhase::Ended(End::SavedAtPreemption)), "{}", world.story());
    let incarnation = world.status().incarnation;
    world
        .until(60, "the next incarnation runs", |world| {
            world.phase() == Some(JobPhase::Running) && world.status().incarnation > incarnation
        })
        .await;
    let after = places(&world);
    for member in [0, 1, 3] {
        assert_eq!(before[&member], after[&member], "{}", world.story());
    }
    assert_ne!(before[&2].0, after[&2].0);
    let status = world.status();
    assert_eq!((status.kills.preempted, status.attempt, status.work.lost), (1, 2, 0), "{}", world.story());
    world.until_phase(600, JobPhase::Succeeded).await;
    world.until(60, "nothing is left", |world| world.leftovers().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn where_all_are_wanted_all_leave_within_the_grace() {
    let mut world = World::new(4);
    world.pace.upload = Duration::from_secs(3);
    world.cluster.put_job(one_by_one(4));
    world.until(300, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    world.until_phase(60, JobPhase::Running).await;
    let first: Vec<SlotId> = places(&world).into_values().map(|(slot, _)| SlotId(slot)).collect();
    for slot in &first {
        world.site.preempt(slot);
    }
    let saved = |world: &World| {
        let slots = world.site.slots();
        let saved = slots.iter().filter(|facts| facts.phase == SlotPhase::Ended(End::SavedAtPreemption));
        saved.filter(|facts| first.contains(&facts.id)).count()
    };
    world.until(29, "all slots are given back", |world| saved(world) == 4).await;
    world.until_phase(600, JobPhase::Succeeded).await;
    let status = world.status();
    assert_eq!((status.kills.preempted, status.work.lost), (1, 0), "{}", world.story());
}

#[tokio::test(start_paused = true)]
async fn b15_a_partial_eviction_survives_the_operator_whenever_it_dies() {
    let (undisturbed, _, _) = one_of_four(usize::MAX).await;
    let before = undisturbed.operator.log().len();
    let mut died = 0;
    for n in before..before + 40 {
        let (mut world, ..) = one_of_four(n).await;
        world.until_phase(900, JobPhase::Succeeded).await;
        world.until(60, "nothing is left", |world| world.leftovers().is_empty()).await;
        let status = world.status();
        assert_eq!((status.failures, status.kills.preempted), (0, 1), "after {n} writes: {}", world.story());
        died += u32::from(world.operator.epoch() == 2);
    }
    assert!(died >= 30, "it died {died} times only");
}

#[tokio::test(start_paused = true)]
async fn c1_a_job_asks_for_nothing_while_another_one_waits_for_its_last_slot() {
    let mut world = World::new(4);
    world.site.rival(1, Duration::from_secs(120));
    world.cluster.put_job(one_by_one(4));
    let held = |world: &World| world.site.slots().iter().filter(|slot| slot.phase == SlotPhase::Running).count();
    world.until(30, "all slots but one run", |world| held(world) == 3).await;
    world.pass(3).await;
    let mut other = one_by_one(4);
    other.metadata.name = Some("e".into());
    world.cluster.put_job(other);
    let status = |world: &World| {
        let job = world.cluster.job(super::super::NAMESPACE, "e");
        job.and_then(|job| job.status.clone()).unwrap_or_default()
    };
    world.pass(60).await;
    assert_eq!((status(&world).phase, status(&world).submission), (JobPhase::Queued, 0));
    let admitted = conditions::get(&status(&world).conditions, ConditionType::Admitted).unwrap().message.clone();
    assert!(admitted.contains("job team/pi has some of its slots"), "{admitted}");
    let both =
        |world: &World| world.status().phase == JobPhase::Succeeded && status(world).phase == JobPhase::Succeeded;
    world.until(2000, "both have succeeded", both).await;
}
