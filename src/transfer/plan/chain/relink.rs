//! Whether to go on with the one that an image comes from. Pure.
//!
//! A node is slow because it is, or because the one before it is: then it is that one which is to be passed over, by
//! the one behind it. So a source is left for being slow only where its own source is not.
//!
//! The repository's link is everybody's, and is not for the slow. But where the first one of a chain has the image and
//! its link does not send it on, all would wait for it: then the second one, and nobody else, has the rest from the
//! repository, which sends an image twice at most. A first one that is as slow at receiving is not passed over: nobody
//! knows another pace, and it is more often the repository that is slow, which others would only slow down further.

use std::collections::BTreeSet;

use crate::{
    driver::agent::peer::{Origin, Report},
    names::MemberIndex,
};

/// Seconds without a word, where there is one each second.
const SILENT: f64 = 5.0;
/// Seconds without a byte, while others have more.
const IDLE: f64 = 10.0;
/// The same, of one that ought to have more itself.
const LONG_IDLE: f64 = 60.0;
/// Slower than this share of what is usual is slow.
const SLOW: f64 = 0.5;
/// Seconds behind a source, where its link is slow; twice as many after each that was left for it.
const BEHIND: f64 = 3.0;
/// Seconds without a byte that say nothing of a link.
const MOMENT: f64 = 1.0;

/// What is known at a node of the one that it fetches from.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Whom it fetches from.
    pub source: MemberIndex,
    /// Bytes it has.
    pub have: u64,
    /// Bytes a second that come, if enough have come to say.
    pub pace: Option<f64>,
    /// Seconds since anything came from the source.
    pub silent: f64,
    /// Seconds since bytes came from it.
    pub idle: f64,
    /// How far those are that stand before it, as they say.
    pub known: &'a [Report],
    /// Whether another agent could take the source's place.
    pub others: bool,
    /// How many stand before it in the chain, passed over or not.
    pub before: usize,
    /// How many slow links were left already: the slow one may be its own.
    pub left_slow_links: u32,
}

/// Why a source is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It says nothing any more.
    Silent,
    /// It sends nothing, and others have more.
    Idle,
    /// It is slow, and whom it fetches from is not.
    Slow,
    /// It has more, and sends it slowly.
    SlowLink,
}

/// What is wrong with the source, if anything is.
pub fn fault(view: &View<'_>) -> Option<Fault> {
    if view.silent >= SILENT {
        return Some(Fault::Silent);
    }
    let of = |member: MemberIndex| view.known.iter().find(|report| report.member == member);
    let source = of(view.source);
    let others_have_more = view.known.iter().any(|report| report.member != view.source && report.have > view.have);
    // one that waits for bytes as well will send them on when they come
    let owes = source.is_none_or(|source| source.have > view.have || source.from == Origin::Nobody);
    if (view.idle >= IDLE && others_have_more) || (view.idle >= LONG_IDLE && owes) {
        return Some(Fault::Idle);
    }
    let (source, pace) = (source?, view.pace?);
    let usual = match (view.others, view.before) {
        (true, _) => usual(view.known)?,
        (false, 1) => source.pace?,
        (false, _) => return None,
    };
    let is_slow = |pace: f64| pace < usual * SLOW;
    if !is_slow(pace) {
        return None;
    }
    // whatever the one before that sends: it has more, and does not pass it on
    let behind = source.have.saturating_sub(view.have) as f64 / pace;
    if view.idle < MOMENT && behind >= BEHIND * f64::from(view.left_slow_links).exp2() {
        return Some(Fault::SlowLink);
    }
    // who is fed by the repository beside the first one has a part of its link
    let feeds = view.known.iter().filter(|report| report.from == Origin::Repository).count() as f64;
    let part = if source.from == Origin::Repository { feeds } else { 1.0 };
    if !source.pace.is_some_and(|pace| is_slow(pace * part)) {
        return None;
    }
    let above = match source.from {
        Origin::Member(above) => of(above).filter(|above| above.from != Origin::Nobody),
        Origin::Repository | Origin::Nobody => None,
    };
    let waits = above.is_some_and(|above| match above.pace {
        // it has begun anew: what is slow behind it will not be
        None => true,
        // the second one leaves a slow link itself, as soon as it lags behind
        Some(pace) => is_slow(pace) || view.before == 2,
    });
    (!waits).then_some(Fault::Slow)
}

/// The median of the paces that are known.
fn usual(known: &[Report]) -> Option<f64> {
    let mut paces: Vec<f64> = known.iter().filter_map(|report| report.pace).filter(|pace| pace.is_finite()).collect();
    paces.sort_by(f64::total_cmp);
    paces.get(paces.len() / 2).copied()
}

/// Whom to fetch from: the nearest of those before it that was not passed over.
pub fn next(before: &[MemberIndex], passed: &BTreeSet<MemberIndex>) -> Origin {
    let nearest = before.iter().find(|member| !passed.contains(member));
    nearest.map_or(Origin::Repository, |member| Origin::Member(*member))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn report(member: MemberIndex, have: u64, pace: f64) -> Report {
        let from = member.checked_sub(1).map_or(Origin::Repository, Origin::Member);
        Report { member, have, pace: (pace > 0.0).then_some(pace), from }
    }

    /// The source is member 3.
    fn view(known: &[Report]) -> View<'_> {
        View {
            source: 3,
            have: 10 << 20,
            pace: Some(10.0),
            silent: 0.5,
            idle: 0.5,
            known,
            others: true,
            before: 4,
            left_slow_links: 0,
        }
    }

    const HAVE: u64 = 10 << 20;
    const MORE: u64 = 40 << 20;

    #[rstest]
    #[case::all_as_fast([10.0, 10.0, 10.0, 10.0], HAVE, 10.0, None)]
    #[case::a_slow_source([10.0, 10.0, 10.0, 4.0], HAVE, 4.0, Some(Fault::Slow))]
    #[case::not_that_slow([10.0, 10.0, 10.0, 6.0], HAVE, 6.0, None)]
    #[case::the_one_before_is_the_slow_one([10.0, 10.0, 4.0, 4.0], HAVE, 4.0, None)]
    #[case::all_are_slow_behind_the_first([10.0, 1.0, 1.0, 1.0], HAVE, 1.0, None)]
    #[case::a_slow_link([10.0, 10.0, 10.0, 10.0], MORE, 3.0, Some(Fault::SlowLink))]
    #[case::a_warm_source_with_a_slow_link([10.0, 10.0, 10.0, 0.0], MORE, 3.0, Some(Fault::SlowLink))]
    #[case::nothing_to_compare_with([0.0, 0.0, 0.0, 0.0], MORE, 1.0, None)]
    #[case::a_source_that_alone_is_known([0.0, 0.0, 0.0, 4.0], MORE, 1.0, Some(Fault::SlowLink))]
    #[case::a_slow_source_that_has_more_than_it_sends([10.0, 10.0, 4.0, 4.0], MORE, 1.0, Some(Fault::SlowLink))]
    fn who_is_slow_is_passed_over_by_the_one_behind(
        #[case] paces: [f64; 4],
        #[case] source_has: u64,
        #[case] pace: f64,
        #[case] expected: Option<Fault>,
    ) {
        let known: Vec<Report> = (0..4)
            .map(|member: u32| report(member, if member == 3 { source_has } else { MORE }, paces[member as usize]))
            .collect();
        let seen = View { pace: Some(pace), ..view(&known) };
        assert_eq!(fault(&seen), expected);
        assert_eq!(fault(&View { others: false, ..seen }), None, "the repository is not for the slow");
        assert_eq!(fault(&View { pace: None, ..seen }), None, "it has only begun");
    }

    #[rstest]
    #[case::far_enough(30, 0.9, 0, Some(Fault::SlowLink))]
    #[case::not_far(29, 0.9, 0, None)]
    #[case::its_own_link_may_be_the_slow_one(30, 0.9, 1, None)]
    #[case::farther_than_behind_the_first_one(60, 0.9, 1, Some(Fault::SlowLink))]
    #[case::nothing_comes_at_all(30, 1.0, 0, None)]
    #[case::it_has_left_everybody(u64::MAX - HAVE, 0.9, u32::MAX, None)]
    fn a_slow_link_is_left_for_what_it_costs(
        #[case] lacks: u64,
        #[case] idle: f64,
        #[case] left_slow_links: u32,
        #[case] expected: Option<Fault>,
    ) {
        let known: Vec<Report> = (0..4).map(|member: u32| report(member, HAVE + lacks, 100.0)).collect();
        let seen = View { idle, left_slow_links, ..view(&known) };
        assert_eq!(fault(&seen), expected);
    }

    #[rstest]
    #[case::its_link(10.0, MORE, 4.0, Some(Fault::SlowLink))]
    #[case::not_that_slow(10.0, MORE, 6.0, None)]
    #[case::it_has_no_more_itself(10.0, HAVE, 4.0, None)]
    #[case::as_slow_as_what_feeds_it(4.0, MORE, 4.0, None)]
    #[case::it_was_warm(0.0, MORE, 4.0, None)]
    fn a_first_one_with_a_slow_link_is_passed_over_by_the_second(
        #[case] its_pace: f64,
        #[case] it_has: u64,
        #[case] pace: f64,
        #[case] expected: Option<Fault>,
    ) {
        let known = [report(0, it_has, its_pace)];
        let seen = View { source: 0, pace: Some(pace), others: false, before: 1, ..view(&known) };
        assert_eq!(fault(&seen), expected);
        assert_eq!(fault(&View { before: 2, ..seen }), None, "of those behind it the repository sees nothing");
    }

    #[rstest]
    #[case::it_leaves_the_link(2, Origin::Member(0), 2.0, None)]
    #[case::it_has_left_it(2, Origin::Repository, 2.0, Some(Fault::Slow))]
    #[case::it_has_its_part_of_the_repositorys_link(2, Origin::Repository, 4.0, None)]
    #[case::one_that_cannot_leave(3, Origin::Member(0), 2.0, Some(Fault::Slow))]
    fn the_third_waits_for_the_second_to_leave_a_slow_first(
        #[case] before: usize,
        #[case] from: Origin,
        #[case] pace: f64,
        #[case] expected: Option<Fault>,
    ) {
        let known = [Report { from, ..report(1, HAVE, pace) }, report(0, MORE, 10.0)];
        let seen = View { source: 1, pace: Some(pace), before, ..view(&known) };
        assert_eq!(fault(&seen), expected);
    }

    #[rstest]
    #[case::it_has_left_a_slow_one(Origin::Repository, None)]
    #[case::it_was_warm(Origin::Nobody, Some(Fault::Slow))]
    fn behind_one_that_has_begun_anew_nobody_is_slow_yet(#[case] from: Origin, #[case] expected: Option<Fault>) {
        let known = [report(3, HAVE, 4.0), Report { from, ..report(2, HAVE, 0.0) }, report(1, MORE, 10.0)];
        assert_eq!(fault(&View { pace: Some(4.0), ..view(&known) }), expected);
    }

    #[rstest]
    #[case::a_word_each_second(4.9, 4.9, HAVE, HAVE, Origin::Member(2), None)]
    #[case::not_a_word(5.0, 5.0, HAVE, HAVE, Origin::Member(2), Some(Fault::Silent))]
    #[case::all_wait(1.0, 600.0, HAVE, HAVE, Origin::Member(2), None)]
    #[case::others_have_more(1.0, 10.0, HAVE, MORE, Origin::Member(2), Some(Fault::Idle))]
    #[case::for_a_moment(1.0, 9.0, MORE, MORE, Origin::Member(2), None)]
    #[case::it_does_not_send_what_it_has(1.0, 60.0, MORE, HAVE, Origin::Member(2), Some(Fault::Idle))]
    #[case::it_does_nothing(1.0, 60.0, 0, HAVE, Origin::Nobody, Some(Fault::Idle))]
    fn who_sends_nothing_is_passed_over_where_others_would(
        #[case] silent: f64,
        #[case] idle: f64,
        #[case] source_has: u64,
        #[case] first_has: u64,
        #[case] from: Origin,
        #[case] expected: Option<Fault>,
    ) {
        let known = [Report { from, ..report(3, source_has, 0.0) }, report(0, first_has, 0.0)];
        let seen = View { silent, idle, pace: None, ..view(&known) };
        assert_eq!(fault(&seen), expected);
        assert_eq!(fault(&View { others: false, ..seen }), expected, "then the repository is asked");
    }

    #[test]
    fn a_source_that_says_nothing_of_itself_is_waited_for_no_longer() {
        let seen = View { idle: LONG_IDLE, pace: None, ..view(&[]) };
        assert_eq!(fault(&seen), Some(Fault::Idle));
    }

    fn reports() -> impl Strategy<Value = Vec<Report>> {
        let from = prop_oneof![Just(Origin::Nobody), Just(Origin::Repository), (0..9u32).prop_map(Origin::Member)];
        let one = (0..9u32, any::<u64>(), proptest::option::of(any::<f64>()), from);
        proptest::collection::vec(one.prop_map(|(member, have, pace, from)| Report { member, have, pace, from }), 0..9)
    }

    proptest! {
        #[test]
        fn whatever_others_say_the_repository_is_reached_in_the_end(
            known in reports(),
            have: u64,
            pace in proptest::option::of(any::<f64>()),
            (silent, idle) in (0.0..100.0, 0.0..100.0),
            chain in 0..9u32,
        ) {
            let before: Vec<MemberIndex> = (0..chain).rev().collect();
            let mut passed = BTreeSet::new();
            for _ in 0..=chain {
                let Origin::Member(source) = next(&before, &passed) else { break };
                let others = passed.len() + 1 < before.len();
                let (known, left_slow_links, count) = (&known[..], 0, before.len());
                let seen = View { source, have, pace, silent, idle, known, others, before: count, left_slow_links };
                match fault(&seen) {
                    Some(Fault::Slow) => prop_assert!(others && pace.is_some()),
                    Some(Fault::SlowLink) => prop_assert!((others || count == 1) && pace.is_some()),
                    Some(Fault::Silent) => prop_assert!(silent >= SILENT),
                    Some(Fault::Idle) => prop_assert!(idle >= IDLE),
                    None => {}
                }
                prop_assert!(passed.insert(source), "nobody is asked again");
            }
            prop_assert_eq!(next(&before, &passed), Origin::Repository);
        }
    }
}
