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
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&["NoSuchBucket"]) {
        return error(format!("there is no such bucket: make it, or correct its name and its endpoint ({said})"));
    }
    if has(&["AuthorizationHeaderMalformed", "PermanentRedirect", "without LOCATION", "IllegalLocationConstraint"]) {
        return error(format!("the bucket is in another region: correct the region ({said})"));
    }
    if has(&["169.254.169.254", "metadata endpoint"]) {
        return error(format!("there are no credentials: give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY ({said})"));
    }
    if has(&["XMinioStorageFull", "QuotaExceeded", "InsufficientStorage", "507"]) {
        return io::Error::new(io::ErrorKind::StorageFull, BucketError(format!("the bucket is full ({said})")));
    }
    match found {
        Error::NotFound { path, .. } => {
            io::Error::new(io::ErrorKind::NotFound, BucketError(format!("{path} is not in the bucket")))
        }
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => error(format!(
            "the store refuses the credentials: correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or let them list, \
             read, write and delete in the bucket ({said})"
        )),
        Error::NotImplemented { .. } | Error::NotSupported { .. } => unconditional(&said),
        _ if has(&["NotImplemented", "501"]) => unconditional(&said),
        _ => error(said),
    }
}

/// The store cannot keep two repositories apart.
pub(super) fn unconditional(said: &str) -> io::Error {
    error(format!(
        "the store does not do conditional puts (If-None-Match and If-Match), without which an old repository could \
         publish over a newer one: take a store or a version of it that does ({said})"
    ))
}

/// All that it says, with what it comes from, once.
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

    #[rstest]
    #[case::no_bucket(Error::NotFound { path: "a".into(), source: "<Code>NoSuchBucket</Code>".into() }, "correct its name")]
    #[case::credentials(Error::PermissionDenied { path: "a".into(), source: "InvalidAccessKeyId".into() }, "AWS_ACCESS_KEY_ID")]
    #[case::no_credentials(generic("PUT http://169.254.169.254/latest/api/token"), "AWS_SECRET_ACCESS_KEY")]
    #[case::region(generic("AuthorizationHeaderMalformed"), "correct the region")]
    #[case::conditions(generic("status code: 501"), "conditional puts")]
    #[case::anything(generic("connection refused"), "connection refused")]
    fn what_is_wrong_with_a_bucket_is_never_absence_and_says_what_to_change(#[case] found: Error, #[case] text: &str) {
        let told = told(found);
        assert!(told.kind() == io::ErrorKind::Other && is_of_bucket(&told), "{told:?}");
        assert!(told.to_string().contains(text), "{told}");
    }

    #[test]
    fn an_object_that_is_not_there_is_absent() {
        let absent = told(Error::NotFound { path: "a".into(), source: "<Code>NoSuchKey</Code>".into() });
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
        assert_eq!(told(generic("XMinioStorageFull")).kind(), io::ErrorKind::StorageFull);
    }
}
