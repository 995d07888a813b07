//! Processes that may have no more than so much memory, as on a small machine.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

/// Gone when this is dropped, once its processes have ended.
pub struct Limit(PathBuf);

impl Limit {
    /// A group of processes that have so many bytes together; what they keep of files counts as long as it is needed.
    pub fn new(name: &str, bytes: u64) -> Result<Self> {
        let controller = Path::new("/sys/fs/cgroup/memory");
        // where there is one hierarchy for all
        let (root, file) = if controller.is_dir() {
            (controller, "memory.limit_in_bytes")
        } else {
            (Path::new("/sys/fs/cgroup"), "memory.max")
        };
        let limit = Self(root.join(format!("vmdeploy-{}-{name}", std::process::id())));
        fs::create_dir(&limit.0).with_context(|| limit.0.display().to_string())?;
        fs::write(limit.0.join(file), bytes.to_string()).with_context(|| format!("{name}: {file}"))?;
        Ok(limit)
    }

    /// From now on it holds for a process, and for all that this one starts.
    pub fn holds_for(&self, process: u32) -> Result<()> {
        fs::write(self.0.join("cgroup.procs"), process.to_string()).context("limit a process")
    }

    /// How many of its processes the kernel has killed because all together needed more.
    pub fn killed(&self) -> Result<u64> {
        // the kernel's account, where there is one hierarchy for all, and where memory has its own
        let files = ["memory.events", "memory.oom_control"].map(|file| self.0.join(file));
        let file = files.iter().find(|file| file.exists()).context("the kernel has no account of its kills")?;
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        let count = count.with_context(|| format!("{} has no oom_kill", file.display()))?;
        Ok(count.trim().parse()?)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let parent = self.0.parent().unwrap_or(&self.0).join("cgroup.procs");
        // processes that were killed take a moment
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            // for those that go on it does not hold any more
            for process in fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = fs::write(&parent, process);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}
