//! The rule for an adaptive period: Young's sqrt(2 C M). Pure.
//!
//! C is what a snapshot costs the job: the pause, not the copy beside it. M is the time between two kills of
//! the job: the longer it runs, the more its own experience counts, and before that the experience of others
//! where it runs, and before that a figure from other sites. A job of many CPUs is killed as a whole.
//!
//! A kill that notice comes before costs the time of notice, whatever the period is. If the time is enough
//! for a last snapshot, only the others count.

use std::{cmp::Ordering, time::Duration};

use crate::controller::job::tally::Tally;

/// CPU-seconds between two kills where nothing is known: 47.6 CPU-hours, over 578,438 best-effort requests.
const ASSUMED: f64 = 47.6 * HOUR;
const HOUR: f64 = 3600.0;

/// What a period is chosen from.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// How long a snapshot stops the guests.
    pub(super) pause: Duration,
    /// Snapshots that this was measured of; with none it is assumed.
    pub(super) pauses: usize,
    /// How long a generation takes to be complete, if that is known.
    pub(super) completion: Option<Duration>,
    /// What the job has lived through.
    pub(super) own: Tally,
    /// What other jobs have lived through where it runs.
    pub(super) others: Tally,
    /// CPUs of all members.
    pub(super) cpus: u64,
    /// The longest time a last snapshot may take, if the notice is enough for it.
    pub(super) last: Option<Duration>,
    /// The shortest and the longest period.
    pub(super) bounds: (Duration, Duration),
}

impl Facts {
    /// The kills that the period protects from.
    fn counted(&self, tally: &Tally) -> u64 {
        if self.last.is_some() { tally.crashes } else { tally.kills }
    }

    /// Seconds between two of them, as the job is to expect.
    fn between(&self) -> f64 {
        let (own, others) = (&self.own, &self.others);
        let there = (ASSUMED + others.cpu_seconds as f64) / (1.0 + self.counted(others) as f64);
        let expected = (there + own.cpu_seconds as f64) / (1.0 + self.counted(own) as f64);
        expected / self.cpus.max(1) as f64
    }
}

/// The period, and why.
pub(super) fn choose(facts: &Facts) -> (Duration, String) {
    let between = facts.between();
    let best = Duration::from_secs_f64((2.0 * facts.pause.as_secs_f64() * between).sqrt().round());
    let complete = facts.completion.unwrap_or_default();
    let (least, most) = facts.bounds;
    let wanted = best.max(complete);
    let period = wanted.max(least).min(most);
    let (pause, between) = (span(facts.pause), span(Duration::from_secs_f64(between)));
    let formula = format!("sqrt(2 x {pause} x {between}) = {} s", best.as_secs());
    let wanted_for = match facts.completion {
        Some(complete) if complete > best => {
            format!("the {} until a generation is complete, longer than {formula}", span(complete))
        }
        Some(_) | None => formula,
    };
    let held = match period.cmp(&wanted) {
        Ordering::Less => format!("maxPeriod, shorter than {wanted_for}"),
        Ordering::Greater => format!("minPeriod, longer than {wanted_for}"),
        Ordering::Equal => wanted_for,
    };
    let (kills, notice) = match facts.last {
        Some(last) => ("kills without notice", format!("; notice is enough for a last snapshot of {}", span(last))),
        None => ("kills", String::new()),
    };
    let median = match facts.pauses {
        0 => "assumed before the first".to_owned(),
        n => format!("the median of {n}"),
    };
    let lived = |tally: &Tally| format!("{} in {:.2} CPU-hours", facts.counted(tally), tally.cpu_seconds as f64 / HOUR);
    let reason = format!(
        "{held}; a snapshot stops the guests for {pause} ({median}), and two {kills} are {between} apart on {} {} \
         ({} of its own, {} of other jobs at this site and property, one in {:.1} assumed){notice}",
        facts.cpus,
        if facts.cpus == 1 { "CPU" } else { "CPUs" },
        lived(&facts.own),
        lived(&facts.others),
        ASSUMED / HOUR,
    );
    (period, reason)
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
#[path = "period_tests.rs"]
mod tests;
