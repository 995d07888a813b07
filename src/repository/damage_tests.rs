//! What rots, is cut short or goes: told with the generations that need it, and mended when it comes again.

use jiff::SignedDuration;

use super::{durable::AllSteps, files::Files, packs_tests::*, recipes::Lost, store::Store};
use crate::{
    driver::repository::RepositoryError,
    names::Generation,
    store::{
        layout,
        manifest::FileKind,
        pack::{BlockName, PackName},
        recipe::Place,
    },
};

fn whole(store: &Store) -> Vec<Generation> {
    store.content(&job()).unwrap().generations.iter().map(|one| one.generation).collect()
}

fn damaged(store: &Store) -> Vec<(Generation, String)> {
    store.content(&job()).unwrap().damaged.into_iter().map(|one| (one.generation, one.why)).collect()
}

#[test]
fn b7_a_generation_that_needs_a_damaged_pack_is_no_source_until_its_blocks_come_again() {
    let bench = Bench::new();
    store_generation(&bench.store, 1, &[1, 2], now());
    store_generation(&bench.store, 2, &[2, 3], now());
    assert_eq!((whole(&bench.store), damaged(&bench.store)), (vec![1, 2], vec![]));
    let bad = packed(&[3]).pack.name;
    bench.spoil(bad);
    assert_eq!(bench.store.doubt_pack(&job(), bad), Ok(true));
    assert_eq!(whole(&bench.store), [1]);
    let bench = bench.again();
    assert_eq!(whole(&bench.store), [1], "also in the next process");
    let told = damaged(&bench.store);
    assert!(told.len() == 1 && told[0].0 == 2 && told[0].1.contains(&bad.to_string()), "{told:?}");
    // nothing of it is promised, so it comes again, and with it the generation
    store_generation(&bench.store, 3, &[3], now());
    assert_eq!((whole(&bench.store), damaged(&bench.store)), (vec![1, 2, 3], vec![]));
}

#[test]
fn b7_a_bad_frame_takes_only_the_generations_that_need_it() {
    let bench = Bench::new();
    // one pack of two frames, of which the second generation needs the last
    store_generation(&bench.store, 1, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8], now());
    store_generation(&bench.store, 2, &[0, 5, 6, 7], now());
    let [name] = bench.packs()[..] else { panic!("{:?}", bench.packs()) };
    bench.spoil(name);
    assert_eq!(bench.store.doubt_pack(&job(), name), Ok(true));
    assert_eq!(whole(&bench.store), [2]);
    assert_eq!(damaged(&bench.store)[0].0, 1);
}

#[test]
fn b7_what_is_missing_or_cut_short_is_found_by_the_next_sweep() {
    let bench = Bench::new();
    store_generation(&bench.store, 1, &[1, 2], now());
    let second = store_generation(&bench.store, 2, &[1, 2, 3], now());
    store_generation(&bench.store, 3, &[1, 2, 4], now());
    std::fs::remove_file(bench.at(layout::pack(&job(), packed(&[4]).pack.name).unwrap())).unwrap();
    let file = &second.members[0].files[1];
    let recipe = bench.at(Store::file_path(&job(), 2, 1, 0, file).unwrap());
    let bytes = std::fs::read(&recipe).unwrap();
    std::fs::write(&recipe, &bytes[..bytes.len() / 2]).unwrap();
    // it cannot say what the recipe needs, and takes nothing
    assert!(bench.store.collect(&job(), later()).is_err());
    let told = damaged(&bench.store);
    assert_eq!((whole(&bench.store), told.iter().map(|one| one.0).collect::<Vec<_>>()), (vec![1], vec![2, 3]));
    assert!(told[0].1.contains("not what was stored") && told[1].1.contains("missing"), "{told:?}");
    bench.store.retire(&job(), 3).unwrap();
    assert_eq!(damaged(&bench.store).len(), 1, "what is retired is not told of");
}

#[test]
fn a_recipe_lacks_what_it_uses_and_nothing_else() {
    let bench = Bench::new();
    let own = origin(1, 1, 0, FileKind::Disk);
    bench.store.admit_part(&job(), 1, 1).unwrap();
    let made = packed(&[1, 2, 3, 4, 5, 6, 7, 8]);
    put_pack(&bench.store, own, &made, now()).unwrap();
    let places = [Some(Place { pack: 0, slot: 4 }), None, Some(Place { pack: 0, slot: 5 })];
    let sent = received(&bench.store, &recipe(&[made.pack], &places));
    let needs = super::recipes::read(std::fs::File::open(sent.staged.path())).unwrap();
    let lost = |frames: Option<&[usize]>| {
        Lost::from([(made.pack.name, frames.map(|frames| frames.iter().copied().collect()))])
    };
    for (frames, lacks) in [(Some(&[0][..]), false), (Some(&[0, 1]), true), (Some(&[]), false), (None, true)] {
        assert_eq!(needs.lacks(&lost(frames)), lacks.then_some(made.pack.name), "{frames:?}");
    }
    assert_eq!(needs.lacks(&Lost::from([(PackName([7; 32]), None)])), None);
}

#[test]
fn d2_a_recipe_names_no_pack_of_which_it_needs_nothing() {
    let bench = Bench::new();
    let own = origin(1, 1, 0, FileKind::Disk);
    bench.store.admit_part(&job(), 1, 1).unwrap();
    let (used, idle) = (packed(&[1]), packed(&[2]));
    put_pack(&bench.store, own, &used, now()).unwrap();
    put_pack(&bench.store, own, &idle, now()).unwrap();
    let sent = recipe_of(&[used.pack, idle.pack], &[Some(Place { pack: 0, slot: 0 })], sum_of(&[1]));
    let refused = put_recipe(&bench.store, own, &sent, 1);
    assert!(matches!(&refused, Err(RepositoryError::Refused(why)) if why.contains("nothing")), "{refused:?}");
}

#[test]
fn b7_a_wrong_place_in_the_index_of_blocks_makes_no_generation() {
    let bench = Bench::new();
    store_generation(&bench.store, 1, &[1, 2, 3], now());
    let index = bench.at(layout::blocks(&job()).unwrap());
    let Bench { directory, store } = bench;
    drop(store);
    // it says of each block that it is where another one is
    let wrong = super::blocks::BlockIndex::open(&index).unwrap();
    for made in [packed(&[2, 3]), packed(&[1])] {
        let name = made.pack.name;
        if !wrong.packs().unwrap().contains(&name) {
            continue;
        }
        let files = Files::directory(&directory.path().join("root")).unwrap();
        let mut opened = files.open(&layout::pack(&job(), name).unwrap()).unwrap();
        let (pack, read) = super::packs::read_index(&mut opened, name).unwrap();
        wrong.remove(name, read.blocks()).unwrap();
        let mut names = read.blocks().to_vec();
        names.reverse();
        wrong.add(&super::blocks::Entry::of(pack, &read, Some(now())), &names).unwrap();
    }
    drop(wrong);
    let bench = Bench { store: Bench::open(directory.path(), AllSteps), directory };
    let own = origin(2, 1, 0, FileKind::Disk);
    let refused = put_file(&bench.store, own, &[1, 2, 3], now());
    assert!(matches!(&refused, Err(RepositoryError::NotFound(what)) if what.contains("index")), "{refused:?}");
    // it was made again
    let second = store_generation(&bench.store, 2, &[1, 2, 3], now());
    assert_eq!(second.members[0].files.iter().map(|file| file.packed).sum::<u64>(), 0);
    assert_eq!(restored(&bench.store, &second, 0, FileKind::Disk), Ok(file_of(&[1, 2, 3])));
}

#[test]
fn b10_an_index_from_before_a_crash_says_nothing_that_is_not_so() {
    let bench = Bench::new();
    store_generation(&bench.store, 1, &[1, 2], now());
    let index = bench.at(layout::blocks(&job()).unwrap());
    // what is on the disk while it is open is what a crash leaves, whichever of the later changes were synced
    for kept in 0..3 {
        let old = std::fs::read(&index).unwrap();
        let generation = 2 + 2 * kept;
        let n = u16::try_from(10 * (kept + 1)).unwrap();
        store_generation(&bench.store, generation, &[2, n], now());
        bench.store.retire(&job(), generation - 1).unwrap();
        store_generation(&bench.store, generation + 1, &[2, n + 1], now());
        bench.store.collect(&job(), later()).unwrap();
        let after = tempfile::tempdir().unwrap();
        copy(bench.directory.path(), after.path());
        std::fs::write(after.path().join("root").join(layout::blocks(&job()).unwrap()), old).unwrap();
        let crashed = Bench { store: Bench::open(after.path(), AllSteps), directory: after };
        let own = origin(90, 1, 0, FileKind::Disk);
        crashed.store.admit_part(&job(), 90, 1).unwrap();
        let names = [1, 2, n, n + 1].map(|n| BlockName::of(&content(n)));
        let found = crashed.store.find_blocks(&job(), own, &names, now()).unwrap();
        let there = crashed.packs();
        assert!(found.packs.iter().all(|pack| there.contains(&pack.name)), "{kept}");
        assert!(found.places[2].is_some() && found.places[3].is_some(), "what came after it is found: {kept}");
        let next = store_generation(&crashed.store, 91, &[1, 2, n, n + 1], now());
        assert_eq!(restored(&crashed.store, &next, 0, FileKind::Disk), Ok(file_of(&[1, 2, n, n + 1])));
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).unwrap();
        }
    }
}

#[test]
fn every_pack_is_read_again_before_a_publication_would_have_to() {
    let bench = Bench::new();
    let start = now();
    let all: Vec<u16> = (1..40).collect();
    let made: Vec<_> = all.iter().map(|n| packed(&[*n])).collect();
    bench.store.admit_part(&job(), 1, 1).unwrap();
    for one in &made {
        put_pack(&bench.store, origin(1, 1, 0, FileKind::Disk), one, start).unwrap();
    }
    let mut most = 0;
    for hour in 0..80 {
        let at = start + SignedDuration::from_hours(hour);
        let due = bench.store.due(&job(), at).unwrap();
        most = most.max(due.len());
        bench.store.read_packs_back(&job(), &due, super::scrub::FRESH, at, None).unwrap();
        let day = at - SignedDuration::from_hours(23);
        let old = bench.store.with_index(&job(), |held| held.ask(|index| index.unread_since(day))).unwrap();
        assert_eq!((old.0, old.1.len()), (made.len(), 0), "after {hour} hours");
    }
    assert_eq!(most, made.len().div_ceil(8), "a few at a time");
}

#[test]
fn reading_back_stops_when_its_time_is_over_and_goes_on_from_there() {
    let bench = Bench::new();
    let all: Vec<_> = (1..60).map(|n| packed(&[n])).collect();
    bench.store.admit_part(&job(), 1, 1).unwrap();
    for one in &all {
        put_pack(&bench.store, origin(1, 1, 0, FileKind::Disk), one, now()).unwrap();
    }
    let (packs, day) = (all.iter().map(|one| one.pack).collect::<Vec<_>>(), now() + SignedDuration::from_hours(25));
    let mut left = packs.len();
    let mut tries = 0;
    while left > 0 {
        let over = Some(std::time::Instant::now());
        let now = bench.store.read_packs_back(&job(), &packs, super::readback::TRUSTED, day, over).unwrap();
        assert!(now < left, "each try reads some");
        (left, tries) = (now, tries + 1);
    }
    assert!(tries > 2, "{tries}");
}
