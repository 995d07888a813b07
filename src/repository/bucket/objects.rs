//! The objects of a bucket below a prefix, by the paths of the files that they are. Blocking; every request is bounded
//! in time, and memory in all of them. Knows nothing of jobs.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, UpdateVersion, path::Path as Key};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    ahead::Ahead,
    error::{error, told},
};

/// A file of more bytes is sent in parts of as many.
const PART: u64 = 16 << 20;
/// Most parts of an object; S3 takes 10,000.
const MOST_PARTS: u64 = 9000;
/// So much is fetched at once.
const CHUNK: u64 = 16 << 20;
/// The largest object that S3 copies in one request.
const MOST_COPIED: u64 = 5 << 30;
/// So many small objects are read at the same time.
const AT_ONCE: usize = 32;

/// An object, as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    /// Its path below the prefix.
    pub(super) below: PathBuf,
    /// Its length.
    pub(super) length: u64,
}

/// A small object, and what tells this content of it from any other.
pub(super) type Found = (Bytes, UpdateVersion);

/// The objects.
#[derive(Debug)]
pub(in crate::repository) struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: Key,
    name: String,
    ahead: Ahead,
    stop: CancellationToken,
}

impl Objects {
    /// Those below a prefix of a store; `name` is what people call it.
    pub(in crate::repository) fn new(store: Arc<dyn ObjectStore>, prefix: Key, name: String) -> io::Result<Self> {
        Ok(Self { store, prefix, name, ahead: Ahead::new()?, stop: CancellationToken::new() })
    }

    /// The same, which pauses no longer than until it is told to stop.
    pub(in crate::repository) fn until(self, stop: CancellationToken) -> Self {
        Self { stop, ..self }
    }

    /// Lets so much time pass; an error if it is told to stop before.
    pub(super) fn pause(&self, time: Duration) -> io::Result<()> {
        let stop = self.stop.clone();
        self.ahead.wait(async move {
            let passed = stop.run_until_cancelled(tokio::time::sleep(time)).await;
            passed.ok_or_else(|| error("told to stop while another repository's last requests were waited for"))
        })
    }

    /// What people call the place.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn key(&self, below: &Path) -> Key {
        let names = below.iter().filter_map(|name| name.to_str());
        names.fold(self.prefix.clone(), Key::join)
    }

    /// Puts an object; replaces what was there.
    pub(super) fn put(&self, below: &Path, content: Vec<u8>) -> io::Result<()> {
        let (store, key) = (self.store.clone(), self.key(below));
        self.ahead.wait(async move { store.put(&key, content.into()).await.map(drop).map_err(told) })
    }

    /// Puts an object on a condition. None: the condition does not hold.
    pub(super) fn put_if(&self, below: &Path, content: &Bytes, mode: PutMode) -> io::Result<Option<UpdateVersion>> {
        match self.try_put(below, content, mode)? {
            Some(version) => Ok(Some(version)),
            // where the reply to a first try was lost, what is there is what was sent
            None => Ok(self.get(below)?.filter(|(found, _)| found == content).map(|(_, version)| version)),
        }
    }

    /// The same, where what is there already counts as another one's in any case.
    pub(super) fn try_put(&self, below: &Path, content: &Bytes, mode: PutMode) -> io::Result<Option<UpdateVersion>> {
        let (store, key, payload) = (self.store.clone(), self.key(below), PutPayload::from(content.clone()));
        self.ahead.wait(async move {
            match store.put_opts(&key, payload, mode.into()).await {
                Ok(done) => Ok(Some(done.into())),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. }) => Ok(None),
                Err(failed) => Err(told(failed)),
            }
        })
    }

    /// Reads a small object; nothing if it is not there.
    pub(super) fn get(&self, below: &Path) -> io::Result<Option<Found>> {
        Ok(self.get_all([below.to_owned()])?.pop().and_then(|(_, found)| found))
    }

    /// Reads small objects, in their order.
    pub(super) fn get_all(&self, all: impl IntoIterator<Item = PathBuf>) -> io::Result<Vec<(PathBuf, Option<Found>)>> {
        let wanted: Vec<(PathBuf, Key)> = all.into_iter().map(|below| (below.clone(), self.key(&below))).collect();
        let store = self.store.clone();
        self.ahead.wait(async move {
            let read = async |(below, key): (PathBuf, Key)| match small(&*store, &key).await {
                Ok(found) => Ok((below, Some(found))),
                Err(failed) if failed.kind() == io::ErrorKind::NotFound => Ok((below, None)),
                Err(failed) => Err(failed),
            };
            futures::stream::iter(wanted).map(read).buffered(AT_ONCE).try_collect().await
        })
    }

    /// Length of an object; nothing if it is not there.
    pub(super) fn length(&self, below: &Path) -> io::Result<Option<u64>> {
        let (store, key) = (self.store.clone(), self.key(below));
        self.ahead.wait(async move {
            match store.head(&key).await.map_err(told) {
                Ok(found) => Ok(Some(found.size)),
                Err(failed) if failed.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(failed) => Err(failed),
            }
        })
    }

    /// Begins to read some bytes of an object.
    pub(super) fn begin_range(&self, below: &Path, range: Range<u64>) -> JoinHandle<io::Result<Bytes>> {
        let (store, key) = (self.store.clone(), self.key(below));
        self.ahead.begin(async move { store.get_range(&key, range).await.map_err(told) })
    }

    /// Reads some bytes of an object.
    pub(super) fn range(&self, below: &Path, range: Range<u64>) -> io::Result<Bytes> {
        let (store, key) = (self.store.clone(), self.key(below));
        self.ahead.wait(async move { store.get_range(&key, range).await.map_err(told) })
    }

    /// Sends a file, in parts if it is large; replaces what was there once all has come.
    pub(super) fn upload(&self, from: &Path, below: &Path) -> io::Result<()> {
        let mut file = File::open(from)?;
        let length = file.metadata()?.len();
        if length <= PART {
            let mut content = Vec::new();
            file.read_to_end(&mut content)?;
            return self.put(below, content);
        }
        let (store, key) = (self.store.clone(), self.key(below));
        let most = PART.max(length.div_ceil(MOST_PARTS));
        self.ahead.wait(async move {
            let mut upload = store.put_multipart(&key).await.map_err(told)?;
            let sent = async {
                loop {
                    let mut part = Vec::new();
                    (&file).take(most).read_to_end(&mut part)?;
                    if part.is_empty() {
                        return upload.complete().await.map(drop).map_err(told);
                    }
                    upload.put_part(part.into()).await.map_err(told)?;
                }
            };
            let sent = sent.await;
            if sent.is_err() {
                // what is left over costs room until the bucket's rules clear it
                let _ = upload.abort().await;
            }
            sent
        })
    }

    /// Writes an object of this length into a file.
    pub(super) fn download(&self, below: &Path, length: u64, to: &mut File) -> io::Result<()> {
        let mut at = 0;
        while at < length {
            let bytes = self.range(below, at..length.min(at + CHUNK))?;
            if bytes.is_empty() {
                return Err(error(format!("{} ends early in the bucket", below.display())));
            }
            to.write_all(&bytes)?;
            at += bytes.len() as u64;
        }
        to.sync_all()
    }

    /// Copies an object within the bucket, unless it is too large for that.
    pub(super) fn copy(&self, below: &Path, length: u64, to: &Path) -> io::Result<bool> {
        if length > MOST_COPIED {
            return Ok(false);
        }
        let (store, from, to) = (self.store.clone(), self.key(below), self.key(to));
        self.ahead.wait(async move { store.copy(&from, &to).await.map(|()| true).map_err(told) })
    }

    /// Removes objects. Absence is no error.
    pub(super) fn delete(&self, all: &[PathBuf]) -> io::Result<()> {
        let keys: Vec<_> = all.iter().map(|below| Ok(self.key(below))).collect();
        let store = self.store.clone();
        self.ahead.wait(async move {
            let mut gone = store.delete_stream(futures::stream::iter(keys).boxed());
            while let Some(one) = gone.next().await {
                match one.map_err(told) {
                    Err(failed) if failed.kind() != io::ErrorKind::NotFound => return Err(failed),
                    _ => {}
                }
            }
            Ok(())
        })
    }

    /// All objects below a path.
    pub(super) fn list(&self, below: &Path) -> io::Result<Vec<Listed>> {
        let (store, key, prefix) = (self.store.clone(), self.key(below), self.prefix.clone());
        self.ahead.wait(async move {
            let listed = store.list(Some(&key)).map_err(told).try_filter_map(async |found| {
                let below = found.location.prefix_match(&prefix);
                let below = below.map(|names| names.map(|name| name.as_ref().to_owned()).collect());
                Ok(below.map(|below| Listed { below, length: found.size }))
            });
            listed.try_collect().await
        })
    }

    /// The names of the folders in a path.
    pub(super) fn folders(&self, below: &Path) -> io::Result<Vec<String>> {
        let (store, key) = (self.store.clone(), self.key(below));
        self.ahead.wait(async move {
            let listed = store.list_with_delimiter(Some(&key)).await.map_err(told)?;
            Ok(listed.common_prefixes.iter().filter_map(|folder| folder.filename().map(str::to_owned)).collect())
        })
    }
}

async fn small(store: &dyn ObjectStore, key: &Key) -> io::Result<Found> {
    let got = store.get(key).await.map_err(told)?;
    let version = UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
    Ok((got.bytes().await.map_err(told)?, version))
}
