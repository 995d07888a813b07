//! The client of the repository. Small requests have a time limit each; streams may take as long as
//! they move.

use std::sync::Arc;

use async_trait::async_trait;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    DiskRecord, GenerationSummary, JobContent, JobUsage, KeptPart, OutputSummary, PartLedger, Repository,
    RepositoryError,
    pace::Pace,
    parts::{Kept, LastNamed},
    wire::{
        self, ErrorReply, FenceOrder, IMAGES_PATH, LONG, MAX_ERROR, SHORT, USAGE_PATH, adopted_path, disk_record_path,
        generation_path, image_path, job_path, outputs_path, parts_path,
    },
};
use crate::{
    names::{Generation, Identity, Incarnation, JobUid},
    store::{adoption::Adoption, images::ImageReview, layout, manifest::Manifest},
    tls::{Credentials, TlsError, base_url},
};

/// The repository at an address.
#[derive(Clone, Debug)]
pub struct HttpRepository {
    client: reqwest::Client,
    pub(super) credentials: Credentials,
    /// Where packs and recipes go instead: the client and the address of another agent.
    pub(super) to: Option<(reqwest::Client, String)>,
    /// What is being sent.
    pub(super) last: LastNamed,
    /// What the own node keeps.
    pub(super) kept: Option<Arc<Kept>>,
    /// How fast parts are sent.
    pub(super) pace: Arc<Pace>,
}

impl HttpRepository {
    /// A client that speaks for the owner of `credentials` to the repository at `host:port`.
    pub fn new(credentials: &Credentials, endpoint: &str) -> Result<Self, TlsError> {
        let client = credentials.http_client(&Identity::Repository, endpoint)?;
        Ok(Self {
            client,
            credentials: credentials.clone(),
            to: None,
            last: LastNamed::default(),
            kept: None,
            pace: Arc::default(),
        })
    }

    /// The same, which looks first at what the own node keeps, and offers it what it sends.
    #[must_use]
    pub fn keeping(self, kept: Option<Arc<Kept>>) -> Self {
        Self { kept, ..self }
    }

    /// The same, which sends parts as fast as this says.
    #[must_use]
    pub fn at(self, pace: Arc<Pace>) -> Self {
        Self { pace, ..self }
    }

    /// The same, which sends packs and recipes to another agent.
    #[must_use]
    pub(super) fn delivering(self, client: reqwest::Client, base: String) -> Self {
        Self { to: Some((client, base)), ..self }
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", base_url(&Identity::Repository)))
            .header(wire::PROTOCOL, wire::VERSION)
    }

    /// A request that brings a pack or a recipe.
    pub(super) fn deliver(&self, path: &str) -> RequestBuilder {
        match &self.to {
            None => self.request(Method::PUT, path),
            Some((client, base)) => client.put(format!("{base}{path}")).header(wire::PROTOCOL, wire::VERSION),
        }
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, RepositoryError> {
        let reply = answered(self.request(method, path).timeout(SHORT).send().await).await?;
        reply.json().await.map_err(unreachable)
    }

    pub(super) async fn tell(
        &self,
        method: Method,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<(), RepositoryError> {
        answered(self.request(method, path).timeout(SHORT).json(body).send().await).await.map(drop)
    }
}

/// A failure on the way, with its causes: the outermost says little.
pub(super) fn unreachable(error: reqwest::Error) -> RepositoryError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    RepositoryError::Unreachable(text)
}

/// The version of the protocol that the other side speaks.
fn spoken(reply: &Response) -> u32 {
    reply.headers().get(wire::PROTOCOL).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(1)
}

/// Whether it refuses because it is of an earlier version: it has no such path, or says so.
pub(super) fn does_not_understand(reply: &Response) -> bool {
    let refused = matches!(reply.status(), StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | wire::TOO_NEW);
    refused && spoken(reply) < wire::VERSION
}

/// The reply, or what went wrong.
pub(super) async fn answered(sent: Result<Response, reqwest::Error>) -> Result<Response, RepositoryError> {
    let mut reply = sent.map_err(unreachable)?;
    let status = reply.status();
    if status.is_success() {
        return Ok(reply);
    }
    let spoken = spoken(&reply);
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = reply.chunk().await {
        if body.len() + chunk.len() > MAX_ERROR {
            break;
        }
        body.extend_from_slice(&chunk);
    }
    if let Ok(error) = serde_json::from_slice::<ErrorReply>(&body) {
        return Err(match error.into() {
            // it will be of this version soon: they are upgraded together
            RepositoryError::NotFound(what) if what == wire::NO_PATH && spoken < wire::VERSION => {
                RepositoryError::Unreachable(format!(
                    "it speaks version {spoken} and does not know a request of version {}: waiting until it is upgraded",
                    wire::VERSION
                ))
            }
            error => error,
        });
    }
    let text = format!("{status}: {}", String::from_utf8_lossy(&body));
    Err(match status {
        StatusCode::NOT_FOUND => RepositoryError::NotFound(text),
        status if status.is_client_error() => RepositoryError::Refused(text),
        _ => RepositoryError::Unreachable(text),
    })
}

#[async_trait]
impl Repository for HttpRepository {
    async fn content(&self, job: &JobUid) -> Result<JobContent, RepositoryError> {
        self.ask(Method::GET, &job_path(job)).await
    }

    async fn manifest(&self, job: &JobUid, generation: Generation) -> Result<Manifest, RepositoryError> {
        let reply = self.request(Method::GET, &generation_path(job, generation)).timeout(SHORT).send().await;
        let bytes = answered(reply).await?.bytes().await.map_err(unreachable)?;
        Manifest::parse(&bytes).map_err(|e| RepositoryError::Damaged(e.to_string()))
    }

    async fn fence(&self, job: &JobUid, incarnation: Incarnation) -> Result<(), RepositoryError> {
        self.tell(Method::PUT, &format!("{}/fence", job_path(job)), &FenceOrder { incarnation }).await
    }

    async fn publish(&self, manifest: &Manifest) -> Result<GenerationSummary, RepositoryError> {
        let path = generation_path(&manifest.job, manifest.generation);
        let sent = self.request(Method::PUT, &path).timeout(LONG).json(manifest).send().await;
        answered(sent).await?.json().await.map_err(unreachable)
    }

    async fn adopt(&self, job: &JobUid, order: &Adoption) -> Result<GenerationSummary, RepositoryError> {
        // it goes on there when nobody waits for it any more
        let sent = self.request(Method::PUT, &adopted_path(job)).timeout(SHORT).json(order).send().await;
        answered(sent).await?.json().await.map_err(unreachable)
    }

    async fn retire(&self, job: &JobUid, generation: Generation) -> Result<(), RepositoryError> {
        let sent = self.request(Method::DELETE, &generation_path(job, generation)).timeout(LONG).send().await;
        answered(sent).await.map(drop)
    }

    async fn give_up(&self, job: &JobUid, generation: Generation) -> Result<(), RepositoryError> {
        let sent = self.request(Method::DELETE, &parts_path(job, generation)).timeout(LONG).send().await;
        answered(sent).await.map(drop)
    }

    async fn remove_job(&self, job: &JobUid) -> Result<(), RepositoryError> {
        answered(self.request(Method::DELETE, &job_path(job)).timeout(LONG).send().await).await.map(drop)
    }

    async fn usage(&self) -> Result<Vec<JobUsage>, RepositoryError> {
        self.ask(Method::GET, USAGE_PATH).await
    }

    async fn outputs(&self, job: &JobUid) -> Result<Vec<OutputSummary>, RepositoryError> {
        self.ask(Method::GET, &outputs_path(job)).await
    }

    async fn image(&self, digest: &str) -> Result<Option<u64>, RepositoryError> {
        layout::image(digest)?;
        let reply = self.request(Method::HEAD, &image_path(digest)).timeout(SHORT).send().await.map_err(unreachable)?;
        if reply.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let reply = answered(Ok(reply)).await?;
        let length = reply.headers().get(reqwest::header::CONTENT_LENGTH);
        let size = length.and_then(|value| value.to_str().ok()?.parse().ok());
        size.map(Some).ok_or_else(|| RepositoryError::Unreachable("the reply says no size".into()))
    }

    async fn disk_record(&self, digest: &str) -> Result<Option<DiskRecord>, RepositoryError> {
        layout::image(digest)?;
        match self.ask(Method::GET, &disk_record_path(digest)).await {
            Ok(record) => Ok(Some(record)),
            Err(RepositoryError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn review_images(&self, review: &ImageReview) -> Result<Vec<String>, RepositoryError> {
        let sent = self.request(Method::PUT, IMAGES_PATH).timeout(LONG).json(review).send().await;
        answered(sent).await?.json().await.map_err(unreachable)
    }
}

#[async_trait]
impl PartLedger for HttpRepository {
    async fn keep_part(&self, job: &JobUid, generation: Generation, kept: &KeptPart) -> Result<(), RepositoryError> {
        self.tell(Method::POST, &parts_path(job, generation), kept).await
    }

    async fn kept_parts(&self, job: &JobUid, generation: Generation) -> Result<Vec<KeptPart>, RepositoryError> {
        self.ask(Method::GET, &wire::parts_path(job, generation)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_repository_of_the_version_before_is_waited_for() {
        let reply = |what: &str, version: Option<u32>| {
            let error = ErrorReply::from(RepositoryError::NotFound(what.into()));
            let mut reply = axum::http::Response::builder().status(404);
            if let Some(version) = version {
                reply = reply.header(wire::PROTOCOL, version);
            }
            Ok(Response::from(reply.body(serde_json::to_vec(&error).unwrap()).unwrap()))
        };
        let old = answered(reply(wire::NO_PATH, None)).await.map(drop);
        assert!(matches!(&old, Err(RepositoryError::Unreachable(why)) if why.contains("version 1")), "{old:?}");
        for (what, version) in [(wire::NO_PATH, Some(wire::VERSION)), ("generation 3", None)] {
            let found = answered(reply(what, version)).await.map(drop);
            assert_eq!(found, Err(RepositoryError::NotFound(what.into())));
        }
    }
}
