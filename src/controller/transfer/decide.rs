//! Who sends next, what is safe, what is complete. Pure: facts and the time in, a plan out.
//!
//! One sender at a time fills the repository's link (the smallest first, so that members get free
//! early); an evacuation does not wait for a periodic transfer to end, not even for one of its own agent, unless
//! that is about to complete its generation. What is safe is what the repository lists (safety B15), never what an
//! agent says.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use crate::{
    api::{
        job_status::ResolvedImage,
        snapshot::{SnapshotReason, Transfer, TransferState},
    },
    driver::{
        Fact,
        agent::{AgentAddress, AgentState, LeaseState, PartState, UploadState},
        repository::KeptPart,
    },
    names::{Generation, Incarnation, JobUid, MemberIndex},
    store::{
        adoption::GuestRecord,
        manifest::{Manifest, MemberPart, VERSION},
        quota::Share,
    },
};

/// An agent that did not answer this long, and this often, has taken its bytes with it.
const LOST_AFTER: SignedDuration = SignedDuration::from_secs(15);
const LOST_POLLS: u32 = 5;
/// An upload is ordered this often before it is given up.
const ORDERS: u32 = 4;
/// Time before an upload that failed is ordered again.
const ORDER_AGAIN: SignedDuration = SignedDuration::from_secs(1);
/// Progress is reported this often; all else at once.
const PROGRESS: SignedDuration = SignedDuration::from_secs(1);
/// How long the report that was just written counts as what everybody sees.
const ECHO: SignedDuration = SignedDuration::from_secs(3);
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
    /// When the members were cut.
    pub taken_at: Timestamp,
    /// What the object says of the transfer.
    pub shown: Transfer,
    /// What was last written to it, and when.
    pub written: Option<(Timestamp, Transfer)>,
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
}

/// What to do. Effects come before reports: an evacuation does not wait for the API server (B17).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Effects, in order.
    pub effects: Vec<Effect>,
    /// Transfers to report, by the uid of the snapshot.
    pub reports: Vec<(String, Transfer)>,
    /// When to look again without a reason to; never if nothing is under way.
    pub wake: Option<Duration>,
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

/// Where a member is.
enum Stage {
    Safe { size: u64 },
    Arrived { part: KeptPart },
    Sending { sent: u64, total: u64, stands: Option<String>, reading_back: Option<usize> },
    Ready { bytes: u64 },
    Waiting { why: String },
    Lost { why: String },
}

/// Decides.
pub fn decide(cases: &[Case], now: Timestamp) -> Plan {
    let mut order: Vec<&Case> = cases.iter().collect();
    order.sort_by_key(|case| (Reverse(is_evacuation(case.reason)), case.taken_at, case.uid.clone()));
    let last: BTreeSet<Sent<'_>> = cases.iter().flat_map(last_parts).collect();
    let staged: Vec<(&Case, Vec<Stage>)> = order.into_iter().map(|case| (case, stages(case, &last, now))).collect();
    let mut link = Link::default();
    for (case, stages) in &staged {
        // one that stands still leaves the link to others
        if stages.iter().any(|stage| matches!(stage, Stage::Sending { stands: None, .. })) {
            link.take(case);
        }
    }
    let mut plan = Plan::default();
    for (case, stages) in &staged {
        let transfer = one(case, stages, &mut link, &mut plan.effects);
        if is_news(case, &transfer, now) {
            plan.reports.push((case.uid.clone(), transfer));
        }
    }
    let moving = link.evacuating || link.sending || !plan.effects.is_empty();
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

/// Who uses the way into the repository.
#[derive(Default)]
struct Link {
    evacuating: bool,
    sending: bool,
}

impl Link {
    fn is_free(&self, case: &Case) -> bool {
        !self.evacuating && (is_evacuation(case.reason) || !self.sending)
    }

    fn take(&mut self, case: &Case) {
        if is_evacuation(case.reason) {
            self.evacuating = true;
        } else {
            self.sending = true;
        }
    }
}

/// A part that is being sent.
type Sent<'a> = (&'a JobUid, Incarnation, Generation, MemberIndex);

/// The part that completes its generation, if it is more than half there: with it there is something newer to go back
/// to, whatever becomes of the next. Where the repository has not said what it has, any may be the one.
fn last_parts(case: &Case) -> impl Iterator<Item = Sent<'_>> {
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
        upload.is_some_and(|u| u.generation == case.generation && is_moving(u) && u.sent > u.total / 2)
    };
    let parts =
        case.agents.iter().filter(half_sent).map(|agent| agent.member).filter(move |member| others_kept(*member));
    parts.map(|member| (&case.job, case.incarnation, case.generation, member))
}

fn stages(case: &Case, last: &BTreeSet<Sent<'_>>, now: Timestamp) -> Vec<Stage> {
    let kept = case.kept.known().map(Vec::as_slice).unwrap_or_default();
    let kept: BTreeMap<MemberIndex, &KeptPart> =
        kept.iter().filter(|k| k.incarnation == case.incarnation).map(|k| (k.part.index, k)).collect();
    let known = case.kept.known().is_some();
    case.agents
        .iter()
        .map(|agent| match kept.get(&agent.member) {
            Some(kept) => Stage::Safe { size: size(&kept.part) },
            None if known => agent_stage(case, agent, last, now),
            // it may have the part already: nothing is lost, nor tried in vain, before it has said so
            None => match agent_stage(case, agent, last, now) {
                Stage::Ready { .. } if agent.ordered.is_some() => silent_repository(agent.member),
                Stage::Lost { .. } | Stage::Arrived { .. } => silent_repository(agent.member),
                stage => stage,
            },
        })
        .collect()
}

fn silent_repository(member: MemberIndex) -> Stage {
    Stage::Waiting { why: format!("member {member}: the repository does not answer") }
}

fn size(part: &MemberPart) -> u64 {
    part.files.iter().fold(0, |sum, file| sum.saturating_add(file.size))
}

fn agent_stage(case: &Case, agent: &AgentSeen, last: &BTreeSet<Sent<'_>>, now: Timestamp) -> Stage {
    let member = agent.member;
    let lost = |why: String| Stage::Lost { why: format!("member {member}: {why}") };
    let waiting = |why: String| Stage::Waiting { why: format!("member {member}: {why}") };
    if agent.address.is_none() {
        return lost("the snapshot does not say where its agent is".into());
    }
    let upload = agent.state.as_ref().and_then(|state| state.upload.as_ref());
    let own = upload.filter(|u| u.generation == case.generation);
    if let (Some(upload), Some((nonce, record))) = (own.filter(|u| u.done), &agent.record) {
        // whatever became of the agent since: whether all is there is for the repository to say
        let part = MemberPart { files: upload.files.clone(), ran: milliseconds(record.ran), ..record.clone() };
        return Stage::Arrived { part: KeptPart { incarnation: case.incarnation, nonce: nonce.clone(), part } };
    }
    if let Some((since, polls)) = agent.silent
        && now.duration_since(since) >= LOST_AFTER
        && polls >= LOST_POLLS
    {
        return lost("its agent does not answer any more".into());
    }
    let Some(state) = &agent.state else { return waiting("its agent has not answered yet".into()) };
    if state.lease == LeaseState::Lost {
        return lost("its slot was taken before its bytes were safe".into());
    }
    if state.leaving.is_some() {
        return lost("its agent left before its bytes were safe".into());
    }
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
        let evacuating = is_evacuation(case.reason);
        let is_last = || last.contains(&(&case.job, case.incarnation, u.generation, member));
        u.generation < case.generation && (u.waiting.is_some() || (evacuating && !is_last()))
    };
    let holds = |u: &&UploadState| is_moving(u) && !gives_way(u);
    if let Some(other) = upload.filter(|u| u.generation != case.generation && holds(u)) {
        return waiting(format!("its agent still sends generation {}", other.generation));
    }
    if let Some(upload) = own.filter(|u| is_moving(u)) {
        let stands = upload.waiting.as_ref().map(|why| format!("member {member}: tried again: {why}"));
        let reading_back = upload.reading_back;
        return Stage::Sending { sent: upload.sent, total: upload.total, stands, reading_back };
    }
    let failure = own.and_then(|u| u.error.clone());
    let bytes = of_this.map_or(0, |part| part.bytes);
    match &agent.ordered {
        None => Stage::Ready { bytes },
        Some(ordered) => {
            let why = ordered.refused.clone().or(failure);
            if ordered.times >= ORDERS {
                lost(why.unwrap_or_else(|| "its agent does not send".into()))
            } else if now.duration_since(ordered.last) < ORDER_AGAIN {
                waiting(why.unwrap_or_else(|| "told to send".into()))
            } else {
                Stage::Ready { bytes }
            }
        }
    }
}

fn is_moving(upload: &UploadState) -> bool {
    !upload.done && upload.error.is_none()
}

/// Rounded, so that the number is the same after each writing and reading, and a manifest with it.
fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// One snapshot: its effects, and what is to be said of it.
fn one(case: &Case, stages: &[Stage], link: &mut Link, effects: &mut Vec<Effect>) -> Transfer {
    let mut transfer = Transfer { message: None, safe: Vec::new(), sent: 0, total: 0, state: TransferState::Pending };
    let mut waiting = None;
    let mut lost = None;
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
            Stage::Sending { sent, total, stands, reading_back } => {
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
            Stage::Ready { bytes } => transfer.total += bytes,
            Stage::Waiting { why } => waiting = waiting.or_else(|| Some(why.clone())),
            Stage::Lost { why } => lost = lost.or_else(|| Some(why.clone())),
        }
    }
    let failed = |transfer: Transfer, why: String| Transfer {
        state: TransferState::Failed,
        message: Some(why.chars().take(1000).collect()),
        ..transfer
    };
    if case.published.known().is_some() {
        return Transfer { state: TransferState::Published, ..transfer };
    }
    if let Some(why) = &case.refused {
        return failed(transfer, format!("not published: {why}"));
    }
    if let Some(why) = lost {
        return failed(transfer, why);
    }
    if matches!(case.image, Fact::Absent) {
        return failed(transfer, "its job is gone".into());
    }
    for stage in stages {
        if let Stage::Arrived { part } = stage {
            let (job, generation) = (case.job.clone(), case.generation);
            effects.push(Effect::Keep { job, generation, part: part.clone() });
        }
    }
    let begun = transfer.sent > 0 || case.agents.iter().any(|agent| agent.ordered.is_some());
    let smallest = case.agents.iter().zip(stages).filter_map(|(agent, stage)| match stage {
        Stage::Ready { bytes } => agent.address.as_ref().map(|address| (*bytes, address)),
        _ => None,
    });
    let next = smallest.min_by_key(|(bytes, address)| (*bytes, address.member));
    if let Some((_, agent)) = next.filter(|_| link.is_free(case)) {
        link.take(case);
        let (snapshot, generation) = (case.uid.clone(), case.generation);
        effects.push(Effect::Upload { snapshot, agent: agent.clone(), generation });
        return Transfer { state: TransferState::Sending, message: waiting, ..transfer };
    }
    if transfer.safe.len() < case.agents.len() || case.agents.is_empty() {
        let sending = stages.iter().any(|stage| matches!(stage, Stage::Sending { .. } | Stage::Arrived { .. }));
        let queued = || (!sending).then(|| "waiting for another transfer".to_owned());
        let state = if begun { TransferState::Sending } else { TransferState::Pending };
        return Transfer { state, message: waiting.or_else(queued), ..transfer };
    }
    transfer.state = TransferState::Sending;
    match manifest(case) {
        Err(why) => failed(transfer, why),
        Ok(None) => Transfer { message: Some("the job's image is not known yet".into()), ..transfer },
        Ok(Some(_)) if case.publishing => Transfer { message: Some("being read back".into()), ..transfer },
        // only a repository that answered can be asked to publish
        Ok(Some(_)) if matches!(case.published, Fact::Unknown { .. }) => {
            Transfer { message: Some("the repository does not answer".into()), ..transfer }
        }
        Ok(Some(manifest)) => {
            effects.push(Effect::Publish { snapshot: case.uid.clone(), manifest: Box::new(manifest) });
            Transfer { message: Some("being read back".into()), ..transfer }
        }
    }
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

fn is_news(case: &Case, transfer: &Transfer, now: Timestamp) -> bool {
    let fresh = case.written.as_ref().filter(|(at, _)| now.duration_since(*at) < ECHO);
    let seen = fresh.map_or(&case.shown, |(_, written)| written);
    if seen == transfer {
        return false;
    }
    let only_progress = Transfer { sent: seen.sent, total: seen.total, ..transfer.clone() } == *seen;
    let lately = case.written.as_ref().is_some_and(|(at, _)| now.duration_since(*at) < PROGRESS);
    !(only_progress && lately)
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
