//! Writes an archive for `mke2fs`, which has GNU headers and, where they do not suffice, extended ones.

use std::io::{self, BufWriter, Write};

use tar::{EntryType, Header};

use super::reader::{Entry, Kind, padding};

const ZEROS: [u8; 1024] = [0; 1024];
/// Small files are written many at a time.
const BUFFER: usize = 1 << 18;

/// An archive on its way.
pub(super) struct Writer<W: Write> {
    to: BufWriter<W>,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to: BufWriter::with_capacity(BUFFER, to) }
    }

    /// Begins an entry, whose content and [`Self::pad`] have to follow.
    pub(super) fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        let mut records = Vec::new();
        let mut header = Header::new_gnu();
        if let Some(old) = header.as_gnu_mut() {
            if !fits(&mut old.name, &entry.path) {
                record(&mut records, "path", &entry.path);
            }
            if !fits(&mut old.linkname, &entry.target) {
                record(&mut records, "linkpath", &entry.target);
            }
        }
        for (name, value) in &entry.attributes {
            record(&mut records, &format!("SCHILY.xattr.{name}"), value);
        }
        if !records.is_empty() {
            let mut extension = Header::new_gnu();
            extension.set_entry_type(EntryType::XHeader);
            extension.set_size(records.len() as u64);
            extension.set_mode(0o644);
            extension.set_uid(0);
            extension.set_gid(0);
            extension.set_mtime(0);
            extension.set_cksum();
            self.to.write_all(extension.as_bytes())?;
            self.to.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        header.set_entry_type(match entry.kind {
            Kind::File => EntryType::Regular,
            Kind::HardLink => EntryType::Link,
            Kind::SymbolicLink => EntryType::Symlink,
            Kind::Character => EntryType::Char,
            Kind::Block => EntryType::Block,
            Kind::Directory => EntryType::Directory,
            Kind::Fifo => EntryType::Fifo,
        });
        header.set_mode(entry.mode);
        header.set_uid(entry.owner.0);
        header.set_gid(entry.owner.1);
        header.set_mtime(entry.modified);
        header.set_size(entry.size);
        header.set_device_major(entry.device.0)?;
        header.set_device_minor(entry.device.1)?;
        header.set_cksum();
        self.to.write_all(header.as_bytes())
    }

    /// Some of the entry's content.
    pub(super) fn content(&mut self, data: &[u8]) -> io::Result<()> {
        self.to.write_all(data)
    }

    /// Ends content of this length.
    pub(super) fn pad(&mut self, size: u64) -> io::Result<()> {
        self.to.write_all(&ZEROS[..padding(size) as usize])
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.to.write_all(&ZEROS)?;
        self.to.flush()
    }
}

/// Puts a name into a header, or says that there is no room for it.
fn fits(field: &mut [u8; 100], name: &[u8]) -> bool {
    let n = name.len().min(field.len());
    field[..n].copy_from_slice(&name[..n]);
    name.len() <= field.len()
}

/// Adds a record of an extended header: its own length counts.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}
