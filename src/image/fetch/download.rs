//! A file by HTTP, as far as the server lets it come: along redirects, and on from where it broke.
//!
//! A login is sent to the origin that was asked for (scheme, host and port) and to no other. A broken transfer goes on
//! under the condition that the file is still the same one; where the server cannot tell, it begins again.

use std::{path::Path, time::Duration};

use futures::{StreamExt as _, future::BoxFuture};
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::File,
    io::{AsyncSeekExt as _, AsyncWriteExt as _},
};

use super::{local, too_large, unanswered};
use crate::{
    backoff::Backoff,
    image::{StoredFile, Trouble, TroubleKind},
};

/// Most redirects.
const REDIRECTS: usize = 10;
/// Most times that one transfer goes on after a break.
const BREAKS: u32 = 12;
/// The pauses before it does.
pub(super) const PAUSES: Backoff = Backoff { first: Duration::from_millis(250), longest: Duration::from_secs(15) };

/// What came, and whether it came in several parts.
pub(super) type Fetched = (StoredFile, bool);

/// Says what an answer other than success means.
pub(super) type OnRefusal<'a> = dyn Fn(&Url, StatusCode) -> Trouble + Send + Sync + 'a;

/// Gets what a server that was told of it accepts.
pub(super) type Renew<'a> = dyn Fn() -> BoxFuture<'a, Result<Option<HeaderValue>, Trouble>> + Send + Sync + 'a;

/// One file to fetch.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client,
    pub(super) url: &'a Url,
    /// For the origin of `url` only.
    pub(super) authorization: Option<HeaderValue>,
    /// How to get another one, where it does not last as long as a transfer may take.
    pub(super) renew: Option<&'a Renew<'a>>,
    /// Is given the address that answered.
    pub(super) refused: &'a OnRefusal<'a>,
    /// For messages.
    pub(super) field: &'a str,
    /// Most bytes.
    pub(super) limit: u64,
    /// Before it goes on after a break.
    pub(super) pauses: Backoff,
}

impl Download<'_> {
    /// Fetches it to `to`.
    pub(super) async fn run(mut self, to: &Path) -> Result<Fetched, Trouble> {
        let mut partial = Partial::new(File::create(to).await.map_err(|e| local(&e))?);
        let mut breaks = 0;
        while let Err(trouble) = self.go_on(&mut partial).await {
            let denied = matches!(trouble.kind, TroubleKind::LoginMissing | TroubleKind::LoginRefused);
            let renew = self.renew.filter(|_| denied);
            if !(trouble.again || renew.is_some()) || !partial.begun || breaks == BREAKS {
                return Err(trouble);
            }
            breaks += 1;
            if let Some(renew) = renew {
                self.authorization = renew().await?;
            }
            tracing::info!(%trouble, size = partial.size, breaks, "the transfer broke: it goes on");
            tokio::time::sleep(self.pauses.full(breaks)).await;
        }
        partial.file.flush().await.map_err(|e| local(&e))?;
        let digest = format!("sha256:{:x}", partial.digest.finalize());
        Ok((StoredFile { digest, size: partial.size }, breaks > 0))
    }

    async fn go_on(&self, partial: &mut Partial) -> Result<(), Trouble> {
        if partial.is_whole() {
            return Ok(());
        }
        let reply = self.send(&partial.rest()).await?;
        match reply.status() {
            StatusCode::PARTIAL_CONTENT if partial.is_continued_by(reply.headers()) => {}
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                partial.restart(None, None).await?;
                return Err(self.passing("the server sends another part than was asked for"));
            }
            status if !status.is_success() => return Err((self.refused)(reply.url(), status)),
            _ => partial.restart(reply.content_length(), validator(reply.headers())).await?,
        }
        if partial.total.is_some_and(|total| total > self.limit) {
            return Err(too_large(self.field, self.limit));
        }
        let mut body = reply.bytes_stream();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| self.passing(&unanswered(&error)))?;
            partial.add(&chunk).await?;
            if partial.size > self.limit {
                return Err(too_large(self.field, self.limit));
            }
        }
        match partial.total {
            Some(total) if partial.size < total => Err(self.passing("the server ended before the file did")),
            _ => Ok(()),
        }
    }

    /// Sends the request to where it is redirected.
    pub(super) async fn send(&self, headers: &HeaderMap) -> Result<Response, Trouble> {
        let mut url = self.url.clone();
        for _ in 0..=REDIRECTS {
            let mut request = self.client.get(url.clone()).headers(headers.clone());
            if let Some(login) = self.authorization.as_ref().filter(|_| url.origin() == self.url.origin()) {
                request = request.header(AUTHORIZATION, login);
            }
            let reply = request.send().await.map_err(|error| self.passing(&unanswered(&error)))?;
            let moved = matches!(reply.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let Some(place) = reply.headers().get(LOCATION).filter(|_| moved) else { return Ok(reply) };
            let place = place.to_str().ok().and_then(|place| url.join(place).ok());
            let known = place.filter(|place| matches!(place.scheme(), "http" | "https"));
            url = known.ok_or_else(|| self.lost("leads to what is no http or https address"))?;
        }
        Err(self.lost(&format!("leads on more than {REDIRECTS} times")))
    }

    fn passing(&self, why: &str) -> Trouble {
        Trouble::passing(TroubleKind::Fetch, format!("failed to fetch {} ({}): {why}", self.url, self.field))
    }

    fn lost(&self, why: &str) -> Trouble {
        Trouble::refused(TroubleKind::Fetch, format!("{} {why}: correct the url of {}", self.url, self.field))
    }
}

/// What has come so far.
struct Partial {
    file: File,
    digest: Sha256,
    size: u64,
    /// Size of the whole file, if the server says it.
    total: Option<u64>,
    /// By what the server knows whether the file is still the same one.
    validator: Option<HeaderValue>,
    /// Whether anything ever came: what does not begin is tried again by others, later.
    begun: bool,
}

impl Partial {
    fn new(file: File) -> Self {
        Self { file, digest: Sha256::new(), size: 0, total: None, validator: None, begun: false }
    }

    fn is_whole(&self) -> bool {
        self.begun && self.total == Some(self.size)
    }

    /// The headers that ask for what is missing; none where all is to be asked for.
    fn rest(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(validator) = self.validator.clone().filter(|_| self.size > 0)
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", self.size))
        {
            headers.insert(RANGE, range);
            headers.insert(IF_RANGE, validator);
        }
        headers
    }

    fn is_continued_by(&self, headers: &HeaderMap) -> bool {
        let part = headers.get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let part = part.and_then(|range| range.strip_prefix("bytes ")?.split_once('/'));
        let Some((span, total)) = part else { return false };
        let from = span.split_once('-').and_then(|(from, _)| from.parse().ok());
        let same_size = self.total.is_none() || total == "*" || total.parse().ok() == self.total;
        let same_file = validator(headers).is_none_or(|validator| self.validator == Some(validator));
        self.size > 0 && from == Some(self.size) && same_size && same_file
    }

    async fn restart(&mut self, total: Option<u64>, validator: Option<HeaderValue>) -> Result<(), Trouble> {
        self.file.set_len(0).await.map_err(|e| local(&e))?;
        self.file.rewind().await.map_err(|e| local(&e))?;
        (self.digest, self.size, self.total, self.validator) = (Sha256::new(), 0, total, validator);
        Ok(())
    }

    async fn add(&mut self, chunk: &[u8]) -> Result<(), Trouble> {
        self.begun = true;
        self.size += chunk.len() as u64;
        self.digest.update(chunk);
        self.file.write_all(chunk).await.map_err(|e| local(&e))
    }
}

/// What names this very file: a strong tag, or when it was changed.
fn validator(headers: &HeaderMap) -> Option<HeaderValue> {
    let tag = headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\""));
    tag.or_else(|| headers.get(LAST_MODIFIED)).cloned()
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;
