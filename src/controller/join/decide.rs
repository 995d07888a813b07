//! Whether a request for a certificate may be signed: pure and total.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::{driver::cluster::joins::Answer, names::NodeName};

/// The signer that makes kubelets' certificates, by which they are known to the API server.
const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// What such a certificate is for.
const USAGES: [&str; 3] = ["digital signature", "key encipherment", "client auth"];
/// Who asks with a token that no node has is denied after this time: the watch may be late.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(5);

/// What a decision needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Id of the token of ours that it was made with; none if it was made otherwise.
    pub(super) token: Option<String>,
    /// Somebody has said already whether it may be signed.
    pub(super) answered: bool,
    /// When it was made.
    pub(super) since: Option<Timestamp>,
    pub(super) asked: Asked,
    /// The node that the token is of, if there is one.
    pub(super) node: Option<NodeSeen>,
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) signer: String,
    pub(super) usages: Vec<String>,
    /// Absent: as long as the cluster likes.
    pub(super) life: Option<Duration>,
    /// None if it cannot be read.
    pub(super) subject: Option<Subject>,
}

/// Whom a certificate is to be of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) organization: String,
    /// Of the distinguished name.
    pub(super) parts: usize,
    /// Names beside it.
    pub(super) other_names: usize,
}

/// A node with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeSeen {
    pub(super) name: NodeName,
    /// Its slot is in use, and it has not joined yet.
    pub(super) is_to_join: bool,
    /// Longest life of its certificate; absent: as long as the cluster likes.
    pub(super) longest: Option<Duration>,
}

/// What one pass does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Plan {
    /// It is none of ours, or was answered.
    Nothing,
    /// Looks again.
    Wait(Duration),
    /// Says whether it may be signed, and why.
    Say(Answer, String),
}

/// The decision.
pub(super) fn decide(seen: &Seen, now: Timestamp) -> Plan {
    if seen.token.is_none() || seen.answered {
        return Plan::Nothing;
    }
    let Some(node) = &seen.node else {
        let age = seen.since.and_then(|since| Duration::try_from(now.duration_since(since)).ok()).unwrap_or_default();
        if age < PATIENCE {
            return Plan::Wait(AGAIN);
        }
        return Plan::Say(Answer::Denied, "no node that is deployed has this token, or its slot is over".into());
    };
    match objection(&seen.asked, node) {
        None => Plan::Say(Answer::Approved, format!("{} was deployed, and its slot is in use", node.name)),
        Some(why) => Plan::Say(Answer::Denied, why),
    }
}

fn objection(asked: &Asked, node: &NodeSeen) -> Option<String> {
    if !node.is_to_join {
        return Some(format!("{} has joined already, or its slot is over", node.name));
    }
    if asked.signer != SIGNER {
        return Some(format!("the token of a node is good for certificates of {SIGNER}, not of {}", asked.signer));
    }
    let Some(subject) = &asked.subject else { return Some("the request cannot be read".into()) };
    let name = format!("system:node:{}", node.name);
    if subject.name != name {
        return Some(format!(
            "the token is of {}, whose certificate is of {name}, not of {:?}",
            node.name, subject.name
        ));
    }
    if subject.organization != "system:nodes" || subject.parts != 2 || subject.other_names != 0 {
        return Some(format!("a certificate of {name} is of the organization system:nodes, and of no other name"));
    }
    if let Some(usage) = asked.usages.iter().find(|usage| !USAGES.contains(&usage.as_str())) {
        return Some(format!("a node's certificate is not for {usage:?}"));
    }
    let longest = node.longest?;
    match asked.life {
        Some(life) if life <= longest => None,
        life => Some(format!(
            "it would be good for {}, longer than the slot, {} s: the chart has the API server shorten it, from Kubernetes 1.36 \
             on; sites.*.kadeploy.join.shortCertificates: false takes what the cluster gives",
            life.map_or("as long as the cluster likes".to_owned(), |life| format!("{} s", life.as_secs())),
            longest.as_secs()
        )),
    }
}
