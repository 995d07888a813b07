//! Requests as they are, for what a client hides.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use vmdeploy::{config::digest, driver::kadeploy::pin};

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

/// What the names of a server's own headers begin with, if nothing else is said.
pub(crate) const PREFIX: &str = "X-Kadeploy-";

/// Where a server is, and what must be known to speak to it.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) url: String,
    /// What the names of its own headers begin with.
    pub(crate) prefix: String,
    /// Its certificate, as the product's configuration has it.
    pub(crate) pin: Option<String>,
}

impl Address {
    /// A site's section in the product's configuration.
    pub(crate) fn section(&self) -> Value {
        json!({"url": self.url, "headerPrefix": self.prefix, "pin": self.pin})
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) enum Account {
    Nobody,
    Header(String),
    Basic(String, String),
}

impl Account {
    /// The one that a setting names: `NAME` by the header, `NAME:PASSWORD` by these.
    pub(crate) fn given(text: &str) -> Self {
        match text.split_once(':') {
            Some((user, password)) => Self::Basic(user.into(), password.into()),
            None => Self::Header(text.into()),
        }
    }

    /// Its user.
    pub(crate) fn user(&self) -> &str {
        match self {
            Self::Nobody => panic!("nobody has no name"),
            Self::Header(user) | Self::Basic(user, _) => user,
        }
    }
}

/// Asks as this account.
pub(crate) async fn ask(address: &Address, account: &Account, method: &str, path: &str, body: Option<&Value>) -> Reply {
    let mut request = request(address, account, method, path);
    if let Some(body) = body {
        request = request.json(body);
    }
    send(request).await
}

/// A request without a body.
pub(crate) fn request(address: &Address, account: &Account, method: &str, path: &str) -> RequestBuilder {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder().timeout(Duration::from_secs(60));
    if let Some(pin) = &address.pin {
        builder = builder.tls_backend_preconfigured(pin::client(digest(pin).unwrap()).unwrap());
    }
    let client = builder.build().unwrap();
    let request = client.request(Method::from_bytes(method.as_bytes()).unwrap(), format!("{}{path}", address.url));
    let request = request.header("accept", "application/json");
    match account {
        Account::Nobody => request,
        Account::Header(user) => request.header(format!("{}User", address.prefix), user),
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
