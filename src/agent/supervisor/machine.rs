//! How the VM is made on this node, and whether the node offers what a generation needs: asked before its
//! memory is loaded. A node that does not says nothing against the generation (safety C3).

use super::{Supervisor, fetch::Fetched, load::LoadError};
use crate::{
    driver::{
        agent::Accelerator,
        qemu::{
            QemuError, cpu, probe,
            qmp::{Qmp, QmpError},
        },
    },
    store::{
        machine::{Lack, MachineRecord, Offer},
        manifest::MemberPart,
    },
};

impl Supervisor {
    /// What the node lacks as far as that is known before anything is fetched: no image and no memory comes to a node
    /// that is of no use.
    pub(super) async fn check_node(&self, part: Option<&MemberPart>) -> Result<(), LoadError> {
        let may_be_kvm = self.config.accelerator != Accelerator::Tcg && probe::kvm().is_ok();
        let mut offer = Offer::unknown(if may_be_kvm { Accelerator::Kvm } else { Accelerator::Tcg });
        let lacks = match part {
            Some(part) => {
                // a QEMU that does not answer is told of when the VM is made
                if let (Ok(version), Ok(machines)) = tokio::join!(probe::version(), probe::machines()) {
                    (offer.qemu, offer.machines) = (version.text, machines.names);
                }
                part.machine.lacking(&offer)
            }
            None if self.config.accelerator == Accelerator::Kvm && !may_be_kvm => vec![Lack::Kvm],
            None => Vec::new(),
        };
        if lacks.is_empty() {
            return Ok(());
        }
        self.view.change(|facts| facts.offer = Some(offer));
        Err(LoadError::Lacks(lacks))
    }

    /// How the VM is made here, and what the node offers; a generation that needs more is refused.
    pub(super) async fn machine(
        &self,
        fetched: &Fetched,
        part: Option<&MemberPart>,
    ) -> Result<(MachineRecord, Offer), LoadError> {
        let (version, machines) = (probe::version().await?, probe::machines().await?);
        let kernel = fetched.kernel.as_ref().map(|kernel| kernel.kernel.as_path());
        let accelerator = probe::accelerator(self.config.accelerator, kernel, &self.paths.cache).await;
        let usable = accelerator != Accelerator::Kvm || probe::kvm().is_ok();
        let offer = Offer {
            qemu: version.text.clone(),
            machines: machines.names.clone(),
            accelerator: if usable { accelerator } else { Accelerator::Tcg },
            flags: None,
        };
        self.view.change(|facts| facts.offer = Some(offer.clone()));
        let vm = &self.config.vm;
        let machine = match part {
            None if usable => MachineRecord {
                qemu: version.text,
                machine: machines.resolve(&vm.machine)?,
                cpu_model: vm.cpu_model.clone(),
                accelerator,
                cpus: vm.cpus,
                memory: vm.memory.as_mebibytes() << 20,
                flags: Vec::new(),
                withheld: Vec::new(),
            },
            // the job wants it
            None => return Err(LoadError::Lacks(vec![Lack::Kvm])),
            Some(part) => {
                let lacks = part.machine.lacking(&offer);
                if !lacks.is_empty() {
                    return Err(LoadError::Lacks(lacks));
                }
                MachineRecord { qemu: version.text, ..part.machine.clone() }
            }
        };
        Ok((machine, offer))
    }

    /// Compares the CPU that QEMU gives with the one that the guest knows, before its memory is loaded; notes
    /// which flags it is given and what the node offers.
    pub(super) async fn compare_cpu(
        &self,
        qmp: &Qmp,
        machine: &mut MachineRecord,
        offer: Offer,
        part: Option<&MemberPart>,
    ) -> Result<(), LoadError> {
        let flags = match cpu::flags(qmp, &machine.cpu_model).await {
            Ok(flags) => flags,
            Err(error @ QmpError::Refused { .. }) => {
                tracing::warn!(%error, "the flags of the CPU are not known");
                return Ok(());
            }
            Err(error) => return Err(QemuError::from(error).into()),
        };
        let here = Offer {
            accelerator: machine.accelerator,
            flags: Some(flags.offered.iter().cloned().collect()),
            ..offer.clone()
        };
        let best = machine.accelerator == offer.accelerator;
        self.view.change(|facts| facts.offer = Some(if best { here.clone() } else { offer }));
        let lacks = part.map(|part| part.machine.lacking(&here)).unwrap_or_default();
        if !lacks.is_empty() {
            return Err(LoadError::Lacks(lacks));
        }
        if machine.flags.is_empty() {
            (machine.flags, machine.withheld) = (flags.given(), flags.withheld());
        }
        Ok(())
    }
}
