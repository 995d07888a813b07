//! The client of QMP, over anything that can be read and written.

use std::{
    collections::BTreeMap,
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::UnixStream,
    sync::{broadcast, oneshot},
};
use tokio_util::codec::{FramedRead, LinesCodec};

use super::codec::{self, MAX_LINE, Message};

/// A command that is not answered for this long has failed.
const REPLY_LIMIT: Duration = Duration::from_secs(20);

/// What goes wrong on the control channel.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum QmpError {
    /// The connection is gone, mostly with its QEMU.
    #[error("the connection to QEMU is gone")]
    Closed,
    /// QEMU refuses.
    #[error("QEMU refused {command}: {text}")]
    Refused {
        /// The command.
        command: String,
        /// What it said.
        text: String,
    },
    /// No reply in time.
    #[error("QEMU did not answer {0} in time")]
    Late(String),
    /// The socket.
    #[error("failed to reach QEMU: {0}")]
    Socket(String),
}

/// Something QEMU reported by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name, for example `STOP`.
    pub name: String,
    /// What belongs to it.
    pub data: Value,
}

type Reply = oneshot::Sender<Result<Value, String>>;

#[derive(Default)]
struct Pending {
    next: u64,
    /// Absent once the connection is gone.
    waiting: Option<BTreeMap<u64, Reply>>,
}

/// A connection to one QEMU.
pub struct Qmp {
    writer: tokio::sync::Mutex<Box<dyn AsyncWrite + Send + Unpin>>,
    pending: Arc<Mutex<Pending>>,
    events: broadcast::Sender<Event>,
    /// The same socket, to pass files over.
    passing: Option<std::os::unix::net::UnixStream>,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Connects to QEMU's socket and negotiates.
    pub async fn connect(path: &Path) -> Result<Self, QmpError> {
        let socket = |error: std::io::Error| QmpError::Socket(error.to_string());
        let stream = UnixStream::connect(path).await.map_err(socket)?;
        let std = stream.into_std().map_err(socket)?;
        let passing = std.try_clone().map_err(socket)?;
        let stream = UnixStream::from_std(std).map_err(socket)?;
        Self::start(stream, Some(passing)).await
    }

    /// Negotiates over a connection that exists.
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Result<Self, QmpError> {
        Self::start(stream, None).await
    }

    async fn start(
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        passing: Option<std::os::unix::net::UnixStream>,
    ) -> Result<Self, QmpError> {
        let (reader, writer) = tokio::io::split(stream);
        let pending = Arc::new(Mutex::new(Pending { next: 0, waiting: Some(BTreeMap::new()) }));
        let events = broadcast::Sender::new(256);
        let reader = tokio::spawn(read(reader, pending.clone(), events.clone()));
        let writer = tokio::sync::Mutex::new(Box::new(writer) as Box<dyn AsyncWrite + Send + Unpin>);
        let client = Self { writer, pending, events, passing, reader };
        client.execute("qmp_capabilities", Value::Null).await?;
        Ok(client)
    }

    /// Everything QEMU reports from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    fn expect(&self) -> Result<(u64, oneshot::Receiver<Result<Value, String>>), QmpError> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.next += 1;
        let id = pending.next;
        let (sender, receiver) = oneshot::channel();
        pending.waiting.as_mut().ok_or(QmpError::Closed)?.insert(id, sender);
        Ok((id, receiver))
    }

    /// Runs a command.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let (id, reply) = self.expect()?;
        let line = codec::command(id, command, &arguments);
        let mut writer = self.writer.lock().await;
        writer.write_all(line.as_bytes()).await.map_err(|_| QmpError::Closed)?;
        writer.flush().await.map_err(|_| QmpError::Closed)?;
        drop(writer);
        wait(command, reply).await
    }

    /// Gives QEMU an open file under a name.
    pub async fn pass_file(&self, name: &str, file: BorrowedFd<'_>) -> Result<(), QmpError> {
        let socket = self.passing.as_ref().ok_or_else(|| QmpError::Socket("no files can be passed".into()))?;
        let (id, reply) = self.expect()?;
        let line = codec::command(id, "getfd", &json!({ "fdname": name }));
        // whole lines only: nobody else may write in between
        let writer = self.writer.lock().await;
        send_with_file(socket.as_fd(), line.as_bytes(), file).map_err(|e| QmpError::Socket(e.to_string()))?;
        drop(writer);
        wait("getfd", reply).await.map(|_| ())
    }
}

fn send_with_file(socket: BorrowedFd<'_>, line: &[u8], file: BorrowedFd<'_>) -> std::io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let files = [file];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&files));
    // a line this short goes at once or not at all
    let sent = sendmsg(socket, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == line.len() { Ok(()) } else { Err(std::io::ErrorKind::WriteZero.into()) }
}

async fn wait(command: &str, reply: oneshot::Receiver<Result<Value, String>>) -> Result<Value, QmpError> {
    match tokio::time::timeout(REPLY_LIMIT, reply).await {
        Ok(Ok(Ok(value))) => Ok(value),
        Ok(Ok(Err(text))) => Err(QmpError::Refused { command: command.into(), text }),
        Ok(Err(_)) => Err(QmpError::Closed),
        Err(_) => Err(QmpError::Late(command.into())),
    }
}

async fn read(stream: impl AsyncRead + Unpin, pending: Arc<Mutex<Pending>>, events: broadcast::Sender<Event>) {
    let mut lines = FramedRead::new(stream, LinesCodec::new_with_max_length(MAX_LINE));
    while let Some(Ok(line)) = lines.next().await {
        let (id, reply) = match codec::parse(&line) {
            Ok(Message::Return { id, value }) => (id, Ok(value)),
            Ok(Message::Error { id, text }) => (id, Err(text)),
            Ok(Message::Event { name, data }) => {
                // nobody listening is no error
                let _ = events.send(Event { name, data });
                continue;
            }
            Ok(Message::Greeting | Message::Other) => continue,
            Err(error) => {
                tracing::warn!(%error, "QEMU sent a line that is not QMP");
                break;
            }
        };
        let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = pending.waiting.as_mut().and_then(|waiting| waiting.remove(&id)) {
            // who asked may have gone away
            let _ = sender.send(reply);
        }
    }
    pending.lock().unwrap_or_else(PoisonError::into_inner).waiting = None;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, BufReader, DuplexStream};

    use super::*;

    /// A QEMU that answers each command with what `answer` says.
    fn qemu(answer: impl Fn(&Value) -> String + Send + 'static) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            let (reader, mut writer) = tokio::io::split(theirs);
            writer.write_all(b"{\"QMP\": {}}\n").await.unwrap();
            let mut lines = BufReader::new(reader).lines();
            while let Some(line) = lines.next_line().await.unwrap() {
                let reply = answer(&serde_json::from_str(&line).unwrap());
                writer.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        ours
    }

    #[tokio::test]
    async fn replies_find_their_commands_and_events_their_listeners() {
        let stream = qemu(|command| match command["execute"].as_str().unwrap() {
            "stop" => format!("{{\"event\": \"STOP\"}}\n{{\"return\": 7, \"id\": {}}}\n", command["id"]),
            "bad" => format!("{{\"error\": {{\"desc\": \"no\"}}, \"id\": {}}}\n", command["id"]),
            _ => format!("{{\"return\": {{}}, \"id\": {}}}\n", command["id"]),
        });
        let qmp = Qmp::over(stream).await.unwrap();
        let mut events = qmp.events();
        assert_eq!(qmp.execute("stop", Value::Null).await.unwrap(), json!(7));
        assert_eq!(events.recv().await.unwrap().name, "STOP");
        let refused = QmpError::Refused { command: "bad".into(), text: "no".into() };
        assert_eq!(qmp.execute("bad", json!({"a": 1})).await, Err(refused));
    }

    #[tokio::test]
    async fn d3_a_line_without_end_closes_the_connection() {
        let stream = qemu(|command| match command["execute"].as_str().unwrap() {
            "flood" => "x".repeat(MAX_LINE + 2),
            _ => format!("{{\"return\": {{}}, \"id\": {}}}\n", command["id"]),
        });
        let qmp = Qmp::over(stream).await.unwrap();
        assert_eq!(qmp.execute("flood", Value::Null).await, Err(QmpError::Closed));
        assert_eq!(qmp.execute("more", Value::Null).await, Err(QmpError::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn d3_a_command_without_reply_ends_in_time() {
        let stream = qemu(|command| match command["execute"].as_str().unwrap() {
            "hang" => String::new(),
            _ => format!("{{\"return\": {{}}, \"id\": {}}}\n", command["id"]),
        });
        let qmp = Qmp::over(stream).await.unwrap();
        assert_eq!(qmp.execute("hang", Value::Null).await, Err(QmpError::Late("hang".into())));
    }
}
