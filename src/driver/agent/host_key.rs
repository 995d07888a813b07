//! The key by which people know the way in again: of a job, over all its incarnations. Pure.

use russh::keys::{
    PrivateKey, PublicKey,
    ssh_key::{private::Ed25519Keypair, public::KeyData},
};
use serde::{Deserialize, Serialize};

use super::derived::{base64_key, derived};
use crate::names::JobUid;

/// Sets these keys apart from all others that may be made of the same secret.
const PURPOSE: &str = "vmdeploy.io 2026 host key of a job's way in";

/// An ed25519 key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostKey(#[serde(with = "base64_key")] [u8; 32]);

impl HostKey {
    /// The key of a job: it follows from a secret of the operator's, and is kept nowhere.
    pub fn of_job(secret: &str, job: &JobUid) -> Self {
        Self(derived(PURPOSE, secret, job))
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
