//! The network of a node is cut: for a moment, which costs nothing; for longer, which costs its members one coherent
//! restore elsewhere, and never leads to two copies of a member of which the old one is heard.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    TestBed, Turn,
    job::{Counting, Job, nodes, slot_ids},
    testbed::{number, until},
    world::{BOOT, GONE, LIFE, counted_right, nothing_left, printed, running},
};
use vmdeploy::api::{BestEffortJob, JobPhase};

/// Shorter than any limit.
const MOMENT: Duration = Duration::from_secs(5);
/// Agents that were let go on have lost their lease, give it back and wait for their holder to see it.
const LEAVE: Duration = Duration::from_secs(30);
/// A job's longest back-off, the site's agentWait on the test bed, and two rounds of the hold.
const HOLD_LIMIT: Duration = Duration::from_secs(600 + 120 + 60);
/// How long packets are looked at.
const WATCH: u32 = 8;

/// Prints of each sender and network how many packets of segments came to this node. Time in which the machine stands
/// still does not count.
const WATCHER: &str = r#"
import collections, socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)); s.settimeout(0.5)
seen = collections.Counter(); left = float(sys.argv[1]); last = time.monotonic()
while left > 0:
    now = time.monotonic(); left -= min(now - last, 1); last = now
    try: p, at = s.recvfrom(65535)
    except TimeoutError: continue
    u = (p[0] & 15) * 4
    if at[2] != socket.PACKET_OUTGOING and p[9] == 17 and p[u + 2:u + 4] == (14789).to_bytes(2, "big"):
        seen[socket.inet_ntoa(p[12:16]), int.from_bytes(p[u + 12:u + 15], "big")] += 1
for (sender, vni), count in seen.items(): print(sender, vni, count)
"#;

/// The nodes of the members, in their order.
fn places(job: &BestEffortJob) -> Vec<String> {
    job.status.iter().flat_map(|status| &status.members).filter_map(|member| member.node.clone()).collect()
}

fn vni(job: &BestEffortJob) -> Result<u32> {
    Ok(job.status.as_ref().and_then(|status| status.network.as_ref()).context("no network")?.vni)
}

/// The processes that watch over a VM on a node.
const AGENTS: &str = "[v]mdeploy agent";
/// Who ends them once it hears that their pods were deleted.
const KUBELET: &str = "[k]ubelet --config";

/// Signals processes on a node.
fn signal(bed: &TestBed, node: &str, signal: &str, whom: &str) -> Result<()> {
    bed.run(&["node", number(node)?, "pkill", signal, "-f", whom]).map(drop)
}

/// The job runs without the node; one more incarnation.
async fn moved(job: &Job, before: &BestEffortJob, without: &str) -> Result<BestEffortJob> {
    let incarnation = before.status.as_ref().map_or(0, |status| status.incarnation);
    job.wait("a restore on other nodes", LIFE, |job| {
        let status = job.status.as_ref()?;
        let there = status.phase == JobPhase::Running && status.incarnation > incarnation;
        (there && !places(job).iter().any(|node| node == without)).then(|| job.clone())
    })
    .await
}

/// Packets of segments that come to these nodes, by sender and network.
fn packets(bed: &TestBed, held: &[String]) -> Result<BTreeMap<(String, u32), u32>> {
    let watch = |node: &String| -> Result<String> {
        bed.run(&["node", number(node)?, "python3", "-c", WATCHER, &WATCH.to_string()])
    };
    let texts: Vec<Result<String>> = thread::scope(|scope| {
        let watching: Vec<_> = held.iter().map(|node| scope.spawn(move || watch(node))).collect();
        watching
            .into_iter()
            .map(|one| one.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the watch failed"))))
            .collect()
    });
    let mut seen = BTreeMap::new();
    for text in texts {
        for line in text?.lines() {
            let mut words = line.split(' ');
            let mut next = || words.next().with_context(|| format!("{line:?}"));
            let (sender, vni, count) = (next()?.to_owned(), next()?.parse()?, next()?.parse::<u32>()?);
            *seen.entry((sender, vni)).or_default() += count;
        }
    }
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn a_moment_without_network_costs_nothing_and_a_longer_one_one_restore() -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    let counting = Counting { members: 2, talk: true, ticks: 250, ..Counting::default() };
    let (job, _) = running(&bed, "cut", &counting).await?;
    let before = job.get().await?;
    let node = places(&before).pop().context("no member")?;
    bed.run(&["cut", number(&node)?])?;
    tokio::time::sleep(MOMENT).await;
    bed.run(&["heal", number(&node)?])?;
    let reached = job.output.last_tick(0).unwrap_or(0);
    job.wait_tick(reached + 15, 2, BOOT).await?;
    let status = job.get().await?.status.unwrap_or_default();
    let began = before.status.clone().unwrap_or_default();
    ensure!(
        (status.attempt, status.incarnation) == (began.attempt, began.incarnation),
        "{} s without network cost a restore",
        MOMENT.as_secs()
    );

    bed.run(&["cut", number(&node)?])?;
    let after = moved(&job, &before, &node).await;
    let old = bed.qemu_on(&node);
    bed.run(&["heal", number(&node)?])?;
    let status = after?.status.unwrap_or_default();
    ensure!(old? == 0, "the old VM lives on {node} while its successor runs");
    ensure!(status.incarnation == began.incarnation + 1, "{} incarnations", status.incarnation);
    counted_right(&job, &counting).await?;
    for member in 0..2 {
        ensure!(printed(&job, member, &counting)?.resumed_at.len() == 1, "member {member} did not resume once");
    }
    e2e::world::gone(&bed, &job).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a1_an_old_vm_that_is_kept_alive_reaches_nobody() -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    let counting = Counting { members: 2, talk: true, ticks: 200, ..Counting::default() };
    let (job, _) = running(&bed, "zombie", &counting).await?;
    let before = job.get().await?;
    let node = places(&before).pop().context("no member")?;
    // nothing that would end the VM can run
    signal(&bed, &node, "-STOP", KUBELET)?;
    signal(&bed, &node, "-STOP", AGENTS)?;
    bed.run(&["cut", number(&node)?])?;
    let after = moved(&job, &before, &node).await;
    bed.run(&["heal", number(&node)?])?;
    let seen = after.and_then(|after| Ok((packets(&bed, &nodes(&after))?, bed.qemu_on(&node)?, vni(&after)?)));
    signal(&bed, &node, "-CONT", AGENTS)?;
    let look = ["node", number(&node)?, "sh", "-c", &format!("pgrep -f '{AGENTS}' || true")];
    let left = until("the agents to leave", LEAVE, async || Ok(bed.run(&look)?.is_empty().then_some(()))).await;
    signal(&bed, &node, "-CONT", KUBELET)?;
    left?;
    let (packets, old, present) = seen?;
    ensure!(old == 1, "the old VM was to be alive: {old}");
    ensure!(present != vni(&before)?, "the restored members have the network of the old ones");
    let address = bed.run(&["node", number(&node)?, "hostname", "-I"])?;
    let (ours, others): (Vec<_>, Vec<_>) = packets
        .iter()
        .filter(|((_, vni), _)| *vni == present)
        .partition(|((sender, _), _)| address.split_whitespace().any(|own| own == sender));
    ensure!(!others.is_empty(), "nothing was seen of the members that run: {packets:?}");
    ensure!(ours.is_empty(), "the old VM was heard: {packets:?}");
    counted_right(&job, &counting).await?;
    job.delete(GONE).await?;
    nothing_left(&bed, &job, |_| false).await
}

/// OAR cannot end a hold on a node that it does not reach, and here nobody else there can tell it to.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn c4_a_hold_that_nobody_could_end_ends_by_itself() -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    let counting = Counting { members: 2, talk: true, ticks: 200, ..Counting::default() };
    let (job, _) = running(&bed, "abandoned", &counting).await?;
    let before = job.get().await?;
    // the first in OAR's order has the hold
    let node = places(&before).into_iter().min().context("no member")?;
    let hold = slot_ids(&before).pop().context("no slot")?;
    let holders = || bed.run(&["node", number(&node)?, "sh", "-c", &format!("pgrep -f '[j]ob={hold};' || true")]);
    bed.run(&["cut", number(&node)?])?;
    signal(&bed, &node, "-KILL", AGENTS)?;
    let after = moved(&job, &before, &node).await;
    let (vms, holds) = (bed.qemu_on(&node)?, holders()?);
    bed.run(&["heal", number(&node)?])?;
    after?;
    ensure!(vms == 0, "a VM without an agent");
    ensure!(!holds.is_empty(), "the hold was to be left alone on {node}");
    until("the hold to end", HOLD_LIMIT, async || Ok(holders()?.is_empty().then_some(()))).await?;
    counted_right(&job, &counting).await?;
    job.delete(GONE).await?;
    // an agent of a later day removes its directory
    nothing_left(&bed, &job, |line| line.contains("/leases/")).await
}
