//! How deployed nodes join the cluster: by bootstrap tokens, each for one node, and certificates that end with their
//! slot (safety A12).
//!
//! A token is a Secret that the API server takes for a user of its own, `system:bootstrap:<id>`, in the groups that it
//! names. One of these says how long a certificate may live that is asked for with it.

use std::{collections::BTreeMap, time::Duration};

use ::kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::{
    api::{certificates::v1::CertificateSigningRequest, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    ClusterError,
    kube::{gone_is_fine, refused},
};
use crate::driver::launcher::LaunchKey;

/// The group of all nodes that join with a token of ours; the longest life of a certificate follows it, in seconds, in
/// the name of another group.
pub const GROUP: &str = "system:bootstrappers:vmdeploy";
/// What the API server calls a user with a token, before its id.
pub const USER: &str = "system:bootstrap:";
/// Where the API server looks for tokens.
const NAMESPACE: &str = "kube-system";
/// What stands before a token's id in the name of its Secret.
const PREFIX: &str = "bootstrap-token-";
/// No cluster signs for less.
pub const LEAST_LIFE: Duration = Duration::from_secs(600);

/// A secret by which a node may ask for a certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    /// Six digits or small letters, no secret.
    pub id: String,
    /// Sixteen of them.
    pub secret: String,
}

impl BootstrapToken {
    /// That of a node, of the name of its slot's lease, the slot's launch key and what the site calls the node. Holds
    /// make the same (`hold.sh`): the first digits of what `sha256sum` prints of LEASE and HOST, and of KEY and HOST, a
    /// blank between. Whoever chooses the key does not choose the id.
    pub fn of_node(lease: &str, key: &LaunchKey, host: &str) -> Self {
        let id = format!("{:x}", Sha256::digest(format!("{lease} {host}")));
        Self { id: id[..6].into(), secret: key.of_host(host)[..16].into() }
    }

    /// As it is presented.
    pub fn text(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

impl std::fmt::Debug for BootstrapToken {
    /// Never shows the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BootstrapToken({})", self.id)
    }
}

/// A token for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinOffer {
    /// The token.
    pub token: BootstrapToken,
    /// For whom, in words.
    pub description: String,
    /// From then on it is worth nothing, whether it is taken back or not.
    pub expires: Timestamp,
    /// What the API server is to shorten a certificate's life to that is asked for with it; absent: nothing is.
    pub certificate: Option<Duration>,
}

/// How answers of ours are told from those of others.
pub const REASON: &str = "VmdeployNode";

/// The answer to a request for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Answer {
    /// It may be signed.
    Approved,
    /// It may not.
    Denied,
}

/// Tokens, and answers to who asks for a certificate with one. All methods may be repeated.
#[async_trait]
pub trait Joins: Send + Sync {
    /// Lets a node join with a token. One with this id is left as it is.
    async fn offer(&self, offer: &JoinOffer) -> Result<(), ClusterError>;

    /// Takes a token back. Gone already is no error.
    async fn withdraw(&self, id: &str) -> Result<(), ClusterError>;

    /// Answers a request, if it still has the `resourceVersion` of `request`, which also names it.
    async fn answer(&self, request: &ObjectMeta, answer: Answer, message: &str) -> Result<(), ClusterError>;
}

/// The Secret that the API server takes for a token.
pub fn secret(offer: &JoinOffer) -> Secret {
    let life_group = offer.certificate.map(|life| format!(",{GROUP}:{}", life.max(LEAST_LIFE).as_secs()));
    let data = [
        ("token-id", offer.token.id.clone()),
        ("token-secret", offer.token.secret.clone()),
        ("description", offer.description.clone()),
        ("expiration", offer.expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        ("usage-bootstrap-authentication", "true".into()),
        ("auth-extra-groups", format!("{GROUP}{}", life_group.unwrap_or_default())),
    ];
    Secret {
        metadata: ObjectMeta {
            name: Some(format!("{PREFIX}{}", offer.token.id)),
            namespace: Some(NAMESPACE.into()),
            labels: Some(BTreeMap::from([("app.kubernetes.io/managed-by".into(), "vmdeploy".into())])),
            ..ObjectMeta::default()
        },
        type_: Some("bootstrap.kubernetes.io/token".into()),
        string_data: Some(data.map(|(name, value)| (name.to_owned(), value)).into()),
        ..Secret::default()
    }
}

/// Tokens and requests of a cluster.
#[derive(Clone)]
pub struct KubeJoins(pub Client);

#[async_trait]
impl Joins for KubeJoins {
    async fn offer(&self, offer: &JoinOffer) -> Result<(), ClusterError> {
        let secrets: Api<Secret> = Api::namespaced(self.0.clone(), NAMESPACE);
        match secrets.create(&PostParams::default(), &secret(offer)).await.map_err(|e| refused(&e)) {
            Err(ClusterError::Conflict(_)) => Ok(()),
            other => other.map(drop),
        }
    }

    async fn withdraw(&self, id: &str) -> Result<(), ClusterError> {
        let secrets: Api<Secret> = Api::namespaced(self.0.clone(), NAMESPACE);
        let deleted = secrets.delete(&format!("{PREFIX}{id}"), &DeleteParams::default()).await;
        gone_is_fine(deleted.map(drop).map_err(|e| refused(&e)))
    }

    async fn answer(&self, request: &ObjectMeta, answer: Answer, message: &str) -> Result<(), ClusterError> {
        let condition = json!({"type": format!("{answer:?}"), "status": "True", "reason": REASON, "message": message});
        let patch = json!({
            "metadata": {"resourceVersion": request.resource_version},
            "status": {"conditions": [condition]},
        });
        let requests: Api<CertificateSigningRequest> = Api::all(self.0.clone());
        let name = request.name.as_deref().unwrap_or_default();
        let patched = requests.patch_approval(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        patched.map(drop).map_err(|e| refused(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_chooses_the_key_does_not_choose_the_id() {
        let of =
            |key: &str, host| BootstrapToken::of_node("3f2b8a10-7", &LaunchKey::read(&key.repeat(32)).unwrap(), host);
        assert_eq!(of("a", "node-1").id, of("b", "node-1").id);
        assert_ne!(of("a", "node-1").secret, of("b", "node-1").secret);
        assert_ne!(of("a", "node-1").id, of("a", "node-2").id);
    }

    #[test]
    fn a_token_is_a_secret_that_ends_and_says_how_long_a_certificate_may_live() {
        let token = BootstrapToken { id: "0a1b2c".into(), secret: "0123456789abcdef".into() };
        let expires = "2026-07-01T10:00:00.5Z".parse().unwrap();
        let certificate = Some(Duration::from_secs(7200));
        let mut offer = JoinOffer { token, description: "node-1".into(), expires, certificate };
        let made = secret(&offer);
        assert_eq!(made.metadata.name.as_deref(), Some("bootstrap-token-0a1b2c"));
        let data = made.string_data.unwrap();
        assert_eq!(data["expiration"], "2026-07-01T10:00:00Z");
        assert_eq!(data["auth-extra-groups"], "system:bootstrappers:vmdeploy,system:bootstrappers:vmdeploy:7200");
        assert_eq!((data["token-id"].as_str(), data["token-secret"].as_str()), ("0a1b2c", "0123456789abcdef"));
        // a certificate of less than ten minutes is signed nowhere
        let groups = |offer: &JoinOffer| secret(offer).string_data.unwrap()["auth-extra-groups"].clone();
        offer.certificate = Some(Duration::ZERO);
        assert!(groups(&offer).ends_with(":600"));
        offer.certificate = None;
        assert_eq!(groups(&offer), "system:bootstrappers:vmdeploy");
        assert!(!format!("{offer:?}").contains("0123456789abcdef"));
    }
}
