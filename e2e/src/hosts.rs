//! Hosts with a file each on nodes of their own, and one more node from which `vmdeploy kget gather` gathers them.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;
use vmdeploy::transfer::run::{
    events::{Event, Kind, REPOSITORY},
    outcome::Outcome,
};

use crate::{agents::program, nodes::Nodes};

const LIMIT: Duration = Duration::from_secs(120);
/// A remote shell without a network: what is measured is the bytes.
const SHELL: &str = "exec ip netns exec \"$host\" env TMPDIR=\"$root/$host\" sh -c \"$*\"";

/// The hosts, and a directory in which each has one of its own.
pub struct Hosts {
    /// The last of them gathers.
    pub nodes: Nodes,
    root: TempDir,
    sizes: Vec<usize>,
    seed: u64,
}

impl Hosts {
    /// A host for each size, on links of this rate; their directories are below this one.
    pub fn new(below: &Path, sizes: Vec<usize>, rate: Option<&str>) -> Result<Self> {
        let nodes = Nodes::new(u8::try_from(sizes.len() + 1)?, rate)?;
        let root = tempfile::tempdir_in(below)?;
        let mut hosts = Self { nodes, root, sizes, seed: 0 };
        hosts.renew()?;
        hosts.shell("rsh", SHELL)?;
        let names: Vec<&str> = (0..hosts.count()).map(|node| hosts.nodes.name(node)).collect();
        fs::write(hosts.path("hosts"), names.join("\n"))?;
        Ok(hosts)
    }

    /// How many have a file.
    pub fn count(&self) -> usize {
        self.sizes.len()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.sizes.iter().map(|size| *size as u64).sum()
    }

    /// Other bytes on every host, and nothing gathered.
    pub fn renew(&mut self) -> Result<()> {
        self.seed += 1;
        let dest = self.path("dest");
        if dest.exists() {
            fs::remove_dir_all(dest)?;
        }
        for node in 0..self.count() {
            let path = self.source(node);
            fs::create_dir_all(path.parent().context("no directory")?)?;
            fs::write(path, self.content(node))?;
        }
        Ok(())
    }

    fn content(&self, node: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.sizes[node]];
        let seed = [self.seed, node as u64].map(u64::to_be_bytes).concat();
        blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// A script with a host and a command: a remote shell that does this.
    pub fn shell(&self, name: &str, does: &str) -> Result<()> {
        let root = self.root.path().display();
        fs::write(self.path(name), format!("#!/bin/sh\nroot={root} host=$1; shift\n{does}\n"))?;
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// A file that all of them share.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A host's file.
    pub fn source(&self, node: usize) -> PathBuf {
        self.path(self.nodes.name(node)).join("image")
    }

    /// The words of a gather, with these options besides.
    pub fn words(&self, more: &str) -> Result<Vec<String>> {
        let root = self.root.path().display();
        let line = format!(
            "{} kget gather --json -f {root}/hosts -e {root}/rsh --events {root}/events {more} {root}/{{host}}/image {root}/dest",
            program()?.display()
        );
        Ok(line.split_whitespace().map(str::to_owned).collect())
    }

    /// A gather, to be started.
    pub fn command(&self, more: &str) -> Result<Command> {
        let words = self.words(more)?;
        let mut command = self.nodes.command(self.count(), &words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let _ = fs::remove_file(self.path("events"));
        Ok(command)
    }

    /// What has happened so far.
    pub fn events(&self) -> Result<Vec<Event>> {
        let lines = BufReader::new(fs::File::open(self.path("events"))?).lines();
        // the last may be half written
        Ok(lines.map_while(|line| serde_json::from_str(&line.ok()?).ok()).collect())
    }

    /// Waits until something has happened.
    pub fn until<T>(&self, what: impl Fn(&[Event]) -> Option<T>) -> Result<T> {
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            if let Some(found) = self.events().ok().and_then(|events| what(&events)) {
                return Ok(found);
            }
            thread::sleep(Duration::from_millis(5));
        }
        bail!("it did not happen")
    }

    /// Kills everything that runs on a node.
    pub fn kill(&self, name: &str) -> Result<()> {
        let pids = Command::new("ip").args(["netns", "pids", name]).output()?.stdout;
        for pid in String::from_utf8(pids)?.split_whitespace() {
            Command::new("kill").args(["-9", pid]).status()?;
        }
        Ok(())
    }

    /// The files that are whole have the right bytes, and nothing else has a final name.
    pub fn right(&self, expected: impl Fn(usize) -> bool) -> Result<()> {
        self.right_at(|name| self.path("dest").join(name), expected)
    }

    /// The same, where each host's file is here.
    pub fn right_at(&self, here: impl Fn(&str) -> PathBuf, expected: impl Fn(usize) -> bool) -> Result<()> {
        for node in 0..self.count() {
            let whole = here(self.nodes.name(node));
            ensure!(whole.exists() == expected(node), "{}: {}", whole.display(), whole.exists());
            if whole.exists() {
                let found = fs::read(whole)?;
                ensure!(blake3::hash(&found) == blake3::hash(&self.content(node)), "node {node} has other bytes");
            }
        }
        Ok(())
    }

    /// Every file is there with its bytes, under whatever name.
    pub fn all_here(&self) -> Result<()> {
        let mut found = Vec::new();
        for file in fs::read_dir(self.path("dest"))? {
            found.push(blake3::hash(&fs::read(file?.path())?));
        }
        for node in 0..self.count() {
            ensure!(found.contains(&blake3::hash(&self.content(node))), "the file of node {node} is missing");
        }
        Ok(())
    }
}

/// Bytes that are acknowledged at the destination.
pub fn stored(events: &[Event]) -> u64 {
    let here = |event: &&Event| event.event == Kind::Stored && event.to.as_deref() == Some(REPOSITORY);
    events.iter().filter(here).filter_map(|event| event.bytes).sum()
}

/// What a gather reports.
pub fn outcome(output: &Output) -> Result<Outcome> {
    serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}
