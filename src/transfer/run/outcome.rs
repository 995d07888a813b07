//! What became of a gather: for people and for programs. Pure.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// A file that is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// The host that it is from.
    pub host: String,
    /// Its name at the destination; none if the host has none, or could not be asked.
    pub item: Option<String>,
    /// Why.
    pub reason: String,
}

/// A host, and when it held nothing any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Freed {
    /// Which.
    pub host: String,
    /// Seconds since the first move was ordered.
    pub seconds: f64,
}

/// The report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Hosts that were named.
    pub hosts: usize,
    /// Files that are whole, those of earlier runs among them.
    pub whole: usize,
    /// Bytes of all files that were found.
    pub bytes: u64,
    /// Bytes of them that an earlier run has left here.
    pub earlier: u64,
    /// Bytes that were stored now.
    pub stored: u64,
    /// Seconds from the first move to the last acknowledgement.
    pub seconds: f64,
    /// The sum of the times at which hosts were free.
    pub node_seconds: f64,
    /// So many sent here at a time at the end.
    pub senders: usize,
    /// When hosts were free, in that order.
    pub freed: Vec<Freed>,
    /// Files that are not here.
    pub missing: Vec<Missing>,
}

/// The sum of the times at which hosts were free.
pub(super) fn node_seconds(freed: &[Freed]) -> f64 {
    // the sum of none would be the zero below zero
    freed.iter().fold(0.0, |sum, freed| sum + freed.seconds)
}

impl Outcome {
    /// In words, a line each.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let rate = if self.seconds > 0.0 { self.stored as f64 / self.seconds / 1e6 } else { 0.0 };
        let _ = writeln!(
            text,
            "{} files of {} hosts are whole; {} bytes in {:.2} s ({rate:.1} MB/s), {} were here before",
            self.whole, self.hosts, self.stored, self.seconds, self.earlier
        );
        let _ = writeln!(text, "{} hosts free, {:.1} node-seconds", self.freed.len(), self.node_seconds);
        for missing in &self.missing {
            let item = missing.item.as_deref().unwrap_or(&missing.host);
            let _ = writeln!(text, "missing: {item}: {}", missing.reason);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_was_free_nothing_is_the_sum() {
        let text = Outcome { node_seconds: node_seconds(&[]), ..Outcome::default() }.text();
        assert!(text.contains("0 hosts free, 0.0 node-seconds"), "{text}");
    }

    #[test]
    fn what_is_missing_is_named_with_its_reason() {
        let missing = |host: &str, item: Option<&str>, reason: &str| Missing {
            host: host.into(),
            item: item.map(Into::into),
            reason: reason.into(),
        };
        let missing = vec![missing("n1", Some("n1/a"), "permission denied"), missing("n2", None, "it does not answer")];
        let text = Outcome { hosts: 3, whole: 1, missing, ..Outcome::default() }.text();
        assert!(text.contains("missing: n1/a: permission denied\nmissing: n2: it does not answer\n"), "{text}");
    }
}
