//! The cache, with other agents and other users at it.

use tokio_util::sync::CancellationToken;

use super::{super::testing::FileStore, *};

fn names(directory: &Path) -> usize {
    let names = std::fs::read_dir(directory).unwrap().flatten();
    names.filter(|entry| entry.file_name() != LOCK).count()
}

const ALL: u64 = u64::MAX;

fn alone() -> Chain {
    Chain::of(&super::super::testing::config(Path::new("/nowhere")), &CancellationToken::new())
}

#[tokio::test]
async fn a_damaged_image_of_the_cache_is_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::new(&dir.path().join("store"));
    let digest = store.add_image(b"an image");
    let directory = dir.path().join("cache");
    let cache = Cache { directory: &directory, limit: ALL };
    let first = image(&store, &alone(), &cache, &digest, &|_| ()).await.unwrap();
    std::fs::write(&first.path, "damaged").unwrap();
    let again = image(&store, &alone(), &cache, &digest, &|_| ()).await.unwrap();
    assert_eq!(std::fs::read(again.path).unwrap(), b"an image");
    std::fs::remove_dir_all(dir.path().join("store")).unwrap();
    assert!(image(&store, &alone(), &cache, &digest, &|_| ()).await.is_ok(), "a right one needs no repository");
    assert_eq!(names(&directory), 1);
}

#[tokio::test]
async fn the_longest_unused_goes_first_and_nothing_that_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::new(&dir.path().join("store"));
    let directory = dir.path().join("cache");
    let cache = Cache { directory: &directory, limit: 25 };
    let digests: Vec<String> = (0..4_u8).map(|n| store.add_image(format!("{n} ten bytes").as_bytes())).collect();
    let get = async |n: usize| image(&store, &alone(), &cache, &digests[n], &|_| ()).await.unwrap();
    let used = get(0).await;
    drop(get(1).await);
    drop(get(2).await);
    let there = |n: usize| place(&directory, &digests[n]).unwrap().exists();
    // the first is older, but used
    assert_eq!([there(0), there(1), there(2)], [true, false, true]);
    std::fs::write(directory.join(".left"), "by a crash").unwrap();
    let old = SystemTime::now() - 2 * ABANDONED;
    File::options().write(true).open(directory.join(".left")).unwrap().set_modified(old).unwrap();
    drop(used);
    drop(get(3).await);
    assert_eq!([there(0), there(2), there(3)], [false, true, true]);
    assert_eq!(names(&directory), 2);
}

#[tokio::test]
async fn what_an_interrupted_fetch_has_left_stays_until_its_room_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let (left, going) = (dir.path().join(format!("{PARTIAL}aa")), dir.path().join(format!("{PARTIAL}bb")));
    for path in [&left, &going] {
        std::fs::write(path, "ten bytes.").unwrap();
    }
    let fetching = File::open(&going).unwrap();
    flock(&fetching, FlockOperation::LockExclusive).unwrap();
    clear(dir.path(), 20).await;
    assert!(left.exists() && going.exists());
    clear(dir.path(), 0).await;
    assert!(!left.exists() && going.exists(), "one that comes is somebody's");
}

#[tokio::test]
async fn names_that_are_no_digests_reach_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::new(dir.path());
    for digest in ["", "sha256:", "sha256:../../etc/passwd", "sha512:00", &format!("sha256:{}", "G".repeat(64))] {
        let error =
            image(&store, &alone(), &Cache { directory: dir.path(), limit: ALL }, digest, &|_| ()).await.unwrap_err();
        assert!(matches!(error, RepositoryError::NotFound(_)), "{digest}");
    }
}

#[tokio::test]
async fn a_file_that_is_held_keeps_its_name_whoever_finds_it_damaged_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::new(&dir.path().join("store"));
    let digest = store.add_image(b"an image");
    let directory = dir.path().join("cache");
    let cache = Cache { directory: &directory, limit: ALL };
    drop(image(&store, &alone(), &cache, &digest, &|_| ()).await.unwrap());
    let path = place(&directory, &digest).unwrap();
    std::fs::write(&path, "damaged").unwrap();
    // two find it damaged; the slower one has looked at the damaged file
    let slower = hold(&path).await.unwrap().unwrap();
    let faster = image(&store, &alone(), &cache, &digest, &|_| ()).await.unwrap();
    assert!(!is(&slower, &digest).await.unwrap());
    forget(slower.path, slower.lock).await.unwrap();
    assert!(is_still(&faster.lock, &path), "what is held was taken away");
    // and the slower one fetches it, too
    assert!(!fetch(&store, &alone(), &directory, &digest, &path, &|_| ()).await.unwrap());
    assert!(is_still(&faster.lock, &path), "what is held was replaced");
    assert_eq!(names(&directory), 1);
    let second = image(&store, &alone(), &cache, &digest, &|_| ()).await.unwrap();
    clear(&directory, 0).await;
    assert!(path.exists());
    drop((faster, second));
    clear(&directory, 0).await;
    assert_eq!(names(&directory), 0);
}

#[tokio::test]
async fn a5_others_on_the_node_hold_no_agent_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::new(&dir.path().join("store"));
    let digest = store.add_image(b"an image");
    let directory = dir.path().join("cache");
    let cache = Cache { directory: &directory, limit: ALL };
    let first = image(&store, &alone(), &cache, &digest, &|_| ()).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&first.path)), (0o710, 0o640));
    let path = first.path.clone();
    drop(first);
    // somebody had it open from before
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let stranger = File::open(&path).unwrap();
    flock(&stranger, FlockOperation::LockExclusive).unwrap();
    let again = tokio::time::timeout(4 * LOCK_LIMIT, image(&store, &alone(), &cache, &digest, &|_| ())).await;
    let again = again.expect("it waits for ever").unwrap();
    assert_eq!((std::fs::read(&again.path).unwrap(), mode(&path)), (b"an image".to_vec(), 0o640));
}

#[ignore = "mounts a small disk, as root: e2e/test --e2e"]
#[tokio::test]
async fn a_full_disk_makes_room_of_what_nobody_uses() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::new(&dir.path().join("store"));
    let small = super::super::testing::Small::mount(dir.path().join("cache"), "1m");
    let cache = Cache { directory: &small.0, limit: ALL };
    let digests: Vec<String> = (0..3_u8).map(|n| store.add_image(&vec![n; 450 << 10])).collect();
    let used = image(&store, &alone(), &cache, &digests[0], &|_| ()).await.unwrap();
    drop(image(&store, &alone(), &cache, &digests[1], &|_| ()).await.unwrap());
    let third = image(&store, &alone(), &cache, &digests[2], &|_| ()).await.unwrap();
    let there: Vec<bool> = digests.iter().map(|digest| place(&small.0, digest).unwrap().exists()).collect();
    assert_eq!(there, [true, false, true]);
    let fourth = store.add_image(&vec![9; 450 << 10]);
    let error = image(&store, &alone(), &cache, &fourth, &|_| ()).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Local { full: true, .. }), "{error:?}");
    drop((used, third));
}
