//! A namespace keeps so much in the repository: who may begin, who may take a snapshot, and what is taken
//! whatever the quota says (safety C2).

use super::life::*;
use crate::{
    api::{
        JobPhase, SnapshotStatus,
        snapshot::{SnapshotBytes, SnapshotReason},
    },
    controller::job::plan::{Effect, SnapshotSeen},
    driver::{
        Fact,
        site::{End, NoticeKind},
    },
    store::quota::Room,
};

const GIB: u64 = 1 << 30;

/// What a namespace has, of a quota of 10 GiB.
fn room(used: u64, own: u64) -> Fact<Room> {
    Fact::Known(Room { limit: 10 * GIB, used, own, reserved: 0, accepted: 0 })
}

fn captures(life: &Life) -> Vec<SnapshotReason> {
    let captures = life.done.iter().filter_map(|effect| match effect {
        Effect::Capture(capture) => Some(capture.reason),
        _ => None,
    });
    captures.collect()
}

/// Three generations of 512 MiB of memory and 1 GiB of disk.
#[test]
fn c2_a_job_is_accepted_only_with_room_for_its_generations_and_one_more() {
    let mut life = life(1);
    life.seen.room = room(6 * GIB, 0);
    life.settle();
    assert_eq!(life.phase(), JobPhase::Pending);
    for kind in ["Ready", "Stalled"] {
        let said = life.message(kind);
        for words in
            ["QuotaExceeded", "3 generations of up to 1.5 GiB", "4.5 GiB", "may keep 10.0 GiB", "others have 6.0"]
        {
            assert!(said.contains(words), "{kind}: {words}: {said}");
        }
    }
    let writes = life.writes;
    life.run(300);
    assert_eq!((life.writes, life.effects("SubmitSlots").len()), (writes, 0), "a storm");
    // somebody made room: nothing of the job must be changed
    life.seen.room = room(5 * GIB, 0);
    life.run(30);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys.last());
}

#[test]
fn c2_what_a_job_begins_with_needs_room_beside_its_own_generations() {
    let mut life = super::adopt::cloning(1);
    life.seen.room = room(5 * GIB, 0);
    life.settle();
    let said = life.message("Ready");
    assert!(said.contains("QuotaExceeded") && said.contains("4 generations of up to 1.5 GiB"), "{said}");
}

#[test]
fn c2_what_others_are_about_to_store_counts_and_what_is_ones_own_does_not() {
    let mut life = life(1);
    life.seen.room = Fact::Known(Room { limit: 10 * GIB, used: 5 * GIB, own: 0, reserved: GIB, accepted: 0 });
    life.run(30);
    assert_eq!(life.phase(), JobPhase::Pending);
    life.seen.room = Fact::Known(Room { limit: 10 * GIB, used: 7 * GIB, own: 3 * GIB, reserved: GIB, accepted: 0 });
    life.run(30);
    assert_eq!(life.phase(), JobPhase::Running);
}

#[test]
fn c2_nobody_is_accepted_before_it_is_known_what_there_is() {
    let mut life = life(1);
    life.seen.room = Fact::Unknown { since: life.now };
    life.run(60);
    assert_eq!((life.phase(), life.effects("SubmitSlots").len()), (JobPhase::Pending, 0));
    assert_eq!(life.message("Stalled"), "");
    life.seen.room = room(0, 0);
    life.run(10);
    assert_eq!(life.phase(), JobPhase::Running);
}

#[test]
fn c2_periodic_snapshots_are_left_out_without_room_and_the_condition_says_what_makes_some() {
    let mut life = Life::running(1);
    life.run(700);
    assert_eq!(life.status().snapshots.last_stored, Some(1));
    life.seen.room = room(9 * GIB, 2 * GIB);
    let (writes, taken) = (life.writes, captures(&life).len());
    life.run(2000);
    assert_eq!(captures(&life).len(), taken);
    let said = life.message("SnapshotFailed");
    for words in
        ["QuotaExceeded", "may keep 10.0 GiB", "has 9.0 GiB (this job 2.0 GiB)", "may take 1.5 GiB", "delete Snapshots"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(life.writes <= writes + 5, "a storm: {}", life.writes - writes);
    assert_eq!(life.phase(), JobPhase::Running);
    // it was seen that the last ones were small
    for snapshot in &mut life.seen.snapshots {
        snapshot.status.bytes = Some(SnapshotBytes { logical: GIB, stored: 100 << 20 });
    }
    life.run(700);
    assert!(
        captures(&life).len() > taken && life.message("SnapshotFailed").is_empty(),
        "{}",
        life.message("SnapshotFailed")
    );
}

#[test]
fn c2_a_snapshot_that_is_asked_for_waits_for_room() {
    let mut life = Life::running(1);
    life.run(100);
    life.seen.room = room(10 * GIB, 0);
    life.seen.snapshots.push(SnapshotSeen {
        name: "mine".into(),
        uid: "u".into(),
        reason: SnapshotReason::User,
        retain: false,
        deleting: false,
        status: SnapshotStatus::default(),
    });
    life.run(60);
    assert!(captures(&life).is_empty());
    assert!(life.message("SnapshotFailed").contains("QuotaExceeded"));
    life.seen.room = room(GIB, 0);
    life.run(60);
    assert_eq!(captures(&life), [SnapshotReason::User]);
    assert!(life.message("SnapshotFailed").is_empty());
}

#[rstest::rstest]
#[case::notice(false)]
#[case::suspension(true)]
fn c2_what_leaves_its_slots_is_captured_whatever_the_quota_says(#[case] suspend: bool) {
    let mut life = Life::running(1);
    life.run(30);
    life.seen.room = room(100 * GIB, 50 * GIB);
    if suspend {
        life.job.spec.suspend = true;
    } else {
        life.notice("101", NoticeKind::Preemption);
    }
    life.run(30);
    assert_eq!(captures(&life).len(), 1, "{:?}", life.whys.last());
    assert_eq!(life.status().snapshots.last_stored, Some(1));
    if !suspend {
        // and what was begun goes on
        life.end_slot("101", End::Released);
        life.run(30);
        assert_eq!((life.phase(), life.status().origin.unwrap().generation), (JobPhase::Running, Some(1)));
    }
}

#[test]
fn c2_a_capture_reserves_what_it_may_bring() {
    let mut life = Life::running(2);
    life.seen.room = room(0, 0);
    life.stores = false;
    life.run(700);
    assert_eq!(life.status().snapshots.capture.unwrap().reserved, 3 * GIB);
}

#[test]
fn c2_a_repository_that_does_not_answer_keeps_no_snapshot_from_being_taken() {
    let mut life = Life::running(1);
    life.seen.room = Fact::Unknown { since: life.now };
    life.run(700);
    assert_eq!(captures(&life).len(), 1);
}
