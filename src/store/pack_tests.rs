use proptest::prelude::*;

use super::*;

fn block(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn packed(blocks: &[Vec<u8>], size: usize) -> Packed {
    let mut builder = Builder::new(size);
    for block in blocks {
        let mut whole = block.clone();
        whole.resize(size, 0);
        builder.push(BlockName::of(&whole), block).unwrap();
    }
    builder.finish().unwrap()
}

fn index(packed: &Packed) -> Index {
    let range = packed.pack.index_range();
    Index::parse(packed.pack.name, &packed.bytes[range.start as usize..]).unwrap()
}

fn frame<'a>(packed: &'a Packed, index: &Index, frame: usize) -> &'a [u8] {
    let range = index.range(frame).unwrap();
    &packed.bytes[range.start as usize..range.end as usize]
}

#[test]
fn every_block_comes_back_from_its_slot() {
    for size in [PAGE, BLOCK] {
        let blocks: Vec<Vec<u8>> = (0..PACK / size).map(|n| block(n as u64, size)).collect();
        let packed = packed(&blocks, size);
        assert!(packed.bytes.len() <= MAX_STORED && packed.pack.is_sane());
        assert_eq!(packed.bytes.len(), packed.pack.stored as usize);
        let index = index(&packed);
        assert_eq!(index.blocks().len(), blocks.len());
        assert_eq!(index_length(&packed.bytes[packed.bytes.len() - TRAILER..]).unwrap(), packed.pack.index as usize);
        let frames = &packed.bytes[..usize::try_from(index.frames_end()).unwrap()];
        let split: Vec<_> = index.split(0, frames).map(Result::unwrap).collect();
        assert_eq!(split.len(), index.frames());
        assert!(split.iter().all(|(number, stored)| *stored == frame(&packed, &index, *number)));
        // from a frame in the middle on, the last one cut off, and behind the end
        let start = usize::try_from(index.range(3).unwrap().start).unwrap();
        assert_eq!(index.split(3, &frames[start..]).next().unwrap().unwrap(), split[3]);
        let cut: Vec<_> = index.split(0, &frames[..frames.len() - 1]).collect();
        assert_eq!(cut.last().unwrap(), &Err(PackError::Frame(index.frames() - 1)));
        assert_eq!(cut.len(), index.frames());
        assert_eq!(index.split(index.frames(), b"x").collect::<Vec<_>>(), [Err(PackError::Frame(index.frames()))]);
        for (slot, block) in blocks.iter().enumerate() {
            let number = index.frame_of(slot);
            let stored = frame(&packed, &index, number);
            index.check(number, stored).unwrap();
            let unpacked = index.unpack(number, stored).unwrap();
            let at = (slot - index.slots(number).start) * size;
            assert_eq!(&unpacked[at..at + size], block);
        }
    }
}

#[test]
fn a_full_pack_says_so_and_a_short_block_is_filled_with_zeros() {
    let mut builder = Builder::new(BLOCK);
    assert!(builder.is_empty());
    for n in 0..FULL / BLOCK {
        assert!(!builder.is_full());
        assert_eq!(builder.push(BlockName::of(&block(n as u64, BLOCK)), &block(n as u64, BLOCK)).unwrap(), n);
    }
    assert!(builder.is_full());
    let packed = packed(&[vec![7; 100]], PAGE);
    let index = index(&packed);
    let unpacked = index.unpack(0, frame(&packed, &index, 0)).unwrap();
    assert!(unpacked[..100].iter().all(|b| *b == 7) && unpacked[100..].iter().all(|b| *b == 0));
}

#[test]
fn an_index_is_only_that_of_a_pack_of_its_length() {
    let packed = packed(&[block(1, PAGE)], PAGE);
    let tail = &packed.bytes[usize::try_from(packed.pack.index_range().start).unwrap()..];
    assert!(packed.pack.read_index(tail).is_ok());
    let longer = PackRef { stored: packed.pack.stored + 1, ..packed.pack };
    assert!(matches!(longer.read_index(tail), Err(PackError::Format(_))));
}

#[test]
fn the_same_blocks_have_the_same_name() {
    let blocks = [block(1, PAGE), block(2, PAGE)];
    assert_eq!(packed(&blocks, PAGE).pack, packed(&blocks, PAGE).pack);
    let other = [block(2, PAGE), block(1, PAGE)];
    assert_ne!(packed(&blocks, PAGE).pack.name, packed(&other, PAGE).pack.name);
    let name = packed(&blocks, PAGE).pack.name;
    assert_eq!(name.to_string().parse(), Ok(name));
    assert_eq!(name.to_string().to_uppercase().parse::<PackName>(), Err(PackError::Name));
}

/// What a reader finds in changed bytes: all blocks as they were, or an error.
fn read(name: PackName, bytes: &[u8], blocks: &[Vec<u8>]) -> Result<(), PackError> {
    let trailer = bytes.len().checked_sub(TRAILER).ok_or(PackError::Format("short"))?;
    let length = index_length(&bytes[trailer..])?;
    let start = bytes.len().checked_sub(length).ok_or(PackError::Format("short"))?;
    let index = Index::parse(name, &bytes[start..])?;
    let mut all = Vec::new();
    for number in 0..index.frames() {
        let range = index.range(number).unwrap();
        let stored = bytes.get(range.start as usize..range.end as usize).ok_or(PackError::Frame(number))?;
        let checked = index.check(number, stored);
        let unpacked = index.unpack(number, stored);
        assert!(checked.is_ok() || unpacked.is_err() || unpacked == Ok(blocks[index.slots(number)].concat()));
        all.extend(unpacked?);
    }
    assert_eq!(all, blocks.concat(), "damage is seen");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn b7_no_damage_of_a_pack_goes_unseen(
        at in any::<prop::sample::Index>(), by in 1u8.., cut in prop::option::of(any::<prop::sample::Index>())
    ) {
        let blocks: Vec<Vec<u8>> = (0..70).map(|n| if n % 3 == 0 { vec![n; PAGE] } else { block(n.into(), PAGE) }).collect();
        let whole = packed(&blocks, PAGE);
        let mut bytes = whole.bytes.clone();
        match cut {
            Some(cut) => bytes.truncate(cut.index(bytes.len())),
            None => { let at = at.index(bytes.len()); bytes[at] = bytes[at].wrapping_add(by); }
        }
        prop_assert!(read(whole.pack.name, &bytes, &blocks).is_err());
        prop_assert!(read(whole.pack.name, &whole.bytes, &blocks).is_ok());
    }

    #[test]
    fn rubbish_is_no_pack(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let name = PackName::of(&bytes);
        let mut tail = bytes.clone();
        tail.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_le_bytes());
        tail.extend_from_slice(MAGIC);
        // one that says the right name is taken at its word, and must be in order then
        if let Ok(index) = Index::parse(name, &tail) {
            prop_assert!(index.frames() > 0 && index.range(index.frames()).is_none());
        }
        prop_assert!(Index::parse(name, &bytes).is_err());
    }
}
