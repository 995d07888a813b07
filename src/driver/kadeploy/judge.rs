//! How our nodes stand, from what Kadeploy says of a workflow, or, where it knows that no more, of the nodes. Pure.
//!
//! A workflow that failed on every node is over without an error: an error is when the workflow itself broke. So a node
//! is deployed only if the workflow is over, did not break, and lists it as such.

use std::collections::BTreeMap;

use super::{
    EnvironmentName, EnvironmentToDeploy, NodeState, Observation, Remains, errors,
    wire::{Named, Record, Split, State, Step},
};
use crate::names::NodeName;

/// The code with which a workflow breaks of which no node is left.
const ALL_DISCARDED: u32 = 14;
/// Longest reason of the server's that is kept.
const SHOWN: usize = 1000;

/// Our nodes with the names the server has for them.
pub(super) type Hosts = BTreeMap<NodeName, String>;

/// While the workflow is at work.
pub(super) fn working(hosts: &Hosts, split: &Split, state: &State) -> Observation {
    let of = |host: &String| match state.get(host) {
        Some(step) if is_discarded(step) => NodeState::Discarded,
        // what has come to its end waits for the others, and may yet be tried again
        Some(step) => NodeState::Working { step: words(step) },
        None if split.ok.contains(host) || split.ko.contains(host) || split.processing.contains(host) => {
            NodeState::Working { step: "begun".into() }
        }
        None => NodeState::Working { step: "not begun".into() },
    };
    Observation { done: false, nodes: hosts.iter().map(|(node, host)| (node.clone(), of(host))).collect() }
}

/// When the workflow is over.
pub(super) fn over(hosts: &Hosts, split: &Split, state: &State) -> Observation {
    let of = |host: &String| {
        if split.ok.contains(host) {
            return NodeState::Deployed;
        }
        if split.ko.contains(host) {
            return NodeState::Failed { reason: state.get(host).map_or_else(String::new, reason) };
        }
        NodeState::Discarded
    };
    Observation { done: true, nodes: hosts.iter().map(|(node, host)| (node.clone(), of(host))).collect() }
}

/// When the workflow itself broke, with this code and text. What may be of nodes is put down to each of them.
pub(super) fn broken(hosts: &Hosts, code: Option<u32>, text: &str) -> Observation {
    let state = match code {
        Some(ALL_DISCARDED) => NodeState::Discarded,
        Some(code) if errors::is_of_no_node(code) => NodeState::Broke(errors::of_code(code, bounded(text))),
        _ => NodeState::Failed { reason: bounded(text) },
    };
    Observation { done: true, nodes: hosts.keys().map(|node| (node.clone(), state.clone())).collect() }
}

/// When the server does not know the workflow, from its records of the nodes.
pub(super) fn lost(
    hosts: &Hosts,
    records: &BTreeMap<String, Option<Record>>,
    environment: &EnvironmentToDeploy,
    user: &str,
) -> Observation {
    let of = |host: &String| {
        let Some(record) = records.get(host) else {
            return Remains::Other("not known to the server".into());
        };
        record.as_ref().map_or_else(|| Remains::Other("never used".into()), |record| remains(record, environment, user))
    };
    let state = |host: &String| NodeState::Lost(of(host));
    Observation { done: true, nodes: hosts.iter().map(|(node, host)| (node.clone(), state(host))).collect() }
}

fn remains(record: &Record, environment: &EnvironmentToDeploy, user: &str) -> Remains {
    let ours = record.user.as_deref().is_none_or(|had| had == user);
    match (record.state.as_str(), ours) {
        ("deployed", true) if is(&record.environment, environment) => Remains::Deployed,
        ("deploying", true) if is(&record.environment, environment) => Remains::Stale,
        // the record names no environment then
        ("aborted", true) => Remains::Aborted,
        (word, true) => Remains::Other(bounded(word)),
        (word, false) => Remains::Other(bounded(&format!("{word}, by another user"))),
    }
}

/// Whether a node's record names this environment. One that came along with its request has no name there.
fn is(named: &Named, environment: &EnvironmentToDeploy) -> bool {
    match environment {
        EnvironmentToDeploy::Inline(_) => named.name.is_none(),
        EnvironmentToDeploy::Recorded(EnvironmentName { name, user, version }) => {
            named.name.as_ref() == Some(name)
                && (user.is_none() || named.user == *user)
                && (version.is_none() || named.version == *version)
        }
    }
}

fn is_discarded(step: &Step) -> bool {
    step.state.as_deref() == Some("discarded")
}

/// A step in the server's words.
fn words(step: &Step) -> String {
    let known: Vec<&str> = [&step.large, &step.small].into_iter().flatten().map(String::as_str).collect();
    if known.is_empty() {
        return bounded(step.state.as_deref().unwrap_or("begun"));
    }
    bounded(&known.join(": "))
}

fn reason(step: &Step) -> String {
    step.error.as_deref().map_or_else(|| words(step), bounded)
}

fn bounded(text: &str) -> String {
    crate::driver::exchange::shown(text.as_bytes(), SHOWN)
}
