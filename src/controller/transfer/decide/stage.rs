//! Where each member's part is, by what its agent and the repository say. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::{AgentSeen, Case, ORDER_AGAIN, ORDERS, collect, turn::Rank};
use crate::{
    driver::{
        agent::{CapturePart, LeaseState, PartState, UploadState},
        repository::KeptPart,
    },
    names::{Generation, Incarnation, JobUid, MemberIndex},
    store::manifest::{MemberPart, PartFile},
};

/// An agent that did not answer this long, and this often, has taken its bytes with it.
const LOST_AFTER: SignedDuration = SignedDuration::from_secs(15);
const LOST_POLLS: u32 = 5;

/// Where a member is.
pub(super) enum Stage {
    Safe {
        size: u64,
    },
    Arrived {
        part: KeptPart,
    },
    Sending {
        sent: u64,
        total: u64,
        /// Bytes that are to cross the link yet.
        left: u64,
        limit: Option<u64>,
        stands: Option<String>,
        reading_back: Option<usize>,
    },
    Ready {
        bytes: u64,
    },
    /// It is to be given to another member, which may have to be told first.
    Assigned {
        bytes: u64,
    },
    /// On its way to another member.
    Handing {
        sent: u64,
        total: u64,
        /// Bytes that are for the repository once it has them.
        left: u64,
    },
    /// With another member, all of it; so much is for the repository still.
    Held {
        size: u64,
        left: u64,
        limit: Option<u64>,
        stands: Option<String>,
        by: MemberIndex,
    },
    Waiting {
        why: String,
        bytes: Option<u64>,
    },
    Lost {
        why: String,
    },
}

/// A part that is being sent.
pub(super) type Sent<'a> = (&'a JobUid, Incarnation, Generation, MemberIndex);

/// The part that completes its generation, if it is more than half there: with it there is something newer to go back
/// to, whatever becomes of the next. Where the repository has not said what it has, any may be the one.
pub(super) fn last_parts(case: &Case) -> impl Iterator<Item = Sent<'_>> {
    let is_kept = |kept: &[KeptPart], member| {
        kept.iter().any(|kept| kept.incarnation == case.incarnation && kept.part.index == member)
    };
    let others_kept = move |member| {
        case.kept
            .known()
            .is_none_or(|kept| case.agents.iter().all(|other| other.member == member || is_kept(kept, other.member)))
    };
    let half_sent = |agent: &&AgentSeen| {
        let upload = agent.state.as_ref().and_then(|state| state.upload.as_ref());
        upload.is_some_and(|u| {
            u.generation == case.generation && u.collector.is_none() && is_moving(u) && u.sent > u.total / 2
        })
    };
    let parts =
        case.agents.iter().filter(half_sent).map(|agent| agent.member).filter(move |member| others_kept(*member));
    parts.map(|member| (&case.job, case.incarnation, case.generation, member))
}

pub(super) fn stages(case: &Case, last: &BTreeSet<Sent<'_>>, now: Timestamp) -> Vec<Stage> {
    let kept = case.kept.known().map(Vec::as_slice).unwrap_or_default();
    let kept: BTreeMap<MemberIndex, &KeptPart> =
        kept.iter().filter(|k| k.incarnation == case.incarnation).map(|k| (k.part.index, k)).collect();
    let known = case.kept.known().is_some();
    case.agents
        .iter()
        .map(|agent| match kept.get(&agent.member) {
            Some(kept) => Stage::Safe { size: size(&kept.part) },
            None if known => own_stage(case, agent, last, now),
            // it may have the part already: nothing is lost, nor tried in vain, before it has said so
            None => match own_stage(case, agent, last, now) {
                Stage::Ready { .. } if agent.ordered.is_some() => silent_repository(case, agent),
                Stage::Lost { .. } | Stage::Arrived { .. } => silent_repository(case, agent),
                stage => stage,
            },
        })
        .collect()
}

/// Where it is with its own agent, or on its way by another one.
fn own_stage(case: &Case, agent: &AgentSeen, last: &BTreeSet<Sent<'_>>, now: Timestamp) -> Stage {
    let own = agent_stage(case, agent, last, now);
    match collect::entry(case, agent.member) {
        Some(entry) => collect::stage(case, agent, entry, own, now),
        None => own,
    }
}

fn silent_repository(case: &Case, agent: &AgentSeen) -> Stage {
    let why = format!("member {}: the repository does not answer", agent.member);
    Stage::Waiting { why, bytes: captured_bytes(case, agent) }
}

/// Bytes of its part, once they are on its disk.
pub(super) fn captured_bytes(case: &Case, agent: &AgentSeen) -> Option<u64> {
    let state = agent.state.as_ref()?;
    let mut parts = state.capture.iter().chain(&state.earlier);
    let captured = |part: &&CapturePart| part.generation == case.generation && part.state == PartState::Captured;
    parts.find(captured).map(|part| part.bytes)
}

pub(super) fn size(part: &MemberPart) -> u64 {
    part.files.iter().fold(0, |sum, file| sum.saturating_add(file.size))
}

/// Why nothing can be had of an agent any more, if so.
pub(super) fn gone(agent: &AgentSeen, now: Timestamp) -> Option<&'static str> {
    if let Some((since, polls)) = agent.silent
        && now.duration_since(since) >= LOST_AFTER
        && polls >= LOST_POLLS
    {
        return Some("its agent does not answer any more");
    }
    let state = agent.state.as_ref()?;
    if state.lease == LeaseState::Lost {
        return Some("its slot was taken before its bytes were safe");
    }
    state.leaving.is_some().then_some("its agent left before its bytes were safe")
}

fn agent_stage(case: &Case, agent: &AgentSeen, last: &BTreeSet<Sent<'_>>, now: Timestamp) -> Stage {
    let member = agent.member;
    let lost = |why: String| Stage::Lost { why: format!("member {member}: {why}") };
    let bytes = captured_bytes(case, agent);
    let waiting = |why: String| Stage::Waiting { why: format!("member {member}: {why}"), bytes };
    if agent.address.is_none() {
        return lost("the snapshot does not say where its agent is".into());
    }
    let upload = agent.state.as_ref().and_then(|state| state.upload.as_ref());
    // what went to another member did not go to the repository
    let own = upload.filter(|u| u.generation == case.generation && u.collector.is_none());
    if let (Some(upload), Some((nonce, record))) = (own.filter(|u| u.done), &agent.record) {
        // whatever became of the agent since: whether all is there is for the repository to say
        return Stage::Arrived { part: arrived(case, nonce, record, &upload.files) };
    }
    if let Some(why) = gone(agent, now) {
        return lost(why.into());
    }
    let Some(state) = &agent.state else { return waiting("its agent has not answered yet".into()) };
    let of_this = state.capture.as_ref().filter(|part| part.generation == case.generation);
    match of_this.map(|part| &part.state) {
        Some(PartState::Abandoned { reason }) => return lost(format!("its capture was given up: {reason}")),
        Some(PartState::Prepared | PartState::Stopped | PartState::Writing) => {
            return waiting("its capture is being written".into());
        }
        Some(PartState::Captured) | None => {}
    }
    if agent.record.is_none() {
        return lost(format!("its agent no longer has generation {}", case.generation));
    }
    // one that stands still gives way to a later one, and any to the one after which the members leave
    let gives_way = |u: &UploadState| {
        let evacuating = Rank::of(case, member) == Rank::Leaving;
        let is_last = || last.contains(&(&case.job, case.incarnation, u.generation, member));
        u.generation < case.generation && (u.waiting.is_some() || (evacuating && !is_last()))
    };
    let holds = |u: &&UploadState| is_moving(u) && !gives_way(u);
    if let Some(other) = upload.filter(|u| u.generation != case.generation && holds(u)) {
        return waiting(format!("its agent still sends generation {}", other.generation));
    }
    if let Some(upload) = own.filter(|u| is_moving(u)) {
        let stands = upload.waiting.as_ref().map(|why| format!("member {member}: tried again: {why}"));
        let UploadState { sent, total, limit, reading_back, .. } = *upload;
        return Stage::Sending { sent, total, left: left(upload), limit, stands, reading_back };
    }
    let failure = own.and_then(|u| u.error.clone());
    let ready = Stage::Ready { bytes: bytes.unwrap_or_default() };
    match &agent.ordered {
        None => ready,
        Some(ordered) => {
            let why = ordered.refused.clone().or(failure);
            if ordered.times >= ORDERS {
                lost(why.unwrap_or_else(|| "its agent does not send".into()))
            } else if now.duration_since(ordered.last) < ORDER_AGAIN {
                waiting(why.unwrap_or_else(|| "told to send".into()))
            } else {
                ready
            }
        }
    }
}

/// A part all of whose files are in the repository.
pub(super) fn arrived(case: &Case, nonce: &str, record: &MemberPart, files: &[PartFile]) -> KeptPart {
    let part = MemberPart { files: files.to_vec(), ran: milliseconds(record.ran), ..record.clone() };
    KeptPart { incarnation: case.incarnation, nonce: nonce.to_owned(), part }
}

/// Bytes that are to leave an agent yet; as they were captured where it does not know what the repository has.
pub(super) fn left(upload: &UploadState) -> u64 {
    upload.left.unwrap_or_else(|| upload.total.saturating_sub(upload.sent))
}

/// Whether it is neither done nor given up.
pub(in crate::controller::transfer) fn is_moving(upload: &UploadState) -> bool {
    !upload.done && upload.error.is_none()
}

/// Rounded, so that the number is the same after each writing and reading, and a manifest with it.
fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}
