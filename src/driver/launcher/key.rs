//! The key by which launchers, and nodes that join the cluster, and the operator know each other.

use rcgen::KeyPair;
use rustls_pki_types::PrivatePkcs8KeyDer;
use sha2::{Digest as _, Sha256};

use crate::{
    names::SlotId,
    tls::{Authority, TlsError},
};

/// Sets the authority's key apart from all others that may be made of the same secret.
const PURPOSE: &str = "vmdeploy.io 2026 authority of launchers";
/// What stands before the seed of an ed25519 key in PKCS #8 (RFC 8410, section 7).
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// So many letters and digits nobody guesses.
pub const LEAST_KEY: usize = 32;
/// A line is no longer than that.
const LONGEST: usize = 256;

/// A text that is no key.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "a launch key is {LEAST_KEY} to {LONGEST} letters and digits on one line, as `openssl rand -hex 32` prints them"
)]
pub struct BadKey;

/// A secret of an account, known to its holds and to the operator.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LaunchKey(String);

impl LaunchKey {
    /// The key in a text; what is around it counts for nothing.
    pub fn read(text: &str) -> Result<Self, BadKey> {
        let text = text.trim();
        let good = (LEAST_KEY..=LONGEST).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if good { Ok(Self(text.into())) } else { Err(BadKey) }
    }

    /// The key of a slot: all that its nodes get to know. As `printf '%s %s' KEY SLOT | sha256sum` prints it.
    #[must_use]
    pub fn of_slot(&self, slot: &SlotId) -> Self {
        Self(format!("{:x}", Sha256::digest(format!("{} {slot}", self.0))))
    }

    /// What of a slot's key one of its hosts gets to know: hexadecimal digits, as `printf '%s %s' KEY HOST | sha256sum`
    /// prints them.
    #[must_use]
    pub fn of_host(&self, host: &str) -> String {
        format!("{:x}", Sha256::digest(format!("{} {host}", self.0)))
    }

    /// The authority that signs for both sides: it follows from the key.
    pub fn authority(&self, now: jiff::Timestamp) -> Result<Authority, TlsError> {
        let seed = blake3::derive_key(PURPOSE, self.0.as_bytes());
        let der = PrivatePkcs8KeyDer::from([PKCS8.as_slice(), &seed].concat());
        Authority::of_key(KeyPair::try_from(&der)?, now)
    }
}

impl std::fmt::Debug for LaunchKey {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LaunchKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_what_no_shell_can_take_for_its_own() {
        let good = "0123456789abcdef0123456789ABCDEF";
        assert_eq!(LaunchKey::read(&format!("{good}\n")), LaunchKey::read(good));
        let long = "a".repeat(257);
        for bad in ["", &good[1..], "0123456789abcdef 0123456789ABCDEF", "0123456789abcdef0123456789ABCDE]", &long] {
            assert_eq!(LaunchKey::read(bad), Err(BadKey), "{bad}");
        }
        assert_eq!(format!("{:?}", LaunchKey::read(good)), "Ok(LaunchKey)");
    }

    #[test]
    fn both_sides_have_one_authority_and_another_key_has_another() {
        let authority = |text: &str| LaunchKey::read(text).unwrap().authority(jiff::Timestamp::UNIX_EPOCH).unwrap();
        let (one, other) = ("a".repeat(32), "b".repeat(32));
        assert_eq!(authority(&one).key, authority(&one).key);
        assert_ne!(authority(&one).key, authority(&other).key);
        let key = LaunchKey::read(&one).unwrap();
        // sha256sum of 32 times a, a blank, and 7
        assert_eq!(key.of_slot(&"7".into()).0, "3cf278451a8cf1d84a3158ef86d963d59fb075d383111fd785a6c1c6c78ac2e9");
        assert_ne!(key.of_slot(&"7".into()), key.of_slot(&"8".into()));
        // the same of 32 times a, a blank, and node-1
        assert_eq!(key.of_host("node-1"), "c7cf4512be480737f2d000078a6687eeabee9e3996de686ae648061fb752fb0e");
    }
}
