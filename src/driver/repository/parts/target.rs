//! The file that is made again: each block is written where it belongs, in whatever order the packs
//! come. Blocking.

use std::{
    io,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicU64, Ordering},
};

use super::plan::{Plan, Wanted};
use crate::{
    driver::repository::{
        RepositoryError,
        streams::{Fresh, local},
    },
    store::{
        migration::{self, Positions},
        pack::{Index, PackError},
        recipe::{Content, Recipe, Sum},
    },
};

/// Frames of a pack that follow one another.
pub(super) struct Piece {
    /// Number of the pack in the recipe.
    pub(super) pack: usize,
    /// Its index.
    pub(super) index: std::sync::Arc<Index>,
    /// The first frame.
    pub(super) frame: usize,
    /// The frames, as stored.
    pub(super) bytes: bytes::Bytes,
}

/// Where blocks go.
enum Layout<'a> {
    File { length: u64, block_size: u64 },
    Migration(Positions<'a>),
}

impl<'a> Layout<'a> {
    fn of(recipe: &'a Recipe) -> Result<Self, RepositoryError> {
        match &recipe.head.content {
            Content::File { length } => {
                Ok(Self::File { length: *length, block_size: u64::from(recipe.head.block_size) })
            }
            Content::Migration(skeleton) => {
                let mut first = 0;
                let runs = recipe.runs.iter().map(|run| {
                    let run = migration::Run { first, count: u64::from(run.count), data: run.place.is_some() };
                    first += run.count;
                    run
                });
                let positions = Positions::new(skeleton, runs);
                positions.map(Self::Migration).map_err(|error| RepositoryError::Damaged(error.to_string()))
            }
        }
    }

    fn length(&self) -> u64 {
        match self {
            Self::File { length, .. } => *length,
            Self::Migration(positions) => positions.length(),
        }
    }

    /// Writes everything that is not in a block.
    fn write_rest(&self, file: &std::fs::File) -> io::Result<()> {
        match self {
            // what is not written reads as zero
            Self::File { .. } => Ok(()),
            Self::Migration(positions) => positions.frame(|offset, bytes| file.write_all_at(bytes, offset)),
        }
    }

    /// Writes blocks that follow one another.
    fn write(&self, file: &std::fs::File, first: u64, blocks: &[u8], size: usize) -> io::Result<()> {
        match self {
            Self::File { length, block_size } => {
                let offset = first * block_size;
                let most = usize::try_from(length.saturating_sub(offset)).unwrap_or(usize::MAX);
                file.write_all_at(&blocks[..blocks.len().min(most)], offset)
            }
            Self::Migration(positions) => {
                // the records of pages that follow one another do so as well
                let mut records = Vec::with_capacity(blocks.len() + blocks.len() / 256);
                for (page, block) in (first..).zip(blocks.chunks_exact(size)) {
                    records.extend_from_slice(&positions.header(page).ok_or(io::ErrorKind::InvalidData)?);
                    records.extend_from_slice(block);
                }
                file.write_all_at(&records, positions.offset(first))
            }
        }
    }
}

/// Writes the file from the pieces that come, to their end; it has its name only when all of it is there and is
/// what was captured. One that would be larger than `most` is refused.
pub(super) fn write(
    recipe: &Recipe,
    plan: &Plan,
    mut pieces: tokio::sync::mpsc::Receiver<Piece>,
    (to, most): (&std::path::Path, u64),
    moved: &AtomicU64,
) -> Result<(), RepositoryError> {
    let layout = Layout::of(recipe)?;
    if layout.length() > most {
        return Err(RepositoryError::Damaged(format!("{} bytes would be made of {most}", layout.length())));
    }
    let fresh = Fresh::create(to).map_err(|e| local(to, &e))?;
    let at = |error: io::Error| local(to, &error);
    fresh.file.set_len(layout.length()).map_err(at)?;
    layout.write_rest(&fresh.file).map_err(at)?;
    let mut left: u64 = recipe.runs.iter().filter(|run| run.place.is_some()).map(|run| u64::from(run.count)).sum();
    let mut sum = Sum::default();
    while let Some(piece) = pieces.blocking_recv() {
        for frame in piece.index.split(piece.frame, &piece.bytes) {
            let (number, stored) = frame.map_err(damaged)?;
            let (slots, size) = (piece.index.slots(number), piece.index.block_size());
            if plan.within(piece.pack, &slots).next().is_some() {
                let blocks = piece.index.unpack(number, stored).map_err(damaged)?;
                for Wanted { slot, count, block } in plan.within(piece.pack, &slots) {
                    let start = (slot - slots.start) * size;
                    let names = piece.index.blocks().get(slot..slot + count).unwrap_or_default();
                    (block..).zip(names).for_each(|(number, name)| sum.add(number, name));
                    layout.write(&fresh.file, block, &blocks[start..start + count * size], size).map_err(at)?;
                    left = left.saturating_sub(count as u64);
                    moved.fetch_add((count * size) as u64, Ordering::Relaxed);
                }
            }
        }
    }
    // if the fetch broke off, its own error says more
    if left > 0 {
        return Err(RepositoryError::Damaged(format!("{left} blocks did not come")));
    }
    if sum != recipe.head.sum {
        return Err(RepositoryError::Damaged("the blocks are not those that were captured".into()));
    }
    fresh.finish().map_err(at)
}

fn damaged(error: PackError) -> RepositoryError {
    RepositoryError::Damaged(error.to_string())
}
