//! Nothing lost, forked or incoherent.

use std::time::Duration;

use super::life::*;
use crate::{
    api::{JobPhase, LAST_STORED, job_snapshots::shown, snapshot::SnapshotReason},
    controller::job::plan::{BarrierState, Effect, Plan},
    driver::{
        Fact,
        agent::{LoadFault, PartState, VmState},
        repository::DamagedGeneration,
        site::{End, NoticeKind},
    },
};

fn goes(plan: &Plan) -> bool {
    plan.effects.iter().any(|effect| matches!(effect, Effect::Go { .. }))
}

/// A job whose agents have loaded and wait for their go.
fn loaded(members: u32) -> Life {
    let mut life = life(members);
    for _ in 0..20 {
        life.advance(1);
        if goes(&life.plan()) {
            return life;
        }
        life.pass();
    }
    panic!("never: {:?}", life.whys)
}

#[test]
fn b1_incarnation_and_generation_are_written_before_the_first_go() {
    let life = loaded(2);
    let status = life.status();
    let origin = status.origin.unwrap();
    assert_eq!((status.incarnation, origin.incarnation, origin.generation), (1, 1, None));
}

#[test]
fn b1_nobody_goes_before_the_repository_is_fenced() {
    let mut life = loaded(1);
    life.content().fence = 0;
    life.advance(5);
    let plan = life.plan();
    assert!(!goes(&plan));
    assert_eq!(plan.effects, [Effect::FenceRepository { incarnation: 1 }]);
    life.seen.content = Fact::Unknown { since: life.now };
    assert!(!goes(&life.plan()));
}

#[test]
fn b1_a_generation_completed_after_the_choice_is_not_passed_over() {
    let mut life = loaded(1);
    life.store(1, 1);
    assert!(!goes(&life.plan()));
    life.run(30);
    let status = life.status();
    assert_eq!((status.incarnation, status.origin.unwrap().generation), (2, Some(1)), "{:?}", life.whys);
    assert_eq!(life.phase(), JobPhase::Running);
}

#[test]
fn b1_an_unfinished_generation_is_void_in_the_next_incarnation() {
    let mut life = Life::running(1);
    life.stores = false;
    life.run(700);
    assert!(life.status().snapshots.capture.unwrap().captured);
    life.end_slot("101", End::Preempted);
    life.run(5);
    let status = life.status();
    assert_eq!((status.incarnation, status.origin.unwrap().generation), (2, None));
    assert!(status.snapshots.capture.is_none());
    assert!(status.snapshots.next_generation > 1);
}

#[test]
fn b2_a_void_capture_burns_its_number() {
    let mut life = Life::running(2);
    life.run(30);
    life.stores = false;
    life.add_snapshot("mine", SnapshotReason::User);
    life.advance(1);
    let plan = life.pass();
    assert!(plan.effects.iter().any(|effect| matches!(effect, Effect::Capture(capture) if capture.generation == 1)));
    life.agent(1).capture.as_mut().unwrap().state = PartState::Abandoned { reason: "too slow".into() };
    life.settle();
    assert!(life.message("SnapshotFailed").contains("too slow"));
    assert_eq!(life.status().snapshots.last_stored, None);
    life.stores = true;
    life.add_snapshot("again", SnapshotReason::User);
    life.run(3);
    let numbers: Vec<u32> = life
        .effects("Capture")
        .iter()
        .map(|effect| if let Effect::Capture(capture) = effect { capture.generation } else { 0 })
        .collect();
    assert_eq!(numbers, [1, 2]);
}

#[test]
fn b2_numbers_known_to_agents_and_repository_only_are_not_used_again() {
    let mut life = Life::running(1);
    life.run(10);
    life.agent(0).capture = None;
    life.content().highest = 4;
    life.add_snapshot("mine", SnapshotReason::User);
    life.advance(1);
    let plan = life.pass();
    assert!(plan.effects.iter().any(|effect| matches!(effect, Effect::Capture(capture) if capture.generation == 5)));
}

#[test]
fn b2_parts_of_different_cuts_are_no_generation() {
    let mut life = Life::running(2);
    life.run(10);
    life.stores = false;
    life.add_snapshot("mine", SnapshotReason::User);
    life.advance(1);
    life.pass();
    life.agent(1).capture.as_mut().unwrap().nonce = "another".into();
    life.settle();
    assert_eq!(life.status().snapshots.last, None);
    assert!(life.message("SnapshotFailed").contains("different cuts"));
}

#[test]
fn b2_a_new_leader_voids_a_capture_that_nobody_conducts() {
    let mut life = Life::running(2);
    life.run(10);
    life.add_snapshot("mine", SnapshotReason::User);
    life.advance(1);
    life.pass();
    life.agent(0).capture.as_mut().unwrap().state = PartState::Stopped;
    life.seen.barrier = None;
    life.advance(1);
    let plan = life.pass();
    assert!(plan.effects.iter().any(|effect| matches!(effect, Effect::AbandonCapture(_))));
    assert!(life.status().snapshots.capture.is_none());
}

#[test]
fn a_capture_has_the_time_that_its_size_needs() {
    let mut life = Life::running(1);
    life.seen.site.as_mut().unwrap().max_memory = None;
    life.job.spec.vm.memory = crate::api::quantity::Bytes(32 << 30);
    life.run(10);
    life.add_snapshot("mine", SnapshotReason::User);
    life.advance(1);
    life.pass();
    life.agent(0).capture.as_mut().unwrap().state = PartState::Writing;
    // at the least rate the memory alone takes 4096 s
    life.run(4100);
    assert_eq!(life.effects("AbandonCapture").len(), 0);
    assert!(life.status().snapshots.capture.is_some_and(|capture| !capture.captured), "{:?}", life.whys.last());
    life.run(1000);
    assert_eq!(life.effects("AbandonCapture").len(), 1);
}

#[test]
fn b3_members_of_a_last_capture_stay_down_for_a_bounded_time() {
    let mut life = Life::running(1);
    life.run(10);
    life.notice("101", NoticeKind::Preemption);
    let plan = life.pass();
    let Some(Effect::Capture(capture)) = plan.effects.iter().find(|effect| effect.name() == "Capture") else {
        panic!()
    };
    assert!(!capture.resume);
    assert!(capture.stay_down >= Duration::from_secs(60) && capture.stay_down < Duration::from_secs(90));
}

#[rstest::rstest]
#[case::obeyed_at_once(false)]
#[case::lost_on_the_way(true)]
fn b3_a_last_capture_that_cannot_be_stored_leaves_no_guest_paused(#[case] lost: bool) {
    let mut life = Life::running(2);
    life.run(10);
    life.stores = false;
    life.job.spec.suspend = true;
    life.run(3);
    let capture = life.status().snapshots.capture.unwrap();
    assert!(capture.captured && !capture.resume, "{:?}", life.whys);
    let snapshot = life.seen.snapshots.iter_mut().find(|s| s.name == capture.snapshot).unwrap();
    snapshot.status.phase = crate::api::snapshot::SnapshotPhase::Failed;
    life.advance(1);
    let plan = life.plan();
    life.write_only(&plan);
    if !lost {
        life.perform(&plan);
        assert_eq!(life.agent(1).vm, crate::driver::agent::VmState::Running, "{:?}", plan.effects);
    }
    life.stores = true;
    life.run(20);
    assert_eq!(life.phase(), JobPhase::Suspended, "{:?}", life.whys);
    assert_eq!(life.status().snapshots.last_stored, Some(capture.generation + 1));
}

#[test]
fn b4_our_own_deletion_is_not_a_persons() {
    let mut life = Life::running(1);
    life.run(10);
    life.job.spec.suspend = true;
    life.settle();
    let plan = life.plan();
    assert!(plan.status.slots.iter().all(|slot| slot.release.is_some()));
    let mut deleted = Life::running(1);
    deleted.run(10);
    deleted.end_slot("101", End::Deleted("alice".into()));
    deleted.run(5);
    assert_eq!(deleted.phase(), JobPhase::Suspended);
    assert!(deleted.message("Ready").contains("CancelledExternally"));
    life.run(30);
    assert_eq!(life.phase(), JobPhase::Suspended);
    assert!(!life.message("Ready").contains("CancelledExternally"));
    assert_eq!(life.status().kills.cancelled, 0);
}

#[test]
fn b4_the_intent_is_written_before_every_deletion() {
    let mut life = Life::running(1);
    life.run(10);
    life.silence(0);
    for _ in 0..200 {
        life.advance(1);
        let plan = life.plan();
        for effect in &plan.effects {
            if let Effect::ReleaseSlot { id } = effect {
                let slot = plan.status.slots.iter().find(|slot| slot.id == id.0).unwrap();
                assert!(slot.release.is_some());
            }
        }
        life.pass();
    }
    assert!(!life.effects("ReleaseSlot").is_empty());
}

#[test]
fn b5_the_grace_counts_from_the_first_notice() {
    let mut life = Life::running(1);
    life.run(10);
    life.stores = false;
    life.notice("101", NoticeKind::Preemption);
    life.run(40);
    // the scheduler repeats itself, or the rival went and another came
    life.notice("101", NoticeKind::Preemption);
    life.run(15);
    assert_eq!(life.effects("Leave").len(), 0);
    life.run(3);
    assert_eq!(life.effects("Leave").len(), 1, "{:?}", life.whys);
}

#[test]
fn b5_a_slot_with_a_notice_is_left_even_if_the_rival_withdraws() {
    let mut life = Life::running(1);
    life.run(10);
    life.notice("101", NoticeKind::Preemption);
    life.pass();
    life.slot("101").notice = None;
    life.run(10);
    assert_eq!(life.status().submission, 2);
}

#[test]
fn b7_nobody_goes_before_all_have_loaded() {
    let mut life = loaded(3);
    life.agent(2).vm = VmState::Fetching { done: 1, total: 2 };
    life.run(30);
    assert_eq!(life.effects("Go").len(), 0);
    life.agent(2).vm = VmState::Loaded;
    life.run(2);
    assert_eq!(life.effects("Go").len(), 1);
}

#[test]
fn b7_a_failed_load_is_a_new_incarnation_of_all_from_the_generation_before() {
    let mut life = Life::running(2);
    life.run(1300);
    assert_eq!(life.status().snapshots.last_stored, Some(2));
    life.prompt = false;
    life.end_slot("101", End::Preempted);
    life.settle();
    life.start_slot("102");
    life.advance(1);
    life.pass();
    life.agent(1).vm = VmState::Gone { reason: "the stream is damaged".into(), fault: LoadFault::Part };
    life.run(30);
    let status = life.status();
    assert_eq!((status.incarnation, status.phase), (3, JobPhase::Running), "{:?}", life.whys);
    let origin = status.origin.unwrap();
    assert_eq!((origin.generation, origin.bad), (Some(1), vec![2]));
    assert_eq!(status.slots[0].id, "102", "the slot is kept");
}

#[test]
fn b7_a_damaged_generation_gives_way_to_the_one_before_and_the_condition_says_so() {
    let mut life = Life::running(2);
    life.run(1300);
    assert_eq!((life.status().snapshots.last_stored, life.message("SnapshotDamaged").as_str()), (Some(2), ""));
    life.content().generations.retain(|summary| summary.generation != 2);
    life.content().damaged.push(DamagedGeneration { generation: 2, why: "pack ab is damaged".into() });
    life.run(5);
    let told = life.message("SnapshotDamaged");
    assert!(told.contains("2: pack ab is damaged") && told.contains("generation 1 would be restored"), "{told}");
    // others are shown the same
    let annotation = |life: &Life| life.job.metadata.annotations.clone().unwrap_or_default().remove(LAST_STORED);
    let first = annotation(&life);
    let taken_at = life.content().generations[0].taken_at;
    assert_eq!(first, Some(shown(1, taken_at)));
    assert!(life.seen.pods.values().all(|pod| pod.shows == first), "{:?}", life.seen.pods);
    // what is not known is as it was
    let content = std::mem::replace(&mut life.seen.content, Fact::Unknown { since: life.now });
    life.run(5);
    assert_eq!((life.message("SnapshotDamaged"), annotation(&life)), (told, first));
    life.seen.content = content;
    life.end_slot("101", End::Preempted);
    life.run(30);
    let status = life.status();
    assert_eq!((status.phase, status.origin.unwrap().generation), (JobPhase::Running, Some(1)), "{:?}", life.whys);
    life.run(700);
    assert_eq!(life.message("SnapshotDamaged"), "", "a newer one is whole: {:?}", life.status().snapshots.last_stored);
    assert_eq!(annotation(&life), life.status().snapshots.shown());
}

#[test]
fn b7_no_sound_generation_goes_for_damaged_ones_that_are_newer() {
    let mut life = Life::running(1);
    life.run(1300);
    let named = |life: &Life| -> Vec<u32> { life.seen.snapshots.iter().filter_map(|s| s.status.generation).collect() };
    assert_eq!(named(&life), [1, 2]);
    life.content().generations.retain(|summary| summary.generation != 2);
    life.content().damaged.push(DamagedGeneration { generation: 2, why: "rotten".into() });
    life.run(600);
    assert_eq!((life.status().snapshots.last_stored, named(&life)), (Some(3), vec![1, 2, 3]));
    life.run(600);
    assert_eq!(named(&life), [3, 4], "two are whole again");
}

#[test]
fn b7_a_node_that_cannot_load_says_nothing_against_the_generation() {
    let mut life = Life::running(2);
    life.run(1300);
    life.prompt = false;
    life.end_slot("101", End::Preempted);
    life.settle();
    life.start_slot("102");
    life.advance(1);
    life.pass();
    life.agent(1).vm = VmState::Gone { reason: "no space left on device".into(), fault: LoadFault::Node };
    life.prompt = true;
    life.run(60);
    let status = life.status();
    assert_eq!((status.phase, status.slots[0].id.as_str()), (JobPhase::Running, "103"), "{:?}", life.whys);
    let origin = status.origin.unwrap();
    assert_eq!((origin.generation, origin.bad), (Some(2), vec![]));
    assert_eq!((status.kills.node, origin.tries), (1, 1));
}

#[test]
fn b13_silence_before_this_leader_listened_does_not_count() {
    let mut life = Life::running(1);
    life.run(10);
    life.silence(0);
    life.run(100);
    // another process takes over
    life.seen.agents.values_mut().next().unwrap().listening = life.now;
    life.run(100);
    assert_eq!(life.phase(), JobPhase::Running);
}

#[test]
fn b16_a_slot_is_left_before_its_walltime_without_being_told() {
    let mut life = Life::running(1);
    life.run(10);
    let until = life.slot("101").until.unwrap();
    while life.status().submission == 1 {
        life.run(1);
        assert!(life.now < until, "{:?}", life.whys);
    }
    let status = life.status();
    assert_eq!((status.kills.walltime, status.kills.preempted), (1, 0));
    assert!(until.duration_since(life.now).as_secs() >= 50);
}

#[test]
fn b17_a_capture_at_a_notice_needs_no_write() {
    let mut life = Life::running(2);
    life.run(10);
    let reserved = life.status().snapshots.next_generation;
    life.notice("101", NoticeKind::Preemption);
    let plan = life.plan();
    let capture: Vec<&Effect> = plan.effects.iter().filter(|effect| !effect.needs_status()).collect();
    let [Effect::Capture(capture)] = capture[..] else { panic!("{:?}", plan.effects) };
    assert_eq!(capture.generation, reserved);
    // the write fails, the capture is made all the same: the next pass takes it up
    let mut barrier = crate::controller::job::plan::BarrierSeen {
        job: capture.clone(),
        since: life.now,
        state: BarrierState::Conducting,
    };
    life.seen.barrier = Some(barrier.clone());
    life.advance(1);
    let plan = life.plan();
    assert_eq!(plan.status.snapshots.capture.as_ref().unwrap().generation, reserved);
    assert!(plan.status.snapshots.next_generation > reserved);
    assert!(!plan.effects.iter().any(|effect| effect.name() == "Capture"), "{:?}", plan.effects);
    barrier.state = BarrierState::Failed("test".into());
    life.seen.barrier = Some(barrier);
    let plan = life.plan();
    assert!(plan.status.snapshots.next_generation > reserved, "the number is burnt");
}

#[test]
fn b17_a_last_capture_that_fails_at_once_is_not_begun_again_at_once() {
    let captures = |plan: &Plan| plan.effects.iter().filter(|effect| effect.name() == "Capture").count();
    let mut life = Life::running(2);
    life.run(100);
    life.notice("101", NoticeKind::Preemption);
    let plan = life.plan();
    let begun = plan.effects.iter().find_map(|effect| match effect {
        Effect::Capture(capture) => Some(capture.clone()),
        _ => None,
    });
    life.write_only(&plan);
    // an agent is cut off, and that is not known yet
    life.seen.barrier = Some(crate::controller::job::plan::BarrierSeen {
        job: begun.expect("a capture at the notice"),
        since: life.now,
        state: BarrierState::Failed("cut off".into()),
    });
    let void = life.plan();
    assert!(void.status.snapshots.capture.is_none(), "{}", void.why);
    life.write_only(&void);
    assert_eq!(captures(&life.plan()), 0, "{}", life.plan().why);
    life.advance(1);
    assert_eq!(captures(&life.plan()), 1, "{}", life.plan().why);
}
