//! What only the real server and client can show: rights by certificate, limits, broken connections.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use sha2::Digest as _;

use super::{
    ByteStore, KeptPart, PartLedger, Repository, RepositoryError, Sending,
    contract::{Bench, job},
    http::answered,
    wire,
};
use crate::{
    names::Identity,
    store::{
        images::ImageReview,
        manifest::{FileForm, FileKind, Manifest, PartFile, tests::manifest},
        quota::Share,
        ticket::Ticket,
    },
};

fn is_refused<T: std::fmt::Debug>(result: &Result<T, RepositoryError>) -> bool {
    matches!(result, Err(RepositoryError::Refused(_)))
}

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

#[tokio::test]
async fn d1_an_agent_of_another_job_sees_and_changes_nothing() {
    let bench = Bench::real().await;
    let made = bench.sent(1, 1).await.unwrap();
    bench.kget.publish(&made).await.unwrap();
    let stranger = bench.client(&Identity::Agent { job: "ffffffff".into(), member: 0, incarnation: 1 });
    let to = bench.directory.path().join("stolen");
    let file = &made.members[0].files[0];
    assert!(is_refused(&stranger.manifest(&job(), 1).await));
    assert!(is_refused(&stranger.get_part(&job(), 1, 0, file, &to, &|_| {}).await));
    assert!(is_refused(&stranger.content(&job()).await));
    assert!(is_refused(&stranger.put_output(&job(), 0, "x", futures::stream::empty().boxed()).await));
    // even with the ticket of the right agent
    let path = bench.file("part", b"poison");
    let ticket = bench.ticket(2, 0, 1);
    assert!(is_refused(&stranger.put_part(&ticket, &job(), 2, 0, FileKind::Memory, &path, &|_| {}).await));
    assert!(!to.exists());
}

#[tokio::test]
async fn what_the_own_machine_cannot_read_or_write_is_no_fault_of_the_repositorys() {
    let bench = Bench::real().await;
    let made = bench.sent(1, 1).await.unwrap();
    bench.kget.publish(&made).await.unwrap();
    let (agent, ticket) = (bench.agent(0, 1), bench.ticket(2, 0, 1));
    let local = |error: RepositoryError| assert!(matches!(error, RepositoryError::Local { .. }), "{error:?}");
    // one that opens, and fails as it is read
    let unreadable = bench.directory.path();
    local(agent.put_part(&ticket, &job(), 2, 0, FileKind::Memory, unreadable, &|_| {}).await.unwrap_err());
    let missing = bench.directory.path().join("missing");
    local(agent.put_part(&ticket, &job(), 2, 0, FileKind::Memory, &missing, &|_| {}).await.unwrap_err());
    let nowhere = missing.join("file");
    local(agent.get_part(&job(), 1, 0, &made.members[0].files[0], &nowhere, &|_| {}).await.unwrap_err());
    let full = RepositoryError::local("x", &std::io::ErrorKind::StorageFull.into());
    assert!(matches!(full, RepositoryError::Local { full: true, .. }));
}

#[tokio::test]
async fn a1_an_agent_learns_that_its_incarnation_is_over() {
    let bench = Bench::real().await;
    let made = bench.sent(1, 1).await.unwrap();
    bench.kget.publish(&made).await.unwrap();
    let agent = |incarnation| bench.client(&Identity::Agent { job: job(), member: 0, incarnation });
    assert_eq!(agent(1).manifest(&job(), 1).await, Ok(made.clone()));
    bench.operator.fence(&job(), 2).await.unwrap();
    assert!(is_refused(&agent(1).manifest(&job(), 1).await));
    assert_eq!(agent(2).manifest(&job(), 1).await, Ok(made));
}

#[tokio::test]
async fn d1_everybody_does_only_what_is_theirs() {
    let bench = Bench::real().await;
    let made = bench.sent(1, 1).await.unwrap();
    let agent = bench.client(&Identity::Agent { job: job(), member: 0, incarnation: 1 });
    let kget = bench.client(&Identity::Kget);
    let importer = bench.client(&Identity::Importer);
    let review = ImageReview { named: [].into(), now: jiff::Timestamp::now(), grace: 0 };
    assert!(is_refused(&kget.review_images(&review).await));
    for nobody in [&agent, &importer] {
        assert!(is_refused(&nobody.publish(&made).await));
        assert!(is_refused(&nobody.fence(&job(), 9).await));
        assert!(is_refused(&nobody.retire(&job(), 1).await));
        assert!(is_refused(&nobody.review_images(&review).await));
        assert!(is_refused(&nobody.kept_parts(&job(), 1).await));
    }
    assert!(is_refused(&agent.give_up(&job(), 2).await) && is_refused(&kget.give_up(&job(), 2).await));
    assert!(is_refused(&kget.retire(&job(), 1).await) && is_refused(&kget.remove_job(&job()).await));
    assert!(is_refused(&bench.operator.publish(&made).await));
    let image = bench.file("image", b"x");
    // an importer's certificate lies in the namespace of the claim it reads
    let name = crate::store::layout::image_name(&sha2::Sha256::digest(b"x"));
    bench.importer.put_image(&name, &image).await.unwrap();
    assert!(is_refused(&importer.get_image(&name, &bench.directory.path().join("stolen"), &|_| {}).await));
    assert!(is_refused(&importer.disk_record(&name).await));
    assert!(is_refused(&agent.put_image(&format!("sha256:{}", "0".repeat(64)), &image).await));
}

#[tokio::test]
async fn a_damaged_image_is_put_aside_and_replaced() {
    let bench = Bench::real().await;
    let (path, content) = (bench.file("image", &noise(700_000)), noise(700_000));
    let name = crate::store::layout::image_name(&sha2::Sha256::digest(&content));
    bench.importer.put_image(&name, &path).await.unwrap();
    let stored = bench.directory.path().join("root").join(crate::store::layout::image(&name).unwrap());
    let mut spoilt = content.clone();
    spoilt[600_000] ^= 1;
    std::fs::write(&stored, spoilt).unwrap();
    let (agent, to) = (bench.agent(0, 1), bench.directory.path().join("fetched"));
    let fetched = agent.get_image(&name, &to, &|_| {}).await;
    assert!(matches!(fetched, Err(RepositoryError::Damaged(_))), "{fetched:?}");
    for _ in 0..3000 {
        if bench.operator.image(&name).await == Ok(None) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(bench.operator.image(&name).await, Ok(None), "it is imported again");
    let aside = stored.with_extension("damaged");
    assert!(aside.exists());
    bench.importer.put_image(&name, &path).await.unwrap();
    agent.get_image(&name, &to, &|_| {}).await.unwrap();
    assert_eq!(std::fs::read(to).unwrap(), content);
    assert!(stored.exists() && !aside.exists());
}

#[tokio::test]
async fn d2_what_was_received_is_what_is_named() {
    let bench = Bench::real().await;
    let made = bench.sent(1, 1).await.unwrap();
    // an agent may claim any digest to kget; the repository has hashed what it received
    let mut claimed = made.clone();
    claimed.members[0].files[0].digest = "f".repeat(64);
    assert!(matches!(bench.kget.publish(&claimed).await, Err(RepositoryError::NotFound(_))));
    bench.kget.publish(&made).await.unwrap();
}

#[tokio::test]
async fn a_file_beyond_the_limit_is_refused_with_a_reason_the_sender_sees() {
    let bench = Bench::real().await;
    let path = bench.file("part", &noise(12 << 20));
    let ticket = bench.ticket(1, 0, 1);
    let sent = bench.agent(0, 1).put_part(&ticket, &job(), 1, 0, FileKind::Memory, &path, &|_| {}).await;
    assert!(matches!(sent, Err(RepositoryError::TooLarge(_))), "{sent:?}");
    let root = bench.directory.path().join("root");
    assert_eq!(std::fs::read_dir(root.join("staging")).unwrap().count(), 0);
    assert!(!root.join(format!("jobs/{}/generations", job())).exists());
}

async fn put(bench: &Bench, ticket: &str, kind: FileKind, content: &[u8]) -> Result<PartFile, RepositoryError> {
    let path = bench.file("part", content);
    bench.agent(0, 1).put_part(ticket, &job(), 1, 0, kind, &path, &|_| {}).await
}

#[tokio::test]
async fn c2_a_part_has_no_more_bytes_than_its_ticket_says() {
    let bench = Bench::real().await;
    let expires = jiff::Timestamp::now() + std::time::Duration::from_secs(60);
    let ticket = Ticket {
        job: job(),
        generation: 1,
        member: 0,
        incarnation: 1,
        expires,
        most: Some(1 << 20),
        quota: None,
        bearer: None,
    };
    let ticket = bench.key.as_ref().unwrap().sign(&ticket);
    let all = noise(1600 << 10);
    let (memory, disk) = all.split_at(704 << 10);
    put(&bench, &ticket, FileKind::Memory, memory).await.unwrap();
    // each alone would do, both are too much
    let beyond = put(&bench, &ticket, FileKind::Disk, disk).await;
    assert!(matches!(beyond, Err(RepositoryError::TooLarge(_))), "{beyond:?}");
    put(&bench, &ticket, FileKind::Disk, &disk[..192 << 10]).await.unwrap();
    // what is there already takes no room
    put(&bench, &ticket, FileKind::Output, &[memory, &disk[..192 << 10]].concat()).await.unwrap();
}

#[tokio::test]
async fn d2_a_part_has_one_file_of_a_kind_and_none_after_it_was_noted() {
    let bench = Bench::real().await;
    let ticket = bench.ticket(1, 0, 1);
    let mut part = manifest(1).members[0].clone();
    let disk = put(&bench, &ticket, FileKind::Disk, b"disk").await.unwrap();
    for round in 0..3 {
        part.files = vec![put(&bench, &ticket, FileKind::Memory, &[round; 9]).await.unwrap(), disk.clone()];
    }
    let directory = bench.directory.path().join(format!("root/jobs/{}/generations/1", job()));
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 2);
    bench.ledger.keep_part(&job(), 1, &KeptPart { incarnation: 1, nonce: "n1".into(), part }).await.unwrap();
    put(&bench, &ticket, FileKind::Memory, &[2; 9]).await.unwrap();
    assert!(is_refused(&put(&bench, &ticket, FileKind::Memory, b"other").await));
    assert!(is_refused(&put(&bench, &ticket, FileKind::Output, b"more").await));
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 3);
}

async fn put_output(bench: &Bench, path: &str, bytes: usize) -> Result<(), RepositoryError> {
    let body = futures::stream::iter([Ok(Bytes::from(noise(bytes)))]).boxed();
    bench.agent(0, 1).put_output(&job(), 0, path, body).await
}

#[tokio::test]
async fn c2_the_results_of_a_job_are_bounded_in_bytes_and_in_number() {
    let bench = Bench::real().await;
    let most = 1 << 16;
    put_output(&bench, "a", most).await.unwrap();
    let large = put_output(&bench, "b", most + 1).await;
    assert!(matches!(large, Err(RepositoryError::TooLarge(_))), "{large:?}");
    put_output(&bench, "b", most - 100).await.unwrap();
    let together = put_output(&bench, "c", 101).await;
    assert!(matches!(together, Err(RepositoryError::TooLarge(_))), "{together:?}");
    // what has its place is replaced, not added
    put_output(&bench, "b", most - 50).await.unwrap();
    for name in ["c", "d"] {
        put_output(&bench, name, 10).await.unwrap();
    }
    let many = put_output(&bench, "e", 1).await;
    assert!(matches!(many, Err(RepositoryError::TooLarge(_))), "{many:?}");
}

#[tokio::test]
async fn c2_a_disk_that_is_nearly_full_takes_nothing_but_still_fences() {
    let bench = Bench::with_free(u64::MAX).await;
    let full = |result: &Result<(), RepositoryError>| matches!(result, Err(RepositoryError::Full(_)));
    assert!(full(&put(&bench, &bench.ticket(1, 0, 1), FileKind::Memory, b"bytes").await.map(drop)));
    assert!(full(&put_output(&bench, "a", 1).await));
    let digest = crate::store::layout::image_name(&sha2::Sha256::digest(b"an image"));
    assert!(full(&bench.importer.put_image(&digest, &bench.file("image", b"an image")).await));
    bench.operator.fence(&job(), 2).await.unwrap();
}

#[tokio::test]
async fn a_sender_that_breaks_off_leaves_nothing() {
    let bench = Bench::real().await;
    let chunks = [Ok(Bytes::from(noise(1000))), Err(std::io::Error::other("the agent died"))];
    let sent = bench.agent(0, 1).put_output(&job(), 0, "x", futures::stream::iter(chunks).boxed()).await;
    assert!(matches!(sent, Err(RepositoryError::Unreachable(_))), "{sent:?}");
    assert_eq!(bench.operator.outputs(&job()).await, Ok(vec![]));
}

#[tokio::test]
async fn progress_is_told_and_files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::real().await;
    let content = [noise(2 << 20), vec![0; 30 << 20]].concat();
    let path = bench.file("part", &content);
    let told = AtomicU64::new(0);
    let ticket = bench.ticket(1, 0, 1);
    let note = |how_far| match how_far {
        Sending::Bytes(done) => told.store(done, Ordering::Relaxed),
        Sending::ReadingBack(packs) => panic!("{packs} are read again"),
    };
    let mut made = Manifest { incarnation: 1, ..manifest(1) };
    for part in &mut made.members {
        let member = part.index;
        for file in &mut part.files {
            let ticket = if member == 0 { ticket.clone() } else { bench.ticket(1, member, 1) };
            let store = bench.agent(member, 1);
            *file = store.put_part(&ticket, &job(), 1, member, file.kind, &path, &note).await.unwrap();
        }
    }
    assert_eq!(told.load(Ordering::Relaxed), content.len() as u64);
    let file = &made.members[0].files[0];
    assert!(file.size == content.len() as u64 && file.stored < 3 << 20, "zeros must not travel: {file:?}");
    bench.kget.publish(&made).await.unwrap();
    let to = bench.directory.path().join("memory");
    told.store(0, Ordering::Relaxed);
    bench.agent(0, 2).get_part(&job(), 1, 0, file, &to, &|done| told.store(done, Ordering::Relaxed)).await.unwrap();
    assert_eq!(told.load(Ordering::Relaxed), content.len() as u64);
    assert_eq!(std::fs::read(&to).unwrap(), content);
    assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn b7_a_damaged_file_is_not_restored_from() {
    let bench = Bench::real().await;
    let made = bench.sent(1, 1).await.unwrap();
    bench.kget.publish(&made).await.unwrap();
    let generation = bench.directory.path().join(format!("root/jobs/{}/generations/1", job()));
    for entry in std::fs::read_dir(generation).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains(".memory.") {
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let to = bench.directory.path().join("memory");
    let file = &made.members[0].files[0];
    let fetched = bench.agent(0, 2).get_part(&job(), 1, 0, file, &to, &|_| {}).await;
    assert!(matches!(fetched, Err(RepositoryError::Damaged(_))), "{fetched:?}");
    assert!(std::fs::read_dir(bench.directory.path()).unwrap().all(|e| !e.unwrap().path().ends_with("memory.part")));
    assert!(!to.exists());
}

/// Spoils the middle of every file in a directory of the job.
fn spoil(bench: &Bench, directory: &str) -> usize {
    let directory = bench.directory.path().join(format!("root/jobs/{}/{directory}", job()));
    let files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    for path in &files {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
    files.len()
}

#[tokio::test]
async fn b7_a_pack_that_has_rotted_is_noticed_and_sent_again() {
    let bench = Bench::real().await;
    let to = bench.directory.path().join("memory");
    let content = noise(300 << 10);
    let send = async |generation: u32| {
        let mut made = Manifest { incarnation: 1, ..manifest(generation) };
        for part in &mut made.members {
            let ticket = bench.ticket(generation, part.index, 1);
            for file in &mut part.files {
                let path = bench.file("part", &content);
                let store = bench.agent(part.index, 1);
                *file =
                    store.put_part(&ticket, &job(), generation, part.index, file.kind, &path, &|_| {}).await.unwrap();
            }
        }
        bench.kget.publish(&made).await.unwrap();
        made
    };
    let packed =
        |made: &Manifest| made.members.iter().flat_map(|part| &part.files).map(|file| file.packed).sum::<u64>();
    let first = send(1).await;
    assert!((300 << 10..310 << 10).contains(&packed(&first)), "once for all members: {}", packed(&first));
    let second = send(2).await;
    assert_eq!(packed(&second), 0, "nothing is sent again");
    let fetch = async |made: &Manifest| {
        let file = &made.members[0].files[0];
        bench.agent(0, 2).get_part(&job(), made.generation, 0, file, &to, &|_| {}).await
    };
    fetch(&second).await.unwrap();
    std::fs::remove_file(&to).unwrap();
    assert!(spoil(&bench, "packs") > 0);
    let fetched = fetch(&second).await;
    assert!(matches!(fetched, Err(RepositoryError::Damaged(_))), "{fetched:?}");
    assert!(!to.exists());
    // the doubt has made the repository read it, and nothing refers to it any more
    let third = send(3).await;
    assert_eq!(packed(&third), packed(&first));
    fetch(&third).await.unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), content);
}

#[tokio::test]
async fn b10_what_is_gone_when_the_recipe_comes_is_sent_again_without_anybody_asking() {
    let bench = Bench::real().await;
    let content = noise(500 << 10);
    let first = put(&bench, &bench.ticket(1, 0, 1), FileKind::Disk, &content).await.unwrap();
    let packs = bench.directory.path().join(format!("root/jobs/{}/packs", job()));
    // a pack is as long as it was, so its blocks are promised; but it does not say any more what is in it
    let [pack] = &std::fs::read_dir(&packs).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()[..] else {
        panic!("one pack")
    };
    let mut bytes = std::fs::read(pack).unwrap();
    let at = bytes.len() - 20;
    bytes[at] ^= 1;
    std::fs::write(pack, bytes).unwrap();
    let (path, ticket) = (bench.file("part", &content), bench.ticket(2, 0, 1));
    let second = bench.agent(0, 1).put_part(&ticket, &job(), 2, 0, FileKind::Disk, &path, &|_| {}).await.unwrap();
    assert!(first.packed > 0 && second.packed == first.packed, "{first:?} {second:?}");
    assert!(pack.exists() && !pack.with_extension("damaged").exists());
}

/// As the version before wrote it: files as they are, and nothing said of their form.
#[tokio::test]
async fn a_generation_of_the_version_before_is_restored() {
    let bench = Bench::real().await;
    let text = include_str!("../../store/version1/manifest.json");
    let made = Manifest::parse(text.as_bytes()).unwrap();
    let generation = bench.directory.path().join(format!("root/jobs/{}/generations/4", job()));
    std::fs::create_dir_all(&generation).unwrap();
    std::fs::write(generation.join("manifest.json"), text).unwrap();
    let stored: [&[u8]; 3] = [
        include_bytes!("../../store/version1/memory.zst"),
        include_bytes!("../../store/version1/disk.zst"),
        include_bytes!("../../store/version1/output.zst"),
    ];
    for (file, bytes) in made.members[0].files.iter().zip(stored) {
        let name = format!("i2.m0.{}.{}.{}", file.kind, file.size, file.digest);
        std::fs::write(generation.join(name), bytes).unwrap();
    }
    bench.operator.fence(&job(), 2).await.unwrap();
    let content = bench.operator.content(&job()).await.unwrap();
    assert_eq!((content.generations.len(), content.damaged), (1, vec![]));
    let to = bench.directory.path().join("fetched");
    for (file, bytes) in made.members[0].files.iter().zip(stored) {
        bench.agent(0, 2).get_part(&job(), 4, 0, file, &to, &|_| {}).await.unwrap();
        assert!(std::fs::read(&to).unwrap() == zstd::stream::decode_all(bytes).unwrap(), "{}", file.kind);
    }
    // and what comes after it is stored beside it
    let path = bench.file("part", &noise(100_000));
    let ticket = bench.ticket(5, 0, 2);
    let next = bench.agent(0, 2).put_part(&ticket, &job(), 5, 0, FileKind::Disk, &path, &|_| {}).await.unwrap();
    assert_eq!(next.form, crate::store::manifest::FileForm::Recipe);
}

#[tokio::test]
async fn the_operator_reads_results() {
    let bench = Bench::real().await;
    let body = futures::stream::iter([Ok(Bytes::from("text"))]).boxed();
    bench.agent(1, 1).put_output(&job(), 1, "output", body).await.unwrap();
    let operator = bench.client(&Identity::Operator);
    let read = operator.get_output(&job(), 1, "output").await.unwrap();
    assert_eq!(read.try_collect::<Vec<_>>().await.unwrap().concat(), b"text");
    assert!(matches!(operator.get_output(&job(), 1, "other").await, Err(RepositoryError::NotFound(_))));
}

#[tokio::test]
async fn a_server_that_is_away_is_unreachable() {
    let mut bench = Bench::real().await;
    let (authority, _) = bench.clients.clone().unwrap();
    // nothing listens on the discard port of loopback
    bench.clients = Some((authority, "127.0.0.1:9".into()));
    let away = bench.client(&Identity::Operator);
    assert!(matches!(away.content(&job()).await, Err(RepositoryError::Unreachable(_))));
}

#[tokio::test]
async fn a_repository_of_the_first_version_gets_whole_files_and_gives_them_back() {
    let bench = Bench::of_the_first_version().await;
    let made = bench.sent(1, 1).await.unwrap();
    bench.kget.publish(&made).await.unwrap();
    let ticket = bench.ticket(2, 0, 1);
    let content = noise(700_000);
    let told = std::sync::Mutex::new(Vec::new());
    let (path, to) = (bench.file("part", &content), bench.directory.path().join("back"));
    let note = |how_far| told.lock().unwrap().push(how_far);
    let file = bench.agent(0, 1).put_part(&ticket, &job(), 2, 0, FileKind::Disk, &path, &note).await.unwrap();
    assert_eq!((file.form, file.size), (FileForm::Whole, 700_000));
    assert_eq!(told.lock().unwrap().last(), Some(&Sending::Bytes(700_000)));
    let disk = made.members[0].files.iter().find(|file| file.kind == FileKind::Disk).unwrap();
    bench.agent(0, 1).get_part(&job(), 1, 0, disk, &to, &|_| {}).await.unwrap();
    assert_eq!(std::fs::metadata(&to).unwrap().len(), disk.size);
    // one that is cut off while it is read is no file
    let missing = bench.directory.path().join("missing");
    let error = bench.agent(0, 1).put_part(&ticket, &job(), 2, 0, FileKind::Memory, &missing, &|_| {}).await;
    assert!(matches!(error, Err(RepositoryError::Local { .. })), "{error:?}");
}

#[tokio::test]
async fn a_request_of_a_later_version_that_is_not_understood_is_told_so() {
    let bench = Bench::real().await;
    let agent = bench.client(&Identity::Agent { job: job(), member: 0, incarnation: 1 });
    let path = format!("{}?size=1&form=Folded", wire::file_path(&job(), 1, 0, FileKind::Disk));
    let ask = async |version: u32| {
        let headers = axum::http::HeaderMap::from_iter([(
            axum::http::HeaderName::from_static(wire::PROTOCOL),
            axum::http::HeaderValue::from(version),
        )]);
        answered(agent.request(reqwest::Method::PUT, &path).headers(headers).send().await).await.map(drop)
    };
    let newer = ask(wire::VERSION + 1).await;
    let says = format!("version {} of the protocol, and this repository speaks {}", wire::VERSION + 1, wire::VERSION);
    assert!(matches!(&newer, Err(RepositoryError::Unreachable(why)) if why.contains(&says)), "{newer:?}");
    assert!(is_refused(&ask(wire::VERSION).await));
}

#[tokio::test]
async fn c2_the_second_of_two_that_begin_at_once_is_let_in_when_the_quota_has_room_for_it() {
    let bench = Bench::real().await;
    let expires = jiff::Timestamp::now() + std::time::Duration::from_secs(60);
    let send = async |of: &str, limit: Option<u64>| {
        let of = crate::names::JobUid(of.to_owned());
        let quota = limit.map(|limit| Share { namespace: "alice".into(), limit, bytes: 700 << 10 });
        let ticket = Ticket {
            job: of.clone(),
            generation: 1,
            member: 0,
            incarnation: 1,
            expires,
            most: Some(1 << 20),
            quota,
            bearer: None,
        };
        let ticket = bench.key.as_ref().unwrap().sign(&ticket);
        let agent = bench.client(&Identity::Agent { job: of.clone(), member: 0, incarnation: 1 });
        let path = bench.file("part", &noise(1 << 10));
        agent.put_part(&ticket, &of, 1, 0, FileKind::Disk, &path, &|_| {}).await
    };
    send("first", Some(1 << 20)).await.unwrap();
    let refused = send("second", Some(1 << 20)).await;
    assert!(matches!(&refused, Err(RepositoryError::TooLarge(why)) if why.contains("namespace alice")), "{refused:?}");
    // what must not be lost says nothing of a quota
    send("third", None).await.unwrap();
    bench.operator.give_up(&"first".into(), 1).await.unwrap();
    send("second", Some(1 << 20)).await.unwrap();
}
