//! What the clients of other people's web servers have in common: bounded answers, and errors that say their cause.

use futures::StreamExt as _;
use reqwest::Response;

/// The body of an answer, unless it is larger than any of that server's.
pub(super) async fn body(reply: Response, most: usize) -> Result<Vec<u8>, String> {
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
