//! Ends: of slots, by cause; of commands; of time.

use std::time::Duration;

use rstest::rstest;

use super::life::*;
use crate::{
    api::{
        JobPhase, Reason,
        job::{OnNotice, RunMembers},
        job_status::Kills,
    },
    driver::{
        agent::{LoadFault, VmState},
        site::{End, NoticeKind, SlotPhase},
    },
};

#[rstest]
#[case(End::Preempted, Kills { preempted: 1, abrupt: 1, ..Kills::default() })]
#[case(End::SavedAtPreemption, Kills { preempted: 1, ..Kills::default() })]
#[case(End::Walltime, Kills { walltime: 1, ..Kills::default() })]
#[case(End::SavedAtWalltime, Kills { walltime: 1, ..Kills::default() })]
#[case(End::Infrastructure("CPUSET_ERROR".into()), Kills { node: 1, ..Kills::default() })]
#[case(End::HoldFailed("the hold was killed".into()), Kills { node: 1, ..Kills::default() })]
#[case(End::Released, Kills { node: 1, ..Kills::default() })]
fn ends_are_counted_by_cause_and_the_job_goes_on(#[case] end: End, #[case] kills: Kills) {
    let mut life = Life::running(2);
    life.run(10);
    life.end_slot("101", end);
    life.run(10);
    let status = life.status();
    assert_eq!((status.kills, status.failures, status.phase), (kills, 0, JobPhase::Running));
    assert_eq!(status.attempt, 2);
}

#[test]
fn a_waiting_slot_deleted_by_a_person_suspends_the_job() {
    let mut life = life(1);
    life.prompt = false;
    life.settle();
    life.end_slot("101", End::Deleted("alice".into()));
    life.run(5);
    assert_eq!(life.phase(), JobPhase::Suspended);
    let helps = "set suspend to true and to false again";
    for kind in ["Ready", "Stalled"] {
        assert!(life.message(kind).contains(helps), "{kind}: {}", life.message(kind));
    }
    let told = life.told(Reason::CancelledExternally);
    assert!(told.iter().any(|text| text.contains(helps)), "{told:?}");
    assert_eq!(life.effects("SubmitSlots").len(), 1);
}

#[test]
fn a_member_that_dies_alone_takes_all_back_on_the_same_slot() {
    let mut life = Life::running(2);
    life.run(700);
    life.agent(1).vm = VmState::Gone { reason: "QEMU ended".into(), fault: LoadFault::Unknown };
    life.run(20);
    let status = life.status();
    assert_eq!((status.phase, status.incarnation, status.submission), (JobPhase::Running, 2, 1), "{:?}", life.whys);
    assert_eq!((status.attempt, status.kills.node), (2, 1));
    assert_eq!(status.origin.unwrap().generation, Some(1));
}

#[test]
fn an_agent_that_dies_with_its_slot_is_the_slots_end() {
    let mut life = Life::running(1);
    life.run(10);
    let pod = life.status().members[0].agent.clone().unwrap().pod;
    life.end_pod(&pod);
    life.run(3);
    life.end_slot("101", End::Preempted);
    life.run(10);
    let status = life.status();
    assert_eq!((status.kills.preempted, status.kills.node, status.attempt), (1, 0, 2), "{:?}", life.whys);
}

#[rstest]
#[case::in_the_end(true, Kills { preempted: 1, ..Kills::default() })]
#[case::never(false, Kills { node: 1, ..Kills::default() })]
fn a_slot_that_the_site_is_ending_is_lost_once(#[case] ended: bool, #[case] kills: Kills) {
    let mut life = Life::running(1);
    life.job.spec.snapshots.grace = Duration::ZERO.into();
    life.run(10);
    life.slot("101").phase = SlotPhase::Ending;
    let pod = life.status().members[0].agent.clone().unwrap().pod;
    life.end_pod(&pod);
    life.run(40);
    assert_eq!(life.status().kills, Kills::default(), "{:?}", life.whys);
    if ended {
        life.end_slot("101", End::Preempted);
    }
    life.run(40);
    let status = life.status();
    assert_eq!((status.kills, status.attempt, status.submission), (kills, 2, 2), "{:?}", life.whys);
}

#[test]
fn a_member_that_dies_at_a_notice_holds_nobody_in_a_slot_that_is_not_taken_after_all() {
    let mut life = Life::running(2);
    life.run(700);
    life.agent(1).vm = VmState::Gone { reason: "QEMU ended".into(), fault: LoadFault::Unknown };
    life.notice("101", NoticeKind::Preemption);
    life.run(30);
    let status = life.status();
    assert_eq!((status.phase, status.attempt, status.submission), (JobPhase::Running, 2, 2), "{:?}", life.whys);
    assert_eq!((status.kills.preempted, status.origin.unwrap().generation), (1, Some(1)));
}

#[test]
fn an_agent_whose_pod_takes_its_time_is_not_a_node_that_is_lost() {
    let mut life = life(1);
    while life.effects("CreateAgent").is_empty() {
        life.advance(1);
        life.pass();
    }
    let (pod, now) = (life.pod_of(0), life.now);
    let agent = life.seen.agents.get_mut(&pod).unwrap();
    (agent.state, agent.heard, agent.listening) = (None, None, now);
    life.seen.pods.get_mut(&pod).unwrap().waiting = Some("ErrImagePull".into());
    for second in 1..=310 {
        life.advance(1);
        let plan = life.plan();
        life.write_only(&plan);
        let status = life.status();
        let lost = (status.kills.node, status.slots[0].release.is_some());
        assert_eq!(lost, if second < 300 { (0, false) } else { (1, true) }, "after {second} s: {}", plan.why);
    }
    let said = life.message("Ready");
    let expected = format!("no agent answered on node node-1 within 300 s: pod {pod}: ErrImagePull");
    assert!(said.ends_with(&expected), "{said}");
}

#[test]
fn a_command_that_fails_is_tried_again_from_the_image_up_to_the_limit() {
    let mut life = Life::running(1);
    life.job.spec.backoff_limit = 1;
    life.run(700);
    assert_eq!(life.status().snapshots.last_stored, Some(1));
    life.finish(3);
    life.run(40);
    let status = life.status();
    assert_eq!((status.phase, status.failures), (JobPhase::Running, 1), "{:?}", life.whys);
    assert_eq!(status.origin.unwrap().generation, None, "not from a generation of the run that failed");
    assert_eq!(status.submission, 1);
    life.end_slot("101", End::Preempted);
    life.run(10);
    assert_eq!(life.status().origin.unwrap().generation, None);
    life.finish(4);
    life.run(20);
    assert_eq!((life.phase(), life.status().failures), (JobPhase::Failed, 2));
    assert!(life.message("Failed").contains("the command ended with 4 on member 0"), "{}", life.message("Failed"));
    assert!(life.status().slots.is_empty());
}

#[test]
fn a_guest_that_never_answers_is_told_of_and_goes_on() {
    let mut life = Life::running(2);
    life.run(5);
    life.agent(1).guest.silent = true;
    life.run(5);
    let said = life.message("GuestDegraded");
    for part in ["GuestSilent", "member 1", "has never answered", "qemu-guest-agent", "console"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(life.phase(), JobPhase::Running);
    (life.agent(1).guest.silent, life.agent(1).guest.answers) = (false, true);
    life.run(5);
    assert_eq!(life.message("GuestDegraded"), "");
}

/// The events of these seconds that tell of a guest.
fn told(life: &mut Life, seconds: i64) -> Vec<Reason> {
    let mut told = Vec::new();
    for _ in 0..seconds {
        life.advance(1);
        let notes = life.pass().notes;
        let of_guest = |reason: &Reason| matches!(reason, Reason::GuestSilent | Reason::GuestNotReset);
        told.extend(notes.into_iter().filter(|note| note.warning).map(|note| note.reason).filter(of_guest));
    }
    told
}

#[test]
fn a_silent_guest_is_told_of_by_one_event() {
    let mut life = Life::running(2);
    assert_eq!(told(&mut life, 5), []);
    life.agent(1).guest.silent = true;
    assert_eq!(told(&mut life, 10), [Reason::GuestSilent]);
    // another operator, which has not heard the agents yet: unknown takes nothing back
    let (pod, said) = (life.pod_of(1), life.message("GuestDegraded"));
    let state = life.seen.agents.get_mut(&pod).unwrap().state.take();
    assert_eq!(told(&mut life, 3), []);
    assert_eq!(life.message("GuestDegraded"), said);
    life.seen.agents.get_mut(&pod).unwrap().state = state;
    assert_eq!(told(&mut life, 3), []);
    life.agent(1).guest.silent = false;
    assert_eq!(told(&mut life, 3), []);
    assert_eq!(life.message("GuestDegraded"), "");
    life.agent(1).guest.silent = true;
    assert_eq!(told(&mut life, 3), [Reason::GuestSilent]);
}

#[test]
fn what_is_not_kept_is_told_of_before_the_job_has_succeeded() {
    let mut life = Life::running(1);
    life.run(5);
    life.agent(0).guest.exit_code = Some(0);
    assert_eq!(told(&mut life, 3), []);
    assert_eq!(life.phase(), JobPhase::Completing);
    life.agent(0).guest.problem = Some("/data/result is not kept: no".into());
    assert_eq!(told(&mut life, 3), [Reason::GuestNotReset]);
    assert!(life.message("GuestDegraded").contains("/data/result is not kept"));
    life.agent(0).guest.outputs_kept = true;
    assert_eq!(told(&mut life, 20), []);
    assert_eq!((life.phase(), life.message("GuestDegraded").as_str()), (JobPhase::Succeeded, ""));
}

#[test]
fn only_member_0_counts_if_only_it_runs_the_command() {
    let mut life = Life::running(3);
    life.job.spec.run.members = RunMembers::First;
    life.run(5);
    let guest = &mut life.agent(0).guest;
    (guest.exit_code, guest.outputs_kept) = (Some(0), true);
    life.run(10);
    assert_eq!(life.phase(), JobPhase::Succeeded);
}

#[test]
fn outputs_are_kept_before_the_slots_are_left() {
    let mut life = Life::running(1);
    life.run(5);
    life.finish(0);
    life.agent(0).guest.outputs_kept = false;
    life.run(20);
    assert_eq!((life.phase(), life.effects("Leave").len()), (JobPhase::Completing, 0));
    life.agent(0).guest.outputs_kept = true;
    life.run(10);
    assert_eq!(life.phase(), JobPhase::Succeeded);
}

#[test]
fn a_kill_before_the_outputs_are_kept_runs_the_end_again() {
    let mut life = Life::running(1);
    life.run(700);
    life.finish(0);
    life.agent(0).guest.outputs_kept = false;
    life.run(2);
    life.end_slot("101", End::Preempted);
    life.run(10);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
    assert_eq!(life.status().origin.unwrap().generation, Some(1));
}

#[test]
fn a_kill_after_the_outputs_are_kept_is_success() {
    let mut life = Life::running(1);
    life.run(5);
    life.finish(0);
    life.end_slot("101", End::Preempted);
    life.run(5);
    assert_eq!(life.phase(), JobPhase::Succeeded, "{:?}", life.whys);
}

#[test]
fn the_deadline_fails_a_job_suspensions_aside() {
    let mut life = Life::running(1);
    life.job.spec.active_deadline = Some(Duration::from_secs(100).into());
    life.run(50);
    life.job.spec.suspend = true;
    life.run(300);
    assert_eq!(life.phase(), JobPhase::Suspended);
    life.job.spec.suspend = false;
    life.run(30);
    assert_eq!(life.phase(), JobPhase::Running);
    life.run(40);
    assert_eq!(life.phase(), JobPhase::Failed);
    for kind in ["Failed", "Stalled", "Ready"] {
        assert!(life.message(kind).contains("DeadlineExceeded"), "{kind}");
    }
    assert!(life.status().slots.is_empty());
}

#[test]
fn a_finished_job_goes_when_its_time_is_over() {
    let mut life = Life::running(1);
    life.job.spec.ttl_after_finished = Some(Duration::from_secs(60).into());
    life.run(5);
    life.finish(0);
    life.run(50);
    assert_eq!((life.phase(), life.gone), (JobPhase::Succeeded, false));
    life.run(20);
    assert_eq!(life.effects("DeleteJob").len(), 1);
}

#[test]
fn leave_leaves_at_once_with_what_there_is() {
    let mut life = Life::running(1);
    life.run(700);
    life.job.spec.snapshots.on_notice = OnNotice::Leave;
    life.notice("101", NoticeKind::Preemption);
    let plan = life.pass();
    assert_eq!(plan.why, "the slots are left");
    let text = &plan.notes.last().unwrap().message;
    assert!(text.contains("generation 1 is complete") && text.contains("lost"), "{text}");
    life.run(10);
    assert_eq!(life.status().origin.unwrap().generation, Some(1));
}

#[test]
fn a_grace_that_is_too_short_is_said_with_figures() {
    let mut life = Life::running(1);
    life.run(700);
    life.stores = false;
    life.notice("101", NoticeKind::Preemption);
    let mut notes = Vec::new();
    for _ in 0..60 {
        life.advance(1);
        notes.extend(life.pass().notes);
    }
    let text = notes.iter().map(|note| note.message.clone()).find(|text| text.contains("too short")).unwrap();
    assert!(text.contains("generation 1 is complete") && text.contains("member-seconds lost"), "{text}");
}

#[test]
fn a_persons_checkpoint_is_nothing_to_leave_for() {
    let mut life = Life::running(1);
    life.run(10);
    life.notice("101", NoticeKind::Person);
    life.agent(0).notice = Some(Duration::from_secs(1));
    life.run(30);
    assert_eq!((life.phase(), life.status().submission), (JobPhase::Running, 1));
}

#[test]
fn an_agents_word_is_enough_to_leave() {
    let mut life = Life::running(1);
    life.run(10);
    life.agent(0).notice = Some(Duration::ZERO);
    life.pass();
    assert_eq!(life.phase(), JobPhase::Evacuating);
}
