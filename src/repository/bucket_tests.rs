//! A store in a bucket beside what a directory does too (`crash_tests`): the disk is lost or full, the bucket away,
//! others come.

use std::{path::Path, sync::Arc};

use super::{
    bucket::{
        Use, is_absent,
        testing::{Kind, LITTLE, TestStore, objects},
    },
    collect_tests::complete,
    crash_tests,
    durable::{AllSteps, Root},
    files::{Files, Opened},
    packs_tests::*,
    store::Store,
};
use crate::{
    driver::repository::RepositoryError,
    store::{
        layout::{self, MANIFEST},
        manifest::FileKind,
    },
};

fn in_bucket() -> TestStore {
    TestStore::new(Kind::Bucket)
}

/// Another repository on the same bucket, with a directory of its own.
fn another(place: &TestStore, directory: &Path, how: Use) -> Store {
    let root = Root::in_front_of(objects(place.memory.clone()), how, &directory.join("root"), Box::new(AllSteps));
    Store::of(root.unwrap(), now()).unwrap()
}

#[test]
fn b7_all_that_was_complete_is_restored_when_the_disk_is_lost() {
    let place = in_bucket();
    let store = place.open(AllSteps).unwrap();
    let first = store_generation(&store, 1, &[1, 2, 0, 3], now());
    let second = store_generation(&store, 2, &[1, 7, 8, 3], now());
    let content = store.content(&job()).unwrap();
    drop(store);
    std::fs::remove_dir_all(place.root()).unwrap();
    let store = place.open(AllSteps).unwrap();
    assert_eq!(store.content(&job()).unwrap(), content);
    for (made, blocks) in [(&first, [1, 2, 0, 3]), (&second, [1, 7, 8, 3])] {
        assert_eq!(&store.manifest(&job(), made.generation).unwrap(), made);
        assert_eq!(restored(&store, made, 0, FileKind::Disk), Ok(file_of(&blocks)));
    }
    // what it has is found again, and not sent again
    let third = store_generation(&store, 3, &[1, 2, 7, 8], now());
    assert_eq!(third.members[0].files.iter().map(|file| file.packed).sum::<u64>(), 0);
    assert_eq!(place.verify().problems, [] as [String; 0]);
    assert!(place.usage().jobs[0].bytes >= third.stored());
}

#[test]
fn b1_an_old_repository_publishes_and_removes_nothing_once_another_one_has_the_bucket() {
    let place = in_bucket();
    let old = place.open(AllSteps).unwrap();
    store_generation(&old, 1, &[1, 2], now());
    let late = send(&old, 2, &[1, 3], now()).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let new = another(&place, elsewhere.path(), LITTLE);
    let refused = old.publish(&late, now());
    assert!(
        matches!(&refused, Err(RepositoryError::Unreachable(why)) if why.contains("another repository")),
        "{refused:?}"
    );
    assert!(old.fence(&job(), 3).is_err() && old.retire(&job(), 1).is_err() && old.remove_job(&job(), now()).is_err());
    let pack = layout::pack(&job(), packed(&[1]).pack.name).unwrap();
    assert!(old.root.discard(&pack).is_err() && old.root.clear(&layout::packs(&job()).unwrap()).is_err());
    new.fence(&job(), 2).unwrap();
    assert_eq!(complete(&new), [1]);
    assert!(new.publish(&late, now()).is_err(), "it is of an older incarnation");
    let made = send_in(&new, 2, 3, &[1, 4], now()).unwrap();
    new.publish(&made, now()).unwrap();
    assert_eq!(restored(&new, &made, 0, FileKind::Disk), Ok(file_of(&[1, 4])));
    assert_eq!(place.verify().problems, [] as [String; 0]);
}

#[test]
fn b7_what_rots_on_the_disk_is_fetched_again_and_what_rots_in_the_bucket_is_set_aside() {
    let place = in_bucket();
    let elsewhere = tempfile::tempdir().unwrap();
    let store = another(&place, elsewhere.path(), Use { cache: 1 << 30, ..LITTLE });
    let made = store_generation(&store, 1, &[1, 2], now());
    let pack = packed(&[1]).pack.name;
    let path = layout::pack(&job(), pack).unwrap();
    let spoilt = {
        let mut bytes = std::fs::read(store.root.at(&path)).unwrap();
        bytes[20] ^= 1;
        bytes
    };
    std::fs::write(store.root.at(&path), &spoilt).unwrap();
    assert!(restored(&store, &made, 0, FileKind::Disk).is_err());
    assert_eq!(store.doubt_pack(&job(), pack), Ok(false));
    assert_eq!(restored(&store, &made, 0, FileKind::Disk), Ok(file_of(&[1, 2])));
    place.overwrite(&path, spoilt);
    assert_eq!(store.doubt_pack(&job(), pack), Ok(true));
    assert!(store.content(&job()).unwrap().damage(1).is_some());
    assert_eq!(place.verify().problems.len(), 1);
    // sent again with the next generation, it makes the first one whole
    store_generation(&store, 2, &[1, 2], now());
    assert_eq!(complete(&store), [1, 2]);
    assert_eq!(place.verify().problems, [] as [String; 0]);
}

#[test]
fn b7_a_pack_that_is_missed_in_the_bucket_is_offered_to_nobody_any_more() {
    for cache in [LITTLE.cache, 1 << 30] {
        let (place, elsewhere) = (in_bucket(), tempfile::tempdir().unwrap());
        let store = another(&place, elsewhere.path(), Use { cache, ..LITTLE });
        store_generation(&store, 1, &[1, 2], now());
        store_generation(&store, 2, &[2, 3], now());
        store.root.give_room(u64::MAX).unwrap();
        let gone = packed(&[1]).pack.name;
        place.remove(&layout::pack(&job(), gone).unwrap());
        assert!(matches!(store.open_pack(&job(), gone), Err(RepositoryError::NotFound(_))));
        let content = store.content(&job()).unwrap();
        assert!(content.damage(1).is_some() && content.damage(2).is_none(), "{content:?}");
        // its blocks are sent again
        store_generation(&store, 3, &[1, 2, 3], now());
        assert_eq!(complete(&store), [1, 2, 3]);
        assert_eq!(place.verify().problems, [] as [String; 0]);
    }
}

#[test]
fn b7_a_whole_file_that_the_bucket_lost_or_has_in_part_is_damage_and_not_waited_for() {
    for cache in [0, 1 << 30] {
        for is_gone in [true, false] {
            let (place, elsewhere) = (in_bucket(), tempfile::tempdir().unwrap());
            let store = another(&place, elsewhere.path(), Use { cache, ..LITTLE });
            crash_tests::store(&store, 1, 1).unwrap();
            store.root.give_room(u64::MAX).unwrap();
            let (made, _) = crash_tests::full(1, 1);
            let file = &made.members[1].files[0];
            let path = Store::file_path(&job(), 1, 1, 1, file).unwrap();
            if is_gone {
                place.remove(&path);
            } else {
                place.overwrite(&path, b"1".to_vec());
            }
            assert!(store.content(&job()).unwrap().damage(1).is_none(), "nobody has looked yet");
            let opened = store.open_file(&job(), 1, 1, file.kind, &file.digest);
            assert!(matches!(&opened, Err(RepositoryError::Damaged(_))), "{opened:?}");
            assert!(store.content(&job()).unwrap().damage(1).is_some());
        }
    }
}

#[test]
fn b7_a_used_directory_shows_no_bucket_that_lacks_what_it_had() {
    let mut place = in_bucket();
    let made = store_generation(&place.open(AllSteps).unwrap(), 1, &[1, 2], now());
    let older = Arc::new(place.memory.fork());
    drop(place.open(AllSteps).unwrap());
    let other = TestStore::new(Kind::BucketAlone);
    for _ in 0..5 {
        drop(other.open(AllSteps).unwrap());
    }
    let own = place.memory.clone();
    for (wrong, why) in [(Arc::default(), "nothing"), (older, "older"), (other.memory, "another")] {
        place.memory = wrong;
        let refused = place.open(AllSteps).map(drop).unwrap_err().to_string();
        assert!(refused.contains(why) && refused.contains("prefix") && refused.contains("empty"), "{refused}");
        assert!(place.root().join(layout::generation(&job(), 1).unwrap()).join(MANIFEST).exists());
    }
    place.memory = own;
    assert_eq!(restored(&place.open(AllSteps).unwrap(), &made, 0, FileKind::Disk), Ok(file_of(&[1, 2])));
}

#[test]
fn c2_only_so_much_of_the_bucket_is_on_the_disk() {
    let place = in_bucket();
    let elsewhere = tempfile::tempdir().unwrap();
    let one = packed(&[1]).bytes.len() as u64;
    let store = another(&place, elsewhere.path(), Use { cache: 3 * one, ..LITTLE });
    for (generation, n) in (1..).zip([1, 2, 3, 4, 5, 6]) {
        store_generation(&store, generation, &[n], now());
    }
    let here = || {
        let directory = layout::packs(&job()).unwrap();
        let names = store.root.list(&directory).unwrap();
        let found = |name: &String| store.root.found(&directory.join(name)).unwrap().unwrap();
        assert_eq!(names.len(), 6);
        names.iter().filter(|name| !is_absent(&found(name))).count()
    };
    assert!(here() <= 3, "{} packs are on the disk", here());
    for (generation, n) in (1..).zip([1, 2, 3, 4, 5, 6]) {
        let made = store.manifest(&job(), generation).unwrap();
        assert_eq!(restored(&store, &made, 0, FileKind::Disk), Ok(file_of(&[n])));
        assert!((1..=3).contains(&here()), "{} packs are on the disk", here());
    }
    // what is passed on is read where it is
    let made = store.manifest(&job(), 1).unwrap();
    store.root.give_room(u64::MAX).unwrap();
    assert_eq!(here(), 0);
    let opened = store.root.open(&layout::pack(&job(), packed(&[1]).pack.name).unwrap()).unwrap();
    assert!(matches!(opened, Opened::There(_)) && here() == 0);
    assert_eq!(restored(&store, &made, 0, FileKind::Disk), Ok(file_of(&[1])));
}

#[test]
fn a_directory_with_data_is_never_made_the_cache_of_a_bucket_nor_a_cache_served_alone() {
    let place = TestStore::new(Kind::Directory);
    store_generation(&place.open(AllSteps).unwrap(), 1, &[1], now());
    let taken = |kind| TestStore { kind, directory: tempfile::tempdir().unwrap(), memory: Arc::default() };
    let mut other = taken(Kind::Bucket);
    other.directory = place.directory;
    let refused = other.open(AllSteps).map(drop).unwrap_err();
    assert!(refused.to_string().contains("data that may not be in the bucket"), "{refused}");
    assert!(other.root().join(layout::generation(&job(), 1).unwrap()).join(MANIFEST).exists());
    let place = in_bucket();
    drop(place.open(AllSteps).unwrap());
    let refused = Root::open(&place.root(), Box::new(AllSteps)).map(drop).unwrap_err();
    assert!(refused.to_string().contains("say --bucket"), "{refused}");
    assert!(Files::directory(&place.root()).is_err());
}
