//! Files through packs and back, without a server between.

use std::{
    collections::{HashMap, VecDeque},
    path::Path,
    sync::{Arc, atomic::AtomicU64},
};

use super::{
    named::NamedFile,
    packing::{Packing, UNDERWAY},
    plan::Plan,
    target::{self, Piece, Target},
};
use crate::{
    driver::repository::RepositoryError,
    store::{
        manifest::FileKind,
        migration::{self, StreamError, testing::Synthetic},
        pack::{BLOCK, BlockName, Index, PACK, PackName, PackRef, Packed},
        recipe::{Content, Located, Place, Recipe},
    },
};

/// What a repository has, in memory.
#[derive(Default)]
pub(super) struct Packs {
    packs: HashMap<PackName, Packed>,
    blocks: HashMap<BlockName, (PackRef, u32)>,
}

impl Packs {
    fn find(&self, names: &[BlockName]) -> Located {
        let mut found = Located::default();
        for name in names {
            let place = self.blocks.get(name).map(|(pack, slot)| {
                let known = found.packs.iter().position(|other| other == pack);
                let number = known.unwrap_or_else(|| {
                    found.packs.push(*pack);
                    found.packs.len() - 1
                });
                Place { pack: u32::try_from(number).unwrap(), slot: *slot }
            });
            found.places.push(place);
        }
        found
    }

    fn keep(&mut self, packed: Packed) {
        for (slot, name) in index(&packed).blocks().iter().enumerate() {
            self.blocks.insert(*name, (packed.pack, u32::try_from(slot).unwrap()));
        }
        self.packs.insert(packed.pack.name, packed);
    }

    /// Sends a file; the bytes of the packs that were new.
    pub(super) fn put(&mut self, path: &Path, kind: FileKind, batch: usize) -> (Recipe, usize) {
        let file = NamedFile::read(path, kind).unwrap();
        let (mut packing, mut first, mut sent) = (Packing::new(file.block_size), 0, 0);
        // as late as they may be stored
        let mut underway = VecDeque::new();
        while first < file.blocks {
            let entries = file.entries(first, batch).unwrap();
            let asked = packing.unknown(&entries);
            let found = self.find(&asked);
            let mut send = |packed: Packed| {
                sent += packed.bytes.len();
                underway.push_back(packed);
                if underway.len() > UNDERWAY - 1 {
                    self.keep(underway.pop_front().unwrap());
                }
                Ok(())
            };
            packing.add(&file, &entries, &asked, &found, &mut send).unwrap();
            first += entries.len() as u64;
        }
        let (last, recipe) = packing.finish(&file).unwrap();
        sent += last.iter().map(|packed| packed.bytes.len()).sum::<usize>();
        underway.into_iter().chain(last).for_each(|packed| self.keep(packed));
        let bytes = recipe.to_bytes().unwrap();
        (Recipe::parse(&bytes).unwrap(), sent)
    }

    fn get(&self, recipe: &Recipe, to: &Path) -> Result<(), RepositoryError> {
        self.get_with(recipe, to, |_| Ok(())).map(drop)
    }

    /// Makes a file again of what is `here` and of packs. Bytes that were here, and how many packs were needed.
    pub(super) fn get_with(
        &self,
        recipe: &Recipe,
        to: &Path,
        here: impl FnOnce(&mut Target<'_>) -> Result<(), RepositoryError>,
    ) -> Result<(u64, usize), RepositoryError> {
        let plan = Plan::of(recipe, |_| true);
        let (pieces, arriving) = tokio::sync::mpsc::channel(4096);
        // backwards: the order of packs does not matter
        for (pack, found) in recipe.head.packs.iter().enumerate().rev() {
            let packed = &self.packs[&found.name];
            let index = Arc::new(index(packed));
            for frames in plan.frames(pack, &index) {
                let start = usize::try_from(index.range(frames.start).unwrap().start).unwrap();
                let end = usize::try_from(index.range(frames.end - 1).unwrap().end).unwrap();
                let bytes = packed.bytes[start..end].to_vec().into();
                let piece = Piece { pack, index: index.clone(), frame: frames.start, bytes };
                pieces.try_send(piece).unwrap_or_else(|_| unreachable!());
            }
        }
        drop(pieces);
        let mut needed = 0;
        let count = |plan: Arc<Plan>| {
            needed = (0..recipe.head.packs.len()).filter(|pack| !plan.of_pack(*pack).is_empty()).count();
        };
        let local = target::write(recipe, here, count, arriving, (to, u64::MAX), &AtomicU64::new(0))?;
        Ok((local, needed))
    }
}

fn index(packed: &Packed) -> Index {
    let start = usize::try_from(packed.pack.index_range().start).unwrap();
    Index::parse(packed.pack.name, &packed.bytes[start..]).unwrap()
}

pub(super) fn random(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn a_file_comes_back_and_what_is_known_is_not_sent_again() {
    let directory = tempfile::tempdir().unwrap();
    let (path, to) = (directory.path().join("disk"), directory.path().join("back"));
    let mut packs = Packs::default();
    // more than one pack, zeros, repetitions, and a short end
    let mut bytes = random(1, PACK + 3 * BLOCK);
    bytes[5 * BLOCK..9 * BLOCK].fill(0);
    bytes.copy_within(0..BLOCK, 20 * BLOCK);
    bytes.extend([7; 100]);
    for (change, expected) in [(None, PACK), (Some(30 * BLOCK + 5), BLOCK), (Some(bytes.len() - 1), 0)] {
        if let Some(at) = change {
            bytes[at] ^= 1;
        }
        std::fs::write(&path, &bytes).unwrap();
        for batch in [7, 4096] {
            let (recipe, sent) = packs.put(&path, FileKind::Disk, batch);
            let most = if batch == 7 { expected + expected / 10 + 2000 } else { 0 };
            assert!(sent <= most, "{sent} bytes were sent instead of {expected}");
            packs.get(&recipe, &to).unwrap();
            assert!(std::fs::read(&to).unwrap() == bytes, "{change:?}");
        }
    }
}

fn pages(stream: &[u8]) -> (Vec<Option<Vec<u8>>>, migration::Skeleton) {
    let mut pages = HashMap::new();
    let skeleton = migration::read(stream, |found| {
        let content = match found.content {
            migration::Page::Zero => None,
            migration::Page::Data { bytes, .. } => Some(bytes.to_vec()),
        };
        pages.insert(found.page, content);
        Ok::<_, StreamError>(())
    });
    let skeleton = skeleton.unwrap();
    ((0..skeleton.pages()).map(|page| pages[&page].clone()).collect(), skeleton)
}

#[test]
fn a_memory_comes_back_page_by_page_whatever_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let (path, to) = (directory.path().join("memory"), directory.path().join("back"));
    let mut packs = Packs::default();
    let stream = Synthetic::background();
    for (name, stream) in [("background", stream.clone()), ("stopped", Synthetic::stopped())] {
        std::fs::write(&path, stream.bytes()).unwrap();
        let (recipe, sent) = packs.put(&path, FileKind::Memory, 5);
        assert!(matches!(recipe.head.content, Content::Migration(_)), "{name}");
        // the two have the same pages
        assert_eq!(sent == 0, name == "stopped");
        packs.get(&recipe, &to).unwrap();
        assert_eq!(pages(&std::fs::read(&to).unwrap()), pages(&stream.bytes()), "{name}");
    }
}

#[test]
fn a_memory_that_is_no_stream_is_kept_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let (path, to) = (directory.path().join("memory"), directory.path().join("back"));
    let mut bytes = Synthetic::stopped().bytes();
    bytes.truncate(bytes.len() - 3);
    std::fs::write(&path, &bytes).unwrap();
    let mut packs = Packs::default();
    let (recipe, _) = packs.put(&path, FileKind::Memory, 4096);
    assert_eq!(recipe.head.content, Content::File { length: bytes.len() as u64 });
    packs.get(&recipe, &to).unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), bytes);
}

#[test]
fn b7_a_file_of_which_a_piece_is_missing_has_no_name() {
    let directory = tempfile::tempdir().unwrap();
    let (path, to) = (directory.path().join("disk"), directory.path().join("back"));
    std::fs::write(&path, random(2, 3 * BLOCK)).unwrap();
    let mut packs = Packs::default();
    let (recipe, _) = packs.put(&path, FileKind::Disk, 4096);
    let (pieces, arriving) = tokio::sync::mpsc::channel(1);
    drop(pieces);
    let moved = AtomicU64::new(0);
    assert!(target::write(&recipe, |_| Ok(()), |_| {}, arriving, (&to, u64::MAX), &moved).is_err());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn b7_a_place_that_was_noted_wrongly_makes_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let (path, to) = (directory.path().join("disk"), directory.path().join("back"));
    std::fs::write(&path, random(3, 4 * BLOCK)).unwrap();
    let mut packs = Packs::default();
    let (mut recipe, _) = packs.put(&path, FileKind::Disk, 4096);
    packs.get(&recipe, &to).unwrap();
    std::fs::remove_file(&to).unwrap();
    // a block that is there and is whole, but another
    recipe.runs =
        [0, 2, 1, 3].map(|slot| crate::store::recipe::Run { count: 1, place: Some(Place { pack: 0, slot }) }).into();
    let made = packs.get(&recipe, &to);
    assert!(matches!(made, Err(RepositoryError::Damaged(_))), "{made:?}");
    assert!(!to.exists());
}
