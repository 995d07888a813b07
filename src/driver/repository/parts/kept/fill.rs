//! Finds blocks of a file that is made again among what the node keeps. Blocking.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};

use super::{Kept, names, sealed::Seal, shelf, shelf::Shelf};
use crate::{
    driver::repository::{
        RepositoryError,
        parts::{
            plan::{Plan, Wanted},
            target::{Piece, Target},
        },
    },
    names::Generation,
    store::{
        manifest::FileKind,
        pack::BlockName,
        recipe::{Recipe, Sum},
    },
};

impl Kept {
    /// Writes the blocks that are here and right. An error only if the file cannot be written: whatever is wrong
    /// here is fetched instead.
    pub(in super::super) fn fill(
        &self,
        generation: Generation,
        kind: FileKind,
        recipe: &Recipe,
        target: &mut Target<'_>,
    ) -> Result<(), RepositoryError> {
        let found = self.names(generation, kind, recipe).and_then(|names| {
            let shelf = Shelf::read(&self.directory, &self.seal)?;
            Ok((Plan::here(&names, |name| shelf.find(name), shelf.packs.len()), names, shelf))
        });
        let (plan, names, shelf) = match found {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                tracing::warn!(%error, generation, %kind, "what the node kept is of no use: it is fetched");
                return Ok(());
            }
        };
        let wanted = shelf.packs.iter().enumerate().filter(|(number, _)| !plan.of_pack(*number).is_empty());
        // the next pack is opened while the blocks of this one are compared and written
        let (opened, opening) = mpsc::sync_channel(1);
        thread::scope(|scope| {
            scope.spawn(|| {
                let opened = opened;
                for (number, pack) in wanted {
                    match read(&pack.path, &self.seal, number, &plan, &names) {
                        // nobody wants more of them
                        Ok(piece) => {
                            if opened.send(piece).is_err() {
                                return;
                            }
                        }
                        Err(error) => tracing::warn!(%error, path = %pack.path.display(), "a kept pack is of no use"),
                    }
                }
            });
            for piece in opening {
                match target.take(&piece, &plan) {
                    Err(RepositoryError::Damaged(why)) => tracing::warn!(why, "a kept pack is damaged"),
                    taken => taken?,
                }
            }
            Ok(())
        })
    }

    /// The names of all blocks of a file, if they are those that the recipe means.
    fn names(&self, generation: Generation, kind: FileKind, recipe: &Recipe) -> io::Result<Vec<Option<BlockName>>> {
        let mut names = Vec::new();
        let mut sum = Sum::default();
        names::read(&names::place(&self.directory, generation, kind), &self.seal, |name| {
            if let Some(name) = &name {
                sum.add(names.len() as u64, name);
            }
            names.push(name);
        })?;
        let zeros = recipe.runs.iter().flat_map(|run| std::iter::repeat_n(run.place.is_none(), run.count as usize));
        if sum == recipe.head.sum && zeros.eq(names.iter().map(Option::is_none)) {
            Ok(names)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "names of another capture"))
        }
    }
}

/// A pack that has, in the slots that are wanted, what their names say.
fn read(
    path: &std::path::Path,
    seal: &Seal,
    number: usize,
    plan: &Plan,
    names: &[Option<BlockName>],
) -> io::Result<Piece> {
    let (index, frames) = shelf::get(path, seal)?;
    let right = |Wanted { slot, count, block }: &Wanted| {
        let first = usize::try_from(*block).unwrap_or(usize::MAX);
        let named = names.get(first..first.saturating_add(*count)).unwrap_or_default();
        let there = index.blocks().get(*slot..slot + count).unwrap_or_default();
        named.len() == *count && named.iter().flatten().eq(there)
    };
    if plan.of_pack(number).iter().all(right) {
        Ok(Piece { pack: number, index: Arc::new(index), frame: 0, bytes: frames.into() })
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "its blocks are others"))
    }
}
