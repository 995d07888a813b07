//! The guest's serial console: every line goes to the pod's log, and whoever is attached sees what
//! comes and types.
//!
//! One reader takes from the guest and waits for nobody: who reads too slowly misses some of it, and
//! holds up neither the guest nor the log.

use std::path::Path;

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{UnixStream, unix::OwnedReadHalf},
    sync::{broadcast, mpsc},
};

use super::output::Lines;

/// Bytes taken at a time.
const PIECE: usize = 4 << 10;
/// Pieces that somebody who is attached may lag behind.
const LAG: usize = 128;
/// Pieces that were typed and that the guest has not taken yet.
const TYPED: usize = 16;

/// The console of a guest.
#[derive(Debug)]
pub(super) struct Console {
    typed: mpsc::Sender<Bytes>,
    /// Ends with the guest.
    shown: broadcast::WeakSender<Bytes>,
}

impl Console {
    /// Follows the console into the pod's log.
    pub(super) async fn follow(socket: &Path) -> std::io::Result<Self> {
        let (from, mut to) = UnixStream::connect(socket).await?.into_split();
        let (shown, _) = broadcast::channel(LAG);
        let (typed, mut typing) = mpsc::channel::<Bytes>(TYPED);
        let weak = shown.downgrade();
        tokio::spawn(show(from, shown));
        tokio::spawn(async move {
            while let Some(bytes) = typing.recv().await {
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self { typed, shown: weak })
    }

    /// Joins somebody with the console, from now on, until the guest ends or they take no more. One whose
    /// input ends goes on reading.
    pub(super) async fn attach(&self, from: impl AsyncRead + Unpin, to: impl AsyncWrite + Unpin) {
        let Some(shown) = self.shown.upgrade() else { return };
        let (received, typed) = (shown.subscribe(), self.typed.clone());
        // the guest's end is seen by its absence
        drop(shown);
        let typing = async {
            take(from, &typed).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = give(received, to) => {}
            () = typing => {}
        }
    }
}

/// Takes what the guest prints: to the log first, then to those who are attached.
async fn show(mut from: OwnedReadHalf, to: broadcast::Sender<Bytes>) {
    let (mut lines, mut piece) = (Lines::new("console"), vec![0; PIECE]);
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        lines.take(&piece[..count]);
        // nobody is attached, otherwise
        let _ = to.send(Bytes::copy_from_slice(&piece[..count]));
    }
}

async fn take(mut from: impl AsyncRead + Unpin, to: &mpsc::Sender<Bytes>) {
    let mut piece = vec![0; PIECE];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        if to.send(Bytes::copy_from_slice(&piece[..count])).await.is_err() {
            return;
        }
    }
}

async fn give(mut from: broadcast::Receiver<Bytes>, mut to: impl AsyncWrite + Unpin) {
    loop {
        match from.recv().await {
            Ok(bytes) => {
                let written = async { to.write_all(&bytes).await.and(to.flush().await) };
                if written.await.is_err() {
                    return;
                }
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
