//! Disks that are full, or become full while bytes come: at the destination and at a host that takes those of others.

use std::{
    fs,
    process::{Output, Stdio},
};

use anyhow::{Result, ensure};
use e2e::hosts::stored;
use vmdeploy::transfer::run::{
    events::{Event, Kind},
    outcome::Outcome,
    trace,
};

use crate::{CHUNK, HOSTS, SIZE, SLOW, hosts};

/// Waits for `go` in the directory that is `$1`, then fills the one that is `$2`.
const FILL: &str = "for i in $(seq 3000); do [ -e $1/go ] && break; sleep 0.02; done; cat /dev/zero >$2/fill";

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn a_full_destination_has_as_many_whole_files_as_fit() -> Result<()> {
    let world = hosts(HOSTS, None)?;
    let dest = world.path("dest");
    fs::create_dir(&dest)?;
    let script = format!(
        "mount -t tmpfs -o size=7m none {0} && {1} >{2}; echo $?; ls -A {0}",
        dest.display(),
        world.words(CHUNK)?.join(" "),
        world.path("report").display()
    );
    let output = world.nodes.command(HOSTS, "sh").args(["-c", &script]).output()?;
    let outcome: Outcome = serde_json::from_slice(&fs::read(world.path("report"))?)?;
    let text = String::from_utf8(output.stdout)?;
    let mut lines = text.lines();
    ensure!(lines.next() == Some("1"), "{text}");
    ensure!(lines.count() == 3 && outcome.whole == 3, "{text}, {outcome:?}");
    ensure!(outcome.missing.len() == 3, "{outcome:?}");
    ensure!(outcome.missing.iter().all(|missing| missing.reason.contains("no room here")), "{outcome:?}");
    Ok(())
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn a_destination_that_becomes_full_goes_on_once_there_is_room() -> Result<()> {
    let world = hosts(HOSTS, Some(SLOW))?;
    let dest = world.path("dest");
    fs::create_dir(&dest)?;
    let (first, second) = (world.path("first"), world.path("second"));
    let script = format!(
        "set -- {root} {dest}; mount -t tmpfs -o size=20m none {dest} || exit 9\n\
         ({FILL}) >{root}/filled 2>&1 </dev/null &\n\
         {gather} >{first}.json; echo $?; wait; rm {dest}/fill; cp -a {dest} {first}\n\
         {gather} >{second}.json; echo $?; cp -a {dest} {second}",
        root = world.path("").display(),
        dest = dest.display(),
        gather = world.words(CHUNK)?.join(" "),
        first = first.display(),
        second = second.display(),
    );
    let mut command = world.nodes.command(HOSTS, "sh");
    let child = command.args(["-c", &script]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    world.until(|events| (stored(events) >= world.bytes() / 3).then_some(()))?;
    fs::write(world.path("go"), "")?;
    let Output { stdout, stderr, .. } = child.wait_with_output()?;
    let (codes, said) = (String::from_utf8(stdout)?, String::from_utf8_lossy(&stderr).into_owned());
    let report = |name: &str| -> Result<Outcome> { Ok(serde_json::from_slice(&fs::read(world.path(name))?)?) };
    let (before, after) = (report("first.json")?, report("second.json")?);
    eprintln!("{before:?}\nthen {after:?}");
    ensure!(codes == "1\n0\n", "{codes:?}: {said}");
    ensure!(!before.missing.is_empty() && before.whole + before.missing.len() == HOSTS, "{before:?}");
    ensure!(before.missing.iter().all(|missing| missing.reason.contains("No space left")), "{before:?}");
    let missing: Vec<&str> = before.missing.iter().map(|missing| missing.host.as_str()).collect();
    world.right_at(|name| first.join(name), |node| !missing.contains(&world.nodes.name(node)))?;
    // one that failed last has kept what it had
    ensure!(after.earlier >= (before.whole * SIZE) as u64, "{after:?}");
    ensure!(after.earlier + after.stored == world.bytes() && after.missing.is_empty(), "{after:?}");
    let verdict = trace::check(&world.events()?);
    ensure!(verdict.wrongs.is_empty() && verdict.stored == after.stored, "{verdict:?}");
    world.right_at(|name| second.join(name), |_| true)?;
    ensure!(fs::read_dir(second)?.count() == HOSTS, "something is left beside the files");
    Ok(())
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn bytes_for_a_host_that_becomes_full_go_another_way() -> Result<()> {
    let world = hosts(HOSTS, Some(SLOW))?;
    // of equal files the last host takes those of others
    let full = world.nodes.name(HOSTS - 1);
    fs::create_dir(world.path(full).join("tmp"))?;
    world.shell(
        "rsh",
        &format!(
            "own=$root/$host\n[ \"$host\" = {full} ] || exec ip netns exec \"$host\" env TMPDIR=\"$own\" sh -c \"$*\"\n\
             exec ip netns exec \"$host\" sh -c 'mount -t tmpfs -o size=30m none $2 || exit; \
             ({FILL}) >/dev/null 2>&1 </dev/null & export TMPDIR=$2; exec sh -c \"$3\"' sh \"$root\" \"$own/tmp\" \"$*\""
        ),
    )?;
    let child = world.command(CHUNK)?.spawn()?;
    let comes = |event: &Event| event.event == Kind::Start && event.to.as_deref() == Some(full);
    world.until(|events| events.iter().find(|event| comes(event)).cloned())?;
    fs::write(world.path("go"), "")?;
    let output = child.wait_with_output()?;
    let outcome = e2e::hosts::outcome(&output)?;
    ensure!(output.status.success() && outcome.missing.is_empty(), "{outcome:?}");
    let events = world.events()?;
    let refused = |event: &&Event| {
        let reason = event.reason.as_deref().unwrap_or_default();
        event.event == Kind::Broken && event.to.as_deref() == Some(full) && reason.contains("No space left")
    };
    ensure!(events.iter().any(|event| refused(&event)), "the disk was not full in the middle of a move");
    let verdict = trace::check(&events);
    ensure!(verdict.wrongs.is_empty(), "{verdict:?}");
    world.right(|_| true)
}
