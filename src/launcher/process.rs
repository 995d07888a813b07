//! One agent: process 1 of a process namespace, whose end is the end of all in it. What it is told is in memory that
//! only this namespace has, and goes with it.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
    sync::watch,
    time::{sleep, timeout},
};

use crate::driver::{launcher::LaunchOrder, qemu::process::show};

/// Runs in the namespaces. The files come as an archive on standard input.
const BEGIN: &str =
    "mount -t tmpfs -o mode=700,size=16m vmdeploy \"$1\" && tar -xf - -C \"$1\" && shift && exec \"$@\" < /dev/null";
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
/// Time between two looks at a process that begins or ends.
const PACE: Duration = Duration::from_millis(10);

/// What is wanted of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Run,
    End,
    Kill,
}

/// Starts an agent that runs as `program`, with its files in a new directory. It dies with this thread.
pub(super) fn begin(
    program: &Path,
    node_dir: &Path,
    directory: &Path,
    order: &LaunchOrder,
) -> anyhow::Result<(Child, Vec<u8>)> {
    let (config, vm) = (directory.join("config"), directory.join("vm"));
    // QEMU, which is another user there, passes through, and nobody else
    DirBuilder::new().mode(0o710).create(directory).context("failed to make the agent's directory")?;
    show(&File::open(directory)?)?;
    DirBuilder::new().mode(0o700).create(&config)?;
    DirBuilder::new().mode(0o755).create(&vm)?;
    let told = archive(&order.files).context("failed to pack what the agent is told")?;
    let log = OpenOptions::new().append(true).create_new(true).mode(0o600).open(directory.join(LOG))?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"]);
    command.args(["sh", "-c", BEGIN, "sh"]).arg(&config).arg(program).arg("agent");
    command.arg("--config").arg(&config).arg("--node-dir").arg(node_dir).arg("--vm-dir").arg(vm);
    command.env("RUST_LOG", &order.log).stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
    let child = command.kill_on_drop(true).spawn().context("failed to run setpriv (package util-linux)")?;
    Ok((child, told))
}

fn archive(files: &BTreeMap<String, String>) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o400);
        archive.append_data(&mut header, name, text.as_bytes())?;
    }
    archive.into_inner()
}

/// Tells an agent, waits for its end, and brings that about when it is wanted. How it has ended: nothing of it is left.
pub(super) async fn attend(
    mut child: Child,
    told: Vec<u8>,
    mut wishes: watch::Receiver<Wish>,
    directory: &Path,
) -> String {
    if let Some(mut input) = child.stdin.take() {
        tokio::spawn(async move {
            // one that does not read it ends, and says why
            let _ = input.write_all(&told).await;
        });
    }
    let (first, log) = (First::of(&mut child).await, directory.join(LOG));
    let signal = |signal: Signal| first.as_ref().map(|first| kill_process(first.pid, signal));
    let ended = tokio::select! {
        status = child.wait() => Some(status),
        _ = wishes.wait_for(|wish| *wish != Wish::Run) => None,
        never = keep_short(&log) => match never {},
    };
    let status = match ended {
        Some(status) => status,
        None => {
            signal(Signal::TERM);
            // nobody is left to tell where this fails
            let killed = async { timeout(TERMINATION, wishes.wait_for(|wish| *wish == Wish::Kill)).await.is_ok() };
            let ended = tokio::select! {
                status = child.wait() => Some(status),
                _ = killed => None,
            };
            match ended {
                Some(status) => status,
                None => {
                    // its parent ends when nothing is left in the namespace
                    if signal(Signal::KILL).is_none() {
                        let _ = child.start_kill();
                    }
                    child.wait().await
                }
            }
        }
    };
    // the parent was killed itself, and process 1 with it: that takes a moment
    while first.as_ref().is_some_and(First::is_there) {
        sleep(PACE).await;
    }
    match status {
        Ok(status) => described(status, &log),
        Err(error) => format!("its end was not seen: {error}"),
    }
}

/// Process 1 of a namespace, as it is seen from outside.
struct First {
    pid: Pid,
    born: String,
}

impl First {
    /// The only child of what was started.
    async fn of(child: &mut Child) -> Option<Self> {
        let parent = child.id()?;
        loop {
            let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
            let pid = children.split_whitespace().next().and_then(|pid| Pid::from_raw(pid.parse().ok()?));
            if let Some(pid) = pid
                && let Some(born) = born(pid)
            {
                return Some(Self { pid, born });
            }
            if !matches!(child.try_wait(), Ok(None)) {
                return None;
            }
            sleep(PACE).await;
        }
    }

    fn is_there(&self) -> bool {
        born(self.pid).is_some_and(|born| born == self.born)
    }
}

/// When a process was started, in the kernel's own words; none of one that has gone.
fn born(pid: Pid) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // the name before it may hold anything; field 22, of which 3 is the first one after the name
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
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
    file.seek(io::SeekFrom::Start(length.saturating_sub(LAST_WORDS))).ok()?;
    let mut text = Vec::new();
    file.take(LAST_WORDS).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}
