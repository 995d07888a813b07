//! What an error of the bucket means to whoever asked, in words that say what to change. Pure.
//!
//! Only an object that is certainly not there is absent; all else is not known, and waited for.

use std::{error::Error as _, fmt::Write as _, io};

use object_store::Error;

/// So much of what the store said is passed on.
const MOST: usize = 400;

/// The bucket did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(in crate::repository) struct BucketError(String);

/// An error in these words.
pub(super) fn error(message: impl Into<String>) -> io::Error {
    io::Error::other(BucketError(message.into()))
}

/// Whether it is an error of the bucket, and not of the disk.
pub(in crate::repository) fn is_of_bucket(error: &io::Error) -> bool {
    matches!(error.get_ref(), Some(inner) if inner.is::<BucketError>())
}

/// What the store's client says.
pub(super) fn told(found: Error) -> io::Error {
    let said = said(&found);
    let answer = Answer::of(&found);
    let is = |codes: &[&str]| answer.code.as_deref().is_some_and(|code| codes.contains(&code));
    if is(&["NoSuchBucket"]) {
        return error(format!("there is no such bucket: make it, or correct its name and its endpoint ({said})"));
    }
    if let Error::NotFound { path, .. } = &found {
        return io::Error::new(io::ErrorKind::NotFound, BucketError(format!("{path} is not in the bucket")));
    }
    if is(&["AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"])
        || answer.is_redirect
    {
        return error(format!("the bucket is in another region: correct the region ({said})"));
    }
    if answer.asks_host {
        return error(format!("there are no credentials: give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY ({said})"));
    }
    if answer.status == Some(507) || is(&["XMinioStorageFull", "QuotaExceeded", "InsufficientStorage"]) {
        return io::Error::new(io::ErrorKind::StorageFull, BucketError(format!("the bucket is full ({said})")));
    }
    match found {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => error(format!(
            "the store refuses the credentials: correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or let them list, \
             read, write and delete in the bucket ({said})"
        )),
        Error::NotImplemented { .. } | Error::NotSupported { .. } => unconditional(&said),
        _ if answer.status == Some(501) || is(&["NotImplemented"]) => unconditional(&said),
        _ => error(said),
    }
}

/// What the store has answered, apart from names, addresses and times, in which anything may stand.
#[derive(Debug, Default)]
struct Answer {
    /// Of HTTP.
    status: Option<u16>,
    /// Of S3.
    code: Option<String>,
    /// Elsewhere, without a word where.
    is_redirect: bool,
    /// Credentials were asked of the host.
    asks_host: bool,
}

impl Answer {
    fn of(error: &Error) -> Self {
        // the answer itself comes last; what is around it quotes it
        let mut texts = Vec::new();
        let mut source = error.source();
        while let Some(inner) = source {
            texts.push(inner.to_string());
            source = inner.source();
        }
        let Some(last) = texts.last() else { return Self::default() };
        let code = between(last, "<Code>", "</Code>").or_else(|| between(last, "(code: ", ")"));
        let status = last.split_once("status code: ").and_then(|(_, after)| after.get(..3)?.parse().ok());
        Self {
            status,
            code: code.map(str::to_owned),
            is_redirect: last.contains("redirect without LOCATION"),
            asks_host: texts.iter().any(|text| text.contains("http://169.254.169.254/")),
        }
    }
}

/// The text between the last of an opening and what closes it.
fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    Some(text.rsplit_once(open)?.1.split_once(close)?.0)
}

/// The store cannot keep two repositories apart.
pub(super) fn unconditional(said: &str) -> io::Error {
    error(format!(
        "the store does not do conditional puts (If-None-Match and If-Match), without which an old repository could \
         publish over a newer one: take a store or a version of it that does ({said})"
    ))
}

/// What it says, with what it comes from, once; no more than people read.
fn said(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            // writing to a String cannot fail
            let _ = write!(text, ": {inner_text}");
        }
        source = inner.source();
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn generic(text: &'static str) -> Error {
        Error::Generic { store: "S3", source: text.into() }
    }

    fn not_found(path: &str, code: &str) -> Error {
        let answer = format!("Server returned non-2xx status code: 404 Not Found: <Error><Code>{code}</Code></Error>");
        Error::NotFound { path: path.into(), source: answer.into() }
    }

    /// A request as the client tells of it, with what was answered.
    #[derive(Debug, thiserror::Error)]
    #[error("Error performing PUT http://s3/a/jobs/507/501 in 507.501ms - {0}")]
    struct Request(#[source] Box<dyn std::error::Error + Send + Sync>);

    fn answered(text: &str) -> Error {
        Error::Generic { store: "S3", source: Request(text.into()).into() }
    }

    #[rstest]
    #[case::no_bucket(not_found("a", "NoSuchBucket"), "correct its name")]
    #[case::no_bucket_and_a_long_key(not_found(&"k".repeat(300), "NoSuchBucket"), "correct its name")]
    #[case::credentials(Error::PermissionDenied { path: "a".into(), source: "InvalidAccessKeyId".into() }, "AWS_ACCESS_KEY_ID")]
    #[case::no_credentials(generic("PUT http://169.254.169.254/latest/api/token"), "AWS_SECRET_ACCESS_KEY")]
    #[case::region(
        answered("status code: 400 Bad Request: <Code>AuthorizationHeaderMalformed</Code>"),
        "correct the region"
    )]
    #[case::redirect(answered("Received redirect without LOCATION"), "correct the region")]
    #[case::conditions(answered("status code: 501 Not Implemented: "), "conditional puts")]
    #[case::anything(generic("connection refused"), "connection refused")]
    #[case::figures_of_something_else(answered("status code: 503 Slow Down: <Code>SlowDown</Code>"), "S3")]
    fn what_is_wrong_with_a_bucket_is_never_absence_and_says_what_to_change(#[case] found: Error, #[case] text: &str) {
        let told = told(found);
        assert!(told.kind() == io::ErrorKind::Other && is_of_bucket(&told), "{told:?}");
        let told = told.to_string();
        assert!(told.contains(text) && (text == "conditional puts" || !told.contains("conditional puts")), "{told}");
    }

    #[rstest]
    #[case("a", "NoSuchKey")]
    #[case("jobs/507-501-NoSuchBucket/QuotaExceeded", "NoSuchKey")]
    fn an_object_that_is_not_there_is_absent_whatever_its_name(#[case] path: &str, #[case] code: &str) {
        assert_eq!(told(not_found(path, code)).kind(), io::ErrorKind::NotFound);
    }

    #[rstest]
    #[case("status code: 507 Insufficient Storage: ")]
    #[case("status code: 400 Bad Request: <Code>XMinioStorageFull</Code>")]
    #[case("DeleteObjects request failed for key a (code: b): no room (code: QuotaExceeded)")]
    fn a_bucket_without_room_is_full(#[case] answer: &str) {
        assert_eq!(told(answered(answer)).kind(), io::ErrorKind::StorageFull);
    }
}
