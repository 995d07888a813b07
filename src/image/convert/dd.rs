//! A disk's bytes, compressed or not, as environments of kind `dd` are: unpacked with a bound, and written as qcow2.

use std::{
    fs::File,
    io::{BufRead as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

use super::{HARMLESS, RATIO, compression, disk};
use crate::image::{Trouble, TroubleKind};

/// Blocks of zeros of this size are left out.
const BLOCK: usize = 1 << 16;
/// A disk is whole sectors.
const SECTOR: u64 = 512;
/// The last bytes of a first sector from which a machine starts, or that a partition table of any kind has.
const BOOT_SIGNATURE: [u8; 2] = [0x55, 0xaa];

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
    /// For people.
    pub(in crate::image) log: String,
}

/// Unpacks `packed` into a disk of at most `most` bytes and writes it to `to`; `has_kernel` if it is started with a
/// kernel from outside. Blocking.
pub(in crate::image) fn unpack(packed: &Path, to: &Path, most: u64, has_kernel: bool) -> Result<Unpacked, Trouble> {
    let raw = to.with_extension("raw");
    let unpacked = try_unpack(packed, &raw, to, (Limits { most, harmless: HARMLESS }, has_kernel));
    // what it takes on the disk is needed for the next file
    let _ = std::fs::remove_file(&raw);
    unpacked
}

fn try_unpack(packed: &Path, raw: &Path, to: &Path, (limits, has_kernel): (Limits, bool)) -> Result<Unpacked, Trouble> {
    let local =
        |error: std::io::Error| Trouble::passing(TroubleKind::Importer, format!("failed to unpack the disk: {error}"));
    let refused = |why: String| Trouble::refused(TroubleKind::Unusable, format!("the disk is refused: {why}"));
    let broken = |error: std::io::Error| refused(format!("it cannot be read: {error}"));
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
    let mut head = [0; SECTOR as usize];
    disk.read_exact_at(&mut head, 0).map_err(local)?;
    if head.starts_with(b"QFI\xfb") {
        return Err(refused(
            "it is a disk in the format qcow2: set spec.format to qcow2, and do not compress it".into(),
        ));
    }
    if !has_kernel && !head.ends_with(&BOOT_SIGNATURE) {
        return Err(refused(
            "it has no boot sector, so that it is the bytes of a partition rather than of a disk: name a kernel in spec.os".into(),
        ));
    }
    disk::pack(raw, to)?;
    Ok(Unpacked { virtual_size: size, log: format!("disk: {compression}, {} MiB", size >> 20) })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use rstest::rstest;

    use super::*;

    fn disk(boots: bool) -> Vec<u8> {
        let mut disk = vec![0; 3 << 20];
        disk[2 << 20] = 7;
        if boots {
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
        let found = unpack(&at("packed"), &at("disk.qcow2"), most, has_kernel);
        assert!(!at("disk.raw").exists());
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
        let try_unpack = |disk: &[u8], raw: &str| {
            std::fs::write(at("packed"), zstd::encode_all(disk, 1).unwrap()).unwrap();
            let limits = Limits { most: 1 << 30, harmless: 1 << 20 };
            super::try_unpack(&at("packed"), &at(raw), &at("disk.qcow2"), (limits, false))
        };
        let trouble = try_unpack(&vec![7; 64 << 20], "bomb").map(drop).unwrap_err();
        assert!(!trouble.again && trouble.message.contains("more than 100 times its size"), "{trouble}");
        let written = std::fs::metadata(at("bomb")).unwrap().len();
        assert!(written <= 2 << 20, "{written}");
        let mut empty = disk(true);
        empty.resize(64 << 20, 0);
        let found = try_unpack(&empty, "empty").unwrap();
        assert_eq!(found.virtual_size, 64 << 20, "zeros take no room");
    }

    #[test]
    fn what_is_no_disk_is_refused_in_words() {
        let refused = |packed: &[u8], most| unpacked(packed, most, false).map(drop).unwrap_err().message;
        assert!(refused(&gzip(&disk(false)), 1 << 30).contains("no boot sector"));
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
}
