//! A byte stream in both directions, carried by a WebSocket: how a port of a guest comes to a user's
//! machine. The handshake of a server and both ends; it knows neither jobs nor guests.
//!
//! Frames are those of the cluster's own streams (`v5.channel.k8s.io`): the first byte is the channel,
//! and a message of its own ends one direction, since a proxy in the way may not pass half an end on.

use std::time::Duration;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use hyper::upgrade::OnUpgrade;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};
use tokio_util::sync::CancellationToken;

/// The subprotocol.
pub const PROTOCOL: &str = "v5.channel.k8s.io";
/// Channel that says that another one has ended.
const END: u8 = 255;
/// Bytes sent at a time.
const PIECE: usize = 32 << 10;
/// Longest message that is taken.
const LONGEST: usize = 1 << 20;
/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(15);
/// Silence that means that the other end is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// Time for the other end to take leave.
const FAREWELL: Duration = Duration::from_secs(5);

/// Something to read and write.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection that is there.
pub type Connection = Box<dyn Duplex>;

/// Why a stream ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Nobody on the way ended it properly.
    #[error("the connection was cut")]
    Cut,
    /// The other end is silent.
    #[error("the other end has said nothing for {} s", SILENCE.as_secs())]
    Silent,
    /// The bytes' own end failed.
    #[error("failed to {0}: {1}")]
    Local(&'static str, std::io::Error),
}

/// Which end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The user's, who asked for it.
    User,
    /// The guest's.
    Guest,
}

impl End {
    /// Channels to send on and to hear.
    fn channels(self) -> (u8, u8) {
        match self {
            Self::User => (0, 1),
            Self::Guest => (1, 0),
        }
    }

    fn role(self) -> Role {
        match self {
            Self::User => Role::Client,
            Self::Guest => Role::Server,
        }
    }
}

/// The key of a request that asks for a stream; else what to say to it.
///
/// # Errors
/// What is wrong with the request.
pub fn asked(headers: &HeaderMap) -> Result<String, &'static str> {
    let is = |name, word: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    if !is(header::UPGRADE, "websocket") || !is(header::CONNECTION, "upgrade") {
        return Err("this address is for WebSockets");
    }
    if !is(header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL) {
        return Err("the subprotocol must be v5.channel.k8s.io");
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
    key.map(ToOwned::to_owned).ok_or("the WebSocket has no key")
}

/// Agrees to a stream: the answer to the key, and what will become the connection.
pub fn agree(key: &str, request: &mut Request) -> (Response, OnUpgrade) {
    let mut reply = Response::new(Body::empty());
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, header::HeaderValue::from_static(PROTOCOL));
    if let Ok(accept) = derive_accept_key(key.as_bytes()).parse() {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    (reply, hyper::upgrade::on(request))
}

/// One end over a connection whose handshake is done.
pub async fn over<S>(connection: S, end: End) -> WebSocketStream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let limits = WebSocketConfig::default().max_message_size(Some(LONGEST)).max_frame_size(Some(LONGEST));
    WebSocketStream::from_raw_socket(connection, end.role(), Some(limits)).await
}

/// Carries bytes until both directions have ended, each by itself, or anything fails.
///
/// # Errors
/// A stream that has not ended in both directions.
pub async fn carry<S, R, W>(socket: WebSocketStream<S>, end: End, mut from: R, mut to: W) -> Result<(), StreamError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (own, others) = end.channels();
    let (mut sink, mut source) = socket.split();
    let (sent, received) = (CancellationToken::new(), CancellationToken::new());
    let sending = async {
        let mut beats = tokio::time::interval(BEAT);
        let mut piece = vec![0; PIECE];
        loop {
            let message = tokio::select! {
                // first of all: the other end may have closed by then, and takes nothing more
                biased;
                () = received.cancelled(), if sent.is_cancelled() => break,
                _ = beats.tick() => Message::Ping(Bytes::new()),
                count = from.read(&mut piece), if !sent.is_cancelled() => match count {
                    Ok(0) => {
                        sent.cancel();
                        Message::binary(vec![END, own])
                    }
                    Ok(count) => Message::binary([&[own], &piece[..count]].concat()),
                    Err(error) => return Err(StreamError::Local("read", error)),
                },
            };
            sink.send(message).await.map_err(|_| StreamError::Cut)?;
        }
        // what was sent last is lost if the connection is dropped before the other end has read it
        let _ = tokio::time::timeout(FAREWELL, sink.close()).await;
        tokio::time::sleep(FAREWELL).await;
        Ok(())
    };
    let receiving = async {
        loop {
            let message = tokio::time::timeout(SILENCE, source.next()).await.map_err(|_| StreamError::Silent)?;
            match message {
                Some(Ok(Message::Binary(bytes))) => match bytes.split_first() {
                    Some((&END, channel)) if channel == [others] => {
                        // a peer that has hung up needs no end
                        let _ = to.shutdown().await;
                        received.cancel();
                    }
                    Some((channel, bytes)) if *channel == others && !received.is_cancelled() => {
                        let written = async { to.write_all(bytes).await.and(to.flush().await) }.await;
                        match written {
                            Ok(()) => {}
                            // a guest that reads no more may still have something to say
                            Err(_) if end == End::Guest => received.cancel(),
                            Err(error) => return Err(StreamError::Local("write", error)),
                        }
                    }
                    _ => {}
                },
                Some(Ok(_)) => {}
                Some(Err(_)) | None if sent.is_cancelled() && received.is_cancelled() => return Ok(()),
                Some(Err(_)) | None => return Err(StreamError::Cut),
            }
        }
    };
    tokio::select! {
        ended = sending => ended,
        ended = receiving => ended,
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
