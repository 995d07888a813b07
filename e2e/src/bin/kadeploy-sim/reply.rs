//! Answers in the original's form, with the headers that it leaves empty.

use axum::{
    body::Body,
    http::{HeaderValue, Response, header},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;

pub(crate) type Answer = Result<Response<Body>, Refusal>;

/// What is no success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A code of its own, and the text of it.
    Coded(u32, String),
    /// A status of HTTP, and the text.
    Plain(u16, String),
    /// Nothing of that name among what there could be.
    NotFound(String),
    /// No such path.
    NoPage(String),
    /// These methods only.
    Method(&'static str),
    /// Who asks is nobody.
    Nobody(String),
    /// A bug of the original.
    Crash(&'static str),
}

/// The texts of the original's codes.
fn text_of(code: u32) -> &'static str {
    match code {
        1 => "Invalid workflow ID",
        2 => "Invalid node list",
        3 => "Invalid client's export",
        4 => "Invalid option in the request",
        5 => "Invalid file",
        6 => "You do not have sufficient rights to perform the operation on all the nodes",
        7 => "Invalid environment specification",
        10 => "Element already exists",
        11 => "Some elements already exists and are conflicting",
        14 => "No element has been modified",
        _ => "Unknown error",
    }
}

impl Refusal {
    /// A code, and what is said beside its text.
    pub(crate) fn coded(code: u32, more: impl AsRef<str>) -> Self {
        let more = more.as_ref();
        let text = text_of(code);
        Self::Coded(code, if more.is_empty() { text.into() } else { format!("{text} -- {more}") })
    }

    pub(crate) fn forbidden(why: &str) -> Self {
        Self::Plain(403, format!("Forbidden -- {why}"))
    }

    /// What the original says of what it keeps in its database.
    pub(crate) fn no_record() -> Self {
        Self::NotFound("Kadeploy::HTTPd::NotFoundError".into())
    }
}

impl From<Refusal> for Response<Body> {
    fn from(refusal: Refusal) -> Self {
        let page = |path: &str| {
            format!(
                "<!DOCTYPE HTML PUBLIC \"-//W3C//DTD HTML 4.0//EN\">\n<HTML>\n  <HEAD><TITLE>Not Found</TITLE></HEAD>\n  \
                 <BODY>\n    <H1>Not Found</H1>\n    `{path}' not found.\n  </BODY>\n</HTML>"
            )
        };
        let crash = |what: &str| {
            format!(
                "---- NoMethodError ----\n{what}\n\n---- Stack trace ----\n/srv/kadeploy/server.rb:42:in \
                 `deploy_prepare'\n/srv/kadeploy/server.rb:401:in `run_method'\n---------------------"
            )
        };
        match refusal {
            Refusal::Coded(code, text) => {
                let mut reply = plain(400, &text);
                reply.headers_mut().insert("x-application-error-code", HeaderValue::from(code));
                if let Ok(info) = HeaderValue::from_str(&BASE64_STANDARD.encode(&text)) {
                    reply.headers_mut().insert("x-application-error-info", info);
                }
                reply
            }
            Refusal::Plain(status, text) => plain(status, &text),
            Refusal::NotFound(what) => plain(404, &format!("File Not Found -- {what}")),
            Refusal::NoPage(path) => with_type(404, "text/html; charset=ISO-8859-1", page(&path)),
            Refusal::Method(allowed) => {
                let mut reply = plain(405, "Method Not Allowed");
                reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
                reply
            }
            Refusal::Nobody(why) => {
                let mut reply = plain(401, &format!("Unauthorized -- Authentication failed: {why}"));
                let realm = HeaderValue::from_static("Basic realm=\"kadeploy-sim\"");
                reply.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
                reply
            }
            Refusal::Crash(what) => plain(500, &crash(what)),
        }
    }
}

fn with_type(status: u16, kind: &'static str, body: String) -> Response<Body> {
    let mut reply = Response::new(Body::from(body));
    *reply.status_mut() = axum::http::StatusCode::from_u16(status).unwrap_or_default();
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

fn plain(status: u16, text: &str) -> Response<Body> {
    with_type(status, "text/plain; charset=\"UTF-8\"", format!("{text}\n"))
}

/// A text.
#[expect(clippy::unnecessary_wraps, reason = "an answer as the others are")]
pub(crate) fn text(text: &str) -> Answer {
    let mut reply = plain(200, text);
    reply.headers_mut().insert(header::ETAG, HeaderValue::from_static(""));
    Ok(reply)
}

/// A document.
#[expect(clippy::unnecessary_wraps, reason = "an answer as the others are")]
pub(crate) fn json(value: &Value) -> Answer {
    let mut reply = with_type(200, "application/json; charset=\"UTF-8\"", format!("{value:#}"));
    reply.headers_mut().insert(header::ETAG, HeaderValue::from_static(""));
    reply.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static(""));
    Ok(reply)
}
