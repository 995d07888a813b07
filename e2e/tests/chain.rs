//! Images from agent to agent with real processes on nodes of their own: whoever is killed, cut off or slow, the others
//! have the right image in the end, and soon.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use e2e::chain::{Bringing, Spread, here};

const MEMBERS: u32 = 5;
/// Who does not do its part.
const BAD: usize = 2;
const SIZE: usize = 12 << 20;
/// The image takes 2.5 s over it.
const RATE: &str = "40mbit";
/// Longest wait for what comes in a moment.
const SOON: Duration = Duration::from_secs(60);
/// Over such a link, 30 s.
const SLOW: &str = "tc qdisc replace dev e0 root tbf rate 3mbit burst 64kb latency 30ms";

fn spread(size: usize) -> Result<Spread> {
    let spread = Spread::new(&std::env::temp_dir(), MEMBERS, size, RATE)?;
    spread.clear()?;
    Ok(spread)
}

fn is_part(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with(".part-")
}

/// Runs a command on a node.
fn on(spread: &Spread, node: usize, words: &str) -> Result<()> {
    let (program, words) = words.split_once(' ').context("no words")?;
    let done = spread.nodes.command(node, program).args(words.split(' ')).status()?;
    ensure!(done.success(), "{program} {words}");
    Ok(())
}

/// All but one have the image; how long that took.
fn others(spread: &Spread, mut agents: Vec<Bringing>, bad: usize, begun: Instant) -> Result<f64> {
    let bad = agents.remove(bad);
    let seconds = here(&mut agents, begun)?;
    for agent in &agents {
        spread.right(agent.member() as usize)?;
    }
    drop(bad);
    let took = seconds.into_iter().fold(0.0, f64::max);
    let sent = spread.sent(spread.count())?;
    eprintln!("the others took {took:.1} s, and {sent} bytes left the repository{}", spread.story()?);
    Ok(took)
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn a_killed_node_in_the_middle_does_not_keep_the_image_from_the_others() -> Result<()> {
    let spread = spread(SIZE)?;
    let (begun, mut agents) = (Instant::now(), spread.start_all()?);
    spread.has(BAD, SIZE as u64 / 3)?;
    agents[BAD].kill()?;
    let took = others(&spread, agents, BAD, begun)?;
    // nobody fetched anything twice
    ensure!(spread.sent(spread.count())? < SIZE as u64 * 3 / 2 && took < 30.0, "{took}");
    // the node comes again with what it had, and then all are warm
    let before = spread.sent(spread.count())?;
    let mut again = spread.start_all()?;
    here(&mut again, Instant::now())?;
    for node in 0..spread.count() {
        spread.right(node)?;
        ensure!(
            !fs::read_dir(spread.node(node).join("images"))?.flatten().any(|entry| is_part(&entry)),
            "a part is left"
        );
    }
    let repaired = spread.sent(spread.count())? - before;
    ensure!(repaired < SIZE as u64 / 10, "{repaired} bytes of the repository for a chain of warm nodes");
    Ok(())
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn a_node_that_is_cut_off_is_passed_over_soon() -> Result<()> {
    let spread = spread(SIZE)?;
    let (begun, agents) = (Instant::now(), spread.start_all()?);
    spread.has(BAD, SIZE as u64 / 3)?;
    on(&spread, BAD, "ip link set e0 down")?;
    let took = others(&spread, agents, BAD, begun)?;
    ensure!(spread.sent(spread.count())? < SIZE as u64 * 3 / 2 && took < 30.0, "{took}");
    Ok(())
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn a_slow_node_does_not_slow_down_those_behind_it() -> Result<()> {
    // over a link of 3 Mbit/s it takes 130 s
    let size = 48 << 20;
    let spread = spread(size)?;
    on(&spread, BAD, SLOW)?;
    let (begun, agents) = (Instant::now(), spread.start_all()?);
    let took = others(&spread, agents, BAD, begun)?;
    ensure!(took < 75.0, "{took}");
    ensure!(spread.sent(spread.count())? < size as u64 * 3 / 2, "the repository is not for the slow");
    Ok(())
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn a_slow_first_node_costs_the_repository_the_image_once_more_and_nobody_his_time() -> Result<()> {
    let size = 48 << 20;
    let spread = spread(size)?;
    on(&spread, 0, SLOW)?;
    let (begun, agents) = (Instant::now(), spread.start_all()?);
    let took = others(&spread, agents, 0, begun)?;
    ensure!(took < 75.0, "{took}");
    ensure!(spread.sent(spread.count())? < size as u64 * 9 / 4, "only the second one may ask it");
    Ok(())
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn between_two_switches_the_image_is_carried_once() -> Result<()> {
    let switches = ["a", "b", "a", "b", "a", "b"];
    let mut spread = Spread::on_two_switches(&std::env::temp_dir(), &switches, SIZE, RATE)?;
    // to the second switch, and back
    let cross = |spread: &Spread| -> Result<[u64; 2]> {
        spread.clear()?;
        let (before, begun) = (spread.nodes.crossed()?, Instant::now());
        let seconds = here(&mut spread.start_all()?, begun)?;
        (0..spread.count()).try_for_each(|node| spread.right(node))?;
        let (took, after) = (seconds.into_iter().fold(0.0, f64::max), spread.nodes.crossed()?);
        let crossed = [after[0] - before[0], after[1] - before[1]];
        eprintln!("all took {took:.1} s, and {crossed:?} bytes crossed{}", spread.story()?);
        Ok(crossed)
    };
    let [there, back] = cross(&spread)?;
    ensure!((SIZE as u64..SIZE as u64 * 3 / 2).contains(&there), "{there} bytes to the second switch");
    ensure!(back < SIZE as u64 / 4, "{back} bytes back to the first");
    // by their numbers alone each is fed from the other switch: three times there, and twice back
    spread.forget_switches();
    let [there, back] = cross(&spread)?;
    ensure!(there + back > SIZE as u64 * 2, "{there} bytes there and {back} back, whatever the order");
    Ok(())
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn what_all_nodes_see_leaves_the_repository_once_for_all_jobs() -> Result<()> {
    let mut spread = spread(SIZE)?;
    let directory = spread.share()?;
    let start = |spread: &Spread| -> Result<u64> {
        let before = spread.sent(spread.count())?;
        here(&mut spread.start_all()?, Instant::now())?;
        (0..spread.count()).try_for_each(|node| spread.right(node))?;
        Ok(spread.sent(spread.count())? - before)
    };
    let first = start(&spread)?;
    ensure!((SIZE as u64..SIZE as u64 * 3 / 2).contains(&first), "{first} bytes left the repository");
    let image = directory.join(spread.image.replace(':', "-"));
    let begun = Instant::now();
    while !image.exists() {
        ensure!(begun.elapsed() < SOON, "nobody has put the image there");
        thread::sleep(Duration::from_millis(50));
    }
    // new nodes find it there
    spread.clear()?;
    let second = start(&spread)?;
    ensure!(second < SIZE as u64 / 10, "{second} bytes left the repository again");
    // one that is damaged there is no harm, and is put there anew
    let mut bytes = fs::read(&image)?;
    bytes[SIZE / 2] ^= 1;
    fs::write(&image, &bytes)?;
    spread.clear()?;
    let third = start(&spread)?;
    ensure!(third < SIZE as u64 * 3 / 2, "{third} bytes left the repository");
    let begun = Instant::now();
    while fs::read(&image).ok().is_none_or(|there| there == bytes) {
        ensure!(begun.elapsed() < SOON, "it stays damaged");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// What agents say of how an image came.
fn came(spread: &Spread, how: &str) -> Result<usize> {
    let said = |node: usize| fs::read_to_string(spread.path(&format!("agent-{node}.log")));
    let logs = (0..spread.count()).map(said).collect::<std::io::Result<Vec<_>>>()?;
    Ok(logs.iter().filter(|log| log.contains(how)).count())
}

/// What is in the directory of a node's lease.
fn left(spread: &Spread, node: usize) -> Result<Vec<String>> {
    let entries = fs::read_dir(spread.node(node).join("leases/3f2b8a10-7"))?.flatten();
    Ok(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn the_hold_puts_the_image_to_all_nodes_by_taktuk() -> Result<()> {
    let mut spread = spread(SIZE)?;
    let _hold = spread.hold()?;
    let begun = Instant::now();
    let mut agents = (1..MEMBERS).map(|member| spread.start(member)).collect::<Result<Vec<_>>>()?;
    // the one who gives it comes after the others have said that they want it
    let wanted = || Ok::<_, anyhow::Error>(left(&spread, 0)?.iter().any(|name| name.starts_with("wanted-")));
    while !wanted()? {
        ensure!(begun.elapsed() < SOON, "nobody wants it");
        thread::sleep(Duration::from_millis(20));
    }
    agents.push(spread.start(0)?);
    let took = here(&mut agents, begun)?;
    eprintln!("{took:.1?}");
    (0..spread.count()).try_for_each(|node| spread.right(node))?;
    let sent = spread.sent(spread.count())?;
    ensure!((SIZE as u64..SIZE as u64 * 5 / 4).contains(&sent), "{sent} bytes left the repository");
    let others = spread.count() - 1;
    ensure!(came(&spread, &format!("by_taktuk={SIZE}"))? == others, "not all have it by TakTuk");
    let begun = Instant::now();
    for node in 0..spread.count() {
        while left(&spread, node)?.iter().any(|name| name.contains('-')) {
            ensure!(begun.elapsed() < SOON, "pieces of it stay in the lease of node {node}");
            thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn what_no_longer_comes_by_taktuk_comes_from_the_other_agents() -> Result<()> {
    let mut spread = spread(SIZE)?;
    let mut hold = spread.hold()?;
    let begun = Instant::now();
    let mut agents = spread.start_all()?;
    spread.has(3, SIZE as u64 / 3)?;
    hold.kill()?;
    here(&mut agents, begun)?;
    (0..spread.count()).try_for_each(|node| spread.right(node))?;
    let (took, sent) = (begun.elapsed(), spread.sent(spread.count())?);
    eprintln!("{took:.1?}, {sent} bytes left the repository");
    ensure!(came(&spread, "the rest of an image does not come by TakTuk")? > 0, "nobody misses the hold");
    ensure!(came(&spread, "by_taktuk=0")? < spread.count(), "nothing came by TakTuk before");
    ensure!(took < Duration::from_secs(40) && sent < SIZE as u64 * 5 / 4, "{took:?}, {sent}");
    Ok(())
}
