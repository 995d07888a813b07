//! Whoever the operator depends on does not answer. Unknown destroys nothing.

use std::time::Duration;

use rstest::rstest;

use super::super::{Health, World, job};
use crate::{
    api::{JobPhase, Reason},
    driver::{
        repository::fake::Trouble,
        site::{End, fake::Outage},
    },
    names::SlotId,
};

async fn running() -> World {
    let mut world = World::new(4);
    world.pace.work = Duration::from_secs(400);
    world.cluster.put_job(job(2));
    world.until(200, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    world
}

async fn ends_well(mut world: World) -> World {
    world.until_phase(2000, JobPhase::Succeeded).await;
    world.until(200, "nothing is left", |world| world.leftovers().is_empty()).await;
    world
}

#[tokio::test(start_paused = true)]
async fn a_site_that_does_not_answer_costs_nothing() {
    let mut world = running().await;
    world.site.set_outage(Outage::All);
    world.pass(200).await;
    let status = world.status();
    assert_eq!((status.submission, status.incarnation), (1, 1), "{}", world.story());
    assert_eq!(world.site.calls().release, 0);
    assert!(matches!(status.phase, JobPhase::Running | JobPhase::Snapshotting), "{}", world.story());
    assert!(status.snapshots.last_stored > Some(2), "snapshots go on: {}", world.story());
    world.site.set_outage(Outage::None);
    let world = ends_well(world).await;
    assert_eq!(world.status().incarnation, 1);
}

/// A request is accepted and its reply lost: it is found by its name and used, and there is no second.
#[tokio::test(start_paused = true)]
async fn a10_a_request_whose_reply_was_lost_is_adopted() {
    let mut world = World::new(4);
    world.site.set_outage(Outage::RepliesLost);
    world.cluster.put_job(job(2));
    world.until_phase(100, JobPhase::Running).await;
    let world = ends_well(world).await;
    assert_eq!(world.site.slots().len(), 1, "{}", world.story());
}

/// It was not accepted: another is sent, but only after look-ups have found nothing for some time.
#[tokio::test(start_paused = true)]
async fn a10_a_request_that_failed_is_sent_again_under_another_number() {
    let mut world = World::new(4);
    world.site.set_outage(Outage::Writes);
    world.cluster.put_job(job(2));
    world.pass(100).await;
    let requests = world.site.calls().submit;
    assert!((1..=12).contains(&requests), "no storm: {requests} in 100 s");
    world.site.set_outage(Outage::None);
    let world = ends_well(world).await;
    assert_eq!(world.site.slots().len(), 1, "{}", world.story());
    assert!(world.status().submission >= 2, "{}", world.story());
}

/// A hung request creates its job after the look-up: never two are used, the other one is deleted.
#[tokio::test(start_paused = true)]
async fn a10_a_duplicate_is_deleted() {
    let mut world = running().await;
    let first = SlotId(world.open_slots()[0].clone());
    let second = world.site.duplicate(&first).unwrap();
    world.until(60, "the duplicate is gone", |world| !world.open_slots().contains(&second.0)).await;
    assert!(world.open_slots().contains(&first.0));
    let world = ends_well(world).await;
    assert_eq!(world.status().incarnation, 1, "{}", world.story());
    assert_eq!(world.status().kills.cancelled, 0, "b4: it was us: {}", world.story());
}

#[rstest]
#[case::unreachable(Trouble::Unreachable)]
#[case::full(Trouble::Full)]
#[tokio::test(start_paused = true)]
async fn c2_a_repository_in_trouble_stops_no_guest(#[case] trouble: Trouble) {
    let mut world = running().await;
    let before = world.status().snapshots.last_stored;
    world.repository.set_trouble(trouble);
    world.pass(150).await;
    let status = world.status();
    assert_eq!(status.incarnation, 1, "{}", world.story());
    assert!(matches!(status.phase, JobPhase::Running | JobPhase::Snapshotting), "{}", world.story());
    world.repository.set_trouble(Trouble::None);
    world.until(200, "a newer generation", |world| world.status().snapshots.last_stored > before).await;
    ends_well(world).await;
}

#[tokio::test(start_paused = true)]
async fn a_kill_while_the_repository_is_down_waits_for_it() {
    let mut world = running().await;
    world.repository.set_trouble(Trouble::Unreachable);
    world.site.preempt(&SlotId(world.open_slots()[0].clone()));
    world.pass(120).await;
    let status = world.status();
    let restored = status.origin.and_then(|origin| origin.generation).is_some();
    assert!(status.incarnation == 1 || restored, "never a cold boot: {}", world.story());
    world.repository.set_trouble(Trouble::None);
    let world = ends_well(world).await;
    assert!(world.status().origin.and_then(|o| o.generation).is_some(), "{}", world.story());
}

/// A node dies under its VM and the site does not notice (A1).
#[tokio::test(start_paused = true)]
async fn a1_a_dead_node_is_replaced_only_when_its_vm_must_be_dead() {
    let mut world = running().await;
    let node = world.bodies[0].node.clone();
    world.set_health(&node, Health::Down);
    world.site.set_node(&node.as_str().into(), false);
    let died = world.age();
    world
        .until(400, "goes on elsewhere", |world| {
            world.status().incarnation == 2 && world.phase() == Some(JobPhase::Running)
        })
        .await;
    assert!(world.age() - died >= 20, "too early to be sure: {}", world.story());
    assert_eq!(world.status().kills.node, 1, "{}", world.story());
    world.until_phase(1000, JobPhase::Succeeded).await;
}

/// A node is cut off: its VM runs on for T_iso, and nothing else may run meanwhile (A1, A11).
#[tokio::test(start_paused = true)]
async fn a1_a_vm_on_a_node_that_is_cut_off_is_waited_for() {
    let mut world = running().await;
    let node = world.bodies[0].node.clone();
    let now = world.clock.now();
    world.set_health(&node, Health::Cut(now));
    world.site.set_node(&node.as_str().into(), false);
    world
        .until(400, "goes on elsewhere", |world| {
            world.status().incarnation == 2 && world.phase() == Some(JobPhase::Running)
        })
        .await;
    world.until_phase(1000, JobPhase::Succeeded).await;
    world.set_health(&node, Health::Up);
    world.until(200, "nothing is left", |world| world.leftovers().is_empty()).await;
}

/// Neither the operator nor the site reaches the nodes, whose agents hear the repository up to the
/// fence: their clock begins there, long after the operator's has run out (A1).
#[tokio::test(start_paused = true)]
async fn a1_the_clocks_of_agent_and_operator_side_by_side() {
    let mut world = running().await;
    let nodes: Vec<String> = world.bodies.iter().map(|body| body.node.clone()).collect();
    for node in &nodes {
        world.set_health(node, Health::Stray);
        world.site.set_node(&node.as_str().into(), false);
    }
    world.site.kill(&SlotId(world.open_slots()[0].clone()), End::Infrastructure("EXTERMINATE_JOB".into()));
    let lives = |world: &World| world.bodies.iter().any(|body| body.alive() && nodes.contains(&body.node));
    world.until(200, "the next are made", |world| world.status().incarnation == 2).await;
    assert!(lives(&world), "the operator's clock runs out first: {}", world.story());
    world.until(200, "all have loaded", |world| world.phase() == Some(JobPhase::Restoring)).await;
    world.until(200, "the old ones have ended by themselves", |world| !lives(world)).await;
    assert_eq!(world.phase(), Some(JobPhase::Restoring), "the agents' clock runs out second: {}", world.story());
    world.until_phase(60, JobPhase::Running).await;
    for node in &nodes {
        world.set_health(node, Health::Up);
    }
    ends_well(world).await;
}

/// Only the operator does not reach the agents, which live on as long as their slot does (A1).
#[tokio::test(start_paused = true)]
async fn a1_silence_alone_proves_no_death() {
    let mut world = running().await;
    let nodes: Vec<String> = world.bodies.iter().map(|body| body.node.clone()).collect();
    for node in &nodes {
        world.set_health(node, Health::Deaf);
    }
    world.pass(300).await;
    for node in &nodes {
        world.set_health(node, Health::Up);
    }
    ends_well(world).await;
}

/// The same, and the site does not answer either: nobody can say whether the VMs live (A1).
#[tokio::test(start_paused = true)]
async fn a1_silence_of_agents_and_site_starts_nothing() {
    let mut world = running().await;
    let nodes: Vec<String> = world.bodies.iter().map(|body| body.node.clone()).collect();
    for node in &nodes {
        world.set_health(node, Health::Deaf);
    }
    world.site.set_outage(Outage::All);
    world.pass(150).await;
    assert_eq!(world.site.slots().len(), 1, "{}", world.story());
    world.site.set_outage(Outage::None);
    world.pass(200).await;
    for node in &nodes {
        world.set_health(node, Health::Up);
    }
    ends_well(world).await;
}

#[tokio::test(start_paused = true)]
async fn conflicts_and_a_silent_apiserver_are_waited_out() {
    let mut world = running().await;
    world.cluster.conflict(3);
    world.pass(40).await;
    assert_eq!(world.status().incarnation, 1);
    world.cluster.set_down(true);
    world.pass(120).await;
    assert!(world.bodies.iter().all(crate::sim::nodes::Body::runs), "{}", world.story());
    world.cluster.set_down(false);
    let world = ends_well(world).await;
    assert_eq!(world.status().incarnation, 1, "{}", world.story());
}

/// Kubernetes is down when the notice comes: the members are captured all the same (B17).
#[tokio::test(start_paused = true)]
async fn b17_a_notice_does_not_wait_for_the_apiserver() {
    let mut world = running().await;
    let before = world.status().snapshots.last;
    world.cluster.set_down(true);
    world.site.preempt(&SlotId(world.open_slots()[0].clone()));
    world.pass(10).await;
    let captured = world.bodies.iter().filter(|body| {
        body.agent.peek().capture.is_some_and(|part| Some(part.generation) > before && part.record.is_some())
    });
    assert_eq!(captured.count(), 2, "{}", world.story());
    world.cluster.set_down(false);
    let world = ends_well(world).await;
    assert_eq!(world.status().kills.preempted, 1, "{}", world.story());
}

/// The operator was away for longer than T_iso: nobody is dead because of that (B13).
#[tokio::test(start_paused = true)]
async fn b13_a_long_absence_of_the_operator_kills_nobody() {
    let mut world = running().await;
    world.pace.restart = Duration::from_secs(200);
    world.operator.kill();
    world.pass(205).await;
    let world = ends_well(world).await;
    assert_eq!((world.status().incarnation, world.operator.epoch()), (1, 2), "{}", world.story());
}

/// An agent dies alone: its slot is kept or given back, and all members go back together.
#[tokio::test(start_paused = true)]
async fn a7_a_dead_agent_is_a_lost_member() {
    let mut world = running().await;
    world.kill_agent(0);
    world
        .until(300, "a second incarnation", |world| {
            world.status().incarnation == 2 && world.phase() == Some(JobPhase::Running)
        })
        .await;
    let world = ends_well(world).await;
    let told = world.cluster.events().iter().any(|event| event.warning && event.reason == Reason::NodeLost);
    assert!(told, "{}", world.story());
}
