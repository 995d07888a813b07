//! Jobs whose way in has a node of its own.

use std::{collections::BTreeSet, time::Duration};

use rstest::rstest;

use super::{
    super::{Health, World, job},
    crash::life,
    leave::{delete, moment},
};
use crate::{
    api::{
        BestEffortJob, JobPhase,
        job::{Allocation, Master, NetworkSpec},
        job_status::Kills,
    },
    driver::{agent::Role, site::End},
    names::{NodeName, SlotId},
};

fn guarded() -> BestEffortJob {
    let mut job = job(2);
    job.spec.network = Some(NetworkSpec { master: Master::Dedicated, ..NetworkSpec::default() });
    job
}

/// The agents that live and have no guest: their places among the bodies.
fn masters(world: &World) -> Vec<usize> {
    let all = world.bodies.iter().enumerate();
    all.filter(|(_, body)| body.alive() && body.config.role == Role::Master).map(|(index, _)| index).collect()
}

/// What befalls the master's node.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Blow {
    Preempted,
    Killed,
    Crashed,
    Cut,
}

/// The members of a crashed one run on; where the slot was taken, all begin again.
#[rstest]
#[case(Blow::Preempted)]
#[case(Blow::Killed)]
#[case(Blow::Crashed)]
#[case(Blow::Cut)]
#[tokio::test(start_paused = true)]
async fn a_job_outlives_its_master(#[case] blow: Blow) {
    let mut world = World::new(6);
    world.cluster.put_job(guarded());
    world.until(200, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    assert_eq!(world.status().snapshots.last_stored.map(|_| masters(&world).len()), Some(1), "{}", world.story());
    let told = world.status().network.unwrap().way_in.expect("it is told of");
    assert!(told.host_key.starts_with("ssh-ed25519 "), "{told:?}");
    let index = masters(&world)[0];
    let node = world.bodies[index].node.clone();
    assert!(told.address.starts_with("10.0.0."), "{told:?}");
    match blow {
        Blow::Preempted => {
            let slot = SlotId(world.open_slots()[0].clone());
            world.site.kill(&slot, End::Preempted);
        }
        Blow::Killed => world.kill_agent(index),
        Blow::Crashed => world.set_health(&node, Health::Down),
        Blow::Cut => {
            let now = world.clock.now();
            world.set_health(&node, Health::Cut(now));
        }
    }
    if blow != Blow::Preempted {
        let lost = |world: &World| world.status().network.is_some_and(|network| network.way_in.is_none());
        world.until(100, "it is seen", lost).await;
        world.pass(20).await;
        assert_eq!((world.phase(), world.status().incarnation), (Some(JobPhase::Running), 1), "{}", world.story());
        let slot = SlotId(world.open_slots()[0].clone());
        // the site has seen it too
        world.site.set_node(&NodeName(node.clone()), blow == Blow::Killed);
        world.site.preempt(&slot);
    }
    let again = |world: &World| world.status().incarnation == 2 && world.phase() == Some(JobPhase::Running);
    world.until(400, "a second incarnation that runs", again).await;
    let next = world.status().network.unwrap().way_in.expect("it is told of again");
    assert_eq!(next.host_key, told.host_key, "the key stays");
    assert_ne!(next.address, told.address, "{}", world.story());
    if matches!(blow, Blow::Crashed | Blow::Cut) {
        world.set_health(&node, Health::Up);
    }
    world.until_phase(600, JobPhase::Succeeded).await;
    world.until(200, "nothing is left", |world| world.leftovers().is_empty()).await;
    let status = world.status();
    assert_eq!((status.members.len(), status.failures, status.network.unwrap().way_in), (2, 0, None));
}

/// With slots one by one the master's own is taken alone.
#[rstest]
#[case::wanted(true)]
#[case::killed(false)]
#[tokio::test(start_paused = true)]
async fn members_on_slots_of_their_own_run_on_when_the_masters_is_taken(#[case] notice: bool) {
    let mut world = World::new(4);
    let mut job = guarded();
    job.spec.slots.allocation = Allocation::PerMember;
    world.cluster.put_job(job);
    world.until(200, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    world.until_phase(60, JobPhase::Running).await;
    let slot = SlotId(world.status().master.unwrap().agent.unwrap().slot);
    if notice {
        world.site.preempt(&slot);
    } else {
        world.site.kill(&slot, End::Preempted);
    }
    let lost = |world: &World| world.status().network.is_some_and(|network| network.way_in.is_none());
    world.until(60, "it is seen", lost).await;
    world.until_phase(600, JobPhase::Succeeded).await;
    world.until(200, "nothing is left", |world| world.leftovers().is_empty()).await;
    let status = world.status();
    let told = (status.incarnation, status.attempt, status.submission, status.kills, status.work.lost);
    assert_eq!(told, (1, 1, 1, Kills::default(), 0), "{}", world.story());
}

#[tokio::test(start_paused = true)]
async fn deletion_at_any_second_leaves_nothing_of_a_master() {
    let (mut phases, mut met) = (BTreeSet::new(), 0);
    for second in (0..150).step_by(2) {
        let mut world = moment(second, guarded()).await;
        phases.insert(format!("{:?}", world.phase().unwrap()));
        met += masters(&world).len();
        delete(&world).await;
        world.until(200, &format!("gone, deleted at {second} s"), |world| world.job().is_none()).await;
        assert_eq!(world.leftovers(), [] as [String; 0], "second {second}: {}", world.story());
        assert!(world.cluster.all_snapshots().is_empty(), "second {second}: {}", world.story());
    }
    for phase in ["Queued", "Starting", "Running", "Evacuating", "Restoring", "Succeeded"] {
        assert!(phases.contains(phase), "{phase} was never met: {phases:?}");
    }
    assert!(met > 20, "a master was there {met} times only");
}

#[tokio::test(start_paused = true)]
async fn suspension_holds_no_node_for_a_master() {
    for second in [5, 20, 44, 50, 70] {
        let mut world = moment(second, guarded()).await;
        let mut job = (*world.job().unwrap()).clone();
        job.spec.suspend = true;
        world.cluster.put_job(job.clone());
        let at_rest = |world: &World| {
            matches!(world.phase(), Some(JobPhase::Suspended | JobPhase::Succeeded)) && world.leftovers().is_empty()
        };
        world.until(200, &format!("at rest, suspended at {second} s"), at_rest).await;
        assert_eq!(world.status().network.unwrap().way_in, None);
        job.spec.suspend = false;
        world.cluster.put_job(job);
        world.until_phase(600, JobPhase::Succeeded).await;
        world.until(120, "nothing is left", |world| world.leftovers().is_empty()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn b16_the_end_of_the_walltime_is_survived_with_a_master() {
    let mut world = World::new(4);
    let mut job = guarded();
    job.spec.slots.walltime = Duration::from_secs(90).into();
    world.cluster.put_job(job);
    world.until_phase(1000, JobPhase::Succeeded).await;
    assert!(world.status().kills.walltime >= 1, "{}", world.story());
    world.until(120, "nothing is left", |world| world.leftovers().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a10_the_operator_of_a_job_with_a_master_may_die_after_any_of_its_writes() {
    let undisturbed = life(World::new(4), &guarded()).await;
    let writes = undisturbed.operator.log();
    for n in 1..=writes.len() {
        let world = life(World::with_limit(4, n), &guarded()).await;
        assert!(world.operator.epoch() == 2 || n + 3 >= writes.len(), "it did not die after {n} writes");
        let status = world.status();
        let lost = (status.failures, status.kills.node, status.incarnation);
        assert_eq!(lost, (0, 0, undisturbed.status().incarnation), "write {n} ({}): {}", writes[n - 1], world.story());
    }
}
