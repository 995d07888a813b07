//! What a restore needs of a node, and what a node offers. Pure.
//!
//! A guest has seen its processor and its devices: another machine type, another CPU or an older QEMU would
//! tear them from under it. What is missing is said by name, so that a person or the next request for slots
//! can do something about it.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use crate::{api::quantity::Bytes, driver::agent::Accelerator};

/// Most flags that are recorded of a CPU.
pub const MOST_FLAGS: usize = 1024;
/// So many flags are named in a message.
const NAMED: usize = 12;

/// How a VM is made: what a node must match to restore it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineRecord {
    /// QEMU's version.
    pub qemu: String,
    /// Versioned machine name, for example `pc-q35-7.2`.
    pub machine: String,
    /// CPU model.
    pub cpu_model: String,
    /// Accelerator: TCG and KVM do not restore each other.
    pub accelerator: Accelerator,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Flags of the CPU that the guest has; empty where nobody knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Flags of the model that the node on which the guest was booted did not have. They stay away from it
    /// for good: the CPU is the same wherever it is restored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withheld: Vec<String>,
}

/// What a node offers to the VMs on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// QEMU's version.
    pub qemu: String,
    /// The machines it can make, by their versioned names; empty where nobody knows.
    pub machines: Vec<String>,
    /// The best accelerator: where there is KVM, there is TCG too.
    pub accelerator: Accelerator,
    /// The flags that a CPU can have under that accelerator; absent where nobody has asked QEMU yet.
    #[serde(default)]
    pub flags: Option<Vec<String>>,
}

impl Offer {
    /// Of nodes of which only the accelerator is known that they may use.
    pub fn unknown(accelerator: Accelerator) -> Self {
        Self { qemu: String::new(), machines: Vec::new(), accelerator, flags: None }
    }
}

/// Something that a restore needs and a node does not offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Lack {
    /// QEMU is older than the one that wrote the memory.
    Qemu {
        /// The version that wrote it.
        needed: String,
        /// The version there is.
        offered: String,
    },
    /// No such machine.
    Machine(String),
    /// No KVM.
    Kvm,
    /// Flags of the CPU.
    Flags(Vec<String>),
}

impl Lack {
    /// Whether another node may have it. Its QEMU comes with the agent, wherever that runs.
    pub fn is_of_node(&self) -> bool {
        match self {
            Self::Kvm | Self::Flags(_) => true,
            Self::Qemu { .. } | Self::Machine(_) => false,
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Qemu { needed, offered } => {
                let (major, minor) = series(needed).unwrap_or_default();
                write!(f, "QEMU {major}.{minor} or newer (written by {needed}, here is {offered})")
            }
            Self::Machine(name) => write!(f, "machine type {name}"),
            Self::Kvm => write!(f, "KVM"),
            Self::Flags(flags) => {
                let named: Vec<&str> = flags.iter().take(NAMED).map(String::as_str).collect();
                write!(f, "CPU flags {}", named.join(", "))?;
                let more = flags.len() - named.len();
                if more > 0 { write!(f, " and {more} more") } else { Ok(()) }
            }
        }
    }
}

/// Several of them in a sentence.
pub fn named(lacks: &[Lack]) -> String {
    let all: Vec<String> = lacks.iter().map(ToString::to_string).collect();
    all.join("; ")
}

impl MachineRecord {
    /// What an offer lacks of what this machine needs. What is not known is not missing.
    pub fn lacking(&self, offer: &Offer) -> Vec<Lack> {
        let mut lacks = Vec::new();
        if let (Some(needed), Some(offered)) = (series(&self.qemu), series(&offer.qemu))
            && offered < needed
        {
            lacks.push(Lack::Qemu { needed: self.qemu.clone(), offered: offer.qemu.clone() });
        }
        if !offer.machines.is_empty() && !offer.machines.contains(&self.machine) {
            lacks.push(Lack::Machine(self.machine.clone()));
        }
        if self.accelerator == Accelerator::Kvm && offer.accelerator != Accelerator::Kvm {
            lacks.push(Lack::Kvm);
        }
        if let Some(offered) = offer.flags.as_ref().filter(|_| self.accelerator == offer.accelerator) {
            let offered: BTreeSet<&String> = offered.iter().collect();
            let missing: Vec<String> = self.flags.iter().filter(|flag| !offered.contains(flag)).cloned().collect();
            if !missing.is_empty() {
                lacks.push(Lack::Flags(missing));
            }
        }
        lacks
    }

    /// Whether a command line can be made of it.
    pub fn is_plain(&self) -> bool {
        let flags = || self.flags.iter().chain(&self.withheld);
        flags().count() <= 2 * MOST_FLAGS && flags().all(|flag| is_flag(flag))
    }

    /// What all of several members need together, in the words of the first.
    pub fn of_all<'a>(mut records: impl Iterator<Item = &'a Self>) -> Option<Self> {
        let mut all = records.next()?.clone();
        let mut flags: BTreeSet<String> = all.flags.drain(..).collect();
        for record in records {
            flags.extend(record.flags.iter().cloned());
            if series(&record.qemu) > series(&all.qemu) {
                all.qemu.clone_from(&record.qemu);
            }
            if record.accelerator == Accelerator::Kvm {
                all.accelerator = Accelerator::Kvm;
            }
            all.memory = all.memory.max(record.memory);
        }
        all.flags = flags.into_iter().collect();
        Some(all)
    }

    /// Its memory, as people write it.
    pub fn memory(&self) -> Bytes {
        Bytes(self.memory)
    }
}

/// Whether a text can be the name of a CPU flag.
pub fn is_flag(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// The series of a version of QEMU: what one release of it writes, the other releases of its series read.
fn series(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
pub(crate) mod tests {
    use rstest::rstest;

    use super::*;

    pub(crate) fn record() -> MachineRecord {
        MachineRecord {
            qemu: "7.2.22".into(),
            machine: "pc-q35-7.2".into(),
            cpu_model: "Haswell".into(),
            accelerator: Accelerator::Kvm,
            cpus: 1,
            memory: 256 << 20,
            flags: vec!["avx2".into(), "sse".into()],
            withheld: vec!["hle".into()],
        }
    }

    fn offer() -> Offer {
        Offer {
            qemu: "7.2.22".into(),
            machines: vec!["pc-i440fx-7.2".into(), "pc-q35-7.2".into()],
            accelerator: Accelerator::Kvm,
            flags: Some(vec!["avx2".into(), "sse".into(), "sse2".into()]),
        }
    }

    #[rstest]
    #[case::the_same(|_: &mut Offer| {}, "", false)]
    #[case::newer(|o: &mut Offer| o.qemu = "10.0.2".into(), "", false)]
    #[case::an_older_release_of_the_series(|o: &mut Offer| o.qemu = "7.2.9".into(), "", false)]
    #[case::older(|o: &mut Offer| o.qemu = "6.9.1".into(), "QEMU 7.2 or newer (written by 7.2.22, here is 6.9.1)", false)]
    #[case::a_version_nobody_can_read(|o: &mut Offer| o.qemu = "new".into(), "", false)]
    #[case::no_such_machine(|o: &mut Offer| drop(o.machines.pop()), "machine type pc-q35-7.2", false)]
    #[case::no_kvm(|o: &mut Offer| o.accelerator = Accelerator::Tcg, "KVM", true)]
    #[case::flags(|o: &mut Offer| o.flags = Some(vec!["sse".into()]), "CPU flags avx2", true)]
    #[case::flags_not_known(|o: &mut Offer| o.flags = None, "", false)]
    fn what_is_missing_is_named(#[case] change: fn(&mut Offer), #[case] says: &str, #[case] of_node: bool) {
        let mut offer = offer();
        change(&mut offer);
        let lacks = record().lacking(&offer);
        assert_eq!(named(&lacks), says);
        assert!(lacks.iter().all(|lack| lack.is_of_node() == of_node));
    }

    #[test]
    fn what_runs_under_tcg_does_so_wherever_there_is_kvm() {
        let record = MachineRecord { accelerator: Accelerator::Tcg, ..record() };
        // those are the flags under KVM
        assert_eq!(record.lacking(&Offer { flags: Some(Vec::new()), ..offer() }), []);
        let emulated = Offer { accelerator: Accelerator::Tcg, flags: Some(Vec::new()), ..offer() };
        assert_eq!(named(&record.lacking(&emulated)), "CPU flags avx2, sse");
    }

    #[test]
    fn several_members_need_what_any_of_them_needs() {
        let mut other = record();
        (other.qemu, other.flags) = ("10.0.2".into(), vec!["sse2".into()]);
        let mut first = record();
        first.accelerator = Accelerator::Tcg;
        let all = MachineRecord::of_all([&first, &other].into_iter()).unwrap();
        assert_eq!((all.qemu.as_str(), all.accelerator), ("10.0.2", Accelerator::Kvm));
        assert_eq!(all.flags, ["avx2", "sse", "sse2"]);
        assert_eq!(MachineRecord::of_all(std::iter::empty()), None);
    }

    #[test]
    fn many_flags_are_named_in_part() {
        let flags = (0..20).map(|n| format!("f{n}")).collect();
        assert!(Lack::Flags(flags).to_string().ends_with("f11 and 8 more"));
    }

    #[test]
    fn d3_flags_are_names_and_no_options() {
        let mut record = record();
        assert!(record.is_plain());
        record.withheld = vec!["hle=off,-x".into()];
        assert!(!record.is_plain());
        assert!(!is_flag("") && is_flag("avx512-4vnniw"));
    }

    #[test]
    fn records_of_older_versions_are_read() {
        let old =
            r#"{"qemu":"7.2.22","machine":"pc-q35-7.2","cpuModel":"qemu64","accelerator":"Tcg","cpus":1,"memory":1}"#;
        let read: MachineRecord = serde_json::from_str(old).unwrap();
        assert!(read.flags.is_empty() && read.withheld.is_empty());
        assert_eq!(serde_json::to_string(&read).unwrap(), old);
    }
}
