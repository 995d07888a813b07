//! QEMU as a process: without privileges, in a world of its own, dead when we are.

use std::{
    ffi::OsString,
    fs::File,
    os::fd::OwnedFd,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::process::Pid;
use tokio::process::{Child, Command};

use super::{
    QemuError,
    cmdline::{TAP_FD, VmDefinition, arguments, sockets},
    priority::Threads,
    qmp::{Qmp, QmpError},
};

/// User and group QEMU runs as. No account needs to have the number.
pub const UID: u32 = 64055;
/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// QEMU opens its sockets within this time.
const START_LIMIT: Duration = Duration::from_secs(30);
/// A killed QEMU is gone within this time.
const END_LIMIT: Duration = Duration::from_secs(5);

/// The words before QEMU's own, if we have the privileges to take them away from it.
///
/// It gets its own view of processes and mounts, so that the one capability it keeps reaches nobody:
/// `CAP_SYS_PTRACE`, without which the kernel gives it no write-protection of its own memory, and
/// that is what a background snapshot is made with.
fn confinement() -> Vec<OsString> {
    if !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    let keep = "-all,+sys_ptrace";
    [
        "unshare".to_owned(),
        "--mount".into(),
        "--pid".into(),
        "--fork".into(),
        "--mount-proc".into(),
        "--".into(),
        "setpriv".into(),
        // after the change of user, which forgets an earlier one
        "--pdeathsig=KILL".into(),
        format!("--reuid={UID}"),
        format!("--regid={UID}"),
        "--clear-groups".into(),
        "--no-new-privs".into(),
        format!("--inh-caps={keep}"),
        format!("--ambient-caps={keep}"),
        format!("--bounding-set={keep}"),
        "--".into(),
    ]
    .map(OsString::from)
    .to_vec()
}

/// Lets QEMU, and nobody else but root, use a file or directory.
pub fn give(path: &Path) -> Result<(), QemuError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(UID), Some(UID))
        .map_err(QemuError::io(format!("give {} to QEMU", path.display())))
}

/// Lets QEMU read a file or pass through a directory by its group, and nobody else.
pub fn show(file: &File) -> std::io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    std::os::unix::fs::fchown(file, None, Some(UID))
}

/// A running QEMU.
pub struct Qemu {
    child: Child,
    /// Its control channel.
    pub qmp: std::sync::Arc<Qmp>,
    /// Its threads, as long as it runs.
    pub threads: Option<Threads>,
}

impl Qemu {
    /// Starts QEMU; what it says goes to the file `log`. The guest stands still.
    /// `tap` is the other end of the guest's card in the job's network.
    pub async fn start(vm: &VmDefinition, log: &Path, tap: Option<OwnedFd>) -> Result<Self, QemuError> {
        let output = File::create(log).map_err(QemuError::io(format!("make {}", log.display())))?;
        let both = output.try_clone().map_err(QemuError::io("share the log"))?;
        let mut words = confinement();
        words.push(PROGRAM.into());
        words.extend(arguments(vm));
        let mut command = Command::new(&words[0]);
        if let Some(tap) = tap {
            // our own copy is closed with the command: the tap is gone with QEMU
            let tap = vec![FdMapping { parent_fd: tap, child_fd: TAP_FD }];
            let taken = |error: command_fds::FdMappingCollision| std::io::Error::other(error);
            command.fd_mappings(tap).map_err(taken).map_err(QemuError::io("hand over the tap"))?;
        }
        let mut child = command
            .args(&words[1..])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(both)
            .kill_on_drop(true)
            .spawn()
            .map_err(QemuError::io("start QEMU"))?;
        let socket = vm.sockets.join(sockets::QMP);
        let until = Instant::now() + START_LIMIT;
        loop {
            if let Ok(qmp) = Qmp::connect(&socket).await {
                let own = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
                let inner = child.id().into_iter().flat_map(children).next();
                let threads = inner.or(own).map(Threads::of);
                if let Some(threads) = threads {
                    threads.processors_give_way();
                }
                return Ok(Self { child, qmp: std::sync::Arc::new(qmp), threads });
            }
            if child.try_wait().map_err(QemuError::io("wait for QEMU"))?.is_some() {
                return Err(QemuError::Program { program: PROGRAM, message: last_words(log) });
            }
            if Instant::now() > until {
                return Err(QmpError::Late("start".into()).into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for its end.
    pub async fn ended(&mut self) {
        // an error means that there is no such child any more
        let _ = self.child.wait().await;
    }

    /// Kills it and waits until it is gone.
    pub async fn kill(&mut self) {
        // confined, our child only waits for QEMU: killed alone, it would be gone first
        let inner: Vec<_> = self.child.id().into_iter().flat_map(children).collect();
        for pid in &inner {
            // gone by itself, otherwise
            let _ = rustix::process::kill_process(*pid, rustix::process::Signal::KILL);
        }
        if inner.is_empty() || tokio::time::timeout(END_LIMIT, self.child.wait()).await.is_err() {
            // fails only if it has ended
            let _ = self.child.kill().await;
        }
    }
}

/// The processes a process has started. QEMU itself starts none.
fn children(pid: u32) -> Vec<Pid> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// The end of what QEMU has said.
pub fn last_words(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(500)..]).trim().to_owned();
    if text.is_empty() { "it ended without a word".into() } else { text }
}
