//! The agents that a launcher has started: each in a process namespace of its own, whose end is the end of all in it.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, Signal, kill_process},
};
use tokio::{
    process::{Child, Command},
    sync::watch,
    time::{sleep, timeout},
};

use crate::driver::launcher::{LaunchOrder, LaunchedAgent};

/// Below the node's directory: what agents have while they run.
const LAUNCHED: &str = "launched";
/// One launcher at a time holds this file.
const LOCK: &str = "lock";
/// Removes what agents had when the launcher has died and could not, unless the next one is there already, which does it.
const JANITOR: &str = "cat > /dev/null; sleep 1; exec flock -n \"$1/lock\" sh -c 'rm -rf \"$1\"/*/' sh \"$1\"";
/// What an agent prints goes here.
const LOG: &str = "log";
/// So much of the end of that is told when an agent fails.
const LAST_WORDS: u64 = 400;
/// What an agent prints is thrown away when it is longer, at the next look.
const LONGEST_LOG: u64 = 8 << 20;
/// Time between two looks.
const LOOK: Duration = Duration::from_secs(60);
/// An agent that is told to end gets as long.
const TERMINATION: Duration = Duration::from_secs(30);
/// With the hold the lease has gone, which agents see by themselves: they are killed after this time.
const LAST_MOMENTS: Duration = Duration::from_millis(500);
/// What is killed has gone, and its files with it, within this time.
const KILLED: Duration = Duration::from_secs(10);

/// What is wanted of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Run,
    End,
    Kill,
}

struct Running {
    agent: LaunchedAgent,
    wish: watch::Sender<Wish>,
}

/// The agents of one node.
pub(super) struct Agents {
    node_dir: PathBuf,
    own: PathBuf,
    /// Runs as the agents.
    program: PathBuf,
    running: Arc<Mutex<BTreeMap<String, Running>>>,
    _lock: File,
    /// Reads until this process has died.
    _janitor: Child,
}

fn lock(running: &Mutex<BTreeMap<String, Running>>) -> MutexGuard<'_, BTreeMap<String, Running>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agents {
    /// Takes the node over from the launcher before, and removes what that one has left.
    pub(super) async fn open(node_dir: &Path, program: &Path, wait: Duration) -> anyhow::Result<Self> {
        let own = node_dir.join(LAUNCHED);
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(node_dir)
            .context("failed to make the node's directory")?;
        // QEMU, which is another user there, passes through
        DirBuilder::new().recursive(true).mode(0o711).create(&own).context("failed to make the agents' directory")?;
        let held = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(own.join(LOCK))?;
        let begun = Instant::now();
        while flock(&held, FlockOperation::NonBlockingLockExclusive).is_err() {
            ensure!(begun.elapsed() < wait, "another launcher does not leave this node");
            sleep(Duration::from_millis(100)).await;
        }
        for entry in fs::read_dir(&own)?.flatten() {
            if entry.file_name() != LOCK {
                fs::remove_dir_all(entry.path()).context("failed to remove what an agent has left")?;
            }
        }
        let mut janitor = Command::new("sh");
        janitor.args(["-c", JANITOR, "sh"]).arg(&own).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let janitor = janitor.spawn().context("failed to run sh")?;
        let (node_dir, program) = (node_dir.into(), program.into());
        Ok(Self { node_dir, own, program, running: Arc::default(), _lock: held, _janitor: janitor })
    }

    pub(super) fn list(&self) -> Vec<LaunchedAgent> {
        lock(&self.running).values().map(|running| running.agent.clone()).collect()
    }

    /// Starts an agent, unless one of this name was.
    pub(super) fn start(&self, name: &str, order: &LaunchOrder) -> anyhow::Result<()> {
        let plain =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        ensure!(plain(name) && !name.starts_with('.') && name != LOCK, "{name:?} is no name of an agent");
        let mut running = lock(&self.running);
        if running.contains_key(name) {
            return Ok(());
        }
        let directory = self.own.join(name);
        let started = self.spawn(&directory, order, plain);
        if started.is_err() {
            let _ = fs::remove_dir_all(&directory);
        }
        let child = started?;
        tracing::info!(name, "an agent is started");
        let (wish, wishes) = watch::channel(Wish::Run);
        let agent = LaunchedAgent { name: name.into(), incarnation: order.incarnation, ended: None, ending: false };
        running.insert(name.into(), Running { agent, wish });
        let (name, all) = (name.to_owned(), self.running.clone());
        tokio::spawn(async move {
            let how = attend(child, wishes, &directory).await;
            tracing::info!(name, how, "an agent has ended");
            if let Err(error) = fs::remove_dir_all(&directory) {
                tracing::warn!(name, %error, "what an agent had stays");
            }
            let mut all = lock(&all);
            match all.get_mut(&name) {
                // nobody asks for it any more
                Some(running) if running.agent.ending => drop(all.remove(&name)),
                Some(running) => running.agent.ended = Some(how),
                None => {}
            }
        });
        Ok(())
    }

    fn spawn(&self, directory: &Path, order: &LaunchOrder, plain: impl Fn(&str) -> bool) -> anyhow::Result<Child> {
        let (config, vm) = (directory.join("config"), directory.join("vm"));
        DirBuilder::new().mode(0o711).create(directory).context("failed to make the agent's directory")?;
        DirBuilder::new().mode(0o700).create(&config)?;
        DirBuilder::new().mode(0o755).create(&vm)?;
        for (name, text) in &order.files {
            ensure!(plain(name), "{name:?} is no name of a file");
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(config.join(name))?;
            file.write_all(text.as_bytes())?;
        }
        let log = OpenOptions::new().append(true).create_new(true).mode(0o600).open(directory.join(LOG))?;
        let mut command = Command::new("setpriv");
        // it dies with this process, and all in its namespace with it
        command.args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"]);
        command
            .arg(&self.program)
            .arg("agent")
            .arg("--config")
            .arg(config)
            .arg("--node-dir")
            .arg(&self.node_dir)
            .arg("--vm-dir")
            .arg(vm);
        command.env("RUST_LOG", &order.log).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.kill_on_drop(true).spawn().context("failed to run setpriv and unshare (package util-linux)")
    }

    /// Has an agent end and be forgotten.
    pub(super) fn end(&self, name: &str) {
        let mut running = lock(&self.running);
        match running.get_mut(name) {
            Some(agent) if agent.agent.ended.is_none() => {
                agent.agent.ending = true;
                agent.wish.send_replace(Wish::End);
            }
            _ => drop(running.remove(name)),
        }
    }

    /// Ends all of them, and removes what they had.
    pub(super) async fn end_all(&self) {
        let begun = Instant::now();
        while begun.elapsed() < LAST_MOMENTS + KILLED {
            let mut left = false;
            for agent in lock(&self.running).values().filter(|running| running.agent.ended.is_none()) {
                left = true;
                if begun.elapsed() >= LAST_MOMENTS {
                    agent.wish.send_replace(Wish::Kill);
                }
            }
            if !left {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        tracing::warn!("an agent does not end");
    }
}

/// Waits for an agent's end, and brings it about when that is wanted. How it has ended.
async fn attend(mut child: Child, mut wishes: watch::Receiver<Wish>, directory: &Path) -> String {
    let log = directory.join(LOG);
    let status = tokio::select! {
        status = child.wait() => Some(status),
        _ = wishes.wait_for(|wish| *wish != Wish::Run) => None,
        never = keep_short(&log) => match never {},
    };
    let status = match status {
        Some(status) => status,
        None => {
            terminate(&child);
            let killed = async {
                let told = wishes.wait_for(|wish| *wish == Wish::Kill);
                // nobody is left to tell
                let _ = timeout(TERMINATION, told).await;
            };
            let ended = tokio::select! {
                status = child.wait() => Some(status),
                () = killed => None,
            };
            match ended {
                Some(status) => status,
                // what is in the namespace goes with it
                None => child.kill().await.and(child.wait().await),
            }
        }
    };
    match status {
        Ok(status) => described(status, &log),
        Err(error) => format!("its end was not seen: {error}"),
    }
}

/// Throws away what an agent prints, time and again: nobody else takes it away.
async fn keep_short(log: &Path) -> std::convert::Infallible {
    loop {
        sleep(LOOK).await;
        let cut = || {
            let file = OpenOptions::new().write(true).open(log)?;
            if file.metadata()?.len() > LONGEST_LOG { file.set_len(0) } else { Ok(()) }
        };
        if let Err(error) = cut() {
            tracing::warn!(%error, "what an agent prints is not looked at");
        }
    }
}

/// Tells the agent itself, which is the only child of what was started: process 1 of its namespace.
fn terminate(child: &Child) {
    let Some(parent) = child.id() else { return };
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let agents = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    for agent in agents {
        // it may have ended meanwhile
        let _ = kill_process(agent, Signal::TERM);
    }
}

fn described(status: ExitStatus, log: &Path) -> String {
    let last = last_words(log).filter(|_| !status.success()).map(|text| format!(": {text}")).unwrap_or_default();
    match status.code() {
        Some(code) => format!("exit code {code}{last}"),
        None => format!("it was killed{last}"),
    }
}

fn last_words(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(std::io::SeekFrom::Start(length.saturating_sub(LAST_WORDS))).ok()?;
    let mut text = Vec::new();
    file.take(LAST_WORDS).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}
