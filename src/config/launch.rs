//! Agents on a site's nodes that have no kubelet.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::check::repository_address;
use crate::driver::oar::hold::{CONNECTOR, check_text};

/// How agents are started in slots, for jobs with `launcher: TakTuk`. What they use must be on the nodes: QEMU and what
/// else the agents' image has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LaunchConfig {
    /// Runs vmdeploy as root on a node, for the site's user, for example `sudo -n /opt/vmdeploy/vmdeploy`. Its
    /// arguments are appended.
    pub command: String,
    /// TCP port of the launchers on the nodes.
    #[serde(default = "port")]
    pub port: u16,
    /// File of each site's user with the account's launch key; below the home directory, unless it begins with a slash.
    #[serde(default = "key_file")]
    pub key_file: String,
    /// Secret of the operator's namespace with the launch keys of the accounts that this configuration gives, by user.
    /// Jobs that name credentials bring theirs there, as `launchKey`.
    #[serde(default)]
    pub secret: Option<String>,
    /// `host:port` of the repository as these nodes reach it, where it is another than the cluster's.
    #[serde(default)]
    pub repository: Option<String>,
    /// Addresses of hosts whose names the operator cannot resolve.
    #[serde(default)]
    pub addresses: BTreeMap<String, IpAddr>,
}

fn port() -> u16 {
    17699
}
pub(super) fn key_file() -> String {
    ".vmdeploy-launch-key".into()
}

/// Checks where launch keys are: the file of the site's users, and the Secret.
pub(super) fn check_key(field: &str, file: &str, secret: Option<&str>) -> Result<(), String> {
    check_text("keyFile", file, "._/-").map_err(|error| format!("{field}.keyFile: {error}"))?;
    if secret.is_some_and(str::is_empty) {
        return Err(format!("{field}.secret must name a Secret"));
    }
    Ok(())
}

impl LaunchConfig {
    pub(super) fn check(&self, field: &str) -> Result<(), String> {
        check_text("command", &self.command, CONNECTOR).map_err(|error| format!("{field}.command: {error}"))?;
        check_key(field, &self.key_file, self.secret.as_deref())?;
        if self.port < 1024 {
            return Err(format!("{field}.port must be from 1024 to 65535, not {}", self.port));
        }
        self.repository.iter().try_for_each(|text| repository_address(&format!("{field}.repository"), text))
    }
}
