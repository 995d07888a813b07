//! Conducts a capture: all prepare, all stop, and only when all have stopped, all are cut.
//!
//! One task for each capture; one capture at a time for each job. Whatever fails makes the capture
//! void and lets the guests run on. What the agents say of their parts is the result; what is
//! remembered here only tells that somebody conducts it.

use std::{future::Future, sync::Arc, time::Duration};

use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Context,
    act::{address, authority},
    plan::{AgentRef, BarrierSeen, BarrierState, CaptureJob},
};
use crate::{
    driver::agent::{AgentError, CaptureOrder, NodeAgent, PartState},
    names::JobUid,
};

/// Longest wait for all to have prepared.
const PREPARE_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for the answer to one cut or abandon.
const STEP_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at how far the members have written.
const LOOK: Duration = Duration::from_millis(300);

/// Starts a capture, unless it or another one is under way.
pub fn begin(capture: &CaptureJob, uid: &JobUid, ctx: &Context) {
    let since = ctx.clock.now();
    let start = ctx.memory.update(uid, |memory| {
        let free = memory
            .barrier
            .as_ref()
            .is_none_or(|barrier| barrier.job.nonce != capture.nonce && barrier.state != BarrierState::Conducting);
        if free {
            memory.barrier = Some(BarrierSeen { job: capture.clone(), since, state: BarrierState::Conducting });
        }
        free
    });
    if start {
        let (capture, uid, ctx) = (capture.clone(), uid.clone(), ctx.clone());
        tokio::spawn(async move { conduct(&capture, &uid, &ctx).await });
    }
}

/// Makes a capture void at all its agents, and ends its coordinator.
pub async fn abandon(capture: &CaptureJob, uid: &JobUid, ctx: &Context) {
    ctx.memory.update(uid, |memory| {
        if let Some(barrier) = memory.barrier.as_mut().filter(|barrier| barrier.job.nonce == capture.nonce) {
            barrier.state = BarrierState::Failed("given up".into());
        }
    });
    give_up(capture, uid, ctx).await;
}

fn is_given_up(capture: &CaptureJob, uid: &JobUid, ctx: &Context) -> bool {
    ctx.memory
        .get(uid)
        .barrier
        .is_none_or(|barrier| barrier.job.nonce != capture.nonce || matches!(barrier.state, BarrierState::Failed(_)))
}

fn set(capture: &CaptureJob, uid: &JobUid, ctx: &Context, state: BarrierState) {
    ctx.memory.update(uid, |memory| {
        if let Some(barrier) = memory.barrier.as_mut().filter(|barrier| barrier.job.nonce == capture.nonce)
            && !matches!(barrier.state, BarrierState::Failed(_))
        {
            barrier.state = state;
        }
    });
    (ctx.wake)(uid);
}

async fn conduct(capture: &CaptureJob, uid: &JobUid, ctx: &Context) {
    let begun = Instant::now();
    match steps(capture, uid, ctx).await {
        Ok(stood) => {
            tracing::info!(job = %uid, generation = capture.generation, took = ?begun.elapsed(), ?stood, "all are cut");
            set(capture, uid, ctx, BarrierState::Cut);
            if !capture.resume {
                keep_down(capture, uid, ctx).await;
            }
        }
        Err(why) => {
            tracing::warn!(job = %uid, generation = capture.generation, why, "a capture is given up");
            give_up(capture, uid, ctx).await;
            set(capture, uid, ctx, BarrierState::Failed(why));
        }
    }
}

/// The three steps. Returns how long the whole of stop and cut took.
async fn steps(capture: &CaptureJob, uid: &JobUid, ctx: &Context) -> Result<Duration, String> {
    all(capture, uid, ctx, "prepare", PREPARE_LIMIT, |agent, order| async move { agent.prepare(&order).await }).await?;
    let stop = Instant::now();
    let limit = capture.max_pause.max(Duration::from_millis(100));
    all(capture, uid, ctx, "stop", limit, |agent, order| async move { agent.stop(&order).await }).await?;
    if stop.elapsed() >= limit {
        // the first to stop may run on by itself by now: nobody is cut
        return Err(format!("stopping all took longer than snapshots.maxPause ({} ms)", limit.as_millis()));
    }
    if is_given_up(capture, uid, ctx) {
        return Err("given up meanwhile".into());
    }
    all(capture, uid, ctx, "cut", STEP_LIMIT, |agent, order| async move { agent.cut(&order).await }).await?;
    Ok(stop.elapsed())
}

fn order(capture: &CaptureJob, agent: &AgentRef, ctx: &Context) -> CaptureOrder {
    CaptureOrder {
        authority: authority(agent, ctx),
        generation: capture.generation,
        nonce: capture.nonce.clone(),
        resume: capture.resume,
    }
}

/// One step at all agents at once; all must succeed.
async fn all<F>(
    capture: &CaptureJob,
    uid: &JobUid,
    ctx: &Context,
    step: &str,
    limit: Duration,
    give: impl Fn(Arc<dyn NodeAgent>, CaptureOrder) -> F,
) -> Result<(), String>
where
    F: Future<Output = Result<(), AgentError>>,
{
    let steps = capture.agents.iter().map(|agent| {
        let answer = give(ctx.agents.agent(&address(agent, uid)), order(capture, agent, ctx));
        async move {
            match timeout(limit, answer).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(format!("{step} of member {}: {error}", agent.member)),
                Err(_) => Err(format!("{step} of member {}: no answer within {} ms", agent.member, limit.as_millis())),
            }
        }
    });
    join_all(steps).await.into_iter().collect()
}

/// Lets everybody run on and makes every part void.
async fn give_up(capture: &CaptureJob, uid: &JobUid, ctx: &Context) {
    let give = |agent: Arc<dyn NodeAgent>, order: CaptureOrder| async move { agent.abandon(&order).await };
    if let Err(why) = all(capture, uid, ctx, "abandon", STEP_LIMIT, give).await {
        // it runs on by itself when its own time is over
        tracing::warn!(job = %uid, generation = capture.generation, why, "failed to abandon a capture");
    }
}

/// Once everybody is captured, all stay down (safety B3).
async fn keep_down(capture: &CaptureJob, uid: &JobUid, ctx: &Context) {
    let begun = Instant::now();
    while begun.elapsed() < capture.within && !is_given_up(capture, uid, ctx) {
        let captured = capture.agents.iter().all(|agent| {
            let heard = ctx.hearing.heard(&address(agent, uid)).and_then(|heard| heard.last);
            heard
                .and_then(|(_, state)| state.capture)
                .is_some_and(|part| part.nonce == capture.nonce && part.state == PartState::Captured)
        });
        if captured {
            let limit = capture.stay_down;
            let give = move |agent: Arc<dyn NodeAgent>, order: CaptureOrder| async move {
                agent.stay_down(&order, limit).await
            };
            if let Err(why) = all(capture, uid, ctx, "stay down", STEP_LIMIT, give).await {
                // a guest that runs on loses what it computes from here; the generation stays whole
                tracing::warn!(job = %uid, generation = capture.generation, why, "not everybody stays down");
            }
            return;
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
#[path = "barrier_tests.rs"]
mod tests;
