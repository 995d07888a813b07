//! Periods: fixed ones, and what an adaptive one is chosen from.

use std::time::Duration;

use jiff::SignedDuration;

use super::life::*;
use crate::{
    api::{
        ConditionType, JobPhase, Reason,
        conditions::{self, Truth},
        job::OnNotice,
        period::Period,
    },
    controller::job::tally::Tally,
    driver::site::End,
};

fn adaptive() -> Life {
    let mut life = life(1);
    life.job.spec.snapshots.period = Period::Adaptive;
    life.pause_ms = 1000;
    life.run(5);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
    life
}

fn chosen(life: &Life) -> (u64, String) {
    let snapshots = life.status().snapshots;
    (Duration::from(snapshots.period.unwrap()).as_secs(), snapshots.period_reason.unwrap_or_default())
}

/// Seconds until the next periodic snapshot is due.
fn due(life: &Life) -> i64 {
    life.status().snapshots.next_at.unwrap().0.duration_since(life.now).as_secs()
}

/// Runs until another periodic snapshot is complete, and lets all so far have taken so long for it.
fn capture(life: &mut Life, completion: i64) {
    let before = life.effects("Capture").len();
    while life.effects("Capture").len() == before {
        life.run(1);
    }
    life.run(2);
    measure(life, completion);
}

fn measure(life: &mut Life, completion: i64) {
    for snapshot in &mut life.seen.snapshots {
        let status = &mut snapshot.status;
        let complete = status.taken_at.as_ref().unwrap().0 + SignedDuration::from_secs(completion);
        let list = &mut status.conditions;
        list.clear();
        conditions::set(list, ConditionType::Ready, Truth::True, Reason::SnapshotStored, "", 1, complete);
    }
}

#[test]
fn a_fixed_period_is_what_was_asked_for_and_needs_no_reason() {
    let mut life = Life::running(1);
    assert_eq!(chosen(&life), (600, String::new()));
    // from and to adaptive
    life.job.spec.snapshots.period = Period::Adaptive;
    capture(&mut life, 5);
    assert!(chosen(&life).1.contains("by Young's rule. "), "{:?}", chosen(&life));
    life.job.spec.snapshots.period = Duration::from_secs(500).into();
    capture(&mut life, 5);
    assert_eq!(chosen(&life), (500, String::new()));
    assert!((440..=552).contains(&due(&life)), "{}", due(&life));
}

#[test]
fn a_period_follows_the_pause_that_is_measured() {
    let mut life = adaptive();
    let (period, reason) = chosen(&life);
    assert_eq!(period, 585, "{reason}");
    assert!(reason.contains("1.0 s (assumed before the first)"), "{reason}");
    life.pause_ms = 40;
    capture(&mut life, 5);
    let (period, reason) = chosen(&life);
    assert_eq!(period, 117, "{reason}");
    assert!(reason.contains("Pause 40 ms (median of 1)"), "{reason}");
    assert!((100..=130).contains(&due(&life)), "the next is planned anew: {}", due(&life));
    // not shorter than a generation takes to be complete
    measure(&mut life, 200);
    capture(&mut life, 200);
    assert_eq!(chosen(&life).0, 200, "{:?}", chosen(&life));
}

#[test]
fn a_period_and_its_reason_change_only_by_more_than_a_tenth() {
    let mut life = adaptive();
    let first = chosen(&life);
    let hours = |hours: u64| Tally { kills: 0, crashes: 0, cpu_seconds: hours * 3600 };
    life.seen.others = hours(9);
    capture(&mut life, 5);
    assert_eq!(chosen(&life), first);
    life.seen.others = hours(48);
    capture(&mut life, 5);
    assert_eq!(chosen(&life).0, 831);
    // but a new bound holds at once
    life.job.spec.snapshots.max_period = Some(Duration::from_secs(800).into());
    capture(&mut life, 5);
    let (period, reason) = chosen(&life);
    assert!(period == 800 && reason.contains("lowered to maxPeriod 800 s"), "{period} {reason}");
}

#[test]
fn kills_that_notice_comes_before_count_only_if_it_is_too_short() {
    let mut life = adaptive();
    life.seen.others = Tally { kills: 99, crashes: 0, cpu_seconds: 52 * 3600 };
    capture(&mut life, 8);
    assert_eq!(chosen(&life).0, 92, "how long a generation takes is not known yet: all count");
    capture(&mut life, 8);
    let (period, reason) = chosen(&life);
    assert_eq!(period, 848, "{reason}");
    assert!(reason.ends_with("Notice is enough for a last snapshot of 8.0 s."), "{reason}");
    // one that came without it
    life.end_slot("101", End::Preempted);
    life.run(10);
    let (period, reason) = chosen(&life);
    assert_eq!((period, life.status().kills.abrupt), (599, 1), "{reason}");
    assert!(reason.contains(": 1 in 0."), "{reason}");
    // a last snapshot that takes too long, a site that gives no notice, and a job that does not use it
    let short = |life: &mut Life, change: &dyn Fn(&mut Life)| {
        let mut life = life.clone();
        change(&mut life);
        capture(&mut life, 8);
        chosen(&life)
    };
    for change in [
        &|life: &mut Life| measure(life, 57) as _,
        &|life: &mut Life| life.seen.site.as_mut().unwrap().capabilities.notice = false,
        &|life: &mut Life| life.job.spec.snapshots.on_notice = OnNotice::Leave,
    ] as [&dyn Fn(&mut Life); 3]
    {
        let (period, reason) = short(&mut life, change);
        assert!(period < 100 && reason.contains("One kill expected"), "{period} {reason}");
    }
}
