//! Takes a request's body into a staged file: hashed and counted on the way, bounded in size and in
//! silence, synced at the end. Never gives it a final name.

use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use futures::StreamExt;
use sha2::Digest;
use tokio::io::AsyncWriteExt;

use super::{
    arrivals::Arrival,
    durable::{Root, Staged, disk_error},
};
use crate::{driver::repository::RepositoryError, store::layout::image_name};

/// A sender that is silent this long has gone.
const SILENCE: Duration = Duration::from_secs(60);
/// If it is not said how much will come, room for so many bytes is claimed at a time.
const LOOK: u64 = 64 << 20;
/// How long the rest of a refused body is read, so that the sender gets to see the refusal.
const DRAIN: Duration = Duration::from_secs(10);

/// A hash under way.
pub(super) enum Hash {
    /// For parts.
    Blake3(Box<blake3::Hasher>),
    /// For images.
    Sha256(sha2::Sha256),
    /// For outputs, which have no name to prove.
    None,
}

impl Hash {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::None => {}
        }
    }

    fn name(self) -> String {
        match self {
            Self::Blake3(hasher) => hasher.finalize().to_hex().to_string(),
            Self::Sha256(hasher) => image_name(&hasher.finalize()),
            Self::None => String::new(),
        }
    }
}

/// A body on disk, without a name yet.
#[derive(Debug)]
pub(super) struct Received {
    /// Where it is.
    pub(super) staged: Staged,
    /// Its length.
    pub(super) length: u64,
    /// Its hash: hexadecimal, for an image its name.
    pub(super) digest: String,
}

/// How much is taken in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Most bytes of the body.
    pub(super) most: u64,
    /// Bytes that stay free on the disk.
    pub(super) free: u64,
}

/// Reads a body to its end, unless it is sent again meanwhile.
pub(super) async fn receive(
    root: &Root,
    body: Body,
    bounds: Bounds,
    mut hash: Hash,
    arrival: &Arrival,
) -> Result<Received, RepositoryError> {
    let staged = root.staged();
    let said = body.size_hint().exact();
    let mut stream = body.into_data_stream();
    let mut length = 0;
    let taking = async {
        if said.is_some_and(|said| said > bounds.most) {
            return Err(RepositoryError::TooLarge(format!("more than {} bytes", bounds.most)));
        }
        let mut claim = root.claim(said.unwrap_or(0), bounds.free)?;
        let mut options = tokio::fs::OpenOptions::new();
        let opened = options.create_new(true).write(true).mode(0o600).open(staged.path()).await;
        let mut file = opened.map_err(|e| disk_error(&e))?;
        loop {
            let chunk = match tokio::time::timeout(SILENCE, stream.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => return Err(gone(&format!("broke off: {error}"))),
                Ok(None) => break,
                Err(_) => return Err(gone("is silent")),
            };
            length += chunk.len() as u64;
            if length > bounds.most {
                return Err(RepositoryError::TooLarge(format!("more than {} bytes", bounds.most)));
            }
            claim.take(chunk.len() as u64, LOOK)?;
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(|e| disk_error(&e))?;
        }
        file.flush().await.map_err(|e| disk_error(&e))?;
        file.sync_all().await.map_err(|e| disk_error(&e))
    };
    let result = tokio::select! {
        biased;
        () = arrival.overtaken.cancelled() => Err(RepositoryError::Refused("it was sent again meanwhile".into())),
        result = taking => result,
    };
    match result {
        Ok(()) => Ok(Received { staged, length, digest: hash.name() }),
        Err(error) => {
            drain(stream);
            Err(error)
        }
    }
}

fn gone(what: &str) -> RepositoryError {
    RepositoryError::Unreachable(format!("the sender {what}"))
}

/// Reads on for a while what nobody wants: closing at once would reset the connection before the
/// sender has seen the reply.
pub(super) fn drain(
    mut stream: impl futures::Stream<Item = Result<bytes::Bytes, axum::Error>> + Send + Unpin + 'static,
) {
    tokio::spawn(tokio::time::timeout(DRAIN, async move { while let Some(Ok(_)) = stream.next().await {} }));
}
