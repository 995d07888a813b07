//! Requests as they are, for what a client hides.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) code: Option<u32>,
    /// The code's text, decoded.
    pub(crate) info: Option<String>,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    /// The document in it.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Status and code.
    pub(crate) fn codes(&self) -> (u16, Option<u32>) {
        (self.status, self.code)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) enum Account {
    Nobody,
    Header(String),
    Basic(String, String),
}

/// Asks as this account.
pub(crate) async fn ask(url: &str, account: &Account, method: &str, path: &str, body: Option<&Value>) -> Reply {
    let mut request = request(url, account, method, path);
    if let Some(body) = body {
        request = request.json(body);
    }
    send(request).await
}

/// A request without a body.
pub(crate) fn request(url: &str, account: &Account, method: &str, path: &str) -> RequestBuilder {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
    let request = client.request(Method::from_bytes(method.as_bytes()).unwrap(), format!("{url}{path}"));
    let request = request.header("accept", "application/json");
    match account {
        Account::Nobody => request,
        Account::Header(user) => request.header("x-kadeploy-user", user),
        Account::Basic(user, password) => request.basic_auth(user, Some(password)),
    }
}

pub(crate) async fn send(request: RequestBuilder) -> Reply {
    let reply = request.send().await.unwrap();
    let header = |name: &str| reply.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let decoded = |info: String| {
        use base64::Engine as _;
        String::from_utf8(base64::prelude::BASE64_STANDARD.decode(info).unwrap()).unwrap()
    };
    Reply {
        status: reply.status().as_u16(),
        code: header("x-application-error-code").map(|code| code.parse().unwrap()),
        info: header("x-application-error-info").map(decoded),
        headers: reply.headers().clone(),
        text: reply.text().await.unwrap(),
    }
}
