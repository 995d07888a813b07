//! The process dies between any two steps that change the disk: whatever was complete stays readable,
//! and the same orders given again lead to the same end.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use rstest::rstest;

use super::{
    bucket::testing::{Kind, TestStore},
    check,
    durable::{AllSteps, Root, Staged, Steps},
    store::Store,
};
use crate::{
    driver::repository::{GenerationSummary, KeptPart, RepositoryError},
    names::{Generation, Incarnation},
    store::{
        layout::PartName,
        manifest::{FileForm, FileKind, Manifest, PartFile, tests::manifest},
    },
};

/// Takes so many steps, then none.
#[derive(Clone)]
pub(super) struct Fuse(pub(super) Arc<AtomicI64>);

impl Steps for Fuse {
    fn next(&self, what: &'static str) -> io::Result<()> {
        if self.0.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(io::Error::other(format!("died before: {what}")));
        }
        Ok(())
    }
}

fn open(root: &Path, steps: impl Steps + 'static) -> Result<Store, RepositoryError> {
    Store::open(root, Box::new(steps), jiff::Timestamp::UNIX_EPOCH)
}

fn staged(root: &Root, content: &[u8]) -> Staged {
    let staged = root.staged();
    std::fs::write(staged.path(), content).unwrap();
    staged
}

pub(super) fn full(generation: Generation, incarnation: Incarnation) -> (Manifest, Vec<Vec<u8>>) {
    let mut made = Manifest { incarnation, ..manifest(generation) };
    let mut contents = Vec::new();
    for part in &mut made.members {
        part.files.clear();
        for kind in [FileKind::Memory, FileKind::Disk] {
            let content = format!("{generation} {} {kind}", part.index).into_bytes();
            let digest = blake3::hash(&content).to_hex().to_string();
            let stored = content.len() as u64;
            part.files.push(PartFile { kind, form: FileForm::Whole, size: stored, stored, packed: 0, digest });
            contents.push(content);
        }
    }
    (made, contents)
}

/// Sends, notes and publishes a generation, as agents and kget do.
pub(super) fn store(store: &Store, generation: Generation, incarnation: Incarnation) -> Result<(), RepositoryError> {
    let (made, contents) = full(generation, incarnation);
    let mut contents = contents.iter();
    for part in &made.members {
        for file in &part.files {
            store.admit_part(&made.job, generation, incarnation)?;
            let staged = staged(&store.root, contents.next().unwrap());
            store.keep_file(&made.job, generation, (incarnation, part.index), file, &staged, u64::MAX)?;
        }
        let kept = KeptPart { incarnation, nonce: made.nonce.clone(), part: part.clone() };
        store.keep_part(&made.job, generation, &kept)?;
    }
    store.publish(&made, jiff::Timestamp::UNIX_EPOCH).map(drop)
}

/// A life: two generations, a restore, a third generation, the first one retired.
fn live(it: &Store) -> Result<(), RepositoryError> {
    let job = manifest(1).job;
    if it.content(&job)?.fence < 2 {
        store(it, 1, 1)?;
        store(it, 2, 1)?;
    }
    it.fence(&job, 2)?;
    store(it, 3, 2)?;
    it.retire(&job, 1)
}

fn readable(store: &Store) -> Vec<Generation> {
    let job = manifest(1).job;
    let complete = store.content(&job).unwrap().generations;
    for summary in &complete {
        let found = store.manifest(&job, summary.generation).unwrap();
        for part in &found.members {
            for file in &part.files {
                let mut opened =
                    store.open_file(&job, summary.generation, part.index, file.kind, &file.digest).unwrap();
                let mut content = String::new();
                io::Read::read_to_string(&mut opened, &mut content).unwrap();
                assert_eq!(content, format!("{} {} {}", summary.generation, part.index, file.kind));
            }
        }
    }
    complete.iter().map(|summary| summary.generation).collect()
}

#[rstest]
fn a_complete_generation_is_always_readable_whenever_the_process_dies(
    #[values(Kind::Directory, Kind::Bucket, Kind::BucketAlone)] kind: Kind,
) {
    let mut deaths = 0;
    for steps in 0.. {
        let place = TestStore::new(kind);
        let fuse = Fuse(Arc::new(AtomicI64::new(steps)));
        let result = live(&place.open(fuse.clone()).unwrap());
        let survived = fuse.0.load(Ordering::SeqCst) >= 0;
        assert_eq!(result.is_ok(), survived, "{result:?} after {steps} steps");
        // the next process finds only whole things
        let next = place.open(AllSteps).unwrap();
        let complete = readable(&next);
        let report = place.verify();
        assert_eq!((report.generations, &report.problems), (complete.len(), &vec![]), "after {steps} steps");
        let begun = next.content(&manifest(1).job).unwrap().highest;
        assert!(begun <= 1 || !complete.is_empty(), "{begun} was begun, and 1 is not complete: after {steps} steps");
        for scratch in ["staging", "trash"] {
            assert_eq!(std::fs::read_dir(place.root().join(scratch)).unwrap().count(), 0);
        }
        // and the same orders again lead to the same end
        live(&next).unwrap_or_else(|error| panic!("again after {steps} steps: {error}"));
        assert_eq!(readable(&next), [2, 3], "after {steps} steps");
        if survived {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 60, "only {deaths} steps were tried");
}

#[rstest]
fn a_removal_that_was_interrupted_is_finished_at_the_next_start(
    #[values(Kind::Directory, Kind::Bucket, Kind::BucketAlone)] kind: Kind,
) {
    for steps in 0.. {
        let place = TestStore::new(kind);
        let job = manifest(1).job;
        live(&place.open(AllSteps).unwrap()).unwrap();
        let fuse = Fuse(Arc::new(AtomicI64::new(steps)));
        let result = place.open(fuse).unwrap().remove_job(&job, jiff::Timestamp::UNIX_EPOCH);
        let next = place.open(AllSteps).unwrap();
        let left = readable(&next);
        // all or nothing as soon as the removal is on record
        assert!(left == [2, 3] || left.is_empty(), "{left:?} after {steps} steps");
        let record = next.admit_part(&job, 9, 9);
        assert_eq!(record.is_err(), left.is_empty());
        if result.is_ok() {
            assert!(left.is_empty());
            break;
        }
    }
}

#[rstest]
fn a_record_of_a_removed_job_does_not_stay_for_ever(
    #[values(Kind::Directory, Kind::Bucket, Kind::BucketAlone)] kind: Kind,
) {
    let place = TestStore::new(kind);
    let job = manifest(1).job;
    let removed_at = jiff::Timestamp::UNIX_EPOCH;
    {
        let store = place.open(AllSteps).unwrap();
        live(&store).unwrap();
        store.remove_job(&job, removed_at).unwrap();
    }
    let later = removed_at + std::time::Duration::from_secs(49 * 3600);
    drop(place.open_at(AllSteps, later).unwrap());
    assert_eq!(place.usage().jobs, []);
}

#[rstest]
fn b10_what_a_sweep_spares_can_still_be_published(
    #[values(Kind::Directory, Kind::Bucket, Kind::BucketAlone)] kind: Kind,
) {
    let place = TestStore::new(kind);
    let job = manifest(1).job;
    let (made, contents) = full(5, 2);
    {
        let store = place.open(AllSteps).unwrap();
        let mut contents = contents.iter();
        for part in &made.members {
            for file in &part.files {
                store.admit_part(&job, 5, 2).unwrap();
                let staged = staged(&store.root, contents.next().unwrap());
                store.keep_file(&job, 5, (2, part.index), file, &staged, u64::MAX).unwrap();
            }
        }
        // sweeps of a fence and of a restart, while the generation is unfinished
        store.fence(&job, 2).unwrap();
    }
    let store = place.open(AllSteps).unwrap();
    store.publish(&made, jiff::Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(readable(&store), [5]);
}

#[test]
fn damage_is_found_before_publishing_and_by_verify() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let opened = open(&root, AllSteps).unwrap();
    store(&opened, 1, 1).unwrap();
    let spoil = |generation: u32| {
        let path = root.join(format!("jobs/{}/generations/{generation}", manifest(1).job));
        let memory = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path());
        let memory = memory.into_iter().find(|p| p.to_string_lossy().contains(".memory.")).unwrap();
        std::fs::write(memory, b"spoilt").unwrap();
    };
    let (made, contents) = full(2, 1);
    for (at, content) in contents.iter().enumerate() {
        let part = &made.members[at / 2];
        opened.admit_part(&made.job, 2, 1).unwrap();
        let staged = staged(&opened.root, content);
        opened.keep_file(&made.job, 2, (1, part.index), &part.files[at % 2], &staged, u64::MAX).unwrap();
    }
    spoil(2);
    assert!(matches!(opened.publish(&made, jiff::Timestamp::UNIX_EPOCH), Err(RepositoryError::Damaged(_))));
    assert_eq!(readable(&opened), [1]);
    assert_eq!(check::verify(&opened.root).unwrap().problems, [] as [String; 0]);
    spoil(1);
    assert_eq!(check::verify(&opened.root).unwrap().problems.len(), 1);
}

#[test]
fn two_processes_never_serve_one_directory() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let _first = open(&root, AllSteps).unwrap();
    assert!(open(&root, AllSteps).is_err());
}

/// A disk without room for anything new.
struct NoRoom;

impl Steps for NoRoom {
    fn next(&self, what: &'static str) -> io::Result<()> {
        if what == "take away" { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }
}

#[test]
fn c2_a_full_disk_is_said_and_leaves_nothing_half_written() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    store(&open(&root, AllSteps).unwrap(), 1, 1).unwrap();
    let before = super::usage::usage(&root).unwrap();
    let opened = open(&root, NoRoom).unwrap();
    assert!(matches!(store(&opened, 2, 1), Err(RepositoryError::Full(_))));
    assert_eq!(super::usage::usage(&root).unwrap(), before);
    assert_eq!(readable(&opened), [1]);
    for scratch in ["staging", "trash"] {
        assert_eq!(std::fs::read_dir(root.join(scratch)).unwrap().count(), 0);
    }
}

/// Puts a pipe in the place of a generation's first file: reading it back lasts until its other end,
/// which is returned once the reading has begun, is closed.
fn publish_slowly(opened: &Arc<Store>, root: &Path, made: &Manifest) -> (Publishing, File, PathBuf) {
    let directory = root.join(format!("jobs/{}/generations/{}", made.job, made.generation));
    let name = PartName::of_file(made.incarnation, 0, &made.members[0].files[0]).to_string();
    let path = directory.join(name);
    std::fs::remove_file(&path).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let (store, manifest) = (opened.clone(), made.clone());
    let publishing = std::thread::spawn(move || store.publish(&manifest, jiff::Timestamp::UNIX_EPOCH));
    let end = File::options().write(true).open(&path).unwrap();
    (publishing, end, path)
}

type Publishing = std::thread::JoinHandle<Result<GenerationSummary, RepositoryError>>;

fn sent(root: &Path, generation: Generation) -> (Arc<Store>, Manifest, Vec<u8>) {
    let opened = Arc::new(open(root, AllSteps).unwrap());
    let (made, contents) = full(generation, 1);
    for (at, content) in contents.iter().enumerate() {
        let part = &made.members[at / 2];
        opened.admit_part(&made.job, generation, 1).unwrap();
        let staged = staged(&opened.root, content);
        opened.keep_file(&made.job, generation, (1, part.index), &part.files[at % 2], &staged, u64::MAX).unwrap();
    }
    (opened, made, contents[0].clone())
}

#[test]
fn b1_a_fence_during_a_long_publish_answers_at_once_and_the_publish_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let (opened, made, content) = sent(&root, 5);
    let (publishing, mut end, _) = publish_slowly(&opened, &root, &made);
    let (done, fenced) = std::sync::mpsc::channel();
    let (store, job) = (opened.clone(), made.job.clone());
    std::thread::spawn(move || done.send(store.fence(&job, 2)));
    let fenced = fenced.recv_timeout(std::time::Duration::from_secs(120));
    // whatever came of it, the reader must end
    end.write_all(&content).unwrap();
    drop(end);
    let published = publishing.join().unwrap();
    assert_eq!(fenced, Ok(Ok(())), "the fence waited for the publication");
    assert!(matches!(published, Err(RepositoryError::Refused(_))), "{published:?}");
    assert_eq!(readable(&opened), [] as [Generation; 0]);
}

#[test]
fn b10_what_was_exchanged_after_it_was_read_is_not_published() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let (opened, made, content) = sent(&root, 5);
    let (publishing, mut end, path) = publish_slowly(&opened, &root, &made);
    std::fs::write(root.join("other"), b"other").unwrap();
    std::fs::rename(root.join("other"), &path).unwrap();
    end.write_all(&content).unwrap();
    drop(end);
    let published = publishing.join().unwrap();
    assert!(matches!(published, Err(RepositoryError::Unreachable(_))), "{published:?}");
    assert_eq!(readable(&opened), [] as [Generation; 0]);
}
