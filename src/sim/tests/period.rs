//! Lives of jobs that leave the period to the operator.

use std::time::Duration;

use rstest::rstest;

use super::super::{NAMESPACE, World, job};
use crate::{
    api::{BestEffortJob, JobPhase, period::Period},
    driver::{cluster::ClusterView as _, site::End},
    names::SlotId,
};

fn adaptive(grace: u64) -> BestEffortJob {
    let mut job = job(2);
    job.spec.snapshots.period = Period::Adaptive;
    job.spec.snapshots.grace = Duration::from_secs(grace).into();
    job.spec.slots.walltime = Duration::from_secs(8 * 3600).into();
    job
}

/// The period and its reason.
fn chosen(world: &World) -> (u64, String) {
    let snapshots = world.status().snapshots;
    let period = Duration::from(snapshots.period.expect("a period"));
    (period.as_secs(), snapshots.period_reason.expect("a reason"))
}

/// Kills the job without notice, and waits until it runs again.
async fn kill(world: &mut World) {
    let (slot, incarnation) = (world.open_slots()[0].clone(), world.status().incarnation);
    world.site.kill(&SlotId(slot), End::Preempted);
    let again = |world: &World| world.status().incarnation > incarnation && world.phase() == Some(JobPhase::Running);
    world.until(200, "another incarnation that runs", again).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_killed_often_is_captured_more_often() {
    let mut world = World::new(4);
    world.pace.work = Duration::from_secs(3600);
    world.cluster.put_job(adaptive(0));
    world.until_phase(60, JobPhase::Running).await;
    let mut periods = vec![chosen(&world)];
    for _ in 0..3 {
        // before its first snapshot, whose pause would change the period as well
        world.pass(60).await;
        kill(&mut world).await;
        periods.push(chosen(&world));
    }
    let lengths: Vec<u64> = periods.iter().map(|(period, _)| *period).collect();
    assert_eq!(lengths, [414, 293, 239, 207], "{periods:?}");
    let says = ": 3 in 0.10 CPU-hours of its own, 0 in 0.00 CPU-hours of other jobs";
    assert!(periods[3].1.contains(says), "{periods:?}");
    let begun = world.clock.now();
    world.until(500, "a generation", |world| world.status().snapshots.last.is_some()).await;
    let waited = world.clock.now().duration_since(begun).as_secs();
    assert!((180..=235).contains(&waited), "captured after {waited} s: {}", world.story());
}

/// By the operator that has seen it, and by the next one, which knows only the statuses.
#[rstest]
#[case::of_the_same_operator(false)]
#[case::of_the_next_operator(true)]
#[tokio::test(start_paused = true)]
async fn a_new_job_learns_from_what_happened_to_others(#[case] restarted: bool) {
    let mut world = World::new(4);
    world.pace.work = Duration::from_secs(3600);
    world.cluster.put_job(adaptive(0));
    world.until_phase(60, JobPhase::Running).await;
    for _ in 0..3 {
        world.pass(60).await;
        kill(&mut world).await;
    }
    if restarted {
        world.operator.kill();
    }
    let mut other = adaptive(0);
    other.metadata.name = Some("e".into());
    world.cluster.put_job(other);
    let accepted = |world: &World| {
        let status = world.cluster.job(NAMESPACE, "e").and_then(|job| job.status.clone())?;
        status.snapshots.period.map(|period| Duration::from(period).as_secs())
    };
    world.until(30, "another job's period", |world| accepted(world).is_some()).await;
    assert_eq!(accepted(&world), Some(207), "{}", world.story());
}
