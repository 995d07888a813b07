//! How people name a job and one of its members.

use std::{pin::pin, str::FromStr};

use futures::AsyncReadExt as _;
use hyper::Request;
use kube::Client;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::{driver::cluster::client, names::MemberIndex, subresources::paths::GROUP};

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

/// What went wrong with the API of guests and results: the cluster's own words, without their wrapping.
pub(super) fn in_words(error: kube::Error) -> anyhow::Error {
    words(error, &format!("this cluster does not serve {GROUP}: set subresources.enabled=true in the chart"))
}

/// The same of the objects themselves.
pub(super) fn of_objects(error: kube::Error) -> anyhow::Error {
    words(error, "this cluster does not know vmdeploy's objects: install the chart vmdeploy-crds")
}

fn words(error: kube::Error, unserved: &str) -> anyhow::Error {
    match error {
        // of whoever serves the group the answer would be a Status that names what is not found
        kube::Error::Api(status) if status.code == 404 && status.reason != "NotFound" => {
            anyhow::Error::msg(unserved.to_owned())
        }
        kube::Error::Api(status) if !status.message.is_empty() => anyhow::Error::msg(status.message),
        other => other.into(),
    }
}

/// The name of a job where no member can be named.
pub(super) fn job(text: &str) -> Result<String, String> {
    if text.contains('/') {
        return Err("a job, not one of its members, is named here: leave out what begins with /".into());
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the cluster answers, as the client hands it on.
    async fn answered(status: u16, body: &'static str) -> kube::Error {
        let status = hyper::StatusCode::from_u16(status).unwrap();
        let answer = axum::Router::new().fallback(move || async move { (status, body) });
        let client = Client::new(answer, "team-a");
        client.request_text(Request::get("/apis").body(Vec::new()).unwrap()).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_group_that_is_not_served_is_told_from_an_object_that_is_not_there() {
        let unserved = in_words(answered(404, "404 page not found\n").await).to_string();
        assert!(unserved.contains("subresources.enabled=true"), "{unserved}");
        let unserved = of_objects(answered(404, "404 page not found\n").await).to_string();
        assert!(unserved.contains("vmdeploy-crds"), "{unserved}");
        let absent = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
            "message":"besteffortjobs.vmdeploy.io \"pi\" not found","reason":"NotFound","code":404}"#;
        for said in [in_words(answered(404, absent).await), of_objects(answered(404, absent).await)] {
            assert_eq!(said.to_string(), "besteffortjobs.vmdeploy.io \"pi\" not found");
        }
        assert_eq!(in_words(answered(500, "broken").await).to_string(), "broken");
    }

    #[test]
    fn a_job_is_not_one_of_its_members() {
        assert_eq!(job("pi"), Ok("pi".into()));
        assert!(job("pi/1").is_err());
    }

    #[test]
    fn members_are_named_by_job_and_index() {
        assert_eq!("pi".parse(), Ok(Member { job: "pi".into(), index: 0 }));
        assert_eq!("pi/3".parse(), Ok(Member { job: "pi".into(), index: 3 }));
        for wrong in ["pi/", "pi/x", "/1", "", "pi/1/2"] {
            assert!(wrong.parse::<Member>().is_err(), "{wrong}");
        }
    }
}
