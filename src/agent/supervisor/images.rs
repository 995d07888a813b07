//! The node's cache of images: files named by their digest, which is checked at each use.

use std::{
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use crate::driver::repository::{ByteStore, RepositoryError};

/// Where an image lies in the cache; `None` for a digest that is none.
fn place(cache: &Path, digest: &str) -> Option<PathBuf> {
    let hex = digest.strip_prefix("sha256:")?;
    let valid = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    valid.then(|| cache.join(format!("sha256-{hex}")))
}

/// The file of an image, fetched if the node has none that is right.
pub(super) async fn image(
    store: &dyn ByteStore,
    cache: &Path,
    digest: &str,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<PathBuf, RepositoryError> {
    let local = |error: std::io::Error| RepositoryError::Full(format!("the cache of images: {error}"));
    let Some(path) = place(cache, digest) else {
        return Err(RepositoryError::NotFound(format!("{digest:?} is not a digest")));
    };
    if path.exists() {
        if is(&path, digest).await.map_err(local)? {
            return Ok(path);
        }
        tracing::warn!(path = %path.display(), "a cached image is damaged and is fetched again");
    }
    tokio::fs::create_dir_all(cache).await.map_err(local)?;
    let new = cache.join(format!(".{:032x}", rand::random::<u128>()));
    let fetched = fetch(store, digest, &new, &path, progress).await;
    if fetched.is_err() {
        // the store may not have made it
        let _ = tokio::fs::remove_file(&new).await;
    }
    fetched.map(|()| path)
}

async fn fetch(
    store: &dyn ByteStore,
    digest: &str,
    new: &Path,
    path: &Path,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), RepositoryError> {
    let local = |error: std::io::Error| RepositoryError::Full(format!("the cache of images: {error}"));
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

    #[tokio::test]
    async fn a_damaged_image_of_the_cache_is_fetched_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::new(&dir.path().join("store"));
        let digest = store.add_image(b"an image");
        let cache = dir.path().join("cache");
        let path = image(&store, &cache, &digest, &|_| ()).await.unwrap();
        std::fs::write(&path, "damaged").unwrap();
        let again = image(&store, &cache, &digest, &|_| ()).await.unwrap();
        assert_eq!(std::fs::read(again).unwrap(), b"an image");
        std::fs::remove_dir_all(dir.path().join("store")).unwrap();
        assert!(image(&store, &cache, &digest, &|_| ()).await.is_ok(), "a right one needs no repository");
        assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn names_that_are_no_digests_reach_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::new(dir.path());
        for digest in ["", "sha256:", "sha256:../../etc/passwd", "sha512:00", &format!("sha256:{}", "G".repeat(64))] {
            let error = image(&store, dir.path(), digest, &|_| ()).await.unwrap_err();
            assert!(matches!(error, RepositoryError::NotFound(_)), "{digest}");
        }
    }
}
