//! What people are told of slots that are lost or left.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rstest::rstest;

use super::{life::life, one_by_one::*};
use crate::{
    api::{Reason, snapshot::SnapshotReason},
    controller::job::plan::Effect,
    driver::{
        Fact,
        agent::VmState,
        site::{End, NoticeKind},
    },
};

#[rstest]
#[case(End::Preempted, Reason::Preempted, "was taken for somebody else")]
#[case(End::Walltime, Reason::WalltimeOver, "is over: its time has ended")]
#[case(End::HoldFailed("the hold was killed".into()), Reason::NodeLost, "is lost: the hold was killed")]
fn a_slot_that_is_lost_while_others_are_waited_for_is_told_of_by_its_cause(
    #[case] end: End,
    #[case] reason: Reason,
    #[case] what: &str,
) {
    let mut life = one_by_one(3);
    life.prompt = false;
    life.settle();
    life.start_slot("101");
    life.run(3);
    life.end_slot("101", end);
    life.run(3);
    let told = life.told(reason);
    assert!(told.iter().any(|message| message.starts_with(&format!("slot 101 {what}"))), "{told:?}");
}

#[test]
fn slots_that_wait_for_others_and_are_left_are_told_of_by_their_causes() {
    let mut life = one_by_one(3);
    life.prompt = false;
    life.settle();
    life.start_slot("101");
    life.start_slot("102");
    life.run(3);
    life.notice("101", NoticeKind::Walltime);
    life.notice("102", NoticeKind::Preemption);
    life.run(3);
    assert_eq!(life.told(Reason::WalltimeOver), ["slot 101 is nearly over while others are waited for"]);
    assert_eq!(life.told(Reason::Preempted), ["slot 102 is wanted back while others are waited for"]);
}

#[test]
fn each_slot_that_is_being_taken_is_named_with_its_own_cause_and_silence_takes_nothing_back() {
    let mut life = running(3);
    life.stores = false;
    let slots: Vec<String> = (0..2).map(|member| slot_of(&life, member)).collect();
    life.notice(&slots[0], NoticeKind::Walltime);
    life.run(2);
    let first = life.message("Evicting");
    assert_eq!(first, format!("True WalltimeOver: slot {}: its time is nearly over", slots[0]));
    let mut silent = life.clone();
    silent.seen.slots = Fact::Unknown { since: silent.now };
    silent.run(2);
    assert_eq!(silent.message("Evicting"), first);
    life.notice(&slots[1], NoticeKind::Preemption);
    life.run(2);
    let both = format!(
        "True Preempted: slot {}: somebody else wants it; slot {}: its time is nearly over",
        slots[1], slots[0]
    );
    assert_eq!(life.message("Evicting"), both);
}

#[test]
fn a_suspension_shortly_before_slots_are_nearly_over_is_a_suspension() {
    let mut life = running(2);
    life.job.spec.snapshots.grace = std::time::Duration::from_secs(30).into();
    let soon = life.now + SignedDuration::from_secs(50);
    for slot in &mut life.job.status.as_mut().unwrap().slots {
        slot.until = Some(Time(soon));
    }
    life.job.spec.suspend = true;
    life.run(1);
    assert_eq!(life.told(Reason::Suspended)[0], "the job is to be suspended");
    let Some(Effect::Capture(capture)) = life.effects("Capture").last().copied() else { panic!("no capture") };
    assert_eq!(capture.reason, SnapshotReason::Suspend);
}

/// Each change is a write: a start of a large image is told in quarters, and of a small one nothing.
#[test]
fn how_much_of_a_large_image_is_on_all_nodes_is_told_in_quarters() {
    let mut life = life(2);
    while life.effects("CreateAgent").len() < 2 {
        life.pass();
    }
    for member in 0..2 {
        life.agent(member).vm = VmState::None;
    }
    life.run(1);
    let writes = life.writes;
    let mut said = Vec::new();
    for hundredth in 1..100_u64 {
        for member in 0..2 {
            let done = (hundredth << 20) * 10 * (1 + u64::from(member)) / 2;
            life.agent(member).vm = VmState::Fetching { done, total: 1000 << 20 };
        }
        life.run(1);
        let words = life.message("Running");
        if said.last() != Some(&words) {
            said.push(words);
        }
    }
    let ends: Vec<&str> = said.iter().map(|words| words.split(": ").nth(1).unwrap_or_default()).collect();
    assert_eq!(ends, ["", "at least a quarter of 1000Mi is on all nodes"], "the slower one has half of it");
    assert_eq!(life.writes, writes + 1);
    for member in 0..2 {
        life.agent(member).vm = VmState::Fetching { done: 90 << 20, total: 100 << 20 };
    }
    life.run(1);
    assert!(life.message("Running").ends_with(": "), "{}", life.message("Running"));
}
