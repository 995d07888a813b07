//! Files that may not be read, and places that may not be written to.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use anyhow::{Result, ensure};
use e2e::hosts::outcome;

use crate::{CHUNK, HOSTS, hosts};

/// What root may do, but for reading and writing whatever it wants.
const MORTAL: [&str; 3] =
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"];

#[ignore = "makes network namespaces: e2e/test --e2e"]
#[test]
fn what_is_not_permitted_is_said_of_that_file_alone() -> Result<()> {
    let world = hosts(HOSTS, None)?;
    let mortal = MORTAL.join(" ");
    world.shell("rsh", &format!("exec ip netns exec \"$host\" {mortal} env TMPDIR=\"$root/$host\" sh -c \"$*\""))?;
    let allow = |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    let here = |name: &str| world.path("dest").join(name).join("image");
    // 0 may not be read there, 1 may not be written here
    allow(world.source(0), 0o000)?;
    let closed = world.path("dest").join(world.nodes.name(1));
    fs::create_dir_all(&closed)?;
    allow(closed.clone(), 0o555)?;
    let mut words = world.words(CHUNK)?;
    let source = words.len() - 2;
    words[source] = words[source].replace("image", "*image");
    let gather = || world.nodes.command(HOSTS, MORTAL[0]).args(&MORTAL[1..]).args(&words).output();
    let output = gather()?;
    let first = outcome(&output)?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let reasons: BTreeMap<&str, &str> =
        first.missing.iter().map(|missing| (missing.host.as_str(), missing.reason.as_str())).collect();
    ensure!(reasons.len() == 2, "{reasons:?}");
    ensure!(reasons.get(world.nodes.name(0)) == Some(&"permission denied"), "{reasons:?}");
    let written = reasons.get(world.nodes.name(1)).copied().unwrap_or_default();
    ensure!(written.starts_with("failed to write it here: Permission denied"), "{reasons:?}");
    world.right_at(here, |node| node > 1)?;
    // once it is permitted, only those two are sent
    allow(world.source(0), 0o600)?;
    allow(closed, 0o755)?;
    let output = gather()?;
    let second = outcome(&output)?;
    ensure!(output.status.success() && second.earlier == first.stored, "{second:?}");
    world.right_at(here, |_| true)
}
