//! One HTTP exchange with a deployment server: identity, time limits, bounded bodies.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::{
    Client, Method,
    header::{ACCEPT, HeaderMap, HeaderName, HeaderValue, LOCATION},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    KadeployError,
    errors::{self, Refusal},
    names, pin, wire,
};
use crate::{
    config::{self, KadeployConfig, SiteConfig},
    driver::{
        exchange::{self, BAD_CERTIFICATE, shown},
        site::Credentials,
    },
};

/// Largest body that is read.
const MAX_BODY: usize = 16 << 20;
/// The header with the code of a refusal.
const CODE: HeaderName = HeaderName::from_static("x-application-error-code");
/// Limit of a read.
const READ: Duration = Duration::from_secs(10);
/// Limit of a write: a cancellation takes the server several seconds, and a request has it look at files elsewhere.
const WRITE: Duration = Duration::from_secs(60);

/// An answer.
pub(super) struct Reply {
    pub(super) status: u16,
    /// The code of a refusal, or of a workflow that broke.
    pub(super) code: Option<u32>,
    /// Where what was made is found.
    pub(super) location: Option<String>,
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// The document in it, unless it is a refusal.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        if !(200..300).contains(&self.status) {
            return Err(self.refusal());
        }
        wire::parse(&self.body).map_err(|error| {
            let text = format!("an answer that is not a deployment server's ({error}): {:?}", shown(&self.body, 80));
            Refusal::Error(KadeployError::Unreachable(text))
        })
    }

    /// What it means if it is none of success.
    pub(super) fn refusal(&self) -> Refusal {
        errors::classify(self.status, self.code, &self.body)
    }
}

/// A client with one identity.
pub(super) struct Http {
    client: Client,
    base: String,
    password: Option<(String, String)>,
    user: String,
}

impl Http {
    pub(super) fn new(
        site: &SiteConfig,
        server: &KadeployConfig,
        credentials: &Credentials,
    ) -> Result<Self, KadeployError> {
        let wrong = |what: &str, e: &dyn std::fmt::Display| KadeployError::Configuration(format!("{what}: {e}"));
        let header = |name: &str| -> Result<HeaderName, KadeployError> {
            format!("{}{name}", server.header_prefix).parse().map_err(|e| wrong("headerPrefix", &e))
        };
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let (user, password) = match credentials {
            Credentials::Header { user } => (user.clone(), None),
            Credentials::Basic { username, password } => (username.clone(), Some((username.clone(), password.clone()))),
            Credentials::Certificate { certificate, .. } => {
                let user = config::certificate_user(site).map_err(KadeployError::Credentials)?;
                let certificate = BASE64_STANDARD.encode(certificate);
                headers.insert(header("Certificate")?, certificate.parse().map_err(|e| wrong("certificate", &e))?);
                (user.to_owned(), None)
            }
        };
        names::user(&user).map_err(|error| KadeployError::Credentials(error.to_string()))?;
        if password.is_none() {
            headers.insert(header("User")?, user.parse().map_err(|e| wrong("user", &e))?);
        }
        let mut builder = exchange::client(headers, server.ca.as_deref()).map_err(|e| wrong("ca", &e))?;
        if let Some(digest) = server.pin.as_deref().and_then(config::digest) {
            builder = builder.tls_backend_preconfigured(pin::client(digest).map_err(|e| wrong("pin", &e))?);
        }
        let client = builder.build().map_err(|e| wrong("client", &exchange::causes(&e)))?;
        Ok(Self { client, base: server.url.trim_end_matches('/').into(), password, user })
    }

    /// The account's name at the server.
    pub(super) fn user(&self) -> &str {
        &self.user
    }

    /// Asks for something.
    pub(super) async fn get(&self, path: &str) -> Result<Reply, KadeployError> {
        self.exchange(Method::GET, path, None, READ).await
    }

    /// Asks for a change.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Reply, KadeployError> {
        let body = body.map(serde_json::to_vec).transpose().map_err(|e| KadeployError::Bug(e.to_string()))?;
        self.exchange(method, path, body, WRITE).await
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        limit: Duration,
    ) -> Result<Reply, KadeployError> {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).timeout(limit);
        if let Some((user, password)) = &self.password {
            request = request.basic_auth(user, Some(password));
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let reply = request.send().await.map_err(|error| KadeployError::Unreachable(unanswered(&error)))?;
        let status = reply.status().as_u16();
        let text = |name: &HeaderName| reply.headers().get(name)?.to_str().ok().map(str::to_owned);
        let (code, location) = (text(&CODE), text(&LOCATION));
        let code = code.and_then(|code| code.trim().parse().ok());
        let body = exchange::body(reply, MAX_BODY).await.map_err(KadeployError::Unreachable)?;
        Ok(Reply { status, code, location, body })
    }
}

/// Why there is no answer, and what helps.
fn unanswered(error: &reqwest::Error) -> String {
    let causes = exchange::causes(error);
    if causes.contains(BAD_CERTIFICATE) { format!("{causes}: set sites.*.kadeploy.pin or ca") } else { causes }
}
