//! A holder that is killed in the middle of a gather, where files differ in size and disks have room for two: real
//! processes on namespaces of this machine, killed at a time that is drawn.

use std::{collections::HashMap, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    chance::Chance,
    goodput::goodput,
    hosts::{Hosts, outcome, stored},
};
use vmdeploy::transfer::{
    plan::bounds::Input,
    run::{
        events::{Event, Kind, REPOSITORY},
        trace,
    },
};

use crate::{
    gather::MEMORY,
    report::{Measured, figure},
};

const SEEDS: u64 = 20;
const HOSTS: usize = 16;
/// The middle of the sizes, and the standard deviation of their logarithms.
const BYTES: f64 = 2.5e6;
const SIGMA: f64 = 0.5;
const RATE: &str = "40mbit";
const FILLING: Duration = Duration::from_secs(3);
const SHARE: f64 = 0.8;

/// Measures.
pub(crate) fn measure() -> Measured {
    let mut measured = Measured { figures: Vec::new(), failed: Vec::new() };
    let (mut ratios, mut lost, mut rate) = (Vec::new(), Vec::new(), None);
    for seed in 1..=SEEDS {
        match one(seed, &mut rate) {
            Ok(found) => {
                eprintln!("  seed {seed}: most {:.2} x bound, {} others' files lost", found.most, found.lost);
                ratios.push(found.most);
                lost.push(found.lost as f64);
            }
            Err(error) => measured.failed.push(format!("seed {seed}: {error:#}")),
        }
    }
    let note = Some("of the others, without the killed one");
    measured.figures.extend(figure("lost_holder_t80_vs_bound", &ratios, 0.5, "ratio", Some(1.35), note));
    measured.figures.extend(figure("lost_holder_t80_worst", &ratios, 1.0, "ratio", None, None));
    let note = Some("files, but the killed one's own that was not stored");
    measured.figures.extend(figure("lost_holder_lost", &lost, 1.0, "files", Some(0.0), note));
    measured
}

struct Found {
    /// Time to most against the bound.
    most: f64,
    /// Files that are not here although another host than the killed one has them.
    lost: usize,
}

fn one(seed: u64, rate: &mut Option<f64>) -> Result<Found> {
    let mut chance = Chance::of(seed);
    let sizes: Vec<usize> = (0..HOSTS).map(|_| chance.lognormal(BYTES, SIGMA) as usize).collect();
    let room = 2 * sizes.iter().sum::<usize>() / HOSTS;
    let hosts = Hosts::new(Path::new(MEMORY), sizes.clone(), Some(RATE))?;
    let rate = match rate {
        Some(rate) => *rate,
        None => *rate.insert(goodput(&hosts.nodes, 0..1, HOSTS, FILLING)?),
    };
    let all: Vec<u64> = sizes.iter().map(|size| *size as u64).collect();
    let input = Input { sizes: all, node: rate, repository: rate, room: room as u64 };
    // of the hosts that are left
    let wanted = ((HOSTS - 1) as f64 * SHARE).ceil() as usize;
    let child = hosts.command(&format!("--room {room} --chunk 32Ki"))?.spawn()?;
    hosts.until(|events| holders(events).into_values().any(|held| held > 0).then_some(()))?;
    thread::sleep(Duration::from_secs_f64(input.free(wanted) * 0.8 * chance.share()));
    let held = holders(&hosts.events()?);
    let (killed, _) = held.into_iter().max_by_key(|(_, held)| *held).context("nobody holds anything")?;
    hosts.kill(&killed)?;
    let output = child.wait_with_output()?;
    let outcome = outcome(&output)?;
    let events = hosts.events()?;
    ensure!(events.iter().any(|event| event.event == Kind::Lost), "nobody was lost: {outcome:?}");
    let verdict = trace::check(&events);
    ensure!(verdict.wrongs.is_empty(), "{verdict:?}");
    // what it alone had may be missing, if it was not stored before
    let own = (0..HOSTS).find(|node| hosts.nodes.name(*node) == killed).context("not a host")?;
    let before: Vec<Event> = events.into_iter().take_while(|event| event.event != Kind::Lost).collect();
    let of_it: Vec<Event> = before.into_iter().filter(|event| event.item.as_deref() == Some(&killed)).collect();
    let needed = stored(&of_it) == sizes[own] as u64;
    let missing: Vec<&str> = outcome.missing.iter().map(|missing| missing.host.as_str()).collect();
    let lost = missing.iter().filter(|host| needed || **host != killed).count();
    hosts.right(|node| !missing.contains(&hosts.nodes.name(node)))?;
    let mut free: Vec<f64> =
        outcome.freed.iter().filter(|freed| freed.host != killed).map(|freed| freed.seconds).collect();
    free.sort_by(f64::total_cmp);
    let left: Vec<u64> = (0..HOSTS).filter(|node| *node != own).map(|node| sizes[node] as u64).collect();
    let bound = Input { sizes: left, ..input }.free(wanted);
    Ok(Found { most: free.get(wanted - 1).context("not enough are free")? / bound, lost })
}

/// Bytes of others that each host has.
fn holders(events: &[Event]) -> HashMap<String, i64> {
    let mut held: HashMap<String, i64> = HashMap::new();
    for event in events.iter().filter(|event| event.event == Kind::Stored) {
        let (Some(from), Some(to), Some(item)) = (&event.from, &event.to, &event.item) else { continue };
        let bytes = event.bytes.unwrap_or_default() as i64;
        if to != REPOSITORY {
            *held.entry(to.clone()).or_default() += bytes;
        }
        if from != item {
            *held.entry(from.clone()).or_default() -= bytes;
        }
    }
    held
}
