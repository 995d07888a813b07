//! Looks into an initial ram disk: without the drivers of virtual disks no guest finds its root.

use std::io::{self, BufRead, BufReader, Read};

use super::compression::{Compression, open};

/// The driver of the disk, and that of the bus which it is on: each a module, or in the list of what is built into the
/// kernel.
const DRIVERS: [&str; 2] = ["virtio_blk", "virtio_pci"];
/// Most bytes of what is unpacked, and most names.
const BYTES: u64 = 4 << 30;
const NAMES: usize = 1_000_000;
/// Longest name, and longest list of what is built in.
const NAME: usize = 4096;
const LIST: u64 = 4 << 20;
const HEADER: usize = 110;
const END: &[u8] = b"TRAILER!!!";

/// Those of the drivers for virtual disks that it lacks.
pub(super) fn missing_drivers(from: impl Read + 'static) -> Result<Vec<&'static str>, String> {
    let (compression, from) = open(from).map_err(broken)?;
    let mut search = Search::default();
    // the processor's microcode comes first, as it is; what follows it may be compressed
    let rest = search.archives(BufReader::new(from.take(BYTES)))?;
    if let (Compression::None, Some(rest)) = (compression, rest) {
        let (compression, from) = open(rest).map_err(broken)?;
        if compression == Compression::None {
            return Err("it is neither an archive of cpio nor one that is compressed".into());
        }
        search.archives(BufReader::new(from.take(BYTES)))?;
    }
    Ok(DRIVERS.into_iter().zip(search.found).filter(|(_, found)| !found).map(|(driver, _)| driver).collect())
}

/// What was found so far.
#[derive(Default)]
struct Search {
    names: usize,
    found: [bool; DRIVERS.len()],
}

impl Search {
    fn is_over(&self) -> bool {
        self.found.iter().all(|found| *found)
    }

    /// Notes which driver it is, by the name of a file or by a line of the list of what is built in.
    fn note(&mut self, path: &str) {
        let last = path.rsplit('/').next().unwrap_or_default();
        for (driver, found) in DRIVERS.iter().zip(&mut self.found) {
            *found |= last.strip_prefix(*driver).is_some_and(|ending| ending.starts_with(".ko"));
        }
    }

    /// Looks through archives that follow each other, until nothing is missing. Gives back what follows them.
    fn archives<R: BufRead>(&mut self, mut from: R) -> Result<Option<R>, String> {
        loop {
            let head = from.fill_buf().map_err(broken)?;
            match head.first() {
                None => return Ok(None),
                // padding up to the next one
                Some(0) => {
                    let zeros = head.iter().take_while(|byte| **byte == 0).count();
                    from.consume(zeros);
                }
                Some(b'0') => {
                    self.archive(&mut from)?;
                    if self.is_over() {
                        return Ok(None);
                    }
                }
                Some(_) => return Ok(Some(from)),
            }
        }
    }

    fn archive(&mut self, from: &mut impl BufRead) -> Result<(), String> {
        loop {
            self.names += 1;
            if self.names > NAMES {
                return Err(format!("it has more than {NAMES} files"));
            }
            let mut header = [0; HEADER];
            from.read_exact(&mut header).map_err(broken)?;
            if !matches!(&header[..6], b"070701" | b"070702") {
                return Err("it is no archive of cpio, or is damaged".into());
            }
            let field = |n: usize| {
                let text = std::str::from_utf8(&header[6 + 8 * n..14 + 8 * n]).ok();
                text.and_then(|text| u32::from_str_radix(text, 16).ok()).ok_or("it has a number that is none")
            };
            let (size, length) = (u64::from(field(6)?), field(11)? as usize);
            if length > NAME {
                return Err(format!("it has a name of {length} bytes"));
            }
            // name and content each end at a multiple of four
            let mut name = vec![0; (HEADER + length).next_multiple_of(4) - HEADER];
            from.read_exact(&mut name).map_err(broken)?;
            name.truncate(length.saturating_sub(1));
            if name == END {
                return Ok(());
            }
            let name = String::from_utf8_lossy(&name);
            self.note(&name);
            let mut left = size.next_multiple_of(4);
            if name.rsplit('/').next() == Some("modules.builtin") && size <= LIST {
                let mut list = vec![0; left as usize];
                from.read_exact(&mut list).map_err(broken)?;
                left = 0;
                for line in String::from_utf8_lossy(&list).lines() {
                    self.note(line);
                }
            }
            if self.is_over() {
                return Ok(());
            }
            let skipped = io::copy(&mut from.by_ref().take(left), &mut io::sink()).map_err(broken)?;
            if skipped < left {
                return Err(broken(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

fn broken(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early".into(),
        _ => format!("it cannot be read: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write as _};

    use rstest::rstest;

    use super::*;

    /// An archive of cpio with these files.
    fn cpio(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut all = Vec::new();
        for (name, content) in files.iter().copied().chain([("TRAILER!!!", &b""[..])]) {
            let mut fields = [0; 13];
            fields[6] = content.len();
            fields[11] = name.len() + 1;
            all.extend_from_slice(b"070701");
            for field in fields {
                write!(all, "{field:08x}").unwrap();
            }
            all.extend_from_slice(name.as_bytes());
            all.push(0);
            all.resize(all.len().next_multiple_of(4), 0);
            all.extend_from_slice(content);
            all.resize(all.len().next_multiple_of(4), 0);
        }
        all
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 1).unwrap()
    }

    fn early(then: &[u8]) -> Vec<u8> {
        let mut all = cpio(&[("kernel/x86/microcode/AuthenticAMD.bin", b"microcode")]);
        all.resize(all.len().next_multiple_of(512), 0);
        all.extend_from_slice(then);
        all
    }

    fn ask(data: Vec<u8>) -> Result<Vec<&'static str>, String> {
        missing_drivers(Cursor::new(data))
    }

    const NOTHING: [&str; 0] = [];
    const BLK: (&str, &[u8]) = ("usr/lib/modules/6/kernel/drivers/block/virtio_blk.ko", b"elf");
    const PCI: (&str, &[u8]) = ("lib/modules/6/virtio_pci.ko.xz", b"elf");
    const BUILT_IN: &str = "lib/modules/6/modules.builtin";
    const BUILT_IN_BLK: (&str, &[u8]) = (BUILT_IN, b"kernel/fs/ext4/ext4.ko\nkernel/drivers/block/virtio_blk.ko\n");
    const BUILT_IN_PCI: (&str, &[u8]) = (BUILT_IN, b"kernel/drivers/virtio/virtio_pci.ko\nkernel/fs/ext4/ext4.ko\n");
    const BUILT_IN_BOTH: (&str, &[u8]) =
        (BUILT_IN, b"kernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/block/virtio_blk.ko");
    /// What the driver of the bus is made of, and what only names the drivers.
    const OTHER: [(&str, &[u8]); 3] = [
        ("lib/modules/6/virtio_pci_modern_dev.ko", b"virtio_pci.ko"),
        ("lib/modules/6/ahci.ko", b"virtio_blk.ko"),
        ("lib/modules/6/modules.order", b"kernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/block/virtio_blk.ko\n"),
    ];

    #[rstest]
    #[case::modules(&[("init", &b"#!/bin/sh"[..]), PCI, BLK], &NOTHING)]
    #[case::built_in(&[BUILT_IN_BOTH], &NOTHING)]
    #[case::disk_built_in(&[BUILT_IN_BLK, PCI], &NOTHING)]
    #[case::bus_built_in(&[BLK, BUILT_IN_PCI], &NOTHING)]
    #[case::no_disk(&[PCI], &["virtio_blk"])]
    #[case::no_bus(&[BLK], &["virtio_pci"])]
    #[case::no_disk_built_in(&[BUILT_IN_PCI], &["virtio_blk"])]
    #[case::no_bus_built_in(&[BUILT_IN_BLK], &["virtio_pci"])]
    #[case::made_for_metal(&OTHER, &["virtio_blk", "virtio_pci"])]
    fn the_drivers_are_found_wherever_they_are(#[case] files: &[(&str, &[u8])], #[case] missing: &[&str]) {
        let plain = cpio(files);
        for (how, data) in [
            ("plain", plain.clone()),
            ("packed", zstd(&plain)),
            ("behind microcode", early(&plain)),
            ("packed behind microcode", early(&zstd(&plain))),
            ("second archive", zstd(&early(&plain))),
        ] {
            assert_eq!(ask(data).unwrap(), missing, "{how}");
        }
    }

    #[test]
    fn one_driver_may_be_in_another_archive_than_the_other() {
        let mut all = cpio(&[BLK]);
        all.extend_from_slice(&zstd(&cpio(&[PCI])));
        assert_eq!(ask(all).unwrap(), NOTHING);
    }

    #[test]
    fn rubbish_is_told() {
        let plain = cpio(&[("init", &[7; 5000])]);
        for (data, words) in [
            (b"hello".to_vec(), "neither"),
            (b"070701 and no more".to_vec(), "ends too early"),
            (plain[..1000].to_vec(), "ends too early"),
            (zstd(&plain)[..40].to_vec(), "ends too early"),
            (zstd(b"0 is not cpio, however long it may be").repeat(3), "no archive of cpio"),
        ] {
            let error = ask(data).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
