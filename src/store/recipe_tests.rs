use proptest::prelude::*;

use super::*;

const NAME: BlockName = BlockName([9; 32]);

fn pack(n: u8) -> PackRef {
    PackRef { name: PackName([n; 32]), stored: 5000, index: 100 }
}

fn recipe(places: &[Option<(u8, u32)>], length: u64) -> Recipe {
    let mut collector = Collector::default();
    for place in places {
        let place = place.map(|(n, slot)| Place { pack: collector.number(pack(n)), slot });
        collector.push(place.map(|place| (&NAME, place)));
    }
    collector.finish(PAGE, Content::File { length }).unwrap()
}

#[test]
fn neighbours_are_one_run() {
    let places = [None, None, Some((1, 4)), Some((1, 5)), Some((2, 6)), Some((2, 8)), None];
    let recipe = recipe(&places, 7 * 4096 - 1);
    let counts: Vec<u32> = recipe.runs.iter().map(|run| run.count).collect();
    assert_eq!(counts, [2, 2, 1, 1, 1]);
    assert_eq!(recipe.head.packs, [pack(1), pack(2)]);
    let bytes = recipe.to_bytes().unwrap();
    assert!(bytes.len() < 150, "{} bytes", bytes.len());
    assert_eq!(Recipe::parse(&bytes), Ok(recipe.clone()));
    assert_eq!(Head::parse(&bytes).unwrap().0, recipe.head);
}

#[test]
fn a_pack_that_is_being_built_has_a_number_already() {
    let mut collector = Collector::default();
    assert_eq!((collector.number(pack(1)), collector.begin(), collector.number(pack(1))), (0, 1, 0));
    collector.push(Some((&NAME, Place { pack: 1, slot: 0 })));
    collector.end(1, pack(2));
    assert_eq!((collector.number(pack(2)), collector.begin()), (1, 2));
    assert_eq!(collector.finish(PAGE, Content::File { length: 1 }), None);
}

#[test]
fn b7_blocks_that_change_places_are_not_the_same_file() {
    let sum = |blocks: &[(u64, u8)]| {
        let mut sum = Sum::default();
        for (number, name) in blocks {
            sum.add(*number, &BlockName([*name; 32]));
        }
        sum
    };
    assert_eq!(sum(&[(0, 1), (1, 2)]), sum(&[(1, 2), (0, 1)]));
    for other in [&[(0, 2), (1, 1)][..], &[(0, 1), (2, 2)], &[(0, 1)], &[(0, 1), (1, 3)]] {
        assert_ne!(sum(&[(0, 1), (1, 2)]), sum(other));
    }
}

#[test]
fn what_cannot_be_made_is_refused() {
    let right = recipe(&[Some((1, 0)), None], 2 * 4096);
    let refused = |change: &dyn Fn(&mut Recipe)| {
        let mut wrong = right.clone();
        change(&mut wrong);
        Recipe::parse(&wrong.to_bytes().unwrap()).unwrap_err()
    };
    assert_eq!(refused(&|r| r.head.version = 9), RecipeError("its version is not known here"));
    assert_eq!(refused(&|r| r.head.block_size = 512), RecipeError("impossible size of blocks"));
    assert_eq!(refused(&|r| r.head.packs[0].index = 6000), RecipeError("impossible packs"));
    assert_eq!(refused(&|r| r.head.packs.clear()), RecipeError("a run leaves its pack"));
    assert_eq!(
        refused(&|r| r.runs[0].place = Some(Place { pack: 0, slot: 2048 })),
        RecipeError("a run leaves its pack")
    );
    assert_eq!(refused(&|r| r.runs[1].count = 0), RecipeError("a run leaves its pack"));
    assert_eq!(refused(&|r| r.runs[1].count = 2), RecipeError("its runs are not as long as its file"));
    assert_eq!(
        refused(&|r| r.head.content = Content::File { length: 1 }),
        RecipeError("its runs are not as long as its file")
    );
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(at in any::<prop::sample::Index>(), by in 1u8.., cut in any::<prop::sample::Index>()) {
        let places: Vec<_> = (0..200u32).map(|n| (n % 7 != 0).then_some(((n % 3) as u8, n))).collect();
        let mut bytes = recipe(&places, 200 * 4096).to_bytes().unwrap();
        prop_assert!(Recipe::parse(&bytes[..cut.index(bytes.len())]).is_err());
        let at = at.index(bytes.len());
        bytes[at] = bytes[at].wrapping_add(by);
        // a changed one may be another recipe, whose digest is another: but it is one that can be made
        if let Ok(read) = Recipe::parse(&bytes) {
            prop_assert_eq!(read.runs.iter().map(|r| u64::from(r.count)).sum::<u64>(), read.head.blocks());
            for run in &read.runs {
                prop_assert!(run.place.is_none_or(|place| (place.pack as usize) < read.head.packs.len()));
            }
        }
    }
}
