//! Makes a bootable disk of an archive of a root file system, without privileges.
//!
//! One pass: the archive is unpacked, every entry is looked at and passed on to `mke2fs` as it comes, but for what
//! belongs to one machine (`scrub`), so that neither a tree nor a second archive takes room. Then kernel and initial
//! ram disk are copied out of the disk, and it is written as qcow2. Archives come from strangers: what they say of
//! themselves is bounded before it is believed, and links are only followed within the archive.

mod boot;
mod compression;
pub(super) mod dd;
mod debugfs;
mod disk;
mod initrd;
mod names;
mod partition;
mod reader;
mod scrub;
mod stream;
mod tree;
mod writer;

use std::{fs::File, path::Path};

use serde::{Deserialize, Serialize};

use self::{
    disk::Making,
    stream::{Ended, Limits, Passed},
    tree::Tree,
};
use super::{BootPaths, Trouble, TroubleKind};

/// No root file system and no disk shrinks more than this when it is compressed; what does is a bomb.
const RATIO: u64 = 100;
/// Below this nobody asks for the ratio.
const HARMLESS: u64 = 1 << 30;
/// Most characters of the log that are kept.
pub(super) const LOG: usize = 1000;

/// What a conversion found out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Conversion {
    /// What the system calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// What was done, a line each.
    pub log: String,
}

/// Names of the files that a conversion leaves in its directory.
pub const DISK: &str = "disk.qcow2";
/// The kernel.
pub const KERNEL: &str = "vmlinuz";
/// The initial ram disk.
pub const INITRD: &str = "initrd.img";
/// The disk on its way.
const RAW: &str = "disk.raw";

/// Converts `archive` into files in `work`, with a disk of `size` bytes, that boots with what is named. Blocking. What
/// was begun is removed after a failure.
pub fn convert(archive: &Path, work: &Path, size: u64, boot: &BootPaths) -> Result<Conversion, Trouble> {
    let raw = work.join(RAW);
    let converted = try_convert(archive, work, &raw, (size, boot));
    if converted.is_err() {
        remove(work);
    }
    // what was never begun is not there
    let _ = std::fs::remove_file(raw);
    converted
}

/// Removes what a conversion has left in its directory.
pub(super) fn remove(work: &Path) {
    for name in [DISK, KERNEL, INITRD] {
        // what was never begun is not there
        let _ = std::fs::remove_file(work.join(name));
    }
}

fn try_convert(
    archive: &Path,
    work: &Path,
    raw: &Path,
    (size, boot): (u64, &BootPaths),
) -> Result<Conversion, Trouble> {
    let mut log = Vec::new();
    let passed = std::thread::scope(|scope| {
        // of a conversion before this one: that takes a while, and would be in the way later
        scope.spawn(|| remove(work));
        make_disk(archive, raw, size, &mut log)
    })?;
    // nobody uses what is packed before all of it was found right
    let (found, packed) = std::thread::scope(|scope| {
        let packing = scope.spawn(|| disk::pack(raw, &work.join(DISK)));
        let found = disk::check(raw).and_then(|()| boot_files(raw, work, (&passed.tree, boot), refused, &mut log));
        (found, packing.join())
    });
    found?;
    packed.map_err(|_| Trouble::passing(TroubleKind::Importer, "packing the disk broke off"))??;
    Ok(Conversion { os: passed.os, log: tail(&log) })
}

/// Copies kernel and initial ram disk out of the disk, and looks at them.
fn boot_files(
    raw: &Path,
    work: &Path,
    (tree, named): (&Tree, &BootPaths),
    refused: fn(String) -> Trouble,
    log: &mut Vec<String>,
) -> Result<(), Trouble> {
    let (kernel, initrd) = boot::find(tree, named).map_err(refused)?;
    for ((path, length), name) in [(&kernel, KERNEL), (&initrd, INITRD)] {
        debugfs::copy_out(raw, path, *length, &work.join(name))?;
        log.push(format!("/{name} is {}", names::show(path)));
    }
    boot::check_kernel(&work.join(KERNEL)).map_err(refused)?;
    boot::check_initrd(&work.join(INITRD)).map_err(refused)?;
    log.push("the initial ram disk has virtio_blk and virtio_pci".into());
    Ok(())
}

fn make_disk(archive: &Path, raw: &Path, size: u64, log: &mut Vec<String>) -> Result<Passed, Trouble> {
    let open =
        |error: std::io::Error| Trouble::passing(TroubleKind::Importer, format!("failed to open the archive: {error}"));
    let file = File::open(archive).map_err(open)?;
    let limits = Limits { disk: size, archive: file.metadata().map_err(open)?.len() };
    let name = uuid(archive).map_err(open)?;
    let (compression, from) =
        compression::open(file).map_err(|error| refused(format!("it cannot be read: {error}")))?;
    let (making, pipe) = Making::start(raw, size, &name)?;
    // the pipe is closed with this
    let passed = match stream::pass(from, pipe, limits, log) {
        Ok(passed) => passed,
        Err(Ended::Refused(why)) => return Err(refused(why)),
        Err(Ended::Writing(error)) => {
            making.finish()?;
            return Err(Trouble::passing(TroubleKind::Importer, format!("failed to write to mke2fs: {error}")));
        }
    };
    making.finish()?;
    let (files, mib) = (passed.tree.len(), passed.bytes >> 20);
    log.insert(0, format!("archive: {compression}, {files} files, {mib} MiB"));
    Ok(passed)
}

/// An identity for the file system that follows from the archive.
fn uuid(archive: &Path) -> std::io::Result<String> {
    let mut digest = blake3::Hasher::new();
    digest.update_reader(File::open(archive)?)?;
    let hex = digest.finalize().to_hex();
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32]))
}

fn refused(why: String) -> Trouble {
    Trouble::refused(TroubleKind::Unusable, format!("the archive is refused: {why}"))
}

/// The end of the log, as much as fits.
pub(super) fn tail(lines: &[String]) -> String {
    let text = lines.join("\n");
    let skipped = text.chars().count().saturating_sub(LOG);
    text.chars().skip(skipped).collect()
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
