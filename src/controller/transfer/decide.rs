//! Who sends next, what is safe, what is complete. Pure: facts and the time in, a plan out.
//!
//! One sender at a time fills the repository's link (the smallest first, so that members get free
//! early); an evacuation does not wait for a periodic transfer to end, not even for one of its own agent, unless
//! that is about to complete its generation. What is safe is what the repository lists (safety B15), never what an
//! agent says.

mod stage;
mod story;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use self::stage::{Sent, Stage, last_parts, size, stages};
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
    pub action: String,
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
        let whole = !stages.iter().any(|stage| matches!(stage, Stage::Waiting { bytes: None, .. }));
        let transfer = story::told(case, transfer, whole, now);
        if story::is_news(case, &transfer, now) {
            let events = story::events(case, &transfer, now);
            plan.reports.push(Report { snapshot: case.uid.clone(), transfer, events });
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

/// One snapshot: its effects, and what is to be said of it.
fn one(case: &Case, stages: &[Stage], link: &mut Link, effects: &mut Vec<Effect>) -> Transfer {
    let mut transfer = Transfer::default();
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
            Stage::Waiting { why, bytes } => {
                transfer.total += bytes.unwrap_or_default();
                waiting = waiting.or_else(|| Some(why.clone()));
            }
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

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
