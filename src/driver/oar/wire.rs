//! What OAR 2.5 sends, as tolerant as its habits demand: numbers come as text, text as numbers, much
//! as null, keys in random order, and the bytes are UTF-8 whatever their header says.
//!
//! Only this folder sees these types.

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

/// `GET /jobs/ID.json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Job {
    #[serde(deserialize_with = "number")]
    pub(super) id: Option<i64>,
    #[serde(deserialize_with = "text")]
    pub(super) name: String,
    #[serde(deserialize_with = "text")]
    pub(super) state: String,
    /// The raw wait status; null is unknown, not zero.
    #[serde(deserialize_with = "number")]
    pub(super) exit_code: Option<i64>,
    /// Zero until known; may lie a second or two in the future.
    #[serde(deserialize_with = "number")]
    pub(super) start_time: Option<i64>,
    #[serde(deserialize_with = "number")]
    pub(super) scheduled_start: Option<i64>,
    /// Null until nodes are assigned.
    #[serde(deserialize_with = "number")]
    pub(super) walltime: Option<i64>,
    #[serde(deserialize_with = "text")]
    pub(super) message: String,
    #[serde(deserialize_with = "list")]
    pub(super) events: Vec<Event>,
    #[serde(deserialize_with = "number")]
    pub(super) api_timestamp: Option<i64>,
}

/// An event of a job. Types repeat, and the list is not sorted.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Event {
    #[serde(rename = "event_id", deserialize_with = "number")]
    pub(super) id: Option<i64>,
    #[serde(rename = "type", deserialize_with = "text")]
    pub(super) kind: String,
    #[serde(deserialize_with = "number")]
    pub(super) date: Option<i64>,
    #[serde(deserialize_with = "text")]
    pub(super) description: String,
}

/// An item of `GET /jobs.json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Item {
    #[serde(deserialize_with = "number")]
    pub(super) id: Option<i64>,
    #[serde(deserialize_with = "text")]
    pub(super) name: String,
    #[serde(deserialize_with = "text")]
    pub(super) state: String,
    #[serde(deserialize_with = "text")]
    pub(super) owner: String,
}

/// An item of `GET /jobs/ID/nodes.json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    #[serde(deserialize_with = "text")]
    pub(super) network_address: String,
    /// `assigned`, `scheduled` or `reserved`.
    #[serde(deserialize_with = "text")]
    pub(super) status: String,
}

/// A collection. `items` must be there: another answer must not look like an empty list.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Collection<T> {
    pub(super) items: Vec<T>,
}

/// The reply to a submission.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Submitted {
    #[serde(deserialize_with = "number")]
    pub(super) id: Option<i64>,
}

/// `GET /version.json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Version {
    #[serde(deserialize_with = "text")]
    pub(super) oar_version: String,
    /// Only OAR 3 has it.
    #[serde(deserialize_with = "text")]
    pub(super) oar_server_version: String,
}

/// `GET /whoami.json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Whoami {
    #[serde(deserialize_with = "text")]
    pub(super) authenticated_user: String,
}

/// The body of an error.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ErrorBody {
    #[serde(deserialize_with = "text")]
    pub(super) title: String,
    #[serde(deserialize_with = "text")]
    pub(super) message: String,
}

/// Parses a body. Invalid UTF-8 is replaced: only messages of the system can hold it.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_str(&String::from_utf8_lossy(body)).map_err(|e| e.to_string())
}

fn number<'de, D: Deserializer<'de>>(input: D) -> Result<Option<i64>, D::Error> {
    Ok(match Value::deserialize(input)? {
        Value::Number(n) => n.as_i64(),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    })
}

fn text<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    Ok(match Value::deserialize(input)? {
        Value::String(s) => s,
        Value::Number(n) => n.to_string(),
        _ => String::new(),
    })
}

fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(input: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(input)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_may_differ_from_reply_to_reply() {
        let odd = br#"{"id": "7", "name": 12, "state": null, "events": null, "exit_code": null, "walltime": "600"}"#;
        let job: Job = parse(odd).unwrap();
        assert_eq!((job.id, job.name.as_str(), job.state.as_str()), (Some(7), "12", ""));
        assert_eq!((job.exit_code, job.walltime, job.events.len()), (None, Some(600), 0));
    }

    #[test]
    fn bytes_are_utf8_and_never_fatal() {
        let job: Job = parse("{\"message\": \"é\"}".as_bytes()).unwrap();
        assert_eq!(job.message, "é");
        assert!(parse::<Job>(b"{\"message\": \"\xe9\"}").is_ok());
    }

    #[test]
    fn another_answer_is_no_empty_list() {
        assert!(parse::<Collection<Item>>(b"{}").is_err());
        assert!(parse::<Collection<Item>>(b"<html>").is_err());
    }
}
