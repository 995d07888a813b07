//! The canonical stream, from its beginning to its end; and what its pieces look like.

use std::io::{self, Write};

use super::{MAGIC, MAX_NAME, PAGE, PAGE_BYTES, RAM, RAM_VERSION, SWITCHOVER_START, Skeleton, VERSION, flag, mark};

/// Why a stream could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The output takes no bytes.
    #[error("the migration stream cannot be written: {0}")]
    Output(#[from] io::Error),
    /// There are more or fewer pages than the skeleton has.
    #[error("{given} pages were given for a stream of {pages}")]
    Pages {
        /// Pages given.
        given: u64,
        /// Pages there are.
        pages: u64,
    },
}

/// Writes the canonical stream of pages that come in order.
pub struct Writer<'a, W> {
    skeleton: &'a Skeleton,
    output: W,
    next: u64,
}

impl<'a, W: Write> Writer<'a, W> {
    /// Begins a stream. Small pieces are written, so `output` should have a buffer.
    pub fn new(skeleton: &'a Skeleton, mut output: W) -> Result<Self, WriteError> {
        output.write_all(&opening(skeleton))?;
        Ok(Self { skeleton, output, next: 0 })
    }

    /// Writes the next page, which has nothing but zeros.
    pub fn zero(&mut self) -> Result<(), WriteError> {
        self.record(false, &[0])
    }

    /// Writes the next page.
    pub fn data(&mut self, bytes: &[u8; PAGE]) -> Result<(), WriteError> {
        self.record(true, bytes)
    }

    fn record(&mut self, data: bool, content: &[u8]) -> Result<(), WriteError> {
        let (page, pages) = (self.next, self.skeleton.pages());
        let header = Header::of(self.skeleton, page, data).ok_or(WriteError::Pages { given: page + 1, pages })?;
        self.output.write_all(&header)?;
        self.output.write_all(content)?;
        self.next += 1;
        Ok(())
    }

    /// Ends the stream, behind its last page.
    pub fn finish(mut self) -> Result<W, WriteError> {
        if self.next != self.skeleton.pages() {
            return Err(WriteError::Pages { given: self.next, pages: self.skeleton.pages() });
        }
        self.output.write_all(&closing(self.skeleton))?;
        self.output.write_all(self.skeleton.devices())?;
        self.output.flush()?;
        Ok(self.output)
    }
}

/// Everything before the first page.
pub(super) fn opening(skeleton: &Skeleton) -> Vec<u8> {
    let section = skeleton.section().to_be_bytes();
    let mut bytes = Vec::new();
    bytes.extend(MAGIC.to_be_bytes());
    bytes.extend(VERSION.to_be_bytes());
    bytes.push(mark::CONFIGURATION);
    bytes.extend((skeleton.machine().len() as u32).to_be_bytes());
    bytes.extend(skeleton.machine().as_bytes());

    bytes.push(mark::START);
    bytes.extend(section);
    put_name(&mut bytes, RAM);
    bytes.extend(0_u32.to_be_bytes());
    bytes.extend(RAM_VERSION.to_be_bytes());
    let total: u64 = skeleton.blocks().iter().map(|block| block.length).sum();
    bytes.extend((total | flag::SIZES).to_be_bytes());
    for block in skeleton.blocks() {
        put_name(&mut bytes, block.name.as_bytes());
        bytes.extend(block.length.to_be_bytes());
    }
    bytes.extend(closing(skeleton));

    if skeleton.switchover() {
        bytes.push(mark::COMMAND);
        bytes.extend(SWITCHOVER_START.to_be_bytes());
        bytes.extend([0, 0]);
    }
    bytes.push(mark::END);
    bytes.extend(section);
    bytes
}

/// What ends the RAM section and each of its parts.
pub(super) fn closing(skeleton: &Skeleton) -> Vec<u8> {
    let mut bytes = flag::END.to_be_bytes().to_vec();
    bytes.push(mark::FOOTER);
    bytes.extend(skeleton.section().to_be_bytes());
    bytes
}

fn put_name(bytes: &mut Vec<u8>, name: &[u8]) {
    // no name in a skeleton is longer than MAX_NAME
    bytes.push(name.len() as u8);
    bytes.extend(name);
}

/// Bytes of a record's header behind the first page of a block.
pub(super) const SHORT: usize = 8;
/// Bytes of the longest header.
const LONG: usize = SHORT + 1 + MAX_NAME;

/// What stands before a page's content: its place, and for the first page of a block the block's name.
#[derive(Clone, Copy)]
pub struct Header {
    bytes: [u8; LONG],
    length: usize,
}

impl Header {
    /// The header of a page, if there is such a page.
    pub(super) fn of(skeleton: &Skeleton, page: u64, data: bool) -> Option<Self> {
        let (_, block, first) = skeleton.place(page)?;
        let kind = if data { flag::DATA } else { flag::ZERO };
        let place = (page - first) * PAGE_BYTES;
        let mut header = Self { bytes: [0; LONG], length: SHORT };
        if page == first {
            header.push(&(place | kind).to_be_bytes(), 0);
            header.push(&[block.name.len() as u8], SHORT);
            header.push(block.name.as_bytes(), SHORT + 1);
        } else {
            header.push(&(place | kind | flag::SAME_BLOCK).to_be_bytes(), 0);
        }
        Some(header)
    }

    fn push(&mut self, bytes: &[u8], at: usize) {
        self.length = at + bytes.len();
        self.bytes[at..self.length].copy_from_slice(bytes);
    }
}

impl std::ops::Deref for Header {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}
