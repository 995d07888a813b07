//! Which members give their bytes to others while the repository's link is full, and what becomes of them. Pure.
//!
//! As `transfer::plan` has it, but in whole parts: the repository's link is filled first; of those that wait the
//! smallest goes to a member that takes one part at a time and may send to the repository meanwhile. Members that
//! nobody wants come first; then, of those that leave, the few that hold most. What is decided is in the status before
//! anybody is told (safety B15). In doubt all send to the repository: if nobody knows how fast its link is, or if a
//! collector would not have the time for all that is left, three times over.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use jiff::{SignedDuration, Timestamp};

use super::{
    AgentSeen, Carried, Case, Effect, ORDER_AGAIN,
    stage::{Stage, captured_bytes, gone, left, size},
    turn::{Rank, Turn, Turns},
};
use crate::{
    api::snapshot::{CollectedMember, CollectedState, Transfer},
    driver::agent::{HeldPart, LeaseState, VmState},
    names::MemberIndex,
};

/// This share of the members that leave is free as soon as possible; the others take their bytes.
const FREE_FIRST: f64 = 0.8;
/// A part waits for the repository rather than be sent twice if its turn comes within so many seconds.
const WORTH: f64 = 2.0;
/// A collector has so many times the time that all takes that is left.
const CERTAIN: f64 = 3.0;
/// And so much more.
const RESERVE: SignedDuration = SignedDuration::from_secs(10);

/// What was said last of the transfer: by this process, or by the one before.
pub(super) fn latest(case: &Case) -> &Transfer {
    case.written.as_ref().map_or(&case.shown, |(_, written)| written)
}

/// On whom a member's bytes wait, if they were given to somebody or are to be.
pub(super) fn entry(case: &Case, member: MemberIndex) -> Option<&CollectedMember> {
    latest(case).collected.iter().find(|one| one.member == member && one.state != CollectedState::GivenUp)
}

/// Members whose bytes are with others, and with whom.
pub(super) fn held(transfer: &Transfer) -> impl Iterator<Item = (MemberIndex, MemberIndex)> {
    let held = transfer.collected.iter().filter(|one| one.state == CollectedState::Held);
    held.filter(|one| !transfer.safe.contains(&one.member)).map(|one| (one.member, one.by))
}

fn collector<'a>(case: &'a Case, entry: &CollectedMember) -> Option<&'a AgentSeen> {
    case.agents.iter().find(|agent| agent.member == entry.by)
}

/// What its collector says of a part.
fn listed<'a>(case: &Case, collector: &'a AgentSeen, member: MemberIndex) -> Option<&'a HeldPart> {
    let held = collector.state.as_ref()?.held.iter();
    held.into_iter().find(|held| held.generation == case.generation && held.part.index == member)
}

/// Why a part does not go by its collector, if so.
fn failure(case: &Case, agent: &AgentSeen, entry: &CollectedMember, now: Timestamp) -> Option<String> {
    let said = |why: &str| format!("its collector, member {}: {why}", entry.by);
    let Some(by) = collector(case, entry) else { return Some(said("is no member")) };
    let listed = listed(case, by, agent.member);
    // it has brought all, whatever became of it since
    if listed.is_some_and(|held| held.done) {
        return None;
    }
    if let Some(why) = gone(by, now) {
        return Some(said(why));
    }
    match listed {
        Some(HeldPart { error: Some(why), .. }) => Some(said(why)),
        Some(held) if held.whole => None,
        Some(_) | None => {
            let upload = agent.state.as_ref().and_then(|state| state.upload.as_ref());
            let failed = upload.filter(|u| u.generation == case.generation && u.collector == Some(entry.by));
            let to_it = |ordered: &&super::Ordered| ordered.collector == Some(entry.by);
            let refused =
                [&agent.carried, &agent.ordered].into_iter().flatten().find(|o| to_it(o) && o.refused.is_some());
            let why = failed.and_then(|upload| upload.error.clone());
            why.or_else(|| refused.and_then(|ordered| ordered.refused.clone())).map(|why| said(&why))
        }
    }
}

/// Where a part is that goes by another member; `own` is where it is otherwise.
pub(super) fn stage(case: &Case, agent: &AgentSeen, entry: &CollectedMember, own: Stage, now: Timestamp) -> Stage {
    let member = agent.member;
    if let Some(why) = failure(case, agent, entry, now) {
        return match own {
            // it has nothing any more, since another one had it
            Stage::Lost { .. } if entry.state == CollectedState::Held => {
                Stage::Lost { why: format!("member {member} has left its node, and {why}") }
            }
            own => own,
        };
    }
    let by = collector(case, entry);
    if let Some(held) = by.and_then(|by| listed(case, by, member)).filter(|held| held.whole) {
        if held.done {
            return Stage::Arrived { part: super::stage::arrived(case, &held.nonce, &held.part, &held.part.files) };
        }
        let stands =
            held.waiting.as_ref().map(|why| format!("member {member}, by member {}: tried again: {why}", entry.by));
        let left = held.stored.saturating_sub(held.moved);
        return Stage::Held { size: held.size, left, limit: held.limit, stands, by: entry.by };
    }
    let waiting = |why: &str| {
        let why = format!("member {member}, by member {}: {why}", entry.by);
        Stage::Waiting { why, bytes: captured_bytes(case, agent) }
    };
    // it was there: its own agent may have left, and is not asked
    if entry.state == CollectedState::Held {
        return waiting("its agent has not answered yet");
    }
    match &own {
        // its turn at the repository has come
        Stage::Sending { limit, .. } if *limit != Some(0) => return own,
        Stage::Ready { .. } | Stage::Sending { .. } | Stage::Waiting { .. } => {}
        _ => return own,
    }
    let upload = agent.state.as_ref().and_then(|state| state.upload.as_ref());
    match upload.filter(|u| u.generation == case.generation && u.collector == Some(entry.by)) {
        Some(upload) if upload.done => waiting("it is about to say that it has all"),
        Some(upload) => {
            let there = by.and_then(|by| listed(case, by, member)).map_or(0, |held| held.stored);
            Stage::Handing { sent: upload.sent, total: upload.total, left: left(upload).saturating_add(there) }
        }
        None => Stage::Assigned { bytes: captured_bytes(case, agent).unwrap_or_default() },
    }
}

/// What both sides of a part that is to be handed over are told: who takes it first, until it says that it does.
pub(super) fn orders(case: &Case, stages: &[Stage], now: Timestamp) -> Vec<Effect> {
    let assigned = case.agents.iter().zip(stages).filter(|(_, stage)| matches!(stage, Stage::Assigned { .. }));
    let order = |(agent, _): (&AgentSeen, &Stage)| {
        let entry = entry(case, agent.member)?;
        let by = collector(case, entry)?;
        let lately = |ordered: &Option<super::Ordered>| {
            let to_it = ordered.as_ref().filter(|ordered| ordered.collector == Some(entry.by));
            to_it.is_some_and(|ordered| now.duration_since(ordered.last) < ORDER_AGAIN)
        };
        if listed(case, by, agent.member).is_none() {
            return if lately(&agent.carried) { None } else { carry(case, agent, Some(0)) };
        }
        let (agent, to) = (agent.address.clone().filter(|_| !lately(&agent.ordered))?, by.address.clone()?);
        Some(Effect::Hand { snapshot: case.uid.clone(), agent, generation: case.generation, to })
    };
    assigned.filter_map(order).collect()
}

/// Tells the collector of a member's part how fast it is to be brought.
pub(super) fn carry(case: &Case, agent: &AgentSeen, limit: Option<u64>) -> Option<Effect> {
    let by = collector(case, entry(case, agent.member)?)?;
    let known = listed(case, by, agent.member).map(|held| (&held.nonce, &held.part));
    let (nonce, part) = known.or_else(|| agent.record.as_ref().map(|(nonce, part)| (nonce, part)))?;
    let order = Carried {
        generation: case.generation,
        nonce: nonce.clone(),
        part: part.clone(),
        bytes: captured_bytes(case, agent).unwrap_or_default(),
        limit,
    };
    let (of, by) = (agent.address.clone()?, by.address.clone()?);
    Some(Effect::Collect { snapshot: case.uid.clone(), of, by, order: Box::new(order) })
}

/// The transfer with what goes by others, and with whose slots may be given back: those of members whose bytes are in
/// the repository or with another one, and that have none of others and get none any more.
pub(super) fn noted(case: &Case, stages: &[Stage], anew: Vec<CollectedMember>, transfer: Transfer) -> Transfer {
    let stage_of = |member: MemberIndex| {
        let found = case.agents.iter().zip(stages).find(|(agent, _)| agent.member == member);
        found.map(|(_, stage)| stage)
    };
    let stands = |one: &CollectedMember| {
        let state = match (one.state, stage_of(one.member)) {
            (CollectedState::GivenUp, _) => CollectedState::GivenUp,
            (_, Some(Stage::Held { .. })) => CollectedState::Held,
            (state, Some(Stage::Safe { .. } | Stage::Arrived { .. } | Stage::Waiting { .. })) => state,
            (CollectedState::Sending, Some(Stage::Assigned { .. } | Stage::Handing { .. })) => CollectedState::Sending,
            (_, _) => CollectedState::GivenUp,
        };
        CollectedMember { state, ..one.clone() }
    };
    let mut collected: Vec<CollectedMember> = latest(case).collected.iter().map(stands).collect();
    collected.extend(anew);
    if collected.is_empty() && !case.collects && latest(case).released.is_none() {
        return transfer;
    }
    let transfer = Transfer { collected, ..transfer };
    let is_safe = |member: &MemberIndex| transfer.safe.contains(member);
    let open = transfer.collected.iter().filter(|one| one.state != CollectedState::GivenUp && !is_safe(&one.member));
    let busy: BTreeSet<MemberIndex> = open.map(|one| one.by).collect();
    let with_others: BTreeSet<MemberIndex> = held(&transfer).map(|(member, _)| member).collect();
    let members = case.agents.iter().map(|agent| agent.member);
    let free = members.filter(|member| (is_safe(member) || with_others.contains(member)) && !busy.contains(member));
    Transfer { released: Some(free.collect()), ..transfer }
}

/// One that may take bytes of others.
struct Taker {
    member: MemberIndex,
    stays: bool,
    bytes: u64,
}

/// Which members are given to which from now on, by the number of the case.
pub(super) fn assign(
    staged: &[(&Case, Vec<Stage>)],
    over: &BTreeSet<usize>,
    turns: &Turns,
    (rate, now): (Option<f64>, Timestamp),
) -> BTreeMap<usize, Vec<CollectedMember>> {
    let Some(rate) = rate.filter(|rate| *rate > 0.0) else { return BTreeMap::new() };
    let open = || staged.iter().enumerate().filter(|(number, _)| !over.contains(number));
    let left: Option<u64> = open().map(|(_, (case, stages))| still_to_come(case, stages)).sum();
    let Some(left) = left else { return BTreeMap::new() };
    // what the repository has says who may be let go
    let cases = open().filter(|(_, (case, _))| case.collects && case.kept.known().is_some());
    let pairs = cases.filter_map(|(number, (case, stages))| {
        let time = SignedDuration::try_from_secs_f64(left as f64 / rate * CERTAIN).ok()?;
        let end = now.checked_add(time).ok()?.checked_add(RESERVE).ok()?;
        Some((number, in_case(case, stages, (number, turns), rate, (now, end))))
    });
    pairs.collect()
}

/// Bytes of members that leave which are to cross the repository's link yet: those of others wait for them. None if
/// that is not known.
fn still_to_come(case: &Case, stages: &[Stage]) -> Option<u64> {
    let leaving = case.agents.iter().zip(stages).filter(|(agent, _)| Rank::of(case, agent.member) == Rank::Leaving);
    leaving.map(|(_, stage)| to_come(stage)).sum()
}

fn to_come(stage: &Stage) -> Option<u64> {
    match stage {
        Stage::Safe { .. } | Stage::Arrived { .. } => Some(0),
        Stage::Ready { bytes } | Stage::Assigned { bytes } => Some(*bytes),
        Stage::Sending { left, .. } | Stage::Handing { left, .. } | Stage::Held { left, .. } => Some(*left),
        Stage::Waiting { bytes, .. } => *bytes,
        Stage::Lost { .. } => None,
    }
}

fn in_case(
    case: &Case,
    stages: &[Stage],
    (number, turns): (usize, &Turns),
    rate: f64,
    (now, end): (Timestamp, Timestamp),
) -> Vec<CollectedMember> {
    let turn = |at: usize| turns.get(&(number, at)).copied();
    let collected = &latest(case).collected;
    let mut first = 0.0;
    let mut waiting: Vec<(MemberIndex, u64)> = Vec::new();
    for (at, (agent, stage)) in case.agents.iter().zip(stages).enumerate() {
        let leaves = Rank::of(case, agent.member) == Rank::Leaving;
        let bytes = match stage {
            Stage::Ready { bytes } => *bytes,
            Stage::Sending { left, limit: Some(0), .. } => *left,
            Stage::Sending { .. } | Stage::Held { .. } if matches!(turn(at), Some(Turn::Sends(_))) => {
                first += to_come(stage).unwrap_or_default() as f64;
                continue;
            }
            _ => continue,
        };
        // nor has it bytes of others, with which it would have to stay
        let new = !collected.iter().any(|one| [one.member, one.by].contains(&agent.member));
        let able = agent.silent.is_none() && agent.record.is_some();
        if turn(at) == Some(Turn::Stands) && leaves && new && able {
            waiting.push((agent.member, bytes));
        }
    }
    // soon it is somebody's turn anyway
    if first / rate < WORTH {
        return Vec::new();
    }
    let mut takers = takers(case, stages, now, end);
    waiting.retain(|(member, _)| !takers.iter().any(|taker| taker.member == *member));
    waiting.sort_by_key(|(member, bytes)| (*bytes, *member));
    let receiving =
        |member: MemberIndex| collected.iter().any(|one| one.by == member && one.state == CollectedState::Sending);
    takers.retain(|taker| !receiving(taker.member));
    let pair = |((member, _), taker): ((MemberIndex, u64), Taker)| CollectedMember {
        member,
        by: taker.member,
        state: CollectedState::Sending,
    };
    waiting.into_iter().zip(takers).map(pair).collect()
}

/// Who may take bytes of others: who stays, and then those of the members that leave which hold most.
fn takers(case: &Case, stages: &[Stage], now: Timestamp, end: Timestamp) -> Vec<Taker> {
    let said = latest(case);
    let leaving = case.agents.iter().filter(|agent| Rank::of(case, agent.member) == Rank::Leaving).count();
    // whole members: a share of them is no more than all
    let few = leaving.saturating_sub((leaving as f64 * FREE_FIRST).ceil() as usize).max(1);
    let stage_of = |member| case.agents.iter().zip(stages).find(|(agent, _)| agent.member == member).map(|(_, s)| s);
    let is_safe = |member| matches!(stage_of(member), Some(Stage::Safe { .. }));
    let has_of_others = |by| {
        let open = said.collected.iter().filter(|one| one.by == by && one.state != CollectedState::GivenUp);
        open.into_iter().any(|one| !is_safe(one.member))
    };
    let able = |agent: &AgentSeen, stage: &Stage| {
        let alive = agent.silent.is_none()
            && agent
                .state
                .as_ref()
                .is_some_and(|state| state.lease == LeaseState::Held && !matches!(state.vm, VmState::Gone { .. }))
            && gone(agent, now).is_none();
        let in_time = agent.until.is_some_and(|until| until >= end);
        let gives = entry(case, agent.member).is_some();
        let released = said.needs_not().contains(&agent.member);
        // whoever has nothing left may be told to leave, whether or not that is known here
        let has_own = !matches!(stage, Stage::Safe { .. } | Stage::Arrived { .. } | Stage::Lost { .. });
        alive && in_time && !gives && !released && (has_own || has_of_others(agent.member))
    };
    let bytes = |agent: &AgentSeen, stage: &Stage| match stage {
        Stage::Safe { size } => *size,
        Stage::Arrived { part } => size(&part.part),
        _ => captured_bytes(case, agent).unwrap_or_default(),
    };
    let agents = case.agents.iter().zip(stages).filter(|(agent, stage)| able(agent, stage));
    let mut takers: Vec<Taker> = agents
        .map(|(agent, stage)| Taker {
            member: agent.member,
            stays: Rank::of(case, agent.member) != Rank::Leaving,
            bytes: bytes(agent, stage),
        })
        .collect();
    takers.sort_by_key(|taker| (!taker.stays, Reverse(taker.bytes), Reverse(taker.member)));
    let stay = takers.iter().filter(|taker| taker.stays).count();
    // with somebody who stays, nobody who leaves has to wait for others
    takers.truncate(if stay > 0 { stay } else { few });
    takers
}
