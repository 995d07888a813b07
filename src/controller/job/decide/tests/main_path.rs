//! A life: accepted, running, a snapshot, preempted with a notice, resumed, succeeded.

use super::life::*;
use crate::{
    api::{
        JobPhase, LAST_STORED,
        snapshot::{SnapshotPhase, SnapshotReason},
    },
    controller::job::plan::Effect,
    driver::agent::PartState,
    driver::site::{End, NoticeKind},
};

#[test]
fn from_first_sight_to_running() {
    let mut life = life(2);
    life.prompt = false;
    let mut plans = vec![life.pass(), life.pass(), life.pass()];
    life.start_slot("101");
    for _ in 0..4 {
        life.advance(1);
        plans.push(life.pass());
    }
    assert_eq!(life.phase(), JobPhase::Running);
    insta::assert_yaml_snapshot!(plans);
}

#[test]
fn a_periodic_snapshot() {
    let mut life = Life::running(2);
    life.run(700);
    assert_eq!(life.effects("Capture").len(), 1);
    let status = life.status();
    assert_eq!((status.snapshots.last, status.snapshots.last_stored), (Some(1), Some(1)));
    assert!(status.snapshots.capture.is_none());
    assert_eq!(life.seen.snapshots.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["pi-3f2b8a10-1"]);
    assert_eq!(life.phase(), JobPhase::Running);
}

#[test]
fn others_are_shown_what_is_stored_once_for_each_change() {
    let mut life = Life::running(2);
    life.run(500);
    assert_eq!(life.effects("ShowStored").len(), 0, "nothing is stored yet");
    life.run(200);
    let shown = |life: &Life| life.job.metadata.annotations.clone().unwrap_or_default().remove(LAST_STORED);
    let first = shown(&life).unwrap();
    let said: serde_json::Value = serde_json::from_str(&first).unwrap();
    let at: jiff::Timestamp = said["capturedAt"].as_str().unwrap().parse().unwrap();
    assert_eq!((said["generation"].as_u64(), at), (Some(1), life.status().snapshots.last_stored_at.unwrap().0));
    assert!(life.seen.pods.values().all(|pod| pod.shows.as_ref() == Some(&first)), "{:?}", life.seen.pods);
    assert_eq!(life.effects("ShowStored").len(), 3, "the job and two pods");
    life.run(300);
    assert_eq!(life.effects("ShowStored").len(), 3, "nothing has changed");
    life.run(400);
    assert_ne!(shown(&life).unwrap(), first);
    assert_eq!(life.effects("ShowStored").len(), 6);
    // somebody has taken it away
    life.job.metadata.annotations = None;
    life.run(70);
    assert_eq!(shown(&life), life.status().snapshots.shown());
    assert_eq!(life.effects("ShowStored").len(), 7);
    // new agents come with it
    life.end_slot("101", End::Preempted);
    life.run(20);
    assert_eq!((life.phase(), life.effects("ShowStored").len()), (JobPhase::Running, 7), "{:?}", life.whys);
}

#[test]
fn a_notice_leads_to_a_last_capture_and_away() {
    let mut life = Life::running(2);
    life.run(100);
    life.stores = false;
    life.notice("101", NoticeKind::Preemption);
    let mut plans = vec![life.pass(), life.pass()];
    assert_eq!(life.phase(), JobPhase::Evacuating);
    life.advance(1);
    plans.extend([life.pass(), life.pass()]);
    life.store(1, 1);
    life.advance(1);
    plans.push(life.pass());
    insta::assert_yaml_snapshot!(plans);
    life.stores = true;
    life.run(10);
    let status = life.status();
    assert_eq!(status.phase, JobPhase::Running, "{:?}", life.whys);
    assert_eq!((status.attempt, status.incarnation, status.submission), (2, 2, 2));
    assert_eq!(status.kills.preempted, 1);
    assert_eq!(status.origin.unwrap().generation, Some(1));
    assert!(status.work.useful >= 200, "{:?}", status.work);
    assert!(status.work.lost < 10, "{:?}", status.work);
}

#[test]
fn a_kill_without_notice_goes_on_from_the_last_generation() {
    let mut life = Life::running(1);
    life.run(900);
    life.end_slot("101", End::Preempted);
    life.run(10);
    let status = life.status();
    assert_eq!(status.phase, JobPhase::Running, "{:?}", life.whys);
    assert_eq!(status.origin.unwrap().generation, Some(1));
    assert!(status.work.lost > 100 && status.work.lost < 900, "{:?}", status.work);
}

#[test]
fn success_ends_everything() {
    let mut life = Life::running(2);
    life.run(20);
    life.finish(0);
    life.run(10);
    let status = life.status();
    assert_eq!(status.phase, JobPhase::Succeeded, "{:?}", life.whys);
    assert!(status.slots.is_empty() && life.seen.pods.is_empty());
    assert_eq!(life.effects("Leave").len(), 1);
    assert_eq!(life.effects("ReleaseSlot").len(), 0, "the hold ends by itself");
    assert!(life.message("Complete").starts_with("True Succeeded"));
    assert_eq!(status.work.useful, 2 * (5 + 20));
}

#[test]
fn a_life_needs_few_writes() {
    let mut life = life(1);
    life.prompt = false;
    life.settle();
    life.advance(1);
    life.start_slot("101");
    life.run(700);
    assert_eq!(life.status().snapshots.last_stored, Some(1));
    life.end_slot("101", End::Preempted);
    life.settle();
    life.advance(1);
    life.start_slot("102");
    life.run(60);
    life.finish(0);
    life.run(10);
    assert_eq!(life.phase(), JobPhase::Succeeded, "{:?}", life.whys);
    assert!(life.writes <= 13, "{} writes: {:?}", life.writes, life.whys);
}

#[test]
fn a_pass_with_nothing_to_do_does_nothing() {
    let mut life = Life::running(2);
    life.run(30);
    let writes = life.writes;
    life.done.clear();
    life.run(100);
    assert_eq!((life.writes, life.done.len()), (writes, 0));
}

#[test]
fn a_user_gets_a_snapshot_when_asking() {
    let mut life = Life::running(1);
    life.run(10);
    life.add_snapshot("mine", SnapshotReason::User);
    life.run(3);
    let snapshot = &life.seen.snapshots[0];
    assert_eq!(snapshot.status.generation, Some(1));
    assert_eq!(life.status().snapshots.last_stored, Some(1));
    assert!(life.effects("CreateSnapshot").is_empty());
}

#[test]
fn a_snapshot_that_a_user_asked_for_says_that_it_is_being_taken() {
    let mut life = Life::running(2);
    life.run(10);
    life.stores = false;
    life.add_snapshot("mine", SnapshotReason::User);
    life.advance(1);
    life.pass();
    life.agent(1).capture.as_mut().unwrap().state = PartState::Writing;
    life.advance(1);
    life.pass();
    let status = &life.seen.snapshots[0].status;
    assert_eq!((status.phase, status.generation), (SnapshotPhase::Capturing, Some(1)));
    life.agent(1).capture.as_mut().unwrap().state = PartState::Captured;
    life.run(3);
    assert_eq!(life.seen.snapshots[0].status.phase, SnapshotPhase::Captured);
}

#[test]
fn retention_keeps_the_newest_and_what_is_not_ours() {
    let mut life = Life::running(1);
    life.add_snapshot("mine", SnapshotReason::User);
    life.run(3000);
    let names: Vec<&str> = life.seen.snapshots.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names.contains(&"mine"));
    let last = life.status().snapshots.last_stored.unwrap();
    assert!(life.content().generations.iter().any(|summary| summary.generation == last));
    assert!(
        life.effects("DeleteSnapshot")
            .iter()
            .all(|effect| { matches!(effect, Effect::DeleteSnapshot { name, .. } if name != "mine") })
    );
}
