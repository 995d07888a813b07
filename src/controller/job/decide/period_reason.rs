//! Says why an adaptive period is what it is, for the status. Pure.

use std::time::Duration;

use super::period::{ASSUMED, Choice, Facts, HOUR, Limit};
use crate::controller::job::tally::Tally;

/// The reason of a choice, in short sentences.
pub(super) fn reason(choice: &Choice, facts: &Facts) -> String {
    let mut sentences = vec![length(choice, facts), pause(facts), kills(facts)];
    sentences.extend(facts.last.map(|last| format!("Notice is enough for a last snapshot of {}.", span(last))));
    sentences.join(" ")
}

fn length(choice: &Choice, facts: &Facts) -> String {
    let (best, period) = (choice.best.as_secs(), choice.period.as_secs_f64());
    let complete = facts.completion.unwrap_or_default();
    match choice.limit {
        Limit::Rule => format!("{best} s by Young's rule."),
        Limit::Completion => {
            format!(
                "{best} s by Young's rule, raised to the {} that a generation takes to be complete.",
                span(complete)
            )
        }
        Limit::Min => format!("{best} s by Young's rule, raised to minPeriod {period} s."),
        Limit::Max if complete > choice.best => format!(
            "{best} s by Young's rule. A generation takes {} to be complete, limited to maxPeriod {period} s.",
            span(complete)
        ),
        Limit::Max => format!("{best} s by Young's rule, lowered to maxPeriod {period} s."),
    }
}

fn pause(facts: &Facts) -> String {
    let median = match facts.pauses {
        0 => "assumed before the first".to_owned(),
        n => format!("median of {n}"),
    };
    format!("Pause {} ({median}).", span(facts.pause))
}

fn kills(facts: &Facts) -> String {
    let kill = if facts.last.is_some() { "kill without notice" } else { "kill" };
    let cpus = if facts.cpus == 1 { "CPU" } else { "CPUs" };
    let lived = |tally: &Tally| format!("{} in {:.2} CPU-hours", facts.counted(tally), tally.cpu_seconds as f64 / HOUR);
    format!(
        "One {kill} expected every {} on {} {cpus}: {} of its own, {} of other jobs at this site and property, \
         one in {:.1} assumed as in Grid'5000.",
        span(Duration::from_secs_f64(facts.between())),
        facts.cpus,
        lived(&facts.own),
        lived(&facts.others),
        ASSUMED / HOUR,
    )
}

/// A length of time, as short as people would write it.
fn span(length: Duration) -> String {
    let seconds = length.as_secs_f64();
    if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1000.0)
    } else if seconds < 120.0 {
        format!("{seconds:.1} s")
    } else if seconds < 2.0 * HOUR {
        format!("{:.0} min", seconds / 60.0)
    } else {
        format!("{:.1} h", seconds / HOUR)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::controller::job::decide::period::choose;

    fn facts() -> Facts {
        Facts {
            pause: Duration::from_millis(10),
            pauses: 3,
            completion: None,
            own: Tally::default(),
            others: Tally { kills: 2, crashes: 1, cpu_seconds: 171_360 },
            cpus: 4,
            last: None,
            bounds: (Duration::from_secs(30), Duration::from_secs(600)),
        }
    }

    #[test]
    fn a_reason_says_what_it_was_chosen_from() {
        let says = |facts: &Facts| reason(&choose(facts), facts);
        assert_eq!(
            says(&facts()),
            "24 s by Young's rule, raised to minPeriod 30 s. Pause 10 ms (median of 3). One kill expected every 7.9 h on \
             4 CPUs: 0 in 0.00 CPU-hours of its own, 2 in 47.60 CPU-hours of other jobs at this site and property, one \
             in 47.6 assumed as in Grid'5000."
        );
        let told = Facts {
            pause: Duration::from_secs(1),
            pauses: 0,
            cpus: 1,
            last: Some(Duration::from_secs(8)),
            own: Tally { kills: 7, crashes: 1, cpu_seconds: 5148 },
            ..facts()
        };
        assert_eq!(
            says(&told),
            "420 s by Young's rule. Pause 1.0 s (assumed before the first). One kill without notice expected every \
             24.5 h on 1 CPU: 1 in 1.43 CPU-hours of its own, 1 in 47.60 CPU-hours of other jobs at this site and \
             property, one in 47.6 assumed as in Grid'5000. Notice is enough for a last snapshot of 8.0 s."
        );
    }

    #[rstest]
    #[case::just_right(5000, 0, "534 s by Young's rule. Pause")]
    #[case::too_often(10, 0, "24 s by Young's rule, raised to minPeriod 30 s. Pause")]
    #[case::too_seldom(60_000, 0, "1851 s by Young's rule, lowered to maxPeriod 600 s. Pause")]
    #[case::too_slow(
        100,
        95,
        "76 s by Young's rule, raised to the 95.0 s that a generation takes to be complete. Pause"
    )]
    #[case::far_too_slow(
        100,
        900,
        "76 s by Young's rule. A generation takes 15 min to be complete, limited to maxPeriod 600 s. Pause"
    )]
    fn a_reason_says_what_decided(#[case] pause: u64, #[case] completion: u64, #[case] says: &str) {
        let pause = Duration::from_millis(pause);
        let facts = Facts { pause, completion: Some(Duration::from_secs(completion)), ..facts() };
        let reason = reason(&choose(&facts), &facts);
        assert!(reason.starts_with(says), "{reason}");
    }
}
