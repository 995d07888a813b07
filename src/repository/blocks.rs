//! Where the blocks of a job are: derived from its packs, made again when it is lost or cannot be read.
//! Whoever changes it holds the job's lock.
//!
//! A database on the disk (redb: one file, no C, bounded memory), because a job may have more blocks than
//! memory for their names.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use jiff::Timestamp;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use crate::store::pack::{BlockName, Index, PackName, PackRef};

/// By ordinal; an ordinal is never used twice.
const PACKS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("packs");
/// The ordinal of a pack.
const NAMES: TableDefinition<'_, &[u8; 32], u32> = TableDefinition::new("names");
/// Ordinal and slot of a block. Those of an ordinal that is gone mean nothing.
const BLOCKS: TableDefinition<'_, &[u8; 32], (u32, u32)> = TableDefinition::new("blocks");
const NUMBERS: TableDefinition<'_, &str, u32> = TableDefinition::new("numbers");
/// The ordinal of the next pack.
const NEXT: &str = "next";
/// The last generation after which packs were forgotten of which little is used.
const TIDIED: &str = "tidied";
/// Bytes of it in memory.
const CACHE: usize = 8 << 20;
/// So many changes may be lost in a crash: they are found in the packs again.
const UNSYNCED: u32 = 64;

/// What is known of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The pack.
    pub(super) pack: PackRef,
    /// Its blocks.
    pub(super) slots: u32,
    /// Bytes of a block.
    pub(super) block_size: u32,
    /// When all of it was read last, in seconds; 0 if it is not known.
    pub(super) verified: i64,
    /// Its blocks are not found any more.
    forgotten: bool,
}

impl Entry {
    /// What its index says of a pack.
    pub(super) fn of(pack: PackRef, index: &Index, verified: Option<Timestamp>) -> Self {
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            pack,
            slots: number(index.blocks().len()),
            block_size: number(index.block_size()),
            verified: verified.map_or(0, Timestamp::as_second),
            forgotten: false,
        }
    }

    fn read(bytes: &[u8]) -> Done<Self> {
        postcard::from_bytes(bytes).map_err(|e| redb::Error::Corrupted(e.to_string()))
    }

    fn bytes(&self) -> Done<Vec<u8>> {
        postcard::to_stdvec(self).map_err(|e| redb::Error::Corrupted(e.to_string()))
    }
}

/// What the database answers.
pub(super) type Done<T> = Result<T, redb::Error>;

/// The index of a job.
pub(super) struct BlockIndex {
    database: Database,
    unsynced: AtomicU32,
    /// Bytes of all packs it knows.
    bytes: AtomicU64,
}

impl BlockIndex {
    /// Opens or makes one.
    pub(super) fn open(path: &Path) -> Done<Self> {
        let database = Database::builder().set_cache_size(CACHE).create(path)?;
        let index = Self { database, unsynced: AtomicU32::new(0), bytes: AtomicU64::new(0) };
        index.change(|change| {
            change.open_table(PACKS)?;
            change.open_table(NAMES)?;
            change.open_table(BLOCKS)?;
            change.open_table(NUMBERS)?;
            Ok(())
        })?;
        let mut bytes = 0;
        index.each(|entry| bytes += u64::from(entry.pack.stored))?;
        index.bytes.store(bytes, Ordering::Relaxed);
        Ok(index)
    }

    fn change<T>(&self, work: impl FnOnce(&WriteTransaction) -> Done<T>) -> Done<T> {
        let mut change = self.database.begin_write()?;
        if self.unsynced.fetch_add(1, Ordering::Relaxed).is_multiple_of(UNSYNCED) {
            // after a crash it is as it was here, and opens without being read through
            change.set_quick_repair(true);
        } else {
            change.set_durability(Durability::None)?;
        }
        let done = work(&change)?;
        change.commit()?;
        Ok(done)
    }

    /// All packs it knows.
    pub(super) fn packs(&self) -> Done<HashSet<PackName>> {
        let names = self.database.begin_read()?.open_table(NAMES)?;
        names.iter()?.map(|entry| Ok(PackName(*entry?.0.value()))).collect()
    }

    fn each(&self, mut what: impl FnMut(Entry)) -> Done<()> {
        let packs = self.database.begin_read()?.open_table(PACKS)?;
        for row in packs.iter()? {
            what(Entry::read(row?.1.value())?);
        }
        Ok(())
    }

    /// Bytes of all packs.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many packs there are, and those that were not read since this time, the one read longest ago first.
    pub(super) fn unread_since(&self, since: Timestamp) -> Done<(usize, Vec<PackRef>)> {
        let (mut all, mut old) = (0, Vec::new());
        self.each(|entry| {
            all += 1;
            if entry.verified < since.as_second() {
                old.push((entry.verified, entry.pack));
            }
        })?;
        old.sort_unstable_by_key(|(verified, pack)| (*verified, pack.name));
        Ok((all, old.into_iter().map(|(_, pack)| pack).collect()))
    }

    /// What it knows of these packs.
    pub(super) fn entries<'a>(&self, names: impl IntoIterator<Item = &'a PackName>) -> Done<HashMap<PackName, Entry>> {
        let reading = self.database.begin_read()?;
        let (ordinals, packs) = (reading.open_table(NAMES)?, reading.open_table(PACKS)?);
        let mut known = HashMap::new();
        for name in names {
            let Some(ordinal) = ordinals.get(&name.0)? else { continue };
            if let Some(entry) = packs.get(ordinal.value())? {
                known.insert(*name, Entry::read(entry.value())?);
            }
        }
        Ok(known)
    }

    /// Where these blocks are.
    pub(super) fn find(&self, names: &[BlockName]) -> Done<Vec<Option<(PackRef, u32)>>> {
        let reading = self.database.begin_read()?;
        let (blocks, packs) = (reading.open_table(BLOCKS)?, reading.open_table(PACKS)?);
        let mut seen: HashMap<u32, Option<Entry>> = HashMap::new();
        let mut places = Vec::with_capacity(names.len());
        for name in names {
            let Some(row) = blocks.get(&name.0)? else {
                places.push(None);
                continue;
            };
            let (ordinal, slot) = row.value();
            let entry = match seen.get(&ordinal) {
                Some(entry) => *entry,
                None => {
                    let entry = packs.get(ordinal)?.map(|bytes| Entry::read(bytes.value())).transpose()?;
                    *seen.entry(ordinal).or_insert(entry)
                }
            };
            let entry = entry.filter(|entry| !entry.forgotten && slot < entry.slots);
            places.push(entry.map(|entry| (entry.pack, slot)));
        }
        Ok(places)
    }

    /// Takes a pack in. A block that is in another one already stays there.
    pub(super) fn add(&self, entry: &Entry, blocks: &[BlockName]) -> Done<()> {
        let is_new = self.change(|change| {
            let mut names = change.open_table(NAMES)?;
            let mut packs = change.open_table(PACKS)?;
            let known = names.get(&entry.pack.name.0)?.map(|ordinal| ordinal.value());
            let ordinal = match known {
                Some(ordinal) => ordinal,
                None => next(change)?,
            };
            names.insert(&entry.pack.name.0, ordinal)?;
            packs.insert(ordinal, entry.bytes()?.as_slice())?;
            let mut rows = change.open_table(BLOCKS)?;
            let mut good: HashMap<u32, bool> = HashMap::from([(ordinal, false)]);
            for (slot, block) in (0u32..).zip(blocks) {
                let there = rows.get(&block.0)?.map(|row| row.value().0);
                if let Some(other) = there {
                    let stays = match good.get(&other) {
                        Some(stays) => *stays,
                        None => {
                            let other_entry = packs.get(other)?.map(|bytes| Entry::read(bytes.value())).transpose()?;
                            *good.entry(other).or_insert(other_entry.is_some_and(|entry| !entry.forgotten))
                        }
                    };
                    if stays {
                        continue;
                    }
                }
                rows.insert(&block.0, (ordinal, slot))?;
            }
            Ok(known.is_none())
        })?;
        if is_new {
            self.bytes.fetch_add(entry.pack.stored.into(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// These packs were read and are what their names say.
    pub(super) fn note_verified(&self, names: &[PackName], now: Timestamp) -> Done<()> {
        self.edit(names, |entry| entry.verified = now.as_second())
    }

    /// The blocks of these packs are not found any more; the packs stay.
    pub(super) fn forget(&self, names: &[PackName]) -> Done<()> {
        self.edit(names, |entry| entry.forgotten = true)
    }

    fn edit(&self, names: &[PackName], edit: impl Fn(&mut Entry)) -> Done<()> {
        self.change(|change| {
            let (ordinals, mut packs) = (change.open_table(NAMES)?, change.open_table(PACKS)?);
            for name in names {
                let Some(ordinal) = ordinals.get(&name.0)?.map(|ordinal| ordinal.value()) else { continue };
                let entry = packs.get(ordinal)?.map(|bytes| Entry::read(bytes.value())).transpose()?;
                if let Some(mut entry) = entry {
                    edit(&mut entry);
                    packs.insert(ordinal, entry.bytes()?.as_slice())?;
                }
            }
            Ok(())
        })
    }

    /// A pack is gone. Rows of blocks that are not said stay, and mean nothing.
    pub(super) fn remove(&self, name: PackName, blocks: &[BlockName]) -> Done<()> {
        let bytes = self.change(|change| {
            let Some(ordinal) = change.open_table(NAMES)?.remove(&name.0)?.map(|ordinal| ordinal.value()) else {
                return Ok(0);
            };
            let entry =
                change.open_table(PACKS)?.remove(ordinal)?.map(|bytes| Entry::read(bytes.value())).transpose()?;
            let mut rows = change.open_table(BLOCKS)?;
            for block in blocks {
                let here = rows.get(&block.0)?.is_some_and(|row| row.value().0 == ordinal);
                if here {
                    rows.remove(&block.0)?;
                }
            }
            Ok(entry.map_or(0, |entry| u64::from(entry.pack.stored)))
        })?;
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// The last generation after which sparse packs were forgotten.
    pub(super) fn tidied(&self) -> Done<Option<u32>> {
        Ok(self.database.begin_read()?.open_table(NUMBERS)?.get(TIDIED)?.map(|number| number.value()))
    }

    /// Notes it.
    pub(super) fn note_tidied(&self, generation: u32) -> Done<()> {
        self.change(|change| {
            change.open_table(NUMBERS)?.insert(TIDIED, generation)?;
            Ok(())
        })
    }
}

fn next(change: &WriteTransaction) -> Done<u32> {
    let mut numbers = change.open_table(NUMBERS)?;
    let ordinal = numbers.get(NEXT)?.map_or(0, |number| number.value());
    let after = ordinal.checked_add(1).ok_or_else(|| redb::Error::Corrupted("no ordinal is left".into()))?;
    numbers.insert(NEXT, after)?;
    Ok(ordinal)
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
