//! What goes wrong with deployments, once each.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    Turn,
    job::{Counting, Job, nodes, slot_ids},
    rival::Rival,
    world::{GONE, LIFE, gone},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::json;
use vmdeploy::api::job_status::DeploymentState;

use crate::{
    images::{USER, describe, forget},
    nodes::{DEPLOYED, bare, bare_nodes, faults, forgotten, job, rights_late, workflows},
};

const SOON: Duration = Duration::from_secs(180);
/// The node that OAR lends first.
const FIRST: &str = "node-1";

async fn begun(bed: &Turn, name: &str, members: u32) -> Result<Job> {
    let namespace = bed.namespace(name).await?;
    let counting = Counting { members, ticks: 20, ..Counting::default() };
    Job::create(bed, &namespace, &job(&counting, "Always")?).await
}

/// Waits until a workflow is at work on the job's nodes.
async fn deploying(job: &Job) -> Result<()> {
    job.wait("a workflow", SOON, |job| {
        let slot = job.status.as_ref()?.slots.first()?;
        let nodes = &slot.deployment.as_ref()?.nodes;
        nodes.iter().all(|node| node.state == DeploymentState::Deploying).then_some(())
    })
    .await
}

/// Waits until the condition says how far the deployments are, with these words.
async fn says(job: &Job, words: &str) -> Result<()> {
    job.wait(&format!("Provisioned with {words:?}"), SOON, |job| {
        let said = |c: &&Condition| c.type_ == "Provisioned" && c.message.contains(words);
        job.status.as_ref()?.conditions.iter().find(said).map(drop)
    })
    .await
}

/// It comes to compute, and nothing is left of it.
async fn ends(bed: &Turn, job: &Job, members: u32) -> Result<()> {
    job.wait_tick(20, members, DEPLOYED).await?;
    gone(bed, job).await?;
    bare(bed).await?;
    forgotten().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn rights_that_come_late_are_waited_for() -> Result<()> {
    let Some(bed) = bare_nodes().await? else { return Ok(()) };
    rights_late(&bed, 15)?;
    let job = begun(&bed, "late", 1).await?;
    says(&job, "rights").await?;
    let ended = ends(&bed, &job, 1).await;
    rights_late(&bed, 0)?;
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_fails_is_asked_for_again_and_then_replaced() -> Result<()> {
    let Some(bed) = bare_nodes().await? else { return Ok(()) };
    let broken = json!({"step": "send_environment", "does": "fail", "error": "no room on the disk"});
    faults(&bed, &json!({"nodes": {FIRST: broken}}))?;
    let job = begun(&bed, "ko", 2).await?;
    says(&job, "no room on the disk").await?;
    // only that node is asked for again
    let status = job.get().await?.status.context("no status")?;
    let failed = status.slots.iter().flat_map(|slot| &slot.deployment).flat_map(|it| &it.nodes);
    let failed: Vec<&str> = failed.filter(|node| node.failures > 0).map(|node| node.node.as_str()).collect();
    ensure!(failed == [FIRST], "{failed:?}");
    job.wait_reason("DeploymentFailed", "no room on the disk", SOON).await?;
    job.wait("other nodes", LIFE, |job| {
        let nodes = nodes(job);
        (nodes.len() == 2 && !nodes.contains(&FIRST.to_owned())).then_some(())
    })
    .await?;
    let ended = ends(&bed, &job, 2).await;
    faults(&bed, &json!({}))?;
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_in_the_middle_is_taken_over_from() -> Result<()> {
    let Some(bed) = bare_nodes().await? else { return Ok(()) };
    let job = begun(&bed, "restart", 1).await?;
    deploying(&job).await?;
    let slots = slot_ids(&job.get().await?);
    bed.run(&["kadeploy-restart"])?;
    job.wait_tick(1, 1, DEPLOYED).await?;
    ensure!(slot_ids(&job.get().await?) == slots, "the slot was given back");
    let deployment = job.get().await?.status.and_then(|status| status.slots.first()?.deployment.clone());
    ensure!(deployment.as_ref().is_some_and(|it| it.last_workflow == 2), "{deployment:?}");
    ends(&bed, &job, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_taken_in_the_middle_of_a_deployment_is_replaced() -> Result<()> {
    let Some(bed) = bare_nodes().await? else { return Ok(()) };
    let job = begun(&bed, "taken", 1).await?;
    deploying(&job).await?;
    let first = nodes(&job.get().await?);
    let rival = Rival::submit(&bed, &first, Duration::from_secs(1))?;
    rival.found(LIFE).await?;
    job.wait_tick(1, 1, DEPLOYED).await?;
    let status = job.get().await?.status.context("no status")?;
    ensure!(status.attempt == 2 && status.failures == 0, "attempt {}, failures {}", status.attempt, status.failures);
    ends(&bed, &job, 1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn a_job_deleted_in_the_middle_cancels_its_deployment() -> Result<()> {
    let Some(bed) = bare_nodes().await? else { return Ok(()) };
    faults(&bed, &json!({"nodes": {FIRST: {"step": "wait_reboot", "does": "hang"}}}))?;
    let job = begun(&bed, "deleted", 1).await?;
    deploying(&job).await?;
    job.delete(GONE).await?;
    let left = workflows("vmdeploy").await?;
    faults(&bed, &json!({}))?;
    ensure!(left == 0, "{left} workflows are left");
    bare(&bed).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn an_operator_that_is_killed_asks_for_nothing_twice() -> Result<()> {
    let Some(bed) = bare_nodes().await? else { return Ok(()) };
    let job = begun(&bed, "operator", 1).await?;
    deploying(&job).await?;
    bed.operators(0)?;
    bed.operators(1)?;
    job.wait_tick(1, 1, DEPLOYED).await?;
    let status = job.get().await?.status.context("no status")?;
    let workflows: Vec<u32> =
        status.slots.iter().flat_map(|slot| &slot.deployment).map(|it| it.last_workflow).collect();
    ensure!(workflows == [1] && status.submission == 1, "{workflows:?} workflows, {} requests", status.submission);
    ends(&bed, &job, 1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn an_environment_that_is_not_there_is_said_before_any_slot_is_asked_for() -> Result<()> {
    let Some(bed) = bare_nodes().await? else { return Ok(()) };
    let namespace = bed.namespace("noenv").await?;
    let mut object = job(&Counting { ticks: 20, ..Counting::default() }, "IfMissing")?;
    let environment = object.spec.hypervisor.as_mut().and_then(|it| it.environment.as_mut()).context("none")?;
    environment.name = "hypervizor".into();
    let job = Job::create(&bed, &namespace, &object).await?;
    job.wait_reason("EnvironmentNotFound", "hypervizor@root", SOON).await?;
    ensure!(slot_ids(&job.get().await?).is_empty(), "a slot was asked for");
    job.correct(|spec| {
        let environment = spec.hypervisor.as_mut().and_then(|it| it.environment.as_mut());
        if let Some(it) = environment {
            it.name = "hypervisor".into();
        }
    })
    .await?;
    job.wait("a slot", SOON, |job| (!slot_ids(job).is_empty()).then_some(())).await?;
    gone(&bed, &job).await?;
    bare(&bed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_what_was_recorded_is_said_and_counts_against_no_node() -> Result<()> {
    let Some(bed) = bare_nodes().await? else { return Ok(()) };
    let namespace = bed.namespace("changed").await?;
    let (name, (url, directory)) = ("changed", bed.serve()?);
    let file = directory.path().join("image.tar.gz");
    fs::write(&file, "an image")?;
    forget(name).await?;
    describe(name, 1, &format!("{url}/image.tar.gz")).await?;
    fs::write(&file, "one that nobody has recorded")?;
    let mut object = job(&Counting { ticks: 20, ..Counting::default() }, "Always")?;
    let environment = object.spec.hypervisor.as_mut().and_then(|it| it.environment.as_mut()).context("none")?;
    (environment.name, environment.user) = (name.into(), Some(USER.into()));
    let job = Job::create(&bed, &namespace, &object).await?;
    // the slot is still there when that is said
    let nodes = job.wait("Stalled with the server's words", SOON, |job| {
        let status = job.status.as_ref()?;
        let said = |c: &Condition| {
            c.type_ == "Stalled" && c.reason == "DeploymentRefused" && c.message.contains("does not match")
        };
        let deployed = status.slots.iter().flat_map(|slot| &slot.deployment).flat_map(|it| it.nodes.clone());
        status.conditions.iter().any(said).then(|| deployed.collect::<Vec<_>>()).filter(|nodes| !nodes.is_empty())
    });
    let nodes = nodes.await?;
    ensure!(nodes.iter().all(|node| node.failures == 0), "{nodes:?}");
    let status = job.get().await?.status.context("no status")?;
    ensure!(status.unfit.is_empty() && status.failures == 0, "{:?}, failures {}", status.unfit, status.failures);
    gone(&bed, &job).await?;
    bare(&bed).await?;
    forgotten().await?;
    forget(name).await
}
