//! The command's output: from a port of the VM into a file and the pod's log.
//!
//! The file belongs to the generation: its length at a cut is part of the capture, and a restore
//! begins with a file of that length.

use std::{
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::{mpsc, oneshot},
};

use super::view::View;
use crate::store::manifest::MOST_OUTPUT;

/// As much of a line is shown.
const LINE: usize = 240;

/// The reader of the output.
#[derive(Clone)]
pub(super) struct Output {
    drains: mpsc::Sender<oneshot::Sender<()>>,
    length: Arc<AtomicU64>,
}

impl Output {
    /// Follows the port into the file, from the file's end on.
    pub(super) async fn follow(socket: &Path, file: &Path, view: Arc<View>) -> std::io::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let mut options = tokio::fs::OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).open(file).await?;
        let length = Arc::new(AtomicU64::new(file.metadata().await?.len()));
        let (drains, requests) = mpsc::channel(1);
        tokio::spawn(read(stream, file, length.clone(), requests, Lines::new("job"), Some(view)));
        Ok(Self { drains, length })
    }

    /// Bytes in the file.
    pub(super) fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// Takes what has arrived already. For a guest that stands still.
    pub(super) async fn drain(&self) {
        let (done, wait) = oneshot::channel();
        if self.drains.send(done).await.is_ok() {
            // a reader that has ended has drained
            let _ = wait.await;
        }
    }
}

/// Follows the serial console into the pod's log.
pub(super) async fn follow_console(socket: &Path) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    tokio::spawn(async move {
        let (mut lines, mut piece) = (Lines::new("console"), vec![0; 16 << 10]);
        while let Ok(count @ 1..) = stream.read(&mut piece).await {
            lines.take(&piece[..count]);
        }
    });
    Ok(())
}

async fn read(
    mut stream: UnixStream,
    mut file: tokio::fs::File,
    length: Arc<AtomicU64>,
    mut requests: mpsc::Receiver<oneshot::Sender<()>>,
    mut lines: Lines,
    view: Option<Arc<View>>,
) {
    let mut piece = vec![0; 64 << 10];
    // a drain that found something goes on until it finds nothing
    let mut waiting: Option<oneshot::Sender<()>> = None;
    loop {
        // the guest waits when there is more
        let full = length.load(Ordering::Acquire) >= MOST_OUTPUT;
        let drained = waiting.as_ref().map(|_| pending(&stream, &mut piece, full));
        let count = match drained {
            Some(Some(0)) => return,
            Some(Some(count)) => count,
            Some(None) => {
                waiting.take().map(|done| done.send(()));
                continue;
            }
            None => tokio::select! {
            biased;
            read = stream.read(&mut piece), if !full => match read {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            },
            Some(done) = requests.recv() => match pending(&stream, &mut piece, full) {
                Some(0) => return,
                Some(count) => {
                    waiting = Some(done);
                    count
                }
                None => {
                    let _ = done.send(());
                    continue;
                }
            },
            else => return,
            },
        };
        if let Err(error) = append(&mut file, &piece[..count]).await {
            // nothing more can be kept: the guest's command will wait, and people see why
            if let Some(view) = &view {
                view.change(|facts| facts.guest.problem = Some(format!("its output cannot be kept: {error}")));
            }
            return;
        }
        length.fetch_add(count as u64, Ordering::AcqRel);
        if let (Some(last), Some(view)) = (lines.take(&piece[..count]), &view) {
            // a guest that prints without end loads nobody: it is seen with the next heartbeat
            view.quietly(|facts| facts.guest.last_line = Some(last));
        }
    }
}

/// Reads what the kernel has for us at this moment: the runtime may not have heard of it yet, and a
/// cut that missed it would lose it for good. None: nothing; 0: the end.
fn pending(stream: &UnixStream, piece: &mut [u8], full: bool) -> Option<usize> {
    if full {
        return None;
    }
    loop {
        match rustix::io::read(stream, &mut *piece) {
            Ok(count) => return Some(count),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return None,
            Err(_) => return Some(0),
        }
    }
}

async fn append(file: &mut tokio::fs::File, bytes: &[u8]) -> std::io::Result<()> {
    file.write_all(bytes).await?;
    file.flush().await
}

/// Cuts a stream into lines for the log, whatever the guest sends.
struct Lines {
    prefix: &'static str,
    open: Vec<u8>,
}

impl Lines {
    fn new(prefix: &'static str) -> Self {
        Self { prefix, open: Vec::new() }
    }

    /// Prints the lines that are whole now; the last of them.
    fn take(&mut self, bytes: &[u8]) -> Option<String> {
        let mut last = None;
        for byte in bytes {
            if *byte == b'\n' {
                let line: String = String::from_utf8_lossy(&self.open).chars().filter(|c| !c.is_control()).collect();
                // a log that cannot be written must not end the job
                let _ = writeln!(std::io::stdout().lock(), "{}: {line}", self.prefix);
                last = Some(line);
                self.open.clear();
            } else if self.open.len() < LINE {
                self.open.push(*byte);
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d3_lines_of_the_guest_are_bounded_and_harmless() {
        let mut lines = Lines::new("test");
        assert_eq!(lines.take(b"half a "), None);
        assert_eq!(lines.take(b"line\nsecond\x1b[31m\nrest").unwrap(), "second[31m");
        assert_eq!(lines.take(&vec![b'x'; 100_000]), None);
        assert!(lines.open.len() <= LINE);
        assert_eq!(lines.take(b"\n").unwrap().len(), LINE);
    }

    #[tokio::test]
    async fn a_drain_leaves_nothing_that_was_written_before() {
        let dir = tempfile::tempdir().unwrap();
        let config = super::super::testing::config(dir.path());
        let view = Arc::new(View::new(&config, crate::clock::Clock::system()));
        let listener = tokio::net::UnixListener::bind(dir.path().join("port")).unwrap();
        std::fs::write(dir.path().join("file"), "before ").unwrap();
        let output = Output::follow(&dir.path().join("port"), &dir.path().join("file"), view).await.unwrap();
        let (mut guest, _) = listener.accept().await.unwrap();
        let written: Vec<u8> = (0..150_000_u32).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        for piece in written.chunks(20_000) {
            guest.write_all(piece).await.unwrap();
        }
        output.drain().await;
        assert_eq!(output.length(), 7 + written.len() as u64);
        let kept = std::fs::read(dir.path().join("file")).unwrap();
        assert!(kept.ends_with(&written) && kept.starts_with(b"before 0\n"));
    }
}
