//! The real hold of a job whose agents bring images, of a user of its own, with a connector that stays on this machine.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use vmdeploy::driver::oar::hold::HoldScript;

use crate::{
    agents::{Process, log},
    chain::Spread,
};

/// Number of the OAR job, as the hold is told.
const SLOT: &str = "7";
const PREFIX: &str = "3f2b8a10-";
/// The site's user.
const USER: u32 = 65534;
const CONNECTOR: &str = "#!/bin/sh\nshift; unset TAKTUK_HOSTNAME TAKTUK_POSITION; exec sh -c \"$*\"\n";

fn open_to_all(path: &Path) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

fn node(member: usize) -> String {
    format!("node-{member}")
}

/// What the agent of a member is told of its lease.
pub(crate) fn lease(spread: &Spread, member: usize) -> Value {
    json!({
        "root": spread.node(member).join("leases"), "directory": format!("{PREFIX}{SLOT}"), "owner": USER,
        "armWithin": {"secs": 30, "nanos": 0}, "beatLimit": {"secs": 15, "nanos": 0},
    })
}

/// Starts a hold of all nodes, the first of which is its own, and makes the directories of their leases.
pub(crate) fn hold(spread: &Spread) -> Result<Process> {
    open_to_all(&spread.path(""))?;
    let nodes: Vec<String> = (0..spread.count()).map(node).collect();
    for member in 0..spread.count() {
        let directory = spread.node(member).join("leases").join(format!("{PREFIX}{SLOT}"));
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        fs::write(directory.join("nonce"), "nonce\n")?;
        chown(&directory, Some(USER), None)?;
    }
    let [connector, file, list] = ["connector", "hold", "nodefile"].map(|name| spread.path(name));
    fs::write(&connector, CONNECTOR)?;
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
    let mut command = Command::new("dash");
    command.arg(&file).env("OAR_JOB_ID", SLOT).env("OAR_NODEFILE", &list).env("TMPDIR", own);
    command.uid(USER).gid(USER).current_dir("/");
    Ok(Process(command.stderr(log(&spread.path(""), "hold")?).spawn()?))
}
