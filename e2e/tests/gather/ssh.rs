//! Through a real ssh, and to hosts that have nothing of vmdeploy.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    hosts::{Hosts, outcome},
    nodes::Nodes,
    ssh::Ssh,
};

use crate::{CHUNK, hosts};

/// A configuration by which every host is known, but one; and no key is right for another.
fn configure(world: &Hosts, ssh: &Ssh, unknown: Option<usize>, refused: Option<usize>) -> Result<()> {
    let (key, known) = (ssh.key.display(), world.path("known"));
    let public = fs::read_to_string(ssh.key.with_extension("pub"))?;
    let other = world.path("other");
    if !other.exists() {
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&other).status()?;
        ensure!(made.success(), "ssh-keygen failed");
    }
    let (mut config, mut keys) = (String::new(), String::new());
    for node in 0..world.count() {
        let address = Nodes::address(node);
        let identity = if refused == Some(node) { other.display().to_string() } else { key.to_string() };
        writeln!(config, "Host {}\n HostName {address}\n IdentityFile {identity}", world.nodes.name(node))?;
        if unknown != Some(node) {
            write!(keys, "{address} {public}")?;
        }
    }
    writeln!(config, "Host *\n User root\n IdentitiesOnly yes\n UserKnownHostsFile {}", known.display())?;
    fs::write(known, keys)?;
    fs::write(world.path("config"), config)?;
    world.shell("rsh", "exec ssh -F $root/config -o BatchMode=yes -o ConnectTimeout=10 \"$host\" \"$*\"")
}

fn gather(world: &Hosts, ssh: &Ssh, more: &str) -> Result<Output> {
    let mut words = world.words(&format!("{CHUNK} {more}"))?;
    let source = words.len() - 2;
    words[source] = ssh.source.display().to_string();
    let mut command = world.nodes.command(world.count(), &words[0]);
    Ok(command.args(&words[1..]).stdin(Stdio::null()).output()?)
}

/// What a host has in the places that were empty, and what runs there besides sshd.
fn left(world: &Hosts, node: usize) -> Result<Vec<String>> {
    let name = world.nodes.name(node);
    let find = ["find /var/tmp ~ -mindepth 1"];
    let output = world.nodes.command(world.count(), world.path("rsh")).arg(name).args(find).output()?;
    ensure!(output.status.success(), "{output:?}");
    let mut left: Vec<String> = String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect();
    let pids = Command::new("ip").args(["netns", "pids", name]).output()?.stdout;
    for pid in String::from_utf8(pids)?.split_whitespace() {
        // one may have ended meanwhile
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
        left.extend(Some(line).filter(|line| line.contains("kget node")));
    }
    Ok(left)
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn through_ssh_nothing_is_installed_and_nothing_is_left() -> Result<()> {
    let world = hosts(4, None)?;
    let ssh = Ssh::bare(&world)?;
    configure(&world, &ssh, None, None)?;
    let output = gather(&world, &ssh, "")?;
    let outcome = outcome(&output)?;
    ensure!(output.status.success() && outcome.missing.is_empty(), "{output:?}");
    world.right(|_| true)?;
    for node in 0..4 {
        let left = left(&world, node)?;
        ensure!(left.is_empty(), "left on a host: {left:?}");
    }
    Ok(())
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn hosts_that_ssh_does_not_reach_are_named_and_the_others_are_gathered() -> Result<()> {
    let world = hosts(4, None)?;
    let ssh = Ssh::bare(&world)?;
    configure(&world, &ssh, Some(1), Some(2))?;
    let output = gather(&world, &ssh, "")?;
    let outcome = outcome(&output)?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let reasons: BTreeMap<&str, &str> =
        outcome.missing.iter().map(|missing| (missing.host.as_str(), missing.reason.as_str())).collect();
    let expected = [(1, "Host key verification failed. (connect"), (2, "Permission denied (publickey")];
    ensure!(reasons.len() == expected.len(), "{reasons:?}");
    for (node, expected) in expected {
        let reason = reasons.get(world.nodes.name(node)).copied().unwrap_or_default();
        ensure!(reason.contains(expected), "{reasons:?}");
    }
    // once they let it in, only theirs are sent
    let first = outcome.stored;
    configure(&world, &ssh, None, None)?;
    let output = gather(&world, &ssh, "")?;
    let outcome = self::outcome(&output)?;
    ensure!(output.status.success() && outcome.earlier == first, "{output:?}");
    world.right(|_| true)
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn through_taktuk_a_host_that_does_not_answer_holds_up_nobody() -> Result<()> {
    let world = hosts(8, None)?;
    let ssh = Ssh::bare(&world)?;
    configure(&world, &ssh, None, Some(2))?;
    let config = fs::read_to_string(world.path("config"))?;
    // nobody has this address
    let silent = config.replace(&format!("HostName {}\n", Nodes::address(5)), "HostName 192.0.2.200\n");
    ensure!(silent != config, "{config}");
    fs::write(world.path("config"), silent)?;
    let output = gather(&world, &ssh, "--taktuk")?;
    let first = outcome(&output)?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let reasons: BTreeMap<&str, &str> =
        first.missing.iter().map(|missing| (missing.host.as_str(), missing.reason.as_str())).collect();
    let expected = [(2, "Permission denied (publickey"), (5, "192.0.2.200 port 22")];
    ensure!(reasons.len() == expected.len(), "{reasons:?}");
    for (node, expected) in expected {
        let reason = reasons.get(world.nodes.name(node)).copied().unwrap_or_default();
        ensure!(reason.starts_with("TakTuk does not reach it: ") && reason.contains(expected), "{reasons:?}");
    }
    world.right(|node| node != 2 && node != 5)?;
    configure(&world, &ssh, None, None)?;
    let output = gather(&world, &ssh, "--taktuk")?;
    let second = outcome(&output)?;
    ensure!(output.status.success() && second.earlier == first.stored, "{second:?}");
    world.right(|_| true)?;
    for node in 0..8 {
        let left = left(&world, node)?;
        ensure!(left.is_empty(), "left on a host: {left:?}");
    }
    Ok(())
}

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn nodes_without_the_binary_get_it_from_each_other() -> Result<()> {
    let world = hosts(4, None)?;
    // nothing is at the path where it is here
    world.shell(
        "rsh",
        "exec ip netns exec \"$host\" env TMPDIR=\"$root/$host\" \
         sh -c \"$(printf %s \"$*\" | sed \"s:p='[^;]*;:p=;:\")\"",
    )?;
    let output = world.command(CHUNK)?.output()?;
    ensure!(output.status.success(), "{output:?}");
    world.right(|_| true)?;
    for node in 0..4 {
        let directory = world.source(node).parent().map(fs::read_dir).context("no directory")??;
        let found: Vec<_> = directory.collect::<Result<_, _>>()?;
        ensure!(found.len() == 1, "left on a host: {found:?}");
    }
    Ok(())
}
