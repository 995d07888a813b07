//! Files as recipes over packs, on the disk: promised, swept, damaged, told apart.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{
    check,
    durable::{AllSteps, Steps},
    packs::damaged_pack,
    receive::Received,
    room::Most,
    store::{Outcome, Store},
    uploads::Origin,
};
use crate::{
    driver::repository::{KeptPart, RepositoryError},
    names::{Generation, Incarnation, JobUid, MemberIndex},
    store::{
        layout::{self, MANIFEST},
        manifest::{FileForm, FileKind, Manifest, PartFile, tests::manifest},
        pack::{BLOCK, BlockName, Builder, Index, PackName, PackRef, Packed},
        recipe::{Content, Place, Run, Sum},
    },
};

pub(super) fn job() -> JobUid {
    manifest(1).job
}

/// Blocks of a file, by a number for the content of each; 0: it is zero.
pub(super) type Blocks<'a> = &'a [u16];

pub(super) fn content(n: u16) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    if n > 0 {
        blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut bytes);
    }
    bytes
}

pub(super) fn file_of(blocks: Blocks<'_>) -> Vec<u8> {
    blocks.iter().flat_map(|n| content(*n)).collect()
}

pub(super) fn packed(blocks: Blocks<'_>) -> Packed {
    let mut builder = Builder::new(BLOCK);
    for n in blocks {
        builder.push(BlockName::of(&content(*n)), &content(*n)).unwrap();
    }
    builder.finish().unwrap()
}

/// A recipe that is of no blocks in particular.
pub(super) fn recipe(packs: &[PackRef], places: &[Option<Place>]) -> Vec<u8> {
    recipe_of(packs, places, Sum::default())
}

/// A recipe as it is sent: the places of the blocks of a file, in order.
pub(super) fn recipe_of(packs: &[PackRef], places: &[Option<Place>], sum: Sum) -> Vec<u8> {
    #[derive(Serialize)]
    struct Form(u8, u32, Vec<PackRef>, Content, Sum, Vec<Run>);
    let length = (places.len() * BLOCK) as u64;
    let runs = places.iter().map(|place| Run { count: 1, place: *place }).collect();
    let form = Form(1, u32::try_from(BLOCK).unwrap(), packs.to_vec(), Content::File { length }, sum, runs);
    zstd::bulk::compress(&postcard::to_stdvec(&form).unwrap(), 1).unwrap()
}

pub(super) fn received(store: &Store, bytes: &[u8]) -> Received {
    let staged = store.root.staged();
    std::fs::write(staged.path(), bytes).unwrap();
    Received { staged, length: bytes.len() as u64, digest: blake3::hash(bytes).to_hex().to_string() }
}

pub(super) fn put_pack(store: &Store, origin: Origin, Packed { pack, bytes }: &Packed, now: Timestamp) -> Outcome<()> {
    let most = Most { part: u64::MAX, job: u64::MAX };
    store.keep_pack(&job(), origin, pack.name, &received(store, bytes), most, now)
}

/// Sends a file as an agent does: asks for its blocks, sends a pack of the others, then the recipe.
pub(super) fn put_file(store: &Store, origin: Origin, blocks: Blocks<'_>, now: Timestamp) -> Outcome<PartFile> {
    let Origin { generation, incarnation, .. } = origin;
    store.admit_part(&job(), generation, incarnation)?;
    let names: Vec<BlockName> = blocks.iter().map(|n| BlockName::of(&content(*n))).collect();
    let found = store.find_blocks(&job(), origin, &names, now)?;
    assert_eq!(found.places.len(), blocks.len());
    let (mut packs, mut own) = (found.packs, Vec::new());
    let number = u32::try_from(packs.len()).unwrap();
    let mut places = Vec::new();
    for (n, place) in blocks.iter().zip(found.places) {
        places.push(match place {
            _ if *n == 0 => None,
            Some(place) => Some(place),
            None => {
                let at = own.iter().position(|its| its == n).unwrap_or(own.len());
                if at == own.len() {
                    own.push(*n);
                }
                Some(Place { pack: number, slot: u32::try_from(at).unwrap() })
            }
        });
    }
    if !own.is_empty() {
        let made = packed(&own);
        put_pack(store, origin, &made, now)?;
        packs.push(made.pack);
    }
    put_recipe_at(store, origin, &recipe_of(&packs, &places, sum_of(blocks)), blocks.len(), now)
}

/// What tells a file from others.
pub(super) fn sum_of(blocks: Blocks<'_>) -> Sum {
    let mut sum = Sum::default();
    let some = (0..).zip(blocks).filter(|(_, n)| **n != 0);
    some.for_each(|(number, n)| sum.add(number, &BlockName::of(&content(*n))));
    sum
}

pub(super) fn put_recipe(store: &Store, origin: Origin, bytes: &[u8], blocks: usize) -> Outcome<PartFile> {
    put_recipe_at(store, origin, bytes, blocks, now())
}

fn put_recipe_at(store: &Store, origin: Origin, bytes: &[u8], blocks: usize, now: Timestamp) -> Outcome<PartFile> {
    let Origin { generation, incarnation, member, kind } = origin;
    let received = received(store, bytes);
    let (stored, digest) = (received.length, received.digest);
    let size = (blocks * BLOCK) as u64;
    let file = PartFile { kind, form: FileForm::Recipe, size, stored, packed: 0, digest };
    store.read_needs_back(&job(), &received.staged, now, None)?;
    store.keep_file(&job(), generation, (incarnation, member), &file, &received.staged, u64::MAX)
}

pub(super) fn origin(generation: Generation, incarnation: Incarnation, member: MemberIndex, kind: FileKind) -> Origin {
    Origin { generation, incarnation, member, kind }
}

/// Sends all files of a generation of one member.
pub(super) fn send(store: &Store, generation: Generation, blocks: Blocks<'_>, now: Timestamp) -> Outcome<Manifest> {
    send_in(store, 1, generation, blocks, now)
}

/// The same in a later incarnation.
pub(super) fn send_in(
    store: &Store,
    incarnation: Incarnation,
    generation: Generation,
    blocks: Blocks<'_>,
    now: Timestamp,
) -> Outcome<Manifest> {
    let mut made = Manifest { incarnation, ..manifest(generation) };
    made.members.truncate(1);
    let part = &mut made.members[0];
    part.files.clear();
    for (kind, blocks) in [(FileKind::Memory, &blocks[blocks.len() / 2..]), (FileKind::Disk, blocks)] {
        part.files.push(put_file(store, origin(generation, made.incarnation, 0, kind), blocks, now)?);
    }
    let kept = KeptPart { incarnation: made.incarnation, nonce: made.nonce.clone(), part: part.clone() };
    store.keep_part(&job(), generation, &kept)?;
    Ok(made)
}

pub(super) fn store_generation(store: &Store, generation: Generation, blocks: Blocks<'_>, now: Timestamp) -> Manifest {
    let made = send(store, generation, blocks, now).unwrap();
    store.publish(&made, now).unwrap();
    made
}

/// Makes a file again from what the repository gives.
pub(super) fn restored(store: &Store, made: &Manifest, member: MemberIndex, kind: FileKind) -> Result<Vec<u8>, String> {
    let file = made.members[usize::try_from(member).unwrap()].files.iter().find(|file| file.kind == kind).unwrap();
    let opened = store.open_file(&job(), made.generation, member, kind, &file.digest).map_err(|e| e.to_string())?;
    let bytes = zstd::stream::decode_all(opened).map_err(|e| e.to_string())?;
    let recipe = crate::store::recipe::Recipe::parse(&bytes).map_err(|e| e.to_string())?;
    let mut all = Vec::new();
    for run in recipe.runs {
        for offset in 0..run.count {
            let Some(place) = run.place else {
                all.extend(vec![0; BLOCK]);
                continue;
            };
            let pack = recipe.head.packs[place.pack as usize];
            let mut bytes = Vec::new();
            let mut opened = store.open_pack(&job(), pack.name).map_err(|e| e.to_string())?;
            std::io::Read::read_to_end(&mut opened, &mut bytes).unwrap();
            let at = usize::try_from(pack.index_range().start).unwrap();
            let index = Index::parse(pack.name, bytes.get(at..).unwrap_or_default()).map_err(|e| e.to_string())?;
            let slot = (place.slot + offset) as usize;
            let frame = index.frame_of(slot);
            let range = index.range(frame).unwrap();
            let stored = &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
            let blocks = index.unpack(frame, stored).map_err(|e| e.to_string())?;
            let at = (slot - index.slots(frame).start) * BLOCK;
            all.extend_from_slice(&blocks[at..at + BLOCK]);
        }
    }
    Ok(all)
}

pub(super) struct Bench {
    pub(super) directory: tempfile::TempDir,
    pub(super) store: Store,
}

impl Bench {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Self::open(directory.path(), AllSteps);
        Self { directory, store }
    }

    pub(super) fn open(directory: &Path, steps: impl Steps + 'static) -> Store {
        Store::open(&directory.join("root"), Box::new(steps), Timestamp::UNIX_EPOCH).unwrap()
    }

    /// The same directory, served by another process.
    pub(super) fn again(self) -> Self {
        let Self { directory, store } = self;
        drop(store);
        let store = Self::open(directory.path(), AllSteps);
        Self { directory, store }
    }

    pub(super) fn at(&self, below: PathBuf) -> PathBuf {
        self.store.root.at(&below)
    }

    pub(super) fn packs(&self) -> Vec<PackName> {
        let names = self.store.root.list(&layout::packs(&job()).unwrap()).unwrap();
        names.iter().filter_map(|name| name.parse().ok()).collect()
    }

    pub(super) fn spoil(&self, pack: PackName) {
        let path = self.at(layout::pack(&job(), pack).unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    pub(super) fn verify(&self) -> Vec<String> {
        check::verify(&self.store.root).unwrap().problems
    }
}

pub(super) fn now() -> Timestamp {
    Timestamp::now()
}

/// When nothing is young any more.
pub(super) fn later() -> Timestamp {
    now() + SignedDuration::from_hours(2)
}

#[test]
fn what_is_there_already_is_not_stored_again() {
    let bench = Bench::new();
    let first = store_generation(&bench.store, 1, &[1, 2, 0, 3], now());
    let memory = &first.members[0].files[0];
    assert!(memory.form == FileForm::Recipe && memory.packed > BLOCK as u64 && memory.stored < 500, "{memory:?}");
    let second = store_generation(&bench.store, 2, &[1, 2, 7, 3], now());
    let packed: Vec<u64> = second.members[0].files.iter().map(|file| file.packed).collect();
    let alone = super::packs_tests::packed(&[7]).bytes.len() as u64;
    assert_eq!(packed, [alone, 0], "the disk finds what memory has sent");
    assert_eq!(second.stored(), alone + second.members[0].files.iter().map(|file| file.stored).sum::<u64>());
    for (made, blocks) in [(&first, [1, 2, 0, 3]), (&second, [1, 2, 7, 3])] {
        assert_eq!(restored(&bench.store, made, 0, FileKind::Disk), Ok(file_of(&blocks)));
        assert_eq!(restored(&bench.store, made, 0, FileKind::Memory), Ok(file_of(&blocks[2..])));
    }
    assert_eq!(bench.verify(), [] as [String; 0]);
    let usage = super::usage::usage(&bench.store.root.at(Path::new(""))).unwrap();
    assert!(usage.jobs[0].bytes > first.stored() + second.stored(), "{usage:?}");
}

#[test]
fn b7_damage_is_found_before_publishing_and_the_generation_before_stays() {
    let bench = Bench::new();
    let first = store_generation(&bench.store, 1, &[1, 2], now());
    let second = send(&bench.store, 2, &[2, 3], now()).unwrap();
    let fresh = packed(&[3]).pack.name;
    bench.spoil(fresh);
    let day = now() + SignedDuration::from_hours(25);
    assert!(matches!(bench.store.publish(&second, day), Err(RepositoryError::Damaged(_))));
    assert!(bench.at(damaged_pack(&job(), fresh).unwrap()).exists(), "for a person to look at");
    assert!(matches!(bench.store.publish(&second, day), Err(RepositoryError::NotFound(_))));
    assert_eq!(restored(&bench.store, &first, 0, FileKind::Disk), Ok(file_of(&[1, 2])));
    assert_eq!(bench.verify(), [] as [String; 0]);
    // the next one sends it again
    let third = store_generation(&bench.store, 3, &[2, 3], day);
    assert_eq!(restored(&bench.store, &third, 0, FileKind::Disk), Ok(file_of(&[2, 3])));
    assert!(!bench.at(damaged_pack(&job(), fresh).unwrap()).exists());
}

#[test]
fn b7_what_rots_is_told_with_the_generations_that_need_it() {
    let bench = Bench::new();
    store_generation(&bench.store, 1, &[1], now());
    store_generation(&bench.store, 2, &[1, 2], now());
    let last = store_generation(&bench.store, 3, &[5, 6], now());
    let (one, two) = (packed(&[1]).pack.name, packed(&[2]).pack.name);
    bench.spoil(one);
    std::fs::remove_file(bench.at(layout::pack(&job(), two).unwrap())).unwrap();
    let problems = bench.verify();
    let told = |name: PackName| problems.iter().find(|line| line.contains(&name.to_string())).unwrap();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(told(one).contains("damaged") && told(one).ends_with("generations 1, 2"), "{}", told(one));
    assert!(told(two).contains("missing") && told(two).ends_with("generations 2"), "{}", told(two));
    assert_eq!(restored(&bench.store, &last, 0, FileKind::Disk), Ok(file_of(&[5, 6])));
    // whoever meets it says so, and it is not found again
    assert_eq!(bench.store.doubt_pack(&job(), one), Ok(true));
    let sound = bench.packs().into_iter().find(|name| *name != one).unwrap();
    assert_eq!(bench.store.doubt_pack(&job(), sound), Ok(false));
    assert!(bench.verify().iter().any(|line| line.contains("put aside")));
    let names = [BlockName::of(&content(1)), BlockName::of(&content(2))];
    let found = bench.store.find_blocks(&job(), origin(4, 1, 0, FileKind::Disk), &names, now()).unwrap();
    assert_eq!(found.places, [None, None]);
}

#[test]
fn b7_a_manifest_cut_short_hides_no_other_generation() {
    let bench = Bench::new();
    let first = store_generation(&bench.store, 1, &[1, 2], now());
    store_generation(&bench.store, 2, &[2, 3], now());
    let path = bench.at(layout::generation(&job(), 2).unwrap().join(MANIFEST));
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let complete = bench.store.content(&job()).unwrap().generations;
    assert_eq!(complete.iter().map(|one| one.generation).collect::<Vec<_>>(), [1]);
    assert_eq!(bench.verify().len(), 1);
    // its recipes still count: a person may mend it
    assert_eq!(bench.store.collect(&job(), later()), Ok(vec![]));
    assert_eq!(restored(&bench.store, &first, 0, FileKind::Disk), Ok(file_of(&[1, 2])));
}

#[test]
fn d2_a_pack_is_what_its_name_says_or_it_is_not_taken() {
    let bench = Bench::new();
    let own = origin(1, 1, 0, FileKind::Disk);
    bench.store.admit_part(&job(), 1, 1).unwrap();
    let good = packed(&[1, 2, 3]);
    for at in [0, 20, good.bytes.len() / 2, good.bytes.len() - 30, good.bytes.len() - 1] {
        let mut bad = good.clone();
        bad.bytes[at] ^= 1;
        assert!(matches!(put_pack(&bench.store, own, &bad, now()), Err(RepositoryError::Damaged(_))), "{at}");
    }
    // all is in order but the name of a block: another member would take it for that block
    let mut builder = Builder::new(BLOCK);
    builder.push(BlockName::of(&content(1)), &content(2)).unwrap();
    assert!(put_pack(&bench.store, own, &builder.finish().unwrap(), now()).is_err());
    assert_eq!(bench.packs(), []);
    put_pack(&bench.store, own, &good, now()).unwrap();
    // and a recipe asks no more of it than it has
    for place in [Place { pack: 0, slot: 3 }, Place { pack: 0, slot: 90 }] {
        let refused = put_recipe(&bench.store, own, &recipe(&[good.pack], &[Some(place)]), 1);
        assert!(matches!(refused, Err(RepositoryError::Refused(_))), "{refused:?}");
    }
}

#[test]
fn d2_packs_count_for_what_a_part_may_take() {
    let bench = Bench::new();
    let own = origin(1, 1, 0, FileKind::Disk);
    bench.store.admit_part(&job(), 1, 1).unwrap();
    let (first, second) = (packed(&[1]), packed(&[2]));
    let most = first.bytes.len() as u64 + 1000;
    let put = |made: &Packed| {
        let received = received(&bench.store, &made.bytes);
        bench.store.keep_pack(&job(), own, made.pack.name, &received, Most { part: most, job: u64::MAX }, now())
    };
    put(&first).unwrap();
    put(&first).unwrap();
    assert!(matches!(put(&second), Err(RepositoryError::TooLarge(_))));
    for (kind, member, room) in [(FileKind::Disk, 0, 1000), (FileKind::Memory, 0, 1000), (FileKind::Disk, 1, most)] {
        assert_eq!(bench.store.room_in_part(&job(), 1, (1, member, kind), most), Ok(room));
    }
}

#[test]
fn b1_nothing_comes_for_what_is_void_or_published() {
    let bench = Bench::new();
    store_generation(&bench.store, 1, &[1], now());
    let refused =
        |origin, n| matches!(put_pack(&bench.store, origin, &packed(&[n]), now()), Err(RepositoryError::Refused(_)));
    assert!(refused(origin(1, 1, 0, FileKind::Disk), 9));
    assert!(!refused(origin(1, 1, 0, FileKind::Disk), 1), "it is there");
    bench.store.fence(&job(), 2).unwrap();
    let late = origin(2, 1, 0, FileKind::Disk);
    assert!(refused(late, 9) && bench.store.find_blocks(&job(), late, &[], now()).is_err());
    bench.store.remove_job(&job(), now()).unwrap();
    assert!(refused(origin(3, 2, 0, FileKind::Disk), 9));
    assert_eq!(bench.store.root.list(&layout::job(&job()).unwrap()).unwrap(), ["record.json"]);
}

type Spoil<'a> = &'a dyn Fn(&mut Vec<u8>);

#[test]
fn an_index_that_is_lost_or_rotten_is_made_again() {
    let mut bench = Bench::new();
    store_generation(&bench.store, 1, &[1, 2, 3], now());
    let path = bench.at(layout::blocks(&job()).unwrap());
    let names = [BlockName::of(&content(2))];
    let spoil: [Spoil<'_>; 5] = [
        &|bytes| bytes.clear(),
        &|bytes| bytes.truncate(bytes.len() / 3),
        &|bytes| bytes.fill(7),
        &|bytes| bytes[..512].fill(0),
        &|bytes| bytes.iter_mut().skip(4096).step_by(97).for_each(|byte| *byte ^= 0x55),
    ];
    for (number, spoil) in spoil.iter().enumerate() {
        let Bench { directory, store } = bench;
        drop(store);
        let mut bytes = std::fs::read(&path).unwrap();
        spoil(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        bench = Bench { store: Bench::open(directory.path(), AllSteps), directory };
        let own = origin(2, 1, 0, FileKind::Disk);
        let found = bench.store.find_blocks(&job(), own, &names, now()).unwrap();
        assert!(found.places[0].is_some(), "after damage {number}");
    }
    bench = bench.again();
    std::fs::remove_file(&path).unwrap();
    let made = store_generation(&bench.store, 2, &[1, 2, 3], now());
    assert_eq!(made.members[0].files.iter().map(|file| file.packed).sum::<u64>(), 0);
}

#[test]
fn whole_files_and_recipes_stand_side_by_side() {
    let bench = Bench::new();
    let mut made = Manifest { version: 1, ..manifest(1) };
    made.members.truncate(1);
    for file in &mut made.members[0].files {
        let received = received(&bench.store, file.kind.to_string().as_bytes());
        bench.store.admit_part(&job(), 1, 1).unwrap();
        *file = PartFile { stored: received.length, digest: received.digest, ..file.clone() };
        bench.store.keep_file(&job(), 1, (1, 0), file, &received.staged, u64::MAX).unwrap();
    }
    bench.store.publish(&made, now()).unwrap();
    // as it was written before there were recipes
    let path = bench.at(layout::generation(&job(), 1).unwrap().join(MANIFEST));
    let text = std::fs::read_to_string(&path).unwrap();
    let old: Vec<&str> =
        text.lines().filter(|line| !line.contains("\"form\"") && !line.contains("\"packed\"")).collect();
    assert!(old.len() < text.lines().count());
    std::fs::write(&path, old.join("\n")).unwrap();
    let read = bench.store.manifest(&job(), 1).unwrap();
    assert_eq!(read, made);
    let digest = &read.members[0].files[0].digest;
    let opened = bench.store.open_file(&job(), 1, 0, FileKind::Memory, digest).unwrap();
    assert_eq!(std::io::read_to_string(opened).unwrap(), "memory");
    let next = store_generation(&bench.store, 2, &[1, 2], now());
    assert_eq!(restored(&bench.store, &next, 0, FileKind::Disk), Ok(file_of(&[1, 2])));
    assert_eq!((bench.verify(), bench.store.collect(&job(), later())), (vec![], Ok(vec![])));
    // bytes of one form are never taken for the other
    let recipe = received(&bench.store, b"memory");
    let file = PartFile { form: FileForm::Recipe, ..read.members[0].files[0].clone() };
    assert!(bench.store.keep_file(&job(), 1, (1, 0), &file, &recipe.staged, u64::MAX).is_err());
}

#[test]
fn b7_one_bad_frame_takes_no_generation_that_does_not_need_it() {
    let bench = Bench::new();
    // one pack of two frames
    let first = store_generation(&bench.store, 1, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8], now());
    let second = store_generation(&bench.store, 2, &[0, 5, 6, 7], now());
    let [name] = bench.packs()[..] else { panic!("{:?}", bench.packs()) };
    let pack = packed(&[1, 2, 3, 4, 5, 6, 7, 8]).pack;
    assert_eq!(pack.name, name);
    bench.spoil(name);
    assert_eq!(bench.store.doubt_pack(&job(), name), Ok(true));
    assert_eq!(restored(&bench.store, &second, 0, FileKind::Disk), Ok(file_of(&[0, 5, 6, 7])));
    assert!(restored(&bench.store, &first, 0, FileKind::Disk).is_err());
    assert_eq!(bench.store.doubt_pack(&job(), name), Ok(true), "it stays aside");
    // nothing new relies on it
    let own = origin(3, 1, 0, FileKind::Disk);
    bench.store.admit_part(&job(), 3, 1).unwrap();
    let names = [BlockName::of(&content(5))];
    assert_eq!(bench.store.find_blocks(&job(), own, &names, now()).unwrap().places, [None]);
    let refused = put_recipe(&bench.store, own, &recipe(&[pack], &[Some(Place { pack: 0, slot: 4 })]), 1);
    assert!(matches!(refused, Err(RepositoryError::NotFound(_))), "{refused:?}");
    assert!(matches!(bench.store.has_pack(&job(), &pack), Ok(false)));
    // and a sweep leaves it to those that need it
    assert_eq!(bench.store.collect(&job(), later()), Ok(vec![]));
    assert_eq!(restored(&bench.store, &second, 0, FileKind::Disk), Ok(file_of(&[0, 5, 6, 7])));
}

#[test]
fn b7_a_pack_that_was_set_aside_and_reads_right_is_put_back() {
    let bench = Bench::new();
    let first = store_generation(&bench.store, 1, &[1], now());
    let name = bench.packs()[0];
    bench.spoil(name);
    assert_eq!(bench.store.doubt_pack(&job(), name), Ok(true));
    let aside = bench.at(damaged_pack(&job(), name).unwrap());
    std::fs::write(&aside, packed(&[1]).bytes).unwrap();
    assert_eq!(bench.store.doubt_pack(&job(), name), Ok(false));
    assert!(!aside.exists());
    let names = [BlockName::of(&content(1))];
    let found = bench.store.find_blocks(&job(), origin(2, 1, 0, FileKind::Disk), &names, now()).unwrap();
    assert!(found.places[0].is_some());
    assert_eq!((restored(&bench.store, &first, 0, FileKind::Disk), bench.verify()), (Ok(file_of(&[1])), vec![]));
}

#[test]
fn b7_a_pack_that_was_read_at_a_time_to_come_is_read_again() {
    let bench = Bench::new();
    let ahead = now() + SignedDuration::from_hours(24 * 365);
    let made = send(&bench.store, 1, &[1, 2], ahead).unwrap();
    bench.spoil(bench.packs()[0]);
    assert!(matches!(bench.store.publish(&made, now()), Err(RepositoryError::Damaged(_))));
}

#[test]
fn d3_a_small_recipe_that_unpacks_to_very_much_is_refused_before_it_is_parsed() {
    let bench = Bench::new();
    bench.store.admit_part(&job(), 1, 1).unwrap();
    // in order but for its size: block after block of zeros, each a run of its own
    let count = u32::try_from(crate::store::recipe::MAX_BYTES / 2 + 1).unwrap();
    let content = Content::File { length: u64::from(count) * BLOCK as u64 };
    let head = (1u8, u32::try_from(BLOCK).unwrap(), Vec::<PackRef>::new(), content, count);
    let mut many = postcard::to_stdvec(&head).unwrap();
    many.extend([1, 0].repeat(count as usize));
    let small = zstd::bulk::compress(&many, 1).unwrap();
    assert!(small.len() < 1 << 16);
    let refused = put_recipe(&bench.store, origin(1, 1, 0, FileKind::Disk), &small, 1);
    assert!(matches!(&refused, Err(RepositoryError::Refused(why)) if why.contains("more than")), "{refused:?}");
}

#[test]
fn b7_what_has_rotted_is_sent_again_while_its_sender_still_has_it() {
    let bench = Bench::new();
    let first = store_generation(&bench.store, 1, &[1, 2, 3, 4], now());
    for pack in bench.packs() {
        bench.spoil(pack);
    }
    let day = now() + SignedDuration::from_hours(25);
    let own = origin(2, 1, 0, FileKind::Disk);
    let refused = put_file(&bench.store, own, &[1, 2, 3, 4], day);
    assert!(matches!(&refused, Err(RepositoryError::NotFound(what)) if what.contains("pack")), "{refused:?}");
    assert_eq!(bench.packs(), [], "all of them are set aside at once");
    // the next try sends them, and nothing is left for the publication to find
    let second = store_generation(&bench.store, 2, &[1, 2, 3, 4], day);
    for made in [&first, &second] {
        assert_eq!(restored(&bench.store, made, 0, FileKind::Disk), Ok(file_of(&[1, 2, 3, 4])));
    }
}
