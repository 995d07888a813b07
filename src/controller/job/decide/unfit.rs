//! Nodes that are known to lack what the job's machines need: one that was given and lacks something is not asked for
//! again, for a while. That says nothing against a generation (safety C3).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    draft::{Draft, after, since},
    master::called,
    members::state,
};
use crate::{
    api::{
        BestEffortJobStatus,
        job_status::{MemberStatus, SlotState, SlotStatus, UnfitNode},
    },
    controller::job::plan::Seen,
    names::NodeName,
    store::machine::{Lack, named},
};

/// So long a node is taken to lack what it lacked: until then its owners may have changed it.
const UNFIT: Duration = Duration::from_secs(24 * 3600);
/// The same where KVM was missing once: the device may have been out of order for a moment, and it says nothing to
/// other jobs.
const PASSING: Duration = Duration::from_secs(30 * 60);
/// So often KVM must have been missing, to whatever jobs, before a node is taken to have none.
const REPEATED: u32 = 2;
/// Most nodes that a request leaves out, and that a status names: a condition must not grow without end.
const MOST_UNFIT: usize = 64;
/// So many of them a message names.
const NAMED: usize = 12;
/// A request that waits is not sent anew before this time, whatever is learnt of nodes: each loses its place in the
/// queue.
const RENEW: Duration = Duration::from_secs(60 * 60);
/// How often what other jobs have learnt is looked at by one whose request waits.
const LOOK: Duration = Duration::from_secs(5 * 60);

/// A node that is of no use to a job.
struct LeftOut {
    why: Why,
    until: Timestamp,
    /// Others have found it out.
    elsewhere: bool,
}

/// Why a node is of no use.
enum Why {
    /// The machines need what it has not.
    Lacks(Vec<Lack>),
    /// No environment comes to run on it.
    Undeployed,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lacks(lacks) => write!(f, "lacks {}", named(lacks)),
            Self::Undeployed => f.write_str("could not be deployed"),
        }
    }
}

/// What was found out of each node, and whether by other jobs.
fn found_out<'a>(status: &'a BestEffortJobStatus, seen: &'a Seen) -> BTreeMap<&'a str, Vec<(&'a UnfitNode, bool)>> {
    let (own, others) = (status.unfit.iter().map(|unfit| (unfit, false)), seen.unfit.iter().map(|unfit| (unfit, true)));
    let mut nodes: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for found in own.chain(others) {
        nodes.entry(&found.0.node).or_default().push(found);
    }
    nodes
}

/// What of that holds still.
fn known_of(found: &[(&UnfitNode, bool)], now: Timestamp) -> Vec<LeftOut> {
    let all = || found.iter().filter(|(unfit, _)| since(unfit.since.0, now) < UNFIT);
    let newest = |found: &[&(&UnfitNode, bool)]| found.iter().map(|(unfit, _)| unfit.since.0).max();
    let elsewhere = |found: &[&(&UnfitNode, bool)]| found.iter().all(|(_, elsewhere)| *elsewhere);
    let mut known = Vec::new();
    let kvm: Vec<_> = all().filter(|(unfit, _)| unfit.kvm).collect();
    let times = kvm.iter().fold(0, |sum: u32, (unfit, _)| sum.saturating_add(unfit.times));
    let lasts = match times {
        REPEATED.. => UNFIT,
        _ if elsewhere(&kvm) => Duration::ZERO,
        _ => PASSING,
    };
    if let Some(last) = newest(&kvm) {
        let why = Why::Lacks(vec![Lack::Kvm]);
        known.push(LeftOut { why, until: after(last, lasts), elsewhere: elsewhere(&kvm) });
    }
    let flags: Vec<_> = all().filter(|(unfit, _)| !unfit.flags.is_empty()).collect();
    if let Some(last) = newest(&flags) {
        let names: BTreeSet<String> = flags.iter().flat_map(|(unfit, _)| unfit.flags.iter().cloned()).collect();
        let why = Why::Lacks(vec![Lack::Flags(names.into_iter().collect())]);
        known.push(LeftOut { why, until: after(last, UNFIT), elsewhere: elsewhere(&flags) });
    }
    // it may be the environment's fault, and that is the other job's own affair
    let undeployed: Vec<_> = all().filter(|(unfit, elsewhere)| unfit.undeployed && !elsewhere).collect();
    if let Some(last) = newest(&undeployed) {
        known.push(LeftOut { why: Why::Undeployed, until: after(last, PASSING), elsewhere: false });
    }
    known.retain(|known| known.until > now);
    known
}

/// In words: the nodes that a request left out, and why, as far as that is known still.
pub(crate) fn left_out_of(
    nodes: &[String],
    status: &BestEffortJobStatus,
    seen: &Seen,
    now: Timestamp,
) -> Option<String> {
    let found = found_out(status, seen);
    let words = nodes.iter().take(NAMED).map(|node| {
        let known = found.get(node.as_str()).map(|found| known_of(found, now)).unwrap_or_default();
        let why = known.iter().map(|LeftOut { why, until, elsewhere }| {
            let whose = if *elsewhere { ", as other jobs found out" } else { "" };
            format!("{why}{whose}, until {}", until.strftime("%Y-%m-%dT%H:%MZ"))
        });
        let why: Vec<String> = why.collect();
        format!("{node} ({})", if why.is_empty() { "until the next request".to_owned() } else { why.join("; ") })
    });
    let mut words: Vec<String> = words.collect();
    if nodes.len() > NAMED {
        words.push(format!("and {} more", nodes.len() - NAMED));
    }
    (!words.is_empty()).then(|| format!("left out: {}", words.join(", ")))
}

impl Draft<'_> {
    /// Nodes that are known to be of no use to the job, whoever found it out; and until when that is so of the first
    /// of which it ends.
    fn unfit(&self) -> (Vec<NodeName>, Option<Timestamp>) {
        let needs = self.needs();
        let wants_kvm = self.wants_kvm();
        let matters = |lack: &Lack| match lack {
            Lack::Kvm => wants_kvm,
            Lack::Flags(flags) => needs.is_some_and(|machine| flags.iter().any(|flag| machine.flags.contains(flag))),
            Lack::Qemu { .. } | Lack::Machine(_) => false,
        };
        let deploys = self.deploys();
        let counts = |known: &&LeftOut| match &known.why {
            Why::Lacks(lacks) => lacks.iter().any(matters),
            Why::Undeployed => deploys,
        };
        let until = |found: &[(&UnfitNode, bool)]| {
            let known = known_of(found, self.now);
            known.iter().filter(counts).map(|known| known.until).max()
        };
        let all = found_out(&self.status, self.seen);
        let mut found: Vec<(Timestamp, &str)> =
            all.iter().filter_map(|(node, found)| Some((until(found)?, *node))).collect();
        found.sort_by_key(|(until, _)| std::cmp::Reverse(*until));
        found.truncate(MOST_UNFIT);
        let first = found.last().map(|(until, _)| *until);
        let nodes: BTreeSet<NodeName> = found.into_iter().map(|(_, node)| NodeName(node.to_owned())).collect();
        (nodes.into_iter().collect(), first)
    }

    /// The same, without the time.
    pub(super) fn avoid(&self) -> Vec<NodeName> {
        self.unfit().0
    }

    /// Whether a request that waits leaves out other nodes than one that is sent now would: one might come to a node
    /// that is of no use, or wait for ever although the nodes are good again. It is looked at again in time.
    pub(super) fn is_outdated(&mut self, slot: &SlotStatus) -> bool {
        let Some(asked) = slot.asked.as_ref().filter(|_| slot.state == SlotState::Waiting) else { return false };
        self.wake(LOOK);
        let restores = self.status.started.is_some() || self.status.adopted.is_some();
        if restores && self.seen.content.known().is_none() {
            // what matters is not known
            return false;
        }
        let (nodes, first) = self.unfit();
        if let Some(first) = first {
            self.wake_at(first);
        }
        if nodes.iter().map(|node| &node.0).eq(&asked.left_out) {
            return false;
        }
        let soonest = after(asked.at.0, RENEW);
        self.wake_at(soonest);
        self.now >= soonest
    }

    /// What is to be known with a refusal for want of nodes: which were asked for, and which were left out.
    pub(super) fn left_out(&self) -> String {
        let nodes: Vec<String> = self.avoid().into_iter().map(|node| node.0).collect();
        let narrowed = self
            .narrowed()
            .into_iter()
            .map(|condition| format!("; asked for only where {condition}, by sites.*.properties of the configuration"));
        let avoided = left_out_of(&nodes, &self.status, self.seen, self.now).map(|words| format!("; {words}"));
        narrowed.chain(avoided).collect()
    }

    /// Takes note of nodes that refused to load their members. What is missing, in a sentence, and whether it
    /// is missing everywhere; nothing if none refused.
    pub(super) fn note_unfit(&mut self) -> Option<(String, bool)> {
        let refused = |member: &MemberStatus| {
            let lacks = state(self.seen, member)?.lacks.clone();
            (!lacks.is_empty()).then(|| (called(member, self.job), member.node.clone().unwrap_or_default(), lacks))
        };
        let refused: Vec<(String, String, Vec<Lack>)> = self.status.everyone().filter_map(refused).collect();
        let words: Vec<String> = refused
            .iter()
            .map(|(member, node, lacks)| {
                format!("{member} cannot be restored on node {node}: it lacks {}", named(lacks))
            })
            .collect();
        let everywhere = refused.iter().flat_map(|(_, _, lacks)| lacks).any(|lack| !lack.is_of_node());
        for (_, node, lacks) in refused {
            for unfit in unfit(&node, &lacks, &self.time()) {
                self.remember_unfit(unfit);
            }
        }
        (!words.is_empty()).then(|| (words.join("; "), everywhere))
    }

    /// Takes note of nodes on which no environment came to run.
    pub(super) fn note_undeployed(&mut self, nodes: &[String]) {
        for node in nodes {
            self.remember_unfit(UnfitNode { undeployed: true, ..found(node, &self.time()) });
        }
    }

    fn remember_unfit(&mut self, mut unfit: UnfitNode) {
        let moment = self.now;
        let list = &mut self.status.unfit;
        list.retain(|known| since(known.since.0, moment) < UNFIT);
        let kind = |known: &UnfitNode| (known.node.clone(), known.kvm, known.undeployed);
        let same = |known: &UnfitNode| kind(known) == kind(&unfit);
        let times = list.iter().filter(|known| same(known)).map(|known| known.times).max();
        let times = times.unwrap_or_default().saturating_add(1);
        list.retain(|known| !same(known));
        unfit.times = times;
        list.push(unfit);
        let surplus = list.len().saturating_sub(MOST_UNFIT);
        list.drain(..surplus);
    }
}

/// What of this is to be remembered of a node: whether it has KVM, and what its processor has.
fn unfit(node: &str, lacks: &[Lack], since: &Time) -> Vec<UnfitNode> {
    let flags: Vec<String> = lacks
        .iter()
        .flat_map(|lack| match lack {
            Lack::Flags(flags) => flags.clone(),
            Lack::Kvm | Lack::Qemu { .. } | Lack::Machine(_) => Vec::new(),
        })
        .collect();
    let kvm = lacks.contains(&Lack::Kvm).then(|| UnfitNode { kvm: true, ..found(node, since) });
    let flags = (!flags.is_empty()).then(|| UnfitNode { flags, ..found(node, since) });
    kvm.into_iter().chain(flags).collect()
}

/// A node of which something is found out for the first time.
fn found(node: &str, since: &Time) -> UnfitNode {
    UnfitNode {
        node: node.to_owned(),
        since: since.clone(),
        undeployed: false,
        kvm: false,
        times: 1,
        flags: Vec::new(),
    }
}
