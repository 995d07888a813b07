//! Jobs with a slot of their own for each member: the site takes some of them, or all, and each is given back as soon
//! as its member's bytes are safe.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use e2e::{
    Turn,
    job::{Counting, Job, nodes},
    site::OarJob,
    world::{BOOT, LIFE, computed, ends_right, taken},
};
use vmdeploy::api::{BestEffortJob, JobPhase, job::Allocation, job_status::SlotStatus};

const MEMBERS: u32 = 4;

/// The slot and the node of each member.
pub(crate) fn places(job: &BestEffortJob) -> Result<BTreeMap<u32, (String, String)>> {
    let members = job.status.iter().flat_map(|status| &status.members);
    let place = |member: &vmdeploy::api::job_status::MemberStatus| {
        let slot = member.agent.clone().context("no agent")?.slot;
        Ok((member.index, (slot, member.node.clone().context("no node")?)))
    };
    members.map(place).collect()
}

pub(crate) async fn runs_again(job: &Job, attempt: u32) -> Result<BestEffortJob> {
    let runs = |found: &BestEffortJob| {
        let status = found.status.as_ref()?;
        let computes = matches!(status.phase, JobPhase::Running | JobPhase::Snapshotting);
        (status.attempt == attempt && computes).then(|| found.clone())
    };
    let found = job.wait(&format!("attempt {attempt}"), LIFE, runs).await?;
    job.wait_runs(attempt as usize, MEMBERS, BOOT).await?;
    Ok(found)
}

/// The hold has ended by itself, told that all is saved, within the grace.
pub(crate) async fn left_in_time(slot: &str, grace: u32) -> Result<i64> {
    let job = OarJob::read(slot).await?;
    ensure!(job.state == "Terminated" || job.state == "Error", "slot {slot} is {}", job.state);
    let notice = job.first("CHECKPOINT").with_context(|| format!("slot {slot} had no notice"))?;
    ensure!(job.stop_time - notice < i64::from(grace), "slot {slot} was left {} s after", job.stop_time - notice);
    ensure!(job.first("BESTEFFORT_KILL").is_none(), "slot {slot} was killed: {:?}", job.events);
    Ok(job.stop_time)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn one_of_four_is_left_and_then_all_of_them() -> Result<()> {
    let Some(bed) = Turn::with(MEMBERS).await? else { return Ok(()) };
    let counting = Counting { members: MEMBERS, ticks: 400, ..Counting::default() };
    let namespace = bed.namespace("per-member").await?;
    let mut object = counting.object("count")?;
    object.spec.slots.allocation = Allocation::PerMember;
    let job = Job::create(&bed, &namespace, &object).await?;
    computed(&bed, &job, MEMBERS).await?;
    let before = places(&job.get().await?)?;
    let slots: Vec<&String> = before.values().map(|(slot, _)| slot).collect();
    let first = OarJob::read(slots[0]).await?.name;
    for slot in &slots {
        ensure!(OarJob::read(slot).await?.name == first, "slot {slot} is of another request");
    }

    let (wanted, node) = before[&2].clone();
    taken(&bed, &[node]).await?;
    left_in_time(&wanted, counting.grace).await?;
    let now = runs_again(&job, 2).await?;
    let after = places(&now)?;
    for member in [0, 1, 3] {
        ensure!(before[&member] == after[&member], "member {member}: {before:?} became {after:?}");
        let index = member as usize;
        let restored = now.status.as_ref().and_then(|status| status.members[index].restored).unwrap_or_default();
        ensure!(restored.fetched < restored.local / 10, "member {member} stayed and was fetched anew: {restored:?}");
    }
    ensure!(after[&2].0 != wanted, "slot {wanted} is used on");
    let kills = now.status.clone().unwrap_or_default().kills;
    ensure!(kills.preempted == 1 && kills.node == 0, "{kills:?}");

    taken(&bed, &nodes(&now)).await?;
    let mut ends = Vec::new();
    for (slot, _) in after.values() {
        ends.push(left_in_time(slot, counting.grace).await?);
    }
    eprintln!("the slots ended at {ends:?}");
    let again = runs_again(&job, 3).await?;
    let held = again.status.iter().flat_map(|status| &status.slots).filter(|slot| SlotStatus::is_in_use(slot));
    ensure!(held.count() == MEMBERS as usize, "{:?}", again.status.map(|status| status.slots));
    let end = ends_right(&bed, &job, &counting).await?;
    let status = end.status.unwrap_or_default();
    ensure!(
        status.kills.preempted == 2 && status.work.lost < u64::from(MEMBERS) * 4,
        "{:?} {:?}",
        status.kills,
        status.work
    );
    Ok(())
}
