//! Each process dies at every other second of captures, their transfers and publication, and a restore: whichever it
//! is, the newest complete generation is what all go on from.

use std::time::Duration;

use rstest::rstest;

use super::super::{World, job};
use crate::{
    api::JobPhase,
    driver::{repository::fake::Trouble, site::End},
    names::SlotId,
};

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    Operator,
    Kget,
    Repository,
    Agent(u32),
}

/// The slots are taken away for the first time at this second, so that a restore goes on after it.
const FIRST_KILL: u64 = 45;
const LAST: u64 = 75;
/// A process that has died is back after so many seconds.
const AWAY: u64 = 4;

fn kill_slots(world: &World) {
    if let Some(slot) = world.open_slots().first() {
        world.site.kill(&SlotId(slot.clone()), End::Preempted);
    }
}

/// Whether it was there to die.
fn die(world: &mut World, who: Process) -> bool {
    match who {
        Process::Operator => world.operator.kill(),
        Process::Kget => world.kget.stopped = true,
        Process::Repository => world.repository.set_trouble(Trouble::Unreachable),
        Process::Agent(member) => {
            let found = world.bodies.iter().position(|body| body.alive() && body.config.member == member);
            let Some(index) = found else { return false };
            world.kill_agent(index);
        }
    }
    true
}

/// Whether somebody died.
async fn dies_at(who: Process, second: u64) -> bool {
    let mut world = World::new(4);
    world.pace.work = Duration::from_secs(150);
    world.cluster.put_job(job(2));
    for age in 0..second {
        if age == FIRST_KILL {
            kill_slots(&world);
        }
        world.step(Duration::from_secs(1)).await;
    }
    let uid = world.uid().unwrap();
    let complete = world.repository.complete(&uid);
    let died = die(&mut world, who);
    world.pass(AWAY).await;
    if who == Process::Kget {
        world.kget.restart();
    }
    world.repository.set_trouble(Trouble::None);
    let what = format!("running after the death of {who:?} at second {second}");
    world.until(200, &what, |world| world.phase() == Some(JobPhase::Running)).await;
    world.pass(3).await;
    // what was complete is so still, or has given way to something newer
    let newest = world.repository.complete(&uid).last().copied();
    assert!(newest >= complete.last().copied(), "{who:?} at {second}: {newest:?} after {complete:?}");
    let incarnation = world.status().incarnation;
    kill_slots(&world);
    world.until(200, "a restore", |world| world.status().incarnation > incarnation).await;
    let newest = world.repository.complete(&uid).last().copied();
    let from = world.status().origin.and_then(|origin| origin.generation);
    assert_eq!(from, newest, "{who:?} at {second}: {}", world.story());
    world.until_phase(900, JobPhase::Succeeded).await;
    world.until(120, "nothing is left", |world| world.leftovers().is_empty()).await;
    assert_eq!(world.status().failures, 0, "{who:?} at {second}: {}", world.story());
    died
}

#[rstest]
#[case(Process::Operator)]
#[case(Process::Kget)]
#[case(Process::Repository)]
#[case(Process::Agent(0))]
#[case(Process::Agent(1))]
#[tokio::test(start_paused = true)]
async fn b7_whichever_process_dies_the_newest_complete_generation_goes_on(#[case] who: Process) {
    let first = if matches!(who, Process::Agent(1) | Process::Kget) { 1 } else { 2 };
    let mut deaths = 0;
    for second in (first..LAST).step_by(2) {
        deaths += u32::from(dies_at(who, second).await);
    }
    // agents are not there while slots are asked for
    let least = if matches!(who, Process::Agent(_)) { 20 } else { 37 };
    assert!(deaths >= least, "{who:?} died {deaths} times");
}
