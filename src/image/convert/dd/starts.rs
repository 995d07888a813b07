//! What a disk starts from: the boot loader in its first sector, or the kernel in it.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use super::{SECTOR, local, refused};
use crate::image::{
    BootPaths, Trouble,
    convert::{partition, tree::Tree},
};

/// The last bytes of a first sector from which a machine starts, or that a partition table of any kind has.
pub(super) const BOOT_SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// What of a first sector is the boot loader's; the table of partitions is behind it.
const LOADER: usize = 440;

type Sector = [u8; SECTOR as usize];

/// The first sector of a disk, unless it is one of another format.
pub(super) fn head(disk: &File) -> Result<Sector, Trouble> {
    let mut head = [0; SECTOR as usize];
    disk.read_exact_at(&mut head, 0).map_err(local)?;
    if head.starts_with(b"QFI\xfb") {
        return Err(refused(
            "it is a disk in the format qcow2: set spec.format to qcow2, and do not compress it".into(),
        ));
    }
    Ok(head)
}

/// Whether a disk is started with the kernel in it, not by its boot loader.
pub(super) fn has_kernel(disk: &File, head: &Sector, named: &BootPaths) -> Result<bool, Trouble> {
    let has_signature = head.ends_with(&BOOT_SIGNATURE);
    let has_loader = has_signature && head[..LOADER].iter().any(|byte| *byte != 0);
    // a boot loader in a partition counts on where on the disk that was
    if partition::is_one(disk).map_err(local)? && (named.kernel.is_some() || !has_loader) {
        return Ok(true);
    }
    if has_loader {
        return Ok(false);
    }
    Err(refused(if has_signature {
        "it has a partition table, but no boot loader in its first sector, from which a VM starts: install one there, \
         name a kernel in spec.os, or save the partition with the root file system alone"
            .into()
    } else {
        "it has neither a boot loader nor a file system of the kind ext2, ext3 or ext4 with a kernel: name a kernel in \
         spec.os"
            .into()
    }))
}

/// What is in a partition of this size, as far as it matters to whoever starts it.
pub(super) fn tree(disk: &File, raw: &Path, named: &BootPaths, size: u64) -> Result<Tree, Trouble> {
    let length = partition::length(disk).map_err(local)?;
    if length > size {
        return Err(refused(format!("its file system has {length} bytes, and the disk only {size}: it was cut off")));
    }
    let tree = partition::tree(raw, named)?;
    if tree.len() == 0 {
        return Err(refused("its file system cannot be read: debugfs does not know it, or it is damaged".into()));
    }
    Ok(tree)
}
