//! sshd on nodes: each sees its own directory at the same path.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    agents::{Process, program},
    chain::Spread,
    hosts::Hosts,
    nodes::Nodes,
};

const LIMIT: Duration = Duration::from_secs(60);
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
    /// Where each host's file is, or comes to, on all of them.
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
        let directories: Vec<PathBuf> = (0..hosts.count()).map(|node| hosts.path(hosts.nodes.name(node))).collect();
        Self::serve(&hosts.nodes, &directories, &hosts.path(""), first)
    }

    /// Starts one on each node that is to have an image.
    pub fn to(spread: &Spread) -> Result<Self> {
        let directories: Vec<PathBuf> = (0..spread.count()).map(|node| spread.node(node)).collect();
        Self::serve(&spread.nodes, &directories, &spread.path(""), "")
    }

    /// One on each of the nodes that has a directory; they are reached from the one behind them.
    fn serve(nodes: &Nodes, directories: &[PathBuf], root: &Path, first: &str) -> Result<Self> {
        let (key, shell, own) = (root.join("key"), root.join("ssh"), root.join("own"));
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
        for (node, directory) in directories.iter().enumerate() {
            let mut command = nodes.command(node, "unshare");
            command.args(["-m", "sh", "-c", &server, "sh"]).arg(directory);
            servers.push(Process(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?));
        }
        for node in 0..directories.len() {
            nodes.on(directories.len(), || answers(SocketAddr::new(Nodes::address(node).into(), 22)))??;
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
