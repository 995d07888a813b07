//! The agents that a launcher has started.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink},
    path::{Component, Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::fs::{FlockOperation, flock};
use tokio::{
    process::{Child, Command},
    sync::watch,
    time::sleep,
};

use super::process::{Wish, attend, begin};
use crate::{
    driver::launcher::{LaunchOrder, LaunchedAgent},
    names::Incarnation,
};

/// Below the node's directory: what agents have while they run.
const LAUNCHED: &str = "launched";
/// One launcher at a time holds this file.
const LOCK: &str = "lock";
/// The program that agents run as: a copy, so that none of them waits for a file server when its time has come.
const PROGRAM: &str = "program";
/// Removes what agents had when the launcher has died and could not, unless the next one is there already, which does
/// it. It leaves the job's control group, with which OAR kills.
const JANITOR: &str =
    "for f in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do echo $$ > $f; done 2> /dev/null
cat > /dev/null; sleep 1
exec flock -n \"$1/lock\" sh -c 'for l in \"$1\"/leases/*; do rm -rf \"$(readlink \"$l\")\"; done; rm -rf \"$1\"/*/' sh \"$1\"";
/// Links to the leases of all agents that were started, by the agent's name.
const LEASES: &str = "leases";
/// With the hold the lease has gone, which agents see by themselves: they kill the VM at once and remove their files,
/// the lease's as well. Whoever has not ended after this time is killed.
const LAST_MOMENTS: Duration = Duration::from_secs(3);
/// What is killed has gone, and its files with it, within this time.
const KILLED: Duration = Duration::from_secs(10);

struct Running {
    agent: LaunchedAgent,
    wish: watch::Sender<Wish>,
}

#[derive(Default)]
struct Table {
    running: BTreeMap<String, Running>,
    /// No order of an earlier incarnation is obeyed any more, nor one for an agent that has ended (safety A9).
    newest: Incarnation,
    over: BTreeSet<String>,
}

impl Table {
    fn forget(&mut self, name: &str) {
        if self.running.remove(name).is_some() {
            self.over.insert(name.into());
        }
    }
}

/// The agents of one node.
pub(super) struct LaunchedAgents {
    node_dir: PathBuf,
    own: PathBuf,
    program: PathBuf,
    table: Arc<Mutex<Table>>,
    _lock: File,
    /// Reads until this process has died.
    _janitor: Child,
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the leases of all agents that were started here, unless they have themselves: their hold has gone.
fn remove_leases(own: &Path) {
    for link in fs::read_dir(own.join(LEASES)).into_iter().flatten().flatten() {
        if let Ok(lease) = fs::read_link(link.path()) {
            let _ = fs::remove_dir_all(lease);
        }
    }
}

/// Whether a path is that of a lease, as [`crate::names::lease_directory`] calls it, and not of something else.
fn is_lease(path: &Path) -> bool {
    let deep = path.is_absolute() && path.components().count() > 2;
    let name = path.file_name().and_then(|name| name.to_str());
    deep && path.components().all(|part| part != Component::ParentDir)
        && name.and_then(|name| name.split_once('-')).is_some_and(|(job, slot)| {
            let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            job.len() == 8 && job.bytes().all(|byte| byte.is_ascii_alphanumeric()) && digits(slot)
        })
}

/// Whether a text can be no path and no option.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

impl LaunchedAgents {
    /// Takes the node over from the launcher before, and removes what that one has left.
    pub(super) async fn open(node_dir: &Path, program: &Path, wait: Duration) -> anyhow::Result<Self> {
        let own = node_dir.join(LAUNCHED);
        let make = |path: &Path, mode| DirBuilder::new().recursive(true).mode(mode).create(path);
        make(node_dir, 0o755).context("failed to make the node's directory")?;
        // QEMU, which is another user there, passes through
        make(&own, 0o711).context("failed to make the agents' directory")?;
        let held = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(own.join(LOCK))?;
        let begun = Instant::now();
        while flock(&held, FlockOperation::NonBlockingLockExclusive).is_err() {
            ensure!(begun.elapsed() < wait, "another launcher does not leave this node");
            sleep(Duration::from_millis(100)).await;
        }
        remove_leases(&own);
        for entry in fs::read_dir(&own)?.flatten() {
            if entry.file_name() != LOCK {
                fs::remove_dir_all(entry.path()).context("failed to remove what an agent has left")?;
            }
        }
        make(&own.join(PROGRAM), 0o700)?;
        make(&own.join(LEASES), 0o700)?;
        let copy = own.join(PROGRAM).join("vmdeploy");
        // not by this process: whoever is started meanwhile would have it open for writing
        let copied = Command::new("cp").arg(program).arg(&copy).stdin(Stdio::null()).status().await?;
        ensure!(copied.success(), "failed to copy {} to {}", program.display(), copy.display());
        let mut janitor = Command::new("sh");
        janitor.args(["-c", JANITOR, "sh"]).arg(&own).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let janitor = janitor.spawn().context("failed to run sh")?;
        let node_dir = node_dir.into();
        Ok(Self { node_dir, own, program: copy, table: Arc::default(), _lock: held, _janitor: janitor })
    }

    pub(super) fn list(&self) -> Vec<LaunchedAgent> {
        lock(&self.table).running.values().map(|running| running.agent.clone()).collect()
    }

    /// Starts an agent, unless one of this name was.
    pub(super) fn start(&self, name: &str, order: &LaunchOrder) -> anyhow::Result<()> {
        ensure!(is_plain(name) && ![LOCK, PROGRAM, LEASES].contains(&name), "{name:?} is no name of an agent");
        ensure!(is_lease(&order.lease), "{} is no lease's directory", order.lease.display());
        ensure!(order.files.keys().all(|file| is_plain(file)), "its files have names that are none");
        let mut table = lock(&self.table);
        if table.running.contains_key(name) {
            return Ok(());
        }
        let newest = table.newest;
        ensure!(order.incarnation >= newest, "incarnation {newest} is here: {name} is of an earlier one");
        ensure!(!table.over.contains(name), "{name} was here, and has ended");
        let directory = self.own.join(name);
        let begun = begin(&self.program, &self.node_dir, &directory, order)
            .and_then(|begun| Ok(symlink(&order.lease, self.own.join(LEASES).join(name)).map(|()| begun)?));
        if begun.is_err() {
            let _ = fs::remove_dir_all(&directory);
        }
        let (child, told) = begun?;
        tracing::info!(name, "an agent is started");
        let (wish, wishes) = watch::channel(Wish::Run);
        let agent = LaunchedAgent { name: name.into(), incarnation: order.incarnation, ended: None, ending: false };
        table.running.insert(name.into(), Running { agent, wish });
        table.newest = order.incarnation;
        let (name, table) = (name.to_owned(), self.table.clone());
        tokio::spawn(async move {
            let how = attend(child, told, wishes, &directory).await;
            tracing::info!(name, how, "an agent has ended");
            if let Err(error) = fs::remove_dir_all(&directory) {
                tracing::warn!(name, %error, "what an agent had stays");
            }
            let mut table = lock(&table);
            match table.running.get_mut(&name) {
                // nobody asks for it any more
                Some(running) if running.agent.ending => table.forget(&name),
                Some(running) => running.agent.ended = Some(how),
                None => {}
            }
        });
        Ok(())
    }

    /// Has an agent end and be forgotten.
    pub(super) fn end(&self, name: &str) {
        let mut table = lock(&self.table);
        match table.running.get_mut(name) {
            Some(agent) if agent.agent.ended.is_none() => {
                agent.agent.ending = true;
                agent.wish.send_replace(Wish::End);
            }
            _ => table.forget(name),
        }
    }

    /// Ends all of them once the hold has gone, and removes what they had.
    pub(super) async fn end_all(&self) {
        let begun = Instant::now();
        while begun.elapsed() < LAST_MOMENTS + KILLED {
            let mut left = false;
            for agent in lock(&self.table).running.values().filter(|running| running.agent.ended.is_none()) {
                left = true;
                if begun.elapsed() >= LAST_MOMENTS {
                    agent.wish.send_replace(Wish::Kill);
                }
            }
            if !left {
                return remove_leases(&self.own);
            }
            sleep(Duration::from_millis(20)).await;
        }
        tracing::warn!("an agent does not end");
    }
}
