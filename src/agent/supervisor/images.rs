//! The node's cache of images: files named by their digest, which is checked at each use.
//!
//! Agents of several jobs share it. Whoever uses a file holds a shared lock on it; only what nobody
//! holds is removed, the longest unused first, when all together are larger than the limit or the disk
//! is full. A name is never given to another file while it has one, and is taken away only under the
//! lock of the directory, so that who holds a file finds it under its name. Other users of the node
//! reach neither files nor locks. A fetch that is interrupted leaves what it has under a name of its own, for the next
//! one.

use std::{
    fs::{File, Permissions},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use rustix::{
    fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use super::chain::{Chain, PARTIAL, Proven};
use crate::driver::{
    qemu::process,
    repository::{ByteStore, RepositoryError},
};

/// A file on its way that is older was left by an agent that died.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// Nobody who keeps to the rules holds a lock that others wait for as long as this.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
const LOCK_PACE: Duration = Duration::from_millis(20);
/// Others may take a file away, or be first, so often.
const ATTEMPTS: usize = 4;
/// Whoever takes names away holds this file.
const LOCK: &str = "lock";

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
    lock: File,
}

/// Where an image lies in the cache; `None` for a digest that is none.
pub(super) fn place(cache: &Path, digest: &str) -> Option<PathBuf> {
    let hex = digest.strip_prefix("sha256:")?;
    let valid = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    valid.then(|| cache.join(format!("sha256-{hex}")))
}

fn local(error: io::Error) -> RepositoryError {
    RepositoryError::local("the cache of images", &error)
}

/// The file of an image, fetched if the node has none that is right.
pub(super) async fn image(
    store: &dyn ByteStore,
    chain: &Chain,
    cache: &Cache<'_>,
    digest: &str,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Cached, RepositoryError> {
    let Some(path) = place(cache.directory, digest) else {
        return Err(RepositoryError::NotFound(format!("{digest:?} is not a digest")));
    };
    make(cache.directory).map_err(local)?;
    for _ in 0..ATTEMPTS {
        if let Some(cached) = hold(&path).await.map_err(local)? {
            if is(&cached, digest).await.map_err(local)? {
                return shown(cached, chain, digest);
            }
            tracing::warn!(path = %path.display(), "a cached image is damaged and is fetched again");
            forget(cached.path, cached.lock).await.map_err(local)?;
        }
        let fetched = match fetch(store, chain, cache.directory, digest, &path, progress).await {
            Err(RepositoryError::Local { why, full: true }) => {
                tracing::warn!(why, "the disk of the cache is full: what nobody uses is removed");
                clear(cache.directory, 0).await;
                fetch(store, chain, cache.directory, digest, &path, progress).await
            }
            other => other,
        };
        if fetched? && let Some(cached) = hold(&path).await.map_err(local)? {
            clear(cache.directory, cache.limit).await;
            return shown(cached, chain, digest);
        }
    }
    Err(RepositoryError::Unreachable(format!("{digest} was taken away each time")))
}

/// An image that is right, for others of the job as well.
fn shown(cached: Cached, chain: &Chain, digest: &str) -> Result<Cached, RepositoryError> {
    // with no part in the lock, which is given up before
    chain.has(digest, File::open(&cached.path).map_err(local)?);
    Ok(cached)
}

/// Makes the directory, for us and for QEMU to pass through.
fn make(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    std::fs::set_permissions(directory, Permissions::from_mode(0o710))?;
    process::show(&File::open(directory)?)
}

/// No secret, and QEMU reads it as a user of its own; but who can open it can lock it.
fn close_to_others(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o640))?;
    process::show(file)
}

/// Opens a file for use, if it is there: it is not removed while it is held, and counts as used now.
async fn hold(path: &Path) -> io::Result<Option<Cached>> {
    let until = Instant::now() + LOCK_LIMIT;
    loop {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) if is_still(&file, path) => {
                close_to_others(&file)?;
                file.set_modified(SystemTime::now())?;
                return Ok(Some(Cached { path: path.into(), lock: file }));
            }
            // another one has its name by now
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < until => tokio::time::sleep(LOCK_PACE).await,
            Err(Errno::WOULDBLOCK) => {
                tracing::warn!(path = %path.display(), "somebody locks a cached image: it is fetched again");
                forget(path.into(), file).await?;
                return Ok(None);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether the path still names the open file: it may have been removed or replaced before it was held.
pub(super) fn is_still(file: &File, path: &Path) -> bool {
    let (held, named) = (file.metadata(), std::fs::metadata(path));
    held.is_ok_and(|held| named.is_ok_and(|named| (named.dev(), named.ino()) == (held.dev(), held.ino())))
}

/// The lock under which names are taken away. Blocking, for a moment.
fn lock(directory: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(directory.join(LOCK))?;
    let until = Instant::now() + LOCK_LIMIT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LOCK_PACE),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Takes the name of an open file away, unless another one has it by now.
async fn forget(path: PathBuf, file: File) -> io::Result<()> {
    let work = move || {
        let _held = lock(path.parent().unwrap_or(Path::new("/")))?;
        if is_still(&file, &path) { std::fs::remove_file(&path) } else { Ok(()) }
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Removes what nobody uses until the rest is within the limit; all of it, for a limit of 0.
pub(super) async fn clear(directory: &Path, limit: u64) {
    let directory = directory.to_owned();
    let swept = tokio::task::spawn_blocking(move || sweep(&directory, limit)).await;
    if let Err(error) = swept.map_err(io::Error::other).flatten() {
        tracing::warn!(%error, "the cache of images could not be cleared");
    }
}

/// When a file was used, its bytes, and where it is.
type Used = (SystemTime, u64, PathBuf);

/// The files of images in a directory, the longest unused first, and the bytes of all. Files on their way that were
/// left there long ago are removed.
pub(super) fn by_use(directory: &Path) -> io::Result<(Vec<Used>, u64)> {
    let (mut files, mut total) = (Vec::new(), 0_u64);
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // other agents change the directory, too
        let Ok(found) = entry.metadata() else { continue };
        let (name, used) = (entry.file_name(), found.modified()?);
        let is_part = name.as_encoded_bytes().starts_with(PARTIAL.as_bytes());
        if name.as_encoded_bytes().starts_with(b".") && !is_part {
            if used.elapsed().is_ok_and(|age| age > ABANDONED) {
                std::fs::remove_file(entry.path())?;
            }
        } else if (is_part || name.as_encoded_bytes().starts_with(b"sha256-")) && found.is_file() {
            total = total.saturating_add(found.len());
            files.push((used, found.len(), entry.path()));
        }
    }
    files.sort();
    Ok((files, total))
}

/// Removes what is unused, the longest unused first, until the rest is within the limit.
fn sweep(directory: &Path, limit: u64) -> io::Result<()> {
    let _held = lock(directory)?;
    let (files, mut total) = by_use(directory)?;
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

/// Brings an image under its name. False: another agent was first.
async fn fetch(
    store: &dyn ByteStore,
    chain: &Chain,
    directory: &Path,
    digest: &str,
    path: &Path,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<bool, RepositoryError> {
    let brought = chain.bring(store, directory, digest, progress).await?;
    let (new, whole) = match &brought {
        Some(Proven { path, .. }) => (path.clone(), Ok(())),
        None => {
            let new = directory.join(format!(".{:032x}", rand::random::<u128>()));
            let whole = store.get_image(digest, &new, progress).await;
            (new, whole)
        }
    };
    let placed = whole.and_then(|()| put(&new, path).map_err(local));
    if !matches!(placed, Ok(true)) {
        // the store may not have made it
        let _ = tokio::fs::remove_file(&new).await;
    }
    placed
}

fn put(new: &Path, path: &Path) -> io::Result<bool> {
    close_to_others(&File::open(new)?)?;
    match renameat_with(CWD, new, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

async fn is(cached: &Cached, digest: &str) -> io::Result<bool> {
    let (file, digest) = (cached.lock.try_clone()?, digest.to_owned());
    let work = move || {
        let (mut hasher, mut piece, mut at) = (Sha256::new(), vec![0; 1 << 20], 0);
        loop {
            match file.read_at(&mut piece, at)? {
                0 => break,
                count => {
                    hasher.update(&piece[..count]);
                    at += count as u64;
                }
            }
        }
        Ok(digest == format!("sha256:{:x}", hasher.finalize()))
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
