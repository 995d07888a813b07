//! Reads what a decision needs: the board, the agents, the repository. Writes nothing but what this
//! process remembers of the answers.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use super::{
    Context,
    decide::{AgentSeen, Case, Terms, is_evacuation, is_moving, is_taken},
    memory::Known,
};
use crate::{
    api::{
        BestEffortJob, ConditionType, Snapshot, conditions,
        job::Allocation,
        snapshot::{SnapshotPhase, SnapshotStatus, Transfer, TransferState},
    },
    driver::{
        Fact,
        agent::{AgentAddress, AgentState, NodeAgent, PartState},
        repository::{KeptPart, RepositoryError},
    },
    names::{Generation, Incarnation, JobUid, MemberIndex},
    store::{adoption::GuestRecord, manifest::most_of_part, quota::Share},
};

/// Longest time to wait for an agent's word.
const ANSWER: Duration = Duration::from_secs(2);
/// An agent that sends nothing for us is asked this often.
const IDLE: SignedDuration = SignedDuration::from_millis(900);

/// What is known of the way into the repository, by what the agents have just said.
pub fn terms(context: &Context, cases: &[(Arc<Snapshot>, Case)]) -> Terms {
    let limit = context.limit;
    let evacuates = cases.iter().any(|(_, case)| is_evacuation(case.reason));
    let mut memory = context.memory();
    let sending = memory.agents.iter().filter_map(|(address, known)| {
        let moved = known.state.as_ref().map(to_repository)?;
        let sum = moved.into_iter().reduce(u64::saturating_add)?;
        Some((address.clone(), sum))
    });
    let sending: Vec<(AgentAddress, u64)> = sending.collect();
    let most = limit.rate.filter(|_| limit.evacuations || !evacuates).map(|rate| rate as f64);
    let now = context.clock.now().as_millisecond() as f64 / 1000.0;
    memory.link.note(now, &sending, evacuates, most);
    Terms { senders: memory.link.senders(), rate: memory.link.rate(), limit }
}

/// Bytes that have left an agent for the repository, of each part that is on its way there.
fn to_repository(state: &AgentState) -> Vec<u64> {
    let own = state.upload.as_ref().filter(|upload| {
        let stands = upload.waiting.is_some() || upload.reading_back.is_some() || upload.limit == Some(0);
        is_moving(upload) && !stands && upload.collector.is_none()
    });
    let held = state.held.iter().filter(|held| {
        held.whole && !held.done && held.error.is_none() && held.waiting.is_none() && held.limit != Some(0)
    });
    let own = own.map(|upload| upload.moved.unwrap_or(upload.sent));
    own.into_iter().chain(held.map(|held| held.moved)).collect()
}

/// The snapshots whose bytes must still move, with all that is known of them.
pub async fn observe(context: &Context) -> Vec<(Arc<Snapshot>, Case)> {
    let open: Vec<Arc<Snapshot>> = context.board.snapshots().into_iter().filter(|s| is_open(s)).collect();
    let agents: HashSet<AgentAddress> = open.iter().flat_map(|s| addresses(s)).flatten().collect();
    let uids: HashSet<String> = open.iter().map(|s| uid(s)).collect();
    context.memory().retain(&uids, &agents);
    futures::future::join_all(agents.iter().map(|address| ask(context, address))).await;
    let mut cases = Vec::new();
    for snapshot in open {
        let Some(status) = &snapshot.status else { continue };
        if let Some(case) = case(context, &snapshot, status).await {
            cases.push((snapshot, case));
        }
    }
    cases
}

fn uid(snapshot: &Snapshot) -> String {
    snapshot.metadata.uid.clone().unwrap_or_default()
}

/// Captured, and its transfer neither complete nor given up.
fn is_open(snapshot: &Snapshot) -> bool {
    let Some(status) = &snapshot.status else { return false };
    let state = status.transfer.as_ref().map(|transfer| transfer.state).unwrap_or_default();
    status.phase == SnapshotPhase::Captured
        && status.generation.is_some()
        && !matches!(state, TransferState::Published | TransferState::Failed)
}

/// The agents of a snapshot, in the order of its members; none where the address is unusable.
fn addresses(snapshot: &Snapshot) -> Vec<Option<AgentAddress>> {
    let Some(status) = &snapshot.status else { return Vec::new() };
    let address = |member: &crate::api::snapshot::SnapshotMember| {
        Some(AgentAddress {
            endpoint: member.endpoint.parse().ok()?,
            job: JobUid(status.job_uid.clone()),
            member: member.index,
            incarnation: status.incarnation,
        })
    };
    status.members.iter().map(address).collect()
}

/// Asks an agent, if it is time to.
async fn ask(context: &Context, address: &AgentAddress) {
    let now = context.clock.now();
    let known = context.memory().agents.get(address).cloned();
    let agent = match known {
        Some(known) if !is_due(&known, now) => return,
        Some(known) => known.agent,
        None => context.agents.agent(address),
    };
    let answer = tokio::time::timeout(ANSWER, agent.state()).await;
    note(context, address, agent, answer.ok().and_then(Result::ok));
}

fn is_due(known: &Known, now: Timestamp) -> bool {
    let upload = known.state.as_ref().and_then(|state| state.upload.as_ref());
    let holds = known.state.iter().flat_map(|state| &state.held).any(|held| !held.done && held.error.is_none());
    upload.is_some_and(is_moving) || holds || known.state.is_none() || now.duration_since(known.asked) >= IDLE
}

fn note(
    context: &Context,
    address: &AgentAddress,
    agent: Arc<dyn NodeAgent>,
    answer: Option<crate::driver::agent::AgentState>,
) {
    let now = context.clock.now();
    let mut memory = context.memory();
    // of earlier captures, too: a newer one may have begun before this process did
    for part in answer.iter().flat_map(|state| state.capture.iter().chain(&state.earlier)) {
        if let (PartState::Captured, Some(record)) = (&part.state, &part.record) {
            memory.records.insert((address.clone(), part.generation), (part.nonce.clone(), record.clone()));
        }
    }
    let known = memory.agents.entry(address.clone()).or_insert(Known { agent, asked: now, state: None, silent: None });
    known.asked = now;
    if let Some(state) = answer {
        known.state = Some(state);
        known.silent = None;
    } else {
        let (since, polls) = known.silent.unwrap_or((now, 0));
        known.silent = Some((since, polls.saturating_add(1)));
    }
}

async fn case(context: &Context, snapshot: &Snapshot, status: &SnapshotStatus) -> Option<Case> {
    let uid = uid(snapshot);
    let generation = status.generation?;
    let job = JobUid(status.job_uid.clone());
    let namespace = snapshot.metadata.namespace.clone().unwrap_or_default();
    let kept = kept(context, &uid, &job, generation).await;
    let shown = status.transfer.clone().unwrap_or_default();
    let safe_since = safe_since(context, &uid, &shown, &kept, status.incarnation);
    let complete = kept.known().is_some_and(|kept| !kept.is_empty() && kept.len() >= status.members.len());
    let publishing = context.memory().publishing.contains(&uid);
    let published = if complete && !publishing {
        match context.repository.content(&job).await {
            Ok(content) => {
                let found = content.generations.iter().find(|g| g.generation == generation);
                // what became of it since is not for the transfer to say
                let is_there = found.is_some() || content.damage(generation).is_some();
                if is_there { Fact::Known(()) } else { Fact::Absent }
            }
            Err(error) => unknown(context, snapshot, &error),
        }
    } else {
        Fact::Absent
    };
    let found = context.board.job_of(&namespace, &snapshot.spec.job);
    let found = found.filter(|found| found.metadata.uid.as_deref() == Some(&job.0));
    let image = match &found {
        None => match context.board.job_is_gone(&namespace, &snapshot.spec.job, &job).await {
            Ok(true) => Fact::Absent,
            // one that cannot be read, or that the watch has not brought yet
            Ok(false) => Fact::Unknown { since: context.clock.now() },
            Err(error) => {
                tracing::warn!(%job, %error, "failed to ask for a job");
                Fact::Unknown { since: context.clock.now() }
            }
        },
        Some(found) => match found.status.as_ref().and_then(|status| status.image.clone()) {
            Some(image) => Fact::Known(image),
            None => Fact::Unknown { since: context.clock.now() },
        },
    };
    let most = found.as_deref().zip(image.known()).map(|(job, image)| most_of_part(&job.spec.vm, image.virtual_size));
    let quota = found.as_deref().and_then(|job| share(job, generation, &namespace));
    let guests = found.as_deref().filter(|_| image.known().is_some()).map(GuestRecord::of);
    let created = snapshot.metadata.creation_timestamp.as_ref();
    let taken_at = status.taken_at.as_ref().or(created).map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let collects = context.collectors && found.as_deref().is_some_and(may_collect) && is_taken(snapshot.reason());
    let memory = context.memory();
    let agents = status.members.iter().zip(addresses(snapshot)).map(|(member, address)| {
        let known = address.as_ref().and_then(|address| memory.agents.get(address));
        let place = address.clone().map(|address| (address, generation));
        AgentSeen {
            member: member.index,
            state: known.and_then(|known| known.state.clone()),
            silent: known.and_then(|known| known.silent),
            record: place.as_ref().and_then(|place| memory.records.get(place).cloned()),
            ordered: place.as_ref().and_then(|place| memory.ordered.get(place).cloned()),
            carried: place.as_ref().and_then(|place| memory.carried.get(place).cloned()),
            until: found.as_deref().and_then(|job| slot_end(job, member.index)),
            address,
        }
    });
    Some(Case {
        job,
        job_name: snapshot.spec.job.clone(),
        namespace,
        generation,
        incarnation: status.incarnation,
        parent: status.parent,
        reason: snapshot.reason(),
        leaving: status.leaving.clone(),
        taken_at,
        shown,
        written: memory.written.get(&uid).cloned(),
        safe_since,
        image,
        guests,
        most,
        quota,
        kept,
        published,
        publishing,
        refused: memory.refused.get(&uid).cloned(),
        collects,
        agents: agents.collect(),
        uid,
    })
}

/// Whether members of this job may give their bytes to others. Without a complete generation that is whole there would
/// be nothing to go back to if one that has them is lost.
fn may_collect(job: &BestEffortJob) -> bool {
    let status = job.status.as_ref();
    job.spec.slots.allocation == Allocation::PerMember
        && status.is_some_and(|status| {
            let damaged = conditions::get(&status.conditions, ConditionType::SnapshotDamaged).is_some();
            status.snapshots.last_stored.is_some() && !damaged
        })
}

/// When the slot of a member is taken, as the operator knows.
fn slot_end(job: &BestEffortJob, member: MemberIndex) -> Option<Timestamp> {
    let status = job.status.as_ref()?;
    let agent = status.members.iter().find(|known| known.index == member)?.agent.as_ref()?;
    let slot = status.slots.iter().find(|slot| slot.id == agent.slot && slot.is_in_use())?;
    let grace = SignedDuration::try_from(std::time::Duration::from(job.spec.snapshots.grace)).ok()?;
    let noticed = slot.notice.as_ref().and_then(|notice| notice.0.checked_add(grace).ok());
    noticed.into_iter().chain(slot.until.as_ref().map(|until| until.0)).min()
}

/// What the operator noted when it began the capture.
fn share(job: &BestEffortJob, generation: Generation, namespace: &str) -> Option<Share> {
    let capture = job.status.as_ref()?.snapshots.capture.as_ref().filter(|c| c.generation == generation)?;
    Some(Share { namespace: namespace.to_owned(), limit: capture.quota?, bytes: capture.reserved })
}

async fn kept(context: &Context, uid: &str, job: &JobUid, generation: Generation) -> Fact<Vec<KeptPart>> {
    if let Some(kept) = context.memory().kept.get(uid) {
        return Fact::Known(kept.clone());
    }
    match context.ledger.kept_parts(job, generation).await {
        Ok(kept) => {
            context.memory().kept.insert(uid.into(), kept.clone());
            Fact::Known(kept)
        }
        Err(error) => {
            tracing::warn!(%job, generation, %error, "failed to read what the repository has");
            Fact::Unknown { since: context.clock.now() }
        }
    }
}

/// Since when each part is safe: as was said before, or since it was listed first.
fn safe_since(
    context: &Context,
    uid: &str,
    shown: &Transfer,
    kept: &Fact<Vec<KeptPart>>,
    incarnation: Incarnation,
) -> BTreeMap<MemberIndex, Timestamp> {
    let now = context.clock.now();
    let mut memory = context.memory();
    let known = memory.safe.entry(uid.into()).or_default();
    known.extend(shown.freed.iter().map(|freed| (freed.member, freed.at.0)));
    for kept in kept.known().into_iter().flatten().filter(|kept| kept.incarnation == incarnation) {
        known.entry(kept.part.index).or_insert(now);
    }
    known.clone()
}

fn unknown<T>(context: &Context, snapshot: &Snapshot, error: &RepositoryError) -> Fact<T> {
    tracing::warn!(snapshot = snapshot.metadata.name, %error, "failed to read the repository");
    Fact::Unknown { since: context.clock.now() }
}
