//! One pass over an archive: every entry is looked at, and what a VM may have is written on at once.

use std::{
    collections::BTreeMap,
    io::{BufRead, Write},
};

use super::{
    HARMLESS, RATIO,
    names::{normal, show},
    reader::{Entry, Kind, Reader},
    scrub::{self, Added},
    tree::{Node, Tree},
    writer::Writer,
};

/// What an archive may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of the disk that is made.
    pub(super) disk: u64,
    /// Bytes of the archive itself.
    pub(super) archive: u64,
}

const BLOCK: u64 = 4096;
/// Bytes of a disk for each of its files: what `mke2fs` counts with.
pub(super) const BYTES_A_FILE: u64 = 16384;
/// Most entries, however large the disk is: what the index of their names takes in memory.
const ENTRIES: u64 = 1_000_000;
/// Longest `os-release`.
const RELEASE: u64 = 64 << 10;
/// Attributes that mean the same on any machine.
const ATTRIBUTES: [&str; 2] = ["security.capability", "user."];

/// What was found on the way.
pub(super) struct Passed {
    pub(super) tree: Tree,
    /// Bytes of files.
    pub(super) bytes: u64,
    /// What the system calls itself.
    pub(super) os: Option<String>,
}

/// Why a pass ended early.
#[derive(Debug)]
pub(super) enum Ended {
    /// The archive is refused.
    Refused(String),
    /// What is written to takes no more.
    Writing(std::io::Error),
}

impl From<String> for Ended {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

/// Passes an archive on.
pub(super) fn pass(from: impl BufRead, to: impl Write, limits: Limits, log: &mut Vec<String>) -> Result<Passed, Ended> {
    let mut pass = Pass {
        reader: Reader::new(from),
        writer: Writer::new(to),
        limits,
        tree: Tree::default(),
        bytes: 0,
        taken: 0,
        releases: BTreeMap::new(),
        left_out: BTreeMap::new(),
    };
    while let Some(entry) = pass.reader.next()? {
        pass.one(entry)?;
    }
    let counts: Vec<String> = pass.left_out.iter().map(|(what, n)| format!("{what} ({n})")).collect();
    if !counts.is_empty() {
        log.push(format!("left out: {}", counts.join(", ")));
    }
    for added in scrub::added(&pass.tree, log)? {
        pass.add(added)?;
    }
    let release = match pass.tree.file(b"etc/os-release")? {
        Some((path, _)) => pass.releases.remove(&path),
        None => None,
    };
    let os = release.as_deref().and_then(scrub::pretty_name);
    pass.writer.finish().map_err(Ended::Writing)?;
    Ok(Passed { tree: pass.tree, bytes: pass.bytes, os })
}

struct Pass<R, W: Write> {
    reader: Reader<R>,
    writer: Writer<W>,
    limits: Limits,
    tree: Tree,
    bytes: u64,
    /// Bytes that all takes on the disk.
    taken: u64,
    releases: BTreeMap<Vec<u8>, Vec<u8>>,
    left_out: BTreeMap<&'static str, u64>,
}

impl<R: BufRead, W: Write> Pass<R, W> {
    fn one(&mut self, mut entry: Entry) -> Result<(), Ended> {
        entry.path = normal(&entry.path)?;
        if entry.path.is_empty() {
            return match entry.kind {
                Kind::Directory => Ok(()),
                _ => Err(Ended::Refused("its root is no directory".into())),
            };
        }
        // also of what is left out: it is read
        self.count(&entry)?;
        if let Some(what) = scrub::left_out(&entry.path, entry.kind) {
            *self.left_out.entry(what).or_default() += 1;
            return Ok(());
        }
        let node = match entry.kind {
            Kind::HardLink => {
                entry.target = normal(&entry.target)?;
                match self.tree.get(&entry.target) {
                    Some(node @ Node::File(_)) => node.clone(),
                    Some(Node::Other) => Node::Other,
                    _ => {
                        let (path, target) = (show(&entry.path), show(&entry.target));
                        return Err(Ended::Refused(format!(
                            "{path} is a hard link to {target}, which is no file before it"
                        )));
                    }
                }
            }
            Kind::SymbolicLink if entry.target.is_empty() || entry.target.len() > 4095 || entry.target.contains(&0) => {
                return Err(Ended::Refused(format!("the link {} names nothing that can be", show(&entry.path))));
            }
            Kind::Character | Kind::Block if !scrub::is_usual(entry.kind, entry.device) => {
                let (major, minor) = entry.device;
                let path = show(&entry.path);
                return Err(Ended::Refused(format!("{path} is a device node ({major}:{minor}): leave such nodes out")));
            }
            _ => scrub::node(&entry),
        };
        entry.attributes.retain(|(name, _)| ATTRIBUTES.iter().any(|kept| name.starts_with(kept)));
        self.begin(&entry, node)?;
        self.content(&entry)
    }

    /// Counts an entry before anything of it is read.
    fn count(&mut self, entry: &Entry) -> Result<(), Ended> {
        let most = (self.limits.disk / BYTES_A_FILE / 20 * 19).min(ENTRIES);
        if self.tree.len() as u64 >= most {
            return Err(Ended::Refused(format!(
                "it has more than {most} files: raise spec.diskSize or leave some out"
            )));
        }
        self.bytes = self.bytes.saturating_add(entry.size);
        let blocks = entry.size.div_ceil(BLOCK) + u64::from(entry.kind == Kind::Directory);
        self.taken = self.taken.saturating_add(blocks.saturating_mul(BLOCK));
        let Limits { disk, archive } = self.limits;
        // the rest is for the file system itself
        if self.taken > disk / 20 * 17 {
            return Err(Ended::Refused(format!(
                "its files have more than {} MiB, which do not fit on a disk of {} MiB: raise spec.diskSize",
                (disk / 20 * 17) >> 20,
                disk >> 20
            )));
        }
        if self.bytes > HARMLESS && self.bytes / RATIO > archive {
            return Err(Ended::Refused(format!(
                "it unpacks to more than {RATIO} times its size: that is no file system"
            )));
        }
        Ok(())
    }

    fn begin(&mut self, entry: &Entry, node: Node) -> Result<(), Ended> {
        for missing in self.tree.add(&entry.path, node)? {
            self.writer.begin(&scrub::directory(missing)).map_err(Ended::Writing)?;
        }
        self.writer.begin(entry).map_err(Ended::Writing)
    }

    fn content(&mut self, entry: &Entry) -> Result<(), Ended> {
        if entry.size == 0 {
            return Ok(());
        }
        let wanted = entry.size <= RELEASE && entry.path.ends_with(b"os-release");
        let mut kept = Vec::new();
        loop {
            let found = self.reader.content()?;
            let count = found.len();
            if count == 0 {
                break;
            }
            self.writer.content(found).map_err(Ended::Writing)?;
            if wanted {
                kept.extend_from_slice(found);
            }
            self.reader.used(count);
        }
        if wanted && self.releases.len() < 16 {
            self.releases.insert(entry.path.clone(), kept);
        }
        self.writer.pad(entry.size).map_err(Ended::Writing)
    }

    fn add(&mut self, added: Added) -> Result<(), Ended> {
        self.begin(&added.entry, scrub::node(&added.entry))?;
        self.writer.content(&added.content).map_err(Ended::Writing)?;
        self.writer.pad(added.entry.size).map_err(Ended::Writing)
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
