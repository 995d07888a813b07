//! The channel of qemu-guest-agent: JSON lines without ids, so that a reply of before a restore can
//! come after it. Only a sync, with a number of our own, tells old from new.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};

use super::GuestError;

/// A longer reply ends the conversation until the next sync.
const MAX_REPLY: usize = 4 << 20;
/// In front of every reply to a sync.
const MARK: u8 = 0xff;

/// Something to read and write.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// A conversation with one guest's agent.
pub struct Channel {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    /// Whether the next reply belongs to the next command.
    in_step: bool,
}

impl Channel {
    /// Connects to QEMU's end of the port.
    pub async fn connect(socket: &Path) -> Result<Self, GuestError> {
        let stream = UnixStream::connect(socket).await.map_err(|e| GuestError::Socket(e.to_string()))?;
        Ok(Self::over(stream))
    }

    /// Talks over a connection that exists.
    pub fn over(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), buffer: Vec::new(), in_step: false }
    }

    /// Forgets that the conversation was in step: the guest was restored.
    pub fn lose_step(&mut self) {
        self.in_step = false;
    }

    /// Asks for a sign of life and drops all replies to older commands.
    pub async fn sync(&mut self, limit: Duration) -> Result<(), GuestError> {
        self.in_step = false;
        let result = timeout(limit, self.try_sync()).await;
        result.unwrap_or(Err(GuestError::Late("guest-sync-delimited")))?;
        self.in_step = true;
        Ok(())
    }

    async fn try_sync(&mut self) -> Result<(), GuestError> {
        let id = rand::random::<u32>();
        let line = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
        // the mark makes the agent drop what it has read of a command that was cut off
        self.send(&[&[MARK], format!("{line}\n").as_bytes()].concat()).await?;
        let mut marked = false;
        loop {
            let mut line = self.line(!marked).await?;
            if let Some(at) = line.iter().rposition(|byte| *byte == MARK) {
                line.drain(..=at);
                marked = true;
            }
            let reply: Option<Value> = serde_json::from_slice(&line).ok();
            if marked && reply.is_some_and(|reply| reply["return"].as_u64() == Some(u64::from(id))) {
                return Ok(());
            }
        }
    }

    /// Runs a command. After a failure of the channel, the next command begins with a sync.
    pub async fn execute(
        &mut self,
        command: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, GuestError> {
        if !self.in_step {
            self.sync(limit).await?;
        }
        self.in_step = false;
        let reply =
            timeout(limit, self.exchange(command, &arguments)).await.unwrap_or(Err(GuestError::Late(command)))?;
        self.in_step = true;
        if let Some(error) = reply.get("error") {
            let text = error["desc"].as_str().unwrap_or("no text").chars().take(300).collect();
            return Err(GuestError::Refused { command, text });
        }
        reply.get("return").cloned().ok_or(GuestError::Strange(command))
    }

    async fn exchange(&mut self, command: &'static str, arguments: &Value) -> Result<Value, GuestError> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.send(format!("{line}\n").as_bytes()).await?;
        let line = self.line(false).await?;
        serde_json::from_slice(&line).map_err(|_| GuestError::Strange(command))
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), GuestError> {
        self.stream.write_all(bytes).await.map_err(|e| GuestError::Socket(e.to_string()))
    }

    /// The next line. While only a sync is waited for, overlong ones are dropped.
    async fn line(&mut self, drop_overlong: bool) -> Result<Vec<u8>, GuestError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                return Ok(line);
            }
            if self.buffer.len() > MAX_REPLY {
                self.buffer.clear();
                if !drop_overlong {
                    return Err(GuestError::Strange("a command"));
                }
            }
            let mut piece = vec![0; 64 << 10];
            let count = self.stream.read(&mut piece).await.map_err(|e| GuestError::Socket(e.to_string()))?;
            if count == 0 {
                return Err(GuestError::Socket("closed".into()));
            }
            self.buffer.extend_from_slice(&piece[..count]);
        }
    }
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
