//! Which slots of which packs a recipe needs, and for which blocks. Pure.

use std::ops::Range;

use crate::store::{
    pack::{BlockName, FRAME, Index},
    recipe::Recipe,
};

/// Blocks that lie side by side in a pack and in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wanted {
    /// The first one's slot.
    pub(super) slot: usize,
    /// How many.
    pub(super) count: usize,
    /// The first one's number in the file.
    pub(super) block: u64,
}

/// What is wanted of each pack, by slot.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    packs: Vec<Vec<Wanted>>,
}

impl Plan {
    /// What a recipe needs of its packs for the blocks that are `wanted`.
    pub(super) fn of(recipe: &Recipe, wanted: impl Fn(u64) -> bool) -> Self {
        let mut plan = Self { packs: vec![Vec::new(); recipe.head.packs.len()] };
        let mut first = 0;
        for run in &recipe.runs {
            if let Some(place) = run.place {
                let blocks = (0..run.count as usize).zip(first..).filter(|(_, block)| wanted(*block));
                blocks.for_each(|(n, block)| plan.want(place.pack as usize, place.slot as usize + n, block));
            }
            first += u64::from(run.count);
        }
        plan.sorted()
    }

    /// What is wanted of so many packs for blocks with names, of which `find` says pack and slot.
    pub(super) fn here(
        names: &[Option<BlockName>],
        find: impl Fn(&BlockName) -> Option<(usize, usize)>,
        packs: usize,
    ) -> Self {
        let mut plan = Self { packs: vec![Vec::new(); packs] };
        for (block, name) in (0..).zip(names) {
            if let Some((pack, slot)) = name.as_ref().and_then(&find) {
                plan.want(pack, slot, block);
            }
        }
        plan.sorted()
    }

    fn want(&mut self, pack: usize, slot: usize, block: u64) {
        let Some(all) = self.packs.get_mut(pack) else { return };
        match all.last_mut() {
            Some(last) if last.slot + last.count == slot && last.block + last.count as u64 == block => last.count += 1,
            _ => all.push(Wanted { slot, count: 1, block }),
        }
    }

    fn sorted(mut self) -> Self {
        self.packs.iter_mut().for_each(|wanted| wanted.sort_unstable());
        self
    }

    /// What is wanted of a pack.
    pub(super) fn of_pack(&self, pack: usize) -> &[Wanted] {
        self.packs.get(pack).map_or(&[], Vec::as_slice)
    }

    /// Whether a pack is better fetched whole: the frames that are wanted would be half of what is stored, even
    /// if they did not compress. One answer is waited for then instead of two.
    pub(super) fn wants_most(&self, pack: usize, block_size: usize, stored: usize) -> bool {
        let in_frame = FRAME / block_size;
        let (mut frames, mut next) = (0, 0);
        for wanted in self.of_pack(pack) {
            let (first, end) = (wanted.slot / in_frame, (wanted.slot + wanted.count).div_ceil(in_frame));
            frames += end.saturating_sub(first.max(next));
            next = next.max(end);
        }
        frames * FRAME * 2 >= stored
    }

    /// The frames that are wanted of a pack; neighbours together.
    pub(super) fn frames(&self, pack: usize, index: &Index) -> Vec<Range<usize>> {
        let mut frames: Vec<Range<usize>> = Vec::new();
        for wanted in self.of_pack(pack) {
            let (first, last) = (index.frame_of(wanted.slot), index.frame_of(wanted.slot + wanted.count - 1));
            match frames.last_mut() {
                Some(before) if first <= before.end => before.end = before.end.max(last + 1),
                _ => frames.push(first..last + 1),
            }
        }
        frames
    }

    /// What is wanted of these slots of a pack.
    pub(super) fn within(&self, pack: usize, slots: &Range<usize>) -> impl Iterator<Item = Wanted> {
        let slots = slots.clone();
        // blocks that are there several times in the file overlap here, so none can be skipped by its start
        self.of_pack(pack)
            .iter()
            .take_while({
                let end = slots.end;
                move |wanted| wanted.slot < end
            })
            .filter_map(move |wanted| {
                let (start, end) = (wanted.slot.max(slots.start), (wanted.slot + wanted.count).min(slots.end));
                let block = wanted.block + (start - wanted.slot.min(start)) as u64;
                (start < end).then(|| Wanted { slot: start, count: end - start, block })
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::{
        pack::{Builder, PAGE, PackName, PackRef},
        recipe::{Collector, Content, Place},
    };

    const NAME: BlockName = BlockName([9; 32]);

    fn index(blocks: usize) -> Index {
        let mut builder = Builder::new(PAGE);
        for n in 0..blocks {
            let block = vec![u8::try_from(n % 251).unwrap(); PAGE];
            builder.push(BlockName::of(&block), &block).unwrap();
        }
        let packed = builder.finish().unwrap();
        let start = usize::try_from(packed.pack.index_range().start).unwrap();
        Index::parse(packed.pack.name, &packed.bytes[start..]).unwrap()
    }

    #[test]
    fn a_pack_is_fetched_whole_if_half_of_its_frames_are_wanted() {
        let wanted = |slots: &[(u32, u32)]| {
            let mut collector = Collector::default();
            let pack = collector.number(PackRef { name: PackName([1; 32]), stored: 9000, index: 50 });
            for slot in slots.iter().flat_map(|(first, count)| *first..first + count) {
                collector.push(Some((&NAME, Place { pack, slot })));
            }
            let blocks: u32 = slots.iter().map(|(_, count)| count).sum();
            Plan::of(&collector.finish(PAGE, Content::File { length: u64::from(blocks) * 4096 }).unwrap(), |_| true)
        };
        let eight_frames = 8 * FRAME;
        for (slots, whole) in [
            (&[(0, 1)][..], false),
            (&[(0, 1), (70, 1), (130, 1)], false),
            (&[(0, 1), (70, 1), (130, 1), (500, 1)], true),
            (&[(0, 1), (1, 1), (3, 1), (0, 64)], false),
            (&[(0, 256)], true),
        ] {
            assert_eq!(wanted(slots).wants_most(0, PAGE, eight_frames), whole, "{slots:?}");
        }
        assert!(wanted(&[(0, 1)]).wants_most(0, PAGE, FRAME), "a small pack");
    }

    proptest! {
        #[test]
        fn every_block_is_wanted_where_it_is(
            places in prop::collection::vec(prop::option::of((0u8..3, 0u32..300)), 1..200)
        ) {
            let mut collector = Collector::default();
            for n in 0..3 {
                collector.number(PackRef { name: PackName([n; 32]), stored: 2000, index: 50 });
            }
            for place in &places {
                collector.push(place.map(|(pack, slot)| (&NAME, Place { pack: pack.into(), slot })));
            }
            let recipe = collector.finish(PAGE, Content::File { length: places.len() as u64 * 4096 }).unwrap();
            let (plan, index) = (Plan::of(&recipe, |_| true), index(300));
            let mut found = vec![None; places.len()];
            for pack in 0..3 {
                for frame in plan.frames(pack, &index).into_iter().flatten() {
                    for wanted in plan.within(pack, &index.slots(frame)) {
                        for n in 0..wanted.count {
                            let block = usize::try_from(wanted.block).unwrap() + n;
                            prop_assert_eq!(found[block], None, "each once");
                            found[block] = Some((u8::try_from(pack).unwrap(), u32::try_from(wanted.slot + n).unwrap()));
                        }
                    }
                }
            }
            prop_assert_eq!(found, places);
        }
    }
}
