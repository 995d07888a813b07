//! What a command needs while it runs: memory of all its processes together, and disk.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};

/// Time between two looks. What comes and goes between them is not seen.
const LOOK: Duration = Duration::from_millis(5);

/// The most of each, in bytes.
pub(super) struct Needs {
    pub(super) memory: u64,
    pub(super) scratch: u64,
}

impl Needs {
    /// Runs a command to its end, which says little; `scratch` tells what is on the disk.
    pub(super) fn of(command: &mut Command, scratch: impl Fn() -> u64) -> Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut needs = Self { memory: 0, scratch: 0 };
        while child.try_wait()?.is_none() {
            needs.memory = needs.memory.max(memory(child.id()));
            needs.scratch = needs.scratch.max(scratch());
            thread::sleep(LOOK);
        }
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ensure!(needs.memory > 0 && needs.scratch > 0, "what it needs was not seen");
        Ok(needs)
    }
}

/// Bytes that a process and all that come of it have in memory, what several share counted for each; none of one that
/// has ended.
fn memory(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let program = |process: u32| fs::read_link(format!("/proc/{process}/exe")).ok();
    let own = program(process);
    // one that is still its parent's program is about to be another, and has what its parent has
    let begun = children(process).into_iter().filter(|child| program(*child) != own);
    (kib.unwrap_or_default() << 10) + begun.map(memory).sum::<u64>()
}

/// The processes that any of its threads has started.
fn children(process: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let text: String = lists.collect();
    text.split_whitespace().filter_map(|process| process.parse().ok()).collect()
}

/// Bytes that a directory's files take on the disk, but for those of these names. Any may go meanwhile.
pub(super) fn on_disk(directory: &Path, but_for: &[&str]) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let counted = entries.filter(|entry| !but_for.iter().any(|name| entry.file_name() == *name));
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => on_disk(&entry.path(), but_for),
        Ok(found) => found.blocks() * 512,
        Err(_) => 0,
    };
    counted.map(bytes).sum()
}
