//! Files to and from the repository: streamed, compressed, hashed on the way, and never under their
//! final name before the hash is right. Memory is bounded by a few blocks.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use reqwest::{Body, Method};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{
    Brought, ByteStore, ByteStream, DiskRecord, Repository, RepositoryError, SendingProgress,
    http::{HttpRepository, answered, unreachable},
    parts::Which,
    wire::{Coded, disk_record_path, file_path, image_path, output_path},
};
use crate::{
    names::{Generation, JobUid, MemberIndex},
    store::{
        layout,
        manifest::{FileForm, FileKind, Manifest, PartFile},
    },
};

/// Bytes handed on at a time.
pub(super) const CHUNK: usize = 1 << 18;
/// Blocks on their way between disk and network.
const AHEAD: usize = 8;
/// A peer that moves nothing for this long has gone.
const SILENCE: Duration = Duration::from_secs(120);
/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);

pub(super) type Progress<'a> = &'a (dyn Fn(u64) + Send + Sync);

pub(super) fn local(path: &Path, error: &io::Error) -> RepositoryError {
    RepositoryError::local(path.display(), error)
}

/// Waits for a transfer, telling its progress; gives up on one that stands still.
pub(super) async fn watched<T>(
    work: impl Future<Output = Result<T, RepositoryError>>,
    moved: &AtomicU64,
    progress: Progress<'_>,
) -> Result<T, RepositoryError> {
    tokio::pin!(work);
    let (mut last, mut since) = (0, tokio::time::Instant::now());
    loop {
        let done = tokio::time::timeout(TICK, &mut work).await;
        let now = moved.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, tokio::time::Instant::now());
            progress(now);
        }
        match done {
            Ok(result) => return result,
            Err(_) if since.elapsed() > SILENCE => {
                return Err(RepositoryError::Unreachable(format!("nothing moved for {} s", SILENCE.as_secs())));
            }
            Err(_) => {}
        }
    }
}

pub(super) async fn joined<T>(task: tokio::task::JoinHandle<T>) -> Result<T, RepositoryError> {
    task.await.map_err(|e| RepositoryError::local("the transfer was dropped", &io::Error::other(e)))
}

/// A blocking reader of what the network brings.
struct Inlet {
    blocks: mpsc::Receiver<Bytes>,
    current: Bytes,
    hasher: blake3::Hasher,
    stored: u64,
}

impl Read for Inlet {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.blocks.blocking_recv() {
                None => return Ok(0),
                Some(block) => {
                    self.hasher.update(&block);
                    self.stored += block.len() as u64;
                    self.current = block;
                }
            }
        }
        let taken = self.current.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&self.current.split_to(taken));
        Ok(taken)
    }
}

/// A file being written, under a name of its own until [`Fresh::finish`].
pub(super) struct Fresh {
    path: PathBuf,
    to: PathBuf,
    pub(super) file: File,
}

impl Fresh {
    pub(super) fn create(to: &Path) -> io::Result<Self> {
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let path = to.with_file_name(name);
        // memory images hold secrets
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path)?;
        Ok(Self { path, to: to.into(), file })
    }

    pub(super) fn finish(self) -> io::Result<()> {
        fs::rename(&self.path, &self.to)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // gone already when it was finished
        let _ = fs::remove_file(&self.path);
    }
}

/// Decompresses blocks into a file, checked against what is expected. Blocking.
fn decompress(
    blocks: mpsc::Receiver<Bytes>,
    expected: &PartFile,
    to: &Path,
    moved: &AtomicU64,
) -> Result<(), RepositoryError> {
    let mut fresh = Fresh::create(to).map_err(|e| local(to, &e))?;
    let inlet = Inlet { blocks, current: Bytes::new(), hasher: blake3::Hasher::new(), stored: 0 };
    let damaged = |what: String| RepositoryError::Damaged(format!("{}: {what}", expected.kind));
    let mut decoder = zstd::stream::read::Decoder::with_buffer(BufReader::with_capacity(CHUNK, inlet))
        .map_err(|e| damaged(e.to_string()))?;
    let mut buffer = vec![0; CHUNK];
    let mut size = 0;
    loop {
        let read = decoder.read(&mut buffer).map_err(|e| damaged(e.to_string()))?;
        if read == 0 {
            break;
        }
        size += read as u64;
        // bytes that grow without end must not fill the disk
        if size > expected.size {
            return Err(damaged("larger than its manifest says".into()));
        }
        fresh.file.write_all(&buffer[..read]).map_err(|e| local(to, &e))?;
        moved.store(size, Ordering::Relaxed);
    }
    let inlet = decoder.finish().into_inner();
    let digest = inlet.hasher.finalize().to_hex().to_string();
    if (size, inlet.stored, &digest) != (expected.size, expected.stored, &expected.digest) {
        return Err(damaged("not what its manifest says".into()));
    }
    fresh.finish().map_err(|e| local(to, &e))
}

impl HttpRepository {
    async fn fetch(&self, request: reqwest::RequestBuilder, into: mpsc::Sender<Bytes>) -> Result<(), RepositoryError> {
        let mut reply = answered(request.send().await).await?;
        while let Some(block) = reply.chunk().await.map_err(unreachable)? {
            if into.send(block).await.is_err() {
                // the other side has said why
                break;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl ByteStore for HttpRepository {
    async fn get_manifest(&self, job: &JobUid, generation: Generation) -> Result<Manifest, RepositoryError> {
        self.manifest(job, generation).await
    }

    async fn put_part(
        &self,
        ticket: &str,
        job: &JobUid,
        generation: Generation,
        member: MemberIndex,
        kind: FileKind,
        file: &Path,
        progress: SendingProgress<'_>,
    ) -> Result<PartFile, RepositoryError> {
        self.send_file(ticket, Which { job, generation, member, kind }, file, progress).await
    }

    async fn ready(&self, kind: FileKind, file: &Path) -> Result<Option<u64>, RepositoryError> {
        self.name_blocks(kind, file).await
    }

    async fn get_part(
        &self,
        job: &JobUid,
        generation: Generation,
        member: MemberIndex,
        file: &PartFile,
        to: &Path,
        progress: Progress<'_>,
    ) -> Result<Brought, RepositoryError> {
        if file.form == FileForm::Recipe {
            return self.fetch_file(Which { job, generation, member, kind: file.kind }, file, to, progress).await;
        }
        let (into, blocks) = mpsc::channel(AHEAD);
        let moved = Arc::new(AtomicU64::new(0));
        let (expected, path, counter) = (file.clone(), to.to_owned(), moved.clone());
        let writer = tokio::task::spawn_blocking(move || decompress(blocks, &expected, &path, &counter));
        let source = format!("{}?digest={}", file_path(job, generation, member, file.kind), Coded(&file.digest));
        let request = self.request(Method::GET, &source);
        // a fetch that broke off closes the channel, and the writer then misses bytes: the fetch's
        // error is the cause
        let both = async {
            let fetched = self.fetch(request, into).await;
            let written = joined(writer).await?;
            fetched.and(written)
        };
        watched(both, &moved, progress).await?;
        Ok(Brought { fetched: file.stored, local: 0 })
    }

    async fn put_output(
        &self,
        job: &JobUid,
        member: MemberIndex,
        path: &str,
        body: ByteStream,
    ) -> Result<(), RepositoryError> {
        let request = self.request(Method::PUT, &output_path(job, member, path));
        answered(request.body(Body::wrap_stream(body)).send().await).await.map(drop)
    }

    async fn get_output(&self, job: &JobUid, member: MemberIndex, path: &str) -> Result<ByteStream, RepositoryError> {
        let request = self.request(Method::GET, &output_path(job, member, path));
        let reply = answered(request.send().await).await?;
        Ok(reply.bytes_stream().map_err(io::Error::other).boxed())
    }

    async fn put_image(&self, digest: &str, file: &Path) -> Result<(), RepositoryError> {
        let opened = tokio::fs::File::open(file).await.map_err(|e| local(file, &e))?;
        let length = opened.metadata().await.map_err(|e| local(file, &e))?.len();
        let moved = Arc::new(AtomicU64::new(0));
        let counter = moved.clone();
        let body = tokio_util::io::ReaderStream::with_capacity(opened, CHUNK).inspect_ok(move |block| {
            counter.fetch_add(block.len() as u64, Ordering::Relaxed);
        });
        let request = self
            .request(Method::PUT, &image_path(digest))
            .header(reqwest::header::CONTENT_LENGTH, length)
            .body(Body::wrap_stream(body));
        watched(async { answered(request.send().await).await.map(drop) }, &moved, &|_| {}).await
    }

    async fn note_disk(&self, digest: &str, record: &DiskRecord) -> Result<(), RepositoryError> {
        self.tell(Method::PUT, &disk_record_path(digest), record).await
    }

    async fn get_image(&self, digest: &str, to: &Path, progress: Progress<'_>) -> Result<(), RepositoryError> {
        let request = self.request(Method::GET, &image_path(digest));
        let (into, mut blocks) = mpsc::channel::<Bytes>(AHEAD);
        let moved = Arc::new(AtomicU64::new(0));
        let (wanted, path, counter) = (digest.to_owned(), to.to_owned(), moved.clone());
        let writer = tokio::task::spawn_blocking(move || {
            let mut fresh = Fresh::create(&path).map_err(|e| local(&path, &e))?;
            let mut hasher = Sha256::new();
            while let Some(block) = blocks.blocking_recv() {
                hasher.update(&block);
                fresh.file.write_all(&block).map_err(|e| local(&path, &e))?;
                counter.fetch_add(block.len() as u64, Ordering::Relaxed);
            }
            let found = layout::image_name(&hasher.finalize());
            if wanted != found {
                return Err(RepositoryError::Damaged(format!("the image came as {found}")));
            }
            fresh.finish().map_err(|e| local(&path, &e))
        });
        let both = async {
            let fetched = self.fetch(request, into).await;
            let written = joined(writer).await?;
            fetched.and(written)
        };
        watched(both, &moved, progress).await
    }
}
