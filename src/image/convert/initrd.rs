//! Looks into an initial ram disk: without the driver of virtual disks no guest finds its root.

use std::io::{self, BufRead, BufReader, Read};

use super::compression::{Compression, open};

/// The driver, as a module and in the kernel's list of what is built in.
const MODULE: &str = "virtio_blk.ko";
/// Most bytes of what is unpacked, and most names.
const BYTES: u64 = 4 << 30;
const NAMES: usize = 1_000_000;
/// Longest name, and longest list of what is built in.
const NAME: usize = 4096;
const LIST: u64 = 4 << 20;
const HEADER: usize = 110;
const END: &[u8] = b"TRAILER!!!";

/// Whether it has the driver for virtual disks.
pub(super) fn has_driver(from: impl Read + 'static) -> Result<bool, String> {
    let (compression, from) = open(from).map_err(broken)?;
    let bounded = BufReader::new(from.take(BYTES));
    let mut names = 0;
    if compression != Compression::None {
        return archives(bounded, &mut names).map(|(found, _)| found);
    }
    // the processor's microcode comes first, as it is; what follows it may be compressed
    let (found, rest) = archives(bounded, &mut names)?;
    match (found, rest) {
        (true, _) | (_, None) => Ok(found),
        (false, Some(rest)) => {
            let (compression, from) = open(rest).map_err(broken)?;
            if compression == Compression::None {
                return Err("it is neither an archive of cpio nor one that is compressed".into());
            }
            archives(BufReader::new(from.take(BYTES)), &mut names).map(|(found, _)| found)
        }
    }
}

/// Looks through archives that follow each other. Says whether one has the driver, and gives back what follows them.
fn archives<R: BufRead>(mut from: R, names: &mut usize) -> Result<(bool, Option<R>), String> {
    loop {
        let head = from.fill_buf().map_err(broken)?;
        match head.first() {
            None => return Ok((false, None)),
            // padding up to the next one
            Some(0) => {
                let zeros = head.iter().take_while(|byte| **byte == 0).count();
                from.consume(zeros);
            }
            Some(b'0') => {
                if archive(&mut from, names)? {
                    return Ok((true, None));
                }
            }
            Some(_) => return Ok((false, Some(from))),
        }
    }
}

fn archive(from: &mut impl BufRead, names: &mut usize) -> Result<bool, String> {
    loop {
        *names += 1;
        if *names > NAMES {
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
            return Ok(false);
        }
        let name = String::from_utf8_lossy(&name);
        let last = name.rsplit('/').next().unwrap_or_default();
        if last.starts_with(MODULE) {
            return Ok(true);
        }
        let mut left = size.next_multiple_of(4);
        if last == "modules.builtin" && size <= LIST {
            let mut list = vec![0; left as usize];
            from.read_exact(&mut list).map_err(broken)?;
            left = 0;
            if list.windows(MODULE.len()).any(|words| words == MODULE.as_bytes()) {
                return Ok(true);
            }
        }
        let skipped = io::copy(&mut from.by_ref().take(left), &mut io::sink()).map_err(broken)?;
        if skipped < left {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
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

    fn ask(data: Vec<u8>) -> Result<bool, String> {
        has_driver(Cursor::new(data))
    }

    #[rstest]
    #[case::module(&[("init", &b"#!/bin/sh"[..]), ("usr/lib/modules/6/kernel/drivers/block/virtio_blk.ko", b"elf")], true)]
    #[case::packed_module(&[("lib/modules/6/virtio_blk.ko.xz", &b"elf"[..])], true)]
    #[case::built_in(&[("lib/modules/6/modules.builtin", &b"kernel/fs/ext4/ext4.ko\nkernel/drivers/block/virtio_blk.ko\n"[..])], true)]
    #[case::made_for_metal(&[("init", &b"#!/bin/sh"[..]), ("lib/modules/6/ahci.ko", b"virtio_blk.ko")], false)]
    fn the_driver_is_found_wherever_it_is(#[case] files: &[(&str, &[u8])], #[case] wanted: bool) {
        let plain = cpio(files);
        for (how, data) in [
            ("plain", plain.clone()),
            ("packed", zstd(&plain)),
            ("behind microcode", early(&plain)),
            ("packed behind microcode", early(&zstd(&plain))),
            ("second archive", zstd(&early(&plain))),
        ] {
            assert_eq!(ask(data), Ok(wanted), "{how}");
        }
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
