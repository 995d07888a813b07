//! Sizes in bytes, written as Kubernetes quantities.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A size in bytes, written as a whole number with an optional suffix (`Ki Mi Gi Ti k M G T`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

/// The suffixes a size may carry, largest first.
const SUFFIXES: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

impl Bytes {
    /// `n` MiB.
    pub const fn mebibytes(n: u64) -> Self {
        Self(n << 20)
    }

    /// Whole MiB, rounded up: the unit QEMU and OAR take.
    pub const fn as_mebibytes(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }
}

/// A text that is not a size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a size: write a whole number with a suffix, for example 512Mi")]
pub struct ParseBytesError(String);

impl FromStr for Bytes {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseBytesError(text.chars().take(64).collect());
        let (digits, unit) = SUFFIXES
            .iter()
            .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|digits| (digits, *unit)))
            .unwrap_or((text, 1));
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = SUFFIXES[..4].iter().find(|(_, unit)| self.0 != 0 && self.0.is_multiple_of(*unit));
        match binary {
            Some((suffix, unit)) => write!(f, "{}{suffix}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(n) => Ok(Self(n)),
            Written::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

impl JsonSchema for Bytes {
    fn schema_name() -> Cow<'static, str> {
        "Bytes".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 24,
            "pattern": "^[0-9]+(Ti|Gi|Mi|Ki|T|G|M|k)?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("512Mi", 512 << 20)]
    #[case("4Gi", 4 << 30)]
    #[case("1500M", 1_500_000_000)]
    #[case("7", 7)]
    fn sizes_are_read(#[case] text: &str, #[case] bytes: u64) {
        assert_eq!(text.parse(), Ok(Bytes(bytes)));
    }

    #[rstest]
    #[case("")]
    #[case("Mi")]
    #[case("-1")]
    #[case("1.5Gi")]
    #[case("99999999999999Ti")]
    fn other_texts_are_refused(#[case] text: &str) {
        assert!(text.parse::<Bytes>().is_err());
    }

    #[test]
    fn sizes_are_written_as_people_write_them() {
        for text in ["512Mi", "4Gi", "1500000000", "0"] {
            assert_eq!(text.parse::<Bytes>().unwrap().to_string(), text);
        }
    }
}
