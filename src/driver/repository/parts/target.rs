//! The file that is made again: each block is written where it belongs, in whatever order the packs
//! come. Blocking.

use std::{
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
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
    pub(super) index: Arc<Index>,
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

/// The file while it is written.
pub(super) struct Target<'a> {
    recipe: &'a Recipe,
    layout: Layout<'a>,
    fresh: Fresh,
    sum: Sum,
    /// Which blocks are written.
    done: Vec<bool>,
    moved: &'a AtomicU64,
}

impl<'a> Target<'a> {
    /// One that would be larger than `most` is refused.
    fn create(recipe: &'a Recipe, to: &Path, most: u64, moved: &'a AtomicU64) -> Result<Self, RepositoryError> {
        let layout = Layout::of(recipe)?;
        if layout.length() > most {
            return Err(RepositoryError::Damaged(format!("{} bytes would be made of {most}", layout.length())));
        }
        let at = |error: io::Error| local(to, &error);
        let fresh = Fresh::create(to).map_err(at)?;
        fresh.file.set_len(layout.length()).map_err(at)?;
        layout.write_rest(&fresh.file).map_err(at)?;
        let blocks: u64 = recipe.runs.iter().map(|run| u64::from(run.count)).sum();
        let done = vec![false; usize::try_from(blocks).unwrap_or_default()];
        Ok(Self { recipe, layout, fresh, sum: Sum::default(), done, moved })
    }

    fn has(&self, block: u64) -> bool {
        usize::try_from(block).ok().and_then(|block| self.done.get(block)).copied().unwrap_or_default()
    }

    /// Writes what is wanted of a piece; each block is compared with the pack's index.
    pub(super) fn take(&mut self, piece: &Piece, plan: &Plan) -> Result<(), RepositoryError> {
        for frame in piece.index.split(piece.frame, &piece.bytes) {
            let (number, stored) = frame.map_err(damaged)?;
            let (slots, size) = (piece.index.slots(number), piece.index.block_size());
            if plan.within(piece.pack, &slots).next().is_some() {
                let blocks = piece.index.unpack(number, stored).map_err(damaged)?;
                for Wanted { slot, count, block } in plan.within(piece.pack, &slots) {
                    let start = (slot - slots.start) * size;
                    let bytes = &blocks[start..start + count * size];
                    let written = self.layout.write(&self.fresh.file, block, bytes, size);
                    written.map_err(|error| RepositoryError::local("the file that is made again", &error))?;
                    let names = piece.index.blocks().get(slot..slot + count).unwrap_or_default();
                    for (number, name) in (block..).zip(names) {
                        self.sum.add(number, name);
                        if let Some(done) = usize::try_from(number).ok().and_then(|number| self.done.get_mut(number)) {
                            *done = true;
                        }
                    }
                    self.moved.fetch_add((count * size) as u64, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// It has its name only when all of it is there and is what was captured.
    fn finish(self, to: &Path) -> Result<(), RepositoryError> {
        let mut missing = 0_u64;
        let mut first = 0;
        for run in &self.recipe.runs {
            let next = first + u64::from(run.count);
            missing += (first..next).filter(|block| run.place.is_some() && !self.has(*block)).count() as u64;
            first = next;
        }
        // if the fetch broke off, its own error says more
        if missing > 0 {
            return Err(RepositoryError::Damaged(format!("{missing} blocks did not come")));
        }
        if self.sum != self.recipe.head.sum {
            return Err(RepositoryError::Damaged("the blocks are not those that were captured".into()));
        }
        self.fresh.finish().map_err(|error| local(to, &error))
    }
}

/// Writes the file: what is `here`, and once it is `planned` what else is wanted, the pieces that come to their end.
/// Bytes that were here.
pub(super) fn write(
    recipe: &Recipe,
    here: impl FnOnce(&mut Target<'_>) -> Result<(), RepositoryError>,
    planned: impl FnOnce(Arc<Plan>),
    mut pieces: tokio::sync::mpsc::Receiver<Piece>,
    (to, most): (&Path, u64),
    moved: &AtomicU64,
) -> Result<u64, RepositoryError> {
    let mut target = Target::create(recipe, to, most, moved)?;
    let before = moved.load(Ordering::Relaxed);
    here(&mut target)?;
    let local = moved.load(Ordering::Relaxed) - before;
    let plan = Arc::new(Plan::of(recipe, |block| !target.has(block)));
    planned(plan.clone());
    while let Some(piece) = pieces.blocking_recv() {
        target.take(&piece, &plan)?;
    }
    target.finish(to)?;
    Ok(local)
}

fn damaged(error: PackError) -> RepositoryError {
    RepositoryError::Damaged(error.to_string())
}
