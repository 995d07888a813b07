//! Who sends now, and how fast. Pure.
//!
//! Members that leave come first; then what was captured on the period or for a user; last the members that stay where
//! only some leave (safety B6). While anything of a rank can move, nothing of a lower one does: it gives way in the
//! middle, too, and goes on later with what the repository lacks. Within a rank as many send as fill the repository's
//! link: those that have begun before the others, and the smallest first, so that members get free early.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Case, Terms, is_evacuation,
    stage::{Sent, Stage},
};
use crate::names::MemberIndex;

/// The next one begins so many seconds before the last has ended: it has to find out what the repository has.
const AHEAD: f64 = 1.0;
/// Less than this, in bytes a second, would look like standing still.
const LEAST: u64 = 16 << 10;

/// What goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// Its slot is wanted back.
    Leaving,
    /// Its guest runs on.
    Periodic,
    /// It stays on its node and waits for others.
    Staying,
}

impl Rank {
    /// Of a member of a case.
    pub(super) fn of(case: &Case, member: MemberIndex) -> Self {
        if case.leaving.contains(&member) || (case.leaving.is_empty() && is_evacuation(case.reason)) {
            Self::Leaving
        } else if is_evacuation(case.reason) {
            Self::Staying
        } else {
            Self::Periodic
        }
    }
}

/// Whether a member sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It does, at most so many bytes a second.
    Sends(Option<u64>),
    /// It stands still.
    Stands,
}

impl Turn {
    /// The limit that its agent is told.
    pub(super) fn limit(self) -> Option<u64> {
        match self {
            Self::Sends(limit) => limit,
            Self::Stands => Some(0),
        }
    }
}

/// Places of a case and of a member in it.
pub(super) type Turns = BTreeMap<(usize, usize), Turn>;

struct Candidate {
    place: (usize, usize),
    rank: Rank,
    /// Its bytes move now.
    moves: bool,
    left: u64,
    /// It is about to end, and takes nobody's place.
    ends: bool,
    /// With it something newer to go back to is nearly complete: it does not give way.
    is_last: bool,
}

/// The turns of all that can send; `over` are cases of which nothing is to be sent any more.
pub(super) fn turns(
    staged: &[(&Case, Vec<Stage>)],
    over: &BTreeSet<usize>,
    last: &BTreeSet<Sent<'_>>,
    terms: &Terms,
) -> Turns {
    let mut all: Vec<Candidate> = Vec::new();
    for (number, (case, stages)) in staged.iter().enumerate().filter(|(number, _)| !over.contains(number)) {
        let places = case.agents.iter().zip(stages).enumerate();
        all.extend(places.filter_map(|(at, (agent, stage))| {
            let (moves, left, is_read) = match stage {
                // one that was told to stand still is asked for nothing else until it may go on
                Stage::Sending { left, limit, stands, reading_back, .. } if stands.is_none() || *limit == Some(0) => {
                    (*limit != Some(0), *left, reading_back.is_some())
                }
                Stage::Ready { bytes } => (false, *bytes, false),
                // its turn is that of the one that has it
                Stage::Held { left, limit, stands, .. } if stands.is_none() || *limit == Some(0) => {
                    (*limit != Some(0), *left, false)
                }
                // one that stands still by itself leaves the link to others
                Stage::Sending { .. }
                | Stage::Held { .. }
                | Stage::Assigned { .. }
                | Stage::Handing { .. }
                | Stage::Safe { .. }
                | Stage::Arrived { .. }
                | Stage::Waiting { .. }
                | Stage::Lost { .. } => return None,
            };
            let ends = moves && !is_read && terms.rate.is_some_and(|rate| left as f64 <= AHEAD * rate);
            let is_last = moves && last.contains(&(&case.job, case.incarnation, case.generation, agent.member));
            let sender = if let Stage::Held { by, .. } = stage { *by } else { agent.member };
            Some(Candidate { place: (number, at), rank: Rank::of(case, sender), moves, left, ends, is_last })
        }));
    }
    all.sort_by_key(|one| (one.rank, !one.moves, one.place.0, one.left, one.place.1));
    let first = all.iter().filter(|one| !one.ends).map(|one| one.rank).min();
    let mut places = terms.senders.max(1);
    let mut sends = |one: &Candidate| {
        if one.ends {
            return true;
        }
        let gets = Some(one.rank) == first && places > 0;
        places -= usize::from(gets);
        gets || (one.is_last && Some(one.rank) > first)
    };
    let chosen: Vec<(Candidate, bool)> =
        all.into_iter().map(|one| (sends(&one), one)).map(|(sends, one)| (one, sends)).collect();
    let limited = |one: &Candidate| one.rank != Rank::Leaving || terms.limit.evacuations;
    let share = chosen.iter().filter(|(one, sends)| *sends && limited(one)).count().max(1);
    let turn = |(one, sends): (Candidate, bool)| {
        let limit = terms.limit.rate.filter(|_| limited(&one)).map(|rate| (rate / share as u64).max(LEAST));
        (one.place, if sends { Turn::Sends(limit) } else { Turn::Stands })
    };
    chosen.into_iter().map(turn).collect()
}
