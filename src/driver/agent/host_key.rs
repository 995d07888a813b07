//! The key by which people know the way in again: of a job, over all its incarnations. Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use russh::keys::{
    PrivateKey, PublicKey,
    ssh_key::{private::Ed25519Keypair, public::KeyData},
};
use serde::{Deserialize, Serialize};

use crate::names::JobUid;

/// Sets these keys apart from all others that may be made of the same secret.
const PURPOSE: &str = "vmdeploy.io 2026 host key of a job's way in";

/// An ed25519 key.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey([u8; 32]);

impl HostKey {
    /// The key of a job: it follows from a secret of the operator's, and is kept nowhere.
    pub fn of_job(secret: &str, job: &JobUid) -> Self {
        let mut material = blake3::Hasher::new_derive_key(PURPOSE);
        // the length keeps the two apart
        material.update(&(secret.len() as u64).to_le_bytes()).update(secret.as_bytes()).update(job.0.as_bytes());
        Self(*material.finalize().as_bytes())
    }

    fn pair(&self) -> Ed25519Keypair {
        Ed25519Keypair::from_seed(&self.0)
    }

    /// As the server uses it.
    pub(crate) fn private(&self) -> PrivateKey {
        PrivateKey::from(self.pair())
    }

    /// The public half, as `known_hosts` has it: `ssh-ed25519 ...`.
    pub fn public(&self) -> String {
        let public = PublicKey::from(KeyData::Ed25519(self.pair().public));
        public.to_openssh().unwrap_or_default()
    }
}

impl std::fmt::Debug for HostKey {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostKey({})", self.public())
    }
}

impl Serialize for HostKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for HostKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64.decode(text).map_err(serde::de::Error::custom)?;
        bytes.try_into().map(Self).map_err(|_| serde::de::Error::custom("a key has 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_one_key_for_its_whole_life() {
        let key = HostKey::of_job("secret", &"uid-1".into());
        assert_eq!(key, HostKey::of_job("secret", &"uid-1".into()));
        for other in [HostKey::of_job("secret", &"uid-2".into()), HostKey::of_job("other", &"uid-1".into())] {
            assert_ne!(key.public(), other.public());
        }
        assert_ne!(HostKey::of_job("secretu", &"id".into()), HostKey::of_job("secret", &"uid".into()));
        assert_eq!(serde_json::from_str::<HostKey>(&serde_json::to_string(&key).unwrap()).unwrap(), key);
        assert!(serde_json::from_str::<HostKey>("\"AAAA\"").is_err());
    }

    #[test]
    fn the_public_half_is_a_line_and_the_private_half_is_not_shown() {
        let key = HostKey::of_job("secret", &"uid-1".into());
        let public = key.public();
        assert!(public.starts_with("ssh-ed25519 AAAAC3Nza") && !public.contains('\n'), "{public}");
        assert_eq!(PublicKey::from_openssh(&public).unwrap(), *key.private().public_key());
        assert_eq!(format!("{key:?}"), format!("HostKey({public})"));
    }
}
