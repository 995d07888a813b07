//! How notes that decide something are written in the bucket: a line that makes each writing unlike any other, then the
//! note. Pure. Without it, what is written twice with the same content could not be told apart by its tag, and a late
//! request of an old repository could still count.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stamp {
    /// Of whoever has written it.
    pub(super) epoch: u64,
    /// Its writings are counted.
    pub(super) number: u64,
    /// There is no note: it only keeps out one that may still come.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) void: bool,
}

/// A note as it is written.
pub(super) fn stamped(stamp: Stamp, note: &[u8]) -> Bytes {
    // a plain structure is always written
    let mut bytes = serde_json::to_vec(&stamp).unwrap_or_default();
    bytes.push(b'\n');
    bytes.extend_from_slice(note);
    bytes.into()
}

/// By whom a note was written, if it has the line.
pub(super) fn stamp_of(bytes: &Bytes) -> Option<Stamp> {
    serde_json::from_slice(bytes.split(|byte| *byte == b'\n').next()?).ok()
}

/// The note that was written; nothing if there is none. One without the line was copied here by hand.
pub(super) fn note(bytes: &Bytes) -> Option<Bytes> {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    match stamp_of(bytes) {
        Some(Stamp { void: true, .. }) => None,
        Some(_) => Some(bytes.slice((end + 1).min(bytes.len())..)),
        None => Some(bytes.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let stamp = |number| Stamp { epoch: 3, number, void: false };
        let one = stamped(stamp(1), b"{\n}\n");
        assert_ne!(one, stamped(stamp(2), b"{\n}\n"));
        assert_eq!(note(&one).as_deref(), Some(&b"{\n}\n"[..]));
        assert_eq!(note(&stamped(Stamp { void: true, ..stamp(1) }, b"")), None);
        for text in ["{\"fence\":2}", "{\n  \"a\": 1\n}", "", "\n"] {
            assert_eq!(note(&Bytes::from(text)).as_deref(), Some(text.as_bytes()), "{text:?}");
        }
    }
}
