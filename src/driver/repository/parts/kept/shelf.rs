//! The packs that a node keeps, and where each block is in them. Blocking.
//!
//! A block is found by the beginning of its name only, which keeps the table small: whoever uses a block compares the
//! rest.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::sealed::{Reader, Seal, Writer};
use crate::store::pack::{BlockName, Index, PackRef, Packed};

const PREFIX: &str = "pack-";

/// A pack of the node's own: where it is, and how many blocks it has.
#[derive(Debug)]
pub(super) struct Shelved {
    pub(super) path: PathBuf,
    number: u64,
    pub(super) slots: usize,
}

/// Where a block may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    name: u64,
    pack: u32,
    slot: u32,
}

/// All packs of a directory.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) packs: Vec<Shelved>,
    entries: Vec<Entry>,
}

fn beginning(name: &BlockName) -> u64 {
    name.0.first_chunk().copied().map_or(0, u64::from_le_bytes)
}

fn place(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{PREFIX}{number:016x}"))
}

/// Whether a file may be a pack.
pub(super) fn is_pack(name: &str) -> bool {
    number(name).is_some()
}

fn number(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)
        .filter(|digits| digits.len() == 16)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
}

fn wrong(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// Reads what stands first: how the pack is referred to, and its index.
fn read_index(reader: &mut Reader) -> io::Result<Index> {
    let head = reader.piece()?;
    let (pack, tail): (PackRef, _) = postcard::take_from_bytes(&head).map_err(wrong)?;
    pack.read_index(tail).map_err(wrong)
}

impl Shelf {
    /// Reads what is there. What cannot be read is of no use, and goes.
    pub(super) fn read(directory: &Path, seal: &Seal) -> io::Result<Self> {
        let names = std::fs::read_dir(directory)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut numbers: Vec<u64> = names.filter_map(|name| number(&name)).collect();
        numbers.sort_unstable();
        let mut shelf = Self { packs: Vec::new(), entries: Vec::new() };
        for number in numbers {
            let path = place(directory, number);
            match Reader::open(&path, seal).and_then(|mut reader| read_index(&mut reader)) {
                Ok(index) => shelf.add(path, number, index.blocks()),
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "what the node kept of a capture is damaged");
                    std::fs::remove_file(&path)?;
                }
            }
        }
        shelf.entries.sort_unstable();
        Ok(shelf)
    }

    fn add(&mut self, path: PathBuf, number: u64, blocks: &[BlockName]) {
        let pack = u32::try_from(self.packs.len()).unwrap_or(u32::MAX);
        let entry = |(slot, name)| Entry { name: beginning(name), pack, slot };
        self.entries.extend((0..).zip(blocks).map(entry));
        self.packs.push(Shelved { path, number, slots: blocks.len() });
    }

    /// Where a block is, or one whose name begins alike: its pack and slot, the newest if there are several.
    pub(super) fn find(&self, name: &BlockName) -> Option<(usize, usize)> {
        let name = beginning(name);
        let end = self.entries.partition_point(|entry| entry.name <= name);
        let found = self.entries.get(end.checked_sub(1)?).filter(|entry| entry.name == name)?;
        Some((found.pack as usize, found.slot as usize))
    }

    /// The number of the next pack.
    pub(super) fn next(&self) -> u64 {
        self.packs.last().map_or(0, |last| last.number + 1)
    }
}

/// Writes a pack under a number that none has.
pub(super) fn put(directory: &Path, seal: &Seal, number: u64, packed: Packed) -> io::Result<()> {
    let Packed { pack, bytes: mut frames } = packed;
    let tail = frames.split_off(usize::try_from(pack.index_range().start).map_err(io::Error::other)?);
    let mut head = postcard::to_stdvec(&pack).map_err(io::Error::other)?;
    head.extend_from_slice(&tail);
    let mut writer = Writer::create(&place(directory, number), seal)?;
    writer.piece(head)?;
    writer.piece(frames)?;
    writer.finish()
}

/// A pack's index and all its frames, as yet unchecked.
pub(super) fn get(path: &Path, seal: &Seal) -> io::Result<(Index, Vec<u8>)> {
    let mut reader = Reader::open(path, seal)?;
    Ok((read_index(&mut reader)?, reader.piece()?))
}
