//! Takes a request's body into a staged file: hashed and counted on the way, bounded in size and in
//! silence, synced at the end. Never gives it a final name.

use std::{io, time::Duration};

use axum::body::Body;
use futures::StreamExt;
use sha2::Digest;
use tokio::io::AsyncWriteExt;

use super::durable::{Root, Staged, disk_error};
use crate::{driver::repository::RepositoryError, store::layout::image_name};

/// A sender that is silent this long has gone.
const SILENCE: Duration = Duration::from_secs(60);
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

/// Reads a body of at most `limit` bytes to its end.
pub(super) async fn receive(root: &Root, body: Body, limit: u64, mut hash: Hash) -> Result<Received, RepositoryError> {
    let staged = root.staged();
    let mut stream = body.into_data_stream();
    let mut length = 0;
    let result = async {
        let mut options = tokio::fs::OpenOptions::new();
        let mut file = options.create_new(true).write(true).mode(0o600).open(staged.path()).await?;
        loop {
            let chunk = match tokio::time::timeout(SILENCE, stream.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => return Err(io::Error::other(format!("the sender broke off: {error}"))),
                Ok(None) => break,
                Err(_) => return Err(io::Error::other("the sender is silent")),
            };
            length += chunk.len() as u64;
            if length > limit {
                return Ok(false);
            }
            hash.update(&chunk);
            file.write_all(&chunk).await?;
        }
        file.flush().await?;
        file.sync_all().await?;
        Ok(true)
    }
    .await;
    match result {
        Ok(true) => Ok(Received { staged, length, digest: hash.name() }),
        Ok(false) => {
            drain(stream);
            Err(RepositoryError::Refused(format!("more than {limit} bytes")))
        }
        Err(error) => {
            drain(stream);
            Err(disk_error(&error))
        }
    }
}

/// Reads on for a while what nobody wants: closing at once would reset the connection before the
/// sender has seen the reply.
pub(super) fn drain(
    mut stream: impl futures::Stream<Item = Result<bytes::Bytes, axum::Error>> + Send + Unpin + 'static,
) {
    tokio::spawn(tokio::time::timeout(DRAIN, async move { while let Some(Ok(_)) = stream.next().await {} }));
}
