use std::{collections::BTreeMap, io::Cursor};

use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::image::convert::compression::open;

const LIMITS: Limits = Limits { disk: 1 << 30, archive: 1 << 20 };

fn entry(kind: Kind, path: &str) -> Entry {
    Entry { kind, ..scrub::directory(path.into()) }
}

fn file(path: &str, content: &[u8]) -> (Entry, Vec<u8>) {
    let entry = Entry { size: content.len() as u64, mode: 0o644, ..entry(Kind::File, path) };
    (entry, content.to_vec())
}

fn link(kind: Kind, path: &str, target: &str) -> (Entry, Vec<u8>) {
    (Entry { target: target.into(), ..entry(kind, path) }, Vec::new())
}

fn device(path: &str, kind: Kind, device: (u32, u32)) -> (Entry, Vec<u8>) {
    (Entry { device, ..entry(kind, path) }, Vec::new())
}

/// An archive with these entries.
fn archive(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut all = Vec::new();
    let mut to = Writer::new(&mut all);
    for (entry, content) in entries {
        to.begin(entry).unwrap();
        to.content(content).unwrap();
        to.pad(content.len() as u64).unwrap();
    }
    to.finish().unwrap();
    all
}

/// Entries with their content by name, what was found, and the log.
type Made = (BTreeMap<String, (Entry, Vec<u8>)>, Passed, Vec<String>);

/// What a pass makes of an archive.
fn passed(data: Vec<u8>, limits: Limits) -> Result<Made, String> {
    let (mut to, mut log) = (Vec::new(), Vec::new());
    let (_, from) = open(Cursor::new(data)).unwrap();
    let passed = match pass(from, &mut to, limits, &mut log) {
        Ok(passed) => passed,
        Err(Ended::Refused(why)) => return Err(why),
        Err(Ended::Writing(error)) => panic!("{error}"),
    };
    let mut reader = Reader::new(Cursor::new(to));
    let mut all = BTreeMap::new();
    while let Some(entry) = reader.next().unwrap() {
        let mut content = Vec::new();
        while content.len() as u64 != entry.size {
            let found = reader.content().unwrap();
            let count = found.len();
            content.extend_from_slice(found);
            reader.used(count);
        }
        assert!(reader.content().unwrap().is_empty());
        let name = String::from_utf8(entry.path.clone()).unwrap();
        assert!(all.insert(name, (entry, content)).is_none(), "twice");
    }
    Ok((all, passed, log))
}

fn refusal(entries: &[(Entry, Vec<u8>)]) -> String {
    match passed(archive(entries), LIMITS) {
        Ok((all, ..)) => panic!("taken: {:?}", all.keys()),
        Err(why) => why,
    }
}

#[test]
fn what_belongs_to_one_machine_is_left_out_and_replaced() {
    let entries = [
        file("./etc/fstab", b"/dev/sda5 / ext4 defaults 0 1"),
        file("etc/hostname", b"griffon-1.nancy"),
        file("etc/machine-id", b"0123456789abcdef"),
        link(Kind::SymbolicLink, "var/lib/dbus/machine-id", "/etc/machine-id"),
        file("etc/ssh/sshd_config", b"UsePAM yes"),
        file("etc/ssh/ssh_host_ed25519_key", b"secret"),
        file("etc/ssh/ssh_host_ed25519_key.pub", b"public"),
        file("etc/udev/rules.d/70-persistent-net.rules", b"SUBSYSTEM==net"),
        file("etc/udev/rules.d/60-own.rules", b"KERNEL==sr0"),
        file("etc/network/interfaces", b"auto eno1"),
        file("etc/network/interfaces.d/eno2", b"auto eno2"),
        file("usr/sbin/ifup", b"elf"),
        file("usr/sbin/sshd", b"elf"),
        file("usr/bin/ssh-keygen", b"elf"),
        link(Kind::SymbolicLink, "lib", "usr/lib"),
        file("usr/lib/systemd/systemd", b"elf"),
        file("usr/lib/os-release", b"NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"),
        link(Kind::SymbolicLink, "etc/os-release", "../usr/lib/os-release"),
        file("var/lib/cloud/instances/i-1/sem/config_ssh", b""),
        device("dev/sda", Kind::Block, (8, 0)),
        file("proc/1/stat", b"running"),
    ];
    let (all, passed, log) = passed(archive(&entries), LIMITS).unwrap();
    let text = |name: &str| all.get(name).map(|(_, content)| std::str::from_utf8(content).unwrap());
    assert_eq!(text("etc/fstab"), Some("LABEL=root / ext4 defaults 0 1\n"));
    assert_eq!((text("etc/hostname"), text("etc/machine-id")), (Some("localhost\n"), Some("")));
    assert!(text("etc/network/interfaces").unwrap().ends_with("iface eth0 inet dhcp\n"));
    assert!(text("etc/systemd/system/vmdeploy-host-keys.service").unwrap().contains("ssh-keygen -A"));
    let wants = &all["etc/systemd/system/multi-user.target.wants/vmdeploy-host-keys.service"].0;
    assert_eq!(wants.target, b"/etc/systemd/system/vmdeploy-host-keys.service");
    for kept in ["etc/ssh/sshd_config", "etc/udev/rules.d/60-own.rules", "usr/sbin/sshd", "lib", "etc/network"] {
        assert!(all.contains_key(kept), "{kept}");
    }
    let gone = ["ssh_host", "persistent", "interfaces.d/", "dbus/machine-id", "cloud/instances", "dev/sda", "stat"];
    assert!(!all.keys().any(|name| gone.iter().any(|gone| name.contains(gone))), "{:?}", all.keys());
    assert_eq!(passed.os.as_deref(), Some("Debian GNU/Linux 12"));
    assert!(log[0].contains("ssh host keys (2)"), "{log:?}");
    assert!(log.iter().any(|line| line.contains("qemu-guest-agent is missing")), "{log:?}");
}

#[test]
fn cloud_init_configures_the_network_itself() {
    let entries = [file("usr/sbin/ifup", b""), file("usr/bin/cloud-init", b""), file("usr/sbin/qemu-ga", b"")];
    let (all, _, log) = passed(archive(&entries), LIMITS).unwrap();
    assert!(!String::from_utf8_lossy(&all["etc/network/interfaces"].1).contains("eth0"));
    assert_eq!(log, ["network: cloud-init"], "nothing is missing");
}

#[test]
fn attributes_long_names_and_rights_stay() {
    let name = format!("usr/{}/ping", "long/".repeat(60));
    let (mut ping, content) = file(&name, b"elf");
    ping.attributes = vec![
        ("security.capability".into(), vec![1, 0, 0, 2, 0, 32, b'\n', 0]),
        ("security.selinux".into(), b"of another machine".to_vec()),
    ];
    (ping.mode, ping.owner) = (0o4755, (70_000, 5_000_000));
    let entries = [(ping.clone(), content), link(Kind::HardLink, "bin/ping", &name)];
    let (all, ..) = passed(archive(&entries), LIMITS).unwrap();
    ping.path = name.replace("//", "/").into();
    let (found, content) = &all[std::str::from_utf8(&ping.path).unwrap()];
    ping.attributes.truncate(1);
    assert_eq!((found, content.as_slice()), (&ping, &b"elf"[..]));
    assert_eq!(all["bin/ping"].0.target, ping.path);
    assert_eq!(all["usr/long"].0.mode, 0o755, "a directory that is only implied");
}

#[rstest]
#[case::parent(&[file("../../etc/passwd", b"x")], "leads out of the archive")]
#[case::parent_inside(&[file("a/../../b", b"x")], "leads out of the archive")]
#[case::absolute(&[file("/etc/passwd", b"x")], "begins at the root")]
#[case::through_a_link(&[link(Kind::SymbolicLink, "etc", "/etc"), file("etc/passwd", b"x")], "lies below the link")]
#[case::below_a_file(&[file("etc", b"x"), file("etc/passwd", b"x")], "no directory")]
#[case::twice(&[file("etc/passwd", b"x"), link(Kind::SymbolicLink, "etc/passwd", "/etc/shadow")], "twice")]
#[case::hard_link_outside(&[link(Kind::HardLink, "x", "../../etc/shadow")], "leads out of the archive")]
#[case::hard_link_absolute(&[link(Kind::HardLink, "x", "/etc/shadow")], "begins at the root")]
#[case::hard_link_to_nothing(&[link(Kind::HardLink, "x", "y")], "no file before it")]
#[case::hard_link_to_link(&[link(Kind::SymbolicLink, "y", "/etc/shadow"), link(Kind::HardLink, "x", "y")], "no file before it")]
#[case::disk_node(&[device("srv/disk", Kind::Block, (8, 0))], "device node (8:0)")]
#[case::memory_node(&[device("srv/mem", Kind::Character, (1, 1))], "device node (1:1)")]
#[case::link_to_nothing(&[link(Kind::SymbolicLink, "x", "")], "names nothing")]
#[case::link_loop(&[link(Kind::SymbolicLink, "etc", "etc2"), link(Kind::SymbolicLink, "etc2", "etc")], "a loop")]
#[case::long_part(&[file(&"x".repeat(300), b"x")], "more than 255 bytes")]
#[case::long_name(&[file(&format!("{}x", "x/".repeat(3000)), b"x")], "more than 4095 bytes")]
#[case::root_is_a_file(&[file("./", b"x")], "is no file, but has 1 bytes")]
fn an_archive_that_attacks_is_refused(#[case] entries: &[(Entry, Vec<u8>)], #[case] words: &str) {
    let why = refusal(entries);
    assert!(why.contains(words), "{why}");
}

#[test]
fn usual_devices_of_a_chroot_stay() {
    let null = device("var/spool/postfix/dev/null", Kind::Character, (1, 3));
    let (all, ..) = passed(archive(&[null]), LIMITS).unwrap();
    assert_eq!(all["var/spool/postfix/dev/null"].0.device, (1, 3));
}

#[test]
fn bombs_are_refused_before_they_are_unpacked() {
    let of = |size| {
        let mut entry = file("big", b"").0;
        entry.size = size;
        archive(&[(entry, Vec::new())])
    };
    let why = passed(of(1 << 40), LIMITS).err().unwrap();
    assert!(why.contains("raise spec.diskSize"), "{why}");
    let why = passed(of(u64::MAX >> 1), LIMITS).err().unwrap();
    assert!(why.contains("raise spec.diskSize"), "{why}");
    let limits = Limits { disk: 1 << 40, archive: 1 << 20 };
    let why = passed(of(2 << 30), limits).err().unwrap();
    assert!(why.contains("more than 100 times its size"), "{why}");
    let zeros = zstd::encode_all(Cursor::new(archive(&[file("zeros", &vec![0; 8 << 20])])), 1).unwrap();
    let why = passed(zeros, Limits { disk: 8 << 20, archive: 1000 }).err().unwrap();
    assert!(why.contains("do not fit"), "{why}");
}

#[test]
fn more_files_than_a_disk_has_room_for_are_refused() {
    let entries: Vec<_> = (0..2000).map(|n| file(&format!("d/{n}"), b"")).collect();
    let limits = Limits { disk: 16 << 20, archive: 1 << 20 };
    let why = passed(archive(&entries), limits).err().unwrap();
    assert!(why.contains("more than 969 files"), "{why}");
}

#[test]
fn lying_sizes_and_what_is_cut_off_are_refused() {
    let whole = archive(&[file("a", &[7; 5000]), file("b", b"x")]);
    for end in [600, 3000, 5632, 6144 + 300, whole.len() - 1024] {
        let why = passed(whole[..end].to_vec(), LIMITS).err().unwrap();
        assert!(why.contains("ends too early"), "{end}: {why}");
    }
    let mut longer = entry(Kind::File, "a");
    longer.size = 1 << 20;
    let why = refusal(&[(longer, vec![7; 512])]);
    assert!(why.contains("ends too early"), "{why}");
    let mut behind = whole.clone();
    behind.extend_from_slice(b"more");
    assert!(passed(behind, LIMITS).err().unwrap().contains("behind the end"));
    let mut damaged = whole.clone();
    damaged[120] ^= 1;
    assert!(passed(damaged, LIMITS).err().unwrap().contains("checksum"));
    let mut packed = zstd::encode_all(Cursor::new(whole), 1).unwrap();
    packed.truncate(packed.len() - 3);
    assert!(passed(packed, LIMITS).is_err());
    assert!(passed(b"no archive at all".repeat(100), LIMITS).err().unwrap().contains("not an archive of tar"));
}

#[test]
fn headers_that_say_they_are_long_are_not_read_whole() {
    for kind in [tar::EntryType::GNULongName, tar::EntryType::GNULongLink, tar::EntryType::XHeader] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(1 << 40);
        header.set_cksum();
        let why = passed(header.as_bytes().to_vec(), LIMITS).err().unwrap();
        assert!(why.contains("more than 1048576"), "{why}");
    }
}

#[test]
fn sparse_files_are_refused_instead_of_mangled() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNUSparse);
    for sparse in [header.entry_type(), tar::EntryType::new(b'Z')] {
        header.set_entry_type(sparse);
        header.set_path("core").unwrap();
        header.set_size(0);
        header.set_cksum();
        let why = passed(header.as_bytes().to_vec(), LIMITS).err().unwrap();
        assert!(why.contains("make the archive"), "{why}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(mut data in proptest::collection::vec(any::<u8>(), 512..4096), sums in any::<bool>()) {
        if sums {
            // lets some pass the checksum, so that more than that is tried
            let at = data.len() / 512 * 512;
            for block in data[..at].chunks_mut(512) {
                let mut header = tar::Header::from_byte_slice(block).clone();
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        let _ = passed(data, LIMITS);
    }
}
