//! Images that come to a node in pieces, from the repository or from other agents of the job that have them already.

use std::{ops::Range, sync::Arc};

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use reqwest::Method;

use super::{
    ByteStream, RepositoryError,
    http::{HttpRepository, answered, unreachable},
    wire::{self, BytesQuery, SHORT, image_bytes_path, image_pieces_path},
};
use crate::{
    driver::agent::{AgentAddress, http::AgentHttp, peer::ImagePeer},
    store::pieces::{MAX_BYTES, Pieces},
};

/// What a node needs for it. A repository that cannot do it names no pieces, and images come whole.
#[async_trait]
pub trait Piecewise: Send + Sync {
    /// The names of an image's pieces; none, if the repository knows of no pieces.
    async fn image_pieces(&self, _digest: &str) -> Result<Option<Pieces>, RepositoryError> {
        Ok(None)
    }

    /// Some of an image's bytes. They are not compared with anything.
    async fn image_bytes(&self, digest: &str, _range: Range<u64>) -> Result<ByteStream, RepositoryError> {
        Err(RepositoryError::NotFound(format!("parts of {digest}")))
    }

    /// Another agent, as somebody who has images.
    fn image_peer(&self, _address: &AgentAddress) -> Option<Arc<dyn ImagePeer>> {
        None
    }
}

#[async_trait]
impl Piecewise for HttpRepository {
    async fn image_pieces(&self, digest: &str) -> Result<Option<Pieces>, RepositoryError> {
        // it may have to read the whole image first
        let asked = self.request(Method::GET, &image_pieces_path(digest)).timeout(wire::LONG).send().await;
        let mut reply = match asked.map(|reply| (reply.status(), reply)) {
            // also one that is older than the words for it
            Ok((status, reply)) if status == reqwest::StatusCode::NOT_FOUND => match answered(Ok(reply)).await {
                Err(RepositoryError::NotFound(what)) if what != wire::NO_PATH => {
                    return Err(RepositoryError::NotFound(what));
                }
                _ => return Ok(None),
            },
            asked => answered(asked.map(|(_, reply)| reply)).await?,
        };
        let mut bytes = Vec::new();
        while let Some(chunk) = reply.chunk().await.map_err(unreachable)? {
            if bytes.len() + chunk.len() > MAX_BYTES {
                return Err(RepositoryError::Damaged("the names of the image's pieces have no end".into()));
            }
            bytes.extend_from_slice(&chunk);
        }
        Pieces::parse(&bytes).map(Some).map_err(|error| RepositoryError::Damaged(error.to_string()))
    }

    async fn image_bytes(&self, digest: &str, range: Range<u64>) -> Result<ByteStream, RepositoryError> {
        let path = image_bytes_path(digest, BytesQuery { from: range.start, to: range.end });
        let asked = tokio::time::timeout(SHORT, self.request(Method::GET, &path).send()).await;
        let asked = asked.map_err(|_| RepositoryError::Unreachable("no answer".into()))?;
        Ok(answered(asked).await?.bytes_stream().map_err(std::io::Error::other).boxed())
    }

    fn image_peer(&self, address: &AgentAddress) -> Option<Arc<dyn ImagePeer>> {
        Some(Arc::new(AgentHttp::new(&self.credentials, address)))
    }
}
