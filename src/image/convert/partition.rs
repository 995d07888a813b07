//! The image of a partition: a disk that is one file system of the kind ext2, ext3 or ext4. Tells what its kernel and
//! its initial ram disk may be.
//!
//! Of what `debugfs` answers only so much is read, and only names that cannot be misunderstood are taken from it.

use std::{collections::BTreeSet, fs::File, io, os::unix::fs::FileExt as _, path::Path, time::Instant};

use super::{
    debugfs,
    tree::{Node, Tree},
};
use crate::image::{BootPaths, Trouble};

/// Where such a file system says of what kind it is.
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK: usize = 1024;
/// Where in that its magic number is, and which one that is.
const MAGIC_AT: usize = 56;
const MAGIC: [u8; 2] = [0x53, 0xef];
/// Where in that the number of its blocks is, their size, and with one of its features the rest of the number.
const BLOCKS_AT: usize = 4;
const BLOCK_SIZE_AT: usize = 24;
const FEATURES_AT: usize = 96;
const LARGE: u32 = 0x80;
const MORE_BLOCKS_AT: usize = 336;
/// Most directories above a file that is named: of a directory that lies in itself there are any number.
const DEPTH: usize = 16;
/// Most links of a directory that are asked where they lead.
const LINKS: usize = 100;
/// The kinds in the mode of a file.
const KIND: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// Whether a disk is one.
pub(super) fn is_one(disk: &File) -> io::Result<bool> {
    let mut magic = [0; MAGIC.len()];
    Ok(disk.read_at(&mut magic, SUPERBLOCK_AT + MAGIC_AT as u64)? == magic.len() && magic == MAGIC)
}

/// How many bytes it says that it has.
pub(super) fn length(disk: &File) -> io::Result<u64> {
    let mut block = [0; SUPERBLOCK];
    disk.read_exact_at(&mut block, SUPERBLOCK_AT)?;
    let number = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let more = if number(FEATURES_AT) & LARGE == 0 { 0 } else { number(MORE_BLOCKS_AT) };
    let size = 1024_u64.checked_shl(number(BLOCK_SIZE_AT)).unwrap_or_default();
    let blocks = (u64::from(more) << 32) | u64::from(number(BLOCKS_AT));
    Ok(blocks.saturating_mul(size))
}

/// What is at its root, in `/boot`, and beside what is named.
pub(super) fn tree(disk: &Path, named: &BootPaths) -> Result<Tree, Trouble> {
    let (mut tree, until) = (Tree::default(), Instant::now() + debugfs::LIMIT);
    // those above come first
    for directory in directories(named) {
        if directory.is_empty() || tree.get(directory.as_bytes()) == Some(&Node::Directory) {
            list(disk, directory, &mut tree, until)?;
        }
    }
    Ok(tree)
}

fn directories(named: &BootPaths) -> BTreeSet<&str> {
    let mut all = BTreeSet::from(["", "boot"]);
    for path in named.kernel.iter().chain(&named.initrd) {
        let path = path.trim_start_matches('/');
        all.extend(path.match_indices('/').take(DEPTH).map(|(at, _)| &path[..at]));
    }
    all
}

fn list(disk: &Path, directory: &str, tree: &mut Tree, until: Instant) -> Result<(), Trouble> {
    let mut links = 0;
    for line in debugfs::ask(disk, &format!("ls -p \"/{directory}\""), until)?.lines() {
        let Some((inode, kind, name, size)) = entry(line) else { continue };
        let node = match kind {
            DIRECTORY => Node::Directory,
            FILE => Node::File(size),
            LINK if links < LINKS => {
                links += 1;
                target(disk, inode, until)?.map_or(Node::Other, |target| Node::Link(target.into_bytes().into()))
            }
            _ => Node::Other,
        };
        let path = if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") };
        // of a name that is there twice the first counts
        let _ = tree.add(path.as_bytes(), node);
    }
    Ok(())
}

/// Inode, kind, name and size of a line `/inode/mode/uid/gid/name/size/`.
fn entry(line: &str) -> Option<(u32, u32, &str, u64)> {
    let mut fields = line.strip_prefix('/')?.strip_suffix('/')?.split('/');
    let (inode, mode) = (fields.next()?.parse().ok()?, u32::from_str_radix(fields.next()?, 8).ok()?);
    let (name, size) = (fields.nth(2)?, fields.next()?);
    // what was removed from a directory may keep its name there, without an inode
    let is_none = inode == 0 || matches!(name, "" | "." | "..");
    if fields.next().is_some() || is_none || !debugfs::is_plain(name.as_bytes()) {
        return None;
    }
    // a directory has none
    Some((inode, mode & KIND, name, size.parse().unwrap_or_default()))
}

/// Where a link leads, if that is short enough to lie in its inode, as it always is but for a few.
fn target(disk: &Path, inode: u32, until: Instant) -> Result<Option<String>, Trouble> {
    let said = debugfs::ask(disk, &format!("stat <{inode}>"), until)?;
    let quoted = said.split_once("Fast link dest: \"").map(|(_, rest)| rest);
    Ok(quoted.and_then(|rest| Some(rest.rsplit_once('"')?.0.to_owned())))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, process::Command};

    use super::*;

    #[test]
    fn what_starts_a_partition_is_found_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let (root, disk) = (directory.path().join("root"), directory.path().join("disk"));
        fs::create_dir_all(root.join("boot/new")).unwrap();
        fs::create_dir_all(root.join("opt/ours")).unwrap();
        fs::write(root.join("boot/vmlinuz-6"), "kernel").unwrap();
        fs::write(root.join("boot/a name"), "nobody asks for it").unwrap();
        fs::write(root.join("opt/ours/initrd"), "ram disk").unwrap();
        symlink("boot/vmlinuz-6", root.join("vmlinuz")).unwrap();
        symlink(format!("boot/{}", "x".repeat(80)), root.join("initrd.img")).unwrap();
        let made =
            Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).args([&root, &disk]).arg("4M").output();
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

        let file = File::open(&disk).unwrap();
        assert!(is_one(&file).unwrap());
        assert_eq!(length(&file).unwrap(), 4 << 20);
        let named = BootPaths { kernel: None, initrd: Some("/opt/ours/initrd".into()) };
        let tree = tree(&disk, &named).unwrap();
        assert_eq!(tree.file(b"vmlinuz").unwrap(), Some((b"boot/vmlinuz-6".to_vec(), 6)));
        assert_eq!(tree.file(b"opt/ours/initrd").unwrap(), Some((b"opt/ours/initrd".to_vec(), 8)));
        assert_eq!(tree.file(b"initrd.img").unwrap(), None);
        assert_eq!(tree.get(b"boot/new"), Some(&Node::Directory));
        assert_eq!(tree.get(b"boot/a name"), None);
    }

    #[test]
    fn a_disk_with_partitions_is_none() {
        let directory = tempfile::tempdir().unwrap();
        for length in [512, 4096] {
            let disk = directory.path().join("disk");
            fs::write(&disk, vec![0_u8; length]).unwrap();
            assert!(!is_one(&File::open(disk).unwrap()).unwrap());
        }
    }

    #[test]
    fn lines_that_are_not_understood_are_left_out() {
        assert_eq!(entry("/14/100644/0/0/vmlinuz-6.1/77/"), Some((14, FILE, "vmlinuz-6.1", 77)));
        assert_eq!(entry("/13/040755/0/0/boot//"), Some((13, DIRECTORY, "boot", 0)));
        for line in
            ["", "/", "/2/040755/0/0/..//", "/9/100644/0/0/a/b/7/", "/9/100644/0/0/a\"b/7/", "/9/100644/0/0//7/"]
        {
            assert_eq!(entry(line), None, "{line}");
        }
        assert_eq!(entry("/0/000000/0/0/vmlinuz/0/"), None, "one of this name may follow");
    }
}
