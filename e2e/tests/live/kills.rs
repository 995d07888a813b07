//! Jobs that lose their slots go on from their last generation, with nothing lost before it.

use anyhow::{Context as _, Result, ensure};
use e2e::{
    TestBed, Turn,
    job::{Counting, nodes, slot_ids},
    world::{LIFE, ends_right, printed, running, taken},
};
use vmdeploy::api::{BestEffortJobStatus, JobPhase};

/// How a job loses its slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Somebody else wants them, and OAR says so in time.
    Notice,
    /// Somebody else wants them, and has them at once.
    Kill,
    /// Their time is over.
    Walltime,
}

impl Way {
    fn counting(self, members: u32, times: u32) -> Counting {
        // two members keep one connection through everything
        let common = Counting { members, talk: members == 2, ticks: 100 + 110 * times, ..Counting::default() };
        match self {
            Self::Notice => common,
            Self::Kill => Counting { grace: 0, ..common },
            // more than fit into a slot
            Self::Walltime => Counting { walltime: 80, grace: 20, ticks: 300 * times, ..common },
        }
    }
}

/// A counting job loses its slots so many times in a row and has to end right.
async fn survives(bed: &TestBed, way: Way, members: u32, times: u32) -> Result<()> {
    let counting = way.counting(members, times);
    let name = format!("{way:?}-{members}-{times}").to_lowercase();
    let (job, mut stored) = running(bed, &name, &counting).await?;
    for time in 1..=times {
        let before = job.get().await?;
        if way != Way::Walltime {
            taken(bed, &nodes(&before)).await?;
        }
        job.wait(&format!("other slots after kill {time}"), LIFE, |job| {
            let status = job.status.as_ref()?;
            let other = slot_ids(job).iter().all(|id| !slot_ids(&before).contains(id));
            // it may end while the rival is waited for
            let goes_on = matches!(status.phase, JobPhase::Running | JobPhase::Snapshotting | JobPhase::Succeeded);
            (status.attempt > time && goes_on && other).then_some(())
        })
        .await?;
        let origin = job.get().await?.status.and_then(|status| status.origin?.generation).context("a cold start")?;
        ensure!(origin >= stored, "restored generation {origin}, but {stored} was complete");
        stored = origin;
        same_places(
            &before.status.clone().unwrap_or_default(),
            &job.get().await?.status.unwrap_or_default(),
            time + 1,
        )?;
        // the next one comes as soon as it counts again
        job.wait_runs(time as usize + 1, members, LIFE).await?;
    }
    let end = ends_right(bed, &job, &counting).await?;
    let status = end.status.unwrap_or_default();
    let (preempted, walltime) = if way == Way::Walltime { (0, times) } else { (times, 0) };
    ensure!(status.kills.preempted == preempted && status.kills.walltime >= walltime, "{:?}", status.kills);
    for member in 0..members {
        let seen = printed(&job, member, &counting)?;
        ensure!(seen.resumed_at.len() >= times as usize, "member {member} resumed at {:?}", seen.resumed_at);
    }
    Ok(())
}

/// Whatever nodes it is on, a job keeps its addresses; its network has another number for each incarnation.
fn same_places(begun: &BestEffortJobStatus, now: &BestEffortJobStatus, runs: u32) -> Result<()> {
    let places = |status: &BestEffortJobStatus| -> Vec<(String, String)> {
        status.members.iter().map(|member| (member.address.clone(), member.mac.clone())).collect()
    };
    ensure!(places(begun) == places(now), "{:?} became {:?}", places(begun), places(now));
    let (before, after) = (begun.network.clone().context("no network")?, now.network.clone().context("no network")?);
    ensure!(before.subnet == after.subnet && before.vni != after.vni, "run {runs}: {before:?} became {after:?}");
    Ok(())
}

pub(crate) async fn case(way: Way, members: u32, times: u32) -> Result<()> {
    let Some(bed) = Turn::with(members).await? else { return Ok(()) };
    survives(&bed, way, members, times).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_vm_killed_with_notice_twice_in_a_row() -> Result<()> {
    case(Way::Notice, 1, 2).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn one_vm_killed_without_notice_twice_in_a_row() -> Result<()> {
    case(Way::Kill, 1, 2).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn one_vm_whose_walltime_is_over() -> Result<()> {
    case(Way::Walltime, 1, 1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn two_vms_killed_with_notice() -> Result<()> {
    case(Way::Notice, 2, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_vms_killed_without_notice_twice_in_a_row() -> Result<()> {
    case(Way::Kill, 2, 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_vms_whose_walltime_is_over() -> Result<()> {
    case(Way::Walltime, 2, 1).await
}
