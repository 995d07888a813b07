use std::sync::Arc;

use super::*;
use crate::{
    api::{SnapshotSpec, SnapshotStatus, snapshot::SnapshotReason},
    clock::Clock,
    controller::snapshot::decide::{Effect, decide},
    driver::{
        cluster::{Cluster as _, ClusterView as _, Kind, fake::FakeCluster},
        repository::fake::FakeRepository,
    },
};

struct World {
    cluster: FakeCluster,
    context: Context,
}

/// A job with a snapshot that is being deleted.
async fn world() -> World {
    let clock = Clock::manual(jiff::Timestamp::from_second(1_800_000_000).unwrap());
    let cluster = FakeCluster::new(clock.clone());
    let job = "apiVersion: vmdeploy.io/v1alpha1\nkind: BestEffortJob\nmetadata: {name: pi, namespace: team}\n\
               spec: {run: {command: [pi]}, slots: {site: rennes, walltime: 2h}}\n";
    cluster.put_job(crate::yaml::read(job).unwrap());
    let job = cluster.job("team", "pi").unwrap();
    let mut snapshot =
        Snapshot::new("pi-7", SnapshotSpec { job: "pi".into(), reason: SnapshotReason::Periodic, retain: false });
    snapshot.metadata.namespace = Some("team".into());
    cluster.create_snapshot(&snapshot).await.unwrap();
    let status = SnapshotStatus {
        generation: Some(7),
        incarnation: 1,
        job_uid: job.metadata.uid.clone().unwrap(),
        ..SnapshotStatus::default()
    };
    let written = cluster.snapshots("team", "pi").remove(0);
    cluster.apply_snapshot_status(&written.metadata, &status).await.unwrap();
    cluster.add_finalizer(Kind::Snapshot, &written.metadata).await.unwrap();
    let held = cluster.snapshots("team", "pi").remove(0);
    cluster.delete(Kind::Snapshot, &held.metadata).await.unwrap();
    let context = Context {
        clock,
        cluster: Arc::new(cluster.clone()),
        view: Arc::new(cluster.clone()),
        repository: Arc::new(FakeRepository::new()),
    };
    World { cluster, context }
}

impl World {
    async fn effects(&self) -> Vec<Effect> {
        let snapshot = self.cluster.snapshots("team", "pi").remove(0);
        assert!(snapshot.metadata.deletion_timestamp.is_some());
        let seen = observe(&snapshot, &self.context).await;
        decide(&snapshot, &seen, self.context.clock.now()).effects
    }

    fn removes(effects: &[Effect]) -> bool {
        effects.iter().any(|effect| matches!(effect, Effect::RemoveContent { .. } | Effect::Retire { .. }))
    }
}

#[tokio::test]
async fn b12_a_job_that_cannot_be_read_is_not_gone() {
    let world = world().await;
    world.cluster.set_unread(Kind::Job, "team", "pi", true);
    assert_eq!(world.effects().await, [], "its generations are kept");
    // nor is one of which the API server says nothing
    let job = {
        world.cluster.set_unread(Kind::Job, "team", "pi", false);
        world.cluster.job("team", "pi").unwrap()
    };
    world.cluster.delete(Kind::Job, &job.metadata).await.unwrap();
    world.cluster.set_down(true);
    assert_eq!(world.effects().await, []);
    world.cluster.set_down(false);
    assert!(World::removes(&world.effects().await));
}

#[tokio::test]
async fn b12_a_snapshot_that_cannot_be_read_may_be_the_jobs() {
    let world = world().await;
    let job = world.cluster.job("team", "pi").unwrap();
    world.cluster.delete(Kind::Job, &job.metadata).await.unwrap();
    world.cluster.set_unread(Kind::Snapshot, "team", "another", true);
    let effects = world.effects().await;
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::RemoveContent { .. })), "{effects:?}");
    assert!(World::removes(&effects), "its own generation goes");
    world.cluster.set_unread(Kind::Snapshot, "team", "another", false);
    assert!(matches!(world.effects().await[..], [Effect::RemoveContent { .. }, Effect::RemoveFinalizer]));
}

#[tokio::test]
async fn b11_a_copy_under_way_is_seen_until_it_is_there_or_given_up() {
    let world = world().await;
    let text = "apiVersion: vmdeploy.io/v1alpha1\nkind: BestEffortJob\nmetadata: {name: again, namespace: team}\n\
                spec: {run: {command: [pi]}, restoreFrom: {snapshot: pi-7}, slots: {site: rennes, walltime: 2h}}\n";
    world.cluster.put_job(crate::yaml::read(text).unwrap());
    let snapshot = world.cluster.snapshots("team", "pi").remove(0);
    let job_uid = snapshot.status.as_ref().unwrap().job_uid.clone();
    let write = async |phase, generation, complete| {
        let job = world.cluster.job("team", "again").unwrap();
        let adopted = crate::api::job_status::Adopted {
            job_uid: job_uid.clone(),
            generation,
            complete,
            ..crate::api::job_status::Adopted::default()
        };
        let status = crate::api::BestEffortJobStatus { phase, adopted: Some(adopted), ..Default::default() };
        world.cluster.patch_job_status(&job.metadata, &status).await.unwrap();
        observe(&snapshot, &world.context).await.copied_by
    };
    assert_eq!(write(JobPhase::Pending, 7, None).await.as_deref(), Some("again"));
    assert_eq!(write(JobPhase::Pending, 6, None).await, None);
    assert_eq!(write(JobPhase::Failed, 7, None).await, None);
    let there = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.context.clock.now()));
    assert_eq!(write(JobPhase::Queued, 7, there).await, None);
}
