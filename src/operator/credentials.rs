//! The authority of an installation and the certificates of its parts, kept in Secrets of the
//! operator's namespace.
//!
//! What exists is used; what is missing, of another authority, or due is made. Only the leader does
//! this. The operator's own certificate is never written anywhere.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{controller::image::importer, driver::cluster::kube::FIELD_MANAGER, names::Identity, tls::Authority};

/// Secret of the authority.
const AUTHORITY: &str = "vmdeploy-ca";
/// Secret with the key of the tickets, which kget signs and the repository checks.
const TICKET_KEY: &str = "vmdeploy-ticket-key";
/// When a part's certificate is due.
const DUE: &str = "vmdeploy.io/renew-after";
/// Lifetime of the certificates of the parts.
pub(super) const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// Age at which they are renewed.
pub(super) const RENEWAL: Duration = Duration::from_secs(60 * 24 * 3600);

/// Parts with a certificate in a Secret.
const PARTS: [(&str, Identity); 3] = [
    ("vmdeploy-repository-tls", Identity::Repository),
    ("vmdeploy-kget-tls", Identity::Kget),
    (importer::SECRET, Identity::Importer),
];

/// The Secrets of one installation.
#[derive(Clone)]
pub(super) struct Vault {
    secrets: Api<Secret>,
}

impl Vault {
    /// The Secrets in the operator's namespace.
    pub(super) fn new(client: Client, namespace: &str) -> Self {
        Self { secrets: Api::namespaced(client, namespace) }
    }

    /// The authority; made if there is none yet.
    pub(super) async fn authority(&self, now: Timestamp) -> anyhow::Result<Authority> {
        if let Some(secret) = self.secrets.get_opt(AUTHORITY).await.context("failed to read the authority")? {
            return read_authority(&secret).with_context(|| {
                format!("the Secret {AUTHORITY} lacks tls.crt or tls.key: restore it, or delete it to begin anew")
            });
        }
        let authority = Authority::create(now)?;
        let data = [("tls.crt", authority.certificate.as_str()), ("tls.key", authority.key.as_str())];
        self.create(AUTHORITY, &data, None).await?;
        tracing::info!("made the authority of this installation");
        Ok(authority)
    }

    /// Makes and renews what the parts need; says when to call again.
    pub(super) async fn supply(&self, authority: &Authority, now: Timestamp) -> anyhow::Result<()> {
        if self.secrets.get_opt(TICKET_KEY).await?.is_none() {
            let key: String = blake3::Hash::from_bytes(rand::random()).to_hex().to_string();
            self.create(TICKET_KEY, &[("key", key.as_str())], None).await?;
        }
        for (name, identity) in PARTS {
            let found = self.secrets.get_opt(name).await?;
            if found.as_ref().is_some_and(|secret| is_good(secret, authority, now)) {
                continue;
            }
            let made = authority.issue(&identity, now, LIFETIME)?;
            let data = [("ca.crt", &*made.ca), ("tls.crt", &*made.certificate), ("tls.key", &*made.key)];
            let due = now + RENEWAL;
            match found {
                None => self.create(name, &data, Some(due)).await?,
                Some(secret) => self.renew(&secret, &data, due).await?,
            }
            tracing::info!(name, "issued a certificate");
        }
        Ok(())
    }

    async fn create(&self, name: &str, data: &[(&str, &str)], due: Option<Timestamp>) -> anyhow::Result<()> {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.into()),
                labels: Some(BTreeMap::from([("app.kubernetes.io/name".into(), "vmdeploy".into())])),
                annotations: due.map(|due| BTreeMap::from([(DUE.into(), due.to_string())])),
                ..ObjectMeta::default()
            },
            string_data: Some(data.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()),
            ..Secret::default()
        };
        self.secrets
            .create(&PostParams::default(), &secret)
            .await
            .with_context(|| format!("failed to make the Secret {name}"))?;
        Ok(())
    }

    async fn renew(&self, old: &Secret, data: &[(&str, &str)], due: Timestamp) -> anyhow::Result<()> {
        let data: BTreeMap<&str, &str> = data.iter().copied().collect();
        let patch = json!({
            "metadata": {"annotations": {DUE: due.to_string()}, "resourceVersion": old.resource_version()},
            "stringData": data,
        });
        let how = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        self.secrets.patch(&old.name_any(), &how, &Patch::Merge(patch)).await?;
        Ok(())
    }
}

fn read_authority(secret: &Secret) -> Option<Authority> {
    Some(Authority { certificate: text(secret, "tls.crt")?, key: text(secret, "tls.key")? })
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    let ByteString(bytes) = secret.data.as_ref()?.get(key)?;
    String::from_utf8(bytes.clone()).ok()
}

/// Whether a part's Secret is complete, of this authority and not due.
fn is_good(secret: &Secret, authority: &Authority, now: Timestamp) -> bool {
    let due = secret.annotations().get(DUE).and_then(|due| due.parse::<Timestamp>().ok());
    text(secret, "ca.crt").as_deref() == Some(&*authority.certificate)
        && text(secret, "tls.crt").is_some()
        && text(secret, "tls.key").is_some()
        && due.is_some_and(|due| now < due)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_renewed_when_due_incomplete_or_of_another_authority() {
        crate::tls::install_provider();
        let now: Timestamp = "2026-11-25T12:00:00Z".parse().unwrap();
        let authority = Authority::create(now).unwrap();
        let mut good = Secret::default();
        good.metadata.annotations = Some(BTreeMap::from([(DUE.into(), (now + RENEWAL).to_string())]));
        let data = [("ca.crt", authority.certificate.as_str()), ("tls.crt", "c"), ("tls.key", "k")];
        good.data = Some(data.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect());
        assert!(is_good(&good, &authority, now));
        assert!(!is_good(&good, &authority, now + RENEWAL));
        assert!(!is_good(&good, &Authority::create(now).unwrap(), now));
        good.data.as_mut().unwrap().remove("tls.key");
        assert!(!is_good(&good, &authority, now));
    }
}
