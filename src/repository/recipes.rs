//! Recipes on the disk, read within bounds (safety D3). Knows nothing of what the packs hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
    path::Path,
};

use super::{
    files::{FileIdentity, Files},
    publish::{check_file, open},
    store::Outcome,
};
use crate::{
    driver::repository::RepositoryError,
    store::{
        manifest::PartFile,
        pack::{FRAME, PackName, PackRef},
        recipe::{Head, MAX_BYTES, MAX_STORED, Recipe, Sum},
    },
};

/// As much of a recipe is unpacked at first to find its head.
const FIRST: u64 = 1 << 16;

/// Most bytes of a recipe, unpacked.
const MOST: u64 = MAX_BYTES as u64;

/// What a recipe needs of its packs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    /// Bytes of the blocks.
    pub(super) block_size: u32,
    /// The packs, and of each as many slots.
    pub(super) packs: Vec<(PackRef, u32)>,
    /// How many of its blocks are in each.
    pub(super) used: BTreeMap<PackName, u64>,
    /// Where its blocks are.
    pub(super) places: Vec<Places>,
    /// What tells its blocks from others.
    pub(super) sum: Sum,
}

/// Blocks that lie side by side, in a file and in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Places {
    /// Number of the pack.
    pub(super) pack: u32,
    /// The first one's slot.
    pub(super) slot: u32,
    /// How many.
    pub(super) count: u32,
    /// The first one's number in the file.
    pub(super) block: u64,
}

/// The frames of a pack that cannot be used any more; none: all of them.
pub(super) type Lost = BTreeMap<PackName, Option<BTreeSet<usize>>>;

impl Needs {
    /// A pack of which it needs what is lost.
    pub(super) fn lacks(&self, lost: &Lost) -> Option<PackName> {
        let in_frame = (FRAME / self.block_size as usize).max(1);
        self.places.iter().find_map(|places| {
            let (pack, _) = self.packs.get(places.pack as usize)?;
            let (first, last) = (places.slot as usize, (places.slot + places.count).saturating_sub(1) as usize);
            let is_hit = match lost.get(&pack.name)? {
                None => true,
                Some(frames) => frames.range(first / in_frame..=last / in_frame).next().is_some(),
            };
            is_hit.then_some(pack.name)
        })
    }
}

fn damaged(path: &Path, why: impl std::fmt::Display) -> RepositoryError {
    RepositoryError::Damaged(format!("{}: {why}", path.display()))
}

fn unpack(file: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    zstd::stream::read::Decoder::new(file)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads all of a recipe, or says what is wrong with it. It may take some memory: one at a time.
pub(super) fn read(file: io::Result<impl Read>) -> Result<Needs, String> {
    let file = file.map_err(|e| e.to_string())?;
    let bytes = unpack(file, MOST + 1).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MOST {
        return Err(format!("a recipe of more than {MOST} bytes"));
    }
    let Recipe { head, runs } = Recipe::parse(&bytes).map_err(|e| e.to_string())?;
    drop(bytes);
    let mut packs: Vec<(PackRef, u32)> = head.packs.into_iter().map(|pack| (pack, 0)).collect();
    let (mut used, mut places, mut block) = (BTreeMap::new(), Vec::new(), 0);
    for run in &runs {
        if let Some(place) = run.place
            && let Some((pack, slots)) = packs.get_mut(place.pack as usize)
        {
            *slots = (*slots).max(place.slot.saturating_add(run.count));
            *used.entry(pack.name).or_default() += u64::from(run.count);
            places.push(Places { pack: place.pack, slot: place.slot, count: run.count, block });
        }
        block += u64::from(run.count);
    }
    if packs.iter().any(|(_, slots)| *slots == 0) {
        // it would keep the pack, and nobody could say what for
        return Err("a recipe names a pack of which it needs nothing".into());
    }
    Ok(Needs { block_size: head.block_size, packs, used, places, sum: head.sum })
}

/// Reads a stored recipe back as far as its packs, if it is still what was stored.
pub(super) fn check(files: &Files, path: &Path, file: &PartFile) -> Outcome<(FileIdentity, Vec<PackRef>)> {
    let identity = check_file(files, path, file)?;
    let length = file.stored.min(MAX_STORED);
    let mut most = FIRST;
    loop {
        let (opened, _) = open(files, path)?;
        let bytes = unpack(opened.take(length), most).map_err(|e| damaged(path, e))?;
        match Head::parse(&bytes) {
            Ok((head, _)) => return Ok((identity, head.packs)),
            // only its beginning was read
            Err(_) if bytes.len() as u64 == most && most <= MOST => most = (most * 4).min(MOST + 1),
            Err(error) => return Err(damaged(path, error)),
        }
    }
}
