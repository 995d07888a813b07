//! Where tests keep a store: a directory, a bucket in memory, and a bucket whose directory is lost each time. And a
//! bucket that fails, before or after it has done what it was asked to.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path as Key,
};

use super::{Objects, Use};
use crate::{
    driver::repository::RepositoryError,
    repository::{
        check::{self, Report},
        durable::{Root, Steps, disk_error},
        files::Files,
        store::Store,
        usage::{Usage, usage},
    },
};

/// What a store is kept on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    Bucket,
    /// Each process begins with an empty directory.
    BucketAlone,
}

/// The place of one store.
pub(crate) struct TestStore {
    pub(crate) kind: Kind,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) memory: Arc<InMemory>,
}

/// The objects in a store in memory.
pub(in crate::repository) fn objects(store: Arc<dyn ObjectStore>) -> Objects {
    Objects::new(store, Key::from("a/folder"), "s3://test/a/folder".into()).unwrap()
}

/// How tests use a bucket: little of it stays on the disk, and nobody waits.
pub(crate) const LITTLE: Use = Use { cache: 100, handover: Duration::ZERO };

impl TestStore {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, directory: tempfile::tempdir().unwrap(), memory: Arc::default() }
    }

    pub(crate) fn root(&self) -> std::path::PathBuf {
        self.directory.path().join("root")
    }

    pub(crate) fn open_at(
        &self,
        steps: impl Steps + 'static,
        now: jiff::Timestamp,
    ) -> std::result::Result<Store, RepositoryError> {
        let (root, steps) = (self.root(), Box::new(steps));
        if self.kind == Kind::BucketAlone {
            let _ = std::fs::remove_dir_all(&root);
        }
        let opened = match self.kind {
            Kind::Directory => Root::open(&root, steps),
            Kind::Bucket | Kind::BucketAlone => Root::in_front_of(objects(self.memory.clone()), LITTLE, &root, steps),
        };
        Store::of(opened.map_err(|e| disk_error(&e))?, now)
    }

    pub(crate) fn open(&self, steps: impl Steps + 'static) -> std::result::Result<Store, RepositoryError> {
        self.open_at(steps, jiff::Timestamp::UNIX_EPOCH)
    }

    fn files<T>(&self, look: impl FnOnce(&Files) -> T) -> T {
        let scratch = tempfile::tempdir().unwrap();
        look(&match self.kind {
            Kind::Directory => Files::directory(&self.root()).unwrap(),
            Kind::Bucket | Kind::BucketAlone => Files::of_bucket(objects(self.memory.clone()), scratch.path()).unwrap(),
        })
    }

    /// Somebody writes into the bucket.
    pub(crate) fn overwrite(&self, below: &std::path::Path, content: Vec<u8>) {
        objects(self.memory.clone()).put(below, content).unwrap();
    }

    /// Somebody removes something from the bucket.
    pub(crate) fn remove(&self, below: &std::path::Path) {
        objects(self.memory.clone()).delete(&[below.to_owned()]).unwrap();
    }

    /// As a person verifies it.
    pub(crate) fn verify(&self) -> Report {
        self.files(|files| check::verify(files).unwrap())
    }

    pub(crate) fn usage(&self) -> Usage {
        self.files(|files| usage(files.root()).unwrap())
    }
}

/// What becomes of a request that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Does,
    /// It is not done.
    Refuses,
    /// It is done, and the reply is lost.
    IsNotHeard,
    /// It is done, whatever its conditions are.
    Overlooks,
}

/// A bucket with moods.
pub(super) struct Moody {
    pub(super) memory: Arc<InMemory>,
    mood: Box<dyn Fn(u32) -> Mood + Send + Sync>,
    count: AtomicU32,
}

impl Moody {
    /// `mood` is asked before each change, by its number.
    pub(super) fn new(memory: &Arc<InMemory>, mood: impl Fn(u32) -> Mood + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { memory: memory.clone(), mood: Box::new(mood), count: AtomicU32::new(0) })
    }

    async fn done<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let lost = || Err(Error::Generic { store: "moody", source: "the connection was lost".into() });
        match (self.mood)(self.count.fetch_add(1, Ordering::SeqCst)) {
            Mood::Does | Mood::Overlooks => work.await,
            Mood::Refuses => lost(),
            Mood::IsNotHeard => {
                work.await?;
                lost()
            }
        }
    }
}

impl fmt::Debug for Moody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Moody")
    }
}

impl fmt::Display for Moody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Moody")
    }
}

#[async_trait]
impl ObjectStore for Moody {
    async fn put_opts(&self, location: &Key, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let overlooks = (self.mood)(self.count.load(Ordering::SeqCst)) == Mood::Overlooks;
        let opts = if overlooks { PutOptions::default() } else { opts };
        self.done(self.memory.put_opts(location, payload, opts)).await
    }

    async fn put_multipart_opts(&self, at: &Key, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.done(self.memory.put_multipart_opts(at, opts)).await
    }

    async fn get_opts(&self, location: &Key, options: GetOptions) -> Result<GetResult> {
        self.memory.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        let (memory, done) = (self.memory.clone(), self.done(async { Ok(()) }).now_or_never());
        match done {
            Some(Err(lost)) => futures::stream::once(async { Err(lost) }).boxed(),
            _ => memory.delete_stream(locations),
        }
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.memory.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.memory.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        self.done(self.memory.copy_opts(from, to, options)).await
    }
}
