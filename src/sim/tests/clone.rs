//! Snapshots that users ask for, and jobs that begin with another one's generation.

use std::{collections::BTreeSet, time::Duration};

use super::super::{NAMESPACE, World, job, nodes::Body};
use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, JobPhase, Snapshot, SnapshotSpec,
        job::RestoreFrom,
        snapshot::{SnapshotPhase, SnapshotReason},
    },
    driver::{
        cluster::{Cluster as _, ClusterView as _, Kind},
        site::End,
    },
    names::{JobUid, SlotId, submission_of},
};

/// What a user writes and applies.
async fn ask_for_snapshot(world: &World, name: &str, retain: bool) {
    let spec = SnapshotSpec { job: "pi".into(), reason: SnapshotReason::User, retain };
    let mut snapshot = Snapshot::new(name, spec);
    snapshot.metadata.namespace = Some(NAMESPACE.into());
    world.cluster.create_snapshot(&snapshot).await.unwrap();
}

fn snapshot(world: &World, name: &str) -> Snapshot {
    world.cluster.snapshot(NAMESPACE, name).map(|found| (*found).clone()).expect(name)
}

fn stored(world: &World, name: &str) -> bool {
    snapshot(world, name).status.is_some_and(|status| status.phase == SnapshotPhase::Stored)
}

fn clone_of(name: &str) -> BestEffortJob {
    let mut again = job(2);
    again.metadata.name = Some("again".into());
    again.spec.image = None;
    again.spec.restore_from = Some(RestoreFrom { snapshot: name.into() });
    again
}

fn again(world: &World) -> BestEffortJobStatus {
    world.cluster.job(NAMESPACE, "again").and_then(|job| job.status.clone()).unwrap_or_default()
}

fn uid_of(world: &World, name: &str) -> JobUid {
    JobUid(world.cluster.job(NAMESPACE, name).unwrap().metadata.uid.clone().unwrap())
}

fn slot_of(world: &World, job: &JobUid) -> SlotId {
    let slots = world.site.slots();
    let open = slots.iter().filter(|slot| world.open_slots().contains(&slot.id.0));
    open.filter(|slot| submission_of(job, &slot.name).is_some()).map(|slot| slot.id.clone()).next().expect("a slot")
}

fn running<'a>(world: &'a World, job: &JobUid) -> Vec<&'a Body> {
    world.bodies.iter().filter(|body| body.runs() && body.config.job == *job).collect()
}

async fn delete_source(world: &World) {
    let job = world.job().unwrap();
    world.cluster.delete(Kind::Job, &job.metadata).await.unwrap();
}

/// A snapshot of a job in the middle of its work.
async fn with_snapshot(mut world: World, retain: bool) -> World {
    world.pace.work = Duration::from_secs(150);
    world.cluster.put_job(job(2));
    world.until_phase(60, JobPhase::Running).await;
    world.pass(12).await;
    ask_for_snapshot(&world, "mine", retain).await;
    world.until(10, "captured at once, and stored", |world| stored(world, "mine")).await;
    world
}

#[tokio::test(start_paused = true)]
async fn b11_both_run_at_once_and_the_source_may_be_deleted() {
    let mut world = with_snapshot(World::new(4), false).await;
    let cut = snapshot(&world, "mine").status.unwrap();
    world.cluster.put_job(clone_of("mine"));
    world.until(60, "the clone runs", |world| again(world).phase == JobPhase::Running).await;
    let (source, own) = (uid_of(&world, "pi"), uid_of(&world, "again"));
    assert_eq!((running(&world, &source).len(), running(&world, &own).len()), (2, 2), "{}", world.story());
    let (theirs, status) = (world.status().network.unwrap(), again(&world));
    let network = status.network.clone().unwrap();
    assert_eq!((&network.subnet, network.mtu), (&theirs.subnet, theirs.mtu));
    assert_ne!(network.vni, theirs.vni, "in a network of its own");
    let places = |uid: &JobUid| -> BTreeSet<_> {
        let members = running(&world, uid).into_iter().flat_map(|body| body.config.network.clone().unwrap().members);
        members.map(|member| (member.address, member.mac)).collect()
    };
    assert_eq!(places(&own), places(&source));
    let before: f64 = running(&world, &own).iter().map(|body| body.before).sum();
    assert!((before - cut.work as f64).abs() <= 2.0, "{before} {}", cut.work);
    assert_eq!(
        (status.origin.unwrap().generation, status.adopted.unwrap().generation),
        (Some(0), cut.generation.unwrap())
    );

    delete_source(&world).await;
    world.until(120, "the source is gone", |world| world.job().is_none()).await;
    assert!(world.repository.complete(&source).is_empty());
    world.site.kill(&slot_of(&world, &own), End::Preempted);
    world
        .until(120, "restored", |world| again(world).incarnation == 2 && again(world).phase == JobPhase::Running)
        .await;
    world.until(400, "the clone has succeeded", |world| again(world).phase == JobPhase::Succeeded).await;
    world.until(60, "nothing is left", |world| world.leftovers().is_empty()).await;
    let work = again(&world).work;
    assert!(work.useful < 2 * 150 - cut.work + 10, "the source's work is not its own: {work:?}");
}

#[tokio::test(start_paused = true)]
async fn b11_a_clone_of_a_job_that_is_gone_starts_with_a_retained_snapshot() {
    let mut world = with_snapshot(World::new(2), true).await;
    delete_source(&world).await;
    world.until(120, "the source is gone", |world| world.job().is_none()).await;
    world.cluster.put_job(clone_of("mine"));
    world.until(60, "the clone runs", |world| again(world).phase == JobPhase::Running).await;
    let kept = snapshot(&world, "mine");
    world.cluster.delete(Kind::Snapshot, &kept.metadata).await.unwrap();
    // before it has one of its own
    world.site.kill(&slot_of(&world, &uid_of(&world, "again")), End::Preempted);
    world.until(400, "the clone has succeeded", |world| again(world).phase == JobPhase::Succeeded).await;
    assert!(world.cluster.snapshot(NAMESPACE, "mine").is_none());
    let own = uid_of(&world, "again");
    let job = world.cluster.job(NAMESPACE, "again").unwrap();
    world.cluster.delete(Kind::Job, &job.metadata).await.unwrap();
    world.until(120, "it is gone", |world| world.cluster.job(NAMESPACE, "again").is_none()).await;
    assert!(world.repository.complete(&own).is_empty(), "and with it what it began with");
}

/// A clone is started so many seconds after its source was deleted.
async fn race(world: World, delay: Option<u64>) -> World {
    let mut world = with_snapshot(world, false).await;
    match delay {
        Some(delay) => {
            delete_source(&world).await;
            world.pass(delay).await;
            world.cluster.put_job(clone_of("mine"));
        }
        None => {
            world.cluster.put_job(clone_of("mine"));
            world.step(Duration::from_secs(1)).await;
            delete_source(&world).await;
        }
    }
    world
        .until(400, "an end", |world| {
            let status = again(world);
            status.phase == JobPhase::Succeeded || status.retry.as_ref().is_some_and(|retry| retry.stalled)
        })
        .await;
    world.until(120, "the source is gone", |world| world.job().is_none()).await;
    world
}

#[tokio::test(start_paused = true)]
async fn b11_an_operator_that_dies_anywhere_leaves_the_clone_whole() {
    let undisturbed = Box::pin(race(World::new(4), None)).await;
    let writes = undisturbed.operator.log();
    let first = writes.iter().position(|write| *write == "adopt").unwrap();
    for n in first.saturating_sub(8)..(first + 30).min(writes.len()) {
        let world = Box::pin(race(World::with_limit(4, n), None)).await;
        let status = again(&world);
        assert_eq!((status.phase, status.failures), (JobPhase::Succeeded, 0), "write {n}: {}", world.story());
        assert_eq!(status.adopted.unwrap().generation, 1, "write {n}: {}", world.story());
    }
}

#[tokio::test(start_paused = true)]
async fn b11_a_source_that_goes_leaves_the_clone_whole_or_it_is_told_why() {
    let (mut whole, mut told) = (0, 0);
    for delay in 0..20 {
        let world = Box::pin(race(World::new(4), Some(delay))).await;
        let status = again(&world);
        match status.retry {
            None => {
                whole += 1;
                assert_eq!(status.adopted.unwrap().generation, 1, "after {delay} s: {}", world.story());
            }
            Some(retry) => {
                told += 1;
                assert!(format!("{:?}", retry.reason).starts_with("Snapshot"), "{retry:?}");
                assert_eq!(status.submission, 0, "after {delay} s: {}", world.story());
            }
        }
    }
    assert!(whole > 0 && told > 0, "{whole} went on, {told} were told why not");
}

#[tokio::test(start_paused = true)]
async fn a_clone_waits_for_a_snapshot_that_is_on_its_way() {
    let mut world = World::new(4);
    world.pace.work = Duration::from_secs(200);
    world.cluster.put_job(clone_of("mine"));
    world.pass(20).await;
    assert!(again(&world).retry.is_some_and(|retry| retry.stalled), "there is no such snapshot");
    world.cluster.put_job(job(2));
    world.until_phase(60, JobPhase::Running).await;
    world.kget.stopped = true;
    ask_for_snapshot(&world, "mine", false).await;
    world.pass(30).await;
    let status = again(&world);
    assert_eq!((status.phase, &status.retry, status.submission), (JobPhase::Pending, &None, 0), "{}", world.story());
    world.kget.stopped = false;
    world.until(60, "the clone runs", |world| again(world).phase == JobPhase::Running).await;
}

/// Apply captures at once, whatever the period; what is retained or was asked for stays, and a deletion frees it.
#[tokio::test(start_paused = true)]
async fn snapshots_of_users_are_taken_at_once_and_stay_until_they_are_deleted() {
    let mut world = with_snapshot(World::new(2), true).await;
    let uid = world.uid().unwrap();
    let mine = snapshot(&world, "mine").status.unwrap().generation.unwrap();
    world.until_phase(10, JobPhase::Running).await;
    ask_for_snapshot(&world, "another", false).await;
    world.until(10, "captured at once, and stored", |world| stored(world, "another")).await;
    let another = snapshot(&world, "another").status.unwrap().generation.unwrap();
    world.pace.work = Duration::from_secs(1000);
    world.until(300, "many more", |world| world.status().snapshots.last_stored > Some(another + 6)).await;
    let complete = world.repository.complete(&uid);
    assert!(complete.contains(&mine) && complete.contains(&another), "{complete:?}");
    assert!(complete.len() <= 5, "the others go: {complete:?}");
    for name in ["mine", "another"] {
        world.cluster.delete(Kind::Snapshot, &snapshot(&world, name).metadata).await.unwrap();
    }
    world.pass(5).await;
    let complete = world.repository.complete(&uid);
    assert!(!complete.contains(&mine) && !complete.contains(&another), "{complete:?}");
}
