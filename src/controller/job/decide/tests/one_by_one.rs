//! Slots of their own for each member.

use std::collections::BTreeSet;

use rstest::rstest;

use super::life::*;
use crate::{
    api::{
        JobPhase, Reason,
        job::Allocation,
        job_status::{BestEffortJobStatus, ReleaseReason, SlotStatus},
        snapshot::{SnapshotPhase, Transfer},
    },
    controller::job::plan::{Effect, Reply},
    driver::{
        agent::{LeaveCode, LoadFault, VmState},
        site::{End, NoticeKind, SiteError, SlotPhase},
    },
};

pub(super) fn one_by_one(members: u32) -> Life {
    let mut life = life(members);
    life.job.spec.slots.allocation = Allocation::PerMember;
    life
}

/// A job that has run for a while, with a complete generation.
pub(super) fn running(members: u32) -> Life {
    let mut life = one_by_one(members);
    life.run(700);
    assert_eq!((life.phase(), life.status().snapshots.last_stored), (JobPhase::Running, Some(1)), "{:?}", life.whys);
    life
}

pub(super) fn in_use(status: &BestEffortJobStatus) -> Vec<&str> {
    status.slots.iter().filter(|slot| slot.is_in_use()).map(|slot| slot.id.as_str()).collect()
}

pub(super) fn slot_of(life: &Life, member: usize) -> String {
    life.status().members[member].agent.clone().unwrap().slot
}

fn nodes(life: &Life) -> Vec<String> {
    life.status().members.iter().map(|member| member.node.clone().unwrap()).collect()
}

/// What the last request asked for.
pub(super) fn asked(life: &Life) -> u32 {
    match life.effects("SubmitSlots").last() {
        Some(Effect::SubmitSlots { request, .. }) => request.reservations,
        other => panic!("{other:?}"),
    }
}

/// The repository lists these members' bytes of the capture under way.
pub(super) fn safe(life: &mut Life, members: &[u32]) {
    let capture = life.status().snapshots.capture.unwrap();
    let snapshot = life.seen.snapshots.iter_mut().find(|snapshot| snapshot.name == capture.snapshot).unwrap();
    snapshot.status.transfer = Some(Transfer { safe: members.to_vec(), ..Transfer::default() });
}

/// The repository lists some members' bytes, and kget lets those members go that are `released`.
fn lets_go(life: &mut Life, safe_ones: &[u32], released: &[u32]) {
    safe(life, safe_ones);
    let transfer = life.seen.snapshots.last_mut().unwrap().status.transfer.as_mut().unwrap();
    transfer.released = Some(released.to_vec());
}

#[test]
fn b15_a_slot_is_given_back_only_once_kget_says_that_nobody_needs_it() {
    let mut life = running(3);
    let slots: Vec<String> = (0..3).map(|member| slot_of(&life, member)).collect();
    (life.stores, life.prompt) = (false, false);
    for slot in &slots {
        life.notice(slot, NoticeKind::Preemption);
    }
    life.run(3);
    let used = |life: &Life| in_use(&life.status()).into_iter().map(str::to_owned).collect::<Vec<_>>();
    // member 0 is in the repository but takes the bytes of others
    lets_go(&mut life, &[0], &[]);
    life.run(3);
    assert_eq!(used(&life), slots);
    // it has those of member 1, which are not in the repository
    lets_go(&mut life, &[0], &[1]);
    life.run(3);
    assert_eq!(used(&life), [slots[0].clone(), slots[2].clone()], "{:?}", life.whys);
    lets_go(&mut life, &[0, 1], &[0, 1]);
    life.run(3);
    assert_eq!(used(&life), [slots[2].clone()]);
    // the one before knows of no such thing
    safe(&mut life, &[0, 1, 2]);
    life.run(3);
    assert_eq!(used(&life), [] as [String; 0]);
}

#[test]
fn b15_a_generation_that_is_void_after_a_slot_was_given_back_is_not_gone_back_to() {
    let mut life = running(3);
    let complete = life.status().snapshots.last_stored;
    (life.stores, life.prompt) = (false, false);
    for member in 0..3 {
        let slot = slot_of(&life, member);
        life.notice(&slot, NoticeKind::Preemption);
    }
    life.run(3);
    lets_go(&mut life, &[], &[1]);
    life.run(3);
    assert_eq!(in_use(&life.status()).len(), 2);
    // the one that had its bytes is lost
    let snapshot = life.seen.snapshots.last_mut().unwrap();
    let transfer = snapshot.status.transfer.as_mut().unwrap();
    transfer.state = crate::api::snapshot::TransferState::Failed;
    transfer.message = Some("member 1 has left its node, and its collector, member 2: was lost".into());
    life.run(60);
    let status = life.status();
    assert_eq!((status.phase, status.snapshots.last_stored), (JobPhase::Queued, complete), "{:?}", life.whys);
}

#[test]
fn each_member_has_a_slot_of_its_own_and_all_start_together() {
    let mut life = one_by_one(3);
    life.prompt = false;
    life.settle();
    assert_eq!((asked(&life), life.status().submission), (3, 1));
    life.start_slot("102");
    life.start_slot("101");
    life.run(20);
    assert_eq!((life.phase(), life.effects("CreateAgent").len()), (JobPhase::Queued, 0));
    assert!(
        life.message("Admitted").contains("slot 103 waits in the scheduler's queue; 2 run"),
        "{}",
        life.message("Admitted")
    );
    life.start_slot("103");
    assert_eq!(life.status().held.as_deref(), Some("2/3"));
    life.run(5);
    let status = life.status();
    assert_eq!((status.phase, status.incarnation, status.incomplete_since), (JobPhase::Running, 1, None));
    assert_eq!(status.held.as_deref(), Some("3/3"));
    let slots: BTreeSet<String> = (0..3).map(|member| slot_of(&life, member)).collect();
    assert_eq!((slots.len(), nodes(&life).iter().collect::<BTreeSet<_>>().len()), (3, 3));
    assert_eq!(life.effects("SubmitSlots").len(), 1);
}

#[test]
fn c1_slots_that_do_not_all_come_in_time_are_given_back_and_asked_for_later() {
    let mut life = one_by_one(3);
    life.prompt = false;
    life.settle();
    life.start_slot("101");
    life.run(595);
    assert_eq!(in_use(&life.status()).len(), 3);
    life.run(10);
    let status = life.status();
    assert!(in_use(&status).is_empty() && life.effects("ReleaseSlot").len() >= 3, "{:?}", status.slots);
    assert!(life.message("Ready").starts_with("False SlotsIncomplete: 1 of 3 slots ran"), "{}", life.message("Ready"));
    assert_eq!((life.effects("SubmitSlots").len(), status.attempt, status.kills.node), (1, 1, 0));
    life.prompt = true;
    life.run(30);
    assert_eq!((life.phase(), life.effects("SubmitSlots").len()), (JobPhase::Running, 2), "{:?}", life.whys);
}

#[test]
fn c1_no_first_slot_is_asked_for_while_another_job_waits_for_its_last() {
    let mut life = one_by_one(2);
    life.seen.partly_started = Some("team/e".into());
    life.run(60);
    assert_eq!((life.phase(), life.effects("SubmitSlots").len()), (JobPhase::Queued, 0));
    assert!(life.message("Admitted").contains("job team/e has some of its slots"), "{}", life.message("Admitted"));
    life.seen.partly_started = None;
    life.run(5);
    assert_eq!(life.phase(), JobPhase::Running);
}

#[test]
fn only_the_slots_that_are_wanted_are_left_and_the_others_wait_for_new_ones() {
    let mut life = running(4);
    let (wanted, before) = (slot_of(&life, 2), nodes(&life));
    (life.stores, life.prompt) = (false, false);
    life.notice(&wanted, NoticeKind::Preemption);
    life.run(3);
    assert_eq!(life.phase(), JobPhase::Evacuating);
    assert!((0..4).all(|member| life.agent(member).vm == VmState::Stopped), "not all stand still");
    assert_eq!(in_use(&life.status()).len(), 4, "{:?}", life.whys);
    assert_eq!(life.seen.snapshots.last().unwrap().status.leaving, [2]);
    // another one's bytes are no reason to give up this slot (safety B15)
    safe(&mut life, &[0, 1]);
    life.run(3);
    assert_eq!(in_use(&life.status()).len(), 4);
    safe(&mut life, &[0, 1, 2]);
    life.run(3);
    let status = life.status();
    assert!(!in_use(&status).contains(&wanted.as_str()) && in_use(&status).len() == 3, "{:?}", status.slots);
    assert_eq!(status.kills.preempted, 1);
    // nobody else moves until all is stored
    assert!([0, 1, 3].into_iter().all(|member| life.agent(member).vm == VmState::Stopped));
    life.store(2, 1);
    life.run(5);
    let status = life.status();
    assert_eq!((status.phase, status.attempt, asked(&life)), (JobPhase::Queued, 2, 1), "{:?}", life.whys);
    assert!(life.message("Admitted").contains("3 run and are kept"), "{}", life.message("Admitted"));
    let new = in_use(&status)[3].to_owned();
    life.start_slot(&new);
    life.stores = true;
    life.run(10);
    let status = life.status();
    assert_eq!((status.phase, status.incarnation), (JobPhase::Running, 2), "{:?}", life.whys);
    assert_eq!(status.origin.unwrap().generation, Some(2));
    // who had not to leave is where its blocks are
    let after = nodes(&life);
    assert!([0, 1, 3].into_iter().all(|member| before[member] == after[member]), "{before:?} {after:?}");
    assert!(life.effects("ReleaseSlot").iter().all(|e| matches!(e, Effect::ReleaseSlot { id } if id.0 == wanted)));
    assert_eq!(status.work.lost, 0);
}

#[test]
fn slots_are_given_back_one_by_one_as_their_bytes_are_safe() {
    let mut life = running(3);
    life.stores = false;
    let slots: Vec<String> = (0..3).map(|member| slot_of(&life, member)).collect();
    for slot in &slots {
        life.notice(slot, NoticeKind::Preemption);
    }
    life.run(2);
    for (count, member) in [1, 0, 2].into_iter().enumerate() {
        let so_far: Vec<u32> = [1, 0, 2][..=count].to_vec();
        safe(&mut life, &so_far);
        life.run(2);
        assert_eq!(in_use(&life.status()).len(), 2 - count, "{:?}", life.whys);
        let left = life.agent(member).leaving;
        assert!(left.is_some(), "member {member}");
        assert!(life.seen.snapshots.last().unwrap().status.leaving.is_empty(), "all leave");
    }
    assert_eq!(life.phase(), JobPhase::Evacuating, "the generation is not complete");
    life.store(2, 1);
    life.stores = true;
    life.run(20);
    let status = life.status();
    assert_eq!((status.phase, status.kills.preempted, status.attempt), (JobPhase::Running, 1, 2), "{:?}", life.whys);
    assert_eq!((status.origin.unwrap().generation, status.work.lost), (Some(2), 0));
}

#[test]
fn b5_what_is_not_safe_when_the_grace_ends_is_left_with_the_last_generation() {
    let mut life = running(3);
    life.stores = false;
    let wanted = slot_of(&life, 0);
    life.notice(&wanted, NoticeKind::Preemption);
    life.run(56);
    assert_eq!(in_use(&life.status()).len(), 3);
    life.run(5);
    let status = life.status();
    assert!(!in_use(&status).contains(&wanted.as_str()), "{:?}", status.slots);
    life.stores = true;
    life.run(20);
    let status = life.status();
    assert_eq!((status.phase, status.origin.unwrap().generation), (JobPhase::Running, Some(1)), "{:?}", life.whys);
    assert_eq!((status.kills.preempted, status.attempt), (1, 2));
}

#[test]
fn b6_a_slot_that_is_wanted_while_the_others_wait_is_left_too() {
    let mut life = running(3);
    life.stores = false;
    let (first, second) = (slot_of(&life, 0), slot_of(&life, 1));
    life.notice(&first, NoticeKind::Preemption);
    life.run(2);
    safe(&mut life, &[0]);
    life.run(2);
    life.notice(&second, NoticeKind::Preemption);
    life.run(8);
    assert_eq!(life.seen.snapshots.last().unwrap().status.leaving, [0, 1]);
    assert_eq!(in_use(&life.status()).len(), 2);
    safe(&mut life, &[0, 1]);
    life.run(2);
    assert_eq!(in_use(&life.status()), [slot_of(&life, 2)]);
    life.store(2, 1);
    life.stores = true;
    life.run(10);
    assert_eq!((life.phase(), asked(&life)), (JobPhase::Running, 2), "{:?}", life.whys);
    assert_eq!(life.status().kills.preempted, 1);
}

#[test]
fn slots_that_wait_for_others_are_given_back_after_a_while() {
    let mut life = running(3);
    life.prompt = false;
    let lost = slot_of(&life, 1);
    life.end_slot(&lost, End::Preempted);
    life.run(30);
    let status = life.status();
    assert_eq!((status.phase, in_use(&status).len(), asked(&life)), (JobPhase::Queued, 3, 1), "{:?}", life.whys);
    let held: Vec<String> = in_use(&life.status()).into_iter().map(str::to_owned).collect();
    life.run(600);
    assert!(in_use(&life.status()).iter().all(|id| !held.contains(&(*id).to_owned())), "{:?}", life.status().slots);
    life.run(30);
    assert_eq!((asked(&life), in_use(&life.status()).len()), (3, 3), "{:?}", life.whys);
}

#[test]
fn b6_a_slot_that_waits_for_others_and_is_wanted_is_given_back_at_once() {
    let mut life = running(3);
    life.prompt = false;
    let lost = slot_of(&life, 1);
    life.end_slot(&lost, End::Preempted);
    life.run(20);
    let wanted = slot_of(&life, 2);
    assert!(in_use(&life.status()).contains(&wanted.as_str()));
    life.notice(&wanted, NoticeKind::Preemption);
    life.run(3);
    let status = life.status();
    assert!(!in_use(&status).contains(&wanted.as_str()), "{:?}", status.slots);
    assert_eq!((in_use(&status).len(), asked(&life), status.kills.preempted), (3, 1, 1), "{:?}", life.whys);
}

#[test]
fn slots_that_are_taken_together_are_one_kill() {
    let mut life = running(4);
    let lost = [slot_of(&life, 0), slot_of(&life, 3)];
    life.end_slot(&lost[0], End::Preempted);
    life.end_slot(&lost[1], End::Preempted);
    life.run(20);
    let status = life.status();
    assert_eq!((status.phase, asked(&life)), (JobPhase::Running, 2), "{:?}", life.whys);
    assert_eq!((status.kills.preempted, status.attempt), (1, 2));
    // one more, in a pass of its own
    let lost = [slot_of(&life, 0), slot_of(&life, 3)];
    life.prompt = false;
    life.end_slot(&lost[0], End::Preempted);
    life.run(5);
    life.end_slot(&lost[1], End::Preempted);
    life.run(5);
    let status = life.status();
    assert_eq!((status.kills.preempted, status.attempt), (2, 3), "{:?}", life.whys);
    assert_eq!(in_use(&status).len(), 4);
}

#[test]
fn a_slot_that_is_wanted_before_the_guests_run_is_left_alone_and_counts() {
    let mut life = one_by_one(3);
    for _ in 0..3 {
        life.pass();
    }
    let wanted = slot_of(&life, 1);
    life.notice(&wanted, NoticeKind::Preemption);
    life.run(30);
    let status = life.status();
    assert_eq!((status.phase, asked(&life), status.kills.preempted), (JobPhase::Running, 1, 1), "{:?}", life.whys);
    assert!(!in_use(&status).contains(&wanted.as_str()));
}

#[test]
fn a_node_that_does_not_load_its_guest_costs_its_own_slot_only() {
    let mut life = one_by_one(3);
    for _ in 0..3 {
        life.pass();
    }
    let bad = slot_of(&life, 1);
    life.agent(1).vm = VmState::Gone { reason: "no QEMU".into(), fault: LoadFault::Node };
    life.run(40);
    let status = life.status();
    assert_eq!((status.phase, asked(&life)), (JobPhase::Running, 1), "{:?}", life.whys);
    assert!(!in_use(&status).contains(&bad.as_str()));
}

#[test]
fn a10_a_lost_answer_is_found_again_whole_and_what_is_too_much_is_given_back() {
    let mut life = one_by_one(3);
    life.pass();
    let plan = life.plan();
    life.write_only(&plan);
    life.seen.reply = Some(Reply { submission: 1, outcome: Err(SiteError::Unreachable("time-out".into())) });
    let found: Vec<String> = (0..2).map(|_| life.add_slot(1)).collect();
    life.run(2);
    // the site shows the last ones later
    let late = life.add_slot(1);
    let surplus = life.add_slot(1);
    life.run(5);
    let status = life.status();
    assert_eq!(in_use(&status), [found[0].as_str(), &found[1], &late]);
    let given_back = |slot: &&SlotStatus| slot.release.as_ref().map(|r| r.reason) == Some(ReleaseReason::Duplicate);
    let given_back: Vec<&str> = status.slots.iter().filter(given_back).map(|slot| slot.id.as_str()).collect();
    assert!(given_back.is_empty() || given_back == [surplus.as_str()], "{:?}", status.slots);
    assert!(life.effects("ReleaseSlot").iter().any(|e| matches!(e, Effect::ReleaseSlot { id } if id.0 == surplus)));
    assert_eq!(life.effects("SubmitSlots").len(), 0);
}

#[test]
fn b4_one_slot_deleted_by_a_person_suspends_the_job_and_holds_nothing() {
    let mut life = running(3);
    let deleted = slot_of(&life, 1);
    life.end_slot(&deleted, End::Deleted("alice".into()));
    life.run(30);
    let status = life.status();
    assert_eq!((status.phase, status.slots.len()), (JobPhase::Suspended, 0), "{:?}", life.whys);
    assert_eq!(status.kills.cancelled, 1);
    // those who are on slots that are given back with it are told so
    let told = |member: u32| life.clone().agent(member).leaving;
    assert_eq!([told(0), told(2)], [Some(LeaveCode::Saved); 2]);
}

#[test]
fn suspension_gives_all_slots_back_and_keeps_the_work() {
    let mut life = running(2);
    life.job.spec.suspend = true;
    life.run(30);
    let status = life.status();
    assert_eq!((status.phase, status.slots.len(), status.work.lost), (JobPhase::Suspended, 0, 0), "{:?}", life.whys);
    assert_eq!(status.snapshots.last_stored, Some(2));
}

#[test]
fn a_slot_whose_bytes_are_safe_may_end_by_itself_and_costs_nothing() {
    let mut life = running(3);
    life.stores = false;
    let (wanted, other) = (slot_of(&life, 0), slot_of(&life, 1));
    life.notice(&wanted, NoticeKind::Preemption);
    life.run(3);
    safe(&mut life, &[1]);
    life.end_slot(&other, End::Preempted);
    life.run(3);
    assert_eq!((life.phase(), life.agent(2).leaving), (JobPhase::Evacuating, None), "{:?}", life.whys.last());
    life.store(2, 1);
    life.stores = true;
    life.run(20);
    let status = life.status();
    assert_eq!((status.phase, status.kills.preempted, status.attempt), (JobPhase::Running, 1, 2));
    assert_eq!((status.origin.unwrap().generation, status.work.lost), (Some(2), 0));
}

#[test]
fn b6_members_that_stay_do_not_stand_for_ever() {
    let mut life = running(3);
    life.stores = false;
    let wanted = slot_of(&life, 0);
    life.notice(&wanted, NoticeKind::Preemption);
    life.run(3);
    safe(&mut life, &[0]);
    life.run(590);
    assert_eq!((life.phase(), in_use(&life.status()).len()), (JobPhase::Evacuating, 2), "{:?}", life.whys.last());
    life.run(20);
    assert_ne!(life.phase(), JobPhase::Evacuating, "{:?}", life.whys.last());
}

#[test]
fn who_is_suspended_keeps_all_slots_until_nothing_can_fail() {
    let mut life = running(2);
    life.stores = false;
    life.job.spec.suspend = true;
    life.run(3);
    safe(&mut life, &[0]);
    life.run(5);
    assert_eq!(in_use(&life.status()).len(), 2, "{:?}", life.whys.last());
    life.store(2, 1);
    life.run(20);
    assert_eq!((life.phase(), life.status().slots.len()), (JobPhase::Suspended, 0));
}

#[test]
fn a6_a_slot_is_given_back_when_nothing_of_its_agent_is_left_and_not_with_its_vm() {
    let mut life = running(2);
    life.stores = false;
    let wanted = slot_of(&life, 0);
    life.notice(&wanted, NoticeKind::Preemption);
    life.run(3);
    safe(&mut life, &[0]);
    let plan = life.plan();
    assert!(plan.effects.iter().any(|effect| effect.name() == "Leave"), "{}", plan.why);
    life.write_only(&plan);
    life.agent(0).leaving = Some(LeaveCode::Saved);
    life.agent(0).vm = VmState::Gone { reason: "left".into(), fault: LoadFault::Unknown };
    // to end a VM may take longer than its hold gets to end
    life.advance(5);
    let gives_back = |life: &Life| life.plan().effects.iter().any(|effect| effect.name() == "ReleaseSlot");
    assert!(!gives_back(&life), "its files may be there still");
    let mut ended = life.clone();
    let pod = ended.pod_of(0);
    ended.end_pod(&pod);
    assert!(gives_back(&ended));
    life.agent(0).cleared = true;
    assert!(gives_back(&life));
}

#[test]
fn c1_slots_that_never_all_come_are_held_less_often_each_time() {
    let mut life = one_by_one(2);
    life.prompt = false;
    life.settle();
    let mut waits = Vec::new();
    for _ in 0..3 {
        let first = in_use(&life.status())[0].to_owned();
        life.start_slot(&first);
        life.run(602);
        waits.push(life.status().retry.unwrap().count);
        life.run(90);
    }
    assert_eq!(waits, [1, 2, 3], "{:?}", life.whys.last());
}

#[test]
fn b4_slots_that_a_person_deletes_together_are_one_cancellation() {
    let mut life = running(3);
    for member in 0..3 {
        let slot = slot_of(&life, member);
        life.end_slot(&slot, End::Deleted("alice".into()));
    }
    life.run(30);
    let status = life.status();
    assert_eq!((status.phase, status.kills.cancelled), (JobPhase::Suspended, 1), "{:?}", life.whys.last());
}

#[test]
fn a_slot_that_the_site_is_ending_keeps_no_other_from_being_given_back() {
    let mut life = running(3);
    life.stores = false;
    let (wanted, ending) = (slot_of(&life, 0), slot_of(&life, 1));
    life.notice(&wanted, NoticeKind::Preemption);
    life.run(3);
    life.slot(&ending).phase = SlotPhase::Ending;
    safe(&mut life, &[0]);
    life.run(2);
    assert!(!in_use(&life.status()).contains(&wanted.as_str()), "{:?}", life.whys.last());
}

/// One of three leaves, all bytes of another one are safe, and that one's slot ends by itself.
#[rstest]
#[case(End::Walltime, (0, 1, 0))]
#[case(End::HoldFailed("the hold was killed".into()), (0, 0, 1))]
fn a_safe_slot_that_ends_by_itself_is_counted_by_what_it_ended_of(#[case] end: End, #[case] kills: (u32, u32, u32)) {
    let mut life = running(3);
    life.stores = false;
    let (wanted, other) = (slot_of(&life, 0), slot_of(&life, 1));
    life.notice(&wanted, NoticeKind::Preemption);
    life.run(3);
    safe(&mut life, &[1]);
    life.end_slot(&other, end);
    life.run(3);
    let counted = life.status().kills;
    assert_eq!((counted.preempted, counted.walltime, counted.node), kills, "{:?}", life.whys.last());
}

#[test]
fn a_last_capture_that_fails_after_all_slots_were_given_back_is_no_success() {
    let mut life = running(2);
    life.stores = false;
    for member in 0..2 {
        let slot = slot_of(&life, member);
        life.notice(&slot, NoticeKind::Preemption);
    }
    life.run(2);
    safe(&mut life, &[0, 1]);
    life.run(2);
    assert!(in_use(&life.status()).is_empty());
    life.seen.snapshots.last_mut().unwrap().status.phase = SnapshotPhase::Failed;
    life.run(3);
    let told = life.told(Reason::Preempted);
    let last = "leaving: the last capture could not be stored; generation 1 is complete; member-seconds lost: ";
    assert!(told.last().unwrap().starts_with(last), "{told:?}");
    assert!(life.status().work.lost > 0);
}

#[test]
fn where_all_leave_for_a_suspension_no_member_goes_before_the_others() {
    let mut life = running(3);
    life.stores = false;
    let wanted = slot_of(&life, 2);
    life.notice(&wanted, NoticeKind::Preemption);
    life.run(2);
    let leaving = |life: &Life| life.seen.snapshots.last().unwrap().status.leaving.clone();
    assert_eq!(leaving(&life), [2]);
    life.job.spec.suspend = true;
    life.run(6);
    assert_eq!((life.phase(), leaving(&life)), (JobPhase::Evacuating, Vec::new()));
}
