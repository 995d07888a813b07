//! Which kernel and initial ram disk an environment boots with.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

use super::{initrd, names::show, tree::Tree};
use crate::image::BootPaths;

/// What is looked for, in order: what boot loaders of all distributions are given.
const KERNELS: [&str; 2] = ["vmlinuz", "boot/vmlinuz"];
const INITRDS: [&str; 4] = ["initrd.img", "boot/initrd.img", "initrd", "boot/initrd"];
/// And if none of them is there: what the only one in /boot begins with.
const KERNEL: &str = "vmlinuz-";
const INITRD: [&str; 3] = ["initrd.img-", "initramfs-", "initrd-"];
/// Largest kernel or initial ram disk.
const LIMIT: u64 = 1 << 30;

/// A file in it, with its size.
pub(super) type Found = (Vec<u8>, u64);

/// The kernel and the initial ram disk: those that are named, or else those that are there.
pub(super) fn find(tree: &Tree, named: &BootPaths) -> Result<(Found, Found), String> {
    let kernel = match &named.kernel {
        Some(path) => described(tree, "kernel", path)?,
        None => one_of(tree, "kernel", "/vmlinuz", &KERNELS, &[KERNEL])?,
    };
    let initrd = match &named.initrd {
        Some(path) => described(tree, "initial ram disk", path)?,
        None => one_of(tree, "initial ram disk", "/initrd.img", &INITRDS, &INITRD)?,
    };
    Ok((kernel, initrd))
}

fn described(tree: &Tree, what: &str, path: &str) -> Result<Found, String> {
    let found = tree.file(path.trim_start_matches('/').as_bytes())?;
    bounded(what, found.ok_or_else(|| format!("the description names the {what} {path}, which is no file in it"))?)
}

fn one_of(tree: &Tree, what: &str, usual: &str, names: &[&str], begins: &[&str]) -> Result<Found, String> {
    for name in names {
        if let Some(found) = tree.file(name.as_bytes())? {
            return bounded(what, found);
        }
    }
    let boot = tree.resolve(b"boot")?.unwrap_or_default();
    let mut only: Vec<&[u8]> =
        tree.within(&boot).filter(|name| begins.iter().any(|begin| name.starts_with(begin.as_bytes()))).collect();
    only.sort_unstable();
    match only.as_slice() {
        [] => Err(format!("it has no {what}: {usual} must be one, or a link to one in it")),
        [name] => {
            let path = [&boot, &b"/"[..], name].concat();
            let found = tree.file(&path)?.ok_or_else(|| format!("{} leads to no file", show(&path)))?;
            bounded(what, found)
        }
        [first, second, ..] => Err(format!(
            "it has more than one {what} in /boot ({}, {}): let {usual} be a link to one of them",
            show(first),
            show(second)
        )),
    }
}

fn bounded(what: &str, found: Found) -> Result<Found, String> {
    match found.1 {
        0 => Err(format!("the {what} {} is empty", show(&found.0))),
        size if size > LIMIT => Err(format!("the {what} {} has more than {LIMIT} bytes", show(&found.0))),
        _ => Ok(found),
    }
}

/// Checks that a file is a kernel that QEMU can start on this architecture.
pub(super) fn check_kernel(path: &Path) -> Result<(), String> {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(0x202))?;
        file.read_exact(&mut magic)
    });
    if read.is_ok() && &magic == b"HdrS" {
        return Ok(());
    }
    Err("its kernel is none for 64-bit x86 (no bzImage)".into())
}

/// Checks that an initial ram disk finds the disk of a VM.
pub(super) fn check_initrd(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|error| format!("its initial ram disk cannot be read: {error}"))?;
    let missing = initrd::missing_drivers(file).map_err(|why| format!("its initial ram disk is unusable: {why}"))?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "its initial ram disk has no {}, so that no VM would find its disk: make it with MODULES=most in \
         /etc/initramfs-tools/initramfs.conf (Debian), or dracut --no-hostonly",
        missing.join(" and no ")
    ))
}

#[cfg(test)]
mod tests {
    use super::{super::tree::Node, *};

    fn find_in(nodes: &[(&str, Node)]) -> Result<(String, String), String> {
        let mut tree = Tree::default();
        for (path, node) in nodes {
            tree.add(path.as_bytes(), node.clone()).unwrap();
        }
        let text = |found: Found| String::from_utf8(found.0).unwrap();
        find(&tree, &BootPaths::default()).map(|(kernel, initrd)| (text(kernel), text(initrd)))
    }

    fn link(to: &str) -> Node {
        Node::Link(to.as_bytes().into())
    }

    #[test]
    fn links_of_debian_lead_to_the_kernel() {
        let files = [
            ("boot/vmlinuz-6.1", Node::File(1)),
            ("boot/vmlinuz-6.2", Node::File(1)),
            ("boot/initrd.img-6.2", Node::File(1)),
            ("vmlinuz", link("boot/vmlinuz-6.2")),
            ("initrd.img", link("/boot/initrd.img-6.2")),
        ];
        let wanted = |kernel: &str, initrd: &str| Ok((kernel.to_owned(), initrd.to_owned()));
        assert_eq!(find_in(&files), wanted("boot/vmlinuz-6.2", "boot/initrd.img-6.2"));
        let one = [("boot/vmlinuz-5", Node::File(1)), ("boot/initramfs-5.img", Node::File(1))];
        assert_eq!(find_in(&one), wanted("boot/vmlinuz-5", "boot/initramfs-5.img"));
    }

    #[test]
    fn what_the_description_names_comes_first() {
        let mut tree = Tree::default();
        for path in ["vmlinuz", "initrd.img", "boot/vmlinuz-9"] {
            tree.add(path.as_bytes(), Node::File(1)).unwrap();
        }
        let named = |kernel: &str| BootPaths { kernel: Some(kernel.into()), initrd: None };
        let (kernel, initrd) = find(&tree, &named("/boot/vmlinuz-9")).unwrap();
        assert_eq!((kernel.0.as_slice(), initrd.0.as_slice()), (&b"boot/vmlinuz-9"[..], &b"initrd.img"[..]));
        let error = find(&tree, &named("/boot/vmlinuz-8")).unwrap_err();
        assert!(error.contains("names the kernel /boot/vmlinuz-8"), "{error}");
    }

    #[test]
    fn what_is_missing_is_told() {
        let error = |nodes: &[(&str, Node)]| find_in(nodes).unwrap_err();
        assert!(error(&[("vmlinuz", link("/etc/passwd"))]).contains("no kernel"), "not this machine's");
        let two = [("boot/vmlinuz-1", Node::File(1)), ("boot/vmlinuz-2", Node::File(1))];
        assert!(error(&two).contains("more than one kernel"));
        assert!(error(&[("vmlinuz", Node::File(1))]).contains("no initial ram disk"));
        assert!(error(&[("vmlinuz", Node::File(0))]).contains("is empty"));
        assert!(error(&[("vmlinuz", Node::File(2 << 30))]).contains("more than"));
    }
}
