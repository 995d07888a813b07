//! Keys of a job: they follow from a secret of the operator's, and are kept nowhere. Pure.

use serde::{Deserialize, Serialize};

use crate::names::JobUid;

/// Sets these keys apart from all others that may be made of the same secret.
const KEPT: &str = "vmdeploy.io 2026 what a node keeps of a job's captures";

/// A key of a job for one purpose.
pub(super) fn derived(purpose: &str, secret: &str, job: &JobUid) -> [u8; 32] {
    let mut material = blake3::Hasher::new_derive_key(purpose);
    // the length keeps the two apart
    material.update(&(secret.len() as u64).to_le_bytes()).update(secret.as_bytes()).update(job.0.as_bytes());
    *material.finalize().as_bytes()
}

/// Seals what an agent leaves on its node for the next one of the same job: to whoever has the node meanwhile it is
/// noise.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeptKey(#[serde(with = "base64_key")] pub(crate) [u8; 32]);

impl KeptKey {
    /// The key of a job.
    pub fn of_job(secret: &str, job: &JobUid) -> Self {
        Self(derived(KEPT, secret, job))
    }
}

impl std::fmt::Debug for KeptKey {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeptKey")
    }
}

/// A key in JSON.
pub(super) mod base64_key {
    use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(in super::super) fn serialize<S: Serializer>(key: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(key))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64.decode(text).map_err(D::Error::custom)?;
        bytes.try_into().map_err(|_| D::Error::custom("a key has 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_one_key_for_a_purpose_and_shows_it_to_nobody() {
        let key = KeptKey::of_job("secret", &"uid-1".into());
        assert_eq!(key, KeptKey::of_job("secret", &"uid-1".into()));
        assert_ne!(key, KeptKey::of_job("secret", &"uid-2".into()));
        assert_ne!(key.0, derived("another purpose", "secret", &"uid-1".into()));
        assert_eq!(format!("{key:?}"), "KeptKey");
        assert_eq!(serde_json::from_str::<KeptKey>(&serde_json::to_string(&key).unwrap()).unwrap(), key);
    }
}
