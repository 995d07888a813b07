//! Puts the blocks that the repository lacks into packs, and notes where every block is. Blocking.

use std::{
    collections::{HashMap, VecDeque},
    io,
};

use super::named::{Entry, NamedFile};
use crate::store::{
    pack::{BlockName, Builder, Packed},
    recipe::{Collector, Located, Place, Recipe},
};

/// A file on its way into packs.
#[derive(Debug)]
pub(super) struct Packing {
    collector: Collector,
    builder: Builder,
    /// Number of the pack that is being built, once it has a block.
    number: Option<u32>,
    /// Numbers of the packs that the repository may not have yet.
    underway: VecDeque<u32>,
    /// Blocks that were put into packs since the repository was asked last, and those of packs that it may not know
    /// yet.
    known: HashMap<BlockName, Place>,
}

/// Packs that are built and not yet stored, at most; whoever sends them waits with those that come after.
pub(super) const UNDERWAY: usize = 4;

impl Packing {
    pub(super) fn new(block_size: usize) -> Self {
        Self {
            collector: Collector::default(),
            builder: Builder::new(block_size),
            number: None,
            underway: VecDeque::new(),
            known: HashMap::new(),
        }
    }

    /// The names to ask for, each once.
    pub(super) fn unknown(&mut self, entries: &[Option<Entry>]) -> Vec<BlockName> {
        let (number, underway) = (self.number, &self.underway);
        self.known.retain(|_, place| Some(place.pack) == number || underway.contains(&place.pack));
        let mut names: Vec<BlockName> = entries.iter().flatten().map(|entry| entry.name).collect();
        names.sort_unstable();
        names.dedup();
        names.retain(|name| !self.known.contains_key(name));
        names
    }

    /// Adds the next blocks; `found` answers for `asked`. Packs that are full go to `send`.
    pub(super) fn add(
        &mut self,
        file: &NamedFile,
        entries: &[Option<Entry>],
        asked: &[BlockName],
        found: &Located,
        send: &mut dyn FnMut(Packed) -> io::Result<()>,
    ) -> io::Result<()> {
        let wrong = || io::Error::other("the repository says places in packs that it does not name");
        for (name, place) in asked.iter().zip(&found.places) {
            if let Some(place) = place {
                let pack = found.packs.get(place.pack as usize).ok_or_else(wrong)?;
                let pack = self.collector.number(*pack);
                self.known.insert(*name, Place { pack, slot: place.slot });
            }
        }
        for entry in entries {
            let Some(entry) = entry else {
                self.collector.push(None);
                continue;
            };
            let place = match self.known.get(&entry.name) {
                Some(place) => *place,
                None => self.pack(file, entry)?,
            };
            self.collector.push(Some((&entry.name, place)));
            if self.builder.is_full()
                && let Some(packed) = self.end_pack()?
            {
                send(packed)?;
            }
        }
        Ok(())
    }

    fn pack(&mut self, file: &NamedFile, entry: &Entry) -> io::Result<Place> {
        let pack = *self.number.get_or_insert_with(|| self.collector.begin());
        let slot = self.builder.push(entry.name, &file.block(entry)?)?;
        let place = Place { pack, slot: u32::try_from(slot).map_err(io::Error::other)? };
        self.known.insert(entry.name, place);
        Ok(place)
    }

    fn end_pack(&mut self) -> io::Result<Option<Packed>> {
        let Some(number) = self.number.take() else { return Ok(None) };
        let packed = self.builder.finish()?;
        self.collector.end(number, packed.pack);
        if self.underway.len() == UNDERWAY {
            self.underway.pop_front();
        }
        self.underway.push_back(number);
        Ok(Some(packed))
    }

    /// The last pack, if there is one, and the recipe.
    pub(super) fn finish(mut self, file: &NamedFile) -> io::Result<(Option<Packed>, Recipe)> {
        let last = self.end_pack()?;
        let recipe = self.collector.finish(file.block_size, file.content.clone());
        Ok((last, recipe.ok_or_else(|| io::Error::other("a pack has no end"))?))
    }
}
