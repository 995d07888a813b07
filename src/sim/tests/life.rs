//! Lives that go as planned, and with kills of every kind.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rstest::rstest;

use super::super::{NAMESPACE, World, job};
use crate::{
    api::{BestEffortJob, JobPhase, period::Period},
    driver::{cluster::ClusterView as _, site::End},
    names::{JobUid, SlotId},
};

fn without_notice(mut job: BestEffortJob) -> BestEffortJob {
    job.spec.snapshots.grace = Duration::ZERO.into();
    job
}

fn slot(world: &World) -> SlotId {
    SlotId(world.open_slots().first().cloned().expect("a slot"))
}

#[tokio::test(start_paused = true)]
async fn a_job_that_nobody_disturbs_succeeds() {
    let mut world = World::new(4);
    world.cluster.put_job(job(2));
    world.until_phase(60, JobPhase::Running).await;
    world.until_phase(300, JobPhase::Succeeded).await;
    world.pass(60).await;
    assert!(world.leftovers().is_empty(), "{}", world.story());
    let status = world.status();
    assert_eq!((status.submission, status.incarnation), (1, 1), "{}", world.story());
    assert!(status.snapshots.last_stored.is_some(), "{}", world.story());
}

/// One kill in the middle of a life; afterwards the job goes on from its newest generation.
#[rstest]
#[case::with_notice(true)]
#[case::without_notice(false)]
#[tokio::test(start_paused = true)]
async fn a_killed_job_goes_on_from_its_last_generation(#[case] notice: bool) {
    let mut world = World::new(4);
    world.cluster.put_job(if notice { job(2) } else { without_notice(job(2)) });
    world.until(200, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    world.pass(10).await;
    let first = slot(&world);
    world.site.preempt(&first);
    world
        .until(200, "a second incarnation that runs", |world| {
            world.status().incarnation == 2 && world.phase() == Some(JobPhase::Running)
        })
        .await;
    let status = world.status();
    let origin = status.origin.clone().unwrap();
    assert_eq!((origin.generation, status.kills.preempted), (status.snapshots.last_stored, 1), "{}", world.story());
    assert_ne!(slot(&world), first);
    if notice {
        assert!(status.work.lost <= 10, "what was computed up to the notice is kept:\n{}", world.story());
    }
    world.until_phase(400, JobPhase::Succeeded).await;
    world.pass(60).await;
    assert!(world.leftovers().is_empty(), "{}", world.story());
}

#[tokio::test(start_paused = true)]
async fn b16_the_end_of_the_walltime_is_survived() {
    let mut world = World::new(4);
    let mut job = job(2);
    job.spec.slots.walltime = Duration::from_secs(90).into();
    world.cluster.put_job(job);
    world.until_phase(1000, JobPhase::Succeeded).await;
    let status = world.status();
    assert!(status.kills.walltime >= 1 && status.kills.preempted == 0, "{}", world.story());
    assert!(status.attempt >= 2 && status.failures == 0, "{}", world.story());
    world.pass(60).await;
    assert!(world.leftovers().is_empty(), "{}", world.story());
}

#[tokio::test(start_paused = true)]
async fn b4_a_person_who_deletes_the_slot_suspends_the_job() {
    let mut world = World::new(4);
    world.cluster.put_job(job(2));
    world.until(200, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    world.site.kill(&slot(&world), End::Deleted("alice".into()));
    world.until_phase(200, JobPhase::Suspended).await;
    world.pass(60).await;
    assert!(world.leftovers().is_empty(), "{}", world.story());
    assert_eq!(world.status().kills.cancelled, 1, "{}", world.story());
    // setting and unsetting suspend goes on
    for suspend in [true, false] {
        let mut job = (*world.job().unwrap()).clone();
        job.spec.suspend = suspend;
        world.cluster.put_job(job);
        world.pass(20).await;
    }
    world.until_phase(400, JobPhase::Succeeded).await;
    world.pass(60).await;
    assert!(world.leftovers().is_empty(), "{}", world.story());
}

#[tokio::test(start_paused = true)]
async fn c3_a_generation_that_never_restores_gives_way_to_the_one_before() {
    let mut world = World::new(4);
    world.pace.work = Duration::from_secs(300);
    world.cluster.put_job(without_notice(job(1)));
    world
        .until(300, "two complete generations", |world| {
            world.uid().is_some_and(|uid| world.repository.complete(&uid).len() >= 2)
        })
        .await;
    let newest = world.status().snapshots.last_stored;
    world.broken = newest;
    world.site.preempt(&slot(&world));
    world
        .until(600, "restored from an older generation", |world| {
            let status = world.status();
            let older = status.origin.as_ref().and_then(|origin| origin.generation) < newest;
            status.incarnation > 1 && older && world.phase() == Some(JobPhase::Running)
        })
        .await;
    world.until_phase(2000, JobPhase::Succeeded).await;
}

#[tokio::test(start_paused = true)]
async fn b7_a_pack_that_is_lost_takes_the_generations_that_need_it_and_no_other() {
    let mut world = World::new(4);
    world.pace.work = Duration::from_secs(900);
    world.cluster.put_job(without_notice(job(1)));
    world
        .until(300, "two complete generations", |world| {
            world.uid().is_some_and(|uid| world.repository.complete(&uid).len() >= 2)
        })
        .await;
    let (uid, newest) = (world.uid().unwrap(), world.status().snapshots.last_stored.unwrap());
    world.repository.lose_pack(&uid, newest);
    world
        .until(600, "the damage is told of", |world| {
            let status = world.status();
            let told = status.conditions.iter().any(|condition| condition.type_ == "SnapshotDamaged");
            // a newer one may be complete before anybody has looked
            told || status.snapshots.last_stored > Some(newest)
        })
        .await;
    world.site.preempt(&slot(&world));
    world
        .until(600, "restored from another generation", |world| {
            let status = world.status();
            let origin = status.origin.as_ref().and_then(|origin| origin.generation);
            status.incarnation > 1
                && origin.is_some_and(|origin| origin != newest)
                && world.phase() == Some(JobPhase::Running)
        })
        .await;
    world.until_phase(4000, JobPhase::Succeeded).await;
}

/// Other people's jobs, with and without notice, day and night.
#[tokio::test(start_paused = true)]
async fn a_job_lives_through_days_of_preemptions() {
    let mut world = World::new(3);
    world.pace.work = Duration::from_secs(8 * 3600);
    let mut job = job(2);
    job.spec.snapshots.period = Duration::from_secs(600).into();
    world.cluster.put_job(job);
    let mut hour = 0;
    while world.phase() != Some(JobPhase::Succeeded) {
        world.stride(10).await;
        if world.age() / 3600 > hour {
            hour = world.age() / 3600;
            if hour % 2 == 0 {
                world.site.rival(2 + usize::try_from(hour % 2).unwrap(), Duration::from_secs(1800));
            }
            if hour % 3 == 1
                && let Some(slot) = world.open_slots().first()
            {
                // hard, whatever was asked for
                world.site.kill(&SlotId(slot.clone()), End::Preempted);
            }
        }
        assert!(world.age() < 5 * 86_400, "{}", world.story());
    }
    world.pass(60).await;
    assert!(world.leftovers().is_empty(), "{}", world.story());
    let status = world.status();
    assert!(status.kills.preempted >= 4, "{}", world.story());
    // somebody looks every ten seconds or so, and does not spin
    let most = u64::try_from(world.age()).unwrap() / 4;
    assert!(world.operator.passes < most, "{} passes in {} s", world.operator.passes, world.age());
    let uid = world.uid().unwrap();
    let kept = world.repository.complete(&uid).len();
    assert!((2..=3).contains(&kept), "{kept} generations are kept");
    // an hour of work was never lost at once: at most a period for each hard kill, and the time to notice
    assert!(status.work.lost <= u64::from(status.kills.preempted) * 2 * 640, "{}", world.story());
}

/// Each write of a status goes to all who watch: a life with a snapshot and a kill takes few.
#[rstest]
#[case::without_notice(false, 13, false)]
#[case::with_notice(true, 16, false)]
#[case::adaptive_without_notice(false, 13, true)]
#[case::adaptive_with_notice(true, 16, true)]
#[tokio::test(start_paused = true)]
async fn a_life_takes_few_writes_of_the_status(#[case] notice: bool, #[case] most: u64, #[case] adaptive: bool) {
    let mut world = World::new(4);
    world.pace.work = Duration::from_secs(100);
    let mut job = if notice { job(2) } else { without_notice(job(2)) };
    job.spec.snapshots.period = Duration::from_secs(60).into();
    if adaptive {
        // what is chosen, both before the first snapshot and once its pause is known
        let bound = Some(Duration::from_secs(60).into());
        let policy = &mut job.spec.snapshots;
        (policy.period, policy.min_period, policy.max_period) = (Period::Adaptive, bound, bound);
    }
    world.cluster.put_job(job);
    world.until(200, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    world.pass(5).await;
    world.site.preempt(&slot(&world));
    world.until_phase(400, JobPhase::Succeeded).await;
    world.pass(60).await;
    let status = world.status();
    let taken = if notice { 2 } else { 1 };
    assert_eq!((status.kills.preempted, status.snapshots.last), (1, Some(taken)), "{}", world.story());
    let writes = world.cluster.writes()["patch_job_status"];
    println!("{writes} writes, notice: {notice}");
    assert!(writes <= most, "{writes} writes: {}", world.story());
}

/// Two jobs want the same nodes: one waits for the other, and neither uses the other's slots (A10).
#[tokio::test(start_paused = true)]
async fn a10_two_jobs_that_compete_for_nodes_use_their_own_slots() {
    let mut world = World::new(3);
    let names = ["pi", "e"];
    for name in names {
        let mut job = job(2);
        job.metadata.name = Some(name.into());
        world.cluster.put_job(job);
    }
    let job_of = |world: &World, name: &str| world.cluster.job(NAMESPACE, name).expect("nobody deletes it");
    let succeeded = |world: &World, name: &str| {
        job_of(world, name).status.as_ref().is_some_and(|status| status.phase == JobPhase::Succeeded)
    };
    let mut used: BTreeMap<String, BTreeSet<SlotId>> = BTreeMap::new();
    while !names.iter().all(|name| succeeded(&world, name)) {
        world.step(Duration::from_secs(1)).await;
        let running: Vec<_> = world.bodies.iter().filter(|body| body.runs()).collect();
        for body in &running {
            used.entry(body.config.job.0.clone()).or_default().insert(body.config.slot.clone());
        }
        assert!(running.len() <= 2, "there is room for one of them: {}", world.story());
        if world.age() == 60 {
            world.site.preempt(&running[0].config.slot.clone());
        }
        assert!(world.age() < 1500, "{}", world.story());
    }
    world.pass(60).await;
    assert!(world.leftovers().is_empty(), "{}", world.story());
    let slots: BTreeMap<SlotId, String> = world.site.slots().into_iter().map(|slot| (slot.id, slot.name)).collect();
    for name in names {
        let uid = JobUid(job_of(&world, name).metadata.uid.clone().unwrap_or_default());
        let own = &used[&uid.0];
        assert!(own.iter().all(|id| crate::names::submission_of(&uid, &slots[id]).is_some()), "{name}: {own:?}");
    }
    let all: usize = used.values().map(BTreeSet::len).sum();
    assert_eq!((used.len(), all), (2, 3), "one was preempted, and went on in a second slot: {used:?}");
}
