//! Sweeps of packs beside uploads, crashes and what cannot be read.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::Timestamp;

use rstest::rstest;

use super::{
    bucket::testing::{Kind, TestStore},
    collect::request,
    crash_tests::Fuse,
    durable::{AllSteps, Steps},
    packs_tests::*,
    store::Store,
};
use crate::{
    driver::repository::{KeptPart, RepositoryError},
    store::{
        layout,
        manifest::{FileKind, Manifest, tests::manifest},
        pack::{BlockName, PackName},
        recipe::Place,
    },
};

#[test]
fn b10_packs_stay_as_long_as_any_generation_needs_them() {
    let bench = Bench::new();
    store_generation(&bench.store, 1, &[1, 2], now());
    let second = store_generation(&bench.store, 2, &[2, 3], now());
    assert_eq!(bench.store.collect(&job(), later()), Ok(vec![]));
    bench.store.retire(&job(), 1).unwrap();
    let gone = bench.store.collect(&job(), later()).unwrap();
    assert_eq!(gone, [packed(&[1]).pack.name]);
    assert_eq!(restored(&bench.store, &second, 0, FileKind::Disk), Ok(file_of(&[2, 3])));
    let names: Vec<BlockName> = [1, 2, 3].iter().map(|n| BlockName::of(&content(*n))).collect();
    let found = bench.store.find_blocks(&job(), origin(3, 1, 0, FileKind::Disk), &names, now()).unwrap();
    assert_eq!(found.places.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, true]);
}

#[test]
fn b10_what_was_promised_outlives_every_sweep_until_its_file_is_void() {
    let bench = Bench::new();
    store_generation(&bench.store, 1, &[1, 2], now());
    let own = origin(2, 1, 0, FileKind::Memory);
    bench.store.admit_part(&job(), 2, 1).unwrap();
    let names = [BlockName::of(&content(1))];
    let found = bench.store.find_blocks(&job(), own, &names, now()).unwrap();
    put_pack(&bench.store, own, &packed(&[9]), now()).unwrap();
    // a slow upload: all it relies on is old when its recipe comes
    bench.store.retire(&job(), 1).unwrap();
    bench.store.collect(&job(), later()).unwrap();
    let mut packs = found.packs;
    packs.push(packed(&[9]).pack);
    let places = [found.places[0], Some(Place { pack: 1, slot: 0 })];
    put_recipe(&bench.store, own, &recipe_of(&packs, &places, sum_of(&[1, 9])), 2).unwrap();
    bench.store.collect(&job(), later()).unwrap();
    assert_eq!(bench.packs().len(), 2);
    bench.store.give_up(&job(), 2).unwrap();
    assert_eq!(bench.store.collect(&job(), now()), Ok(vec![]), "what is young stays");
    assert_eq!(bench.store.collect(&job(), later()).unwrap().len(), 2);
    assert_eq!(bench.packs(), []);
}

#[test]
fn b10_a_promise_is_written_down_for_the_next_process() {
    let bench = Bench::new();
    store_generation(&bench.store, 1, &[1, 2], now());
    let pack = bench.packs()[0];
    let path = bench.at(layout::pack(&job(), pack).unwrap());
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    std::fs::File::open(&path).unwrap().set_modified(old).unwrap();
    let names = [BlockName::of(&content(1)), BlockName::of(&content(2))];
    let found = bench.store.find_blocks(&job(), origin(2, 1, 0, FileKind::Disk), &names, now()).unwrap();
    assert!(found.places.iter().all(Option::is_some));
    let bench = bench.again();
    bench.store.retire(&job(), 1).unwrap();
    assert_eq!(bench.store.collect(&job(), now()), Ok(vec![]));
    assert!(path.exists());
}

#[test]
fn b10_a_recipe_over_a_pack_that_went_is_refused_and_the_next_try_succeeds() {
    let bench = Bench::new();
    store_generation(&bench.store, 1, &[1, 2], now());
    let own = origin(2, 1, 0, FileKind::Disk);
    bench.store.admit_part(&job(), 2, 1).unwrap();
    let found = bench.store.find_blocks(&job(), own, &[BlockName::of(&content(2))], now()).unwrap();
    std::fs::remove_file(bench.at(layout::pack(&job(), found.packs[0].name).unwrap())).unwrap();
    let refused = put_recipe(&bench.store, own, &recipe(&found.packs, &found.places), 1);
    let named = found.packs[0].name.to_string();
    assert!(matches!(&refused, Err(RepositoryError::NotFound(what)) if what.contains(&named)), "{refused:?}");
    let kept = put_file(&bench.store, own, &[2], now()).unwrap();
    assert_eq!(kept.packed, packed(&[2]).bytes.len() as u64, "a pack that is gone is never promised");
}

#[test]
fn b10_a_recipe_that_cannot_be_read_keeps_every_pack() {
    let bench = Bench::new();
    store_generation(&bench.store, 1, &[1], now());
    store_generation(&bench.store, 2, &[2], now());
    let directory = bench.at(layout::generation(&job(), 2).unwrap());
    let recipe = std::fs::read_dir(&directory).unwrap().map(|e| e.unwrap().path());
    let recipe = recipe.into_iter().find(|path| path.extension().is_some_and(|e| e == "recipe")).unwrap();
    let whole = std::fs::read(&recipe).unwrap();
    std::fs::write(&recipe, &whole[..whole.len() / 2]).unwrap();
    bench.store.retire(&job(), 1).unwrap();
    assert!(bench.store.collect(&job(), later()).is_err());
    assert_eq!(bench.packs().len(), 2);
    std::fs::write(&recipe, whole).unwrap();
    assert_eq!(bench.store.collect(&job(), later()).unwrap().len(), 1);
}

#[test]
fn b10_sweeps_and_uploads_at_the_same_time_lose_nothing() {
    let bench = Bench::new();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sweeper = scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                bench.store.collect(&job(), later()).unwrap();
            }
        });
        for generation in 1..=12u16 {
            let blocks = [generation, generation + 1, 40, generation / 3 + 50];
            let made = loop {
                match send(&bench.store, generation.into(), &blocks, now()) {
                    // asked before a sweep: from the start
                    Err(RepositoryError::NotFound(_)) => {}
                    made => break made.unwrap(),
                }
            };
            bench.store.publish(&made, now()).unwrap();
            if generation > 1 {
                bench.store.retire(&job(), (generation - 1).into()).unwrap();
            }
            assert_eq!(restored(&bench.store, &made, 0, FileKind::Disk), Ok(file_of(&blocks)));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        sweeper.join().unwrap();
    });
    assert_eq!(bench.verify(), [] as [String; 0]);
    bench.store.collect(&job(), later()).unwrap();
    assert!(bench.packs().len() < 8, "{} packs are left", bench.packs().len());
}

#[test]
fn packs_of_which_little_is_used_go_with_the_old_generations() {
    let bench = Bench::new();
    let many: Vec<u16> = (1..=20).collect();
    store_generation(&bench.store, 1, &many, now());
    let second: Vec<u16> = [1, 2].into_iter().chain(31..=48).collect();
    store_generation(&bench.store, 2, &second, now());
    bench.store.collect(&job(), later()).unwrap();
    // block 1 is in the old pack, of which two of ten slots are in use: sent again
    let third = store_generation(&bench.store, 3, &second, now());
    assert!(third.members[0].files.iter().map(|file| file.packed).sum::<u64>() > 0);
    bench.store.retire(&job(), 1).unwrap();
    bench.store.retire(&job(), 2).unwrap();
    assert_eq!(bench.store.collect(&job(), later()).unwrap().len(), 2);
    assert_eq!(restored(&bench.store, &third, 0, FileKind::Disk), Ok(file_of(&second)));
}

const LIFE: [(u32, u32, [u16; 4]); 3] = [(1, 1, [1, 0, 2, 2]), (2, 1, [1, 0, 3, 2]), (3, 2, [4, 0, 3, 2])];

pub(super) fn complete(store: &Store) -> Vec<u32> {
    store.content(&job()).unwrap().generations.iter().map(|one| one.generation).collect()
}

/// Two generations, a restore, a third one, the first one retired and swept.
fn live(store: &Store) -> Result<(), RepositoryError> {
    for (generation, incarnation, blocks) in LIFE {
        let known = store.content(&job())?;
        if known.fence > incarnation || known.generations.iter().any(|one| one.generation == generation) {
            continue;
        }
        store.fence(&job(), incarnation)?;
        // as kget does: what was noted of a part counts, and is not sent again
        let noted = store.kept_parts(&job(), generation)?.pop();
        let made = match noted {
            Some(KeptPart { part, .. }) => Manifest { incarnation, members: vec![part], ..manifest(generation) },
            None => send_in(store, incarnation, generation, &blocks, now())?,
        };
        store.publish(&made, now())?;
    }
    store.retire(&job(), 1)?;
    store.collect(&job(), later()).map(drop)
}

#[rstest]
fn b7_every_complete_generation_is_restored_from_its_packs_whenever_the_process_dies(
    #[values(Kind::Directory, Kind::Bucket, Kind::BucketAlone)] kind: Kind,
) {
    let mut deaths = 0;
    for steps in 0.. {
        let place = TestStore::new(kind);
        let fuse = Fuse(Arc::new(AtomicI64::new(steps)));
        let result = live(&place.open(fuse.clone()).unwrap());
        let survived = fuse.0.load(Ordering::SeqCst) >= 0;
        assert_eq!(result.is_ok(), survived, "{result:?} after {steps} steps");
        // the next process restores what was complete, byte for byte
        let next = place.open(AllSteps).unwrap();
        for generation in complete(&next) {
            let made = next.manifest(&job(), generation).unwrap();
            let (_, _, blocks) = LIFE[generation as usize - 1];
            let disk = restored(&next, &made, 0, FileKind::Disk);
            assert!(disk == Ok(file_of(&blocks)), "disk of {generation} after {steps} steps");
            let memory = restored(&next, &made, 0, FileKind::Memory);
            assert!(memory == Ok(file_of(&blocks[2..])), "memory of {generation} after {steps} steps");
        }
        let problems = place.verify().problems;
        assert_eq!(problems, [] as [String; 0], "after {steps} steps");
        let begun = next.content(&job()).unwrap().highest;
        assert!(begun <= 1 || !complete(&next).is_empty(), "{begun} was begun: after {steps} steps");
        // and the same orders again lead to the same end: no pack too many, none too few
        live(&next).unwrap_or_else(|error| panic!("again after {steps} steps: {error}"));
        assert_eq!(complete(&next), [2, 3], "after {steps} steps");
        let mut packs: Vec<PackName> = [1, 2, 3, 4].map(|n| packed(&[n]).pack.name).into();
        packs.sort_unstable();
        let names = next.root.list(&layout::packs(&job()).unwrap()).unwrap();
        assert_eq!(names, packs.iter().map(ToString::to_string).collect::<Vec<_>>(), "after {steps} steps");
        if survived {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 60, "only {deaths} steps were tried");
}

#[rstest]
fn a_removal_that_was_interrupted_takes_the_packs_at_the_next_start(
    #[values(Kind::Directory, Kind::Bucket, Kind::BucketAlone)] kind: Kind,
) {
    for steps in 0.. {
        let place = TestStore::new(kind);
        live(&place.open(AllSteps).unwrap()).unwrap();
        let fuse = Fuse(Arc::new(AtomicI64::new(steps)));
        let result = place.open(fuse).unwrap().remove_job(&job(), now());
        let next = place.open(AllSteps).unwrap();
        let left = next.root.list(&layout::job(&job()).unwrap()).unwrap();
        assert!(complete(&next) == [2, 3] || left == ["record.json"], "{left:?} after {steps} steps");
        if result.is_ok() {
            assert_eq!(left, ["record.json"]);
            break;
        }
    }
}

#[tokio::test]
async fn what_is_asked_for_is_swept_soon() {
    let bench = Bench::new();
    store_generation(&bench.store, 1, &[1], now());
    store_generation(&bench.store, 2, &[2], now());
    bench.store.retire(&job(), 1).unwrap();
    let Bench { directory: _kept, store } = bench;
    let store = Arc::new(store);
    let clock = crate::clock::Clock::manual(later());
    for _ in 0..3 {
        request(&store, &clock, [job(), "f".into()]);
    }
    let gone = layout::pack(&job(), packed(&[1]).pack.name).unwrap();
    for _ in 0..3000 {
        if !store.root.at(&gone).exists() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(!store.root.at(&gone).exists());
    assert!(store.root.at(&layout::pack(&job(), packed(&[2]).pack.name).unwrap()).exists());
}

/// Panics once when a pack is taken away.
struct Panics(Arc<std::sync::atomic::AtomicBool>);

impl Steps for Panics {
    fn next(&self, what: &'static str) -> std::io::Result<()> {
        assert!(what != "take away" || !self.0.swap(false, Ordering::SeqCst), "a sweep that panics");
        Ok(())
    }
}

#[tokio::test]
async fn b10_a_sweep_that_panics_is_not_the_last_one() {
    let directory = tempfile::tempdir().unwrap();
    let panics = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let steps = Box::new(Panics(panics.clone()));
    let store = Arc::new(Store::open(&directory.path().join("root"), steps, Timestamp::UNIX_EPOCH).unwrap());
    store_generation(&store, 1, &[1], now());
    store.retire(&job(), 1).unwrap();
    panics.store(true, Ordering::SeqCst);
    let clock = crate::clock::Clock::manual(later());
    let gone = store.root.at(&layout::pack(&job(), packed(&[1]).pack.name).unwrap());
    for _ in 0..3000 {
        request(&store, &clock, [job()]);
        if !gone.exists() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(!panics.load(Ordering::SeqCst), "it has not panicked");
    assert!(!gone.exists());
}

#[test]
fn b10_once_all_promises_are_known_a_retired_generation_gives_its_room_back_at_once() {
    let long = std::time::Duration::from_secs(2 * 3600);
    let bench = Bench::new();
    store_generation(&bench.store, 1, &[1, 2], now());
    let own = origin(2, 1, 0, FileKind::Disk);
    bench.store.admit_part(&job(), 2, 1).unwrap();
    let found = bench.store.find_blocks(&job(), own, &[BlockName::of(&content(1))], now()).unwrap();
    put_pack(&bench.store, own, &packed(&[9]), now()).unwrap();
    bench.store.retire(&job(), 1).unwrap();
    // one of a time to come is no exception
    let path = bench.at(layout::pack(&job(), packed(&[2]).pack.name).unwrap());
    std::fs::File::open(&path).unwrap().set_modified((later() + jiff::SignedDuration::from_hours(99)).into()).unwrap();
    assert_eq!(bench.store.collect(&job(), now()), Ok(vec![]), "promises before its start are not known");
    let gone = bench.store.collect_after(long, &job(), now()).unwrap();
    assert_eq!(gone, [packed(&[2]).pack.name]);
    // what is promised and what has come stays
    let mut stay = [found.packs[0].name, packed(&[9]).pack.name];
    stay.sort_unstable();
    assert_eq!(bench.packs(), stay);
}

/// A disk on which the index of blocks cannot be changed.
struct NoRoomForTheIndex;

impl Steps for NoRoomForTheIndex {
    fn next(&self, what: &'static str) -> std::io::Result<()> {
        if what == "change the index" { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

#[test]
fn c2_a_full_disk_keeps_no_sweep_from_making_room() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let store = Store::open(&root, Box::new(NoRoomForTheIndex), Timestamp::UNIX_EPOCH).unwrap();
    store_generation(&store, 1, &[1], now());
    let second = store_generation(&store, 2, &[2], now());
    store.retire(&job(), 1).unwrap();
    assert_eq!(store.collect(&job(), later()), Ok(vec![packed(&[1]).pack.name]));
    assert!(!store.root.at(&layout::pack(&job(), packed(&[1]).pack.name).unwrap()).exists());
    assert!(!store.root.at(&layout::blocks(&job()).unwrap()).exists(), "it would say what is not there any more");
    let names = [1, 2].map(|n| BlockName::of(&content(n)));
    let found = store.find_blocks(&job(), origin(3, 1, 0, FileKind::Disk), &names, now()).unwrap();
    assert_eq!(found.places.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true]);
    assert_eq!(restored(&store, &second, 0, FileKind::Disk), Ok(file_of(&[2])));
}
