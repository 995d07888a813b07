//! `vmdeploy kget gather` with real processes on nodes of their own: what is gathered is whole and right whatever is
//! killed, full or changed meanwhile, and what is reported is what happened.

mod permissions;
mod room;
mod ssh;

use std::{collections::BTreeMap, fs, io::Write as _, os::unix::process::ExitStatusExt as _, process::Child};

use anyhow::{Context as _, Result, ensure};
use e2e::hosts::{Hosts, outcome, stored};
use vmdeploy::transfer::run::{
    events::{Event, Kind, REPOSITORY},
    trace,
};

const HOSTS: usize = 6;
const SIZE: usize = 2 << 20;
const CHUNK: &str = "--chunk 64Ki";
/// A gather on such links takes seconds: what is done in the middle of it is not too late.
const SLOW: &str = "15mbit";
/// Share of the time in which the repository's link may be idle.
const IDLE: f64 = 0.01;

fn hosts(count: usize, rate: Option<&str>) -> Result<Hosts> {
    Hosts::new(&std::env::temp_dir(), vec![SIZE; count], rate)
}

fn kill(child: &mut Child) -> Result<()> {
    child.kill()?;
    ensure!(child.wait()?.signal() == Some(9), "it ended before it was killed");
    Ok(())
}

/// Gathers by each policy, each time right; the median of the shares of time in which the repository's link was idle. A
/// packet that is lost where the machine does other things costs one of them a fifth of a second.
fn each_policy(world: &Hosts) -> Result<f64> {
    let mut idle = Vec::new();
    for policy in ["", "--node-seconds", "--deadline 4s", "--paper", "--room 0 --senders 2"] {
        let picture = world.path("picture.svg");
        let output = world.command(&format!("{CHUNK} --plot {} {policy}", picture.display()))?.output()?;
        let outcome = outcome(&output)?;
        ensure!(output.status.success() && outcome.missing.is_empty(), "{policy}: {outcome:?}");
        let drawn = format!("these hosts: {:.1} node-seconds", outcome.node_seconds);
        ensure!(fs::read_to_string(picture)?.contains(&drawn), "{policy}: {drawn} is not in the picture");
        ensure!(outcome.freed.len() == HOSTS && outcome.stored == world.bytes(), "{policy}: {outcome:?}");
        world.right(|_| true)?;
        let verdict = trace::check(&world.events()?);
        eprintln!("{policy}: {:.2} s, idle {:.4}, free {:?}", outcome.seconds, verdict.idle_share(), outcome.freed);
        ensure!(verdict.wrongs.is_empty() && verdict.stored == outcome.stored, "{policy}: {verdict:?}");
        idle.push(verdict.idle_share());
        ensure!(fs::read_dir(world.path("dest"))?.count() == HOSTS, "{policy}: something is left");
        fs::remove_dir_all(world.path("dest"))?;
        for node in 0..HOSTS {
            let left = world.source(node).parent().map(fs::read_dir).context("no directory")??.count();
            ensure!(left == 1, "{policy}: something is left on a node");
        }
    }
    idle.sort_by(f64::total_cmp);
    Ok(idle[idle.len() / 2])
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn every_policy_brings_every_byte() -> Result<()> {
    let world = Hosts::new(&std::env::temp_dir(), vec![4 * SIZE; HOSTS], Some("60mbit"))?;
    let mut idle = each_policy(&world)?;
    if idle >= IDLE {
        eprintln!("measured again: {idle:.4} may be the machine's");
        idle = each_policy(&world)?;
    }
    ensure!(idle < IDLE, "the repository's link was idle: {idle:.4}");
    Ok(())
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn k12_a_killed_gather_sends_nothing_again_that_is_stored() -> Result<()> {
    let world = hosts(HOSTS, Some(SLOW))?;
    let mut first = world.command(CHUNK)?.spawn()?;
    world.until(|events| (stored(events) >= world.bytes() / 2).then_some(()))?;
    kill(&mut first)?;
    let before = stored(&world.events()?);
    let output = world.command(CHUNK)?.output()?;
    let outcome = outcome(&output)?;
    eprintln!("{before} were acknowledged; then {outcome:?}");
    ensure!(output.status.success() && outcome.missing.is_empty(), "{outcome:?}");
    ensure!(outcome.earlier >= before, "of {before} only {} were found", outcome.earlier);
    ensure!(outcome.earlier + outcome.stored == world.bytes(), "{outcome:?}");
    let verdict = trace::check(&world.events()?);
    ensure!(verdict.wrongs.is_empty() && verdict.stored == outcome.stored, "{verdict:?}");
    world.right(|_| true)?;
    // and a third time nothing is left to do
    let output = world.command(CHUNK)?.output()?;
    ensure!(output.status.success() && self::outcome(&output)?.stored == 0, "{output:?}");
    world.right(|_| true)
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn k12_of_a_killed_node_only_its_own_file_is_missing() -> Result<()> {
    let world = hosts(HOSTS, Some(SLOW))?;
    let first = world.command(CHUNK)?.spawn()?;
    // one that takes bytes of others has its own still
    let collector = |events: &[Event]| {
        let takes = |event: &&Event| event.event == Kind::Stored && event.to.as_deref() != Some(REPOSITORY);
        events.iter().find(takes).and_then(|event| event.to.clone())
    };
    let killed = world.until(collector)?;
    world.kill(&killed)?;
    let output = first.wait_with_output()?;
    let outcome = outcome(&output)?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let missing: Vec<&str> = outcome.missing.iter().map(|missing| missing.host.as_str()).collect();
    ensure!(missing == [&killed], "{outcome:?}");
    let events = world.events()?;
    ensure!(events.iter().any(|event| event.event == Kind::Lost), "nobody was lost");
    let verdict = trace::check(&events);
    ensure!(verdict.wrongs.is_empty(), "{verdict:?}");
    world.right(|node| world.nodes.name(node) != killed)
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn what_goes_wrong_with_one_file_is_said_and_the_others_are_gathered() -> Result<()> {
    let world = hosts(HOSTS, Some(SLOW))?;
    // 0 has none, 1 cannot be reached, 2 changes while it is sent
    fs::remove_file(world.source(0))?;
    world.shell(
        "rsh",
        &format!(
            "[ \"$host\" = {} ] && {{ echo no route >&2; exit 255; }}\n\
             exec ip netns exec \"$host\" env TMPDIR=\"$root/$host\" sh -c \"$*\"",
            world.nodes.name(1)
        ),
    )?;
    let first = world.command(&format!("{CHUNK} --room 0"))?.spawn()?;
    let found = |event: &Event| event.event == Kind::Item && event.from.as_deref() == Some(world.nodes.name(2));
    world.until(|events| events.iter().find(|event| found(event)).cloned())?;
    fs::File::options().append(true).open(world.source(2))?.write_all(b"more")?;
    let output = first.wait_with_output()?;
    let outcome = outcome(&output)?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let reasons: BTreeMap<&str, &str> =
        outcome.missing.iter().map(|missing| (missing.host.as_str(), missing.reason.as_str())).collect();
    let expected = ["there is no such file", "no route", "it has changed since the beginning"];
    for (node, expected) in expected.into_iter().enumerate() {
        ensure!(reasons.get(world.nodes.name(node)) == Some(&expected), "{reasons:?}");
    }
    ensure!(reasons.len() == 3, "{reasons:?}");
    world.right(|node| node > 2)
}
