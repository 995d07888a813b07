//! The command's output: from a port of the VM into a file and the pod's log.
//!
//! The file belongs to the generation: its length at a cut is part of the capture, and a restore
//! begins with a file of that length. Nothing is left out of it: what the disk does not take is tried
//! again while the command waits, and the VM is lost if that lasts.

use std::{
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::{mpsc, oneshot},
};

use super::{Supervisor, problems::Problem};
use crate::store::manifest::MOST_OUTPUT;

/// As much of a line is shown.
const LINE: usize = 240;
/// A disk that takes no output for this long is not waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(500);

/// The reader of the output.
#[derive(Clone)]
pub(super) struct Output {
    drains: mpsc::Sender<oneshot::Sender<()>>,
    length: Arc<AtomicU64>,
    failing: Arc<AtomicBool>,
}

impl Output {
    /// Follows the port into the file, from the file's end on. The VM of `own` is lost if the file takes
    /// nothing for as long as `patience`.
    pub(super) async fn follow(
        socket: &Path,
        file: &Path,
        own: Arc<Supervisor>,
        patience: Duration,
    ) -> std::io::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let mut options = tokio::fs::OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).open(file).await?;
        let length = Arc::new(AtomicU64::new(file.metadata().await?.len()));
        let failing = Arc::new(AtomicBool::new(false));
        let (drains, requests) = mpsc::channel(1);
        let lines = Lines::new("job");
        let keeper = Keeper { file, length: length.clone(), failing: failing.clone(), lines, own, patience };
        tokio::spawn(read(stream, requests, keeper));
        Ok(Self { drains, length, failing })
    }

    /// Bytes in the file.
    pub(super) fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// Takes all that a command has printed that has ended, however long the disk takes for it: in the end the VM is
    /// lost. One that left something behind which goes on printing ends after `limit` all the same.
    pub(super) async fn drain_last(&self, limit: Duration) {
        while !self.drain(limit).await && self.failing.load(Ordering::Acquire) {}
    }

    /// Takes what has arrived already, for a guest that stands still. Whether that was done in time.
    pub(super) async fn drain(&self, limit: Duration) -> bool {
        let (done, wait) = oneshot::channel();
        let drained = async {
            if self.drains.send(done).await.is_ok() {
                // a reader that has ended has drained
                let _ = wait.await;
            }
        };
        tokio::time::timeout(limit, drained).await.is_ok()
    }
}

/// Where the output goes.
struct Keeper {
    file: tokio::fs::File,
    length: Arc<AtomicU64>,
    failing: Arc<AtomicBool>,
    lines: Lines,
    own: Arc<Supervisor>,
    patience: Duration,
}

impl Keeper {
    /// Keeps a piece, however often that is tried. False: it is over.
    async fn keep(&mut self, bytes: &[u8]) -> bool {
        let mut failing: Option<(Instant, String)> = None;
        while let Err(error) = self.append(bytes, failing.is_some()).await {
            let (since, why) = failing.get_or_insert_with(|| {
                let why = format!("its output cannot be kept, and its command waits: {error}");
                self.own.problem(Problem::Output, &why);
                self.failing.store(true, Ordering::Release);
                (Instant::now(), why)
            });
            if since.elapsed() > self.patience {
                self.own.lose_vm(why);
            } else {
                self.own.make_room().await;
            }
            tokio::select! {
                () = self.own.stop.cancelled() => return false,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
        if failing.is_some() {
            self.failing.store(false, Ordering::Release);
            self.own.problem_ends(&Problem::Output);
        }
        self.length.fetch_add(bytes.len() as u64, Ordering::AcqRel);
        if let Some(last) = self.lines.take(bytes) {
            // a guest that prints without end loads nobody: it is seen with the next heartbeat
            self.own.view.quietly(|facts| facts.guest.last_line = Some(last));
        }
        true
    }

    async fn append(&mut self, bytes: &[u8], again: bool) -> std::io::Result<()> {
        if again {
            // a part of it may be there
            self.file.set_len(self.length.load(Ordering::Acquire)).await?;
        }
        self.file.write_all(bytes).await?;
        self.file.flush().await
    }

    fn is_full(&self) -> bool {
        self.length.load(Ordering::Acquire) >= MOST_OUTPUT
    }
}

async fn read(mut stream: UnixStream, mut requests: mpsc::Receiver<oneshot::Sender<()>>, mut keeper: Keeper) {
    let mut piece = vec![0; 64 << 10];
    // a drain that found something goes on until it finds nothing
    let mut waiting: Option<oneshot::Sender<()>> = None;
    let mut told = false;
    loop {
        // the guest waits when there is more
        let full = keeper.is_full();
        if full && !told {
            told = true;
            let text = format!("its output has {} GiB, the most that is kept: its command waits", MOST_OUTPUT >> 30);
            keeper.own.problem(Problem::OutputFull, &text);
        }
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
        if !keeper.keep(&piece[..count]).await {
            return;
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

/// Cuts a stream into lines for the log, whatever the guest sends.
pub(super) struct Lines {
    prefix: &'static str,
    open: Vec<u8>,
}

impl Lines {
    pub(super) fn new(prefix: &'static str) -> Self {
        Self { prefix, open: Vec::new() }
    }

    /// Prints the lines that are whole now; the last of them.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Option<String> {
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
    use crate::driver::agent::VmState;

    #[test]
    fn d3_lines_of_the_guest_are_bounded_and_harmless() {
        let mut lines = Lines::new("test");
        assert_eq!(lines.take(b"half a "), None);
        assert_eq!(lines.take(b"line\nsecond\x1b[31m\nrest").unwrap(), "second[31m");
        assert_eq!(lines.take(&vec![b'x'; 100_000]), None);
        assert!(lines.open.len() <= LINE);
        assert_eq!(lines.take(b"\n").unwrap().len(), LINE);
    }

    struct Followed {
        output: Output,
        guest: UnixStream,
        own: Arc<Supervisor>,
        file: std::path::PathBuf,
        _root: tempfile::TempDir,
    }

    /// Follows a port into a file of this directory, which may be made first.
    async fn followed(patience: Duration, make: impl FnOnce(&Path)) -> Followed {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("vm");
        std::fs::create_dir_all(&directory).unwrap();
        make(&directory);
        let own = super::super::testing::Making::below(root.path()).make();
        let (port, file) = (root.path().join("port"), directory.join("file"));
        let listener = tokio::net::UnixListener::bind(&port).unwrap();
        let output = Output::follow(&port, &file, own.clone(), patience).await.unwrap();
        let (guest, _) = listener.accept().await.unwrap();
        Followed { output, guest, own, file, _root: root }
    }

    fn numbers() -> Vec<u8> {
        (0..150_000_u32).flat_map(|n| format!("{n}\n").into_bytes()).collect()
    }

    async fn until(what: &str, so: impl Fn() -> bool) {
        let wait = async {
            while !so() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.expect(what);
    }

    #[tokio::test]
    async fn a_drain_leaves_nothing_that_was_written_before() {
        let write = |directory: &Path| std::fs::write(directory.join("file"), "before ").unwrap();
        let mut job = followed(PATIENCE, write).await;
        let written = numbers();
        for piece in written.chunks(20_000) {
            job.guest.write_all(piece).await.unwrap();
        }
        assert!(job.output.drain(Duration::from_secs(20)).await);
        assert_eq!(job.output.length(), 7 + written.len() as u64);
        let kept = std::fs::read(&job.file).unwrap();
        assert!(kept.ends_with(&written) && kept.starts_with(b"before 0\n"));
    }

    #[ignore = "mounts a small disk, as root: e2e/test --e2e"]
    #[tokio::test]
    async fn a_full_disk_costs_no_piece_of_the_output() {
        let mut small = None;
        let make = |directory: &Path| {
            small = Some(super::super::testing::Small::mount(directory.into(), "1200k"));
            std::fs::write(directory.join("other"), vec![1; 900 << 10]).unwrap();
        };
        let mut job = followed(PATIENCE, make).await;
        let problem = |own: &Supervisor| own.view.render().guest.problem.unwrap_or_default();
        let written = numbers();
        let (own, file) = (job.own.clone(), job.file.clone());
        let sending = tokio::spawn(async move {
            job.guest.write_all(&numbers()).await.unwrap();
            job
        });
        until("it is said", || problem(&own).contains("cannot be kept")).await;
        assert!(!sending.is_finished(), "the command does not wait");
        std::fs::remove_file(file.with_file_name("other")).unwrap();
        let job = sending.await.unwrap();
        job.output.drain_last(Duration::from_millis(1)).await;
        until("all is kept", || std::fs::metadata(&file).unwrap().len() == written.len() as u64).await;
        assert!(job.output.drain(Duration::from_secs(20)).await);
        assert!(std::fs::read(&file).unwrap() == written, "a piece is missing or there twice");
        assert_eq!(problem(&own), "");
        assert!(!own.stop.is_cancelled());
        drop((job, own, small));
    }

    #[tokio::test]
    async fn output_that_is_never_kept_loses_the_vm() {
        // a full disk that needs no rights
        let make = |directory: &Path| std::os::unix::fs::symlink("/dev/full", directory.join("file")).unwrap();
        let mut job = followed(Duration::from_secs(20), make).await;
        job.guest.write_all(b"a line\n").await.unwrap();
        until("it fails", || job.output.failing.load(Ordering::Acquire)).await;
        assert!(!job.output.drain(Duration::from_millis(100)).await, "a drain that waits for a disk ends");
        let last = job.output.drain_last(Duration::from_millis(1));
        assert!(tokio::time::timeout(Duration::from_millis(100), last).await.is_err(), "what is not kept is done with");
        let own = job.own.clone();
        until("it is lost", || own.stop.is_cancelled()).await;
        let VmState::Gone { reason, .. } = own.view.render().vm else { panic!() };
        assert!(reason.contains("output cannot be kept") && reason.contains("No space"), "{reason}");
    }

    #[tokio::test]
    async fn a_command_that_waits_because_its_output_is_too_long_says_so() {
        let make = |directory: &Path| {
            let file = std::fs::File::create(directory.join("file")).unwrap();
            file.set_len(MOST_OUTPUT).unwrap();
        };
        let job = followed(PATIENCE, make).await;
        until("it is said", || job.own.view.render().guest.problem.is_some_and(|p| p.contains("4 GiB"))).await;
        assert!(job.output.drain(Duration::from_secs(20)).await);
    }
}
