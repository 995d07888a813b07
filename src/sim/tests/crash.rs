//! The operator dies after its n-th write, for every n of a whole life; its successor knows only
//! what is in Kubernetes.

use std::time::Duration;

use super::super::{World, job};
use crate::{
    api::{BestEffortJob, JobPhase},
    names::SlotId,
};

/// A life with everything in it: submitted, started, captured, killed at a notice, resumed, done.
pub(super) async fn life(mut world: World, job: &BestEffortJob) -> World {
    world.pace.work = Duration::from_secs(75);
    world.cluster.put_job(job.clone());
    world.until(300, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    if let Some(slot) = world.open_slots().first() {
        world.site.preempt(&SlotId(slot.clone()));
    }
    world.until_phase(900, JobPhase::Succeeded).await;
    world.until(120, "nothing is left", |world| world.leftovers().is_empty()).await;
    world
}

#[tokio::test(start_paused = true)]
async fn a10_the_operator_may_die_after_any_of_its_writes() {
    let undisturbed = life(World::new(4), &job(2)).await;
    let writes = undisturbed.operator.log();
    assert!(writes.contains(&"submit") && writes.contains(&"stay_down") && writes.contains(&"leave"), "{writes:?}");
    for n in 1..=writes.len() {
        let world = life(World::with_limit(4, n), &job(2)).await;
        assert!(world.operator.epoch() == 2 || n + 3 >= writes.len(), "it did not die after {n} writes");
        // whatever was in flight, nothing computed twice: at most one more attempt than undisturbed
        let status = world.status();
        assert!(status.submission <= undisturbed.status().submission + 1, "write {n}: {}", world.story());
        assert_eq!(status.failures, 0, "write {n} ({}): {}", writes[n - 1], world.story());
        let lost = (status.kills.node, status.incarnation);
        assert_eq!(lost, (0, undisturbed.status().incarnation), "write {n} ({}): {}", writes[n - 1], world.story());
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_takes_over_from_one_that_was_killed_at_any_second() {
    for second in (1..100).step_by(3) {
        let mut world = World::new(4);
        world.pace.work = Duration::from_secs(60);
        world.cluster.put_job(job(2));
        world.pass(second).await;
        world.operator.kill();
        world.until_phase(900, JobPhase::Succeeded).await;
        world.until(120, "nothing is left", |world| world.leftovers().is_empty()).await;
        let status = world.status();
        assert_eq!((status.submission, status.incarnation), (1, 1), "second {second}: {}", world.story());
    }
}
