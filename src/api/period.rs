//! The time between two snapshots: a length, or the word that leaves the choice to the operator.

use std::{borrow::Cow, fmt, str::FromStr};

use kube::core::Duration;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::job::DURATION;

/// What is written instead of a length.
const WORD: &str = "Adaptive";

/// The time between two snapshots, written as a length or as `Adaptive`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// Always this long.
    Fixed(Duration),
    /// What the operator finds best for the job, from what it has measured.
    Adaptive,
}

/// A text that is no period.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a period: write a length such as 10m, or the word Adaptive")]
pub struct ParsePeriodError(String);

impl FromStr for Period {
    type Err = ParsePeriodError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == WORD {
            return Ok(Self::Adaptive);
        }
        text.parse().map(Self::Fixed).map_err(|_| ParsePeriodError(text.chars().take(64).collect()))
    }
}

impl From<std::time::Duration> for Period {
    fn from(length: std::time::Duration) -> Self {
        Self::Fixed(length.into())
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(length) => length.fmt(f),
            Self::Adaptive => f.write_str(WORD),
        }
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fixed(length) => length.serialize(serializer),
            Self::Adaptive => serializer.serialize_str(WORD),
        }
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Period {
    fn schema_name() -> Cow<'static, str> {
        "Period".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "pattern": format!("^{WORD}$|{DURATION}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn lengths_and_the_word_are_read_and_written() {
        for (text, period, written) in [
            ("10m", Period::from(Duration::from_secs(600)), "600s"),
            ("90s", Period::from(Duration::from_secs(90)), "90s"),
            ("1h30m", Period::from(Duration::from_secs(5400)), "5400s"),
            ("Adaptive", Period::Adaptive, "Adaptive"),
        ] {
            assert_eq!(text.parse(), Ok(period));
            assert_eq!(serde_json::to_value(period).unwrap(), written);
            assert_eq!(period.to_string(), written);
            assert_eq!(serde_json::from_value::<Period>(text.into()).unwrap(), period);
        }
    }

    #[test]
    fn other_words_are_refused_with_a_hint() {
        for text in ["adaptive", "Auto", "10", "10 minutes"] {
            let error = serde_json::from_value::<Period>(text.into()).unwrap_err().to_string();
            assert!(error.contains("or the word Adaptive"), "{error}");
        }
    }
}
