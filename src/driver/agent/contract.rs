//! What every agent does, whichever way it is reached; the real one is held to it over its protocol.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use super::{AgentError, AgentState, Authority, CaptureOrder, LeaveCode, NodeAgent, PartState, UploadOrder, VmState};
use crate::names::Generation;

/// The limit of the barrier that the agents under test are given.
pub(crate) const MAX_PAUSE: Duration = Duration::from_secs(2);

fn authority(epoch: u64) -> Authority {
    Authority { epoch, incarnation: 1 }
}

fn order(generation: Generation, resume: bool) -> CaptureOrder {
    CaptureOrder { authority: authority(5), generation, nonce: format!("n{generation}"), resume }
}

async fn refuses(answer: impl Future<Output = Result<(), AgentError>>) {
    let answer = answer.await;
    assert!(matches!(answer, Err(AgentError::Refused(_))), "{answer:?}");
}

async fn until(agent: &dyn NodeAgent, what: &str, so: impl Fn(&AgentState) -> bool) -> AgentState {
    let begun = Instant::now();
    loop {
        let state = agent.state().await.unwrap();
        if so(&state) {
            return state;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "waiting for {what}: {state:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn part(state: &AgentState) -> &PartState {
    &state.capture.as_ref().unwrap().state
}

fn is_void(state: &AgentState) -> bool {
    matches!(part(state), PartState::Abandoned { .. })
}

async fn stop(agent: &dyn NodeAgent, order: &CaptureOrder) {
    agent.prepare(order).await.unwrap();
    agent.stop(order).await.unwrap();
    let state = agent.state().await.unwrap();
    assert_eq!((&state.vm, part(&state)), (&VmState::Stopped, &PartState::Stopped));
}

/// Holds an agent of incarnation 1, whose VM is loaded or runs, to the contract, to its end.
pub(crate) async fn holds(agent: &dyn NodeAgent) {
    // a9: an older leader, another incarnation
    agent.go(authority(5)).await.unwrap();
    agent.go(authority(5)).await.unwrap();
    assert_eq!(agent.state().await.unwrap().vm, VmState::Running);
    refuses(agent.go(authority(4))).await;
    refuses(agent.go(Authority { epoch: 5, incarnation: 2 })).await;
    refuses(agent.prepare(&CaptureOrder { authority: authority(4), ..order(1, true) })).await;

    // a capture, each step twice
    let first = order(1, true);
    refuses(agent.stop(&first)).await;
    stop(agent, &first).await;
    stop(agent, &first).await;
    refuses(agent.cut(&CaptureOrder { nonce: "other".into(), ..first.clone() })).await;
    agent.cut(&first).await.unwrap();
    agent.cut(&first).await.unwrap();
    let state = until(agent, "the capture", |state| *part(state) == PartState::Captured).await;
    assert_eq!(state.vm, VmState::Running);
    assert!(state.capture.unwrap().record.is_some());

    // b2: no number is used twice
    refuses(agent.prepare(&CaptureOrder { nonce: "other".into(), ..order(1, true) })).await;

    // given up by the coordinator
    let second = order(2, true);
    stop(agent, &second).await;
    agent.abandon(&second).await.unwrap();
    let state = agent.state().await.unwrap();
    assert!(state.vm == VmState::Running && is_void(&state), "{state:?}");
    refuses(agent.cut(&second)).await;

    // b3: nobody says how it goes on
    let third = order(3, true);
    stop(agent, &third).await;
    tokio::time::sleep(MAX_PAUSE).await;
    let state = until(agent, "the resumption", |state| state.vm == VmState::Running).await;
    assert!(is_void(&state), "{state:?}");
    refuses(agent.cut(&third)).await;

    // b3: staying down has a limit
    let last = order(4, false);
    stop(agent, &last).await;
    agent.cut(&last).await.unwrap();
    let state = until(agent, "the final capture", |state| *part(state) == PartState::Captured).await;
    assert_eq!(state.vm, VmState::Stopped);
    agent.stay_down(&last, Duration::from_secs(1)).await.unwrap();
    assert_eq!(agent.state().await.unwrap().vm, VmState::Stopped);
    let state = until(agent, "the resumption", |state| state.vm == VmState::Running).await;
    assert_eq!(*part(&state), PartState::Captured, "what was captured stays whole");
    assert!(state.earlier.iter().any(|part| part.generation == 1));
    refuses(agent.stay_down(&last, Duration::from_secs(1))).await;

    // b1: only what was captured here, in this incarnation
    let upload =
        UploadOrder { epoch: 2, generation: 4, incarnation: 1, ticket: "ticket".into(), limit: None, collector: None };
    refuses(agent.upload(&UploadOrder { incarnation: 2, ..upload.clone() })).await;
    refuses(agent.upload(&UploadOrder { generation: 2, ..upload.clone() })).await;
    agent.upload(&upload).await.unwrap();
    agent.upload(&upload).await.unwrap();
    // a9: nor what a kget orders that no longer leads, once a later one was heard; a refused one was, too
    agent.upload(&UploadOrder { epoch: 3, ..upload.clone() }).await.unwrap();
    assert!(matches!(agent.upload(&upload).await, Err(AgentError::Superseded(_))));
    refuses(agent.upload(&UploadOrder { epoch: 4, generation: 2, ..upload.clone() })).await;
    assert!(matches!(agent.upload(&UploadOrder { epoch: 3, ..upload }).await, Err(AgentError::Superseded(_))));
    let state = until(agent, "the upload", |state| state.upload.as_ref().is_some_and(|upload| upload.done)).await;
    assert_eq!(state.upload.unwrap().files.len(), 3);

    // the end
    refuses(agent.leave(authority(4), LeaveCode::Saved)).await;
    agent.leave(authority(6), LeaveCode::Saved).await.unwrap();
    let state = agent.state().await.unwrap();
    assert!(matches!(state.vm, VmState::Gone { .. }) && state.leaving == Some(LeaveCode::Saved), "{state:?}");
}

#[tokio::test]
async fn the_double_keeps_the_contract() {
    let agent = super::fake::FakeAgent::loaded("job".into(), 0, 1, MAX_PAUSE, crate::clock::Clock::system());
    holds(&agent).await;
}
