//! What of an environment must not become part of a VM: what one machine was known by, and what was made for its
//! disks and cards. And what a VM has in its place.

use super::{
    names::split,
    reader::{Entry, Kind},
    tree::{Node, Tree},
};

/// Label of the root file system; the kernel is told by it, too.
pub(super) const LABEL: &str = "root";
/// When all that is added was last changed: the same archive makes the same disk.
const TIME: u64 = 1;
const HOST_KEYS: &str = "[Unit]\n\
    Description=Host keys of the ssh server of this machine\n\
    Before=ssh.service sshd.service ssh.socket\n\
    ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key\n\n\
    [Service]\n\
    Type=oneshot\n\
    ExecStart=/usr/bin/ssh-keygen -A\n\n\
    [Install]\n\
    WantedBy=multi-user.target\n";

/// Why a name is left out, if it is.
pub(super) fn left_out(path: &[u8], kind: Kind) -> Option<&'static str> {
    let (above, name) = split(path);
    let ends = |end: &[u8]| name.ends_with(end);
    if kind == Kind::Directory {
        // an empty directory does no harm, and others count on it
        return (path == b"lost+found").then_some("lost+found");
    }
    let found = match above {
        b"etc" => match name {
            b"fstab" => "the table of file systems",
            b"hostname" => "the host's name",
            b"machine-id" => "the machine's id",
            _ => return None,
        },
        b"var/lib/dbus" if name == b"machine-id" => "the machine's id",
        b"etc/ssh" if name.starts_with(b"ssh_host_") && (ends(b"_key") || ends(b"_key.pub")) => "ssh host keys",
        b"etc/udev/rules.d" if name.windows(11).any(|words| words == b"-persistent") => "names of cards and drives",
        b"etc/network" if name == b"interfaces" => "network configuration",
        b"etc/network/interfaces.d" | b"etc/NetworkManager/system-connections" => "network configuration",
        b"etc/netplan" if ends(b".yaml") => "network configuration",
        b"var/lib/dhcp" | b"var/lib/NetworkManager" => "leases",
        b"var/lib/systemd" if name == b"random-seed" => "the seed of randomness",
        b"lost+found" => "lost+found",
        // of a disk that was made by us
        b"etc/systemd/system" if name == b"vmdeploy-host-keys.service" => "units of vmdeploy",
        b"etc/systemd/network" if name == b"80-eth0.network" => "network configuration",
        _ => {
            let below = |directory: &[u8]| path.strip_prefix(directory).is_some_and(|rest| rest.starts_with(b"/"));
            if below(b"proc") || below(b"sys") {
                "files of the running kernel"
            } else if below(b"dev") && matches!(kind, Kind::Character | Kind::Block) {
                "device nodes, which the kernel makes"
            } else if below(b"var/lib/cloud") && !below(b"var/lib/cloud/scripts") {
                "what cloud-init had done"
            } else {
                return None;
            }
        }
    };
    Some(found)
}

/// Whether a device may be in a VM's files, outside of /dev: the ones that every chroot has.
pub(super) fn is_usual(kind: Kind, device: (u32, u32)) -> bool {
    // null, zero, full, random, urandom, kmsg; tty, console, ptmx
    kind == Kind::Character && matches!(device, (1, 3 | 5 | 7 | 8 | 9 | 11) | (5, 0..=2))
}

/// Something that is added.
#[derive(Debug, PartialEq)]
pub(super) struct Added {
    pub(super) entry: Entry,
    pub(super) content: Vec<u8>,
}

/// What a VM gets, by what is in the archive; what it is told besides goes to the log.
pub(super) fn added(tree: &Tree, log: &mut Vec<String>) -> Result<Vec<Added>, String> {
    let has = |path: &str| Ok::<_, String>(tree.resolve(path.as_bytes())?.is_some());
    let mut all = vec![
        file(tree, "etc/fstab", &format!("LABEL={LABEL} / ext4 defaults 0 1\n"))?,
        file(tree, "etc/hostname", "localhost\n")?,
        // empty: made anew at the first boot
        file(tree, "etc/machine-id", "")?,
    ];
    let cloud = has("usr/bin/cloud-init")?;
    let ifupdown = has("sbin/ifup")? || has("usr/sbin/ifup")?;
    if ifupdown {
        let mut text = "auto lo\niface lo inet loopback\n\nsource /etc/network/interfaces.d/*\n".to_owned();
        if !cloud {
            text += "\nauto eth0\niface eth0 inet dhcp\n";
        }
        all.push(file(tree, "etc/network/interfaces", &text)?);
    }
    let networkd = has("usr/lib/systemd/systemd-networkd")? || has("lib/systemd/systemd-networkd")?;
    if networkd && !cloud && !ifupdown && !has("usr/sbin/NetworkManager")? {
        all.push(file(tree, "etc/systemd/network/80-eth0.network", "[Match]\nName=eth0\n\n[Network]\nDHCP=yes\n")?);
        all.extend(enabled(tree, "systemd-networkd.service", "/lib/systemd/system/systemd-networkd.service")?);
    }
    let network = match (cloud, ifupdown || networkd) {
        (true, _) => "cloud-init",
        (false, true) => "DHCP on eth0",
        (false, false) => "left to the guest: neither ifupdown nor systemd-networkd is there",
    };
    log.push(format!("network: {network}"));
    if has("usr/bin/ssh-keygen")? && has("usr/sbin/sshd")? && has("lib/systemd/systemd")? {
        let unit = "etc/systemd/system/vmdeploy-host-keys.service";
        all.push(file(tree, unit, HOST_KEYS)?);
        all.extend(enabled(tree, "vmdeploy-host-keys.service", &format!("/{unit}"))?);
    }
    if !has("usr/sbin/qemu-ga")? {
        log.push("qemu-guest-agent is missing: jobs cannot run commands in this image".into());
    }
    Ok(all)
}

fn file(tree: &Tree, path: &str, content: &str) -> Result<Added, String> {
    let content = content.as_bytes().to_vec();
    let entry = Entry {
        kind: Kind::File,
        path: place(tree, path)?,
        target: Vec::new(),
        mode: 0o644,
        owner: (0, 0),
        modified: TIME,
        size: content.len() as u64,
        device: (0, 0),
        attributes: Vec::new(),
    };
    Ok(Added { entry, content })
}

/// A link by which systemd starts a unit, unless it is there.
fn enabled(tree: &Tree, unit: &str, target: &str) -> Result<Option<Added>, String> {
    let mut added = file(tree, &format!("etc/systemd/system/multi-user.target.wants/{unit}"), "")?;
    if tree.get(&added.entry.path).is_some() {
        return Ok(None);
    }
    added.entry = Entry { kind: Kind::SymbolicLink, target: target.as_bytes().to_vec(), mode: 0o777, ..added.entry };
    Ok(Some(added))
}

/// The name, with links of directories on its way followed.
fn place(tree: &Tree, path: &str) -> Result<Vec<u8>, String> {
    let (above, name) = split(path.as_bytes());
    let mut place = tree.resolve(above)?.unwrap_or_else(|| above.to_vec());
    place.push(b'/');
    place.extend_from_slice(name);
    Ok(place)
}

/// What a directory that is only implied looks like.
pub(super) fn directory(path: Vec<u8>) -> Entry {
    Entry {
        kind: Kind::Directory,
        path,
        target: Vec::new(),
        mode: 0o755,
        owner: (0, 0),
        modified: TIME,
        size: 0,
        device: (0, 0),
        attributes: Vec::new(),
    }
}

/// The name by which a system calls itself, from its `os-release`.
pub(super) fn pretty_name(release: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(release);
    let value = text.lines().find_map(|line| line.trim().strip_prefix("PRETTY_NAME="))?;
    let name: String = value.trim_matches(['"', '\'']).chars().filter(|c| !c.is_control()).take(100).collect();
    (!name.is_empty()).then_some(name)
}

/// Whether a node is worth its place: only those that name files count for the boot.
pub(super) fn node(entry: &Entry) -> Node {
    match entry.kind {
        Kind::Directory => Node::Directory,
        Kind::File => Node::File(entry.size),
        Kind::SymbolicLink => Node::Link(entry.target.clone().into()),
        Kind::HardLink | Kind::Character | Kind::Block | Kind::Fifo => Node::Other,
    }
}
