//! The names of all blocks of a file that was captured, as the node keeps them: what the file is made of again needs
//! no index of a pack then. Blocking.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::sealed::{Reader, Seal, Writer};
use crate::{
    names::Generation,
    store::{
        manifest::FileKind,
        pack::{BlockName, LEVEL},
    },
};

const PREFIX: &str = "names-";
/// Bytes of a name; zeros stand for a block of zeros.
const NAME: usize = 32;
/// Names in a piece.
const AT_ONCE: usize = 32 << 10;

/// Where the names of a file are.
pub(super) fn place(directory: &Path, generation: Generation, kind: FileKind) -> PathBuf {
    directory.join(format!("{PREFIX}{generation}-{kind}"))
}

/// The generation whose names a file has.
pub(super) fn generation(name: &str) -> Option<Generation> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

/// Bytes that the names of a file may take.
pub(super) fn most_bytes(blocks: u64) -> u64 {
    // a little for what is around the pieces
    blocks.saturating_mul(NAME as u64 + 1).saturating_add(512)
}

/// Writes names, in order.
pub(super) struct Names {
    writer: Writer,
    pending: Vec<u8>,
}

impl Names {
    /// Of a file of so many blocks.
    pub(super) fn create(to: &Path, seal: &Seal, blocks: u64) -> io::Result<Self> {
        let mut writer = Writer::create(to, seal)?;
        writer.piece(blocks.to_le_bytes().into())?;
        Ok(Self { writer, pending: Vec::new() })
    }

    /// The name of the next block; none if it is zero.
    pub(super) fn push(&mut self, name: Option<BlockName>) -> io::Result<()> {
        self.pending.extend_from_slice(&name.map_or([0; NAME], |name| name.0));
        if self.pending.len() >= AT_ONCE * NAME { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.piece(zstd::bulk::compress(&self.pending, LEVEL)?)?;
        self.pending.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            self.flush()?;
        }
        self.writer.finish()
    }
}

/// Reads the names of all blocks; how many there are.
pub(super) fn read(path: &Path, seal: &Seal, mut each: impl FnMut(Option<BlockName>)) -> io::Result<u64> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not the names of blocks");
    let mut reader = Reader::open(path, seal)?;
    let blocks = u64::from_le_bytes(reader.piece()?.try_into().map_err(|_| wrong())?);
    let mut left = usize::try_from(blocks).map_err(io::Error::other)?;
    while left > 0 {
        let count = left.min(AT_ONCE);
        let bytes = zstd::bulk::decompress(&reader.piece()?, count * NAME)?;
        let (names, rest) = bytes.as_chunks::<NAME>();
        if names.len() != count || !rest.is_empty() {
            return Err(wrong());
        }
        for name in names {
            each((*name != [0; NAME]).then_some(BlockName(*name)));
        }
        left -= count;
    }
    Ok(blocks)
}
