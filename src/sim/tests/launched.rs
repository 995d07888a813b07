//! Jobs whose agents launchers start, on nodes that have no kubelet.

use std::time::Duration;

use super::{
    super::{World, job},
    crash::life,
};
use crate::{
    api::{BestEffortJob, JobPhase, job::LauncherKind},
    driver::site::End,
    names::SlotId,
};

fn launched(members: u32) -> BestEffortJob {
    let mut job = job(members);
    job.spec.launcher = LauncherKind::TakTuk;
    job
}

#[tokio::test(start_paused = true)]
async fn a_job_on_nodes_without_a_kubelet_survives_a_kill() {
    let world = life(World::launched(4, usize::MAX), &launched(2)).await;
    let status = world.status();
    assert_eq!((status.incarnation, status.kills.preempted), (2, 1), "{}", world.story());
    assert!(world.operator.log().contains(&"start_agent") && !world.operator.log().contains(&"create_agent_pod"));
}

#[tokio::test(start_paused = true)]
async fn a10_an_operator_whose_agents_are_launched_may_die_after_any_of_its_writes() {
    let undisturbed = life(World::launched(4, usize::MAX), &launched(2)).await;
    let writes = undisturbed.operator.log();
    for n in 1..=writes.len() {
        let world = life(World::launched(4, n), &launched(2)).await;
        let status = world.status();
        let what = writes[n - 1];
        assert!(status.submission <= undisturbed.status().submission + 1, "write {n}: {}", world.story());
        assert_eq!((status.failures, status.incarnation), (0, 2), "write {n} ({what}): {}", world.story());
    }
}

/// OAR's kill ends the launcher, and with it the agents: nobody has to be waited for.
#[tokio::test(start_paused = true)]
async fn a1_a_slot_that_is_taken_without_a_word_is_a_proof_of_death() {
    let mut world = World::launched(4, usize::MAX);
    world.pace.work = Duration::from_secs(75);
    world.cluster.put_job(launched(2));
    world.until(300, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    world.site.kill(&SlotId(world.open_slots()[0].clone()), End::Preempted);
    world.until_phase(900, JobPhase::Succeeded).await;
    let status = world.status();
    assert_eq!((status.incarnation, status.kills.preempted), (2, 1), "{}", world.story());
    world.until(120, "nothing is left", |world| world.leftovers().is_empty()).await;
}

/// An agent that dies by itself is told of by its launcher; its slot stays, and so does its node.
#[tokio::test(start_paused = true)]
async fn an_agent_that_dies_is_started_again_in_its_slot() {
    let mut world = World::launched(2, usize::MAX);
    world.pace.work = Duration::from_secs(75);
    world.cluster.put_job(launched(2));
    world.until(300, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    world.kill_agent(0);
    world.until_phase(900, JobPhase::Succeeded).await;
    let status = world.status();
    assert_eq!((status.incarnation, status.submission), (2, 1), "{}", world.story());
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_key_is_said_before_any_slot_is_asked_for() {
    let mut world = World::launched(2, usize::MAX);
    let mut job = launched(2);
    job.spec.slots.credentials = Some(crate::api::job::SecretReference { name: "oar-alice".into() });
    let secret = |text: &str| {
        let mut secret = k8s_openapi::api::core::v1::Secret::default();
        (secret.metadata.name, secret.metadata.namespace) = (Some("oar-alice".into()), Some("team".into()));
        let entries = [("username", "alice"), ("password", "x"), ("launchKey", text)];
        let bytes = |text: &str| k8s_openapi::ByteString(text.as_bytes().to_vec());
        secret.data = Some(entries.map(|(name, text)| (name.to_owned(), bytes(text))).into());
        secret
    };
    world.cluster.put_secret(secret("too short"));
    world.cluster.put_job(job);
    world.pass(5).await;
    let message = world.status().retry.map(|retry| retry.message).unwrap_or_default();
    assert!(message.contains("32 to 256 letters and digits"), "{message}");
    assert_eq!(world.open_slots().len(), 0);
    world.cluster.put_secret(secret(&"k".repeat(40)));
    world.until_phase(900, JobPhase::Succeeded).await;
}

/// Whoever is root on a node of a slot may have its launcher say anything.
#[tokio::test(start_paused = true)]
async fn a1_a_launcher_is_believed_about_its_own_node_alone() {
    let mut world = World::launched(3, usize::MAX);
    world.pace.work = Duration::from_secs(120);
    world.cluster.put_job(launched(2));
    world.until_phase(300, JobPhase::Running).await;
    let status = world.status();
    let (own, other) = (&status.members[0], &status.members[1]);
    let address = world.address_of(own.node.as_deref().unwrap()).unwrap();
    let pod = other.agent.as_ref().unwrap().pod.clone();
    world.launchers.with(address, |node| {
        let lie = node.agents.values().next().unwrap().clone();
        for (name, ended) in
            [(pod.as_str(), Some("gone".to_owned())), ("vmdeploy-ca", None), ("agent-ffffffff-0-1", None)]
        {
            let mut lie = lie.clone();
            (lie.agent.name, lie.agent.ended) = (name.into(), ended);
            node.agents.insert(name.into(), lie);
        }
    });
    // neither is another's pod, with its Secret, removed because a launcher has its name
    let mut victim = k8s_openapi::api::core::v1::Pod::default();
    victim.metadata.name = Some("agent-ffffffff-0-1".into());
    crate::driver::cluster::Cluster::create_agent_pod(&world.cluster, &victim).await.unwrap();
    world.pass(30).await;
    let now = world.status();
    assert_eq!((now.incarnation, now.phase), (status.incarnation, JobPhase::Running), "{}", world.story());
    assert!(world.cluster.pods().iter().any(|pod| pod.metadata.name == victim.metadata.name));
    assert!(!world.operator.log().contains(&"delete_agent"), "{:?}", world.operator.log());
}

#[tokio::test(start_paused = true)]
async fn what_a_launcher_refuses_is_said_in_its_own_words() {
    let mut world = World::launched(2, usize::MAX);
    world.cluster.put_job(launched(1));
    world.launchers.refuse(Some("no room on the disk"));
    let said = |world: &World| world.status().retry.map(|retry| retry.message).unwrap_or_default();
    let goal = |world: &World| said(world).contains("it was not started: no room on the disk");
    world.until(30, "what the launcher said", goal).await;
    world.launchers.refuse(None);
    world.until_phase(900, JobPhase::Succeeded).await;
}

/// A key that is another one by now does no harm to what runs.
#[tokio::test(start_paused = true)]
async fn launchers_that_are_at_work_keep_their_key() {
    let mut world = World::launched(2, usize::MAX);
    world.pace.work = Duration::from_secs(500);
    world.cluster.put_job(launched(2));
    world.until_phase(300, JobPhase::Running).await;
    let mut secret = k8s_openapi::api::core::v1::Secret::default();
    (secret.metadata.name, secret.metadata.namespace) = (Some("launch-keys".into()), Some("vmdeploy".into()));
    world.cluster.put_secret(secret);
    world.pass(400).await;
    world.kill_agent(0);
    world.until_phase(1500, JobPhase::Succeeded).await;
    let status = world.status();
    assert_eq!((status.incarnation, status.submission), (2, 1), "{}", world.story());
}

/// Nothing can be started there any more: its slot goes, and another one is asked for.
#[tokio::test(start_paused = true)]
async fn a_launcher_that_hangs_costs_its_slot_and_no_more() {
    let mut world = World::launched(2, usize::MAX);
    world.pace.work = Duration::from_secs(200);
    world.cluster.put_job(launched(2));
    world.until(300, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    world.launchers.set_silent(true);
    world.kill_agent(0);
    world.until(300, "the slot is given up", |world| world.status().submission > 1).await;
    world.launchers.set_silent(false);
    world.until_phase(1500, JobPhase::Succeeded).await;
    world.until(120, "nothing is left", |world| world.leftovers().is_empty()).await;
}
