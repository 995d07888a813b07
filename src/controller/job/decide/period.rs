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

/// CPU-seconds between two kills where nothing is known: one kill per 47.6 CPU-hours, as in Grid'5000 from 2005 to
/// 2008, over 578,438 best-effort requests.
pub(super) const ASSUMED: f64 = 47.6 * HOUR;
pub(super) const HOUR: f64 = 3600.0;

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
    pub(super) fn counted(&self, tally: &Tally) -> u64 {
        if self.last.is_some() { tally.crashes } else { tally.kills }
    }

    /// Seconds between two of them, as the job is to expect.
    pub(super) fn between(&self) -> f64 {
        let (own, others) = (&self.own, &self.others);
        let there = (ASSUMED + others.cpu_seconds as f64) / (1.0 + self.counted(others) as f64);
        let expected = (there + own.cpu_seconds as f64) / (1.0 + self.counted(own) as f64);
        expected / self.cpus.max(1) as f64
    }
}

/// What decided a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// The rule alone.
    Rule,
    /// A generation takes longer to be complete.
    Completion,
    /// It may not be shorter.
    Min,
    /// It may not be longer.
    Max,
}

/// A period that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) period: Duration,
    /// What the rule alone says.
    pub(super) best: Duration,
    pub(super) limit: Limit,
}

/// Chooses the period.
pub(super) fn choose(facts: &Facts) -> Choice {
    let best = (2.0 * facts.pause.as_secs_f64() * facts.between()).sqrt().round();
    let best = Duration::from_secs_f64(best);
    let wanted = best.max(facts.completion.unwrap_or_default());
    let (least, most) = facts.bounds;
    let period = wanted.max(least).min(most);
    let limit = match period.cmp(&wanted) {
        Ordering::Less => Limit::Max,
        Ordering::Greater => Limit::Min,
        Ordering::Equal if wanted > best => Limit::Completion,
        Ordering::Equal => Limit::Rule,
    };
    Choice { period, best, limit }
}

#[cfg(test)]
#[path = "period_tests.rs"]
mod tests;
