//! No deadlock, no endless loop.

use super::life::*;
use crate::{
    api::{JobPhase, job::Allocation, job_status::SlotState},
    driver::{
        agent::{LoadFault, VmState},
        site::{End, NoticeKind, SlotPhase},
    },
};

/// Every guest that is loaded fails.
fn fail_all(life: &mut Life, fault: LoadFault) {
    for member in 0..life.job.spec.members {
        let placed = life.status().members[member as usize].agent.clone();
        if placed.is_some_and(|a| {
            life.seen.agents.get(&a.pod).is_some_and(|agent| agent.state.as_ref().is_some_and(|s| s.leaving.is_none()))
        }) {
            life.agent(member).vm = VmState::Gone { reason: "test".into(), fault };
        }
    }
}

#[test]
fn c3_a_generation_that_makes_no_progress_gives_way_then_the_job_stalls() {
    let mut life = Life::running(1);
    life.run(1300);
    assert_eq!(life.status().snapshots.last_stored, Some(2));
    life.end_slot("101", End::Preempted);
    let mut origins = Vec::new();
    for _ in 0..2000 {
        life.advance(1);
        life.pass();
        let origin = life.status().origin.clone().unwrap();
        if matches!(life.phase(), JobPhase::Deploying | JobPhase::Restoring) {
            fail_all(&mut life, LoadFault::Unknown);
            origins.push((life.status().incarnation, origin.generation));
        }
    }
    origins.dedup();
    let generations: Vec<_> = origins.iter().filter(|(i, _)| *i > 1).map(|(_, g)| *g).collect();
    assert_eq!(generations, [Some(2), Some(2), Some(2), Some(1), Some(1), Some(1)]);
    assert!(life.message("Stalled").contains("RestoreFailed"), "{}", life.message("Stalled"));
    assert!(life.status().slots.is_empty(), "a stalled job holds nothing");
    assert_eq!(life.content().generations.len(), 2, "the data is kept");
}

/// Another volume is mounted where the repository's was: what it does not have is not what never was.
#[test]
fn c3_a_repository_that_lost_its_data_is_no_reason_to_begin_anew() {
    let mut life = Life::running(1);
    life.run(700);
    assert_eq!(life.status().snapshots.last_stored, Some(1));
    let kept = std::mem::take(life.content());
    let work = life.status().work.useful;
    life.end_slot("101", End::Preempted);
    life.run(60);
    assert_eq!(life.effects("CreateAgent").len(), 1, "{:?}", life.whys.last());
    assert!(life.message("Stalled").contains("no longer has generation 1"), "{}", life.message("Stalled"));
    assert!(life.status().slots.is_empty(), "a stalled job holds nothing");
    assert_eq!((life.status().snapshots.last_stored, life.status().work.useful), (Some(1), work));
    *life.content() = kept;
    life.job.metadata.generation = Some(2);
    life.run(20);
    assert_eq!((life.phase(), life.status().origin.unwrap().generation), (JobPhase::Running, Some(1)));
}

#[test]
fn c3_an_older_generation_serves_where_the_newest_is_gone() {
    let mut life = Life::running(1);
    life.run(1300);
    assert_eq!(life.status().snapshots.last_stored, Some(2));
    life.content().generations.retain(|summary| summary.generation == 1);
    life.end_slot("101", End::Preempted);
    life.run(30);
    assert_eq!((life.phase(), life.status().origin.unwrap().generation), (JobPhase::Running, Some(1)));
}

/// A job of two members whose guests are as `vm` says and stay so; seconds until the slot is left.
fn seconds_until_given_up(life: &mut Life, vm: &VmState) -> u32 {
    life.prompt = false;
    for second in 0..4000 {
        life.advance(1);
        life.pass();
        if life.phase() != JobPhase::Running && life.status().members.iter().all(|m| m.agent.is_some()) {
            let pod = life.status().members[1].agent.clone().unwrap().pod;
            let state = life.seen.agents.get_mut(&pod).and_then(|agent| agent.state.as_mut());
            if let Some(state) = state.filter(|state| state.leaving.is_none()) {
                state.vm = vm.clone();
            }
        }
        if life.phase() == JobPhase::Queued && second > 0 && life.status().attempt > 1 {
            return second;
        }
    }
    panic!("never: {:?} {:?}", life.phase(), life.whys.last())
}

#[rstest::rstest]
#[case::fetching(VmState::Fetching { done: 5 << 20, total: 9 << 20 }, "member 1 on node node-2 has loaded 5 of 9 MiB", 0)]
#[case::not_begun(VmState::None, "member 1 on node node-2 has not begun to load", 0)]
#[case::loaded(VmState::Loaded, "did not run within", 1)]
fn c3_a_start_that_gets_nowhere_is_given_up(#[case] vm: VmState, #[case] why: &str, #[case] tries: u32) {
    let mut life = life(2);
    life.advance(1);
    life.pass();
    let id = loop {
        life.advance(1);
        life.pass();
        if let Some(slot) = life.slots().first() {
            break slot.id.0.clone();
        }
    };
    assert_eq!(id, "101");
    let seconds = seconds_until_given_up(&mut life, &vm);
    // 2 GiB at 8 MiB/s, and ten minutes
    assert!((850..=870).contains(&seconds), "{seconds}");
    assert!(life.message("Ready").contains(why), "{}", life.message("Ready"));
    assert_eq!((life.status().kills.node, life.status().origin.clone().unwrap().tries), (1, tries));
    // the repository does not answer: nobody is to blame
    let mut silent = Life::running(2);
    silent.end_slot("101", End::Preempted);
    silent.run(30);
    silent.agent(1).vm = vm;
    let kept = std::mem::replace(&mut silent.seen.content, crate::driver::Fact::Unknown { since: silent.now });
    let attempt = silent.status().attempt;
    silent.run(1500);
    assert_eq!(silent.status().attempt, attempt);
    silent.seen.content = kept;
    silent.run(300);
    assert_eq!(silent.status().attempt, attempt, "it had no time to go on");
}

/// A job of two members that is being restored for so long, its guests in this state; then another operator leads,
/// which has heard nobody yet.
fn restoring_under_a_new_leader(seconds: u32, vm: &VmState) -> Life {
    let mut life = Life::running(2);
    life.run(700);
    life.end_slot("101", End::Preempted);
    for _ in 0..60 {
        life.advance(1);
        life.pass();
        if life.phase() == JobPhase::Restoring {
            break;
        }
    }
    assert_eq!(life.phase(), JobPhase::Restoring);
    for member in 0..2 {
        let state = life.agent(member);
        state.vm = vm.clone();
        state.lease = crate::driver::agent::LeaseState::Held;
    }
    life.advance(i64::from(seconds));
    life.seen.leader = crate::controller::job::plan::Leadership { epoch: 2, since: life.now };
    life
}

/// However long it takes, as long as bytes move; what then stands still is the node's fault.
#[test]
fn c3_a_slow_start_is_not_given_up_while_bytes_move() {
    let vm = |done| VmState::Fetching { done, total: 9 << 40 };
    let mut life = restoring_under_a_new_leader(0, &vm(0));
    life.agent(0).vm = VmState::Loaded;
    life.pass();
    let (attempt, origin, writes) = (life.status().attempt, life.status().origin.unwrap(), life.writes);
    let pod = life.pod_of(1);
    for minute in 0..60 {
        life.agent(1).vm = vm(minute << 20);
        life.seen.agents.get_mut(&pod).unwrap().moved = Some(life.now);
        life.run(60);
    }
    assert_eq!((life.status().attempt, life.phase()), (attempt, JobPhase::Restoring), "{:?}", life.whys.last());
    assert_eq!(life.writes, writes, "none tells of bytes");
    life.prompt = false;
    for _ in 0..1000 {
        if life.status().attempt == attempt {
            life.run(1);
        }
    }
    assert_eq!((life.status().attempt, life.phase()), (attempt + 1, JobPhase::Queued), "{:?}", life.whys.last());
    let told = life.message("Ready");
    assert!(told.contains("has loaded 59 of 9437184 MiB, and did not get on for"), "{told}");
    let now = life.status().origin.unwrap();
    assert!(now.bad.is_empty() && now.tries < origin.tries.max(1), "{now:?}");
}

#[test]
fn b13_a_new_leader_hears_the_agents_before_it_gives_a_start_up() {
    let mut life = restoring_under_a_new_leader(400, &VmState::Fetching { done: 5 << 20, total: 9 << 20 });
    let attempt = life.status().attempt;
    let heard = life.seen.agents.clone();
    for agent in life.seen.agents.values_mut() {
        (agent.state, agent.heard, agent.listening) = (None, None, life.now);
    }
    life.pass();
    life.seen.agents = heard;
    life.run(5);
    assert_eq!((life.status().attempt, life.phase()), (attempt, JobPhase::Restoring), "{:?}", life.whys);
}

#[test]
fn c3_guests_that_loaded_while_no_operator_was_there_run() {
    let mut life = restoring_under_a_new_leader(1200, &VmState::Loaded);
    let attempt = life.status().attempt;
    life.pass();
    assert_eq!(life.status().attempt, attempt, "{:?}", life.whys);
    assert!(!life.effects("Go").is_empty(), "{:?}", life.whys);
}

#[test]
fn c3_nodes_that_cannot_load_are_left_and_say_nothing_against_the_generation() {
    let mut life = Life::running(1);
    life.run(1300);
    life.end_slot("101", End::Preempted);
    let (mut tried, mut slots) = (Vec::new(), Vec::new());
    for _ in 0..12_000 {
        life.advance(1);
        life.pass();
        let status = life.status();
        if matches!(life.phase(), JobPhase::Deploying | JobPhase::Restoring) {
            fail_all(&mut life, LoadFault::Node);
            tried.push((status.incarnation, status.origin.unwrap().generation));
            slots.push((status.incarnation, status.slots[0].id.clone()));
        }
    }
    tried.dedup();
    let generations: Vec<_> = tried.iter().filter(|(i, _)| *i > 1).map(|(_, g)| *g).collect();
    assert!(generations.len() > 11 && generations.iter().all(|generation| *generation == Some(2)), "{generations:?}");
    slots.retain(|(incarnation, _)| *incarnation > 1);
    slots.dedup();
    let mut ids: Vec<_> = slots.iter().map(|(_, id)| id.clone()).collect();
    ids.dedup();
    assert_eq!(ids.len(), generations.len(), "each on another slot");
}

#[test]
fn c3_a_job_that_never_starts_stalls_and_is_mended_by_a_new_spec() {
    let mut life = life(1);
    for _ in 0..600 {
        life.advance(1);
        life.pass();
        if matches!(life.phase(), JobPhase::Deploying | JobPhase::Starting) {
            fail_all(&mut life, LoadFault::Unknown);
        }
    }
    assert_eq!(life.effects("CreateAgent").len(), 3);
    assert!(life.message("Stalled").contains("did not start 3 times: member 0: test"), "{}", life.message("Stalled"));
    life.job.metadata.generation = Some(2);
    life.run(10);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
}

/// Each time the slot is taken away while the job waits to try again.
#[test]
fn c3_a_kill_after_a_start_has_failed_does_not_take_the_try_back() {
    let mut life = life(1);
    let mut kills = 0;
    for _ in 0..1200 {
        life.advance(1);
        life.pass();
        if matches!(life.phase(), JobPhase::Deploying | JobPhase::Starting) {
            fail_all(&mut life, LoadFault::Unknown);
        }
        let status = life.status();
        let running = status.slots.iter().find(|slot| slot.state == SlotState::Running && slot.release.is_none());
        if let Some(slot) = running.filter(|_| status.retry.is_some() && status.under_way().is_none()) {
            let id = slot.id.clone();
            life.end_slot(&id, End::Preempted);
            kills += 1;
        }
    }
    assert!(kills > 1, "{kills}");
    assert_eq!(life.effects("CreateAgent").len(), 3);
    assert!(life.message("Stalled").contains("did not start 3 times"), "{}", life.message("Stalled"));
}

/// Again and again a notice comes, and the slot is left without another generation.
#[rstest::rstest]
#[case::nothing_stored(10, false)]
#[case::a_generation(1300, false)]
#[case::while_it_is_restored(1300, true)]
fn c3_slots_that_are_left_at_a_notice_say_nothing_against_the_generation(#[case] before: u32, #[case] early: bool) {
    let mut life = Life::running(1);
    life.run(before);
    life.job.spec.snapshots.on_notice = crate::api::job::OnNotice::Leave;
    let stored = life.status().snapshots.last_stored;
    for round in 0..12 {
        if !early {
            life.run(5);
            assert_eq!(life.phase(), JobPhase::Running, "round {round}: {}", life.message("Stalled"));
        }
        let held = |life: &Life| {
            let status = life.status();
            let slot = status.slots.iter().find(|slot| slot.release.is_none() && slot.state == SlotState::Running);
            slot.map(|slot| slot.id.clone())
        };
        let mut id = None;
        for _ in 0..600 {
            life.advance(1);
            life.pass();
            id = held(&life).filter(|_| !early || life.phase() == JobPhase::Restoring || round == 0);
            if id.is_some() {
                break;
            }
        }
        let id = id.unwrap_or_else(|| panic!("round {round}: {:?} {}", life.phase(), life.message("Stalled")));
        life.notice(&id, NoticeKind::Preemption);
        for _ in 0..if early { 1 } else { 10 } {
            life.advance(1);
            life.pass();
        }
        life.end_slot(&id, End::Released);
        life.run(if early { 0 } else { 20 });
    }
    let origin = life.status().origin.unwrap();
    assert_eq!((origin.bad, life.status().snapshots.last_stored), (Vec::new(), stored));
}

#[test]
fn c3_a_job_that_is_preempted_again_and_again_is_not_at_fault() {
    let mut life = Life::running(1);
    for round in 0..12 {
        life.run(5);
        let id = life.status().slots.iter().find(|slot| slot.release.is_none()).unwrap().id.clone();
        life.end_slot(&id, End::Preempted);
        life.run(5);
        assert_eq!(life.phase(), JobPhase::Running, "round {round}");
    }
    assert_eq!(life.status().kills.preempted, 12);
}

#[test]
fn a_hold_that_never_takes_its_lease_is_a_bad_node() {
    let mut life = life(1);
    life.prompt = false;
    life.settle();
    life.start_slot("101");
    life.advance(1);
    life.pass();
    life.agent(0).lease = crate::driver::agent::LeaseState::Waiting;
    life.run(299);
    assert_eq!(life.status().submission, 1);
    life.run(30);
    assert_eq!((life.status().submission, life.status().kills.node), (2, 1), "{:?}", life.whys);
}

/// TakTuk is broken at the site, say.
#[rstest::rstest]
#[case(Allocation::Gang)]
#[case(Allocation::PerMember)]
fn c3_slots_that_fail_at_once_are_asked_for_later_each_time(#[case] allocation: Allocation) {
    let mut life = life(2);
    life.job.spec.slots.allocation = allocation;
    life.prompt = false;
    for _ in 0..20 {
        life.run(3);
        for slot in life.status().slots {
            life.slot(&slot.id).phase = SlotPhase::Ended(End::HoldFailed("the hold was killed".into()));
        }
        life.run(5);
    }
    let requests = life.effects("SubmitSlots").len();
    assert!((3..=5).contains(&requests), "{requests} requests");
    let told = life.message("Ready");
    assert!(told.starts_with("False NodeLost: slot ") && told.contains(" is lost: the hold "), "{told}");
    // it is over once the guests run
    life.prompt = true;
    life.run(200);
    assert_eq!((life.phase(), life.status().retry), (JobPhase::Running, None), "{:?}", life.whys.last());
}
