//! A site's deployment server. Names of headers and fields differ between its versions, so they are settings.

use std::time::Duration;

use kube::core::Duration as Length;
use serde::{Deserialize, Serialize};

use super::JoinConfig;
use crate::driver::{
    kadeploy::{KadeployError, names},
    oar::hold::{CONNECTOR, check_text},
};

/// Where a site's nodes are deployed. The account is the one of the slots: a user by a header that the server trusts
/// from the operator's address, a user with a password, or a client certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KadeployConfig {
    /// Base address of its REST API, for example `https://kadeploy.example:25300`; with flavour g5k of the site in the
    /// API, for example `https://api.example/3.0/sites/rennes`.
    pub url: String,
    /// Which API it has.
    #[serde(default)]
    pub flavour: Flavour,
    /// Certificate authorities of the server, PEM; the system's if absent.
    #[serde(default)]
    pub ca: Option<String>,
    /// The server's certificate itself, `sha256:` and the digest of its DER form: for the one that it makes for itself,
    /// which no authority has signed.
    #[serde(default)]
    pub pin: Option<String>,
    /// What the names of its own headers begin with; it tells at `/auth_headers_prefix`.
    #[serde(default = "header_prefix")]
    pub header_prefix: String,
    /// The partition that environments are put on, where it is not the server's default.
    #[serde(default)]
    pub partition: Option<String>,
    /// What the server calls that in a request: `deploy_partition`, or `deploy_part` where it is newer.
    #[serde(default = "partition_field")]
    pub partition_field: String,
    /// The disk that environments are put on, where it is not the server's default.
    #[serde(default)]
    pub block_device: Option<String>,
    /// Address of a file with ssh keys, as the server fetches it, for root of the nodes; `{user}` in it stands for the
    /// account's user. One of them must be that of the user's own ssh on the frontend: by it the hold of a slot reaches
    /// its nodes.
    #[serde(default)]
    pub keys: Option<String>,
    /// How the hold of a slot reaches nodes that were deployed, from the frontend.
    #[serde(default = "connector")]
    pub connector: String,
    /// Numeric id, on nodes that were deployed, of the user that the connector logs in as: who owns the lease there.
    #[serde(default)]
    pub lease_owner: u32,
    /// How the nodes come to join the cluster. Without it that is the environment's own affair.
    #[serde(default)]
    pub join: Option<JoinConfig>,
    /// A slot on whose nodes the environment does not run within this time is given back.
    #[serde(default = "wait")]
    pub wait: Length,
}

/// Which API a deployment server has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// Kadeploy's own.
    #[default]
    Native,
    /// That of Grid'5000 in front of it. It was written from public descriptions and never called.
    G5k,
}

fn header_prefix() -> String {
    "X-Kadeploy-".into()
}
fn partition_field() -> String {
    "deploy_partition".into()
}
fn connector() -> String {
    // the nodes have new host keys each time
    let options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"];
    let watched = ["ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3"];
    let options: Vec<String> = options.iter().chain(&watched).map(|option| format!("-o {option}")).collect();
    format!("ssh -l root {}", options.join(" "))
}
fn wait() -> Length {
    Duration::from_secs(1800).into()
}

/// Shortest and longest times for deployments.
const WAIT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(24 * 3600));

impl KadeployConfig {
    /// What must be right before anything is asked of the server.
    pub(super) fn check(&self, field: &str) -> Result<(), String> {
        if !(self.url.starts_with("http://") || self.url.starts_with("https://")) {
            return Err(format!("{field}.url must begin with http:// or https://, not {:?}", self.url));
        }
        if self.url.contains(['?', '#', '@']) {
            return Err(format!("{field}.url must have no user, query or fragment, not {:?}", self.url));
        }
        if self.pin.is_some() && self.ca.is_some() {
            return Err(format!("{field} takes ca or pin, not both"));
        }
        if self.pin.is_some() && !self.url.starts_with("https://") {
            return Err(format!("{field}.pin is of an https server, and the url is {:?}", self.url));
        }
        if self.pin.as_deref().is_some_and(|pin| digest(pin).is_none()) {
            return Err(format!("{field}.pin must be sha256: and 64 hexadecimal digits"));
        }
        let token = |text: &str, more: &[u8]| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
        };
        if !token(&self.header_prefix, b"-") {
            return Err(format!("{field}.headerPrefix may hold letters, digits and -, not {:?}", self.header_prefix));
        }
        // the server runs two of its fields, timeouts, as a program
        if !token(&self.partition_field, b"_") || self.partition_field.contains("timeout") {
            return Err(format!(
                "{field}.partitionField must be the name of the field with the partition, not {:?}",
                self.partition_field
            ));
        }
        for (name, value) in [("partition", &self.partition), ("blockDevice", &self.block_device)] {
            if value.as_deref().is_some_and(|value| !token(value, b"._-/")) {
                return Err(format!("{field}.{name} may hold letters, digits and ._-/, not {value:?}"));
            }
        }
        check_text("connector", &self.connector, CONNECTOR).map_err(|error| format!("{field}.connector: {error}"))?;
        let keys = self.keys.iter().map(|keys| keys.replace(USER, "user"));
        keys.into_iter().try_for_each(|keys| {
            names::address("the address of the ssh keys", &keys).map_err(|error| match error {
                KadeployError::Refused(why) => format!("{field}.keys: {why}"),
                other => format!("{field}.keys: {other}"),
            })
        })?;
        self.join.iter().try_for_each(|join| join.check(&format!("{field}.join")))?;
        super::check::within(&format!("{field}.wait"), self.wait.into(), WAIT)
    }

    /// The address of the ssh keys for an account's user.
    pub fn keys_of(&self, user: &str) -> Option<String> {
        self.keys.as_ref().map(|keys| keys.replace(USER, user))
    }
}

/// What stands for the account's user in `keys`.
const USER: &str = "{user}";

/// The bytes of a digest that is written as `pin` is.
pub fn digest(pin: &str) -> Option<[u8; 32]> {
    let digits = pin.strip_prefix("sha256:").filter(|d| d.len() == 64 && d.bytes().all(|b| b.is_ascii_hexdigit()))?;
    let mut bytes = [0; 32];
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// The user that a client certificate of the site speaks for: the only one the site has.
pub fn certificate_user(site: &super::SiteConfig) -> Result<&str, String> {
    let mut all = site.uids.keys();
    match (all.next(), all.next()) {
        (Some(only), None) => names::user(only).map(|()| only.as_str()).map_err(|error| error.to_string()),
        _ => Err("with a client certificate the site's uids must name exactly one user".into()),
    }
}
