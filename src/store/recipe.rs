//! Recipes: how a file of a snapshot is made again from blocks in packs.
//!
//! A file is a sequence of blocks of one size. A recipe says of each where it is, in runs: blocks that
//! lie side by side in a pack, or are zero. So what has not changed since earlier generations takes a
//! few bytes, and nobody needs an index to restore. The packs stand first: what a recipe needs can be
//! known without reading all of it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{
    migration::Skeleton,
    pack::{BlockName, FRAME, PACK, PAGE, PackName, PackRef},
};

/// Version of the format.
const VERSION: u8 = 1;
/// Largest recipe, in bytes before compression: of 32 GiB of memory of which no two pages lie side by side. Read,
/// it takes eight times as much.
pub const MAX_BYTES: usize = 64 << 20;
/// The same as stored: what does not compress grows a little.
pub const MAX_STORED: u64 = MAX_BYTES as u64 + MAX_BYTES as u64 / 64;
/// Most packs of one recipe.
const MAX_PACKS: usize = 1 << 20;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Number of the pack, in a list that goes with it.
    pub pack: u32,
    /// Slot in the pack.
    pub slot: u32,
}

/// Which of some blocks are there, in the order in which they were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// The packs that the places name by number.
    pub packs: Vec<PackRef>,
    /// Where each block is.
    pub places: Vec<Option<Place>>,
}

/// Blocks in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// How many.
    pub count: u32,
    /// Where the first of them is; none: all are zero.
    pub place: Option<Place>,
}

/// What the blocks make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// A file: the blocks, and of the last one as many bytes as the length wants.
    File {
        /// Length in bytes.
        length: u64,
    },
    /// A migration stream of QEMU: the blocks are the pages, this is the rest.
    Migration(Skeleton),
}

/// What is needed, without the runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    version: u8,
    /// Bytes of a block.
    pub block_size: u32,
    /// The packs that the runs name by number.
    pub packs: Vec<PackRef>,
    /// What the blocks make.
    pub content: Content,
    /// Of all blocks that are not zero, whatever their order.
    pub sum: Sum,
}

/// What tells one sequence of blocks from another: of each block a hash of its number and name, all combined by
/// exclusive or. A place that is noted wrongly, or a block that is put in another's place, changes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum([u8; 32]);

impl Sum {
    /// Takes a block in.
    pub fn add(&mut self, number: u64, name: &BlockName) {
        let mut bytes = [0; 40];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes[8..].copy_from_slice(&name.0);
        let hash = blake3::hash(&bytes);
        self.0.iter_mut().zip(hash.as_bytes()).for_each(|(own, other)| *own ^= other);
    }
}

/// How a file is made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Packs and content.
    pub head: Head,
    /// All blocks, in order.
    pub runs: Vec<Run>,
}

/// What is wrong with a recipe.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the recipe is wrong: {0}")]
pub struct RecipeError(&'static str);

impl Head {
    /// Reads what stands first in a recipe; the bytes behind it.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), RecipeError> {
        if bytes.len() > MAX_BYTES {
            return Err(RecipeError("it is too large"));
        }
        let (head, rest): (Self, _) =
            postcard::take_from_bytes(bytes).map_err(|_| RecipeError("its head cannot be read"))?;
        let block = head.block_size as usize;
        if head.version != VERSION {
            return Err(RecipeError("its version is not known here"));
        }
        if !block.is_power_of_two() || !(PAGE..=FRAME).contains(&block) {
            return Err(RecipeError("impossible size of blocks"));
        }
        if head.packs.len() > MAX_PACKS || !head.packs.iter().all(PackRef::is_sane) {
            return Err(RecipeError("impossible packs"));
        }
        Ok((head, rest))
    }

    fn blocks(&self) -> u64 {
        match &self.content {
            Content::File { length } => length.div_ceil(u64::from(self.block_size)),
            Content::Migration(skeleton) => skeleton.pages(),
        }
    }
}

impl Recipe {
    /// Reads and checks a recipe.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecipeError> {
        let (head, rest) = Head::parse(bytes)?;
        let (runs, rest): (Vec<Run>, _) =
            postcard::take_from_bytes(rest).map_err(|_| RecipeError("its runs cannot be read"))?;
        if !rest.is_empty() {
            return Err(RecipeError("it goes on behind its end"));
        }
        if matches!(head.content, Content::Migration(_)) && head.block_size as usize != PAGE {
            return Err(RecipeError("memory is not in pages"));
        }
        let slots = PACK / head.block_size as usize;
        let fits = |run: &Run| match run.place {
            _ if run.count == 0 => false,
            None => true,
            Some(Place { pack, slot }) => {
                (pack as usize) < head.packs.len() && slot as usize + run.count as usize <= slots
            }
        };
        if !runs.iter().all(fits) {
            return Err(RecipeError("a run leaves its pack"));
        }
        if runs.iter().map(|run| u64::from(run.count)).sum::<u64>() != head.blocks() {
            return Err(RecipeError("its runs are not as long as its file"));
        }
        Ok(Self { head, runs })
    }

    /// Its form in bytes. An error if nobody would read it.
    pub fn to_bytes(&self) -> std::io::Result<Vec<u8>> {
        let head = postcard::to_stdvec(&self.head).map_err(std::io::Error::other)?;
        let bytes = postcard::to_extend(&self.runs, head).map_err(std::io::Error::other)?;
        if bytes.len() > MAX_BYTES {
            return Err(std::io::Error::other(RecipeError("it is too large")));
        }
        Ok(bytes)
    }
}

/// Collects the places of a file's blocks, in order.
#[derive(Debug, Default)]
pub struct Collector {
    packs: Vec<Option<PackRef>>,
    numbers: HashMap<PackName, u32>,
    runs: Vec<Run>,
    blocks: u64,
    sum: Sum,
}

impl Collector {
    /// The number of a pack that is there.
    pub fn number(&mut self, pack: PackRef) -> u32 {
        if let Some(number) = self.numbers.get(&pack.name) {
            return *number;
        }
        let number = self.begin();
        self.end(number, pack);
        number
    }

    /// The number of a pack that is being built.
    pub fn begin(&mut self) -> u32 {
        self.packs.push(None);
        u32::try_from(self.packs.len() - 1).unwrap_or(u32::MAX)
    }

    /// A pack that was being built is finished.
    pub fn end(&mut self, number: u32, pack: PackRef) {
        if let Some(place) = self.packs.get_mut(number as usize) {
            *place = Some(pack);
            self.numbers.insert(pack.name, number);
        }
    }

    /// The next block has this name and is there; none: it is zero.
    pub fn push(&mut self, block: Option<(&BlockName, Place)>) {
        if let Some((name, _)) = block {
            self.sum.add(self.blocks, name);
        }
        self.blocks += 1;
        let place = block.map(|(_, place)| place);
        let next = |run: &Run| match (run.place, place) {
            (None, None) => run.count < u32::MAX,
            (Some(first), Some(place)) => {
                first.pack == place.pack && first.slot.checked_add(run.count) == Some(place.slot)
            }
            _ => false,
        };
        match self.runs.last_mut() {
            Some(run) if next(run) => run.count += 1,
            _ => self.runs.push(Run { count: 1, place }),
        }
    }

    /// The recipe of all that was pushed. None while a pack is being built.
    pub fn finish(self, block_size: usize, content: Content) -> Option<Recipe> {
        let block_size = u32::try_from(block_size).ok()?;
        let packs = self.packs.into_iter().collect::<Option<Vec<_>>>()?;
        Some(Recipe { head: Head { version: VERSION, block_size, packs, content, sum: self.sum }, runs: self.runs })
    }
}

#[cfg(test)]
#[path = "recipe_tests.rs"]
mod tests;
