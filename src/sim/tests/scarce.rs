//! Where there is less than is wanted: slots, and members that are left.

use std::time::Duration;

use super::super::{Health, NAMESPACE, World, job};
use crate::{
    api::{JobPhase, snapshot::SnapshotPhase},
    driver::{
        cluster::ClusterView as _,
        site::{End, SlotPhase},
    },
    names::{JobUid, SlotId, submission_of},
};

/// A job of two members with a complete generation, and a newer one that only its nodes have.
async fn with_a_capture_on_its_nodes() -> (World, u32) {
    let mut world = World::new(4);
    world.cluster.put_job(job(2));
    world.until(120, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    world.kget.stopped = true;
    let stored = world.status().snapshots.last_stored.unwrap();
    let captured = |world: &World| {
        let all = world.cluster.all_snapshots();
        all.into_iter().filter_map(|snapshot| snapshot.status).any(|status| {
            status.phase == SnapshotPhase::Captured && status.generation.is_some_and(|generation| generation > stored)
        })
    };
    world.until(120, "a newer capture", captured).await;
    (world, stored)
}

fn lose_agent(world: &mut World, member: u32) {
    let index = world.bodies.iter().position(|body| body.alive() && body.config.member == member);
    world.kill_agent(index.expect("it lives"));
}

#[tokio::test(start_paused = true)]
async fn b6_what_only_the_survivors_have_is_nothing_to_go_back_to_or_to_wait_for() {
    let (mut world, stored) = with_a_capture_on_its_nodes().await;
    let before = world.status().incarnation;
    lose_agent(&mut world, 1);
    // at once, on the slot there is: the survivor's part of a cut that nobody has whole is worth nothing
    world
        .until(30, "all run again", |world| {
            world.phase() == Some(JobPhase::Running) && world.status().incarnation > before
        })
        .await;
    let status = world.status();
    assert_eq!(status.origin.unwrap().generation, Some(stored));
    assert_eq!(status.submission, 1, "{}", world.story());
    world.kget.stopped = false;
    world.until_phase(600, JobPhase::Succeeded).await;
    let published: Vec<u32> = world.kget.published.iter().map(|manifest| manifest.generation).collect();
    assert!(!published.contains(&(stored + 1)), "{published:?}");
}

#[tokio::test(start_paused = true)]
async fn b6_survivors_end_their_wait_at_a_notice_and_before_their_slots_end() {
    for end in [End::Preempted, End::Walltime] {
        let (mut world, stored) = with_a_capture_on_its_nodes().await;
        let slot = SlotId(world.open_slots().first().unwrap().clone());
        let lost = world.bodies.iter().find(|body| body.alive() && body.config.member == 1).unwrap().node.clone();
        world.set_health(&lost, Health::Down);
        world.pass(2).await;
        if end == End::Preempted {
            world.site.preempt(&slot);
        } else {
            world.site.end(&slot, end.clone());
        }
        // the grace is 30 s: what the survivor has completes nothing, and is no reason to stay longer
        let waits = |world: &World| world.bodies.iter().any(|body| body.alive() && body.config.slot == slot);
        world.until(35, "nobody waits there", |world| !waits(world)).await;
        world.until(60, "the slot is over", |world| !world.open_slots().contains(&slot.0)).await;
        world.kget.stopped = false;
        world.set_health(&lost, Health::Up);
        world
            .until(300, "running again", |world| {
                world.phase() == Some(JobPhase::Running) && world.status().submission > 1
            })
            .await;
        let from = world.status().origin.unwrap().generation;
        assert!(from >= Some(stored), "{end:?}: {from:?}");
        world.until_phase(600, JobPhase::Succeeded).await;
    }
}

#[tokio::test(start_paused = true)]
async fn c1_of_two_jobs_that_do_not_fit_together_neither_ever_holds_a_part() {
    const MEMBERS: u32 = 3;
    let mut world = World::new(4);
    world.pace.work = Duration::from_secs(60);
    world.cluster.put_job(job(MEMBERS));
    let mut second = job(MEMBERS);
    second.metadata.name = Some("again".into());
    world.cluster.put_job(second);
    let uid = |world: &World, name: &str| {
        world.cluster.job(NAMESPACE, name).and_then(|job| job.metadata.uid.clone()).map(JobUid)
    };
    let ended = |world: &World, name: &str| {
        let job = world.cluster.job(NAMESPACE, name);
        job.and_then(|job| job.status.clone()).is_some_and(|status| status.phase == JobPhase::Succeeded)
    };
    let mut both_waited = false;
    for second in 0..1200 {
        world.step(Duration::from_secs(1)).await;
        let slots = world.site.slots();
        let running: Vec<_> = slots.iter().filter(|slot| slot.phase == SlotPhase::Running).collect();
        for slot in &running {
            assert_eq!(slot.nodes.len(), MEMBERS as usize, "second {second}: a part of the slots: {}", world.story());
        }
        for name in ["pi", "again"] {
            let Some(job) = uid(&world, name) else { continue };
            let own = slots.iter().filter(|slot| submission_of(&job, &slot.name).is_some());
            let open = own.filter(|slot| !matches!(slot.phase, SlotPhase::Ended(_))).count();
            assert!(open <= 1, "second {second}: {name} has asked {open} times: {}", world.story());
        }
        assert!(running.len() <= 1, "they do not fit together");
        both_waited |= running.len() == 1 && slots.iter().any(|slot| matches!(slot.phase, SlotPhase::Waiting { .. }));
        // the first one is thrown out in the middle of its work
        if second == 40
            && let Some(slot) = running.first()
        {
            world.site.kill(&slot.id, End::Preempted);
        }
        if ended(&world, "pi") && ended(&world, "again") {
            assert!(both_waited, "one never had to wait for the other");
            return;
        }
    }
    panic!("a deadlock: {}", world.story());
}
