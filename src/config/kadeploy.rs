//! A site's deployment server. Names of headers and fields differ between its versions, so they are settings.

use std::{collections::BTreeMap, time::Duration};

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
    /// Where files of the server are on the web, for images that are made of its environments: what their addresses
    /// begin with, such as `server:///grid5000/`, and what stands there in its place, such as
    /// `https://files.example/grid5000/`. The longest beginning counts.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
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

/// What addresses of files on the server itself begin with.
pub const ON_SERVER: &str = "server:///";
/// What the names in their paths may hold besides letters and digits.
const NAMES: &[u8] = b"._+~@=,:-";

/// Whether a path leads straight down, and is one in an address of the web as it is on the server.
fn is_plain(path: &str) -> bool {
    path.split('/').all(|name| {
        !matches!(name, "" | "." | "..") && name.bytes().all(|b| b.is_ascii_alphanumeric() || NAMES.contains(&b))
    })
}

/// Whether an address is that of a directory of the web, without credentials.
fn is_web_directory(address: &str) -> bool {
    let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        let plain = rest.bytes().all(|b| b.is_ascii_graphic() && !b"?#@\\".contains(&b));
        plain && !rest.starts_with('/') && rest.ends_with('/')
    })
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
        super::check::authorities(&format!("{field}.ca"), self.ca.as_deref())?;
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
        self.check_files(&format!("{field}.files"))?;
        self.join.iter().try_for_each(|join| join.check(&format!("{field}.join")))?;
        super::check::within(&format!("{field}.wait"), self.wait.into(), WAIT)
    }

    fn check_files(&self, field: &str) -> Result<(), String> {
        let is_prefix = |prefix: &str| {
            let path = prefix.strip_prefix(ON_SERVER);
            path.is_some_and(|path| path.is_empty() || path.strip_suffix('/').is_some_and(is_plain))
        };
        self.files.iter().try_for_each(|(prefix, web)| {
            if !is_prefix(prefix) {
                return Err(format!(
                    "{field}: {prefix:?} must begin with {ON_SERVER} and end with /, with plain names between them"
                ));
            }
            if !is_web_directory(web) {
                // not what it is: there may be a password in it
                return Err(format!(
                    "{field}: what {prefix:?} is on the web must begin with http:// or https:// and end with /, and \
                     have no user, query or fragment"
                ));
            }
            Ok(())
        })
    }

    /// Where on the web a file of the server is, if that is said; or why it cannot be.
    pub fn on_web(&self, file: &str) -> Result<Option<String>, String> {
        let below = self.files.iter().filter_map(|(prefix, web)| Some((web, file.strip_prefix(prefix.as_str())?)));
        // what is left is shortest where the beginning is longest
        let Some((web, path)) = below.min_by_key(|(_, path)| path.len()) else { return Ok(None) };
        if !is_plain(path) {
            return Err("its path must be of names of letters, digits and ._+~@=,:- and none of them . or ..".into());
        }
        Ok(Some(format!("{web}{path}")))
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

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::below("server:///grid5000/images/x.tar.zst", Some("https://files.example/g5k/images/x.tar.zst"))]
    #[case::longest("server:///grid5000/old/x:1.tgz", Some("http://old.example/x:1.tgz"))]
    #[case::another_name("server:///grid5000-old/x.tgz", None)]
    #[case::elsewhere("server:///home/x.tgz", None)]
    #[case::on_the_web("https://grid5000/x.tgz", None)]
    #[case::upwards_elsewhere("server:///home/../grid5000/x.tgz", None)]
    fn files_are_where_the_longest_beginning_says(#[case] file: &str, #[case] web: Option<&str>) {
        assert_eq!(server().on_web(file), Ok(web.map(str::to_owned)));
    }

    #[rstest]
    #[case::upwards("server:///grid5000/../secret/x.tgz")]
    #[case::upwards_from_the_longest("server:///grid5000/old/../x.tgz")]
    #[case::at_the_end("server:///grid5000/images/..")]
    #[case::round_the_longest("server:///grid5000/./old/x.tgz")]
    #[case::twice("server:///grid5000//old/x.tgz")]
    #[case::coded("server:///grid5000/%2e%2e/x.tgz")]
    #[case::another_slash("server:///grid5000/..\\x.tgz")]
    #[case::query("server:///grid5000/x?y")]
    #[case::line("server:///grid5000/x\n.tgz")]
    #[case::directory("server:///grid5000/")]
    fn a_path_that_does_not_lead_straight_down_is_refused(#[case] file: &str) {
        assert!(server().on_web(file).unwrap_err().contains("none of them . or .."));
    }

    #[test]
    fn all_of_the_server_may_be_on_the_web() {
        let mut server = server();
        server.files = [(ON_SERVER.to_owned(), "https://files.example/".to_owned())].into();
        server.check("kadeploy").unwrap();
        assert_eq!(server.on_web("server:///a/b").unwrap().as_deref(), Some("https://files.example/a/b"));
    }

    fn server() -> KadeployConfig {
        let files = json!({
            "server:///grid5000/": "https://files.example/g5k/",
            "server:///grid5000/old/": "http://old.example/",
        });
        let server: KadeployConfig =
            serde_json::from_value(json!({"url": "http://kadeploy:25300", "files": files})).unwrap();
        server.check("kadeploy").unwrap();
        server
    }
}
