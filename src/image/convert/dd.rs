//! A disk's bytes, compressed or not, as environments of kind `dd` are: unpacked with a bound, and written as qcow2.
//!
//! On metal they are written over a partition, or over a whole disk. What was a whole disk has a boot loader, which
//! starts the VM. A partition is started with the kernel and the initial ram disk in it, as Kadeploy does it: they are
//! taken out of it. Nothing in the disk is changed.

mod starts;

use std::{
    fs::File,
    io::{self, BufRead as _, Seek as _, SeekFrom, Write as _},
    path::Path,
};

use super::{
    DISK, HARMLESS, RATIO, RAW,
    compression::{self, Compression},
    disk,
};
use crate::image::{BootPaths, Trouble, TroubleKind};

/// Blocks of zeros of this size are left out.
const BLOCK: usize = 1 << 16;
/// A disk is whole sectors.
const SECTOR: u64 = 512;

/// What a disk may grow to when it is unpacked.
#[derive(Clone, Copy)]
struct Limits {
    /// Bytes of all of it.
    most: u64,
    /// Bytes of it that are written, below which nobody asks for the ratio. Blocks of zeros take no room, and an empty
    /// disk shrinks to nothing.
    harmless: u64,
}

/// What a packed disk was.
pub(in crate::image) struct Unpacked {
    /// Size of the disk as the guest sees it.
    pub(in crate::image) virtual_size: u64,
    /// Whether its kernel and its initial ram disk lie beside it.
    pub(in crate::image) has_boot_files: bool,
    /// For people.
    pub(in crate::image) log: String,
}

/// Unpacks `packed` into a disk of at most `most` bytes in `work`. If no kernel from outside starts it, `boot` has the
/// one that its description names. Blocking. `packed` is removed, and after a failure what was begun.
pub(in crate::image) fn unpack(
    packed: &Path,
    work: &Path,
    most: u64,
    boot: Option<&BootPaths>,
) -> Result<Unpacked, Trouble> {
    let unpacked = try_unpack(packed, work, Limits { most, harmless: HARMLESS }, boot);
    if unpacked.is_err() {
        super::remove(work);
    }
    // what they take on the disk is needed for the next file
    let _ = std::fs::remove_file(packed);
    let _ = std::fs::remove_file(work.join(RAW));
    unpacked
}

fn try_unpack(packed: &Path, work: &Path, limits: Limits, boot: Option<&BootPaths>) -> Result<Unpacked, Trouble> {
    let raw = work.join(RAW);
    let (disk, compression, virtual_size) = write(packed, &raw, limits)?;
    // what it takes on the disk is needed for what is made of it
    let _ = std::fs::remove_file(packed);
    let mut log = vec![format!("disk: {compression}, {} MiB", virtual_size >> 20)];
    let head = starts::head(&disk)?;
    let named = match boot {
        Some(named) if starts::has_kernel(&disk, &head, named)? => Some(named),
        Some(_) | None => None,
    };
    if let Some(named) = named {
        let tree = starts::tree(&disk, &raw, named, virtual_size)?;
        super::boot_files(&raw, work, (&tree, named), refused, &mut log)?;
    } else if boot.is_some() {
        log.push("it is started by its boot loader".into());
    }
    disk::pack(&raw, &work.join(DISK))?;
    Ok(Unpacked { virtual_size, has_boot_files: named.is_some(), log: super::tail(&log) })
}

/// Unpacks it, and says what it was compressed with and how many bytes it has.
fn write(packed: &Path, raw: &Path, limits: Limits) -> Result<(File, Compression, u64), Trouble> {
    let broken = |error: io::Error| refused(format!("it cannot be read: {error}"));
    let packed = File::open(packed).map_err(local)?;
    let length = packed.metadata().map_err(local)?.len();
    let (compression, mut from) = compression::open(packed).map_err(broken)?;
    let mut disk = File::create_new(raw).map_err(local)?;
    let (mut size, mut written) = (0_u64, 0_u64);
    loop {
        let bytes = from.fill_buf().map_err(broken)?;
        let count = bytes.len().min(BLOCK);
        if count == 0 {
            break;
        }
        size += count as u64;
        if size > limits.most {
            return Err(refused(format!("it is larger than {} bytes", limits.most)));
        }
        if bytes[..count].iter().all(|byte| *byte == 0) {
            disk.seek(SeekFrom::Current(count as i64)).map_err(local)?;
        } else {
            written += count as u64;
            if written > limits.harmless && written / RATIO > length {
                return Err(refused(format!("it unpacks to more than {RATIO} times its size: that is no disk")));
            }
            disk.write_all(&bytes[..count]).map_err(local)?;
        }
        from.consume(count);
    }
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(refused(format!(
            "its {size} bytes are no whole sectors of {SECTOR}: it was cut off, or is no disk"
        )));
    }
    disk.set_len(size).map_err(local)?;
    Ok((disk, compression, size))
}

fn local(error: io::Error) -> Trouble {
    Trouble::passing(TroubleKind::Importer, format!("failed to unpack the disk: {error}"))
}

fn refused(why: String) -> Trouble {
    Trouble::refused(TroubleKind::Unusable, format!("the disk is refused: {why}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use rstest::rstest;

    use super::{starts::BOOT_SIGNATURE, *};

    fn disk(boots: bool) -> Vec<u8> {
        let mut disk = vec![0; 3 << 20];
        disk[2 << 20] = 7;
        if boots {
            disk[0] = 0xeb;
            disk[510..512].copy_from_slice(&BOOT_SIGNATURE);
        }
        disk
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        to.write_all(data).unwrap();
        to.finish().unwrap()
    }

    fn unpacked(packed: &[u8], most: u64, has_kernel: bool) -> Result<(Unpacked, Vec<u8>), Trouble> {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("packed"), packed).unwrap();
        let inside = BootPaths::default();
        let found = unpack(&at("packed"), directory.path(), most, (!has_kernel).then_some(&inside));
        assert!(!at(RAW).exists() && !at("packed").exists() && at(DISK).exists() == found.is_ok());
        let found = found?;
        let back = ["convert", "-f", "qcow2", "-O", "raw", "disk.qcow2", "back"];
        let made = std::process::Command::new("qemu-img").current_dir(directory.path()).args(back).status().unwrap();
        assert!(made.success());
        Ok((found, std::fs::read(at("back")).unwrap()))
    }

    #[rstest]
    #[case::as_it_is(|data: &[u8]| data.to_vec())]
    #[case::gzip(gzip)]
    #[case::zstd(|data: &[u8]| zstd::encode_all(data, 1).unwrap())]
    fn a_packed_disk_is_the_same_disk(#[case] pack: fn(&[u8]) -> Vec<u8>) {
        let (found, back) = unpacked(&pack(&disk(true)), 1 << 30, false).unwrap();
        assert!(found.virtual_size == 3 << 20 && back == disk(true), "{}", found.log);
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_unpacked() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let write = |disk: &[u8], raw: &str| {
            std::fs::write(at("packed"), zstd::encode_all(disk, 1).unwrap()).unwrap();
            super::write(&at("packed"), &at(raw), Limits { most: 1 << 30, harmless: 1 << 20 })
        };
        let trouble = write(&vec![7; 64 << 20], "bomb").map(drop).unwrap_err();
        assert!(!trouble.again && trouble.message.contains("more than 100 times its size"), "{trouble}");
        let written = std::fs::metadata(at("bomb")).unwrap().len();
        assert!(written <= 2 << 20, "{written}");
        let mut empty = disk(true);
        empty.resize(64 << 20, 0);
        let (_, _, size) = write(&empty, "empty").unwrap();
        assert_eq!(size, 64 << 20, "zeros take no room");
    }

    #[test]
    fn what_is_no_disk_is_refused_in_words() {
        let refused = |packed: &[u8], most| unpacked(packed, most, false).map(drop).unwrap_err().message;
        assert!(refused(&gzip(&disk(false)), 1 << 30).contains("neither a boot loader nor a file system"));
        let mut table = disk(true);
        table[0] = 0;
        assert!(refused(&gzip(&table), 1 << 30).contains("no boot loader in its first sector"));
        assert!(unpacked(&gzip(&disk(false)), 1 << 30, true).is_ok(), "a kernel from outside starts it");
        assert!(refused(&gzip(&disk(true)), 1 << 20).contains("larger than"), "it grows without end");
        let packed = gzip(&disk(true));
        assert!(refused(&packed[..packed.len() / 2], 1 << 30).contains("cannot be read"), "cut off");
        assert!(refused(&disk(true)[..1000], 1 << 30).contains("no whole sectors"));
        assert!(refused(b"", 1 << 30).contains("no whole sectors"));
        let mut other = vec![0; 4096];
        other[..4].copy_from_slice(b"QFI\xfb");
        assert!(refused(&other, 1 << 30).contains("set spec.format to qcow2"));
    }

    #[test]
    fn a_partition_is_started_with_the_kernel_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let made =
            std::process::Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(at("part")).arg("4M").status();
        assert!(made.unwrap().success());
        let plain = std::fs::read(at("part")).unwrap();
        let mut with_loader = plain.clone();
        with_loader[0] = 0xeb;
        with_loader[510..512].copy_from_slice(&BOOT_SIGNATURE);
        let unpack = |disk: &[u8], kernel: Option<&str>| {
            std::fs::write(at("packed"), gzip(disk)).unwrap();
            let named = BootPaths { kernel: kernel.map(str::to_owned), initrd: None };
            super::unpack(&at("packed"), directory.path(), 1 << 30, Some(&named)).map(|found| found.has_boot_files)
        };
        let words = |found: Result<bool, Trouble>| found.unwrap_err().message;
        assert!(words(unpack(&plain, None)).contains("the disk is refused: it has no kernel"));
        assert!(words(unpack(&with_loader, Some("/boot/vmlinuz"))).contains("names the kernel /boot/vmlinuz"));
        assert!(!unpack(&with_loader, None).unwrap(), "its boot loader starts it");
        assert!(words(unpack(&plain[..2 << 20], None)).contains("it was cut off"));
        let mut of_another_kind = plain.clone();
        of_another_kind[1024 + 99] = 0x40;
        assert!(words(unpack(&of_another_kind, None)).contains("its file system cannot be read"));
    }
}
