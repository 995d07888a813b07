//! One HTTP exchange with OAR's API: identity, time limits, bounded bodies.

use std::time::Duration;

use reqwest::{Client, Method, StatusCode, header::HeaderMap};
use serde::{Serialize, de::DeserializeOwned};

use super::{errors, wire};
use crate::{
    config::SiteConfig,
    driver::{
        exchange,
        site::{Credentials, SiteError},
    },
};

/// Largest body that is read.
const MAX_BODY: usize = 32 << 20;
/// Limit of a read.
const READ: Duration = Duration::from_secs(10);
/// Limit of a write. A submission hangs while OAR's database is down, and may succeed afterwards.
const WRITE: Duration = Duration::from_secs(30);

/// A client with one identity.
pub(super) struct Http {
    client: Client,
    base: String,
    credentials: Credentials,
}

impl Http {
    pub(super) fn new(site: &SiteConfig, credentials: Credentials) -> Result<Self, SiteError> {
        let wrong = |what: &str, e: &dyn std::fmt::Display| SiteError::Configuration(format!("{what}: {e}"));
        let mut headers = HeaderMap::new();
        for (name, value) in &site.headers {
            let name: reqwest::header::HeaderName = name.parse().map_err(|e| wrong(name, &e))?;
            headers.insert(name, value.parse().map_err(|e| wrong("header", &e))?);
        }
        if let Credentials::Header { user } = &credentials {
            // hyphens: Apache drops headers with underscores
            headers.insert("x-remote-ident", user.parse().map_err(|e| wrong("user", &e))?);
        }
        let mut builder = exchange::client(headers, site.ca.as_deref()).map_err(|e| wrong("ca", &e))?;
        if let Credentials::Certificate { certificate, key } = &credentials {
            let pem = format!("{key}\n{certificate}\n");
            let identity = reqwest::Identity::from_pem(pem.as_bytes())
                .map_err(|_| SiteError::Credentials("certificate or key cannot be read".into()))?;
            builder = builder.identity(identity);
        }
        let client = builder.build().map_err(|e| wrong("client", &e))?;
        Ok(Self { client, base: site.url.trim_end_matches('/').into(), credentials })
    }

    /// Reads a document.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, SiteError> {
        let (status, body) = self.exchange(Method::GET, path, None, READ).await?;
        parse(status, &body)
    }

    /// Creates something; the reply must say 201.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, SiteError> {
        let body = serde_json::to_vec(body).map_err(|e| SiteError::Bug(e.to_string()))?;
        let (status, body) = self.exchange(Method::POST, path, Some(body), WRITE).await?;
        if status != StatusCode::CREATED && status.is_success() {
            return Err(SiteError::Unreachable(format!("HTTP status {status} where 201 was expected")));
        }
        parse(status, &body)
    }

    /// Deletes something; gives status and body, for refusals that are none.
    pub(super) async fn delete(&self, path: &str) -> Result<(StatusCode, Vec<u8>), SiteError> {
        self.exchange(Method::DELETE, path, None, WRITE).await
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        limit: Duration,
    ) -> Result<(StatusCode, Vec<u8>), SiteError> {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).timeout(limit);
        if let Credentials::Basic { username, password } = &self.credentials {
            request = request.basic_auth(username, Some(password));
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let reply = request.send().await.map_err(failed)?;
        let status = reply.status();
        let bytes = exchange::body(reply, MAX_BODY).await.map_err(SiteError::Unreachable)?;
        Ok((status, bytes))
    }
}

fn parse<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<T, SiteError> {
    if !status.is_success() {
        return Err(errors::classify(status.as_u16(), body));
    }
    wire::parse(body).map_err(|e| {
        let shown: String = String::from_utf8_lossy(body).chars().take(80).collect();
        SiteError::Unreachable(format!("an answer that is not OAR's ({e}): {shown:?}"))
    })
}

/// In the same words for all requests: statuses show them, and each change is a write.
fn failed(error: reqwest::Error) -> SiteError {
    let (wrong, at) = (error.is_builder(), error.url().map(|url| url.origin().ascii_serialization()));
    let causes = exchange::causes(&error.without_url());
    let text = match at {
        Some(at) => format!("{at}: {causes}"),
        None => causes,
    };
    if wrong { SiteError::Configuration(text) } else { SiteError::Unreachable(text) }
}
