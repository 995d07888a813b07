//! What Debian has to copy a file from each of many hosts to here.

use std::{process::Command, thread, time::Instant};

use anyhow::{Result, anyhow};
use e2e::{
    Nodes,
    hosts::Hosts,
    ssh::{OPTIONS, Ssh},
};

use super::run;
use crate::report::install_packages;

/// A rival.
pub(super) struct Rival {
    pub(super) name: &'static str,
    pub(super) metric: &'static str,
    pub(super) goal: Option<f64>,
    /// When each host was free.
    pub(super) run: fn(&Hosts, &Ssh) -> Result<Vec<f64>>,
}

pub(super) const ALL: [Rival; 4] = [
    Rival { name: "scp, all at once", metric: "t80_scp_vs_ours", goal: Some(7.0), run: at_once },
    Rival { name: "scp, one by one", metric: "t80_scp_in_turn_vs_ours", goal: None, run: in_turn },
    Rival { name: "kaget", metric: "t80_kaget_vs_ours", goal: Some(8.0), run: kaget },
    Rival { name: "taktuk get", metric: "t80_taktuk_vs_ours", goal: None, run: taktuk },
];

pub(super) fn install() -> Result<()> {
    let needed =
        [("kaget", "kanif"), ("taktuk", "taktuk"), ("scp", "openssh-client"), ("/usr/sbin/sshd", "openssh-server")];
    install_packages(&needed)
}

fn scp(hosts: &Hosts, ssh: &Ssh, node: usize) -> Command {
    let mut command = hosts.nodes.command(hosts.count(), "scp");
    command.args(OPTIONS).arg("-i").arg(&ssh.key);
    command.arg(format!("root@{}:{}", Nodes::address(node), ssh.source.display()));
    command.arg(hosts.path("dest").join(hosts.nodes.name(node)));
    command
}

fn at_once(hosts: &Hosts, ssh: &Ssh) -> Result<Vec<f64>> {
    let begun = Instant::now();
    thread::scope(|scope| {
        let copies: Vec<_> = (0..hosts.count())
            .map(|node| {
                scope.spawn(move || {
                    run(&mut scp(hosts, ssh, node))?;
                    Ok(begun.elapsed().as_secs_f64())
                })
            })
            .collect();
        copies.into_iter().map(|copy| copy.join().map_err(|_| anyhow!("a copy panicked"))?).collect()
    })
}

fn in_turn(hosts: &Hosts, ssh: &Ssh) -> Result<Vec<f64>> {
    let begun = Instant::now();
    let copies = (0..hosts.count()).map(|node| {
        run(&mut scp(hosts, ssh, node))?;
        Ok(begun.elapsed().as_secs_f64())
    });
    copies.collect()
}

/// It says nothing before its end: until then no host is known to be free.
fn to_its_end(hosts: &Hosts, command: &mut Command) -> Result<Vec<f64>> {
    let begun = Instant::now();
    run(command)?;
    Ok(vec![begun.elapsed().as_secs_f64(); hosts.count()])
}

fn addresses(hosts: &Hosts) -> Vec<String> {
    (0..hosts.count()).map(|node| Nodes::address(node).to_string()).collect()
}

fn kaget(hosts: &Hosts, ssh: &Ssh) -> Result<Vec<f64>> {
    let mut command = hosts.nodes.command(hosts.count(), "kaget");
    command.arg("-r").arg(&ssh.shell).args(["-n", &addresses(hosts).join(",")]);
    command.arg(&ssh.source).arg(format!("{}/", hosts.path("dest").display()));
    to_its_end(hosts, &mut command)
}

fn taktuk(hosts: &Hosts, ssh: &Ssh) -> Result<Vec<f64>> {
    let mut command = hosts.nodes.command(hosts.count(), "taktuk");
    command.arg("-c").arg(&ssh.shell);
    for address in addresses(hosts) {
        command.args(["-m", &address]);
    }
    let (source, dest) = (ssh.source.display().to_string(), format!("{}/$rank", hosts.path("dest").display()));
    command.args(["broadcast", "get", "[", &source, "]", "[", &dest, "]"]);
    to_its_end(hosts, &mut command)
}
