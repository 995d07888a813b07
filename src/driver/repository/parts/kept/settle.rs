//! Keeps the blocks of a generation that was sent: those that are not there yet are written, those that nobody needs
//! any more go. Blocking.

use std::{
    collections::HashSet,
    io,
    path::PathBuf,
    sync::{Arc, PoisonError},
};

use super::{Kept, Work, names, names::Names, shelf, shelf::Shelf, sweep::sweep};
use crate::{
    driver::repository::parts::named::NamedFile,
    names::Generation,
    store::{
        manifest::FileKind,
        pack::{BlockName, Builder, FULL},
    },
};

/// Blocks that are looked at together.
const AT_ONCE: usize = 4096;
/// As much of the node's disk stays free: a part of so many, but never more than this.
const FREE: u64 = 20;
const MOST_FREE: u64 = 4 << 30;
/// A pack of which less is used, a part of so many, is written anew.
const SPARSE: usize = 4;
/// So many packs that are far from full may be there.
const SMALL: usize = 24;

/// Which slots of which packs are needed.
struct Used(Vec<Vec<bool>>);

impl Used {
    fn none(shelf: &Shelf) -> Self {
        Self(shelf.packs.iter().map(|pack| vec![false; pack.slots]).collect())
    }

    fn mark(&mut self, (pack, slot): (usize, usize)) {
        if let Some(used) = self.0.get_mut(pack).and_then(|slots| slots.get_mut(slot)) {
            *used = true;
        }
    }

    fn of(&self, pack: usize) -> usize {
        self.0.get(pack).map_or(0, |slots| slots.iter().filter(|used| **used).count())
    }
}

impl Kept {
    /// Keeps a generation of which all files were sent; whether it is. Ends soon once it is to stop.
    pub fn settle(&self, generation: Generation, stop: &dyn Fn() -> bool) -> io::Result<bool> {
        let work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = std::mem::take(&mut *self.sent.lock().unwrap_or_else(PoisonError::into_inner));
        if *work == Work::Over || sent.generation != generation || sent.files.is_empty() {
            return Ok(false);
        }
        // it is in use: not among what nobody has used for long
        self.held.set_modified(std::time::SystemTime::now())?;
        let is_first = !self.drop_older_names(generation)?;
        let names = sent.files.iter().map(|(_, file)| names::most_bytes(file.blocks)).fold(0, u64::saturating_add);
        let Some(left) = self.room().checked_sub(names) else {
            // what is there is of no use much longer; its room is for the next one
            self.clear();
            return Ok(false);
        };
        // the next one's names come beside these
        let mut room = left.saturating_sub(if is_first { names } else { 0 });
        let shelf = Shelf::read(&self.directory, &self.seal)?;
        let mut used = Used::none(&shelf);
        for (_, file) in &sent.files {
            each(file, |name| {
                shelf.find(&name).into_iter().for_each(|place| used.mark(place));
                Ok(())
            })?;
        }
        let stop = &|| stop() || self.is_wanted();
        let anew = anew(&shelf, &used);
        let mut number = shelf.next();
        for (kind, file) in &sent.files {
            let mut missing =
                Missing { kept: self, number, room, builder: Builder::new(file.block_size), new: HashSet::new() };
            let there = |name: &BlockName| shelf.find(name).is_some_and(|(pack, _)| !anew[pack]);
            if !missing.write(file, &there, stop)? {
                return Ok(false);
            }
            (number, room) = (missing.number, missing.room);
            if stop() {
                return Ok(false);
            }
            self.name(generation, *kind, file)?;
        }
        self.prune(generation, &shelf, used, &anew)?;
        Ok(true)
    }

    /// Bytes that may be added: within the limit, once others have made room, and with some of the disk left free.
    fn room(&self) -> u64 {
        let taken = sweep(&self.root, self.limit);
        let free = rustix::fs::statvfs(&self.directory).map_or(0, |disk| {
            let (free, all) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
            free.saturating_sub((all / FREE).min(MOST_FREE))
        });
        self.limit.saturating_sub(taken).min(free)
    }

    fn name(&self, generation: Generation, kind: FileKind, file: &NamedFile) -> io::Result<()> {
        let mut names = Names::create(&names::place(&self.directory, generation, kind), &self.seal, file.blocks)?;
        let mut first = 0;
        while first < file.blocks {
            let entries = file.entries(first, AT_ONCE)?;
            first += entries.len() as u64;
            entries.into_iter().try_for_each(|entry| names.push(entry.map(|entry| entry.name)))?;
        }
        names.finish()
    }

    /// Generations whose names are there, and where.
    pub(super) fn named(&self) -> io::Result<Vec<(Generation, PathBuf)>> {
        let mut named = Vec::new();
        for entry in std::fs::read_dir(&self.directory)?.flatten() {
            let of = entry.file_name().to_str().and_then(names::generation);
            named.extend(of.map(|of| (of, entry.path())));
        }
        Ok(named)
    }

    /// Leaves names of none but the generation before this one, to whose names they give way. Whether there is one.
    fn drop_older_names(&self, generation: Generation) -> io::Result<bool> {
        let named = self.named()?;
        let before = named.iter().map(|(of, _)| *of).filter(|of| *of < generation).max();
        for (_, path) in named.iter().filter(|(of, _)| Some(*of) != before) {
            std::fs::remove_file(path)?;
        }
        Ok(before.is_some())
    }

    /// Removes names that cannot be read of the generation before, and packs that neither needs.
    fn prune(&self, generation: Generation, shelf: &Shelf, used: Used, anew: &[bool]) -> io::Result<()> {
        let mut needed = Used::none(shelf);
        for (_, path) in self.named()?.iter().filter(|(of, _)| *of != generation) {
            let read = names::read(path, &self.seal, |name| {
                name.and_then(|name| shelf.find(&name)).into_iter().for_each(|place| needed.mark(place));
            });
            if read.is_err() {
                std::fs::remove_file(path)?;
            }
        }
        for (number, pack) in shelf.packs.iter().enumerate() {
            let now = if anew[number] { 0 } else { used.of(number) };
            if now == 0 && needed.of(number) == 0 {
                std::fs::remove_file(&pack.path)?;
            }
        }
        Ok(())
    }
}

/// The packs whose blocks are written anew: little of them is needed, or too many are small.
fn anew(shelf: &Shelf, used: &Used) -> Vec<bool> {
    // by the smallest blocks: a small pack of large ones is written again, which costs as little
    let small = |slots: usize| slots < FULL / crate::store::pack::PAGE / SPARSE;
    let too_many = shelf.packs.iter().filter(|pack| small(pack.slots)).count() > SMALL;
    let packs = shelf.packs.iter().enumerate();
    packs.map(|(number, pack)| used.of(number) * SPARSE < pack.slots || (too_many && small(pack.slots))).collect()
}

fn each(file: &NamedFile, mut with: impl FnMut(BlockName) -> io::Result<()>) -> io::Result<()> {
    let mut first = 0;
    while first < file.blocks {
        let entries = file.entries(first, AT_ONCE)?;
        first += entries.len() as u64;
        entries.into_iter().flatten().try_for_each(|entry| with(entry.name))?;
    }
    Ok(())
}

/// Blocks that are written.
struct Missing<'a> {
    kept: &'a Kept,
    /// Of the next pack.
    number: u64,
    /// Bytes that may be written.
    room: u64,
    builder: Builder,
    /// Names of what is in the pack.
    new: HashSet<BlockName>,
}

impl Missing<'_> {
    /// Writes what is not there, for as long as there is room. Whether it came to the end.
    fn write(
        &mut self,
        file: &Arc<NamedFile>,
        there: &dyn Fn(&BlockName) -> bool,
        stop: &dyn Fn() -> bool,
    ) -> io::Result<bool> {
        let mut first = 0;
        // what has no room is fetched
        while first < file.blocks && self.room > 0 {
            if stop() {
                return Ok(false);
            }
            let entries = file.entries(first, AT_ONCE)?;
            first += entries.len() as u64;
            for entry in entries.iter().flatten() {
                if there(&entry.name) || !self.new.insert(entry.name) {
                    continue;
                }
                self.builder.push(entry.name, &file.block(entry)?)?;
                if self.builder.is_full() {
                    self.end_pack()?;
                }
            }
        }
        self.end_pack()?;
        Ok(true)
    }

    fn end_pack(&mut self) -> io::Result<()> {
        self.new.clear();
        if self.builder.is_empty() {
            return Ok(());
        }
        let packed = self.builder.finish()?;
        let bytes = packed.bytes.len() as u64;
        let left = self.room.checked_sub(bytes);
        if left.is_some() {
            shelf::put(&self.kept.directory, &self.kept.seal, self.number, packed)?;
            self.number += 1;
        }
        self.room = left.unwrap_or(0);
        Ok(())
    }
}
