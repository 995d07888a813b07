//! The receiving end of a move: reads frames while what came before is written and synced.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncWriteExt as _, BufReader},
    net::TcpStream,
    sync::mpsc,
};

use super::{
    data::{self, Frame},
    wire::{Piece, Report},
};

/// Frames that wait for the disk: with what the sockets hold, enough to keep the link busy while it syncs.
const QUEUE: usize = 16;
/// How often is said how far it is.
const OFTEN: Duration = Duration::from_millis(10);

/// Where what comes in is kept.
pub(super) trait Sink: Send + 'static {
    /// Takes a part; those of a move come in order.
    fn write(&mut self, piece: Piece, bytes: &[u8]) -> io::Result<()>;
    /// What may be acknowledged now: it survives whatever happens. All that was written, at the end.
    fn sync(&mut self, end: bool) -> io::Result<Vec<Piece>>;
}

/// Receives a move of so many bytes, and says how it goes.
pub(super) async fn receive(
    mut reader: BufReader<TcpStream>,
    id: u64,
    bytes: u64,
    sink: impl Sink,
    reports: mpsc::UnboundedSender<Report>,
) {
    let (frames, waiting) = mpsc::channel(QUEUE);
    let say = reports.clone();
    let disk = tokio::task::spawn_blocking(move || keep(id, waiting, sink, &say));
    // whoever listens has ended, if it fails
    let say = |report| drop(reports.send(report));
    say(Report::Receives { id });
    let arrived = arrive(&mut reader, id, bytes, frames, &reports).await;
    if arrived.is_ok() {
        say(Report::Landed { id });
        // the sender waits for that, to know that its link is free
        let _ = reader.get_mut().write_all(b".").await;
    }
    let kept = disk.await.unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
    match (kept, arrived) {
        (Err(error), _) if full(&error) => say(Report::Full { id, reason: error.to_string() }),
        (Err(error), _) | (_, Err(error)) => say(Report::Broken { id, reason: error.to_string() }),
        (Ok(()), Ok(())) => {}
    }
}

/// Whether there is no room for more.
pub(super) fn full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

async fn arrive(
    reader: &mut BufReader<TcpStream>,
    id: u64,
    bytes: u64,
    frames: mpsc::Sender<Frame>,
    reports: &mpsc::UnboundedSender<Report>,
) -> io::Result<()> {
    let (mut got, mut said) = (0, Instant::now());
    let mut came = |count: usize| {
        got += count as u64;
        if said.elapsed() >= OFTEN {
            said = Instant::now();
            let _ = reports.send(Report::Progress { id, bytes: got });
        }
    };
    let mut left = bytes;
    while let Some(frame) = data::next(reader, &mut came).await? {
        left = left.checked_sub(frame.piece.bytes()).ok_or(io::ErrorKind::InvalidData)?;
        // the disk says why it takes no more
        if frames.send(frame).await.is_err() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
    if left > 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Writes what comes; acknowledges when the disk has caught up with the link, or has a lot.
fn keep(
    id: u64,
    mut frames: mpsc::Receiver<Frame>,
    mut sink: impl Sink,
    reports: &mpsc::UnboundedSender<Report>,
) -> io::Result<()> {
    let acknowledge = |sink: &mut dyn Sink, end| {
        let pieces = sink.sync(end)?;
        if !pieces.is_empty() {
            let _ = reports.send(Report::Stored { id, pieces });
        }
        Ok::<_, io::Error>(())
    };
    let mut since = 0;
    while let Some(frame) = frames.blocking_recv() {
        sink.write(frame.piece, &frame.bytes)?;
        since += 1;
        if frames.is_empty() || since >= 4 * QUEUE {
            acknowledge(&mut sink, false)?;
            since = 0;
        }
    }
    // also of a connection that broke: what has come has come
    acknowledge(&mut sink, true)
}
