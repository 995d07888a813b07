//! The lines of QMP. Pure.

use serde_json::{Map, Value, json};

/// A longer line ends the connection.
pub(super) const MAX_LINE: usize = 1 << 20;
/// As much of an error's text is kept.
const MAX_TEXT: usize = 1024;

/// What QEMU says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Message {
    /// Its first line.
    Greeting,
    /// The reply to the command with this id.
    Return { id: u64, value: Value },
    /// The refusal of the command with this id.
    Error { id: u64, text: String },
    /// Something happened.
    Event { name: String, data: Value },
    /// Anything else: of no use to us.
    Other,
}

/// Reads a line.
pub(super) fn parse(line: &str) -> Result<Message, serde_json::Error> {
    let mut line: Map<String, Value> = serde_json::from_str(line)?;
    let id = line.get("id").and_then(Value::as_u64);
    let mut take = |key: &str| line.remove(key);
    Ok(if take("QMP").is_some() {
        Message::Greeting
    } else if let Some(Value::String(name)) = take("event") {
        Message::Event { name, data: take("data").unwrap_or_default() }
    } else if let (Some(id), Some(value)) = (id, take("return")) {
        Message::Return { id, value }
    } else if let (Some(id), Some(error)) = (id, take("error")) {
        let text = error.get("desc").and_then(Value::as_str).unwrap_or("no text");
        Message::Error { id, text: text.chars().take(MAX_TEXT).collect() }
    } else {
        Message::Other
    })
}

/// Writes a command.
pub(super) fn command(id: u64, name: &str, arguments: &Value) -> String {
    let line = if arguments.is_null() {
        json!({ "execute": name, "id": id })
    } else {
        json!({ "execute": name, "arguments": arguments, "id": id })
    };
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_told_apart() {
        let cases = [
            (r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#, Message::Greeting),
            (r#"{"return": {}, "id": 3}"#, Message::Return { id: 3, value: json!({}) }),
            (
                r#"{"id": 4, "error": {"class": "GenericError", "desc": "no"}}"#,
                Message::Error { id: 4, text: "no".into() },
            ),
            (
                r#"{"timestamp": {"seconds": 1}, "event": "STOP"}"#,
                Message::Event { name: "STOP".into(), data: Value::Null },
            ),
            (r#"{"return": {}}"#, Message::Other),
        ];
        for (line, message) in cases {
            assert_eq!(parse(line).unwrap(), message, "{line}");
        }
        assert!(parse("[]").is_err());
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in "\\PC*") {
            let _ = parse(&line);
        }
    }
}
