//! Jobs on bare nodes, which are deployed first.

use std::time::Duration;

use rstest::rstest;
use serde_json::json;

use super::super::{World, job, nodes::Body};
use crate::{
    api::{BestEffortJob, JobPhase},
    driver::{
        kadeploy::{
            KadeployError,
            fake::{Fault, Outage},
        },
        site::End,
    },
    names::{NodeName, SlotId},
};

fn deployed(members: u32) -> BestEffortJob {
    let mut job = job(members);
    let hypervisor = json!({"deploy": "Always", "environment": {"name": "hypervisor", "user": "root"}});
    job.spec.hypervisor = Some(serde_json::from_value(hypervisor).unwrap());
    job
}

/// Deployed, started, captured, killed at a notice, deployed elsewhere, resumed, done; nothing is left, and no node.
async fn life(mut world: World) -> World {
    world.pace.work = Duration::from_secs(75);
    world.cluster.put_job(deployed(2));
    world.until(400, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    if let Some(slot) = world.open_slots().first() {
        world.site.preempt(&SlotId(slot.clone()));
    }
    world.until_phase(1500, JobPhase::Succeeded).await;
    world.until(200, "nothing is left", |world| world.leftovers().is_empty() && world.joined().is_empty()).await;
    world
}

#[tokio::test(start_paused = true)]
async fn a12_a_job_on_bare_nodes_survives_a_kill_and_its_nodes_leave_the_cluster() {
    let world = life(World::bare(4, usize::MAX)).await;
    let status = world.status();
    assert_eq!((status.incarnation, status.kills.preempted), (2, 1), "{}", world.story());
    assert_eq!(world.kadeploy.begun(), 2, "{}", world.story());
}

#[tokio::test(start_paused = true)]
async fn a10_a_deploying_operator_may_die_after_any_of_its_writes() {
    let undisturbed = life(World::bare(4, usize::MAX)).await;
    let writes = undisturbed.operator.log();
    for what in ["deploy", "forget_workflow", "remove_node", "offer", "withdraw"] {
        assert!(writes.contains(&what), "{writes:?}");
    }
    for n in 1..=writes.len() {
        let world = life(World::bare(4, n)).await;
        let status = world.status();
        let what = writes[n - 1];
        assert!(status.submission <= undisturbed.status().submission + 1, "write {n}: {}", world.story());
        assert_eq!((status.failures, status.incarnation), (0, 2), "write {n} ({what}): {}", world.story());
        assert!(world.kadeploy.begun() <= 3, "write {n} ({what}): {} deployments", world.kadeploy.begun());
    }
}

/// OAR ends nothing on deployed nodes, and what runs there hears of it late.
#[tokio::test(start_paused = true)]
async fn a12_a_slot_that_is_taken_without_a_word_doubles_no_machine() {
    let mut world = World::bare(4, usize::MAX);
    world.pace.work = Duration::from_secs(75);
    world.cluster.put_job(deployed(2));
    world.until(400, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    let slot = SlotId(world.open_slots()[0].clone());
    world.site.kill(&slot, End::Preempted);
    world.pass(3).await;
    assert!(world.bodies.iter().any(Body::runs), "nothing runs on: {}", world.story());
    world.until_phase(1500, JobPhase::Succeeded).await;
    let status = world.status();
    assert_eq!((status.incarnation, status.kills.preempted), (2, 1), "{}", world.story());
    world.until(200, "nothing is left", |world| world.leftovers().is_empty() && world.joined().is_empty()).await;
}

/// Each of what goes wrong with deployments, once.
#[rstest]
#[case::a_node_fails_for_good("node")]
#[case::the_server_dies_in_the_middle("restart")]
#[case::it_does_not_answer_for_a_while("silent")]
#[case::replies_are_lost("replies")]
#[case::another_operation_has_a_node("busy")]
#[case::rights_come_late("late")]
#[case::its_image_is_another_one_for_a_while("image")]
#[case::the_server_is_in_trouble_for_a_while("trouble")]
#[case::the_slot_is_taken_in_the_middle("killed")]
#[tokio::test(start_paused = true)]
async fn what_goes_wrong_with_deployments_is_survived(#[case] what: &str) {
    let mut world = World::bare(4, usize::MAX);
    world.pace.work = Duration::from_secs(30);
    let node = NodeName("node-1".into());
    match what {
        "node" => world.kadeploy.set_fault(&node, Some(Fault::Fails("no room".into()))),
        "replies" => world.kadeploy.set_outage(Outage::RepliesLost),
        "busy" => world.kadeploy.set_busy(&node, true),
        "late" => world.bare_nodes.as_mut().unwrap().late = 60,
        "image" => world.kadeploy.set_breaking(Some(KadeployError::Refused("does not match".into()))),
        "trouble" => world.kadeploy.set_breaking(Some(KadeployError::Unreachable("Database issue".into()))),
        _ => {}
    }
    world.cluster.put_job(deployed(2));
    if what != "late" {
        world.until(60, "a workflow", |world| world.kadeploy.begun() > 0).await;
    }
    match what {
        "restart" => world.kadeploy.restart(),
        "silent" => world.kadeploy.set_outage(Outage::All),
        "killed" => world.site.preempt(&SlotId(world.open_slots()[0].clone())),
        _ => {}
    }
    world.pass(40).await;
    world.kadeploy.set_breaking(None);
    world.kadeploy.set_outage(Outage::None);
    world.kadeploy.set_busy(&node, false);
    world.until_phase(1800, JobPhase::Succeeded).await;
    let status = world.status();
    assert_eq!((status.failures, status.kills.failed), (0, 0), "{}", world.story());
    assert!(status.unfit.is_empty() || what == "node", "{:?}: {}", status.unfit, world.story());
    let begun = world.kadeploy.begun();
    let expected = match what {
        // three times in vain, and the other slot's; or until it is mended
        "node" | "image" | "trouble" => 4,
        "restart" | "busy" | "killed" => 2,
        _ => 1,
    };
    assert!(begun <= expected + u64::from(what == "busy") * 10, "{begun} deployments: {}", world.story());
    world.until(200, "nothing is left", |world| world.leftovers().is_empty() && world.joined().is_empty()).await;
}
