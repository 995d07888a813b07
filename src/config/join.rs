//! How deployed nodes come to join the cluster.

use serde::{Deserialize, Serialize};

use super::launch::{check_key, key_file};
use crate::driver::oar::hold::check_text;

/// A bootstrap token for each node that is deployed, which the hold of its slot puts there, and a certificate that ends
/// with the slot. Both sides make the token of the account's launch key, which is in no script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinConfig {
    /// Where the environment expects the token, and nothing but it; it is written once the directory is there.
    #[serde(default = "token_file")]
    pub token_file: String,
    /// Whether a certificate that would outlive its slot is refused: the chart then has the API server shorten what the
    /// kubelets ask for, for which it must be of Kubernetes 1.36 or later.
    #[serde(default = "yes")]
    pub short_certificates: bool,
    /// File of each site's user with the account's launch key; below the home directory, unless it begins with a slash.
    #[serde(default = "key_file")]
    pub key_file: String,
    /// Secret of the operator's namespace with the launch keys of the accounts that this configuration gives, by user.
    /// Jobs that name credentials bring theirs there, as `launchKey`.
    #[serde(default)]
    pub secret: Option<String>,
}

fn token_file() -> String {
    "/etc/vmdeploy/join-token".into()
}
fn yes() -> bool {
    true
}

impl JoinConfig {
    pub(super) fn check(&self, field: &str) -> Result<(), String> {
        check_key(field, &self.key_file, self.secret.as_deref())?;
        check_text("tokenFile", &self.token_file, "._/-").map_err(|error| format!("{field}.tokenFile: {error}"))?;
        if !self.token_file.starts_with('/') || self.token_file.ends_with('/') {
            return Err(format!("{field}.tokenFile must be the absolute path of a file, not {:?}", self.token_file));
        }
        Ok(())
    }
}
