//! What the clients of other people's web servers have in common: bounded answers, and errors that say their cause.

use std::time::Duration;

use futures::StreamExt as _;
use reqwest::{Certificate, Client, ClientBuilder, Response, header::HeaderMap};

/// Longest time to connect.
const CONNECT: Duration = Duration::from_secs(10);
/// Web servers close idle connections after a few seconds; one that is just being closed would look like an outage.
const IDLE: Duration = Duration::from_secs(3);
/// What TLS says of somebody else's certificate that is not to be trusted.
pub(crate) const BAD_CERTIFICATE: &str = "invalid peer certificate";

/// A client that sends nothing by itself: no redirects, no second tries. With `ca`, PEM, it trusts nobody else.
pub(super) fn client(headers: HeaderMap, ca: Option<&str>) -> reqwest::Result<ClientBuilder> {
    let builder = Client::builder()
        .default_headers(headers)
        .connect_timeout(CONNECT)
        .pool_idle_timeout(IDLE)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never());
    let Some(ca) = ca else { return Ok(builder) };
    Ok(builder.tls_certs_only(Certificate::from_pem_bundle(ca.as_bytes())?))
}

/// The body of an answer, unless it is larger than any of that server's.
pub(crate) async fn body(reply: Response, most: usize) -> Result<Vec<u8>, String> {
    let mut stream = reply.bytes_stream();
    let mut bytes = Vec::new();
    while let Some(part) = stream.next().await {
        bytes.extend_from_slice(&part.map_err(|error| causes(&error))?);
        if bytes.len() > most {
            return Err(format!("an answer of more than {most} bytes"));
        }
    }
    Ok(bytes)
}

/// The whole chain of causes: the outer ones only say that a request failed.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// The beginning of a text that nobody of ours wrote, on one line, for people.
pub(super) fn shown(text: &[u8], most: usize) -> String {
    let text = String::from_utf8_lossy(text);
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().filter(|c| !c.is_control()).take(most).collect()
}
