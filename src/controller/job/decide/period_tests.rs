use std::time::Duration;

use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn facts(cpus: u64, pause: Duration) -> Facts {
    Facts {
        pause,
        pauses: 3,
        completion: None,
        own: Tally::default(),
        others: Tally::default(),
        cpus,
        last: None,
        bounds: (Duration::from_secs(5), Duration::from_secs(86_400)),
    }
}

fn tally(kills: u64, crashes: u64, cpu_hours: u64) -> Tally {
    Tally { kills, crashes, cpu_seconds: cpu_hours * 3600 }
}

fn seconds(facts: &Facts) -> u64 {
    choose(facts).period.as_secs()
}

/// The best periods at one kill in 47.6 CPU-hours.
#[rstest]
#[case::one_cpu_hardly_stopped(1, 50, 131)]
#[case::one_cpu_a_second(1, 1000, 585)]
#[case::four_cpus_a_second(4, 1000, 293)]
#[case::sixteen_cpus_half_a_minute(16, 30_000, 802)]
#[case::sixteen_cpus_stopped_for_all_of_it(16, 492_000, 3246)]
fn nothing_but_the_pause_is_known(#[case] cpus: u64, #[case] pause: u64, #[case] period: u64) {
    assert_eq!(seconds(&facts(cpus, Duration::from_millis(pause))), period);
}

#[rstest]
// (47.6 + 0.4) / 2 = 24 CPU-hours
#[case::killed_at_once(Tally { cpu_seconds: 1440, ..tally(1, 0, 0) }, tally(0, 0, 0), 416)]
// (47.6 + 400) / 1
#[case::never_killed(tally(0, 0, 400), tally(0, 0, 0), 1795)]
// (47.6 + 52.4) / 10 = 10 CPU-hours
#[case::a_place_of_many_kills(tally(0, 0, 0), Tally { cpu_seconds: 188_640, ..tally(9, 9, 0) }, 268)]
// the place says 10, the job itself (10 + 190) / 2 = 100
#[case::luckier_than_others(tally(1, 0, 190), Tally { cpu_seconds: 188_640, ..tally(9, 9, 0) }, 849)]
fn experience_counts(#[case] own: Tally, #[case] others: Tally, #[case] period: u64) {
    assert_eq!(seconds(&Facts { own, others, ..facts(1, Duration::from_secs(1)) }), period);
}

#[test]
fn a_notice_that_fits_leaves_only_the_kills_without_one() {
    let killed = Facts { own: tally(9, 1, 10), ..facts(1, Duration::from_secs(1)) };
    let told = Facts { last: Some(Duration::from_secs(8)), ..killed.clone() };
    assert_eq!((seconds(&killed), seconds(&told)), (204, 455));
}

#[rstest]
#[case::too_often(10, 0, 30, 29, Limit::Min)]
#[case::too_seldom(60_000, 0, 600, 2267, Limit::Max)]
#[case::too_slow(100, 95, 95, 93, Limit::Completion)]
#[case::far_too_slow(100, 900, 600, 93, Limit::Max)]
#[case::just_right(1000, 20, 293, 293, Limit::Rule)]
fn a_period_stays_within_its_bounds(
    #[case] pause: u64,
    #[case] completion: u64,
    #[case] period: u64,
    #[case] best: u64,
    #[case] limit: Limit,
) {
    let facts = Facts {
        completion: Some(Duration::from_secs(completion)),
        bounds: (Duration::from_secs(30), Duration::from_secs(600)),
        ..facts(4, Duration::from_millis(pause))
    };
    let (period, best) = (Duration::from_secs(period), Duration::from_secs(best));
    assert_eq!(choose(&facts), Choice { period, best, limit });
}

fn any_tally() -> impl Strategy<Value = Tally> {
    (0_u64..1000, 0_u64..1000, 0_u64..100_000_000_000).prop_map(|(kills, crashes, cpu_seconds)| Tally {
        kills: kills + crashes,
        crashes,
        cpu_seconds,
    })
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let length = |most: u64| (0..most).prop_map(Duration::from_millis);
    let bounds = (5_000_u64..100_000, 0_u64..10_000_000).prop_map(|(least, more)| (least, least + more));
    let known = (length(1_000_000), prop::option::of(length(1_000_000)), prop::option::of(length(600_000)));
    (known, any_tally(), any_tally(), 0_u64..100_000, bounds).prop_map(
        |((pause, completion, last), own, others, cpus, (least, most))| Facts {
            pause,
            pauses: 1,
            completion,
            own,
            others,
            cpus,
            last,
            bounds: (Duration::from_millis(least), Duration::from_millis(most)),
        },
    )
}

proptest! {
    #[test]
    fn a_period_is_within_bounds_and_grows_with_pause_and_time_between_kills(
        facts in any_facts(),
        pause in 0_u64..1_000_000,
        more in 1_u64..1000,
    ) {
        let (least, most) = facts.bounds;
        let period = choose(&facts).period;
        prop_assert!(least <= period && period <= most);
        let complete = facts.completion.unwrap_or_default().min(most);
        prop_assert!(period >= complete, "shorter than {complete:?}");
        let mut slower = facts.clone();
        slower.pause += Duration::from_millis(pause);
        prop_assert!(choose(&slower).period >= period, "a longer pause makes it shorter");
        for of_others in [false, true] {
            let (mut luckier, mut unluckier) = (facts.clone(), facts.clone());
            let which = |facts: &mut Facts, change: &dyn Fn(&mut Tally)| {
                change(if of_others { &mut facts.others } else { &mut facts.own });
            };
            which(&mut luckier, &|tally| tally.cpu_seconds += more * 3600);
            which(&mut unluckier, &|tally| {
                tally.kills += more;
                tally.crashes += more;
            });
            prop_assert!(choose(&luckier).period >= period, "time without kills makes it shorter");
            prop_assert!(choose(&unluckier).period <= period, "kills make it longer");
        }
        let mut bigger = facts.clone();
        bigger.cpus += more;
        prop_assert!(choose(&bigger).period <= period, "more CPUs make it longer");
    }
}
