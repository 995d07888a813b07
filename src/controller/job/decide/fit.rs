//! What the job's machines need and which nodes are known to lack it: nobody is asked for slots that would be
//! of no use, and a node that was given and lacks something is not asked for again.
//!
//! Neither says anything against a generation (safety C3).

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    draft::{Draft, since},
    master::called,
    members::state,
    place::restorable,
};
use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, Reason,
        job_status::{MemberStatus, UnfitNode},
        quantity::Bytes,
    },
    controller::job::plan::Seen,
    driver::agent::Accelerator,
    names::NodeName,
    store::machine::{Lack, MachineRecord, named},
};

/// So long a node is taken to lack what it lacked: until then its owners may have changed it.
const UNFIT: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
/// Most nodes that a request leaves out, and that a status names: a condition must not grow without end.
const MOST_UNFIT: usize = 64;

/// The generation that would be restored now, and what it needs; absent if none would be, or nobody knows.
fn needs<'a>(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    seen: &'a Seen,
) -> Option<(crate::names::Generation, &'a MachineRecord)> {
    let origin = status.origin.clone().unwrap_or_default();
    let newest = restorable(seen.content.known()?, &origin, &origin.bad, job.spec.members)?;
    Some((newest.generation, newest.machine.as_ref()?))
}

/// Why no node at all can restore the job as things are, and what is to be done.
pub(crate) fn incompatible(job: &BestEffortJob, status: &BestEffortJobStatus, seen: &Seen) -> Option<(Reason, String)> {
    let (generation, machine) = needs(job, status, seen)?;
    if let Some(most) = seen.site.as_ref()?.max_memory.filter(|most| machine.memory > *most) {
        let message = format!(
            "generation {generation} needs {} of memory, and nodes of site {} can spare {}: no slots are asked for until \
             maxMemory of the site is raised, or slots.site is one with larger nodes",
            machine.memory(),
            job.spec.slots.site,
            Bytes(most)
        );
        return Some((Reason::MemoryTooLarge, message));
    }
    let lacks = machine.lacking(&seen.setup.offer);
    let first = lacks.first()?;
    let what_to_do = match first {
        Lack::Qemu { .. } => "install the agents' image that wrote it, or a later one: QEMU goes up, never down",
        Lack::Machine(_) => "install an agents' image whose QEMU still has it",
        Lack::Kvm | Lack::Flags(_) => "agents.accelerator of the operator's configuration must allow it",
    };
    let message = format!(
        "generation {generation} cannot be restored: the agents lack {}. No slots are asked for; {what_to_do}, and the job \
         goes on by itself",
        named(&lacks)
    );
    Some((Reason::Incompatible, message))
}

impl Draft<'_> {
    /// Why no node can restore the job, if that is known.
    pub(super) fn incompatible(&self) -> Option<(Reason, String)> {
        incompatible(self.job, &self.status, self.seen)
    }

    fn needs(&self) -> Option<&MachineRecord> {
        needs(self.job, &self.status, self.seen).map(|(_, machine)| machine)
    }

    /// Whether the job runs, or goes on, under KVM and nothing else.
    fn wants_kvm(&self) -> bool {
        let configured = self.seen.setup.accelerator;
        self.needs().map_or(configured, |machine| machine.accelerator) == Accelerator::Kvm
    }

    /// Conditions of the site by which it tells nodes apart that can do what the job needs.
    pub(super) fn narrowed(&self) -> Vec<String> {
        let Some(site) = &self.seen.site else { return Vec::new() };
        let wants_kvm = self.wants_kvm();
        let may_be_kvm = wants_kvm || (self.needs().is_none() && self.seen.setup.accelerator == Accelerator::Probe);
        let kvm = site.properties.kvm.iter().filter(|_| wants_kvm);
        let model = site.properties.cpu_models.get(&self.job.spec.vm.cpu_model).filter(|_| may_be_kvm);
        kvm.chain(model).cloned().collect()
    }

    /// Nodes that are known to be of no use to the job, whoever found it out.
    pub(super) fn avoid(&self) -> Vec<NodeName> {
        let needs = self.needs();
        let wants_kvm = self.wants_kvm();
        let matters = |node: &&UnfitNode| {
            let lacks_flags = needs.is_some_and(|machine| node.flags.iter().any(|flag| machine.flags.contains(flag)));
            since(node.since.0, self.now) < UNFIT && ((node.kvm && wants_kvm) || lacks_flags)
        };
        let mut found: Vec<&UnfitNode> = self.status.unfit.iter().chain(&self.seen.unfit).filter(matters).collect();
        found.sort_by_key(|node| std::cmp::Reverse(node.since.0));
        let mut nodes = BTreeSet::new();
        for node in found {
            if nodes.len() < MOST_UNFIT {
                nodes.insert(NodeName(node.node.clone()));
            }
        }
        nodes.into_iter().collect()
    }

    /// What is to be known with a refusal for want of nodes: which were asked for, and which were left out.
    pub(super) fn left_out(&self) -> String {
        let all = &self.status.unfit;
        let avoided = self.avoid();
        let words: Vec<String> = avoided
            .iter()
            .map(|node| match all.iter().find(|unfit| unfit.node == node.0) {
                Some(unfit) => format!("{node} (lacks {})", lacks_of(unfit)),
                None => format!("{node} (as other jobs found out)"),
            })
            .collect();
        let narrowed = self
            .narrowed()
            .into_iter()
            .map(|condition| format!("; asked for only where {condition}, by sites.*.properties of the configuration"));
        let avoided = (!words.is_empty()).then(|| format!("; left out: {}", words.join(", ")));
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
        let (now, moment) = (self.time(), self.now);
        for (_, node, lacks) in refused {
            let Some(unfit) = unfit(node, &lacks, now.clone()) else { continue };
            let list = &mut self.status.unfit;
            list.retain(|known| known.node != unfit.node && since(known.since.0, moment) < UNFIT);
            list.push(unfit);
            let surplus = list.len().saturating_sub(MOST_UNFIT);
            list.drain(..surplus);
        }
        (!words.is_empty()).then(|| (words.join("; "), everywhere))
    }
}

/// What of this is to be remembered of a node.
fn unfit(node: String, lacks: &[Lack], since: Time) -> Option<UnfitNode> {
    let mut unfit = UnfitNode { node, since, kvm: false, flags: Vec::new() };
    for lack in lacks {
        match lack {
            Lack::Kvm => unfit.kvm = true,
            Lack::Flags(flags) => unfit.flags.extend(flags.iter().cloned()),
            Lack::Qemu { .. } | Lack::Machine(_) => {}
        }
    }
    (unfit.kvm || !unfit.flags.is_empty()).then_some(unfit)
}

fn lacks_of(unfit: &UnfitNode) -> String {
    let kvm = unfit.kvm.then_some(Lack::Kvm);
    let flags = (!unfit.flags.is_empty()).then(|| Lack::Flags(unfit.flags.clone()));
    named(&kvm.into_iter().chain(flags).collect::<Vec<_>>())
}
