//! The cases of `rejected.yaml`, for the tests of the rules without a cluster and for those on a real
//! API server, which take this file in by its path.

use serde::Deserialize;
use serde_json::{Value, json};

/// An object that must be refused.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) by: Option<String>,
    pub(crate) patch: Value,
    pub(crate) old: Option<Value>,
    pub(crate) status: Option<Value>,
    pub(crate) says: String,
}

/// A good object of a kind.
pub(crate) fn good(kind: &str) -> Value {
    let spec = match kind {
        "BestEffortJob" => json!({
            "image": {"name": "debian"},
            "run": {"command": ["true"]},
            "slots": {"site": "rennes", "walltime": "1h"},
        }),
        "VmImage" => json!({"source": {"http": {
            "url": "https://example.org/disk.qcow2",
            "digest": format!("sha256:{}", "0".repeat(64)),
        }}}),
        _ => json!({"job": "pi"}),
    };
    json!({"apiVersion": "vmdeploy.io/v1alpha1", "kind": kind, "metadata": {"name": "pi"}, "spec": spec})
}

/// Merges a patch as `kubectl patch --type merge` does.
pub(crate) fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    into.remove(key);
                } else {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}
