//! Packs: blocks of the files of one job's snapshots, named by their content. Never changed once stored.
//!
//! ```text
//! pack  := frame* index trailer
//! frame := zstd of up to FRAME bytes of blocks, the last one short
//! index := Index (postcard)
//! trailer := length of index (u32, little-endian) "VMP1"
//! ```
//!
//! A pack's name is the hash of its index; the index has the hash of each frame as stored and of each
//! block. So whoever knows the name can check the index, any frame without unpacking it, and any block,
//! and needs no more of a pack than the frames that hold the wanted blocks.

use std::{fmt, ops::Range};

use serde::{Deserialize, Serialize};

use super::migration;

/// Bytes of blocks in a frame: what is read to get one of them.
pub const FRAME: usize = 256 << 10;
/// Most bytes of blocks in a pack, and no sender's or reader's memory holds more of one.
pub const PACK: usize = 8 << 20;
/// Bytes of blocks with which a pack is full: a sender holds several.
pub const FULL: usize = 4 << 20;
/// Smallest block: a page of memory.
pub const PAGE: usize = migration::PAGE;
/// Blocks of everything but memory.
pub const BLOCK: usize = 64 << 10;
/// Bytes behind the index.
pub const TRAILER: usize = 8;
/// Most bytes of an index with its trailer: names of the smallest blocks, and what a frame needs.
pub const MAX_INDEX: usize = (PACK / PAGE) * 32 + (PACK / FRAME) * 40 + 64;
/// Most bytes of a pack as stored: blocks that do not compress grow a little.
pub const MAX_STORED: usize = PACK + PACK / 64 + MAX_INDEX;

const MAGIC: &[u8; 4] = b"VMP1";
/// Level of zstd: on a node's processor the network is the narrower place from here on.
pub const LEVEL: i32 = 1;

/// Name of a block: BLAKE3 of its bytes, those missing in the last block of a file read as zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockName(pub [u8; 32]);

impl BlockName {
    /// The name of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }
}

/// Name of a pack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PackName(pub [u8; 32]);

impl PackName {
    fn of(index: &[u8]) -> Self {
        Self(blake3::derive_key("vmdeploy.io pack index v1", index))
    }
}

impl fmt::Display for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        blake3::Hash::from_bytes(self.0).to_hex().fmt(f)
    }
}

impl fmt::Debug for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for PackName {
    type Err = PackError;

    /// Only as it is written: one pack has one name.
    fn from_str(text: &str) -> Result<Self, PackError> {
        let hash = blake3::Hash::from_hex(text).map_err(|_| PackError::Name)?;
        if hash.to_hex().as_str() == text { Ok(Self(hash.into())) } else { Err(PackError::Name) }
    }
}

/// A pack as others refer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRef {
    /// Its name.
    pub name: PackName,
    /// Its bytes as stored.
    pub stored: u32,
    /// Those of them that are index and trailer.
    pub index: u32,
}

impl PackRef {
    /// Where index and trailer are.
    pub fn index_range(&self) -> Range<u64> {
        u64::from(self.stored.saturating_sub(self.index))..u64::from(self.stored)
    }

    /// Reads its index, which must be that of a pack of this length.
    pub fn read_index(&self, tail: &[u8]) -> Result<Index, PackError> {
        let index = Index::parse(self.name, tail)?;
        if index.frames_end() == self.index_range().start {
            Ok(index)
        } else {
            Err(PackError::Format("its frames do not end where its index begins"))
        }
    }

    /// Whether such a pack can be.
    pub fn is_sane(&self) -> bool {
        self.stored as usize <= MAX_STORED && self.index as usize <= MAX_INDEX && self.index < self.stored
    }
}

/// Reads a pack that is all here and compares its frames with their hashes.
pub fn check_whole(name: PackName, bytes: &[u8]) -> Result<(), PackError> {
    let short = || PackError::Format("it is too short");
    let trailer = bytes.len().checked_sub(TRAILER).ok_or_else(short)?;
    let index = index_length(&bytes[trailer..])?;
    let length = |length| u32::try_from(length).map_err(|_| PackError::Format("it is too large"));
    let pack = PackRef { name, stored: length(bytes.len())?, index: length(index)? };
    let tail = bytes.len().checked_sub(index).filter(|_| pack.is_sane()).ok_or_else(short)?;
    let index = pack.read_index(&bytes[tail..])?;
    for frame in index.split(0, &bytes[..tail]) {
        let (number, stored) = frame?;
        index.check(number, stored)?;
    }
    Ok(())
}

/// What is wrong with a pack.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PackError {
    /// Not a name.
    #[error("a pack is named by 64 lower-case hexadecimal digits")]
    Name,
    /// Not as a pack is built.
    #[error("not a pack: {0}")]
    Format(&'static str),
    /// It is another than its name says.
    #[error("the index of pack {0} is damaged")]
    Index(PackName),
    /// A frame is not what the index says.
    #[error("frame {0} is damaged")]
    Frame(usize),
    /// A block is not what the index says.
    #[error("block {0} is damaged")]
    Block(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Frame {
    stored: u32,
    hash: [u8; 32],
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct IndexForm {
    block_size: u32,
    frames: Vec<Frame>,
    blocks: Vec<BlockName>,
}

/// What is in a pack, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    form: IndexForm,
    /// Where each frame begins, and behind the last one the index.
    starts: Vec<u64>,
}

impl Index {
    /// Reads the end of a pack, from its index on.
    pub fn parse(name: PackName, tail: &[u8]) -> Result<Self, PackError> {
        let body = tail.len().checked_sub(TRAILER).ok_or(PackError::Format("it is too short"))?;
        let (body, trailer) = tail.split_at(body);
        if index_length(trailer)? != tail.len() {
            return Err(PackError::Format("its trailer does not fit its index"));
        }
        if PackName::of(body) != name {
            return Err(PackError::Index(name));
        }
        let (form, rest): (IndexForm, _) =
            postcard::take_from_bytes(body).map_err(|_| PackError::Format("its index cannot be read"))?;
        let block = form.block_size as usize;
        let sane = block.is_power_of_two()
            && (PAGE..=FRAME).contains(&block)
            && (1..=PACK / block).contains(&form.blocks.len())
            && form.frames.len() == form.blocks.len().div_ceil(FRAME / block)
            && rest.is_empty();
        if !sane {
            return Err(PackError::Format("its index has impossible sizes"));
        }
        let mut starts = vec![0];
        for frame in &form.frames {
            starts.push(starts.last().copied().unwrap_or_default() + u64::from(frame.stored));
        }
        Ok(Self { form, starts })
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> usize {
        self.form.block_size as usize
    }

    /// The names of its blocks, by slot.
    pub fn blocks(&self) -> &[BlockName] {
        &self.form.blocks
    }

    /// Number of its frames.
    pub fn frames(&self) -> usize {
        self.form.frames.len()
    }

    /// Bytes of all its frames as stored.
    pub fn frames_end(&self) -> u64 {
        self.starts.last().copied().unwrap_or_default()
    }

    /// The frame that holds a slot.
    pub fn frame_of(&self, slot: usize) -> usize {
        slot / self.blocks_in_frame()
    }

    /// The slots of a frame.
    pub fn slots(&self, frame: usize) -> Range<usize> {
        let first = frame * self.blocks_in_frame();
        first..(first + self.blocks_in_frame()).min(self.form.blocks.len())
    }

    /// Where a frame is in the pack.
    pub fn range(&self, frame: usize) -> Option<Range<u64>> {
        Some(*self.starts.get(frame)?..*self.starts.get(frame + 1)?)
    }

    /// The frames that these bytes hold, from the `first` on, each with its number. One that is cut off is damaged.
    pub fn split<'a>(
        &'a self,
        first: usize,
        mut bytes: &'a [u8],
    ) -> impl Iterator<Item = Result<(usize, &'a [u8]), PackError>> {
        (first..).map_while(move |number| {
            if bytes.is_empty() {
                return None;
            }
            let length = self.range(number).and_then(|range| usize::try_from(range.end - range.start).ok());
            let Some((frame, rest)) = length.and_then(|length| bytes.split_at_checked(length)) else {
                bytes = &[];
                return Some(Err(PackError::Frame(number)));
            };
            bytes = rest;
            Some(Ok((number, frame)))
        })
    }

    fn blocks_in_frame(&self) -> usize {
        FRAME / self.block_size()
    }

    /// Whether these are the bytes of a frame as stored.
    pub fn check(&self, frame: usize, stored: &[u8]) -> Result<(), PackError> {
        match self.form.frames.get(frame) {
            Some(known) if known.stored as usize == stored.len() && known.hash == *blake3::hash(stored).as_bytes() => {
                Ok(())
            }
            _ => Err(PackError::Frame(frame)),
        }
    }

    /// The blocks of a frame, each checked.
    pub fn unpack(&self, frame: usize, stored: &[u8]) -> Result<Vec<u8>, PackError> {
        let slots = self.slots(frame);
        let size = self.block_size();
        let blocks = zstd::bulk::decompress(stored, slots.len() * size).map_err(|_| PackError::Frame(frame))?;
        if blocks.len() != slots.len() * size {
            return Err(PackError::Frame(frame));
        }
        for (slot, block) in slots.zip(blocks.chunks_exact(size)) {
            if self.form.blocks.get(slot) != Some(&BlockName::of(block)) {
                return Err(PackError::Block(slot));
            }
        }
        Ok(blocks)
    }
}

/// Bytes of the index and the trailer, by the trailer.
pub fn index_length(trailer: &[u8]) -> Result<usize, PackError> {
    let (length, magic) = trailer.split_first_chunk::<4>().ok_or(PackError::Format("it is too short"))?;
    if magic != MAGIC {
        return Err(PackError::Format("it does not end like one"));
    }
    let length = u32::from_le_bytes(*length) as usize + TRAILER;
    if length > MAX_INDEX { Err(PackError::Format("its index is too large")) } else { Ok(length) }
}

/// A pack that is finished.
#[derive(Clone, Debug)]
pub struct Packed {
    /// How it is referred to.
    pub pack: PackRef,
    /// All its bytes.
    pub bytes: Vec<u8>,
}

/// Builds packs, block by block and one after the other.
pub struct Builder {
    form: IndexForm,
    bytes: Vec<u8>,
    frame: Vec<u8>,
    /// Made for the first frame: its tables are larger than that.
    compressor: Option<zstd::bulk::Compressor<'static>>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a pack of {} blocks", self.len())
    }
}

impl Builder {
    /// A pack of blocks of this size: a power of two from [`PAGE`] to [`FRAME`].
    pub fn new(block_size: usize) -> Self {
        debug_assert!(block_size.is_power_of_two() && (PAGE..=FRAME).contains(&block_size), "{block_size}");
        let block_size = u32::try_from(block_size).unwrap_or(u32::MAX);
        Self {
            form: IndexForm { block_size, frames: Vec::new(), blocks: Vec::new() },
            bytes: Vec::new(),
            frame: Vec::new(),
            compressor: None,
        }
    }

    /// Blocks in the pack.
    pub fn len(&self) -> usize {
        self.form.blocks.len()
    }

    /// Whether it has no block.
    pub fn is_empty(&self) -> bool {
        self.form.blocks.is_empty()
    }

    /// Whether it takes no more.
    pub fn is_full(&self) -> bool {
        self.len() >= FULL / self.form.block_size as usize
    }

    /// Adds a block; what is missing in a short one is zero. The slot it has got.
    pub fn push(&mut self, name: BlockName, block: &[u8]) -> std::io::Result<usize> {
        let size = self.form.block_size as usize;
        debug_assert!(block.len() <= size && self.len() < PACK / size, "{} bytes, {} blocks", block.len(), self.len());
        self.frame.extend_from_slice(block);
        self.form.blocks.push(name);
        self.frame.resize(self.frame.len().next_multiple_of(size), 0);
        if self.frame.len() >= FRAME {
            self.end_frame()?;
        }
        Ok(self.len() - 1)
    }

    fn end_frame(&mut self) -> std::io::Result<()> {
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            none => none.insert(zstd::bulk::Compressor::new(LEVEL)?),
        };
        let stored = compressor.compress(&self.frame)?;
        self.frame.clear();
        let hash = blake3::hash(&stored).into();
        self.form.frames.push(Frame { stored: u32::try_from(stored.len()).unwrap_or(u32::MAX), hash });
        self.bytes.extend_from_slice(&stored);
        Ok(())
    }

    /// Ends the pack; the next block begins another.
    pub fn finish(&mut self) -> std::io::Result<Packed> {
        if !self.frame.is_empty() {
            self.end_frame()?;
        }
        let index = postcard::to_stdvec(&self.form).map_err(std::io::Error::other)?;
        self.form.frames.clear();
        self.form.blocks.clear();
        let mut bytes = std::mem::take(&mut self.bytes);
        let name = PackName::of(&index);
        let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&index);
        bytes.extend_from_slice(&length(index.len()).to_le_bytes());
        bytes.extend_from_slice(MAGIC);
        let pack = PackRef { name, stored: length(bytes.len()), index: length(index.len() + TRAILER) };
        Ok(Packed { pack, bytes })
    }
}

#[cfg(test)]
#[path = "pack_tests.rs"]
mod tests;
