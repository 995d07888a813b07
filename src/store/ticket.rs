//! Tickets: permission to write one member's part of one generation, signed by kget and checked by
//! the repository with a key the two share. Pure: the time is given.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::quota::Share;
use crate::names::{Generation, Incarnation, JobUid, MemberIndex};

/// Longest ticket that is looked at.
const MAX_TEXT: usize = 1024;
/// Shortest secret a key is made from.
const MIN_SECRET: usize = 16;

/// What its bearer may write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ticket {
    /// The job.
    pub job: JobUid,
    /// The generation.
    pub generation: Generation,
    /// The member.
    pub member: MemberIndex,
    /// The incarnation the generation was captured in.
    pub incarnation: Incarnation,
    /// Until when.
    pub expires: Timestamp,
    /// Most bytes of the whole part, as stored; the repository's own limit alone if it is not said.
    #[serde(default)]
    pub most: Option<u64>,
    /// What its namespace may have, if the generation may be left out for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Share>,
    /// The member whose agent brings the part; the member's own if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<MemberIndex>,
}

/// Why a ticket is not accepted.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum TicketError {
    /// Not a ticket.
    #[error("not a ticket")]
    Malformed,
    /// Not signed with our key.
    #[error("the ticket is forged or signed with another key")]
    Forged,
    /// Too old.
    #[error("the ticket has expired")]
    Expired,
    /// The secret is too short to be one.
    #[error("the ticket key needs at least {MIN_SECRET} bytes")]
    WeakKey,
}

/// The key that kget and the repository share.
#[derive(Clone)]
pub struct TicketKey([u8; 32]);

impl std::fmt::Debug for TicketKey {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketKey")
    }
}

impl TicketKey {
    /// Makes the key from the bytes of the shared secret.
    pub fn new(secret: &[u8]) -> Result<Self, TicketError> {
        if secret.len() < MIN_SECRET {
            return Err(TicketError::WeakKey);
        }
        Ok(Self(blake3::derive_key("vmdeploy.io ticket v1", secret)))
    }

    /// Signs a ticket.
    pub fn sign(&self, ticket: &Ticket) -> String {
        // a struct of numbers and texts always has a JSON form
        let body = serde_json::to_vec(ticket).unwrap_or_default();
        let seal = blake3::keyed_hash(&self.0, &body);
        format!("{}.{}", URL_SAFE_NO_PAD.encode(&body), URL_SAFE_NO_PAD.encode(seal.as_bytes()))
    }

    /// Reads a ticket that this key signed and that is still valid at `now`.
    pub fn verify(&self, text: &str, now: Timestamp) -> Result<Ticket, TicketError> {
        if text.len() > MAX_TEXT {
            return Err(TicketError::Malformed);
        }
        let (body, seal) = text.split_once('.').ok_or(TicketError::Malformed)?;
        let body = URL_SAFE_NO_PAD.decode(body).map_err(|_| TicketError::Malformed)?;
        let seal = URL_SAFE_NO_PAD.decode(seal).map_err(|_| TicketError::Malformed)?;
        let seal: [u8; 32] = seal.try_into().map_err(|_| TicketError::Malformed)?;
        // this comparison takes the same time wherever the first difference is
        if blake3::keyed_hash(&self.0, &body) != blake3::Hash::from_bytes(seal) {
            return Err(TicketError::Forged);
        }
        let ticket: Ticket = serde_json::from_slice(&body).map_err(|_| TicketError::Malformed)?;
        if ticket.expires <= now { Err(TicketError::Expired) } else { Ok(ticket) }
    }
}

/// Until when a ticket is valid, as it says itself: for its bearer, who has no key.
pub fn valid_until(text: &str) -> Option<Timestamp> {
    let (body, _) = text.split_once('.').filter(|_| text.len() <= MAX_TEXT)?;
    let ticket: Ticket = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).ok()?).ok()?;
    Some(ticket.expires)
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;
    use proptest::prelude::*;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn key() -> TicketKey {
        TicketKey::new(b"0123456789abcdef0123456789abcdef").unwrap()
    }

    fn ticket() -> Ticket {
        Ticket {
            job: "3f2b8a10".into(),
            generation: 7,
            member: 1,
            incarnation: 2,
            expires: now() + 60.seconds(),
            most: None,
            quota: None,
            bearer: None,
        }
    }

    #[test]
    fn d1_a_ticket_is_read_back_until_it_expires() {
        assert_eq!(valid_until(&key().sign(&ticket())), Some(ticket().expires));
        assert_eq!((valid_until("no ticket"), valid_until("a.b")), (None, None));
        let text = key().sign(&ticket());
        assert_eq!(key().verify(&text, now()), Ok(ticket()));
        assert_eq!(key().verify(&text, now() + 60.seconds()), Err(TicketError::Expired));
    }

    #[test]
    fn d1_another_key_or_a_changed_ticket_is_refused() {
        let text = key().sign(&ticket());
        let other = TicketKey::new(b"another secret of some length").unwrap();
        assert_eq!(other.verify(&text, now()), Err(TicketError::Forged));
        let (_, seal) = text.split_once('.').unwrap();
        let wider = Ticket { member: 0, ..ticket() };
        let forged = format!("{}.{seal}", URL_SAFE_NO_PAD.encode(serde_json::to_vec(&wider).unwrap()));
        assert_eq!(key().verify(&forged, now()), Err(TicketError::Forged));
    }

    #[test]
    fn a_short_secret_is_no_key() {
        assert_eq!(TicketKey::new(b"short").map(|_| ()), Err(TicketError::WeakKey));
    }

    proptest! {
        #[test]
        fn rubbish_is_never_a_ticket(text in "\\PC{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(key().verify(&text, now()).is_err());
            let shaped = format!("{}.{}", URL_SAFE_NO_PAD.encode(&bytes), URL_SAFE_NO_PAD.encode(&bytes));
            prop_assert!(key().verify(&shaped, now()).is_err());
        }

        #[test]
        fn one_changed_byte_is_seen(at in any::<prop::sample::Index>(), by in 1u8..255) {
            let mut text = key().sign(&ticket()).into_bytes();
            let at = at.index(text.len());
            text[at] = text[at].wrapping_add(by);
            if let Ok(text) = String::from_utf8(text) {
                // the last character of a group carries unused bits, which the decoder refuses
                prop_assert!(key().verify(&text, now()).is_err());
            }
        }
    }
}
