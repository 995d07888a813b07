use super::*;
use crate::store::pack::{Builder, PAGE, Packed};

fn block(n: u8) -> BlockName {
    BlockName::of(&[n; PAGE])
}

fn packed(blocks: &[u8]) -> (Packed, Vec<BlockName>) {
    let mut builder = Builder::new(PAGE);
    for n in blocks {
        builder.push(block(*n), &[*n; PAGE]).unwrap();
    }
    (builder.finish().unwrap(), blocks.iter().map(|n| block(*n)).collect())
}

fn add(index: &BlockIndex, blocks: &[u8]) -> PackRef {
    let (Packed { pack, bytes }, names) = packed(blocks);
    let read = Index::parse(pack.name, &bytes[usize::try_from(pack.index_range().start).unwrap()..]).unwrap();
    index.add(&Entry::of(pack, &read, Some(Timestamp::UNIX_EPOCH)), &names).unwrap();
    pack
}

fn found(index: &BlockIndex, n: u8) -> Option<(PackName, u32)> {
    index.find(&[block(n)]).unwrap()[0].map(|(pack, slot)| (pack.name, slot))
}

#[test]
fn blocks_are_found_until_their_pack_goes_or_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blocks");
    let index = BlockIndex::open(&path).unwrap();
    let first = add(&index, &[1, 2, 3]);
    let second = add(&index, &[3, 4]);
    assert_eq!(found(&index, 3), Some((first.name, 2)), "it stays where it is");
    assert_eq!(found(&index, 4), Some((second.name, 1)));
    assert_eq!(found(&index, 9), None);
    // a pack that is gone, whatever was in it
    index.remove(first.name, &[]).unwrap();
    assert_eq!((found(&index, 1), found(&index, 3)), (None, None));
    assert_eq!(index.packs().unwrap(), HashSet::from([second.name]));
    // what comes again gets another ordinal, so that old rows do not mean it
    let third = add(&index, &[5, 6, 7]);
    assert_eq!(found(&index, 1), None);
    index.forget(&[third.name]).unwrap();
    assert_eq!(found(&index, 5), None);
    assert!(index.entries(&[third.name]).unwrap().contains_key(&third.name), "the pack is known");
    let fourth = add(&index, &[6]);
    assert_eq!(found(&index, 6), Some((fourth.name, 0)));
    drop(index);
    let index = BlockIndex::open(&path).unwrap();
    assert_eq!(found(&index, 6), Some((fourth.name, 0)));
    assert_eq!((found(&index, 5), index.packs().unwrap().len()), (None, 3));
}

#[test]
fn it_is_known_when_a_pack_was_read() {
    let directory = tempfile::tempdir().unwrap();
    let index = BlockIndex::open(&directory.path().join("blocks")).unwrap();
    let pack = add(&index, &[1]);
    let later = Timestamp::from_second(1_800_000_000).unwrap();
    index.note_verified(&[pack.name], later).unwrap();
    let entry = index.entries(&[pack.name]).unwrap()[&pack.name];
    assert_eq!((entry.pack, entry.slots, entry.verified), (pack, 1, later.as_second()));
    assert_eq!(index.tidied().unwrap(), None);
    index.note_tidied(7).unwrap();
    assert_eq!(index.tidied().unwrap(), Some(7));
}
