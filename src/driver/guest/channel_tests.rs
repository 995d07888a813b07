use tokio::io::{AsyncBufReadExt as _, BufReader, DuplexStream};

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

/// A guest agent that sends `first` before anything else and answers pings and syncs.
fn agent(first: Vec<u8>) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        let (reader, mut writer) = tokio::io::split(theirs);
        writer.write_all(&first).await.unwrap();
        let mut lines = BufReader::new(reader).split(b'\n');
        while let Some(line) = lines.next_segment().await.unwrap() {
            let command = line.strip_prefix(&[MARK]).unwrap_or(&line);
            let command: Value = serde_json::from_slice(command).unwrap();
            let reply = match command["execute"].as_str().unwrap() {
                "guest-sync-delimited" => {
                    writer.write_all(b"{\"error\": {\"desc\": \"JSON parse error, stray \\ufffd\"}}\n").await.unwrap();
                    writer.write_all(&[MARK]).await.unwrap();
                    json!({ "return": command["arguments"]["id"] })
                }
                "flood" => json!({ "return": "x".repeat(2 * MAX_REPLY) }),
                "bad" => json!({ "error": { "desc": "no" } }),
                _ => json!({ "return": command["execute"] }),
            };
            if command["execute"] != "hang" {
                writer.write_all(format!("{reply}\n").as_bytes()).await.unwrap();
            }
        }
    });
    ours
}

#[tokio::test]
async fn b9_a_restore_begins_with_a_sync_that_drops_old_replies() {
    let mut channel = Channel::over(agent(b"{\"return\": \"of before the cut\"}\n{\"retu".to_vec()));
    assert_eq!(channel.execute("guest-ping", Value::Null, LIMIT).await.unwrap(), json!("guest-ping"));
}

#[tokio::test]
async fn refusals_are_errors_and_keep_the_step() {
    let mut channel = Channel::over(agent(Vec::new()));
    let refused = channel.execute("bad", Value::Null, LIMIT).await;
    assert_eq!(refused, Err(GuestError::Refused { command: "bad", text: "no".into() }));
    assert!(channel.in_step);
}

#[tokio::test]
async fn d3_a_reply_without_end_is_not_kept() {
    let mut channel = Channel::over(agent(Vec::new()));
    assert!(channel.execute("flood", Value::Null, LIMIT).await.is_err());
    assert!(channel.buffer.len() <= MAX_REPLY + (64 << 10));
    assert_eq!(channel.execute("guest-ping", Value::Null, LIMIT).await.unwrap(), json!("guest-ping"));
}

#[tokio::test(start_paused = true)]
async fn d3_a_guest_that_does_not_answer_is_waited_for_in_bounds() {
    let mut channel = Channel::over(agent(Vec::new()));
    assert_eq!(channel.execute("hang", Value::Null, LIMIT).await, Err(GuestError::Late("hang")));
    assert_eq!(channel.execute("guest-ping", Value::Null, LIMIT).await.unwrap(), json!("guest-ping"));
}
