//! The logins at web servers that an image names: Secrets of its own namespace, which the operator reads where it
//! reads the accounts of jobs.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use crate::{
    api::VmImage,
    controller::account::MAY_NOT_READ,
    driver::{
        Fact,
        cluster::{ClusterError, ClusterView},
    },
    image::{Trouble, TroubleKind, login::Login},
};

/// Logins by the names of their Secrets.
pub type Logins = BTreeMap<String, Login>;

/// Whoever may make an image would get what such a Secret allows.
const OF_SERVICE_ACCOUNTS: &str = "kubernetes.io/service-account-token";

/// Reads those that the image names.
pub(super) async fn read(image: &VmImage, view: &dyn ClusterView, now: Timestamp) -> Fact<Result<Logins, Trouble>> {
    let namespace = image.metadata.namespace.as_deref().unwrap_or_default();
    let mut logins = Logins::new();
    for name in image.spec.sources().filter_map(|source| Some(&source.credentials()?.name)) {
        if logins.contains_key(name) {
            continue;
        }
        let login = match view.secret(namespace, name).await {
            Ok(Some(secret)) => login(secret),
            Ok(None) => Err("there is none of this name in this namespace".into()),
            Err(ClusterError::Forbidden(_)) => Err(MAY_NOT_READ.into()),
            Err(error) => {
                tracing::debug!(%error, name, "failed to read a login");
                return Fact::Unknown { since: now };
            }
        };
        match login {
            Ok(login) => logins.insert(name.clone(), login),
            Err(why) => {
                let message = format!("Secret {name}, which credentials name: {why}");
                return Fact::Known(Err(Trouble::passing(TroubleKind::LoginMissing, message)));
            }
        };
    }
    Fact::Known(Ok(logins))
}

fn login(secret: Secret) -> Result<Login, String> {
    if secret.type_.as_deref() == Some(OF_SERVICE_ACCOUNTS) {
        return Err("the token of a service account is not sent to servers: make a Secret for this one".into());
    }
    let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
    Login::from_data(&data.collect())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::{clock::Clock, driver::cluster::fake::FakeCluster};

    fn image() -> VmImage {
        let digest = format!("sha256:{}", "0".repeat(64));
        let http =
            |secret: &str| json!({"http": {"url": "https://x/a", "digest": digest, "credentials": {"name": secret}}});
        serde_json::from_value(json!({
            "apiVersion": "vmdeploy.io/v1alpha1", "kind": "VmImage", "metadata": {"name": "x", "namespace": "team"},
            "spec": {"source": http("one"), "os": {"kernel": http("two"), "initrd": http("one")}},
        }))
        .unwrap()
    }

    async fn read_with(secrets: Value) -> Result<Logins, Trouble> {
        let cluster = FakeCluster::new(Clock::manual(Timestamp::UNIX_EPOCH));
        for (name, secret) in secrets.as_object().unwrap() {
            let mut secret: Secret = serde_json::from_value(secret.clone()).unwrap();
            secret.metadata.namespace = Some("team".into());
            secret.metadata.name = Some(name.clone());
            cluster.put_secret(secret);
        }
        let Fact::Known(read) = read(&image(), &cluster, Timestamp::UNIX_EPOCH).await else { panic!("unknown") };
        read
    }

    #[tokio::test]
    async fn each_secret_that_is_named_is_read() {
        // "me" in base64
        let logins = read_with(json!({
            "one": {"data": {"token": "bWU="}},
            "two": {"data": {"username": "bWU=", "password": "bWU="}},
            "three": {"data": {"token": "bWU="}},
        }));
        let basic = Login::Basic { username: "me".into(), password: "me".into() };
        let wanted = [("one".to_owned(), Login::Bearer("me".into())), ("two".to_owned(), basic)];
        assert_eq!(logins.await.unwrap(), wanted.into());
    }

    #[rstest]
    #[case::missing(json!({}), "Secret one, which credentials name: there is none")]
    #[case::other(json!({"one": {"data": {"key": "bWU="}}}), "either username and password or token")]
    #[case::of_the_cluster(json!({"one": {"type": OF_SERVICE_ACCOUNTS, "data": {"token": "bWU="}}}), "service account")]
    #[tokio::test]
    async fn what_is_wrong_with_one_is_said_and_may_be_mended(#[case] secrets: Value, #[case] words: &str) {
        let trouble = read_with(secrets).await.unwrap_err();
        assert!(trouble.again && trouble.message.contains(words), "{trouble}");
    }
}
