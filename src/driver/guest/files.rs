//! Programs and files of the guest, by its agent.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use super::{GuestError, channel::Channel};

/// Time for one short command; a guest under software emulation on a busy node is slow.
pub(super) const SHORT: Duration = Duration::from_secs(10);
/// Bytes read at a time.
const CHUNK: usize = 256 << 10;
/// How often a program's end is asked for.
const PACE: Duration = Duration::from_millis(50);

/// What a program in the guest did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Its exit code; a signal counts as 128 and more, as for a shell.
    pub code: i32,
    /// What it wrote, both streams, shortened.
    pub text: String,
}

/// Runs a short program and waits for its end.
pub async fn run(
    channel: &mut Channel,
    program: &str,
    arguments: &[String],
    environment: &[String],
    input: &[u8],
    limit: Duration,
) -> Result<Done, GuestError> {
    let mut order = json!({ "path": program, "arg": arguments, "capture-output": true });
    if !environment.is_empty() {
        order["env"] = json!(environment);
    }
    if !input.is_empty() {
        order["input-data"] = json!(BASE64.encode(input));
    }
    let started = channel.execute("guest-exec", order, SHORT).await?;
    let pid = started["pid"].as_i64().ok_or(GuestError::Strange("guest-exec"))?;
    let until = tokio::time::Instant::now() + limit;
    while tokio::time::Instant::now() < until {
        let status = channel.execute("guest-exec-status", json!({ "pid": pid }), SHORT).await?;
        if status["exited"].as_bool() == Some(true) {
            let text = [text(&status["out-data"]), text(&status["err-data"])].concat();
            return Ok(Done { code: exit_code(&status), text });
        }
        tokio::time::sleep(PACE).await;
    }
    Err(GuestError::Late("guest-exec-status"))
}

/// The exit code in the status of a program that has ended.
pub(super) fn exit_code(status: &Value) -> i32 {
    let signal = status["signal"].as_i64().map(|signal| 128 + signal);
    let code = status["exitcode"].as_i64().or(signal).unwrap_or(255);
    i32::try_from(code).unwrap_or(255)
}

fn text(encoded: &Value) -> String {
    let bytes = encoded.as_str().and_then(|text| BASE64.decode(text).ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).chars().take(300).collect()
}

/// A file of the guest, opened for reading.
pub struct GuestFile(i64);

/// Opens a file; `None` if there is none.
pub async fn open(channel: &mut Channel, path: &str) -> Result<Option<GuestFile>, GuestError> {
    match channel.execute("guest-file-open", json!({ "path": path, "mode": "r" }), SHORT).await {
        Ok(handle) => handle.as_i64().map(GuestFile).map(Some).ok_or(GuestError::Strange("guest-file-open")),
        Err(GuestError::Refused { text, .. }) if text.contains("No such file") => Ok(None),
        Err(error) => Err(error),
    }
}

impl GuestFile {
    /// The next bytes; none at the end.
    pub async fn read(&self, channel: &mut Channel) -> Result<Vec<u8>, GuestError> {
        let order = json!({ "handle": self.0, "count": CHUNK });
        let reply = channel.execute("guest-file-read", order, SHORT * 3).await?;
        let encoded = reply["buf-b64"].as_str().unwrap_or_default();
        let bytes = BASE64.decode(encoded).map_err(|_| GuestError::Strange("guest-file-read"))?;
        if bytes.len() > CHUNK { Err(GuestError::Strange("guest-file-read")) } else { Ok(bytes) }
    }

    /// Closes it.
    pub async fn close(self, channel: &mut Channel) -> Result<(), GuestError> {
        channel.execute("guest-file-close", json!({ "handle": self.0 }), SHORT).await.map(|_| ())
    }
}

/// Reads a small file whole; `None` if there is none.
pub async fn read_small(channel: &mut Channel, path: &str) -> Result<Option<Vec<u8>>, GuestError> {
    let Some(file) = open(channel, path).await? else { return Ok(None) };
    let bytes = file.read(channel).await;
    file.close(channel).await?;
    bytes.map(Some)
}
