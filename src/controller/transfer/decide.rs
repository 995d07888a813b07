//! Who sends next, what is safe, what is complete. Pure: facts and the time in, a plan out.
//!
//! As few send as fill the repository's link, in the order that `turn` says; an evacuation does not wait for a
//! periodic transfer to end, not even for one of its own agent, unless that is about to complete its generation. What
//! is safe is what the repository lists (safety B15), never what an agent says.

mod collect;
mod stage;
mod story;
mod turn;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

pub(super) use self::stage::is_moving;
use self::{
    stage::{Sent, Stage, last_parts, size, stages},
    turn::{Rank, Turn, Turns, turns},
};
use crate::{
    api::{
        Reason,
        job_status::ResolvedImage,
        snapshot::{SnapshotReason, Transfer, TransferState},
    },
    driver::{
        Fact,
        agent::{AgentAddress, AgentState},
        repository::KeptPart,
    },
    names::{Generation, Incarnation, JobUid, MemberIndex},
    store::{
        adoption::GuestRecord,
        manifest::{Manifest, MemberPart, VERSION},
        quota::Share,
    },
};

/// An upload is ordered this often before it is given up.
const ORDERS: u32 = 4;
/// Time before an upload that failed is ordered again.
const ORDER_AGAIN: SignedDuration = SignedDuration::from_secs(1);
/// The next look while bytes move.
const MOVING: Duration = Duration::from_millis(200);
/// The next look while something is waited for.
const WAITING: Duration = Duration::from_secs(1);

/// A captured snapshot whose transfer is not over.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Uid of the object.
    pub uid: String,
    /// Its job.
    pub job: JobUid,
    /// The job's name.
    pub job_name: String,
    /// The namespace of both.
    pub namespace: String,
    /// The generation.
    pub generation: Generation,
    /// The incarnation it was captured in.
    pub incarnation: Incarnation,
    /// The generation that incarnation had started from.
    pub parent: Option<Generation>,
    /// Why it was taken.
    pub reason: SnapshotReason,
    /// Members whose slots are wanted; none: all leave, if any do.
    pub leaving: Vec<MemberIndex>,
    /// When the members were cut.
    pub taken_at: Timestamp,
    /// What the object says of the transfer.
    pub shown: Transfer,
    /// What was last written to it, and when.
    pub written: Option<(Timestamp, Transfer)>,
    /// Since when parts are known to be in the repository.
    pub safe_since: BTreeMap<MemberIndex, Timestamp>,
    /// The image of the job; absent if the job is gone.
    pub image: Fact<ResolvedImage>,
    /// What its guests know of themselves, as far as the image is known.
    pub guests: Option<GuestRecord>,
    /// Most bytes of a member's part, from what the job declares; none if the job is not known.
    pub most: Option<u64>,
    /// What the repository is to hold it to, as its job says.
    pub quota: Option<Share>,
    /// Parts the repository has.
    pub kept: Fact<Vec<KeptPart>>,
    /// Whether the repository has the manifest; asked once all parts are kept.
    pub published: Fact<()>,
    /// The publication is under way.
    pub publishing: bool,
    /// Why the repository will never publish it.
    pub refused: Option<String>,
    /// Whether members that wait may give their bytes to others: their slots are taken one by one, and there is a
    /// complete generation to go back to if one that has bytes of others is lost.
    pub collects: bool,
    /// The agents, one for each member.
    pub agents: Vec<AgentSeen>,
}

/// An agent, as far as it is known.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentSeen {
    /// Where it is; absent if the snapshot says nothing usable.
    pub address: Option<AgentAddress>,
    /// Its member.
    pub member: MemberIndex,
    /// What it last said.
    pub state: Option<AgentState>,
    /// Since when it does not answer, and how often it was asked since.
    pub silent: Option<(Timestamp, u32)>,
    /// What it once said of its part of this generation, with the barrier's nonce.
    pub record: Option<(String, MemberPart)>,
    /// Uploads ordered of it for this generation: how many, the last one when, and why it was refused.
    pub ordered: Option<Ordered>,
    /// What its collector was told last of its part.
    pub carried: Option<Ordered>,
    /// When its slot is taken, as far as that is known.
    pub until: Option<Timestamp>,
}

/// Uploads ordered of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered {
    /// How many.
    pub times: u32,
    /// When the last one was.
    pub last: Timestamp,
    /// Why the agent refused the last one.
    pub refused: Option<String>,
    /// The limit that was in the last one.
    pub limit: Option<u64>,
    /// Who was to be sent it instead of the repository.
    pub collector: Option<MemberIndex>,
}

/// How fast may be sent, as whoever runs kget says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Most bytes a second, of all senders together.
    pub rate: Option<u64>,
    /// Whether it holds for members that leave, too.
    pub evacuations: bool,
}

/// On what a decision is made, besides the cases.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// So many may send at a time.
    pub senders: usize,
    /// Bytes a second that come in at the repository, once it is known.
    pub rate: Option<f64>,
    /// How fast may be sent.
    pub limit: Limit,
}

/// What to do. Effects come before reports: an evacuation does not wait for the API server (B17).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Effects, in order.
    pub effects: Vec<Effect>,
    /// What is to be reported.
    pub reports: Vec<Report>,
    /// When to look again without a reason to; never if nothing is under way.
    pub wake: Option<Duration>,
}

/// What is to be said of a snapshot's transfer.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Uid of the snapshot.
    pub snapshot: String,
    /// How far it is.
    pub transfer: Transfer,
    /// Events that go with it, once it is written.
    pub events: Vec<Said>,
}

/// An event for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// What was done.
    pub action: &'static str,
    /// Why.
    pub reason: Reason,
    /// What happened, in a sentence.
    pub message: String,
}

/// An effect. All may be repeated.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Orders an agent to send its part.
    Upload {
        /// The snapshot.
        snapshot: String,
        /// The agent.
        agent: AgentAddress,
        /// The generation.
        generation: Generation,
        /// Most bytes a second; with 0 it only gets ready.
        limit: Option<u64>,
    },
    /// Tells an agent that sends how fast it may go on.
    Pace {
        /// The snapshot.
        snapshot: String,
        /// The agent.
        agent: AgentAddress,
        /// The generation.
        generation: Generation,
        /// Most bytes a second; with 0 it stands still.
        limit: Option<u64>,
    },
    /// Tells an agent to send its part to another one, which has made room for it.
    Hand {
        /// The snapshot.
        snapshot: String,
        /// The agent.
        agent: AgentAddress,
        /// The generation.
        generation: Generation,
        /// Who takes it.
        to: AgentAddress,
    },
    /// Tells an agent to take another one's part, or how fast to bring it to the repository.
    Collect {
        /// The snapshot.
        snapshot: String,
        /// The agent whose part it is.
        of: AgentAddress,
        /// The agent that takes it.
        by: AgentAddress,
        /// What is said of the part.
        order: Box<Carried>,
    },
    /// Tells the repository that a part has all arrived.
    Keep {
        /// The job.
        job: JobUid,
        /// The generation.
        generation: Generation,
        /// The part.
        part: KeptPart,
    },
    /// Publishes a generation.
    Publish {
        /// The snapshot.
        snapshot: String,
        /// The manifest.
        manifest: Box<Manifest>,
    },
}

/// A part that another agent takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Carried {
    /// The generation.
    pub generation: Generation,
    /// The barrier's nonce.
    pub nonce: String,
    /// What the manifest will say of it, but for its files.
    pub part: MemberPart,
    /// Most bytes of it.
    pub bytes: u64,
    /// Most bytes a second to the repository; with 0 it is only held.
    pub limit: Option<u64>,
}

/// Decides.
pub fn decide(cases: &[Case], terms: &Terms, now: Timestamp) -> Plan {
    let mut order: Vec<&Case> = cases.iter().collect();
    order.sort_by_key(|case| (Reverse(is_evacuation(case.reason)), case.taken_at, case.uid.clone()));
    let last: BTreeSet<Sent<'_>> = cases.iter().flat_map(last_parts).collect();
    let staged: Vec<(&Case, Vec<Stage>)> = order.into_iter().map(|case| (case, stages(case, &last, now))).collect();
    let over = staged.iter().enumerate().filter(|(_, (case, stages))| over(case, stages).is_some());
    let over: BTreeSet<usize> = over.map(|(number, _)| number).collect();
    let turns = turns(&staged, &over, &last, terms);
    let mut anew = collect::assign(&staged, &over, &turns, (terms.rate, now));
    let mut plan = Plan::default();
    for (number, (case, stages)) in staged.iter().enumerate() {
        let transfer = one(case, stages, &Own { turns: &turns, number, now }, &mut plan.effects);
        let transfer = collect::noted(case, stages, anew.remove(&number).unwrap_or_default(), transfer);
        let whole = !stages.iter().any(|stage| matches!(stage, Stage::Waiting { bytes: None, .. }));
        let transfer = story::told(case, transfer, whole, now);
        if story::is_news(case, &transfer, now) {
            let events = story::events(case, &transfer, now);
            plan.reports.push(Report { snapshot: case.uid.clone(), transfer, events });
        }
    }
    let moving = !plan.effects.is_empty() || turns.values().any(|turn| matches!(turn, Turn::Sends(_)));
    plan.wake = (!cases.is_empty()).then_some(if moving { MOVING } else { WAITING });
    plan
}

/// Whether the members leave their nodes after it.
pub fn is_evacuation(reason: SnapshotReason) -> bool {
    match reason {
        SnapshotReason::Notice | SnapshotReason::Walltime | SnapshotReason::Suspend => true,
        SnapshotReason::Periodic | SnapshotReason::User => false,
    }
}

/// Whether it is taken because somebody wants the slots, at a known time.
pub fn is_taken(reason: SnapshotReason) -> bool {
    match reason {
        SnapshotReason::Notice | SnapshotReason::Walltime => true,
        SnapshotReason::Suspend | SnapshotReason::Periodic | SnapshotReason::User => false,
    }
}

/// What came of a transfer that is over.
fn over(case: &Case, stages: &[Stage]) -> Option<(TransferState, Option<String>)> {
    let failed = |why: &str| Some((TransferState::Failed, Some(why.chars().take(1000).collect())));
    if case.published.known().is_some() {
        return Some((TransferState::Published, None));
    }
    if let Some(why) = &case.refused {
        return failed(&format!("not published: {why}"));
    }
    let lost = stages.iter().find_map(|stage| match stage {
        Stage::Lost { why } => Some(why),
        _ => None,
    });
    if let Some(why) = lost {
        return failed(why);
    }
    if matches!(case.image, Fact::Absent) {
        return failed("its job is gone");
    }
    None
}

/// The turns of one case's members.
struct Own<'a> {
    turns: &'a Turns,
    number: usize,
    now: Timestamp,
}

impl Own<'_> {
    fn turn(&self, at: usize) -> Option<Turn> {
        self.turns.get(&(self.number, at)).copied()
    }
}

/// What its members are told to do.
fn orders(case: &Case, stages: &[Stage], own: &Own<'_>, effects: &mut Vec<Effect>) {
    for (at, (seen, stage)) in case.agents.iter().zip(stages).enumerate() {
        let Some((turn, agent)) = own.turn(at).zip(seen.address.clone()) else { continue };
        let (snapshot, generation, limit) = (case.uid.clone(), case.generation, turn.limit());
        // one of the version before never says that it was told
        let told = |ordered: &Ordered| ordered.limit == limit && own.now.duration_since(ordered.last) < ORDER_AGAIN;
        match stage {
            // those that leave get ready for their turn at once: they find out what they have to send
            Stage::Ready { .. } if turn != Turn::Stands || Rank::of(case, seen.member) == Rank::Leaving => {
                effects.push(Effect::Upload { snapshot, agent, generation, limit });
            }
            Stage::Held { limit: now, .. } if *now != limit && !seen.carried.as_ref().is_some_and(told) => {
                effects.extend(collect::carry(case, seen, limit));
            }
            Stage::Sending { limit: now, .. } if *now != limit && !seen.ordered.as_ref().is_some_and(told) => {
                effects.push(Effect::Pace { snapshot, agent, generation, limit });
            }
            _ => {}
        }
    }
}

/// One snapshot: its effects, and what is to be said of it.
fn one(case: &Case, stages: &[Stage], own: &Own<'_>, effects: &mut Vec<Effect>) -> Transfer {
    let mut transfer = Transfer::default();
    let mut waiting = None;
    for (agent, stage) in case.agents.iter().zip(stages) {
        match stage {
            Stage::Safe { size } => {
                transfer.safe.push(agent.member);
                transfer.sent += size;
                transfer.total += size;
            }
            Stage::Arrived { part } => {
                transfer.sent += size(&part.part);
                transfer.total += size(&part.part);
            }
            Stage::Sending { sent, total, stands, reading_back, .. } => {
                transfer.sent += sent;
                transfer.total += total;
                let member = agent.member;
                let reads = reading_back.map(|packs| {
                    format!(
                        "member {member}: the repository reads {packs} packs again that it shares with earlier ones"
                    )
                });
                waiting = waiting.or_else(|| stands.clone()).or(reads);
            }
            Stage::Ready { bytes } | Stage::Assigned { bytes } => transfer.total += bytes,
            Stage::Handing { sent, total, .. } => {
                transfer.sent += sent;
                transfer.total += total;
            }
            // it has left its node
            Stage::Held { size, stands, .. } => {
                transfer.sent += size;
                transfer.total += size;
                waiting = waiting.or_else(|| stands.clone());
            }
            Stage::Waiting { why, bytes } => {
                transfer.total += bytes.unwrap_or_default();
                waiting = waiting.or_else(|| Some(why.clone()));
            }
            Stage::Lost { .. } => {}
        }
    }
    if let Some((state, message)) = over(case, stages) {
        return Transfer { state, message, ..transfer };
    }
    for stage in stages {
        if let Stage::Arrived { part } = stage {
            let (job, generation) = (case.job.clone(), case.generation);
            effects.push(Effect::Keep { job, generation, part: part.clone() });
        }
    }
    orders(case, stages, own, effects);
    effects.extend(collect::orders(case, stages, own.now));
    if transfer.safe.len() < case.agents.len() || case.agents.is_empty() {
        let moves = |(at, stage): (usize, &Stage)| match stage {
            Stage::Arrived { .. }
            | Stage::Sending { stands: Some(_), .. }
            | Stage::Handing { .. }
            | Stage::Assigned { .. } => true,
            _ => matches!(own.turn(at), Some(Turn::Sends(_))),
        };
        let moves = stages.iter().enumerate().any(moves);
        let begun = moves || transfer.sent > 0 || case.agents.iter().any(|agent| agent.ordered.is_some());
        let state = if begun { TransferState::Sending } else { TransferState::Pending };
        let queued = || (!moves).then(|| "waiting for another transfer".to_owned());
        return Transfer { state, message: waiting.or_else(queued), ..transfer };
    }
    let reading_back = Some("being read back".to_owned());
    let (state, message) = match manifest(case) {
        Err(why) => (TransferState::Failed, Some(why)),
        Ok(None) => (TransferState::Sending, Some("the job's image is not known yet".into())),
        Ok(Some(_)) if case.publishing => (TransferState::Sending, reading_back),
        // only a repository that answered can be asked to publish
        Ok(Some(_)) if matches!(case.published, Fact::Unknown { .. }) => {
            (TransferState::Sending, Some("the repository does not answer".into()))
        }
        Ok(Some(manifest)) => {
            effects.push(Effect::Publish { snapshot: case.uid.clone(), manifest: Box::new(manifest) });
            (TransferState::Sending, reading_back)
        }
    };
    Transfer { state, message, ..transfer }
}

/// The manifest of a case whose parts are all kept.
fn manifest(case: &Case) -> Result<Option<Manifest>, String> {
    let (Some(kept), Some(image)) = (case.kept.known(), case.image.known()) else { return Ok(None) };
    let mut parts: Vec<&KeptPart> = kept.iter().filter(|k| k.incarnation == case.incarnation).collect();
    parts.sort_by_key(|kept| kept.part.index);
    let nonce = parts.first().map(|kept| kept.nonce.clone()).unwrap_or_default();
    // parts of different cuts are no generation (safety B2)
    if parts.iter().any(|kept| kept.nonce != nonce) {
        return Err("the members' parts are not of one cut".into());
    }
    let manifest = Manifest {
        version: VERSION,
        job: case.job.clone(),
        job_name: case.job_name.clone(),
        namespace: case.namespace.clone(),
        generation: case.generation,
        incarnation: case.incarnation,
        parent: case.parent,
        reason: case.reason,
        taken_at: case.taken_at,
        nonce,
        image: image.clone(),
        members: parts.into_iter().map(|kept| kept.part.clone()).collect(),
        guests: case.guests.clone(),
        ancestor: None,
    };
    manifest.check().map_err(|e| e.to_string())?;
    Ok(Some(manifest))
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
