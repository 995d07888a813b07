//! Members that leave over a narrow link give their bytes to others, and their nodes are free before the repository has
//! them. A collector that is killed takes no complete generation with it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    Turn,
    job::{Counting, Job, nodes},
    testbed::{SYSTEM, TestBed, until},
    world::{BOOT, GONE, LIFE, computed, counted_right, nothing_left, taken},
};
use vmdeploy::api::{
    Snapshot,
    job::Allocation,
    snapshot::{CollectedState, SnapshotPhase, Transfer},
};

use crate::per_member::{left_in_time, places, runs_again};

const MEMBERS: u32 = 4;
const KGET: &str = "deployment/vmdeploy-kget";
/// Enough for all bytes over the narrow link, three times over.
const GRACE: u32 = 600;
/// KiB, in memory and on disk: what is new of a member takes some seconds over the narrow link.
const NOISE: u32 = 3 << 10;

/// The way into the repository is narrow, as long as it is held.
struct Narrow<'a>(&'a TestBed);

impl<'a> Narrow<'a> {
    fn make(bed: &'a TestBed) -> Result<Self> {
        let add = |argument: &str| {
            format!(r#"{{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"{argument}"}}"#)
        };
        let patch = format!("[{},{}]", add("--rate-limit=512Ki"), add("--limit-evacuations"));
        bed.run(&["kubectl", "-n", SYSTEM, "patch", KGET, "--type=json", "-p", &patch])?;
        let narrow = Self(bed);
        bed.run(&["kubectl", "-n", SYSTEM, "rollout", "status", KGET, "--timeout=120s"])?;
        Ok(narrow)
    }
}

impl Drop for Narrow<'_> {
    fn drop(&mut self) {
        let undone = self.0.run(&["kubectl", "-n", SYSTEM, "rollout", "undo", KGET]);
        undone.map_or_else(|error| eprintln!("the link stays narrow: {error}"), drop);
    }
}

/// A job of four with a complete generation, over a link that is narrow from now on.
async fn over_a_narrow_link(bed: &TestBed, counting: &Counting) -> Result<Job> {
    let namespace = bed.namespace("collectors").await?;
    let mut object = counting.object("count")?;
    object.spec.slots.allocation = Allocation::PerMember;
    let job = Job::create(bed, &namespace, &object).await?;
    computed(bed, &job, MEMBERS).await?;
    Ok(job)
}

/// The newest snapshot of the job.
async fn newest(job: &Job) -> Result<Option<Snapshot>> {
    let all = job.snapshots().await?;
    let number = |snapshot: &Snapshot| snapshot.status.as_ref().and_then(|status| status.generation);
    Ok(all.into_iter().filter(|snapshot| number(snapshot).is_some()).max_by_key(number))
}

/// Waits until a member's bytes are with another one: that snapshot, and how far it is.
async fn one_is_held(job: &Job) -> Result<(Snapshot, Transfer)> {
    until("a member's bytes to be with another one", LIFE, async || {
        let Some(snapshot) = newest(job).await? else { return Ok(None) };
        let transfer = snapshot.status.as_ref().and_then(|status| status.transfer.clone()).unwrap_or_default();
        let held = transfer.freed.iter().any(|freed| freed.holder.is_some());
        Ok(held.then_some((snapshot, transfer)))
    })
    .await
}

/// All nodes are wanted: members give their bytes to others, and their slots end before the repository has all.
async fn left_early(bed: &TestBed, job: &Job) -> Result<()> {
    let now = job.get().await?;
    let before = places(&now)?;
    let held = nodes(&now);
    let (taking, watching) = futures::future::join(taken(bed, &held), one_is_held(job)).await;
    let (snapshot, transfer) = watching?;
    taking?;
    let member = transfer.freed.iter().find_map(|freed| freed.holder.map(|_| freed.member)).context("nobody")?;
    ensure!(!transfer.safe.contains(&member), "member {member} is in the repository: {transfer:?}");

    let mut ends = Vec::new();
    for (member, (slot, _)) in &before {
        ends.push((left_in_time(slot, GRACE).await?, *member));
    }
    ends.sort_unstable();
    eprintln!("slots ended, by member: {ends:?}");
    // slots are left when all bytes are safe; that is read back then, and published
    let status = until("the generation to be complete", Duration::from_secs(60), async || {
        let all = job.snapshots().await?;
        let found = all.into_iter().find(|found| found.metadata.name == snapshot.metadata.name);
        let status = found.context("its snapshot is gone")?.status.context("no status")?;
        ensure!(status.phase != SnapshotPhase::Failed, "{status:?}");
        Ok((status.phase == SnapshotPhase::Stored).then_some(status))
    });
    let status = status.await?;
    let transfer = status.transfer.unwrap_or_default();
    let freed = transfer.freed.iter().find(|freed| freed.member == member).context("never free")?;
    let (first, _) = ends.iter().find(|(_, of)| *of == member).context("it has no slot")?;
    ensure!(
        *first < freed.at.0.as_second() + 30,
        "member {member} was free at {freed:?}, and its slot ended at {first}"
    );
    Ok(())
}

/// All nodes are wanted again, and the first agent that has bytes of others is killed: that generation is void, and
/// says why. The node of that agent.
async fn collector_killed(bed: &TestBed, job: &Job) -> Result<String> {
    let now = job.get().await?;
    let killed = async {
        let (snapshot, transfer) = one_is_held(job).await?;
        let held = transfer.collected.iter().find(|one| one.state == CollectedState::Held).context("nobody")?;
        let members = snapshot.status.map(|status| status.members).unwrap_or_default();
        let Some(collector) = members.iter().find(|member| member.index == held.by) else {
            bail!("member {} has no agent in {members:?}", held.by);
        };
        bed.run(&["kubectl", "-n", SYSTEM, "delete", "pod", &collector.pod, "--force", "--grace-period=0"])?;
        Ok((snapshot.metadata.name, held.clone(), collector.node.clone()))
    };
    let held = nodes(&now);
    let (taking, killed) = futures::future::join(taken(bed, &held), killed).await;
    let (name, held, node) = killed?;
    taking?;
    let failed = until("the generation to be void", Duration::from_secs(120), async || {
        let all = job.snapshots().await?;
        let found = all.into_iter().find(|found| found.metadata.name == name).and_then(|found| found.status);
        Ok(found.filter(|status| status.phase == SnapshotPhase::Failed))
    });
    let said = failed.await?.transfer.unwrap_or_default().message.unwrap_or_default();
    ensure!(said.contains(&format!("member {}", held.by)), "it does not say what happened: {said}");
    Ok(node)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn nodes_are_left_early_and_a_killed_collector_takes_no_complete_generation_with_it() -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    let counting =
        Counting { members: MEMBERS, ticks: 500, grace: GRACE, period: 60, noise: NOISE, ..Counting::default() };
    let job = over_a_narrow_link(&bed, &counting).await?;
    let narrow = Narrow::make(&bed)?;
    left_early(&bed, &job).await?;
    let runs = runs_again(&job, 2).await?;
    let complete = runs.status.and_then(|status| status.snapshots.last_stored).context("none is complete")?;
    // something new again
    let reached = (0..MEMBERS).filter_map(|member| job.output.last_tick(member)).max().unwrap_or(0);
    job.wait_tick(reached + 30, MEMBERS, BOOT).await?;
    let node = collector_killed(&bed, &job).await?;
    drop(narrow);
    let end = counted_right(&job, &counting).await?;
    job.delete(GONE).await?;
    // the agent that would have removed its lease's directory was killed: the next one on that node does
    let lease = format!("{node}: /var/lib/vmdeploy/leases/");
    nothing_left(&bed, &job, |line| line.starts_with(&lease)).await?;
    let origin = end.status.and_then(|status| status.origin).and_then(|origin| origin.generation);
    ensure!(origin.is_some_and(|generation| generation >= complete), "it went back to {origin:?}, before {complete}");
    Ok(())
}
