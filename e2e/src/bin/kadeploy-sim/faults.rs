//! What goes wrong, by plan: a JSON file that is read before each step.
//!
//! ```json
//! {"nodes": {"node-1": {"step": "send_environment", "does": "fail", "error": "no room"},
//!            "node-2": {"step": "wait_reboot", "does": "hang"}},
//!  "dies": "sync"}
//! ```
//!
//! Images that are gone or were changed need no plan: the files are looked at.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;

/// The plan.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Faults {
    pub(crate) nodes: BTreeMap<String, Fault>,
    /// The step at which the server dies, without a word.
    pub(crate) dies: Option<String>,
}

/// What is wrong with a node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    /// At which step; at the first if absent.
    pub(crate) step: Option<String>,
    pub(crate) does: Does,
    #[serde(default)]
    pub(crate) error: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Does {
    Fail,
    Hang,
}

/// The plan as it is now; one that cannot be read is a fault in the test, and ends the server.
pub(crate) fn read(path: Option<&Path>) -> anyhow::Result<Faults> {
    let Some(path) = path else { return Ok(Faults::default()) };
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Faults::default()),
        Err(error) => Err(error.into()),
    }
}
