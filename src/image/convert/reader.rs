//! Reads an archive entry by entry, with a bound on everything that is kept in memory.
//!
//! The crate `tar` reads long names and extensions whole, however long they say they are, and takes a line end in the
//! value of an attribute for its end; so only its header is used.

use std::io::{self, BufRead, Read as _};

use tar::{EntryType, Header};

use super::names::show;

const BLOCK: usize = 512;
/// Longest extension of a header: names, and attributes of which the kernel takes 64 KiB each.
const EXTENSION: u64 = 1 << 20;
/// Most zeros behind the end.
const PADDING: u64 = 64 << 20;
const ATTRIBUTE: &str = "SCHILY.xattr.";

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    SymbolicLink,
    Character,
    Block,
    Directory,
    Fifo,
}

/// One entry, without its content.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// As it is in the archive.
    pub(super) path: Vec<u8>,
    /// What a link names.
    pub(super) target: Vec<u8>,
    pub(super) mode: u32,
    pub(super) owner: (u64, u64),
    pub(super) modified: u64,
    pub(super) size: u64,
    pub(super) device: (u32, u32),
    /// Extended attributes.
    pub(super) attributes: Vec<(String, Vec<u8>)>,
}

/// An archive that is read once, from its beginning.
pub(super) struct Reader<R> {
    from: R,
    /// Of the present entry: content, and padding behind it.
    content: u64,
    padding: u64,
}

/// What headers before an entry say of it.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    owner: (Option<u64>, Option<u64>),
    attributes: Vec<(String, Vec<u8>)>,
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, content: 0, padding: 0 }
    }

    /// The next entry; none at the end, behind which nothing may come.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, String> {
        let mut extensions = Extensions::default();
        loop {
            let left = self.content + self.padding;
            (self.content, self.padding) = (0, 0);
            self.skip(left)?;
            let mut block = [0; BLOCK];
            self.from.read_exact(&mut block).map_err(broken)?;
            if block == [0; BLOCK] {
                self.end()?;
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            let mut summed = header.clone();
            summed.set_cksum();
            if header.cksum().ok() != summed.cksum().ok() {
                return Err("it is not an archive of tar, or is damaged: a header's checksum is wrong".into());
            }
            let size = header.entry_size().map_err(|_| "a header's size is no number")?;
            match header.entry_type() {
                EntryType::XHeader => self.extend(&mut extensions, size)?,
                EntryType::XGlobalHeader => {
                    let mut global = Extensions::default();
                    self.extend(&mut global, size)?;
                    if global.path.is_some() || global.target.is_some() || global.size.is_some() {
                        return Err("a global header names a file: make the archive with GNU tar".into());
                    }
                }
                EntryType::GNULongName => extensions.path = Some(self.long_name(size)?),
                EntryType::GNULongLink => extensions.target = Some(self.long_name(size)?),
                other => {
                    let entry = self.entry(header, other, extensions)?;
                    return Ok(Some(entry));
                }
            }
        }
    }

    fn entry(&mut self, header: &Header, kind: EntryType, extensions: Extensions) -> Result<Entry, String> {
        let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let number =
            |value: io::Result<u64>, what: &str| value.map_err(|_| format!("{what} of {} is no number", show(&path)));
        let kind = match kind {
            // before there was a type for directories
            EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Link => Kind::HardLink,
            EntryType::Symlink => Kind::SymbolicLink,
            EntryType::Char => Kind::Character,
            EntryType::Block => Kind::Block,
            EntryType::Directory => Kind::Directory,
            EntryType::Fifo => Kind::Fifo,
            EntryType::GNUSparse => {
                return Err(format!("{} is a sparse file: make the archive without --sparse", show(&path)));
            }
            other => {
                let kind = show(&[other.as_byte()]);
                return Err(format!("{} is of the unknown kind {kind}: make the archive with GNU tar", show(&path)));
            }
        };
        let size = match extensions.size {
            Some(size) => size,
            None => number(header.entry_size(), "the size")?,
        };
        if kind != Kind::File && size != 0 {
            return Err(format!("{} is no file, but has {size} bytes", show(&path)));
        }
        let target = extensions.target.or_else(|| Some(header.link_name_bytes()?.into_owned())).unwrap_or_default();
        let device = match kind {
            Kind::Character | Kind::Block => {
                let major = header.device_major().ok().flatten();
                major
                    .zip(header.device_minor().ok().flatten())
                    .ok_or_else(|| format!("the device {} has no number", show(&path)))?
            }
            _ => (0, 0),
        };
        let entry = Entry {
            kind,
            target,
            mode: header.mode().map_err(|_| format!("the mode of {} is no number", show(&path)))? & 0o7777,
            owner: (
                extensions.owner.0.map_or_else(|| number(header.uid(), "the owner"), Ok)?,
                extensions.owner.1.map_or_else(|| number(header.gid(), "the group"), Ok)?,
            ),
            modified: header.mtime().unwrap_or_default(),
            size,
            device,
            attributes: extensions.attributes,
            path,
        };
        (self.content, self.padding) = (size, padding(size));
        Ok(entry)
    }

    fn extend(&mut self, extensions: &mut Extensions, size: u64) -> Result<(), String> {
        let data = self.whole(size, EXTENSION)?;
        let mut left = data.as_slice();
        while !left.is_empty() {
            let (key, value, rest) = record(left).ok_or("an extended header is damaged")?;
            left = rest;
            let number = || {
                let text = std::str::from_utf8(value).ok();
                text.and_then(|text| text.parse().ok())
                    .ok_or_else(|| format!("{key} of an extended header is no number"))
            };
            match key {
                "path" => extensions.path = Some(value.to_vec()),
                "linkpath" => extensions.target = Some(value.to_vec()),
                "size" => extensions.size = Some(number()?),
                "uid" => extensions.owner.0 = Some(number()?),
                "gid" => extensions.owner.1 = Some(number()?),
                _ if key.starts_with("GNU.sparse.") => {
                    return Err("it has sparse files: make the archive without --sparse".into());
                }
                _ => {
                    if let Some(name) = key.strip_prefix(ATTRIBUTE) {
                        extensions.attributes.push((name.to_owned(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, String> {
        let mut name = self.whole(size, EXTENSION)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn whole(&mut self, size: u64, most: u64) -> Result<Vec<u8>, String> {
        if size > most {
            return Err(format!("an extended header has {size} bytes, more than {most}"));
        }
        let mut data = vec![0; size as usize];
        self.from.read_exact(&mut data).map_err(broken)?;
        self.skip(padding(size))?;
        Ok(data)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), String> {
        let skipped = io::copy(&mut self.from.by_ref().take(bytes), &mut io::sink()).map_err(broken)?;
        if skipped < bytes { Err(broken(io::ErrorKind::UnexpectedEof.into())) } else { Ok(()) }
    }

    /// Reads what is left, so that the compression's own checksum is looked at.
    fn end(&mut self) -> Result<(), String> {
        let mut buffer = vec![0; 1 << 16];
        let mut read = 0;
        loop {
            let n = self.from.read(&mut buffer).map_err(broken)?;
            if n == 0 {
                return Ok(());
            }
            read += n as u64;
            if read > PADDING || buffer[..n].iter().any(|byte| *byte != 0) {
                return Err("there is something behind the end of the archive: make it in one go".into());
            }
        }
    }

    /// What comes next of the entry's content, at least a byte; nothing at its end. Whatever was used of it is told to
    /// [`Self::used`].
    pub(super) fn content(&mut self) -> Result<&[u8], String> {
        if self.content == 0 {
            return Ok(&[]);
        }
        let found = self.from.fill_buf().map_err(broken)?;
        if found.is_empty() {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
        let most = usize::try_from(self.content).unwrap_or(usize::MAX);
        Ok(&found[..found.len().min(most)])
    }

    /// So many bytes of the content are not needed any more.
    pub(super) fn used(&mut self, bytes: usize) {
        self.from.consume(bytes);
        self.content = self.content.saturating_sub(bytes as u64);
    }
}

/// The first record of an extended header: `LENGTH KEY=VALUE` and a line end, all of which the length counts.
fn record(data: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let space = data.iter().take(10).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
    let text = data.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = text.iter().position(|byte| *byte == b'=')?;
    Some((std::str::from_utf8(&text[..equals]).ok()?, &text[equals + 1..], &data[length..]))
}

/// Bytes up to the next block.
pub(super) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn broken(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early: it was cut off".into(),
        _ => format!("it cannot be read: {error}"),
    }
}
