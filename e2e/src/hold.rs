//! The real hold of a job whose agents bring images, of a user of its own, with a connector that stays on this machine
//! or one that takes the nodes' links.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use vmdeploy::driver::oar::hold::HoldScript;

use crate::{
    agents::{Process, log},
    chain::Spread,
    nodes::Nodes,
    ssh::{OPTIONS, Ssh},
};

/// Number of the OAR job, as the hold is told.
const SLOT: &str = "7";
const PREFIX: &str = "3f2b8a10-";
/// The site's user.
const USER: u32 = 65534;
const CONNECTOR: &str = "#!/bin/sh\nshift; unset TAKTUK_HOSTNAME TAKTUK_POSITION; exec sh -c \"$*\"\n";
/// A hold that can have all nodes has them within this time.
const LIMIT: Duration = Duration::from_secs(60);

fn open_to_all(path: &Path) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

fn node(member: usize) -> String {
    format!("node-{member}")
}

/// The directory of a member's lease.
fn directory(spread: &Spread, member: usize) -> PathBuf {
    spread.node(member).join("leases").join(format!("{PREFIX}{SLOT}"))
}

/// A connector that runs everything on the other node, as the site's user; that one has the key.
fn over_links(spread: &Spread, ssh: &Ssh) -> Result<String> {
    let key = spread.path("hold-key");
    fs::copy(&ssh.key, &key)?;
    chown(&key, Some(USER), None)?;
    let address = |member: usize| format!("{}) host={} ;;", node(member), Nodes::address(member));
    let addresses: Vec<String> = (0..spread.count()).map(address).collect();
    // the login is root's: nobody has no shell
    Ok(format!(
        r#"#!/bin/sh
case $1 in {addresses} esac
shift
command=$(printf %s "$*" | sed "s/'/'\\\\''/g")
exec ssh {options} -i {key} "root@$host" \
  "cd / && exec setpriv --reuid={USER} --regid={USER} --clear-groups sh -c '$command'"
"#,
        addresses = addresses.join(" "),
        options = OPTIONS.join(" "),
        key = key.display()
    ))
}

/// Waits until every node has a holder at work.
fn holds_all(spread: &Spread) -> Result<()> {
    let begun = Instant::now();
    while !(0..spread.count()).all(|member| directory(spread, member).join("lock").exists()) {
        let said = || fs::read_to_string(spread.path("hold.log")).unwrap_or_default();
        ensure!(begun.elapsed() < LIMIT, "the hold does not have all nodes: {}", said());
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What the agent of a member is told of its lease.
pub(crate) fn lease(spread: &Spread, member: usize) -> Value {
    json!({
        "root": spread.node(member).join("leases"), "directory": format!("{PREFIX}{SLOT}"), "owner": USER,
        "armWithin": {"secs": 30, "nanos": 0}, "beatLimit": {"secs": 15, "nanos": 0},
    })
}

/// Starts a hold of all nodes, the first of which is its own, and makes the directories of their leases. By ssh it
/// takes the nodes' links, else none is in its way.
pub(crate) fn hold(spread: &Spread, ssh: Option<&Ssh>) -> Result<Process> {
    open_to_all(&spread.path(""))?;
    let nodes: Vec<String> = (0..spread.count()).map(node).collect();
    for member in 0..spread.count() {
        let directory = directory(spread, member);
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        fs::write(directory.join("nonce"), "nonce\n")?;
        chown(&directory, Some(USER), None)?;
    }
    let [connector, file, list] = ["connector", "hold", "nodefile"].map(|name| spread.path(name));
    fs::write(&connector, ssh.map_or_else(|| Ok(CONNECTOR.into()), |ssh| over_links(spread, ssh))?)?;
    open_to_all(&connector)?;
    let own = spread.path("hold-tmp");
    fs::create_dir_all(&own)?;
    chown(&own, Some(USER), None)?;
    fs::write(&list, nodes.join("\n"))?;
    let root = spread.node(0).join("leases");
    let script = HoldScript {
        lease_root: root.to_str().context("path")?,
        lease_prefix: PREFIX,
        connector: connector.to_str().context("path")?,
        beat: Duration::from_secs(2),
        agent_wait: Duration::from_secs(60),
        forgotten: Duration::from_secs(600),
        deployed: false,
        launcher: None,
        key_file: None,
        token_file: None,
        holds: 1,
        puts_images: true,
    };
    // every node's disk is another directory of this one
    let there = |dollar: &str| format!("{}/{dollar}TAKTUK_HOSTNAME/leases/{PREFIX}{SLOT}", spread.path("").display());
    let mut script = script.render()?;
    for (from, to) in
        [("d=$lease;", format!("d={};", there("\\$"))), ("[ $lease/in-", format!("[ {}/in-", there("\\$")))]
    {
        ensure!(script.contains(from), "the hold has no {from} any more");
        script = script.replace(from, &to);
    }
    fs::write(&file, script)?;
    let program = "setpriv";
    let mut command = if ssh.is_some() { spread.nodes.command(0, program) } else { Command::new(program) };
    command.args(["reuid", "regid"].map(|id| format!("--{id}={USER}"))).args(["--clear-groups", "dash"]).arg(&file);
    command.env("OAR_JOB_ID", SLOT).env("OAR_NODEFILE", &list).env("TMPDIR", own).current_dir("/");
    let hold = Process(command.stdout(Stdio::null()).stderr(log(&spread.path(""), "hold")?).spawn()?);
    if ssh.is_some() {
        holds_all(spread)?;
    }
    Ok(hold)
}
