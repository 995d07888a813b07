use std::{io, path::PathBuf};

use super::*;
use crate::{
    repository::durable::{AllSteps, Steps},
    store::{
        layout::{MANIFEST, image_name},
        manifest::{Manifest, tests::manifest},
    },
};

const HOUR: i64 = 3600;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

struct Bench {
    directory: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), Box::new(AllSteps), at(0)).unwrap();
        Self { directory, store }
    }

    /// The same directory, served by another process.
    fn again(self) -> Self {
        let Self { directory, store } = self;
        drop(store);
        let store = Store::open(directory.path(), Box::new(AllSteps), at(0)).unwrap();
        Self { directory, store }
    }

    fn put(&self, digest: &str) {
        let staged = self.store.root.staged();
        std::fs::write(staged.path(), digest).unwrap();
        self.store.keep_image(digest, &staged).unwrap();
    }

    /// Publishes what is not there: only the manifest counts here.
    fn put_manifest(&self, made: &Manifest) -> PathBuf {
        let below = layout::generation(&made.job, made.generation).unwrap();
        self.store.root.directory(&below).unwrap();
        let path = below.join(MANIFEST);
        self.store.root.write(&path, &serde_json::to_vec(made).unwrap()).unwrap();
        path
    }

    fn review(&self, named: &[&str], second: i64) -> Outcome<Vec<String>> {
        let named = named.iter().map(|digest| (*digest).to_owned()).collect();
        self.store.review_images(&ImageReview { named, now: at(second), grace: 3600 })
    }

    fn has(&self, digest: &str) -> bool {
        self.store.root.at(&layout::image(digest).unwrap()).exists()
    }

    fn names(&self) -> Vec<String> {
        self.store.root.list(Path::new(IMAGES)).unwrap()
    }
}

fn digest(n: u8) -> String {
    image_name(&[n; 32])
}

#[test]
fn b12_an_image_goes_after_the_grace_also_when_the_process_was_another_one_meanwhile() {
    let (one, two) = (digest(1), digest(2));
    let bench = Bench::new();
    bench.put(&one);
    bench.put(&two);
    bench.store.root.write(&layout::disk_record(&two).unwrap(), b"{}").unwrap();
    bench.store.root.write(&layout::image_pieces(&two).unwrap(), b"names").unwrap();
    assert_eq!(bench.review(&[&one], 0), Ok(vec![]));
    let bench = bench.again();
    assert_eq!(bench.review(&[&one], HOUR - 1), Ok(vec![]));
    assert!(bench.has(&two));
    assert_eq!(bench.review(&[&one], HOUR), Ok(vec![two.clone()]));
    assert!(bench.has(&one) && !bench.has(&two));
    assert_eq!(bench.names(), [&one["sha256:".len()..]], "nothing is left of it");
}

#[test]
fn b12_what_is_named_again_or_arrives_again_has_all_its_time_again() {
    let (one, two) = (digest(1), digest(2));
    let bench = Bench::new();
    bench.put(&one);
    bench.put(&two);
    bench.review(&[], 0).unwrap();
    bench.review(&[&one], HOUR - 1).unwrap();
    bench.put(&two);
    assert_eq!(bench.review(&[], HOUR), Ok(vec![]));
    assert_eq!(bench.review(&[], HOUR + HOUR - 1), Ok(vec![]));
    assert_eq!(bench.review(&[], HOUR + HOUR), Ok(vec![one, two]));
}

#[test]
fn b12_the_images_of_a_kept_generation_stay_without_anybody_who_names_them() {
    let (disk, kernel, initrd) = (digest(1), digest(2), digest(3));
    let bench = Bench::new();
    for digest in [&disk, &kernel, &initrd] {
        bench.put(digest);
    }
    let mut made = manifest(4);
    made.image.disk.clone_from(&disk);
    made.image.kernel = Some(kernel.clone());
    made.image.initrd = Some(initrd.clone());
    bench.put_manifest(&made);
    bench.review(&[], 0).unwrap();
    assert_eq!(bench.review(&[], 100 * HOUR), Ok(vec![]));
    bench.store.retire(&made.job, made.generation).unwrap();
    assert_eq!(bench.review(&[], 101 * HOUR), Ok(vec![]), "its time begins when the generation is gone");
    assert_eq!(bench.review(&[], 102 * HOUR), Ok(vec![disk, kernel, initrd]));
}

#[test]
fn b12_a_manifest_that_cannot_be_read_may_name_any_image() {
    let one = digest(1);
    let bench = Bench::new();
    bench.put(&one);
    bench.review(&[], 0).unwrap();
    let path = bench.put_manifest(&manifest(4));
    bench.store.root.write(&path, b"not a manifest").unwrap();
    assert!(bench.review(&[], HOUR).is_err());
    assert!(bench.has(&one));
    // what is not ours says nothing
    std::fs::create_dir(bench.directory.path().join("jobs/lost+found")).unwrap();
    bench.store.root.write(&path, &serde_json::to_vec(&manifest(4)).unwrap()).unwrap();
    assert_eq!(bench.review(&[], HOUR), Ok(vec![one]));
}

#[test]
fn a_mark_that_is_no_time_begins_anew() {
    let one = digest(1);
    let bench = Bench::new();
    bench.put(&one);
    bench.store.root.write(&layout::unnamed_image(&one).unwrap(), b"once upon a time").unwrap();
    assert_eq!(bench.review(&[], HOUR), Ok(vec![]));
    assert_eq!(bench.review(&[], 2 * HOUR), Ok(vec![one]));
}

/// Dies at the n-th step.
struct Fuse(std::sync::atomic::AtomicUsize);

impl Steps for Fuse {
    fn next(&self, what: &'static str) -> io::Result<()> {
        use std::sync::atomic::Ordering::SeqCst;
        let left = self.0.load(SeqCst).checked_sub(1).ok_or_else(|| io::Error::other(what))?;
        self.0.store(left, SeqCst);
        Ok(())
    }
}

#[test]
fn b12_a_removal_that_was_cut_short_is_done_again_and_leaves_nothing() {
    for steps in 0..40 {
        let one = digest(1);
        let bench = Bench::new();
        bench.put(&one);
        bench.store.root.write(&layout::disk_record(&one).unwrap(), b"{}").unwrap();
        bench.review(&[], 0).unwrap();
        let Bench { directory, store } = bench;
        drop(store);
        let store = Store::open(directory.path(), Box::new(Fuse(steps.into())), at(0)).unwrap();
        let cut = Bench { directory, store };
        let ended = cut.review(&[], HOUR).is_ok();
        let bench = cut.again();
        bench.review(&[], HOUR).unwrap();
        bench.review(&[], 2 * HOUR).unwrap();
        assert_eq!(bench.names(), [] as [&str; 0], "after {steps} steps");
        if ended {
            assert!(steps > 3, "the fuse was too long");
            return;
        }
    }
    panic!("it never ended");
}
