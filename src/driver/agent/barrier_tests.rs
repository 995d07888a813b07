use super::*;

const MAX: Duration = Duration::from_secs(2);

fn order(generation: Generation, resume: bool) -> CaptureOrder {
    CaptureOrder {
        authority: Authority { epoch: 3, incarnation: 5 },
        generation,
        nonce: format!("n{generation}"),
        resume,
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn record() -> MemberPart {
    super::super::fake::member_part(0)
}

fn stopped_barrier(order: &CaptureOrder) -> Barrier {
    let mut barrier = Barrier::new(5, MAX);
    assert_eq!(barrier.prepare(order), Ok(Todo::Work));
    assert_eq!(barrier.stop(order), Ok(Todo::Work));
    barrier.stopped(at(10), Timestamp::UNIX_EPOCH);
    barrier
}

#[test]
fn a9_lower_authority_is_refused_for_good() {
    let mut barrier = Barrier::new(5, MAX);
    assert!(barrier.admit(Authority { epoch: 4, incarnation: 5 }).is_ok());
    assert!(barrier.admit(Authority { epoch: 3, incarnation: 5 }).is_err());
    assert!(barrier.admit(Authority { epoch: 9, incarnation: 4 }).is_err());
    assert!(barrier.admit(Authority { epoch: 4, incarnation: 5 }).is_ok());
}

#[test]
fn b2_a_late_cut_is_refused_once_the_guest_has_resumed() {
    let order = order(1, true);
    let mut barrier = stopped_barrier(&order);
    assert_eq!(barrier.tick(at(11)), Todo::Nothing);
    assert_eq!(barrier.tick(at(12)), Todo::Resume);
    barrier.resumed(at(12));
    assert!(barrier.cut(&order).is_err());
    assert!(barrier.prepare(&order).is_err());
    assert_eq!(barrier.part().unwrap().pause_ms, Some(2000));
}

#[test]
fn b2_a_generation_number_is_never_used_twice() {
    let mut barrier = stopped_barrier(&order(4, true));
    let other = CaptureOrder { nonce: "other".into(), ..order(4, true) };
    assert!(barrier.cut(&other).is_err());
    assert_eq!(barrier.abandon(&order(4, true), "test"), Ok(Todo::Resume));
    barrier.resumed(at(11));
    assert!(barrier.prepare(&other).is_err());
    assert!(barrier.prepare(&order(3, true)).is_err());
    assert_eq!(barrier.prepare(&order(5, true)), Ok(Todo::Work));
}

#[test]
fn b2_an_abandon_that_overtakes_its_prepare_burns_the_number() {
    let mut barrier = Barrier::new(5, MAX);
    assert_eq!(barrier.abandon(&order(7, true), "test"), Ok(Todo::Nothing));
    assert!(barrier.prepare(&order(7, true)).is_err());
}

#[test]
fn b3_a_member_that_is_not_told_to_stay_down_runs_on() {
    let order = order(1, false);
    let mut barrier = stopped_barrier(&order);
    assert_eq!(barrier.cut(&order), Ok(Todo::Work));
    barrier.writing();
    assert_eq!(barrier.tick(at(1000)), Todo::Nothing, "memory is being written");
    barrier.captured(at(1000), 1, record(), 1);
    assert_eq!(barrier.tick(at(1029)), Todo::Nothing);
    assert_eq!(barrier.tick(at(1030)), Todo::Resume);
    barrier.resumed(at(1030));
    assert!(barrier.stay_down(&order, at(60), at(1031)).is_err());
    assert_eq!(barrier.part().unwrap().state, PartState::Captured, "what was captured stays whole");
}

#[test]
fn b3_stay_down_has_a_limit_too() {
    let order = order(1, false);
    let mut barrier = stopped_barrier(&order);
    barrier.cut(&order).unwrap();
    barrier.writing();
    assert_eq!(barrier.stay_down(&order, at(60), at(15)), Ok(Todo::Nothing));
    barrier.captured(at(20), 1, record(), 1);
    assert_eq!(barrier.tick(at(79)), Todo::Nothing);
    assert_eq!(barrier.stay_down(&order, at(60), at(79)), Ok(Todo::Nothing));
    assert_eq!(barrier.tick(at(138)), Todo::Nothing);
    assert_eq!(barrier.tick(at(139)), Todo::Resume);
}

#[test]
fn every_step_may_come_twice() {
    let order = order(1, true);
    let mut barrier = stopped_barrier(&order);
    assert_eq!(barrier.prepare(&order), Ok(Todo::Nothing));
    assert_eq!(barrier.stop(&order), Ok(Todo::Nothing));
    assert_eq!(barrier.cut(&order), Ok(Todo::Work));
    barrier.writing();
    barrier.resumed(at(11));
    assert_eq!(barrier.cut(&order), Ok(Todo::Nothing));
    barrier.captured(at(12), 1, record(), 9);
    assert_eq!(barrier.cut(&order), Ok(Todo::Nothing));
    assert_eq!(barrier.part().unwrap().bytes, 9);
    assert_eq!(barrier.abandon(&order, "late"), Ok(Todo::Nothing));
    assert!(matches!(barrier.part().unwrap().state, PartState::Abandoned { .. }));
}

#[test]
fn a_part_given_up_while_it_is_written_stays_void() {
    let order = order(1, true);
    let mut barrier = stopped_barrier(&order);
    barrier.cut(&order).unwrap();
    barrier.writing();
    barrier.resumed(at(11));
    barrier.abandon(&order, "another member failed").unwrap();
    barrier.captured(at(12), 1, record(), 9);
    assert!(matches!(barrier.part().unwrap().state, PartState::Abandoned { .. }));
}

#[test]
fn b2_the_end_of_an_abandoned_capture_is_not_booked_on_the_next() {
    let first = order(1, true);
    let mut barrier = stopped_barrier(&first);
    barrier.cut(&first).unwrap();
    barrier.writing();
    barrier.resumed(at(11));
    barrier.abandon(&first, "another member failed").unwrap();
    let next = order(2, true);
    barrier.prepare(&next).unwrap();
    barrier.stop(&next).unwrap();
    barrier.stopped(at(20), Timestamp::UNIX_EPOCH);
    // the first one fails only now: the guest stands still for the next
    assert_eq!(barrier.give_up(1, "the disk is full"), Todo::Nothing);
    assert_eq!(barrier.part().unwrap().state, PartState::Stopped);
    assert_eq!(barrier.tick(at(22)), Todo::Resume, "it keeps its deadline");
    let mut barrier = stopped_barrier(&next);
    barrier.cut(&next).unwrap();
    barrier.writing();
    assert_eq!(barrier.captured(at(21), 1, record(), 9), None);
    assert_eq!(barrier.part().unwrap().state, PartState::Writing);
    assert_eq!(barrier.captured(at(22), 2, record(), 7).unwrap().bytes, 7);
}

#[test]
fn a_capture_in_progress_is_not_replaced() {
    let mut barrier = stopped_barrier(&order(1, true));
    assert!(barrier.prepare(&order(2, true)).is_err());
    barrier.cut(&order(1, true)).unwrap();
    barrier.writing();
    barrier.resumed(at(11));
    assert!(barrier.prepare(&order(2, true)).is_err(), "still being written");
}
