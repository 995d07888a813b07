//! Does what was decided: effects first, because an evacuation must not wait for the API server
//! (safety B17) and every effect may be repeated; then the reports. Decides nothing.

use std::{sync::Arc, time::Duration};

use kube::Resource as _;

use super::{
    Context,
    decide::{Carried, Case, Effect, Ordered, Plan, Report, Said},
    status,
};
use crate::{
    api::Snapshot,
    driver::{
        agent::{AgentAddress, AgentError, CollectOrder, Collector, UploadOrder},
        cluster::{ClusterError, EventRecord},
        repository::{KeptPart, RepositoryError},
    },
    names::{Generation, JobUid, MemberIndex},
    store::{manifest::Manifest, ticket::Ticket},
};

/// How long a ticket lasts: as long as the largest upload may take to begin its last file.
const TICKET: jiff::SignedDuration = jiff::SignedDuration::from_hours(12);
/// Rest after a publication that failed.
const PUBLISH_AGAIN: Duration = Duration::from_secs(2);
/// Longest time to wait for an agent to accept an order.
const ORDER: Duration = Duration::from_secs(3);
/// A collector that has answered none of so many orders in a row is given up.
const UNANSWERED: u32 = 3;
/// Longest time to wait for the API server to take a report.
const REPORT: Duration = Duration::from_secs(20);

/// Carries a plan out.
pub async fn act(plan: &Plan, cases: &[(Arc<Snapshot>, Case)], context: &Arc<Context>) {
    // none waits for another: one agent that does not answer must not keep others from their turn
    futures::future::join_all(plan.effects.iter().map(|effect| carry_out(effect, cases, context))).await;
    for said in &plan.reports {
        let Some((snapshot, case)) = cases.iter().find(|(_, case)| case.uid == said.snapshot) else { continue };
        // another's to report
        if !context.memory().superseded.contains(&case.job) {
            report(context, snapshot, said);
        }
    }
}

async fn carry_out(effect: &Effect, cases: &[(Arc<Snapshot>, Case)], context: &Arc<Context>) {
    let of = |snapshot: &str| cases.iter().map(|(_, case)| case).find(|case| case.uid == snapshot);
    match effect {
        Effect::Upload { snapshot, agent, generation, limit } => {
            let AgentAddress { job, member, endpoint, .. } = agent;
            tracing::info!(%job, generation, member, %endpoint, limit, "orders an upload");
            order(context, agent, *generation, (*limit, None), of(snapshot), 1).await;
        }
        Effect::Pace { snapshot, agent, generation, limit } => {
            tracing::info!(job = %agent.job, generation, member = agent.member, limit, "paces an upload");
            order(context, agent, *generation, (*limit, None), of(snapshot), 0).await;
        }
        Effect::Hand { snapshot, agent, generation, to } => {
            let AgentAddress { job, member, .. } = agent;
            tracing::info!(%job, generation, member, to = to.member, "has a part sent to another member");
            order(context, agent, *generation, (None, Some(to)), of(snapshot), 0).await;
        }
        Effect::Collect { snapshot, of: whose, by, order } => {
            tracing::info!(
                job = %whose.job, generation = order.generation, member = whose.member, by = by.member, limit = order.limit,
                "has a part carried"
            );
            collect(context, whose, by, order, of(snapshot)).await;
        }
        Effect::Keep { job, generation, part } => keep(context, cases, job, *generation, part).await,
        Effect::Publish { snapshot, manifest } => publish(context, snapshot, manifest),
    }
}

/// An API server that does not answer holds up no pass (safety B17): reports are written beside them, one at a time of
/// each snapshot. The next pass says what has changed meanwhile.
fn report(context: &Arc<Context>, snapshot: &Arc<Snapshot>, said: &Report) {
    let now = context.clock.now();
    let Some(stored) = status::stored(snapshot, &said.transfer, now) else { return };
    if !context.memory().reporting.insert(said.snapshot.clone()) {
        return;
    }
    let (context, snapshot, said) = (context.clone(), snapshot.clone(), said.clone());
    tokio::spawn(async move {
        let written = context.board.report(&snapshot.metadata, &said.transfer, &stored);
        let written = tokio::time::timeout(REPORT, written).await;
        let written = written.unwrap_or_else(|_| Err(ClusterError::Unreachable("no answer in time".into())));
        {
            let mut memory = context.memory();
            memory.reporting.remove(&said.snapshot);
            if written.is_ok() {
                memory.written.insert(said.snapshot.clone(), (now, said.transfer.clone()));
            }
        }
        if let Err(error) = written {
            tracing::warn!(snapshot = snapshot.metadata.name, %error, "failed to report a transfer");
            return;
        }
        for Said { action, reason, message } in said.events {
            let (about, action) = (snapshot.object_ref(&()), action.into());
            let event = EventRecord { about, warning: false, reason, action, message };
            if let Err(error) = context.board.announce(&event).await {
                tracing::warn!(snapshot = snapshot.metadata.name, %error, "failed to record an event");
            }
        }
    });
}

/// Orders an upload, or tells one that is under way how fast it may go on: which does not count among the `tries`.
async fn order(
    context: &Context,
    address: &AgentAddress,
    generation: Generation,
    (limit, to): (Option<u64>, Option<&AgentAddress>),
    case: Option<&Case>,
    tries: u32,
) {
    let AgentAddress { job, member, incarnation, .. } = address;
    let Some(agent) = context.memory().agents.get(address).map(|known| known.agent.clone()) else { return };
    let now = context.clock.now();
    let ticket = ticket(context, address, generation, case, None);
    let collector = to.map(|to| Collector { member: to.member, endpoint: to.endpoint });
    let order = UploadOrder { epoch: context.epoch, generation, incarnation: *incarnation, ticket, limit, collector };
    let answer = tokio::time::timeout(ORDER, agent.upload(&order)).await;
    let answer = answer.unwrap_or_else(|_| Err(AgentError::Unreachable("no answer in time".into())));
    let mut memory = context.memory();
    if let Some(known) = memory.agents.get_mut(address) {
        // what it said before the order says nothing of it
        known.asked = jiff::Timestamp::UNIX_EPOCH;
    }
    let collector = to.map(|to| to.member);
    let first = Ordered { times: 0, last: now, refused: None, limit, collector };
    let ordered = memory.ordered.entry((address.clone(), generation)).or_insert(first);
    (ordered.last, ordered.limit, ordered.collector) = (now, limit, collector);
    match answer {
        Ok(()) => {
            ordered.times += tries;
            ordered.refused = None;
            memory.superseded.remove(job);
        }
        Err(error @ AgentError::Superseded(_)) => {
            tracing::error!(%job, generation, member, %error, "an agent obeys a later kget");
            memory.superseded.insert(job.clone());
        }
        // whether it ever answers again is seen when it is asked for its state
        Err(AgentError::Unreachable(why)) => ordered.refused = Some(why),
        Err(error @ (AgentError::Refused(_) | AgentError::Failed(_))) => {
            tracing::warn!(%job, generation, member, %error, "an agent does not send");
            ordered.times += tries;
            ordered.refused = Some(error.to_string());
        }
    }
}

/// Permission to write a member's part, for its own agent or for the one that has it.
fn ticket(
    context: &Context,
    whose: &AgentAddress,
    generation: Generation,
    case: Option<&Case>,
    bearer: Option<MemberIndex>,
) -> String {
    let now = context.clock.now();
    context.key.sign(&Ticket {
        job: whose.job.clone(),
        generation,
        member: whose.member,
        incarnation: whose.incarnation,
        expires: now.saturating_add(TICKET).unwrap_or(jiff::Timestamp::MAX),
        most: case.and_then(|case| case.most),
        quota: case.and_then(|case| case.quota.clone()),
        bearer,
    })
}

/// Has a part taken by another agent than its own, or tells that one how fast to bring it.
async fn collect(context: &Context, whose: &AgentAddress, by: &AgentAddress, carried: &Carried, case: Option<&Case>) {
    let Carried { generation, nonce, part, bytes, limit } = carried.clone();
    let Some(agent) = context.memory().agents.get(by).map(|known| known.agent.clone()) else { return };
    let ticket = ticket(context, whose, generation, case, Some(by.member));
    let incarnation = by.incarnation;
    let order = CollectOrder { epoch: context.epoch, generation, incarnation, part, nonce, bytes, ticket, limit };
    let answer = tokio::time::timeout(ORDER, agent.collect(&order)).await;
    let answer = answer.unwrap_or_else(|_| Err(AgentError::Unreachable("no answer in time".into())));
    let now = context.clock.now();
    let mut memory = context.memory();
    if let Some(known) = memory.agents.get_mut(by) {
        // what it said before the order says nothing of it
        known.asked = jiff::Timestamp::UNIX_EPOCH;
    }
    let key = (whose.clone(), generation);
    let earlier = memory.carried.get(&key).filter(|told| told.collector == Some(by.member));
    let mut unanswered = 0;
    let refused = match answer {
        Ok(()) => None,
        Err(error @ AgentError::Superseded(_)) => {
            tracing::error!(job = %by.job, member = by.member, %error, "an agent obeys a later kget");
            memory.superseded.insert(by.job.clone());
            None
        }
        // whoever waits for it has a turn of its own to lose
        Err(AgentError::Unreachable(why)) => {
            unanswered = earlier.map_or(0, |told| told.times) + 1;
            (unanswered >= UNANSWERED).then_some(why)
        }
        Err(error @ (AgentError::Refused(_) | AgentError::Failed(_))) => {
            tracing::warn!(job = %by.job, member = by.member, %error, "an agent does not take another one's part");
            Some(error.to_string())
        }
    };
    memory.carried.insert(key, Ordered { times: unanswered, last: now, refused, limit, collector: Some(by.member) });
}

async fn keep(
    context: &Context,
    cases: &[(Arc<Snapshot>, Case)],
    job: &JobUid,
    generation: Generation,
    part: &KeptPart,
) {
    let of_this = cases.iter().map(|(_, case)| case).find(|case| case.job == *job && case.generation == generation);
    let Some(case) = of_this else { return };
    tracing::info!(%job, generation, member = part.part.index, "a part has arrived");
    match context.ledger.keep_part(job, generation, part).await {
        Ok(()) => {
            context.memory().kept.remove(&case.uid);
        }
        Err(error) => note_failure(context, &case.uid, job, generation, &error),
    }
}

/// Publishing reads everything back: it goes on beside the passes that follow.
fn publish(context: &Arc<Context>, snapshot: &str, manifest: &Manifest) {
    if !context.memory().publishing.insert(snapshot.into()) {
        return;
    }
    let (context, snapshot, manifest) = (context.clone(), snapshot.to_owned(), manifest.clone());
    tokio::spawn(async move {
        let (job, generation) = (&manifest.job, manifest.generation);
        match context.repository.publish(&manifest).await {
            Ok(summary) => tracing::info!(%job, generation, stored = summary.stored, "published"),
            Err(error) => {
                note_failure(&context, &snapshot, job, generation, &error);
                tokio::time::sleep(PUBLISH_AGAIN).await;
            }
        }
        context.memory().publishing.remove(&snapshot);
        context.changed.notify_one();
    });
}

fn note_failure(context: &Context, snapshot: &str, job: &JobUid, generation: Generation, error: &RepositoryError) {
    tracing::warn!(%job, generation, %error, "the repository did not do it");
    match error {
        // tried again at the next pass
        RepositoryError::Unreachable(_) | RepositoryError::Full(_) | RepositoryError::Local { .. } => {}
        RepositoryError::Refused(_)
        | RepositoryError::NotFound(_)
        | RepositoryError::Damaged(_)
        | RepositoryError::TooLarge(_) => {
            context.memory().refused.insert(snapshot.into(), error.to_string());
        }
    }
}
