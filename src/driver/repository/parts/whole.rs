//! Sends a file as it is, compressed on the way: to a repository that knows no blocks.

use std::{
    fs::File,
    io::{self, Read as _, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::StreamExt as _;
use reqwest::{Body, Method};
use tokio::sync::mpsc;

use super::{
    super::{
        RepositoryError, Sending, SendingProgress,
        http::{HttpRepository, answered, unreachable},
        streams::{CHUNK, joined, local, watched},
        wire::{TICKET, file_path},
    },
    Which,
};
use crate::store::{
    manifest::{FileForm, PartFile},
    pack::LEVEL,
};

/// Blocks on their way between disk and network.
const AHEAD: usize = 8;

/// What is compressed, on its way to the network.
struct Outlet {
    blocks: mpsc::Sender<io::Result<Bytes>>,
    hasher: blake3::Hasher,
    stored: u64,
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.stored += bytes.len() as u64;
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.blocks.blocking_send(Ok(Bytes::copy_from_slice(bytes))).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Compresses a file of this size; the length of what was made of it, and its digest. Blocking.
fn compress(path: &Path, size: u64, outlet: Outlet, read: &AtomicU64) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?.take(size);
    let mut encoder = zstd::stream::write::Encoder::new(outlet, LEVEL)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        encoder.write_all(&buffer[..count])?;
        read.fetch_add(count as u64, Ordering::Relaxed);
    }
    if file.limit() > 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let outlet = encoder.finish()?;
    Ok((outlet.stored, outlet.hasher.finalize().to_hex().to_string()))
}

impl HttpRepository {
    pub(super) async fn send_whole(
        &self,
        ticket: &str,
        Which { job, generation, member, kind }: Which<'_>,
        path: &Path,
        progress: SendingProgress<'_>,
    ) -> Result<PartFile, RepositoryError> {
        let size = tokio::fs::metadata(path).await.map_err(|e| local(path, &e))?.len();
        let (blocks, mut coming) = mpsc::channel(AHEAD);
        let read = Arc::new(AtomicU64::new(0));
        let (from, counter, failed) = (path.to_owned(), read.clone(), blocks.clone());
        let compressing = tokio::task::spawn_blocking(move || {
            let outlet = Outlet { blocks, hasher: blake3::Hasher::new(), stored: 0 };
            let done = compress(&from, size, outlet, &counter);
            if done.is_err() {
                // or what has come so far would be taken for all of it
                drop(failed.blocking_send(Err(io::ErrorKind::Interrupted.into())));
            }
            done
        });
        let pace = self.pace.clone();
        let body = futures::stream::poll_fn(move |context| coming.poll_recv(context)).then(move |block| {
            let pace = pace.clone();
            async move {
                if let Ok(block) = &block {
                    pace.pass(block.len()).await;
                }
                block
            }
        });
        let target = format!("{}?size={size}", file_path(job, generation, member, kind));
        let request = self.request(Method::PUT, &target).header(TICKET, ticket).body(Body::wrap_stream(body));
        let exchange = async {
            let sent = async { answered(request.send().await).await?.json::<PartFile>().await.map_err(unreachable) };
            let sent = sent.await;
            let made = joined(compressing).await?;
            match (sent, made) {
                (Ok(confirmed), Ok(made)) => Ok((confirmed, made)),
                // a repository that ends the exchange breaks the pipe
                (Err(error), Ok(_)) => Err(error),
                (Err(error), Err(made)) if made.kind() == io::ErrorKind::BrokenPipe => Err(error),
                (_, Err(made)) => Err(local(path, &made)),
            }
        };
        let (confirmed, (stored, digest)) = watched(exchange, &read, &|bytes| progress(Sending::Bytes(bytes))).await?;
        if confirmed == (PartFile { kind, form: FileForm::Whole, size, stored, packed: 0, digest }) {
            Ok(confirmed)
        } else {
            Err(RepositoryError::Damaged(format!("{kind}: the repository received something else")))
        }
    }
}
