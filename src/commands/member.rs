//! How people name a job and one of its members.

use std::{pin::pin, str::FromStr};

use futures::AsyncReadExt as _;
use hyper::Request;
use kube::Client;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::{driver::cluster::client, names::MemberIndex};

/// `JOB` or `JOB/INDEX`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The job.
    pub job: String,
    /// The member; 0 if none is named.
    pub index: MemberIndex,
}

impl FromStr for Member {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (job, index) = text.split_once('/').unwrap_or((text, "0"));
        let index = index.parse().map_err(|_| format!("{index:?} is not the index of a member: write JOB/1"))?;
        if job.is_empty() {
            return Err("the name of the job is missing".into());
        }
        Ok(Self { job: job.into(), index })
    }
}

/// The cluster and the namespace that a person means: the given one, or that of their kubeconfig.
pub(super) async fn cluster(namespace: Option<&str>) -> anyhow::Result<(Client, String)> {
    // a person is told at once what does not answer, and decides about another try
    let client = Client::try_from(client::config().await?)?;
    let namespace = namespace.unwrap_or(client.default_namespace()).to_owned();
    Ok((client, namespace))
}

/// Sends what an address of the cluster answers to `to`, as it comes.
pub(super) async fn copy(client: &Client, path: String, to: &mut (impl AsyncWrite + Unpin)) -> anyhow::Result<()> {
    let answered = client.request_stream(Request::get(path).body(Vec::new())?).await;
    let mut body = pin!(answered.map_err(in_words)?);
    let mut piece = vec![0; 64 << 10];
    loop {
        let count = body.read(&mut piece).await?;
        if count == 0 {
            return Ok(to.flush().await?);
        }
        to.write_all(&piece[..count]).await?;
        // a person watches
        to.flush().await?;
    }
}

/// The cluster's own words, without their wrapping.
pub(super) fn in_words(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => anyhow::Error::msg(status.message),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_named_by_job_and_index() {
        assert_eq!("pi".parse(), Ok(Member { job: "pi".into(), index: 0 }));
        assert_eq!("pi/3".parse(), Ok(Member { job: "pi".into(), index: 3 }));
        for wrong in ["pi/", "pi/x", "/1", "", "pi/1/2"] {
            assert!(wrong.parse::<Member>().is_err(), "{wrong}");
        }
    }
}
