//! Generations that another job adopts, on the disk: shared, cut short, their source gone.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use jiff::Timestamp;
use rstest::rstest;

use super::*;
use crate::{
    names::Generation,
    repository::{
        bucket::testing::{Kind, TestStore},
        check,
        crash_tests::Fuse,
        durable::{AllSteps, Steps},
        files::Files,
        packs_tests::{content, job, now, origin, send_in, store_generation},
    },
    store::{adoption::Ancestor, manifest::FileKind, pack::BlockName},
};

fn clone_of(generation: Generation) -> Adoption {
    let from = Ancestor { job: job(), generation };
    Adoption { from, job_name: "again".into(), namespace: "alice".into() }
}

fn other() -> JobUid {
    "77777777-0000".into()
}

fn open(root: &Path, steps: impl Steps + 'static) -> Store {
    Store::open(root, Box::new(steps), Timestamp::UNIX_EPOCH).unwrap()
}

/// A store with two generations of a job.
fn filled(root: &Path) -> Store {
    let store = open(root, AllSteps);
    fill(&store);
    store
}

fn fill(store: &Store) {
    store_generation(store, 1, &[1, 2, 3, 4], now());
    store_generation(store, 2, &[1, 2, 5, 6], now());
}

fn complete(store: &Store, job: &JobUid) -> Vec<Generation> {
    store.content(job).unwrap().generations.iter().map(|g| g.generation).collect()
}

#[test]
fn b11_an_adopted_generation_lives_on_when_its_source_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let store = filled(&root);
    let summary = store.adopt(&other(), &clone_of(2), 0, now()).unwrap();
    assert_eq!((summary.generation, summary.incarnation), (ADOPTED, 0));
    assert_eq!(store.adopt(&other(), &clone_of(2), 0, now()), Ok(summary.clone()), "asked again");
    store.remove_job(&job(), now()).unwrap();
    store.collect(&other(), now()).unwrap();
    assert_eq!(check::verify(&Files::directory(&root).unwrap()).unwrap().problems, [] as [String; 0]);
    assert_eq!((complete(&store, &job()), complete(&store, &other())), (vec![], vec![ADOPTED]));
    assert_eq!(store.adopt(&other(), &clone_of(2), 0, now()), Ok(summary), "asked again, the source gone");
    // what it captures next sends nothing of what it has from there
    store.fence(&other(), 1).unwrap();
    store.admit_part(&other(), 1, 1).unwrap();
    let names: Vec<BlockName> = [1, 2, 5, 6, 7].iter().map(|n| BlockName::of(&content(*n))).collect();
    let found = store.find_blocks(&other(), origin(1, 1, 0, FileKind::Disk), &names, now()).unwrap();
    assert_eq!(found.places.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, true, true, false]);
    // and it goes like any other
    store.retire(&other(), ADOPTED).unwrap();
    assert_eq!(complete(&store, &other()), [] as [Generation; 0]);
}

#[test]
fn b11_what_cannot_be_adopted_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let store = filled(&directory.path().join("root"));
    assert!(matches!(store.adopt(&other(), &clone_of(9), 0, now()), Err(RepositoryError::NotFound(_))));
    let foreign = Adoption { namespace: "bob".into(), ..clone_of(2) };
    assert!(matches!(store.adopt(&other(), &foreign, 0, now()), Err(RepositoryError::Refused(_))));
    let nowhere = Adoption { from: Ancestor { job: "../x".into(), generation: 2 }, ..clone_of(2) };
    assert!(matches!(store.adopt(&other(), &nowhere, 0, now()), Err(RepositoryError::Refused(_))));
    assert_eq!(store.content(&other()), Ok(crate::driver::repository::JobContent::default()));
    // one of the two, and none once a guest of its own may have run
    store.adopt(&other(), &clone_of(2), 0, now()).unwrap();
    assert!(matches!(store.adopt(&other(), &clone_of(1), 0, now()), Err(RepositoryError::Refused(_))));
    store.fence(&"88888888".into(), 1).unwrap();
    let late = store.adopt(&"88888888".into(), &clone_of(2), 0, now());
    assert!(matches!(late, Err(RepositoryError::Refused(_))), "{late:?}");
    store.remove_job(&"99999999".into(), now()).unwrap();
    let removed = store.adopt(&"99999999".into(), &clone_of(2), 0, now());
    assert!(matches!(removed, Err(RepositoryError::Refused(_))), "{removed:?}");
}

#[test]
fn one_adoption_at_a_time_is_made_for_a_job() {
    let directory = tempfile::tempdir().unwrap();
    let store = filled(&directory.path().join("root"));
    let under_way = store.adoptions.begin(&other()).unwrap();
    assert!(matches!(store.adopt(&other(), &clone_of(2), 0, now()), Err(RepositoryError::Unreachable(_))));
    drop(under_way);
    store.adopt(&other(), &clone_of(2), 0, now()).unwrap();
}

#[rstest]
fn b11_an_adoption_that_dies_anywhere_is_taken_up_again(
    #[values(Kind::Directory, Kind::Bucket, Kind::BucketAlone)] kind: Kind,
) {
    let mut deaths = 0;
    for steps in 0.. {
        let place = TestStore::new(kind);
        fill(&place.open(AllSteps).unwrap());
        let fuse = Fuse(Arc::new(AtomicI64::new(steps)));
        let result = place.open(fuse.clone()).unwrap().adopt(&other(), &clone_of(2), 0, now());
        let survived = fuse.0.load(Ordering::SeqCst) >= 0;
        assert_eq!(result.is_ok(), survived, "{result:?} after {steps} steps");
        let next = place.open(AllSteps).unwrap();
        // a sweep must not take what is half there, nor what the source needs
        next.collect(&other(), now()).unwrap();
        next.collect(&job(), now()).unwrap();
        assert_eq!(place.verify().problems, [] as [String; 0], "after {steps} steps");
        next.adopt(&other(), &clone_of(2), 0, now()).unwrap_or_else(|e| panic!("again after {steps} steps: {e}"));
        next.remove_job(&job(), now()).unwrap();
        let report = place.verify();
        assert_eq!((report.generations, report.problems), (1, vec![]), "after {steps} steps");
        if survived {
            break;
        }
        deaths += 1;
    }
    assert!(deaths >= 20, "only {deaths} steps were tried");
}

/// The source is removed by somebody else before one of the steps.
struct SourceGoes(AtomicI64, PathBuf);

impl Steps for SourceGoes {
    fn next(&self, _: &'static str) -> io::Result<()> {
        if self.0.fetch_sub(1, Ordering::SeqCst) == 0 {
            for part in ["generations", "packs"] {
                std::fs::remove_dir_all(self.1.join("jobs").join(&job().0).join(part))?;
            }
        }
        Ok(())
    }
}

#[test]
fn b11_a_source_that_goes_in_the_middle_makes_no_half_generation() {
    let (mut whole, mut refused) = (0, 0);
    for steps in 0.. {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        drop(filled(&root));
        let store = open(&root, SourceGoes(AtomicI64::new(steps), root.clone()));
        let result = store.adopt(&other(), &clone_of(2), 0, now());
        let report = check::verify(&Files::directory(&root).unwrap()).unwrap();
        assert_eq!(report.problems, [] as [String; 0], "after {steps} steps: {result:?}");
        match result {
            Ok(_) => whole += 1,
            Err(RepositoryError::NotFound(_)) => refused += 1,
            Err(other) => panic!("after {steps} steps: {other}"),
        }
        // it is there to the end once the adoption has fewer steps
        if root.join("jobs").join(&job().0).join("packs").is_dir() {
            break;
        }
    }
    assert!(whole > 0 && refused > 3, "{whole} {refused}");
}

#[test]
fn b11_damage_of_the_source_is_found_before_the_generation_counts() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let store = filled(&root);
    let packs = root.join("jobs").join(&job().0).join("packs");
    for pack in std::fs::read_dir(&packs).unwrap() {
        let path = pack.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[10] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let result = store.adopt(&other(), &clone_of(2), 0, now());
    assert!(matches!(result, Err(RepositoryError::Damaged(_))), "{result:?}");
    assert_eq!(complete(&store, &other()), [] as [Generation; 0]);
}

#[test]
fn a_copy_is_made_where_there_are_no_second_names() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let store = filled(&root);
    let made = send_in(&store, 1, 3, &[8], now()).unwrap();
    let from = Store::file_path(&job(), 3, 1, 0, &made.members[0].files[0]).unwrap();
    let to = Path::new("staging/../copied");
    store.root.copy(&from, to).unwrap();
    store.root.copy(&from, to).unwrap();
    assert_eq!(std::fs::read(root.join("copied")).unwrap(), std::fs::read(root.join(&from)).unwrap());
    let gone = store.root.link(Path::new("nothing"), to);
    assert_eq!(gone.unwrap_err().kind(), io::ErrorKind::NotFound);
}

fn packs_of(root: &Path, job: &JobUid) -> Vec<PathBuf> {
    let packs = std::fs::read_dir(root.join("jobs").join(&job.0).join("packs")).unwrap();
    packs.map(|pack| pack.unwrap().path()).collect()
}

/// A store with one pack of two frames, of which the second generation needs the last.
fn two_frames(root: &Path) -> Store {
    let store = open(root, AllSteps);
    store_generation(&store, 1, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8], now());
    store_generation(&store, 2, &[0, 5, 6, 7], now());
    assert_eq!(packs_of(root, &job()).len(), 1, "they share a pack");
    store
}

#[test]
fn b7_a_generation_is_adopted_that_needs_nothing_of_what_is_damaged_in_its_packs() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let store = two_frames(&root);
    let pack = packs_of(&root, &job()).remove(0);
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[10] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    // nobody has noticed yet, and then everybody has
    for clone in ["77777777-0000", "77777777-0001"] {
        let clone: JobUid = clone.into();
        store.adopt(&clone, &clone_of(2), 0, now()).unwrap();
        assert_eq!(complete(&store, &clone), [ADOPTED]);
        assert_eq!(packs_of(&root, &clone)[0].extension().unwrap(), "damaged");
        // what was found at the copy is known of the source
        assert_eq!(packs_of(&root, &job())[0].extension().unwrap(), "damaged");
        assert_eq!(complete(&store, &job()), [2]);
        store.collect(&clone, now()).unwrap();
        assert_eq!(packs_of(&root, &clone).len(), 1);
    }
    let refused = store.adopt(&other_still(), &clone_of(1), 0, now());
    assert!(matches!(refused, Err(RepositoryError::Damaged(_) | RepositoryError::NotFound(_))), "{refused:?}");
}

fn other_still() -> JobUid {
    "77777777-0002".into()
}

/// Something happens to the clone before a step, in a thread of its own that is waited for.
struct Meanwhile(AtomicI64, Arc<std::sync::OnceLock<std::sync::Weak<Store>>>, fn(&Store));

impl Steps for Meanwhile {
    fn next(&self, what: &'static str) -> io::Result<()> {
        let Some(store) = self.1.get().and_then(std::sync::Weak::upgrade) else { return Ok(()) };
        if what == "link" && self.0.fetch_sub(1, Ordering::SeqCst) == 0 {
            let (done, waited) = std::sync::mpsc::channel();
            let does = self.2;
            std::thread::spawn(move || {
                does(&store);
                // nobody waits any more if the test has failed
                let _ = done.send(());
            });
            waited.recv_timeout(std::time::Duration::from_secs(120)).expect("it waits for the copy");
        }
        Ok(())
    }
}

/// The same before each of the two recipes and two packs of generation 2.
fn meanwhile(does: fn(&Store), look: impl Fn(&Path, &Store, Outcome<GenerationSummary>)) {
    for step in 0..4 {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        drop(filled(&root));
        let own = Arc::new(std::sync::OnceLock::new());
        let store = Arc::new(open(&root, Meanwhile(AtomicI64::new(step), own.clone(), does)));
        own.set(Arc::downgrade(&store)).unwrap();
        let result = store.adopt(&other(), &clone_of(2), 0, now());
        look(&root, &store, result);
    }
}

#[test]
fn a9_a_fence_does_not_wait_for_a_copy_and_ends_it() {
    let fence = |store: &Store| store.fence(&other(), 1).unwrap();
    meanwhile(fence, |root, store, result| {
        assert!(matches!(result, Err(RepositoryError::Refused(_))), "{result:?}");
        assert_eq!((complete(store, &other()), complete(store, &job())), (vec![], vec![1, 2]));
        assert_eq!(check::verify(&Files::directory(root).unwrap()).unwrap().problems, [] as [String; 0]);
    });
}

#[test]
fn a_clone_that_is_removed_in_the_middle_leaves_nothing() {
    let remove = |store: &Store| store.remove_job(&other(), now()).unwrap();
    meanwhile(remove, |root, store, result| {
        assert!(matches!(result, Err(RepositoryError::Refused(_))), "{result:?}");
        assert_eq!(complete(store, &other()), [] as [Generation; 0]);
        assert!(!root.join("jobs").join(&other().0).join("packs").exists());
    });
}

#[test]
fn blocks_of_packs_that_come_while_the_index_is_open_are_found() {
    let look = |store: &Store| {
        let origin = origin(ADOPTED, 0, 0, FileKind::Disk);
        let names = [BlockName::of(&content(1))];
        drop(store.find_blocks(&other(), origin, &names, now()));
    };
    meanwhile(look, |_, store, result| {
        result.unwrap();
        store.fence(&other(), 1).unwrap();
        store.admit_part(&other(), 1, 1).unwrap();
        let names: Vec<BlockName> = [1, 2, 5, 6].iter().map(|n| BlockName::of(&content(*n))).collect();
        let found = store.find_blocks(&other(), origin(1, 1, 0, FileKind::Disk), &names, now()).unwrap();
        assert!(found.places.iter().all(Option::is_some), "{found:?}");
    });
}
