//! Whether a request for a certificate may be signed: pure and total.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    driver::cluster::joins::Answer,
    names::{JobUid, NodeName},
};

/// The signer that makes kubelets' certificates, by which they are known to the API server.
const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// What such a certificate is for.
const USAGES: [&str; 3] = ["digital signature", "key encipherment", "client auth"];
/// Who asks with a token that no node has is denied after this time: the watch may be late, and clocks differ.
const PATIENCE: Duration = Duration::from_secs(120);
const AGAIN: Duration = Duration::from_secs(5);

/// What a decision needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Id of the token of ours that it was made with; none if it was made otherwise.
    pub(super) token: Option<String>,
    /// What somebody has said to it already.
    pub(super) answered: Option<Answered>,
    /// When it was made.
    pub(super) since: Option<Timestamp>,
    pub(super) asked: Asked,
    /// The node that the token is of, if there is one.
    pub(super) newcomer: Option<Newcomer>,
    /// Another request with this token that was approved, with another key.
    pub(super) rival: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    Approved {
        by_us: bool,
    },
    /// Denied, or failed.
    Otherwise,
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
    /// The public key.
    pub(super) key: Vec<u8>,
}

/// A node with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Newcomer {
    /// The job whose slot it is in.
    pub(super) job: JobUid,
    pub(super) name: NodeName,
    pub(super) stage: Stage,
    /// Longest life of its certificate; absent: as long as the cluster likes.
    pub(super) longest: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is being deployed.
    NotYet,
    /// It is to join now.
    Joins,
    /// It has, or its slot is over or wanted back.
    NoMore,
}

/// What one pass does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Plan {
    /// It is none of ours, or was answered as it is to be.
    Nothing,
    /// Looks again.
    Wait(Duration),
    /// Says whether it may be signed, and why.
    Say(Answer, String),
    /// Somebody else has approved what should not be: that can only be told.
    Complain(String),
}

/// The decision.
pub(super) fn decide(seen: &Seen, now: Timestamp) -> Plan {
    if seen.token.is_none() || seen.asked.signer != SIGNER {
        return Plan::Nothing;
    }
    let Some(newcomer) = &seen.newcomer else {
        return match seen.answered {
            Some(_) => Plan::Nothing,
            None if age(seen, now) < PATIENCE => Plan::Wait(AGAIN),
            None => Plan::Say(Answer::Denied, "no node that is deployed has this token, or its slot is over".into()),
        };
    };
    match (seen.answered, objection(seen, newcomer)) {
        // whoever has joined was approved when it was right
        (Some(Answered::Approved { by_us: false }), Some(why)) if newcomer.stage != Stage::NoMore => {
            Plan::Complain(why)
        }
        (Some(_), _) => Plan::Nothing,
        (None, _) if newcomer.stage == Stage::NotYet => Plan::Wait(AGAIN),
        (None, Some(why)) => Plan::Say(Answer::Denied, why),
        (None, None) => Plan::Say(Answer::Approved, format!("{} was deployed, and its slot is in use", newcomer.name)),
    }
}

/// What is said to whoever comes second with a token.
pub(super) fn taken(node: &NodeName, by: &str) -> String {
    format!(
        "somebody else has asked with the token of {node}, and has a certificate: {by}. One of them is not the system that \
         was deployed there"
    )
}

fn age(seen: &Seen, now: Timestamp) -> Duration {
    seen.since.and_then(|since| Duration::try_from(now.duration_since(since)).ok()).unwrap_or_default()
}

fn objection(seen: &Seen, newcomer: &Newcomer) -> Option<String> {
    let Asked { usages, life, subject, .. } = &seen.asked;
    if newcomer.stage == Stage::NoMore {
        return Some(format!("{} has joined already, or its slot is over", newcomer.name));
    }
    let Some(subject) = subject else { return Some("the request cannot be read".into()) };
    let name = format!("system:node:{}", newcomer.name);
    if subject.name != name {
        let (node, other) = (&newcomer.name, &subject.name);
        return Some(format!(
            "the token is of {node}, whose certificate is of {name}, not of {other:?}: the kubelet must have the name that \
             sites.*.nodes gives the host, or the host's own"
        ));
    }
    if subject.organization != "system:nodes" || subject.parts != 2 || subject.other_names != 0 {
        return Some(format!("a certificate of {name} is of the organization system:nodes, and of no other name"));
    }
    if let Some(usage) = usages.iter().find(|usage| !USAGES.contains(&usage.as_str())) {
        return Some(format!("a node's certificate is not for {usage:?}"));
    }
    if let Some(rival) = &seen.rival {
        return Some(taken(&newcomer.name, rival));
    }
    let longest = newcomer.longest?;
    if life.is_some_and(|life| life <= longest) {
        return None;
    }
    let life = life.map_or("as long as the cluster likes".to_owned(), |life| format!("{} s", life.as_secs()));
    Some(format!(
        "its certificate would be good for {life}, longer than the slot, {} s: an admission policy of the chart has the API \
         server shorten it, from Kubernetes 1.36 on; sites.*.kadeploy.join.shortCertificates: false takes what the cluster gives",
        longest.as_secs()
    ))
}
