//! Never two copies, never beside the next user.

use rstest::rstest;

use super::life::*;
use crate::{
    api::{JobPhase, job_status::ReleaseReason},
    controller::job::plan::{Effect, Leadership, Reply},
    driver::{
        Fact,
        site::{End, SiteError, SlotPhase},
    },
};

fn created(life: &Life) -> usize {
    life.effects("CreateAgent").len()
}

/// Seconds from the end of the slot until the members are made anew, with agents that are not heard
/// and pods of which nothing is known.
fn seconds_until_replaced(end: Option<End>, unreached: bool) -> u32 {
    let mut life = Life::running(2);
    life.run(10);
    life.silence(0);
    life.silence(1);
    if let Some(end) = end {
        life.slot("101").phase = SlotPhase::Ended(end);
        life.slot("101").unreached = unreached;
    }
    let before = created(&life);
    for second in 0..400 {
        life.run(1);
        if created(&life) > before {
            return second + 1;
        }
    }
    panic!("never: {:?}", &life.whys[life.whys.len() - 5..])
}

#[rstest]
#[case::slot_killed(Some(End::Preempted), false, 20)]
#[case::slot_timed_out(Some(End::Walltime), false, 20)]
#[case::killed_without_reaching_a_node(Some(End::Preempted), true, 125)]
#[case::timed_out_without_reaching_a_node(Some(End::Walltime), true, 125)]
#[case::the_site_could_not_reach_the_node(Some(End::Infrastructure("EXTERMINATE_JOB".into())), true, 125)]
#[case::the_site_says_nothing(None, false, 125)]
fn a1_every_old_member_is_confirmed_dead_first(#[case] end: Option<End>, #[case] unreached: bool, #[case] least: u32) {
    let seconds = seconds_until_replaced(end, unreached);
    assert!(seconds >= least && seconds <= least + 5, "{seconds}");
}

/// A member that fell silent long before may have the holder's beat until its slot ends.
#[test]
fn a1_a_lease_is_outlived_from_the_end_of_its_slot() {
    let mut life = Life::running(2);
    life.silence(0);
    life.silence(1);
    life.run(60);
    life.slot("101").phase = SlotPhase::Ended(End::Preempted);
    life.run(19);
    assert_eq!(created(&life), 2);
    life.run(5);
    assert_eq!(created(&life), 4);
}

/// Both members fall silent and the slot ends so; afterwards they are replaced.
fn replaced(end: End) -> Life {
    let mut life = Life::running(2);
    life.run(10);
    life.silence(0);
    life.silence(1);
    life.slot("101").phase = SlotPhase::Ended(end);
    while created(&life) < 4 {
        life.run(1);
        assert!(life.now < at(START + 600), "{:?}", life.whys.last());
    }
    life
}

/// Seconds from the fence until the guests of the next incarnation run.
fn seconds_until_running(life: &mut Life) -> i64 {
    let fenced = life.now;
    assert_eq!(life.status().incarnation, 2);
    while life.effects("Go").len() < 2 {
        life.run(1);
        assert!(life.now < at(START + 1200), "{:?}", life.whys.last());
    }
    life.now.duration_since(fenced).as_secs()
}

const AFTERLIFE: std::ops::RangeInclusive<i64> = 145..=150;

#[test]
fn a1_silent_members_are_given_their_time_after_the_fence() {
    let silent = || replaced(End::Infrastructure("EXTERMINATE_JOB".into()));
    let mut life = silent();
    let mut waiting = life.clone();
    waiting.run(60);
    assert_eq!((waiting.phase(), waiting.effects("Go").len()), (JobPhase::Starting, 1));
    assert!(waiting.message("Running").contains("given its time"), "{}", waiting.message("Running"));
    assert!(AFTERLIFE.contains(&seconds_until_running(&mut life)));
    // what the site has killed on its nodes, or a kubelet saw end, needs no time
    assert!(seconds_until_running(&mut replaced(End::Preempted)) <= 3);
    // another leader's clock may have been behind: the time counts anew
    let mut led = silent();
    led.run(100);
    led.seen.leader = Leadership { epoch: 2, since: led.now };
    assert!(AFTERLIFE.contains(&seconds_until_running(&mut led)));
}

#[test]
fn a1_the_time_of_a_silent_member_outlives_the_incarnation_after_it() {
    let mut life = replaced(End::Infrastructure("EXTERMINATE_JOB".into()));
    life.run(50);
    let fenced = life.status().origin.unwrap().fenced.unwrap();
    let pod = life.status().members[0].agent.clone().unwrap().pod;
    life.end_pod(&pod);
    life.run(30);
    assert_eq!(life.status().incarnation, 3, "{:?}", life.whys.last());
    while life.effects("Go").len() < 2 {
        life.run(1);
        assert!(life.now < at(START + 1200), "{:?}", life.whys.last());
    }
    assert!(AFTERLIFE.contains(&life.now.duration_since(fenced.0).as_secs()));
}

#[test]
fn a1_members_of_a_slot_given_up_for_a_bad_node_die_before_the_next_incarnation() {
    let mut life = Life::running(2);
    life.run(10);
    life.silence(1);
    life.run(124);
    assert_eq!((life.phase(), created(&life)), (JobPhase::Running, 2));
    life.run(10);
    assert_eq!(created(&life), 4);
    let leave = life.done.iter().position(|effect| effect.name() == "Leave").unwrap();
    let create = life.done.iter().rposition(|effect| effect.name() == "CreateAgent").unwrap();
    assert!(leave < create, "the member that lived was told to end");
    assert_eq!(life.status().kills.node, 1);
    let released = life.status().slots.iter().find(|slot| slot.id == "101").map(|slot| slot.release.clone());
    assert!(released.is_none_or(|intent| intent.unwrap().reason == ReleaseReason::BadNode));
}

#[test]
fn a8_an_order_to_start_has_a_deadline_within_the_slot() {
    let mut life = Life::running(1);
    life.run(1);
    let until = life.slot("101").until.unwrap();
    let Effect::CreateAgent(placement) = life.effects("CreateAgent")[0].clone() else { panic!() };
    assert!(placement.not_after <= until && placement.not_after > at(START));
}

#[test]
fn a9_no_agent_before_its_slot_is_in_the_status() {
    let mut life = life(2);
    for _ in 0..8 {
        life.advance(1);
        let plan = life.plan();
        for effect in &plan.effects {
            if let Effect::CreateAgent(placement) = effect {
                assert!(plan.status.slots.iter().any(|slot| slot.id == placement.slot.0));
                assert_eq!(plan.status.incarnation, placement.incarnation);
            }
        }
        life.pass();
    }
    assert_eq!(created(&life), 2);
}

/// A job whose first request was sent, and whose answer was lost.
fn doubtful() -> Life {
    let mut life = life(1);
    life.pass();
    let plan = life.plan();
    assert!(plan.effects.iter().any(|effect| effect.name() == "SubmitSlots"));
    life.write_only(&plan);
    life.seen.reply = Some(Reply { submission: 1, outcome: Err(SiteError::Unreachable("time-out".into())) });
    life
}

#[test]
fn a10_a_lost_answer_leads_to_a_look_up_and_adoption() {
    let mut life = doubtful();
    life.run(5);
    let id = life.add_slot(1);
    life.run(30);
    assert_eq!(life.effects("SubmitSlots").len(), 0);
    assert_eq!(life.status().slots[0].id, id);
    assert!(life.status().pending_submission.is_none());
}

#[test]
fn a10_a_second_request_only_after_reads_were_good_and_found_nothing() {
    let mut life = doubtful();
    life.seen.reads_good_since = None;
    life.run(60);
    assert_eq!(life.effects("SubmitSlots").len(), 0, "the site does not answer");
    life.seen.reads_good_since = Some(life.now);
    life.run(9);
    assert_eq!(life.effects("SubmitSlots").len(), 0);
    life.run(3);
    assert!(matches!(life.effects("SubmitSlots")[..], [Effect::SubmitSlots { submission: 2, .. }]));
}

#[test]
fn a10_a_look_up_before_the_request_proves_nothing() {
    let mut life = doubtful();
    let looked_up = life.seen.looked_up;
    for _ in 0..60 {
        life.advance(1);
        life.seen.looked_up = looked_up;
        life.settle();
    }
    assert_eq!(life.effects("SubmitSlots").len(), 0);
}

#[test]
fn a10_a_request_that_comes_late_is_given_back() {
    let mut life = doubtful();
    life.run(15);
    assert_eq!(life.status().submission, 2);
    let late = life.add_slot(1);
    life.start_slot(&late);
    life.run(10);
    assert!(life.effects("ReleaseSlot").contains(&&Effect::ReleaseSlot { id: late.into() }));
    assert_eq!(life.phase(), JobPhase::Running);
    assert_eq!(life.status().slots.len(), 1);
}

#[test]
fn a10_of_two_copies_the_lowest_id_stays() {
    let mut life = doubtful();
    let (first, second) = (life.add_slot(1), life.add_slot(1));
    life.run(3);
    assert!(life.effects("ReleaseSlot").contains(&&Effect::ReleaseSlot { id: second.into() }));
    assert_eq!(life.status().slots.iter().map(|slot| &slot.id).collect::<Vec<_>>(), [&first]);
}

#[test]
fn a10_a_status_from_a_backup_adopts_what_is_ahead_of_it() {
    let mut life = life(1);
    life.prompt = false;
    life.pass();
    let mut ahead = life.clone();
    let id = ahead.add_slot(7);
    ahead.run(3);
    assert_eq!((ahead.status().submission, ahead.effects("SubmitSlots").len()), (7, 0));
    assert_eq!(ahead.status().slots[0].id, id);
}

#[test]
fn a10_a_crash_before_the_request_does_not_send_it_twice() {
    let mut life = life(1);
    life.pass();
    let plan = life.plan();
    life.write_only(&plan);
    life.run(9);
    assert_eq!(life.effects("SubmitSlots").len(), 0);
    life.run(5);
    assert!(matches!(life.effects("SubmitSlots")[..], [Effect::SubmitSlots { submission: 2, .. }]));
}

#[test]
fn a11_a_pod_that_is_gone_is_not_a_dead_vm() {
    let mut life = Life::running(1);
    life.run(5);
    life.silence(0);
    life.seen.pods.clear();
    life.run(120);
    assert_eq!((life.phase(), created(&life)), (JobPhase::Running, 1));
}

#[test]
fn unknown_never_destroys() {
    let mut life = Life::running(2);
    life.run(10);
    life.done.clear();
    life.seen.slots = Fact::Unknown { since: life.now };
    life.seen.content = Fact::Unknown { since: life.now };
    life.seen.reads_good_since = None;
    life.run(500);
    assert_eq!(life.done, []);
    assert!(life.message("SchedulerUnavailable").starts_with("True"));
    assert_eq!(life.phase(), JobPhase::Running);
}

#[test]
fn a_slot_that_the_site_does_not_know_is_not_over() {
    let mut life = Life::running(1);
    life.run(5);
    life.done.clear();
    life.slot("101").phase = SlotPhase::Unknown("the site does not know this slot".into());
    life.run(100);
    assert_eq!((life.done.len(), life.phase()), (0, JobPhase::Running));
}

/// The members of an incarnation agree on the port whatever becomes of the configuration: an agent may
/// be made late, by another operator.
#[test]
fn the_port_of_a_network_is_written_down_with_its_number() {
    let mut life = Life::running(2);
    life.seen.network.port = 9999;
    life.run(30);
    assert_eq!(life.status().network.unwrap().port, 4789);
    life.end_slot("101", End::Preempted);
    life.run(10);
    let network = life.status().network.unwrap();
    assert_eq!((life.status().incarnation, network.port), (2, 9999));
}
