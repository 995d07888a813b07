//! The command line of a VM. Pure: the same definition gives the same devices in the same order,
//! which is what a restore depends on.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use serde_json::json;

use super::img::Format;
use crate::driver::agent::{Accelerator, GuestNetwork};

/// Size of TCG's buffer of translated code, in MiB; its default is a quarter of the guest's memory
/// and more.
const TCG_BUFFER: u32 = 128;

/// Names of the sockets in a VM's directory of sockets.
pub mod sockets {
    /// QEMU's control channel.
    pub const QMP: &str = "qmp";
    /// The guest agent.
    pub const GUEST_AGENT: &str = "qga";
    /// The command's output.
    pub const OUTPUT: &str = "output";
    /// The serial console.
    pub const CONSOLE: &str = "console";
}

/// Name of the virtio port that carries the command's output.
pub const OUTPUT_PORT: &str = "vmdeploy.output";
/// Name of the virtio port of the guest agent.
pub const GUEST_AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// One layer of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its name in QEMU.
    pub node: String,
    /// Its file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
}

/// A kernel outside the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial ram disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub params: String,
}

/// Everything a VM is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmDefinition {
    /// For people who look at the node's processes.
    pub name: String,
    /// Versioned machine name.
    pub machine: String,
    /// CPU model.
    pub cpu_model: String,
    /// Flags of the model that the guest does not get.
    pub withheld: Vec<String>,
    /// KVM or TCG; never `Probe`.
    pub accelerator: Accelerator,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The disk, base first. Only the last layer is written.
    pub disk: Vec<Layer>,
    /// The NoCloud seed.
    pub seed: PathBuf,
    /// The kernel, if it is not the disk's own.
    pub kernel: Option<Kernel>,
    /// What the guest reaches by its first network card.
    pub network: GuestNetwork,
    /// Its hardware address.
    pub mac: String,
    /// The second card, in the job's network; QEMU gets its other end as file descriptor [`TAP_FD`].
    pub job_card: Option<JobCard>,
    /// Directory of the sockets.
    pub sockets: PathBuf,
    /// Whether memory is loaded before it runs.
    pub incoming: bool,
}

/// The guest's card in the job's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobCard {
    /// Hardware address.
    pub mac: String,
    /// Largest packet, told to the guest. A restored guest keeps the one it was started with.
    pub mtu: u16,
}

/// The descriptor by which QEMU gets the tap of the second card.
pub const TAP_FD: i32 = 3;

/// The arguments of `qemu-system-x86_64`.
pub fn arguments(vm: &VmDefinition) -> Vec<OsString> {
    let mut args = Arguments(Vec::new());
    args.pair("-name", format!("guest={},process=qemu-vmdeploy,debug-threads=on", value(&vm.name)));
    args.flag("-nodefaults");
    args.flag("-no-user-config");
    args.flag("-no-reboot");
    args.pair("-display", "none");
    args.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    args.pair("-machine", value(&vm.machine));
    args.pair("-accel", accelerator(vm.accelerator));
    args.pair("-cpu", cpu(vm));
    args.pair("-smp", vm.cpus.to_string());
    args.pair("-m", format!("{}M", vm.memory_mib));
    // the guest's clock chip follows the host's clock over stops and restores
    args.pair("-rtc", "base=utc,clock=host");
    args.flag("-S");
    if vm.incoming {
        args.pair("-incoming", "defer");
    }

    args.socket("qmp", &vm.sockets.join(sockets::QMP));
    args.pair("-mon", "chardev=qmp,mode=control");
    args.socket("console", &vm.sockets.join(sockets::CONSOLE));
    args.pair("-serial", "chardev:console");

    for (index, layer) in vm.disk.iter().enumerate() {
        let backing = index.checked_sub(1).map(|below| vm.disk[below].node.as_str());
        args.pair("-blockdev", blockdev(layer, backing, index + 1 < vm.disk.len()).to_string());
    }
    if let Some(top) = vm.disk.last() {
        // a kernel from outside takes the first place itself
        let first = if vm.kernel.is_none() { ",bootindex=0" } else { "" };
        args.pair("-device", format!("virtio-blk-pci,id=disk,drive={}{first}", top.node));
    }
    let seed = Layer { node: "seed".into(), path: vm.seed.clone(), format: Format::Raw };
    args.pair("-blockdev", blockdev(&seed, None, true).to_string());
    args.pair("-device", "virtio-blk-pci,id=seed-disk,drive=seed");

    let restrict = match vm.network {
        GuestNetwork::Isolated => ",restrict=on",
        GuestNetwork::Open => "",
    };
    args.pair("-netdev", format!("user,id=net0{restrict}"));
    // without the option ROM a restore does not depend on a file of the node's
    args.pair("-device", format!("virtio-net-pci,id=nic0,netdev=net0,romfile=,mac={}", value(&vm.mac)));
    if let Some(card) = &vm.job_card {
        args.pair("-netdev", format!("tap,id=net1,fd={TAP_FD}"));
        let (mac, mtu) = (value(&card.mac), card.mtu);
        args.pair("-device", format!("virtio-net-pci,id=nic1,netdev=net1,romfile=,mac={mac},host_mtu={mtu}"));
    }

    args.pair("-device", "virtio-rng-pci,id=rng0");
    args.pair("-device", "virtio-serial-pci,id=ports");
    args.socket("qga", &vm.sockets.join(sockets::GUEST_AGENT));
    args.pair("-device", format!("virtserialport,bus=ports.0,nr=1,chardev=qga,name={GUEST_AGENT_PORT}"));
    args.socket("output", &vm.sockets.join(sockets::OUTPUT));
    args.pair("-device", format!("virtserialport,bus=ports.0,nr=2,chardev=output,name={OUTPUT_PORT}"));

    if let Some(kernel) = &vm.kernel {
        args.path("-kernel", &kernel.kernel);
        if let Some(initrd) = &kernel.initrd {
            args.path("-initrd", initrd);
        }
        args.pair("-append", kernel.params.clone());
    }
    args.0
}

/// The description of a layer for `-blockdev` and `blockdev-add`.
pub fn blockdev(layer: &Layer, backing: Option<&str>, read_only: bool) -> serde_json::Value {
    let mut node = json!({
        "driver": layer.format.to_string(),
        "node-name": layer.node,
        "file": { "driver": "file", "filename": layer.path },
        // no disk of a node is read again after the node's death: flushes would gain nothing
        "cache": { "no-flush": true, "direct": false },
        "discard": "unmap",
        "read-only": read_only,
    });
    if layer.format == Format::Qcow2 {
        // said explicitly: what the header names is never followed
        node["backing"] = json!(backing);
    }
    node
}

fn cpu(vm: &VmDefinition) -> String {
    let off = vm.withheld.iter().map(|flag| format!(",{}=off", value(flag)));
    std::iter::once(value(&vm.cpu_model)).chain(off).collect()
}

fn accelerator(accelerator: Accelerator) -> String {
    match accelerator {
        Accelerator::Kvm => "kvm".into(),
        Accelerator::Tcg | Accelerator::Probe => format!("tcg,thread=multi,tb-size={TCG_BUFFER}"),
    }
}

/// A value inside a comma-separated option: QEMU reads two commas as one.
fn value(text: &str) -> String {
    text.replace(',', ",,")
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }
    fn pair(&mut self, option: &str, value: impl Into<String>) {
        self.0.push(option.into());
        self.0.push(value.into().into());
    }
    fn path(&mut self, option: &str, path: &Path) {
        self.0.push(option.into());
        self.0.push(path.into());
    }
    fn socket(&mut self, id: &str, path: &Path) {
        self.pair("-chardev", format!("socket,id={id},path={},server=on,wait=off", value(&path.to_string_lossy())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(node: &str, format: Format) -> Layer {
        Layer { node: node.into(), path: format!("/vm/{node}").into(), format }
    }

    fn vm() -> VmDefinition {
        VmDefinition {
            name: "pi-0".into(),
            machine: "pc-q35-7.2".into(),
            cpu_model: "qemu64".into(),
            withheld: Vec::new(),
            accelerator: Accelerator::Tcg,
            cpus: 1,
            memory_mib: 256,
            disk: vec![layer("base", Format::Raw), layer("disk0", Format::Qcow2)],
            seed: "/vm/seed".into(),
            kernel: Some(Kernel {
                kernel: "/images/k".into(),
                initrd: Some("/images/i".into()),
                params: "root=/dev/vda console=ttyS0".into(),
            }),
            network: GuestNetwork::Isolated,
            mac: "52:54:00:00:00:01".into(),
            job_card: None,
            sockets: "/vm/s".into(),
            incoming: false,
        }
    }

    fn text(vm: &VmDefinition) -> String {
        arguments(vm).iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn cold_boot_from_a_kernel() {
        insta::assert_snapshot!(text(&vm()));
    }

    #[test]
    fn restore_on_kvm_from_the_disk_alone_with_an_open_network() {
        let mut vm = vm();
        vm.kernel = None;
        vm.accelerator = Accelerator::Kvm;
        vm.network = GuestNetwork::Open;
        vm.job_card = Some(JobCard { mac: "02:76:0a:00:00:01".into(), mtu: 1450 });
        vm.incoming = true;
        vm.disk = vec![layer("base", Format::Qcow2), layer("disk0", Format::Qcow2), layer("disk1", Format::Qcow2)];
        insta::assert_snapshot!(text(&vm));
    }

    #[test]
    fn the_cpu_of_a_restore_is_the_one_that_the_guest_was_booted_with() {
        let vm = VmDefinition { cpu_model: "Haswell".into(), withheld: vec!["hle".into(), "rtm".into()], ..vm() };
        assert!(text(&vm).contains("-cpu\nHaswell,hle=off,rtm=off\n"));
    }

    #[test]
    fn b8_the_base_is_read_only() {
        let all = text(&vm());
        let base = all.lines().find(|line| line.contains("\"node-name\":\"base\"")).unwrap();
        assert!(base.contains("\"read-only\":true"));
        let top = all.lines().find(|line| line.contains("\"node-name\":\"disk0\"")).unwrap();
        assert!(top.contains("\"read-only\":false") && top.contains("\"backing\":\"base\""));
    }

    #[test]
    fn commas_in_names_do_not_become_options() {
        let mut vm = vm();
        vm.name = "a,debug-threads=on".into();
        assert!(text(&vm).contains("guest=a,,debug-threads=on,process="));
    }
}
