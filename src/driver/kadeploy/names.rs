//! Names that go to a deployment server: what they may hold, and why one is refused. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::KadeployError;
use crate::names::NodeName;

/// Longest name of a user that the server stores.
const USER: usize = 16;
/// Longest name of an environment or a host.
const NAME: usize = 255;
/// Longest address.
const ADDRESS: usize = 2048;

/// An environment that the server has recorded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EnvironmentName {
    /// Its name.
    pub name: String,
    /// Whose it is; the account's own or a public one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its version; the newest if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

impl EnvironmentName {
    /// The newest version of a name, the account's own or public.
    pub fn newest(name: &str) -> Self {
        Self { name: name.into(), user: None, version: None }
    }

    /// Whether it may be sent.
    pub fn check(&self) -> Result<(), KadeployError> {
        named("environment", &self.name, NAME)?;
        self.user.iter().try_for_each(|user| named("environment's user", user, USER))
    }
}

impl fmt::Display for EnvironmentName {
    /// As people write it: `name:version@user`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.version.iter().try_for_each(|version| write!(f, ":{version}"))?;
        self.user.iter().try_for_each(|user| write!(f, "@{user}"))
    }
}

/// A node's name may be sent: one host, never a range of them.
pub(super) fn node(node: &NodeName) -> Result<(), KadeployError> {
    host(&node.0)
}

/// A host's name.
pub(super) fn host(name: &str) -> Result<(), KadeployError> {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if name.len() <= NAME && name.split('.').all(part) {
        return Ok(());
    }
    Err(KadeployError::Refused(format!("{name:?} is no name of a host: it may hold letters, digits, - and .")))
}

/// A user of the server.
pub fn user(name: &str) -> Result<(), KadeployError> {
    named("user", name, USER)
}

/// The address of a file that the server fetches itself.
pub fn address(what: &str, address: &str) -> Result<(), KadeployError> {
    let known = ["http://", "https://", "server:///"].iter().any(|scheme| address.starts_with(scheme));
    let plain = address.len() <= ADDRESS && address.bytes().all(|b| b.is_ascii_graphic());
    if known && plain {
        return Ok(());
    }
    Err(KadeployError::Refused(format!(
        "{what} must be an address that the deployment server can fetch (http://, https:// or server:///), not {address:?}"
    )))
}

fn named(what: &str, name: &str, longest: usize) -> Result<(), KadeployError> {
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b));
    if starts && plain && name.len() <= longest {
        return Ok(());
    }
    Err(KadeployError::Refused(format!(
        "{what} {name:?} must begin with a letter or digit, may hold letters, digits and ._-+, and have up to {longest} characters"
    )))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("debian12-min", None, true)]
    #[case("g++_1.0", Some("alice"), true)]
    #[case("", None, false)]
    #[case("-hv", None, false)]
    #[case("hv?name=x", None, false)]
    #[case("hv/../x", None, false)]
    #[case("hv", Some("alice&last"), false)]
    #[case("hv", Some("a-user-of-17-char"), false)]
    fn an_environment_is_named_plainly(#[case] name: &str, #[case] user: Option<&str>, #[case] good: bool) {
        let name = EnvironmentName { name: name.into(), user: user.map(Into::into), version: None };
        assert_eq!(name.check().is_ok(), good, "{name}");
    }

    #[rstest]
    #[case("node-1.site", true)]
    #[case("node-[1-4].site", false)]
    #[case("node-1,node-2", false)]
    #[case("node..site", false)]
    #[case("", false)]
    fn a_node_is_one_host(#[case] name: &str, #[case] good: bool) {
        assert_eq!(host(name).is_ok(), good, "{name}");
    }

    #[rstest]
    #[case("https://keys.example/alice.pub", true)]
    #[case("server:///srv/keys/alice.pub", true)]
    #[case("/home/alice/.ssh/id.pub", false)]
    #[case("file:///etc/shadow", false)]
    #[case("http://a b", false)]
    fn a_key_is_fetched_by_the_server(#[case] url: &str, #[case] good: bool) {
        assert_eq!(address("the key", url).is_ok(), good, "{url}");
    }

    #[test]
    fn names_are_written_as_people_do() {
        let name = EnvironmentName { name: "hv".into(), user: Some("alice".into()), version: Some(2) };
        assert_eq!(name.to_string(), "hv:2@alice");
        assert_eq!(EnvironmentName::newest("hv").to_string(), "hv");
    }
}
