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

/// Logins by the parts of the spec whose files they are for: one Secret may hold another login for each registry.
pub type Logins = BTreeMap<&'static str, Login>;

/// Whoever may make an image would get what such a Secret allows.
const OF_SERVICE_ACCOUNTS: &str = "kubernetes.io/service-account-token";

/// Reads those that the image names.
pub(super) async fn read(image: &VmImage, view: &dyn ClusterView, now: Timestamp) -> Fact<Result<Logins, Trouble>> {
    let namespace = image.metadata.namespace.as_deref().unwrap_or_default();
    let mut logins = Logins::new();
    for (field, source) in image.spec.sources() {
        let Some(name) = source.credentials().map(|secret| &secret.name) else { continue };
        let artifact = source.oci.as_ref().map(|oci| oci.reference.as_str());
        let login = match view.secret(namespace, name).await {
            Ok(Some(secret)) => login(secret, artifact),
            Ok(None) => Err("there is none of this name in this namespace".into()),
            Err(ClusterError::Forbidden(_)) => Err(MAY_NOT_READ.into()),
            Err(error) => {
                tracing::debug!(%error, name, "failed to read a login");
                return Fact::Unknown { since: now };
            }
        };
        match login {
            Ok(login) => logins.insert(field, login),
            Err(why) => {
                let message = format!("Secret {name}, which credentials name: {why}");
                return Fact::Known(Err(Trouble::passing(TroubleKind::LoginMissing, message)));
            }
        };
    }
    Fact::Known(Ok(logins))
}

fn login(secret: Secret, artifact: Option<&str>) -> Result<Login, String> {
    if secret.type_.as_deref() == Some(OF_SERVICE_ACCOUNTS) {
        return Err("the token of a service account is not sent to servers: make a Secret for this one".into());
    }
    let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
    Login::from_data(&data.collect(), artifact)
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        api::image::{INITRD, KERNEL, SOURCE},
        clock::Clock,
        driver::cluster::fake::FakeCluster,
    };

    fn http(secret: &str) -> Value {
        let digest = format!("sha256:{}", "0".repeat(64));
        json!({"http": {"url": "https://x/a", "digest": digest, "credentials": {"name": secret}}})
    }

    fn oci(registry: &str) -> Value {
        json!({"oci": {"reference": format!("{registry}/disks:12"), "credentials": {"name": "one"}}})
    }

    async fn read_with(secrets: Value) -> Result<Logins, Trouble> {
        read_for(&[http("one"), http("two"), http("one")], secrets).await
    }

    async fn read_for([disk, kernel, initrd]: &[Value; 3], secrets: Value) -> Result<Logins, Trouble> {
        let image: VmImage = serde_json::from_value(json!({
            "apiVersion": "vmdeploy.io/v1alpha1", "kind": "VmImage", "metadata": {"name": "x", "namespace": "team"},
            "spec": {"source": disk, "os": {"kernel": kernel, "initrd": initrd}},
        }))
        .unwrap();
        let cluster = FakeCluster::new(Clock::manual(Timestamp::UNIX_EPOCH));
        for (name, secret) in secrets.as_object().unwrap() {
            let mut secret: Secret = serde_json::from_value(secret.clone()).unwrap();
            secret.metadata.namespace = Some("team".into());
            secret.metadata.name = Some(name.clone());
            cluster.put_secret(secret);
        }
        let Fact::Known(read) = read(&image, &cluster, Timestamp::UNIX_EPOCH).await else { panic!("unknown") };
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
        let bearer = || Login::Bearer("me".into());
        assert_eq!(logins.await.unwrap(), [(SOURCE, bearer()), (KERNEL, basic), (INITRD, bearer())].into());
    }

    #[tokio::test]
    async fn one_secret_has_the_logins_of_all_registries() {
        let secret = |registries: &[&str]| {
            let entry = |name: &&str| ((*name).to_owned(), json!({"username": name, "password": "me"}));
            let auths: serde_json::Map<String, Value> = registries.iter().map(entry).collect();
            let file = BASE64_STANDARD.encode(json!({"auths": auths}).to_string());
            json!({"one": {"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": file}}})
        };
        let sources = [oci("a.example.org"), oci("b.example.org"), oci("a.example.org")];
        let login = |name: &str| Login::Basic { username: name.into(), password: "me".into() };
        let (a, b) = (login("a.example.org"), login("b.example.org"));
        let logins = read_for(&sources, secret(&["a.example.org", "b.example.org"])).await.unwrap();
        assert_eq!(logins, [(SOURCE, a.clone()), (KERNEL, b), (INITRD, a)].into());
        let trouble = read_for(&sources, secret(&["a.example.org"])).await.unwrap_err();
        assert!(trouble.again && trouble.message.contains("no login for the registry b.example.org"), "{trouble}");
    }

    #[rstest]
    #[case::missing(json!({}), "Secret one, which credentials name: there is none")]
    #[case::other(json!({"one": {"data": {"key": "bWU="}}}), "either username and password, or token")]
    #[case::of_the_cluster(json!({"one": {"type": OF_SERVICE_ACCOUNTS, "data": {"token": "bWU="}}}), "service account")]
    #[tokio::test]
    async fn what_is_wrong_with_one_is_said_and_may_be_mended(#[case] secrets: Value, #[case] words: &str) {
        let trouble = read_with(secrets).await.unwrap_err();
        assert!(trouble.again && trouble.message.contains(words), "{trouble}");
    }
}
