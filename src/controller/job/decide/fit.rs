//! What the job's machines need of any node: nobody is asked for slots that would be of no use. That says nothing
//! against a generation (safety C3).

use super::{draft::Draft, place::restorable};
use crate::{
    api::{BestEffortJob, BestEffortJobStatus, Reason, quantity::Bytes},
    controller::job::plan::Seen,
    driver::agent::Accelerator,
    store::machine::{Lack, MachineRecord, named},
};

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

    /// What would be restored now needs, if that is known.
    pub(super) fn needs(&self) -> Option<&MachineRecord> {
        needs(self.job, &self.status, self.seen).map(|(_, machine)| machine)
    }

    /// Whether the job runs, or goes on, under KVM and nothing else.
    pub(super) fn wants_kvm(&self) -> bool {
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
}
