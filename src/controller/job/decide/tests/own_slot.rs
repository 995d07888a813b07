//! A master whose node is a slot of its own: what becomes of it costs the members nothing.

use rstest::rstest;

use super::{life::*, one_by_one::*};
use crate::{
    api::{
        JobPhase, Reason,
        job::{Master, NetworkSpec},
        job_status::{Kills, MemberPhase, SlotState},
    },
    driver::{
        agent::{LeaveCode, LoadFault, VmState},
        site::{End, NoticeKind, SlotPhase},
    },
};

const MEMBERS: u32 = 4;

/// A job that has run for a while, and the slot of its master.
fn guarded() -> (Life, String) {
    let mut life = one_by_one(MEMBERS);
    life.job.spec.network = Some(NetworkSpec { master: Master::Dedicated, ..NetworkSpec::default() });
    life.run(700);
    assert_eq!((life.phase(), life.status().snapshots.last_stored), (JobPhase::Running, Some(1)), "{:?}", life.whys);
    let slot = life.status().master.unwrap().agent.unwrap().slot;
    assert_eq!(in_use(&life.status()).len(), 5);
    (life, slot)
}

/// The members run as if nothing had been.
fn nothing_is_lost(life: &Life) {
    let status = life.status();
    assert_eq!((status.phase, status.attempt, status.incarnation), (JobPhase::Running, 1, 1), "{:?}", life.whys.last());
    assert_eq!((status.kills, status.work.lost, in_use(&status).len()), (Kills::default(), 0, 4));
    assert!((0..MEMBERS).all(|member| life.clone().agent(member).leaving.is_none()));
    assert_eq!(life.effects("SubmitSlots").len(), 1, "no other one is asked for");
    let admitted = life.message("Admitted");
    assert!(admitted.starts_with("True SlotsRunning: "), "{admitted}");
}

#[rstest]
#[case(End::Preempted)]
#[case(End::Walltime)]
#[case(End::HoldFailed("the hold was killed".into()))]
fn the_end_of_a_masters_slot_costs_the_members_nothing(#[case] end: End) {
    let (mut life, slot) = guarded();
    life.end_slot(&slot, end);
    life.run(30);
    nothing_is_lost(&life);
    assert!(life.message("GuestDegraded").starts_with("True WayInLost: "), "{}", life.message("GuestDegraded"));
    // what comes late of the same request is nobody's
    let late = life.add_slot(1);
    life.start_slot(&late);
    life.run(10);
    nothing_is_lost(&life);
    life.run(650);
    assert!(life.status().snapshots.last_stored > Some(1), "snapshots go on");
    // the next attempt has a master again
    let wanted = slot_of(&life, 0);
    life.notice(&wanted, NoticeKind::Preemption);
    life.run(60);
    let status = life.status();
    assert_eq!((status.phase, status.incarnation, asked(&life)), (JobPhase::Running, 2, 2), "{:?}", life.whys.last());
    assert_eq!((in_use(&status).len(), status.work.lost), (5, 0));
}

#[rstest]
#[case(NoticeKind::Preemption, Reason::Preempted)]
#[case(NoticeKind::Walltime, Reason::WalltimeOver)]
fn a_masters_slot_that_is_wanted_is_given_back_and_no_other(#[case] kind: NoticeKind, #[case] reason: Reason) {
    let (mut life, slot) = guarded();
    let captures = life.effects("Capture").len();
    life.notice(&slot, kind);
    life.run(30);
    nothing_is_lost(&life);
    assert_eq!(life.effects("Capture").len(), captures, "no member leaves");
    assert!(matches!(life.slot(&slot).phase, SlotPhase::Ended(_)));
    assert_eq!(life.agent(MEMBERS).leaving, Some(LeaveCode::Saved));
    let told = life.told(reason);
    assert!(told.iter().any(|message| message.starts_with(&format!("slot {slot} is "))), "{told:?}");
}

#[test]
fn a_masters_slot_that_nobody_wants_is_kept_when_all_members_leave_and_they_leave_in_success() {
    let (mut life, slot) = guarded();
    (life.stores, life.prompt) = (false, false);
    for member in 0..MEMBERS as usize {
        let wanted = slot_of(&life, member);
        life.notice(&wanted, NoticeKind::Preemption);
    }
    life.run(2);
    safe(&mut life, &[0, 1, 2, 3]);
    life.run(5);
    assert_eq!((life.phase(), in_use(&life.status())), (JobPhase::Evacuating, vec![slot.as_str()]));
    life.store(2, 1);
    life.run(10);
    let status = life.status();
    assert_eq!(
        (status.phase, status.kills.preempted, asked(&life)),
        (JobPhase::Queued, 1, 4),
        "{:?}",
        life.whys.last()
    );
    assert!(in_use(&status).contains(&slot.as_str()));
    assert_eq!(life.told(Reason::Preempted).iter().filter(|message| message.starts_with("leaving: ")).count(), 0);
    let kept = life.told(Reason::SnapshotStored);
    assert!(kept.iter().any(|message| message.starts_with("leaving: generation 2 is complete")), "{kept:?}");
}

#[test]
fn a6_a_masters_slot_is_given_back_when_nothing_of_its_agent_is_left() {
    let (mut life, slot) = guarded();
    life.notice(&slot, NoticeKind::Preemption);
    let plan = life.plan();
    let does =
        |plan: &crate::controller::job::plan::Plan, what| plan.effects.iter().any(|effect| effect.name() == what);
    assert!(does(&plan, "Leave") && !does(&plan, "ReleaseSlot"), "{}", plan.why);
    life.write_only(&plan);
    let agent = life.agent(MEMBERS);
    (agent.leaving, agent.vm) =
        (Some(LeaveCode::Saved), VmState::Gone { reason: "left".into(), fault: LoadFault::Unknown });
    life.advance(5);
    assert!(!does(&life.plan(), "ReleaseSlot"));
    life.agent(MEMBERS).cleared = true;
    assert!(does(&life.plan(), "ReleaseSlot"));
}

/// With its slot it would be forgotten that the site has cleared its node.
#[test]
fn a1_a_slot_that_is_over_is_kept_in_mind_until_its_master_is_dead() {
    let (mut life, slot) = guarded();
    life.silence(MEMBERS);
    life.slot(&slot).phase = SlotPhase::Ended(End::Preempted);
    life.run(10);
    let over = |life: &Life| life.status().slots.iter().any(|s| s.id == slot && s.state == SlotState::Ended);
    assert!(over(&life));
    life.run(20);
    let master = life.status().master.unwrap();
    assert_eq!((over(&life), master.phase, master.agent.unwrap().unproven), (false, MemberPhase::Dead, false));
}
