//! Which bucket: as it is written on the command line, and the client for it.

use std::{io, sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ClientOptions, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    path::Path as Key,
};

use super::{
    error::{error, told},
    objects::Objects,
};

/// No request lasts longer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long until nobody answers.
const CONNECT: Duration = Duration::from_secs(5);
/// So long are requests begun again that the store could not answer.
const AGAIN: Duration = Duration::from_secs(8);
/// Requests of a repository that is the owner no more end within this time.
pub(super) const HANDOVER: Duration = Duration::from_secs(60);
const _: () = assert!(HANDOVER.as_secs() > TIMEOUT.as_secs() + AGAIN.as_secs() + CONNECT.as_secs());

/// A bucket. Credentials come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and whatever else the
/// clients of AWS read there.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct Address {
    /// Keeps everything in this bucket, for example s3://bucket/folder; the directory is a cache then.
    #[arg(long)]
    pub bucket: Option<String>,
    /// Address of the store, for example `https://s3.example.org`; that of AWS in the region if absent.
    #[arg(long, requires = "bucket")]
    pub endpoint: Option<String>,
    /// Region of the bucket.
    #[arg(long, requires = "bucket")]
    pub region: Option<String>,
}

impl Address {
    /// The bucket and the folder in it.
    fn names(url: &str) -> Option<(&str, Key)> {
        let (bucket, folder) = url.strip_prefix("s3://")?.split_once('/').unwrap_or((url.strip_prefix("s3://")?, ""));
        let folder = Key::parse(folder).ok()?;
        // what stays as it is in every address
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        (!bucket.is_empty() && url.strip_prefix("s3://")?.chars().all(plain)).then_some((bucket, folder))
    }

    /// A client for it, if there is to be a bucket. Asks nobody.
    pub(in crate::repository) fn objects(&self) -> io::Result<Option<Objects>> {
        let Some(url) = &self.bucket else { return Ok(None) };
        let wrong = || error(format!("{url} is no bucket: say s3://bucket or s3://bucket/folder"));
        let (bucket, folder) = Self::names(url).ok_or_else(wrong)?;
        let options = ClientOptions::new().with_timeout(TIMEOUT).with_connect_timeout(CONNECT);
        let backoff = BackoffConfig { max_backoff: Duration::from_secs(2), ..BackoffConfig::default() };
        let retry = RetryConfig { backoff, max_retries: 4, retry_timeout: AGAIN };
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
        if let Some(region) = &self.region {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = &self.endpoint {
            let is_plain = endpoint.starts_with("http://");
            builder = builder.with_endpoint(endpoint).with_client_options(options.with_allow_http(is_plain));
        } else {
            builder = builder.with_client_options(options);
        }
        if builder.get_config_value(&AmazonS3ConfigKey::DefaultRegion).is_none() && self.endpoint.is_some() {
            builder = builder.with_region("us-east-1");
        }
        let store = builder.build().map_err(told)?;
        Objects::new(Arc::new(store), folder, url.trim_end_matches('/').to_owned()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_written_as_an_address() {
        let names = |url| Address::names(url).map(|(bucket, folder)| (bucket.to_owned(), folder.to_string()));
        let some = |bucket: &str, folder: &str| Some((bucket.to_owned(), folder.to_owned()));
        assert_eq!(names("s3://jobs"), some("jobs", ""));
        assert_eq!(names("s3://jobs/"), some("jobs", ""));
        assert_eq!(names("s3://jobs/a/b"), some("jobs", "a/b"));
        for wrong in ["jobs", "s3://", "s3:///a", "https://jobs/a", "s3://jobs/a//b", "s3://jobs/a b", "s3://jobs/%"] {
            assert_eq!(names(wrong), None, "{wrong}");
        }
    }
}
