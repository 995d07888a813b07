//! The node's cache of images: files named by their digest, which is checked at each use.
//!
//! Agents of several jobs share it. Whoever uses a file holds a shared lock on it; only what nobody
//! holds is removed, the longest unused first, when all together are larger than the limit.

use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use crate::driver::repository::{ByteStore, RepositoryError};

/// A file on its way that is older was left by an agent that died.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// The cache of a node.
pub(super) struct Cache<'a> {
    /// Its directory.
    pub(super) directory: &'a Path,
    /// Most bytes of all files that nobody uses and those that somebody does.
    pub(super) limit: u64,
}

/// A file of the cache that stays as long as this does.
#[derive(Debug)]
pub(super) struct Cached {
    /// Where it is.
    pub(super) path: PathBuf,
    _lock: File,
}

/// Where an image lies in the cache; `None` for a digest that is none.
fn place(cache: &Path, digest: &str) -> Option<PathBuf> {
    let hex = digest.strip_prefix("sha256:")?;
    let valid = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    valid.then(|| cache.join(format!("sha256-{hex}")))
}

fn local(error: std::io::Error) -> RepositoryError {
    RepositoryError::local("the cache of images", &error)
}

/// The file of an image, fetched if the node has none that is right.
pub(super) async fn image(
    store: &dyn ByteStore,
    cache: &Cache<'_>,
    digest: &str,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Cached, RepositoryError> {
    let Some(path) = place(cache.directory, digest) else {
        return Err(RepositoryError::NotFound(format!("{digest:?} is not a digest")));
    };
    if let Some(cached) = hold(&path).map_err(local)? {
        if is(&path, digest).await.map_err(local)? {
            return Ok(cached);
        }
        tracing::warn!(path = %path.display(), "a cached image is damaged and is fetched again");
    }
    tokio::fs::create_dir_all(cache.directory).await.map_err(local)?;
    let new = cache.directory.join(format!(".{:032x}", rand::random::<u128>()));
    let fetched = fetch(store, digest, &new, &path, progress).await;
    if fetched.is_err() {
        // the store may not have made it
        let _ = tokio::fs::remove_file(&new).await;
    }
    fetched?;
    let held = hold(&path).map_err(local)?;
    let held = held.ok_or_else(|| RepositoryError::Unreachable(format!("{digest} was taken away at once")))?;
    let (directory, limit) = (cache.directory.to_owned(), cache.limit);
    let swept = tokio::task::spawn_blocking(move || sweep(&directory, limit)).await;
    if let Err(error) = swept.map_err(std::io::Error::other).and_then(|result| result) {
        tracing::warn!(%error, "the cache of images could not be cleared");
    }
    Ok(held)
}

/// Opens a file for use, if it is there: it is not removed while it is held, and counts as used now.
fn hold(path: &Path) -> std::io::Result<Option<Cached>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    flock(&file, FlockOperation::LockShared)?;
    if !is_still(&file, path) {
        return Ok(None);
    }
    file.set_modified(SystemTime::now())?;
    Ok(Some(Cached { path: path.into(), _lock: file }))
}

/// Whether the path still names the open file: it may have been removed or replaced before it was held.
fn is_still(file: &File, path: &Path) -> bool {
    let (held, named) = (file.metadata(), std::fs::metadata(path));
    held.is_ok_and(|held| named.is_ok_and(|named| (named.dev(), named.ino()) == (held.dev(), held.ino())))
}

/// Removes what is unused, the longest unused first, until the rest is within the limit.
fn sweep(directory: &Path, limit: u64) -> std::io::Result<()> {
    let (mut files, mut total) = (Vec::new(), 0_u64);
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // other agents change the directory, too
        let Ok(found) = entry.metadata() else { continue };
        let (name, used) = (entry.file_name(), found.modified()?);
        if name.as_encoded_bytes().starts_with(b".") {
            if used.elapsed().is_ok_and(|age| age > ABANDONED) {
                std::fs::remove_file(entry.path())?;
            }
        } else if name.as_encoded_bytes().starts_with(b"sha256-") && found.is_file() {
            total = total.saturating_add(found.len());
            files.push((used, found.len(), entry.path()));
        }
    }
    files.sort();
    for (_, length, path) in files {
        if total <= limit {
            break;
        }
        let Ok(file) = File::open(&path) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && is_still(&file, &path) {
            tracing::info!(path = %path.display(), length, "a cached image that nobody uses is removed");
            std::fs::remove_file(&path)?;
            total -= length;
        }
    }
    Ok(())
}

async fn fetch(
    store: &dyn ByteStore,
    digest: &str,
    new: &Path,
    path: &Path,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), RepositoryError> {
    store.get_image(digest, new, progress).await?;
    // no secret, and QEMU reads it as a user of its own
    tokio::fs::set_permissions(new, std::fs::Permissions::from_mode(0o644)).await.map_err(local)?;
    tokio::fs::rename(new, path).await.map_err(local)
}

async fn is(path: &Path, digest: &str) -> std::io::Result<bool> {
    let (path, digest) = (path.to_owned(), digest.to_owned());
    let work = move || {
        let mut file = std::fs::File::open(path)?;
        let (mut hasher, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut piece)? {
                0 => break,
                count => hasher.update(&piece[..count]),
            }
        }
        Ok(digest == format!("sha256:{:x}", hasher.finalize()))
    };
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::{super::testing::FileStore, *};

    const ALL: u64 = u64::MAX;

    #[tokio::test]
    async fn a_damaged_image_of_the_cache_is_fetched_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::new(&dir.path().join("store"));
        let digest = store.add_image(b"an image");
        let directory = dir.path().join("cache");
        let cache = Cache { directory: &directory, limit: ALL };
        let first = image(&store, &cache, &digest, &|_| ()).await.unwrap();
        std::fs::write(&first.path, "damaged").unwrap();
        let again = image(&store, &cache, &digest, &|_| ()).await.unwrap();
        assert_eq!(std::fs::read(again.path).unwrap(), b"an image");
        std::fs::remove_dir_all(dir.path().join("store")).unwrap();
        assert!(image(&store, &cache, &digest, &|_| ()).await.is_ok(), "a right one needs no repository");
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn the_longest_unused_goes_first_and_nothing_that_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::new(&dir.path().join("store"));
        let directory = dir.path().join("cache");
        let cache = Cache { directory: &directory, limit: 25 };
        let digests: Vec<String> = (0..4_u8).map(|n| store.add_image(format!("{n} ten bytes").as_bytes())).collect();
        let get = async |n: usize| image(&store, &cache, &digests[n], &|_| ()).await.unwrap();
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
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn names_that_are_no_digests_reach_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::new(dir.path());
        for digest in ["", "sha256:", "sha256:../../etc/passwd", "sha512:00", &format!("sha256:{}", "G".repeat(64))] {
            let error = image(&store, &Cache { directory: dir.path(), limit: ALL }, digest, &|_| ()).await.unwrap_err();
            assert!(matches!(error, RepositoryError::NotFound(_)), "{digest}");
        }
    }
}
