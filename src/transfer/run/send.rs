//! The sending end of a move: reads pieces of own files and of what is kept of others.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Mutex, mpsc},
    time::{Instant, sleep_until},
};

use super::{
    data::{self, Frame, Opening},
    shelf::{At, Shelf},
    wire::{Identity, ItemId, Piece},
};

/// Frames that are read ahead.
const QUEUE: usize = 3;
/// Bytes that are sent at once where there is a limit.
const SLICE: usize = 16 << 10;

/// Why a move was not sent.
#[derive(Debug)]
pub(super) enum Unsent {
    /// The connection, or what is kept of others.
    Broken(io::Error),
    /// One of the own files.
    Item(ItemId, String),
}

impl From<io::Error> for Unsent {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// What a node can send.
#[derive(Debug)]
pub(super) struct Library {
    pub(super) node: usize,
    /// Own files, by number.
    pub(super) own: Vec<(PathBuf, Identity)>,
    pub(super) shelf: Arc<Shelf>,
    /// Bytes of a frame.
    pub(super) chunk: u64,
}

/// Keeps all moves of a node together within its limit.
#[derive(Debug)]
pub(super) struct Pace {
    rate: Option<u64>,
    next: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.map(|rate| rate.max(1)), next: Mutex::new(Instant::now()) }
    }

    async fn send(&self, stream: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
        let Some(rate) = self.rate else { return stream.write_all(bytes).await };
        for slice in bytes.chunks(SLICE) {
            let at = {
                let mut next = self.next.lock().await;
                let at = (*next).max(Instant::now());
                *next = at + Duration::from_secs_f64(slice.len() as f64 / rate as f64);
                at
            };
            sleep_until(at).await;
            stream.write_all(slice).await?;
        }
        Ok(())
    }
}

/// Sends a move on a connection; when this is done, all of it has come.
pub(super) async fn send(
    library: Arc<Library>,
    pace: &Pace,
    connection: impl Future<Output = io::Result<TcpStream>>,
    id: u64,
    pieces: Vec<Piece>,
) -> Result<(), Unsent> {
    let bytes = pieces.iter().map(Piece::bytes).sum();
    let (frames, mut waiting) = mpsc::channel(QUEUE);
    let reading = tokio::task::spawn_blocking(move || library.read(&pieces, &frames));
    let mut stream = connection.await?;
    data::open(&mut stream, Opening::Move { id, bytes }).await?;
    while let Some(frame) = waiting.recv().await {
        let frame: Frame = frame;
        pace.send(&mut stream, &data::packed(&frame)).await?;
        pace.send(&mut stream, &frame.bytes).await?;
    }
    // before the end is sent: what was not read to its end must not look as if it had been
    reading.await.map_err(|error| io::Error::other(error.to_string()))??;
    stream.write_all(&data::last()).await?;
    stream.read_exact(&mut [0]).await?;
    Ok(())
}

impl Library {
    fn read(&self, pieces: &[Piece], frames: &mpsc::Sender<Frame>) -> Result<(), Unsent> {
        let mut own: Vec<ItemId> = Vec::new();
        for piece in pieces {
            if piece.item.node() == self.node {
                let wrong = |error: io::Error| Unsent::Item(piece.item, reason(&error));
                let (path, _) = self.own(piece.item)?;
                let file = File::open(path).map_err(wrong)?;
                let at = At { path: path.clone(), offset: piece.start, piece: *piece };
                self.pass(&file, &at, frames, wrong)?;
                own.push(piece.item);
                continue;
            }
            let found = self.shelf.find(*piece);
            if found.iter().map(|at| at.piece.bytes()).sum::<u64>() != piece.bytes() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "that is not kept here").into());
            }
            for at in found {
                self.pass(&File::open(&at.path)?, &at, frames, Unsent::Broken)?;
            }
        }
        own.dedup();
        for item in own {
            let (path, identity) = self.own(item)?;
            let now = look(path).map_err(|reason| Unsent::Item(item, reason))?;
            if now != *identity {
                return Err(Unsent::Item(item, "it has changed since the beginning".into()));
            }
        }
        Ok(())
    }

    fn own(&self, item: ItemId) -> Result<&(PathBuf, Identity), Unsent> {
        self.own.get(item.file()).ok_or_else(|| Unsent::Item(item, "there is no such file".into()))
    }

    fn pass(
        &self,
        file: &File,
        at: &At,
        frames: &mpsc::Sender<Frame>,
        wrong: impl Fn(io::Error) -> Unsent,
    ) -> Result<(), Unsent> {
        let mut start = at.piece.start;
        while start < at.piece.end {
            let end = at.piece.end.min(start + self.chunk);
            let mut bytes = vec![0; (end - start) as usize];
            file.read_exact_at(&mut bytes, at.offset + (start - at.piece.start)).map_err(&wrong)?;
            let frame = Frame::new(Piece { item: at.piece.item, start, end }, bytes);
            if frames.blocking_send(frame).is_err() {
                return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
            }
            start = end;
        }
        Ok(())
    }
}

/// What is known of a file that can be read.
pub(super) fn look(path: &Path) -> Result<Identity, String> {
    let known = fs::metadata(path).map_err(|error| reason(&error))?;
    if !known.is_file() {
        return Err("it is no file".into());
    }
    File::open(path).map_err(|error| reason(&error))?;
    Ok(Identity::from(&known))
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it has become shorter since the beginning".into(),
        io::ErrorKind::NotFound => "there is no such file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}
