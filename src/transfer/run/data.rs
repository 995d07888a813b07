//! The bytes themselves: connections among nodes, and from nodes to the repository.
//!
//! A connection shows the token of the run in its first line, and what it is for. A move is a row of frames, each with
//! the BLAKE3 digest of what it says and holds, and an empty one at its end.

use std::{io, net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::wire::{ItemId, Piece};

/// For a connection to be made, and for its first line.
const PATIENCE: Duration = Duration::from_secs(10);
/// A move of which nothing comes for so long ends.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest line.
const LINE: u64 = 1 << 10;
/// Largest frame that anybody is given memory for.
pub(super) const LARGEST: u64 = 16 << 20;
/// Item, start and length.
const HEAD: usize = 8 + 8 + 4;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Opening {
    /// Whether there is a way; answered with the address that it came from.
    Probe,
    /// Answered with the binary.
    Binary,
    /// The bytes of a move: so many.
    Move { id: u64, bytes: u64 },
}

/// A part of a file, on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) piece: Piece,
    pub(super) bytes: Vec<u8>,
    digest: [u8; 32],
}

impl Frame {
    pub(super) fn new(piece: Piece, bytes: Vec<u8>) -> Self {
        let digest = digest(&head(piece), &bytes);
        Self { piece, bytes, digest }
    }
}

fn head(piece: Piece) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(&piece.item.0.to_be_bytes());
    head[8..16].copy_from_slice(&piece.start.to_be_bytes());
    // no frame is larger
    head[16..].copy_from_slice(&(piece.bytes() as u32).to_be_bytes());
    head
}

fn digest(head: &[u8], bytes: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(head).update(bytes).finalize().as_bytes()
}

/// A token that nobody can guess.
pub(super) fn token() -> String {
    blake3::Hash::from_bytes(rand::random()).to_hex().to_string()
}

/// Listens on every address, by both protocols where there are both.
pub(super) async fn listen() -> io::Result<TcpListener> {
    match TcpListener::bind("[::]:0").await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind("0.0.0.0:0").await,
    }
}

/// A connection that has shown the token, and waits for what it is for.
pub(super) async fn dial(to: SocketAddr, token: &str) -> io::Result<TcpStream> {
    let mut stream = timeout(PATIENCE, TcpStream::connect(to)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    stream.set_nodelay(true)?;
    stream.write_all(format!("{token}\n").as_bytes()).await?;
    Ok(stream)
}

/// A connection for this.
pub(super) async fn connect(to: SocketAddr, token: &str, opening: Opening) -> io::Result<TcpStream> {
    let mut stream = dial(to, token).await?;
    open(&mut stream, opening).await?;
    Ok(stream)
}

/// Says what a connection is for.
pub(super) async fn open(stream: &mut TcpStream, opening: Opening) -> io::Result<()> {
    stream.write_all(format!("{}\n", serde_json::to_string(&opening)?).as_bytes()).await
}

/// What a connection is for, if it has the token; it may take its time to say so.
pub(super) async fn opened(stream: TcpStream, token: &str) -> io::Result<(Opening, BufReader<TcpStream>)> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let shown = timeout(PATIENCE, line(&mut reader)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    // digests are compared in a time that says nothing
    if blake3::hash(shown.as_bytes()) != blake3::hash(token.as_bytes()) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok((serde_json::from_str(&line(&mut reader).await?)?, reader))
}

async fn line(reader: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    reader.take(LINE).read_line(&mut line).await?;
    Ok(line.trim_end().to_owned())
}

/// The head of a frame, and its digest.
pub(super) fn packed(frame: &Frame) -> Vec<u8> {
    [&head(frame.piece)[..], &frame.digest].concat()
}

/// Nothing follows.
pub(super) fn last() -> Vec<u8> {
    packed(&Frame::new(Piece { item: ItemId(u64::MAX), start: 0, end: 0 }, Vec::new()))
}

/// The next frame, unless it was the last; `came` hears of every part of it.
pub(super) async fn next(reader: &mut BufReader<TcpStream>, mut came: impl FnMut(usize)) -> io::Result<Option<Frame>> {
    let mut known = [0; HEAD + 32];
    timeout(SILENCE, reader.read_exact(&mut known)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let (head, expected) = known.split_at(HEAD);
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
    let (item, start, length) = (number(&head[..8]), number(&head[8..16]), number(&head[16..]));
    let end = start.checked_add(length).filter(|_| length <= LARGEST).ok_or(io::ErrorKind::InvalidData)?;
    let mut bytes = vec![0; length as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        let read = timeout(SILENCE, reader.read(&mut bytes[filled..]));
        let count = read.await.map_err(|_| io::ErrorKind::TimedOut)??;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += count;
        came(count);
    }
    let found = digest(head, &bytes);
    if found != expected {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a digest is not right"));
    }
    let piece = Piece { item: ItemId(item), start, end };
    Ok((length > 0).then_some(Frame { piece, bytes, digest: found }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair(token: &str) -> (io::Result<(Opening, BufReader<TcpStream>)>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let opening = Opening::Move { id: 7, bytes: 5 };
        let near = connect(listener.local_addr().unwrap(), token, opening).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        (opened(far, "secret").await, near)
    }

    #[tokio::test]
    async fn frames_come_as_they_were_sent() {
        let (opened, mut near) = pair("secret").await;
        let (opening, mut far) = opened.unwrap();
        assert_eq!(opening, Opening::Move { id: 7, bytes: 5 });
        let frame = Frame::new(Piece { item: ItemId::new(3, 1), start: 10, end: 15 }, b"hello".to_vec());
        near.write_all(&[packed(&frame), frame.bytes.clone(), last()].concat()).await.unwrap();
        let mut came = 0;
        assert_eq!(next(&mut far, |count| came += count).await.unwrap(), Some(frame));
        assert_eq!(came, 5);
        assert_eq!(next(&mut far, |_| ()).await.unwrap(), None);
        drop(near);
        assert!(next(&mut far, |_| ()).await.is_err());
    }

    #[tokio::test]
    async fn what_was_changed_on_its_way_is_refused() {
        let frame = Frame::new(Piece { item: ItemId::new(3, 1), start: 10, end: 15 }, b"hello".to_vec());
        let good = [packed(&frame), frame.bytes.clone()].concat();
        // of every field one byte
        for at in [7, 15, 25, HEAD + 32 + 2] {
            let (opened, mut near) = pair("secret").await;
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            near.write_all(&bytes).await.unwrap();
            assert!(next(&mut opened.unwrap().1, |_| ()).await.is_err(), "{at}");
        }
    }

    #[tokio::test]
    async fn nobody_comes_in_without_the_token() {
        assert_eq!(pair("guessed").await.0.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
