//! Which flags a CPU has, as a QEMU that was started says.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::qmp::{Qmp, QmpError};
use crate::store::machine::{MOST_FLAGS, is_flag};

/// A model without any flag: what holds of it is a property of another kind.
const NO_FLAGS: &str = "base";
/// A model with all that the accelerator and the processor have.
const ALL_FLAGS: &str = "max";

/// Flags of a CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// What any CPU can have here.
    pub offered: BTreeSet<String>,
    /// What the model has, were it all offered.
    pub of_model: BTreeSet<String>,
}

impl Flags {
    /// What a guest of that model is given.
    pub fn given(&self) -> Vec<String> {
        self.of_model.intersection(&self.offered).cloned().collect()
    }

    /// What it is not given, although the model has it.
    pub fn withheld(&self) -> Vec<String> {
        self.of_model.difference(&self.offered).cloned().collect()
    }
}

/// Asks for the flags of a model under the accelerator that QEMU was started with.
pub async fn flags(qmp: &Qmp, model: &str) -> Result<Flags, QmpError> {
    let others = holds(qmp, NO_FLAGS).await?;
    let flags = |all: BTreeSet<String>| all.difference(&others).cloned().collect();
    Ok(Flags { offered: flags(holds(qmp, ALL_FLAGS).await?), of_model: flags(holds(qmp, model).await?) })
}

async fn holds(qmp: &Qmp, model: &str) -> Result<BTreeSet<String>, QmpError> {
    let asked = json!({ "type": "full", "model": { "name": model } });
    Ok(names(&qmp.execute("query-cpu-model-expansion", asked).await?))
}

/// The properties that hold, each once: QEMU has other spellings for some of them.
fn names(reply: &Value) -> BTreeSet<String> {
    let all = reply["model"]["props"].as_object().into_iter().flatten();
    all.filter(|(_, value)| value.as_bool() == Some(true))
        .map(|(name, _)| name.replace(['_', '.'], "-"))
        .filter(|name| is_flag(name))
        .take(MOST_FLAGS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_is_read_once() {
        let reply = json!({"model": {"name": "x", "props": {
            "sse4_1": true, "sse4.1": true, "sse4-1": true, "avx": false, "level": 7, "vendor": "a", "a,b": true,
        }}});
        assert_eq!(names(&reply), BTreeSet::from(["sse4-1".to_owned()]));
        assert!(names(&json!({})).is_empty());
    }

    #[test]
    fn a_guest_gets_what_the_model_has_and_the_node_offers() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let flags = Flags { offered: set(&["avx", "sse"]), of_model: set(&["hle", "sse"]) };
        assert_eq!((flags.given(), flags.withheld()), (vec!["sse".to_owned()], vec!["hle".to_owned()]));
    }
}
