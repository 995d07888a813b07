//! Deletion and suspension in every phase leave nothing behind.

use std::time::Duration;

use rstest::rstest;

use super::super::{World, job};
use crate::{
    api::{BestEffortJob, JobPhase, snapshot::SnapshotPhase},
    driver::{
        cluster::{Cluster, ClusterView, Kind},
        repository::{JobContent, Repository as _},
        site::fake::Outage,
    },
    names::SlotId,
};

/// The moments: as many seconds after the job was made, with a notice at second 45.
pub(super) async fn moment(second: u64, job: BestEffortJob) -> World {
    let mut world = World::new(4);
    world.pace.work = Duration::from_secs(90);
    world.cluster.put_job(job);
    for age in 0..second {
        if age == 45
            && let Some(slot) = world.open_slots().first()
        {
            world.site.preempt(&SlotId(slot.clone()));
        }
        world.step(Duration::from_secs(1)).await;
    }
    world
}

pub(super) async fn delete(world: &World) {
    let job = world.job().unwrap();
    world.cluster.delete(Kind::Job, &job.metadata).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn deletion_at_any_second_leaves_nothing() {
    let mut phases = std::collections::BTreeSet::new();
    for second in (0..150).step_by(2) {
        let mut world = moment(second, job(2)).await;
        let uid = world.uid().unwrap();
        phases.insert(format!("{:?}", world.phase().unwrap()));
        delete(&world).await;
        world.until(200, &format!("gone, deleted at {second} s"), |world| world.job().is_none()).await;
        world.until(60, "nothing is left", |world| world.leftovers().is_empty()).await;
        assert!(world.cluster.all_snapshots().is_empty(), "second {second}: {}", world.story());
        assert!(world.repository.complete(&uid).is_empty(), "second {second}: {}", world.story());
    }
    for phase in ["Queued", "Starting", "Running", "Evacuating", "Restoring", "Succeeded"] {
        assert!(phases.contains(phase), "{phase} was never met: {phases:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn suspension_at_any_second_holds_nothing_and_loses_nothing() {
    for second in (1..140).step_by(3) {
        let mut world = moment(second, job(2)).await;
        let mut job = (*world.job().unwrap()).clone();
        job.spec.suspend = true;
        world.cluster.put_job(job.clone());
        let at_rest = [JobPhase::Suspended, JobPhase::Succeeded];
        world
            .until(200, &format!("at rest, suspended at {second} s"), |world| {
                world.phase().is_some_and(|phase| at_rest.contains(&phase)) && world.leftovers().is_empty()
            })
            .await;
        let computed = world.status().work.useful;
        world.pass(100).await;
        assert!(world.leftovers().is_empty(), "second {second}: {}", world.story());
        job.spec.suspend = false;
        world.cluster.put_job(job);
        world.until_phase(600, JobPhase::Succeeded).await;
        assert!(world.status().work.useful >= computed);
        assert_eq!(world.status().failures, 0);
    }
}

/// Deleted while it runs and has complete generations; how much was written before that.
async fn deleted(mut world: World) -> (World, usize) {
    world.cluster.put_job(job(2));
    world.until(300, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    let (uid, before) = (world.uid().unwrap(), world.operator.log().len());
    delete(&world).await;
    world.until(600, "gone", |world| world.job().is_none()).await;
    // the object is the last to go
    assert_eq!(world.leftovers(), [] as [String; 0], "{}", world.story());
    assert!(world.cluster.all_snapshots().is_empty(), "{}", world.story());
    assert_eq!(world.repository.content(&uid).await, Ok(JobContent::default()), "{}", world.story());
    (world, before)
}

#[tokio::test(start_paused = true)]
async fn c4_a_deleted_job_stays_until_all_is_gone_whenever_its_operator_dies() {
    let (undisturbed, before) = deleted(World::new(4)).await;
    let writes = undisturbed.operator.log();
    for wanted in ["leave", "delete_agent", "remove_job"] {
        assert!(writes[before..].contains(&wanted), "{wanted}: {:?}", &writes[before..]);
    }
    for n in before..writes.len() {
        let (world, _) = deleted(World::with_limit(4, n)).await;
        assert!(world.operator.epoch() == 2 || n + 3 >= writes.len(), "it did not die after {n} writes");
    }
}

/// The site does not answer: the object stays until it is sure that nothing is held.
#[tokio::test(start_paused = true)]
async fn deletion_waits_for_a_site_that_does_not_answer() {
    let mut world = moment(30, job(2)).await;
    world.site.set_outage(Outage::All);
    delete(&world).await;
    world.pass(120).await;
    assert!(world.job().is_some(), "{}", world.story());
    world.site.set_outage(Outage::None);
    world.until(200, "gone", |world| world.job().is_none()).await;
    world.until(60, "nothing is left", |world| world.leftovers().is_empty()).await;
}

/// What a user retained outlives the job, and takes everything with it when it goes (B12).
#[tokio::test(start_paused = true)]
async fn b12_a_retained_snapshot_outlives_its_job() {
    let mut world = moment(44, job(2)).await;
    let uid = world.uid().unwrap();
    let stored = |world: &World| {
        let all = world.cluster.all_snapshots();
        all.into_iter().find(|s| s.status.as_ref().is_some_and(|s| s.phase == SnapshotPhase::Stored))
    };
    world.until(60, "a stored snapshot", |world| stored(world).is_some()).await;
    let name = stored(&world).unwrap().metadata.name.unwrap();
    world.cluster.retain_snapshot(super::super::NAMESPACE, &name, true);
    delete(&world).await;
    world.until(300, "gone", |world| world.job().is_none()).await;
    world.pass(30).await;
    let left = world.cluster.all_snapshots();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(world.repository.complete(&uid).len(), 1);
    world.cluster.delete(Kind::Snapshot, &left[0].metadata).await.unwrap();
    world.until(60, "the last one gone", |world| world.cluster.all_snapshots().is_empty()).await;
    assert!(world.repository.complete(&uid).is_empty());
    assert!(world.cluster.job(super::super::NAMESPACE, "pi").is_none());
}

/// A user deletes every snapshot there is, again and again: the job can always go back to one (B12).
#[rstest]
#[case::killed_afterwards(true)]
#[case::not_killed(false)]
#[tokio::test(start_paused = true)]
async fn b12_a_user_cannot_delete_what_a_live_job_needs(#[case] killed: bool) {
    let mut world = World::new(4);
    world.cluster.put_job(job(2));
    world.until(200, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    for round in 0..40 {
        for snapshot in world.cluster.all_snapshots() {
            world.cluster.delete(Kind::Snapshot, &snapshot.metadata).await.unwrap();
        }
        if killed
            && round == 20
            && let Some(slot) = world.open_slots().first()
        {
            world.site.kill(&SlotId(slot.clone()), crate::driver::site::End::Preempted);
        }
        world.step(Duration::from_secs(1)).await;
    }
    world.until_phase(600, JobPhase::Succeeded).await;
    assert!(!killed || world.status().origin.is_some_and(|origin| origin.generation.is_some()), "{}", world.story());
}
