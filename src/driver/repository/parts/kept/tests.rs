//! What a node keeps is used where it is right, and is never needed.

use std::{fs, time::Duration};

use super::*;
use crate::{
    driver::{
        agent::KeptKey,
        repository::parts::{
            target::Target,
            tests::{Packs, random},
        },
    },
    store::{migration::testing::Synthetic, pack::BLOCK, recipe::Recipe},
};

const KINDS: [FileKind; 2] = [FileKind::Memory, FileKind::Disk];

/// A node, and the repository that it sends to.
struct Node {
    root: tempfile::TempDir,
    packs: Packs,
    limit: u64,
}

/// A generation as the repository has it, and what its files are.
struct Stored {
    generation: Generation,
    files: Vec<(FileKind, Recipe, Vec<u8>)>,
}

impl Node {
    fn new(limit: u64) -> Self {
        Self { root: tempfile::tempdir().unwrap(), packs: Packs::default(), limit }
    }

    fn captures(&self) -> PathBuf {
        self.root.path().join("captures")
    }

    fn open(&self, job: &str, key: u8) -> Option<Kept> {
        let config = KeptConfig { key: KeptKey([key; 32]), limit: self.limit };
        Kept::open(&self.captures(), &job.into(), 0, &config).unwrap()
    }

    fn kept(&self) -> Kept {
        self.open("job-1", 7).unwrap()
    }

    /// Captures and sends a generation, and keeps it.
    fn send(&mut self, kept: &Kept, generation: Generation, disk: &[u8]) -> Stored {
        let mut files = Vec::new();
        for (kind, content) in KINDS.into_iter().zip([Synthetic::background().bytes(), disk.to_vec()]) {
            let path = self.root.path().join(format!("{generation}-{kind}"));
            fs::write(&path, &content).unwrap();
            let (recipe, _) = self.packs.put(&path, kind, 4096);
            kept.offer(generation, kind, Arc::new(NamedFile::read(&path, kind).unwrap()));
            // as it comes from the repository
            self.packs.get_with(&recipe, &path, |_| Ok(())).unwrap();
            files.push((kind, recipe, fs::read(&path).unwrap()));
        }
        assert!(kept.settle(generation, &|| false).unwrap());
        Stored { generation, files }
    }

    /// Restores a generation. Bytes that were here, and how many packs were needed.
    fn restore(&self, kept: &Kept, stored: &Stored) -> (u64, usize) {
        let to = self.root.path().join("restored");
        let (mut local, mut needed) = (0, 0);
        for (kind, recipe, content) in &stored.files {
            let here = |target: &mut Target<'_>| kept.fill(stored.generation, *kind, recipe, target);
            let got = self.packs.get_with(recipe, &to, here).unwrap();
            assert!(fs::read(&to).unwrap() == *content, "{kind} of generation {} is another", stored.generation);
            (local, needed) = (local + got.0, needed + got.1);
        }
        (local, needed)
    }

    /// Files of the directory of a member.
    fn files(&self) -> Vec<PathBuf> {
        let directory = self.captures().join("job-1-0");
        let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| !path.ends_with(LOCK));
        files.sort();
        files
    }

    fn bytes(&self) -> u64 {
        self.files().iter().map(|path| fs::metadata(path).unwrap().len()).sum()
    }
}

#[test]
fn the_next_agent_fetches_nothing_of_what_the_last_one_kept() {
    let mut node = Node::new(1 << 30);
    let mut disk = random(1, 40 * BLOCK);
    disk[3 * BLOCK..9 * BLOCK].fill(0);
    disk.truncate(39 * BLOCK + 77);
    let kept = node.kept();
    let first = node.send(&kept, 4, &disk);
    drop(kept);
    let kept = node.kept();
    let (all, needed) = node.restore(&kept, &first);
    assert!(all > 34 * BLOCK as u64 && needed == 0, "{all} bytes, {needed} packs");
    // what changed is added, and both are there
    let before = node.bytes();
    disk[20 * BLOCK] ^= 1;
    let second = node.send(&kept, 6, &disk);
    assert!(node.bytes() - before < 2 * BLOCK as u64, "{} bytes more", node.bytes() - before);
    drop(kept);
    let kept = node.kept();
    assert_eq!(node.restore(&kept, &second), (all, 0));
    assert_eq!(node.restore(&kept, &first), (all, 0));
    // only the one before is kept beside the newest
    node.send(&kept, 7, &disk);
    assert_eq!(node.restore(&kept, &second), (all, 0));
    let (local, needed) = node.restore(&kept, &first);
    assert!(local == 0 && needed > 0, "{local}");
    // a job of the same name with another key finds nothing, and harms nobody
    drop(kept);
    let other = node.open("job-1", 8).unwrap();
    assert_eq!(node.restore(&other, &second).0, 0);
}

#[test]
fn what_has_changed_since_is_counted_place_by_place() {
    let mut node = Node::new(1 << 30);
    let kept = node.kept();
    let path = node.root.path().join("now");
    let changed = |content: &[u8]| {
        fs::write(&path, content).unwrap();
        kept.changed(FileKind::Disk, &NamedFile::read(&path, FileKind::Disk).unwrap()).unwrap()
    };
    let mut disk = random(3, 6 * BLOCK);
    assert_eq!(changed(&disk), None, "nothing is kept yet");
    node.send(&kept, 1, &random(4, 6 * BLOCK));
    node.send(&kept, 2, &disk);
    assert_eq!(changed(&disk), Some(0));
    disk[BLOCK] ^= 1;
    disk[3 * BLOCK..4 * BLOCK].fill(0);
    disk.extend_from_slice(&random(5, 2 * BLOCK));
    assert_eq!(changed(&disk), Some(3 * BLOCK as u64), "one changed, one is zero now, two are new");
    assert_eq!(changed(&disk[..BLOCK]), Some(0));
}

#[test]
fn whatever_is_damaged_is_fetched() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 6] = [
        ("a flipped byte", |path| {
            let mut bytes = fs::read(path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            fs::write(path, bytes).unwrap();
        }),
        ("torn", |path| fs::File::options().write(true).open(path).unwrap().set_len(70).unwrap()),
        ("empty", |path| fs::write(path, "").unwrap()),
        ("rubbish", |path| fs::write(path, random(9, 100_000)).unwrap()),
        ("gone", |path| fs::remove_file(path).unwrap()),
        ("a directory", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
    ];
    let mut node = Node::new(1 << 30);
    let kept = node.kept();
    node.send(&kept, 1, &random(1, 12 * BLOCK));
    let stored = node.send(&kept, 2, &[random(1, 12 * BLOCK), random(2, 5 * BLOCK)].concat());
    let (all, _) = node.restore(&kept, &stored);
    let whole: Vec<_> = node.files().into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect();
    assert!(whole.len() >= 5, "{whole:?}");
    let mut partly = 0;
    for (_, harmed) in &whole {
        for (name, harm) in &harms {
            harm(harmed);
            let (local, needed) = node.restore(&kept, &stored);
            let other = harmed.to_string_lossy().contains("names-1");
            assert!(other || (local < all && needed > 0), "{name} {}: {local} of {all}", harmed.display());
            partly += usize::from(local > 0 && local < all);
            for (bytes, path) in &whole {
                remove_any(path);
                fs::write(path, bytes).unwrap();
            }
        }
    }
    assert!(partly > 0, "what is whole beside it is used");
    assert_eq!(node.restore(&kept, &stored), (all, 0));
    // and the next capture is kept as if nothing had been
    for (_, path) in &whole {
        fs::write(path, "rubbish").unwrap();
    }
    let next = node.send(&kept, 3, &random(3, 8 * BLOCK));
    assert_eq!(node.restore(&kept, &next).1, 0);
}

fn remove_any(path: &Path) {
    if path.exists() {
        remove(path);
    }
}

#[test]
fn names_of_another_capture_of_the_same_number_are_not_believed() {
    let mut node = Node::new(1 << 30);
    let kept = node.kept();
    node.send(&kept, 5, &random(1, 6 * BLOCK));
    let directory = node.captures().join("job-1-0");
    let lie = fs::read(directory.join("names-5-disk")).unwrap();
    let stored = node.send(&kept, 6, &random(2, 6 * BLOCK));
    fs::write(directory.join("names-6-disk"), lie).unwrap();
    assert!(node.restore(&kept, &stored).1 > 0);
}

#[test]
fn c2_no_more_is_kept_than_the_limit_allows() {
    let mut node = Node::new(20 * BLOCK as u64);
    let kept = node.kept();
    for generation in 1..6 {
        let stored = node.send(&kept, generation, &random(u8::try_from(generation).unwrap(), 14 * BLOCK));
        assert!(node.bytes() <= 20 * BLOCK as u64, "{} bytes", node.bytes());
        node.restore(&kept, &stored);
    }
    // each of them is there, not only the first
    assert!(node.files().iter().any(|path| path.to_string_lossy().contains("names-5-")), "{:?}", node.files());
    // the disk wants the room back
    kept.give_way();
    assert_eq!(node.bytes(), 0);
    let stored = node.send(&kept, 9, &random(1, 14 * BLOCK));
    assert_eq!(node.restore(&kept, &stored).1, 0);
}

#[test]
fn c2_names_of_blocks_count_too_and_nothing_is_kept_where_they_do_not_fit() {
    let path = |node: &Node| node.root.path().join("many");
    let blocks = 125;
    for (limit, fits) in [(1000, false), (blocks * 32, false), (blocks * 120, true)] {
        let node = Node::new(limit);
        let kept = node.kept();
        for generation in 1..5 {
            let content = random(u8::try_from(generation).unwrap(), usize::try_from(blocks).unwrap() * BLOCK);
            fs::write(path(&node), content).unwrap();
            let file = NamedFile::read(&path(&node), FileKind::Disk).unwrap();
            kept.offer(generation, FileKind::Disk, Arc::new(file));
            assert_eq!(kept.settle(generation, &|| false).unwrap(), fits, "generation {generation} within {limit}");
            assert!(node.bytes() <= limit, "{} bytes of {limit}", node.bytes());
            assert_eq!(node.files().is_empty(), !fits, "generation {generation} within {limit}");
        }
    }
}

#[test]
fn what_is_not_needed_any_more_goes() {
    let mut node = Node::new(1 << 30);
    let kept = node.kept();
    let mut disk = random(1, 30 * BLOCK);
    for generation in 1..80 {
        // a block of its own each time
        let at = (generation as usize % 30) * BLOCK;
        disk[at..at + BLOCK].copy_from_slice(&random(u8::try_from(generation + 30).unwrap(), BLOCK));
        let stored = node.send(&kept, generation, &disk);
        assert_eq!(node.restore(&kept, &stored).1, 0, "{generation}");
    }
    assert!(node.bytes() < 80 * BLOCK as u64, "{} bytes", node.bytes());
    assert!(node.files().len() < 40, "{:?}", node.files());
}

#[test]
fn d1_the_next_user_of_the_node_reads_nothing() {
    let mut node = Node::new(1 << 30);
    let kept = node.kept();
    let secret = b"a secret of the guest, twice: a secret of the guest".repeat(3000);
    node.send(&kept, 1, &secret);
    for path in node.files() {
        let bytes = fs::read(&path).unwrap();
        assert!(!bytes.windows(21).any(|part| part == b"a secret of the guest"), "{}", path.display());
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }
    for directory in [node.captures(), node.captures().join("job-1-0")] {
        assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o777, 0o700);
    }
}

#[test]
fn one_agent_has_it_and_what_nobody_has_goes_after_a_day() {
    let mut node = Node::new(1 << 30);
    let kept = node.kept();
    let stored = node.send(&kept, 1, &random(1, 4 * BLOCK));
    assert!(node.open("job-1", 7).is_none(), "two have it");
    let old = node.open("job-2", 7).unwrap();
    let age = |job: &str, hours: u64| {
        let lock = fs::File::open(node.captures().join(job).join(LOCK)).unwrap();
        lock.set_modified(std::time::SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
    };
    age("job-1-0", 30);
    age("job-2-0", 30);
    drop(node.open("job-3", 7));
    assert!(node.captures().join("job-2-0").exists(), "somebody has it");
    drop(old);
    age("job-3-0", 20);
    drop(node.open("job-4", 7));
    assert!(!node.captures().join("job-2-0").exists());
    assert!(node.captures().join("job-3-0").exists());
    assert_eq!(node.restore(&kept, &stored).1, 0, "it is used, whatever its age");
    // of the others the longest unused goes first where the limit is reached
    drop(kept);
    node.limit = 5;
    assert_eq!(node.open("job-5", 7).map(drop), Some(()));
    assert!(!node.captures().join("job-1-0").exists());
}

#[test]
fn at_the_end_of_the_job_nothing_is_left() {
    let mut node = Node::new(1 << 30);
    let kept = node.kept();
    node.send(&kept, 1, &random(1, 4 * BLOCK));
    kept.forget();
    assert!(!node.captures().join("job-1-0").exists());
    let path = node.root.path().join("1-disk");
    kept.offer(2, FileKind::Disk, Arc::new(NamedFile::read(&path, FileKind::Disk).unwrap()));
    assert!(!kept.settle(2, &|| false).unwrap());
    assert!(!node.captures().join("job-1-0").exists());
}

#[test]
fn a6_what_is_to_stop_stops_and_leaves_what_was_there() {
    let mut node = Node::new(1 << 30);
    let kept = node.kept();
    let stored = node.send(&kept, 1, &random(1, 4 * BLOCK));
    let path = node.root.path().join("more");
    fs::write(&path, random(2, 8 * BLOCK)).unwrap();
    kept.offer(2, FileKind::Disk, Arc::new(NamedFile::read(&path, FileKind::Disk).unwrap()));
    assert!(!kept.settle(2, &|| true).unwrap());
    assert_eq!(node.restore(&kept, &stored).1, 0);
}
