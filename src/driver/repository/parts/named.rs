//! A file of a captured part as blocks with names. The names go to a file as well, since there may be
//! more of them than memory for them. Blocking.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use crate::store::{
    manifest::FileKind,
    migration::{self, Found, Page, StreamError},
    pack::{BLOCK, BlockName, PAGE},
    recipe::Content,
};

/// Bytes of an entry of the table: a block's name, and where the block is in the file.
const ENTRY: usize = 40;
/// Entries that are written at once.
const WRITTEN_AT_ONCE: usize = 1024;
/// The name of a block that has nothing but zeros, in the table.
const ZEROS: BlockName = BlockName([0; 32]);

/// A block of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its name.
    pub(super) name: BlockName,
    /// Where it begins in the file.
    pub(super) offset: u64,
}

/// The file and the names of its blocks.
#[derive(Debug)]
pub(super) struct NamedFile {
    file: File,
    table: File,
    /// Bytes of a block.
    pub(super) block_size: usize,
    /// Number of blocks.
    pub(super) blocks: u64,
    /// Bytes of the file.
    pub(super) size: u64,
    /// What the blocks make.
    pub(super) content: Content,
}

impl NamedFile {
    /// Names all blocks. A memory that is no stream as we know it is taken as any other file.
    pub(super) fn read(path: &Path, kind: FileKind) -> io::Result<Self> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let directory = path.parent().unwrap_or(Path::new("."));
        if kind == FileKind::Memory {
            let mut table = Table::new(directory)?;
            match name_pages(&file, &mut table) {
                Ok(skeleton) => {
                    let blocks = skeleton.pages();
                    let table = table.finish(blocks)?;
                    return Ok(Self {
                        file,
                        table,
                        block_size: PAGE,
                        blocks,
                        size,
                        content: Content::Migration(skeleton),
                    });
                }
                Err(NameError::Io(error) | NameError::Stream(StreamError::Input { source: error, .. })) => {
                    return Err(error);
                }
                Err(NameError::Stream(error)) => {
                    tracing::warn!(%error, "a memory is kept as it is: it is no migration stream as it is known here");
                }
            }
        }
        let mut table = Table::new(directory)?;
        let blocks = name_blocks(&file, size, &mut table)?;
        let content = Content::File { length: size };
        Ok(Self { file, table: table.finish(blocks)?, block_size: BLOCK, blocks, size, content })
    }

    /// Some blocks from the `first` one on, at most `most`; none stands for zeros.
    pub(super) fn entries(&self, first: u64, most: usize) -> io::Result<Vec<Option<Entry>>> {
        let count = usize::try_from(self.blocks.saturating_sub(first)).map_or(most, |left| left.min(most));
        let mut bytes = vec![0; count * ENTRY];
        self.table.read_exact_at(&mut bytes, first * ENTRY as u64)?;
        Ok(bytes.chunks_exact(ENTRY).map(read_entry).collect())
    }

    /// The bytes of a block; the last one of a file may be short.
    pub(super) fn block(&self, entry: &Entry) -> io::Result<Vec<u8>> {
        let left = self.size.saturating_sub(entry.offset);
        let mut bytes = vec![0; usize::try_from(left).map_or(self.block_size, |left| left.min(self.block_size))];
        self.file.read_exact_at(&mut bytes, entry.offset)?;
        Ok(bytes)
    }
}

fn read_entry(bytes: &[u8]) -> Option<Entry> {
    let (name, offset) = bytes.split_first_chunk::<32>()?;
    let offset = u64::from_le_bytes(*offset.first_chunk()?);
    let name = BlockName(*name);
    (name != ZEROS).then_some(Entry { name, offset })
}

/// Entries on their way to the table; those that were never written are of zeros.
struct Table {
    file: File,
    pending: Vec<u8>,
    /// The block of the first pending entry.
    first: u64,
}

impl Table {
    /// Without a name: gone with the process.
    fn new(directory: &Path) -> io::Result<Self> {
        Ok(Self { file: tempfile::tempfile_in(directory)?, pending: Vec::new(), first: 0 })
    }

    fn put(&mut self, block: u64, entry: &Entry) -> io::Result<()> {
        let next = self.first + (self.pending.len() / ENTRY) as u64;
        if block != next || self.pending.len() >= WRITTEN_AT_ONCE * ENTRY {
            self.flush()?;
            self.first = block;
        }
        self.pending.extend_from_slice(&entry.name.0);
        self.pending.extend_from_slice(&entry.offset.to_le_bytes());
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.pending, self.first * ENTRY as u64)?;
        self.pending.clear();
        Ok(())
    }

    fn finish(mut self, blocks: u64) -> io::Result<File> {
        self.flush()?;
        self.file.set_len(blocks * ENTRY as u64)?;
        Ok(self.file)
    }
}

enum NameError {
    Stream(StreamError),
    Io(io::Error),
}

impl From<StreamError> for NameError {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

fn name_pages(file: &File, table: &mut Table) -> Result<migration::Skeleton, NameError> {
    migration::read(file, |Found { page, content }| match content {
        Page::Zero => Ok(()),
        Page::Data { offset, bytes } => {
            table.put(page, &Entry { name: BlockName::of(bytes), offset }).map_err(NameError::Io)
        }
    })
}

fn name_blocks(file: &File, size: u64, table: &mut Table) -> io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let blocks = size.div_ceil(BLOCK as u64);
    for number in 0..blocks {
        let offset = number * BLOCK as u64;
        let length = usize::try_from(size - offset).map_or(BLOCK, |left| left.min(BLOCK));
        file.read_exact_at(&mut block[..length], offset)?;
        block[length..].fill(0);
        if block.iter().any(|byte| *byte != 0) {
            table.put(number, &Entry { name: BlockName::of(&block), offset })?;
        }
    }
    Ok(blocks)
}
