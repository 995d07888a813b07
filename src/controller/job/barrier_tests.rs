//! The barrier on agents in memory.

use super::*;
use crate::{
    controller::job::testing::Stage,
    driver::agent::{
        VmState,
        fake::{Call, Fault},
    },
};

async fn settled(stage: &Stage) -> BarrierState {
    for _ in 0..100 {
        sleep(Duration::from_millis(100)).await;
        let state = stage.ctx.memory.get(&stage.uid).barrier.unwrap().state;
        if state != BarrierState::Conducting {
            return state;
        }
    }
    panic!("it never ends")
}

#[tokio::test(start_paused = true)]
async fn all_are_cut_together_and_run_on() {
    let stage = Stage::new();
    let (agents, capture) = stage.running(true).await;
    begin(&capture, &stage.uid, &stage.ctx);
    assert_eq!(settled(&stage).await, BarrierState::Cut);
    for agent in &agents {
        let state = agent.state().await.unwrap();
        assert_eq!(state.vm, VmState::Running);
        let part = state.capture.unwrap();
        assert_eq!((part.state, part.nonce.as_str(), part.generation), (PartState::Captured, "n-1-1", 1));
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_stop_makes_it_void_and_all_run_on() {
    for call in [Call::Prepare, Call::Stop, Call::Cut] {
        let stage = Stage::new();
        let (agents, capture) = stage.running(true).await;
        agents[1].fail(call, Fault::Before(AgentError::Failed("test".into())));
        begin(&capture, &stage.uid, &stage.ctx);
        let BarrierState::Failed(why) = settled(&stage).await else { panic!("{call:?}") };
        assert!(why.contains("member 1") && why.contains("test"), "{why}");
        for agent in &agents {
            let state = agent.state().await.unwrap();
            assert_eq!(state.vm, VmState::Running, "{call:?}");
            let whole = state.capture.is_some_and(|part| part.state == PartState::Captured);
            assert!(!whole, "{call:?}: a part of a void capture");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_cut_before_all_have_stopped() {
    let stage = Stage::new();
    let (agents, capture) = stage.running(true).await;
    agents[0].fail(Call::Stop, Fault::After(AgentError::Unreachable("the reply is lost".into())));
    begin(&capture, &stage.uid, &stage.ctx);
    assert!(matches!(settled(&stage).await, BarrierState::Failed(_)));
    for agent in &agents {
        let part = agent.state().await.unwrap().capture;
        assert!(part.is_none_or(|part| matches!(part.state, PartState::Abandoned { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn b3_members_of_a_last_capture_are_told_to_stay_down() {
    let stage = Stage::new();
    let (agents, capture) = stage.running(false).await;
    begin(&capture, &stage.uid, &stage.ctx);
    assert_eq!(settled(&stage).await, BarrierState::Cut);
    sleep(Duration::from_secs(5)).await;
    // longer than a guest stays down by itself
    stage.ctx.clock.advance(jiff::SignedDuration::from_secs(45));
    for agent in &agents {
        agent.tick();
        assert_eq!(agent.state().await.unwrap().vm, VmState::Stopped);
    }
    stage.ctx.clock.advance(jiff::SignedDuration::from_secs(30));
    for agent in &agents {
        agent.tick();
        assert_eq!(agent.state().await.unwrap().vm, VmState::Running, "for a bounded time");
    }
}

#[tokio::test(start_paused = true)]
async fn b3_members_that_write_for_long_are_told_to_stay_down_all_the_same() {
    let stage = Stage::new();
    let (agents, capture) = stage.running(false).await;
    for agent in &agents {
        agent.set_prompt(false);
    }
    begin(&capture, &stage.uid, &stage.ctx);
    assert_eq!(settled(&stage).await, BarrierState::Cut);
    sleep(Duration::from_secs(2000)).await;
    for agent in &agents {
        agent.captured();
    }
    sleep(Duration::from_secs(5)).await;
    stage.ctx.clock.advance(jiff::SignedDuration::from_secs(45));
    for agent in &agents {
        agent.tick();
        assert_eq!(agent.state().await.unwrap().vm, VmState::Stopped);
    }
}

#[tokio::test(start_paused = true)]
async fn a_capture_is_conducted_once() {
    let stage = Stage::new();
    let (_, capture) = stage.running(true).await;
    begin(&capture, &stage.uid, &stage.ctx);
    let other = CaptureJob { generation: 2, nonce: "n-1-2".into(), ..capture.clone() };
    begin(&other, &stage.uid, &stage.ctx);
    assert_eq!(stage.ctx.memory.get(&stage.uid).barrier.unwrap().job, capture);
    settled(&stage).await;
    begin(&capture, &stage.uid, &stage.ctx);
    assert_eq!(stage.ctx.memory.get(&stage.uid).barrier.unwrap().state, BarrierState::Cut);
}
