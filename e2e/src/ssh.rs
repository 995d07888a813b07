//! sshd on nodes: each sees its own directory at the same path.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    agents::{Process, program},
    hosts::Hosts,
    nodes::Nodes,
};

const LIMIT: Duration = Duration::from_secs(20);
/// Options of ssh and scp.
pub const OPTIONS: [&str; 9] = [
    "-q",
    "-F",
    "none",
    "-o",
    "StrictHostKeyChecking=no",
    "-o",
    "UserKnownHostsFile=/dev/null",
    "-o",
    "LogLevel=ERROR",
];

/// One on each host; they end with this.
pub struct Ssh {
    /// The key that they let in.
    pub key: PathBuf,
    /// A command that takes a host and a command.
    pub shell: PathBuf,
    /// Where each host's file is, on all of them.
    pub source: PathBuf,
    _servers: Vec<Process>,
}

impl Ssh {
    /// Starts them.
    pub fn on(hosts: &Hosts) -> Result<Self> {
        Self::after(hosts, "")
    }

    /// Starts them where vmdeploy is not installed, home is empty, and so is `/var/tmp`.
    pub fn bare(hosts: &Hosts) -> Result<Self> {
        let program = program()?;
        let directory = program.parent().context("no directory")?.display();
        Self::after(hosts, &format!("for d in {directory} /var/tmp ~; do mount -t tmpfs none $d || exit; done; "))
    }

    fn after(hosts: &Hosts, first: &str) -> Result<Self> {
        let (key, shell, own) = (hosts.path("key"), hosts.path("ssh"), hosts.path("own"));
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status()?;
        ensure!(made.success(), "ssh-keygen failed");
        fs::create_dir(&own)?;
        fs::write(&shell, format!("#!/bin/sh\nexec ssh {} -i {} \"$@\"\n", OPTIONS.join(" "), key.display()))?;
        fs::set_permissions(&shell, fs::Permissions::from_mode(0o755))?;
        let server = format!(
            "{first}mount -t tmpfs none /run && mkdir /run/sshd && mount --bind \"$1\" {own} && exec /usr/sbin/sshd -D \
             -f /dev/null -h {key} -o AuthorizedKeysFile={key}.pub -o PermitRootLogin=yes -o StrictModes=no \
             -o UsePAM=no -o PidFile=none -o MaxStartups=100 -o 'Subsystem=sftp internal-sftp'",
            own = own.display(),
            key = key.display()
        );
        let mut servers = Vec::new();
        for node in 0..hosts.count() {
            let mut command = hosts.nodes.command(node, "unshare");
            command.args(["-m", "sh", "-c", &server, "sh"]).arg(hosts.path(hosts.nodes.name(node)));
            servers.push(Process(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?));
        }
        for node in 0..hosts.count() {
            hosts.nodes.on(hosts.count(), || answers(SocketAddr::new(Nodes::address(node).into(), 22)))??;
        }
        Ok(Self { key, shell, source: own.join("image"), _servers: servers })
    }
}

fn answers(server: SocketAddr) -> Result<()> {
    let begun = Instant::now();
    loop {
        match TcpStream::connect_timeout(&server, LIMIT) {
            Ok(_) => return Ok(()),
            Err(error) if begun.elapsed() >= LIMIT => return Err(error).context("no sshd"),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}
