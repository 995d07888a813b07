//! The fence: process 1 of the agent's container.
//!
//! It starts the supervisor, arms it when the lease is seen held (safety A4), and kills everything
//! when the lease is lost, the beat stands still (A2), nobody was heard for too long (A1), or the
//! supervisor ends. It uses threads and blocking calls only, never arms again (C5), and gives the
//! slot up only when nothing is left of the VM (A6).

mod contact;
pub mod kill;
pub mod lease;
mod leftovers;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
};

use contact::Contact;
use lease::{Beat, Lease, LeaseError, Lock};

use super::AgentFailure;
use crate::driver::{
    agent::{AgentConfig, LeaseConfig, LeaveCode},
    oar::hold::SILENCE,
};

/// How often files of the lease are looked at.
const PACE: Duration = Duration::from_millis(100);
/// The same before it is held: the job waits for it.
const EARLY_PACE: Duration = Duration::from_millis(10);
/// The holder drops its lock within this time after a release: one that is cut off looks no more, and ends by silence.
const HOLDER_LIMIT: Duration = Duration::from_secs(25);
const _: () = assert!(HOLDER_LIMIT.as_secs() > SILENCE.as_secs());
/// A holder that has not come this long after a release was ordered is not waited for.
const LATE_HOLDER: Duration = Duration::from_secs(5);
/// What is written into the release file of a lease that was lost.
const LOST_WORD: &str = "lost";
/// Exit code of an agent whose lease was lost or never came.
const LOST: u8 = 3;

/// A line from the fence to its supervisor.
pub mod words {
    /// The lease is held: a VM may be started.
    pub const HELD: &str = "held";
    /// The slot is wanted back.
    pub const NOTICE: &str = "notice";
    /// From the supervisor: somebody was heard, so many milliseconds ago.
    pub const CONTACT: &str = "contact";
}

/// The supervisor's exit code says how it leaves.
pub fn exit_code(code: LeaveCode) -> u8 {
    match code {
        LeaveCode::Done => 10,
        LeaveCode::Saved => 11,
        LeaveCode::KeepSlot => 12,
    }
}

/// Why it is over.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the slot is gone: its lock is free")]
    LockFree,
    #[error("the beat of the hold stands still")]
    StillBeat,
    #[error("nobody was heard for too long")]
    Isolated,
    #[error(transparent)]
    NotArmed(LeaseError),
    #[error("the supervisor has ended with {0:?}")]
    Supervisor(Option<i32>),
}

impl End {
    /// What is written into the release file.
    fn release(&self) -> Option<&'static str> {
        match self {
            Self::LockFree => None,
            Self::StillBeat | Self::Isolated | Self::NotArmed(_) => Some(LOST_WORD),
            Self::Supervisor(code) => match code.and_then(|code| u8::try_from(code).ok()) {
                Some(10) => Some("done"),
                Some(11) => Some("saved"),
                // the slot stays: for the next incarnation, or for the operator to decide
                _ => None,
            },
        }
    }

    fn exit(&self) -> u8 {
        match self {
            Self::Supervisor(Some(10..=12)) => 0,
            Self::Supervisor(_) => 1,
            _ => LOST,
        }
    }
}

/// Ends everything, once, from whichever thread is first.
struct Ender {
    lease: Lease,
    vm_dir: PathBuf,
    ended: Mutex<mpsc::Sender<u8>>,
}

impl Ender {
    fn end(&self, end: &End) {
        // held to the end: the others wait for ever, and the process ends
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        let gone = kill::everything_else();
        let killed = begun.elapsed();
        clear(&self.vm_dir);
        self.lease.close_passages();
        tracing::warn!(%end, gone, killed_ms = killed.as_millis(), "the VM and everything of it is gone");
        if gone && let Some(word) = end.release() {
            self.release(word);
        } else if matches!(end, End::LockFree) {
            self.lease.remove();
        }
        // nobody listens only if the process is ending
        let _ = ended.send(end.exit());
        loop {
            std::thread::park();
        }
    }

    /// Gives the slot up, waits until the holder has seen it, and removes the traces.
    fn release(&self, word: &str) {
        if let Err(error) = self.lease.release(word) {
            return tracing::warn!(%error, "failed to give the slot up");
        }
        let begun = Instant::now();
        while begun.elapsed() < HOLDER_LIMIT {
            match self.lease.lock() {
                Ok(Some(lock)) if matches!(lock.held(), Ok(true)) => {}
                Ok(Some(_)) => return self.lease.remove(),
                // a late holder must find the release, unless the operator ends its slot anyway
                Ok(None) if word == LOST_WORD => return,
                Ok(None) if begun.elapsed() > LATE_HOLDER => return self.lease.remove(),
                Ok(None) => {}
                Err(_) => return,
            }
            std::thread::sleep(PACE);
        }
    }
}

/// Removes what is in the VM's directory; the directory itself may be a mount. Whether nothing stays.
pub(super) fn clear(directory: &Path) -> bool {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return error.kind() == std::io::ErrorKind::NotFound,
    };
    let mut cleared = true;
    for entry in entries.flatten() {
        let path = entry.path();
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_directory { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        if let Err(error) = removed {
            tracing::warn!(%error, path = %path.display(), "a file of the VM stays");
            cleared = false;
        }
    }
    cleared
}

/// Runs the fence around a supervisor. Returns when nothing else is left.
pub fn run(config: &AgentConfig, vm_dir: &Path, mut supervisor: Command) -> Result<ExitCode, AgentFailure> {
    let (waiting, requests) = terminations()?;
    let lease = Lease::make(&config.lease, &config.slot.0)?;
    let (root, own) = (PathBuf::from(&config.lease.root), config.lease.directory.clone());
    // nobody waits for it
    spawn(move || match leftovers::remove(&root, &own, SystemTime::now()) {
        Ok(removed) if removed.is_empty() => {}
        Ok(removed) => tracing::info!(?removed, "removed directories that a crash of the node has left"),
        Err(error) => tracing::warn!(%error, "failed to look for what a crash of the node has left"),
    });
    std::fs::create_dir_all(vm_dir).map_err(AgentFailure::io(format!("make {}", vm_dir.display())))?;
    clear(vm_dir);
    kill::adopt();
    let (ours, theirs) = UnixStream::pair().map_err(AgentFailure::io("make a channel to the supervisor"))?;
    supervisor.stdin(std::os::fd::OwnedFd::from(theirs));
    let mut child = supervisor.spawn().map_err(AgentFailure::io("start the supervisor"))?;
    // our copy of its end would hide its death
    drop(supervisor);
    let reading = ours.try_clone().map_err(AgentFailure::io("read from the supervisor"))?;

    let (sender, ended) = mpsc::channel();
    let ender = Arc::new(Ender { lease, vm_dir: vm_dir.into(), ended: Mutex::new(sender) });
    let contact = Arc::new(Mutex::new(Contact::new(config.isolation, Instant::now())));
    let noticing = ours.try_clone().map_err(AgentFailure::io("write to the supervisor"))?;
    spawn(move || pass_on(&waiting, requests, noticing));
    let heard = contact.clone();
    spawn(move || listen(reading, &heard));
    let (watch, terms) = (ender.clone(), config.lease.clone());
    spawn(move || watch.end(&lease_thread(&watch, &terms, ours, &contact)));
    spawn(move || {
        let status = child.wait().ok();
        ender.end(&End::Supervisor(status.and_then(|status| status.code())));
    });
    Ok(ExitCode::from(ended.recv().unwrap_or(1)))
}

fn spawn(work: impl FnOnce() + Send + 'static) {
    std::thread::spawn(work);
}

/// Arms the supervisor, then waits for the end of the lease.
fn lease_thread(ender: &Arc<Ender>, config: &LeaseConfig, mut supervisor: UnixStream, contact: &Mutex<Contact>) -> End {
    let lock = match arm(&ender.lease, config) {
        Ok(lock) => lock,
        Err(error) => return End::NotArmed(error),
    };
    let mut beat = Beat::new(Instant::now());
    let waiting = match lock.share() {
        Ok(lock) => lock,
        Err(error) => return End::NotArmed(error),
    };
    let lost = ender.clone();
    spawn(move || {
        match waiting.wait_until_lost() {
            Ok(()) => {}
            // a lock that cannot be waited for protects nobody
            Err(error) => tracing::error!(%error, "the lock cannot be waited for"),
        }
        lost.end(&End::LockFree);
    });
    contact.lock().unwrap_or_else(PoisonError::into_inner).begin(Instant::now());
    tell(&mut supervisor, words::HELD);
    let mut noticed = false;
    loop {
        std::thread::sleep(PACE);
        let now = Instant::now();
        beat.see(lock.beat(), now);
        if now.duration_since(beat.risen) > config.beat_limit {
            return End::StillBeat;
        }
        if contact.lock().unwrap_or_else(PoisonError::into_inner).is_lost(now) {
            return End::Isolated;
        }
        if !noticed && ender.lease.notice() {
            noticed = true;
            tell(&mut supervisor, words::NOTICE);
        }
    }
}

/// Waits until the lease is seen to be held for this agent. The holder writes its line when it has read a beat, and the
/// nonce in it is this agent's: so the hold was there after this agent had come.
fn arm(lease: &Lease, config: &LeaseConfig) -> Result<Lock, LeaseError> {
    let until = Instant::now() + config.arm_within;
    let mut lock = None;
    while Instant::now() < until {
        if lock.is_none() {
            lock = lease.lock()?;
        }
        if let Some(lock) = lock.take_if(|lock| lock.beat().is_some()) {
            // free although there is a line: its holder has just died, and nobody takes it again
            return if lock.held()? { Ok(lock) } else { Err(LeaseError::NotHeld) };
        }
        std::thread::sleep(EARLY_PACE);
    }
    Err(LeaseError::NotHeld)
}

fn tell(supervisor: &mut UnixStream, word: &str) {
    // one that does not listen has ended, which is seen elsewhere
    let _ = supervisor.write_all(format!("{word}\n").as_bytes());
}

/// Takes note of what the supervisor hears.
fn listen(supervisor: UnixStream, contact: &Mutex<Contact>) {
    for line in BufReader::new(supervisor).lines() {
        let Ok(line) = line else { return };
        let age = line.strip_prefix(words::CONTACT).and_then(|age| age.trim().parse().ok());
        if let Some(at) = age.and_then(|age| Instant::now().checked_sub(Duration::from_millis(age))) {
            contact.lock().unwrap_or_else(PoisonError::into_inner).hear(at);
        }
    }
}

/// From here on a request to end kills nobody, and is kept until it is passed on: process 1 would lose it, another one
/// die of it.
fn terminations() -> Result<(Runtime, Signal), AgentFailure> {
    let runtime = Builder::new_current_thread().enable_io().build();
    let runtime = runtime.map_err(AgentFailure::io("start what waits for requests to end"))?;
    let requests = runtime.block_on(async { signal(SignalKind::terminate()) });
    Ok((runtime, requests.map_err(AgentFailure::io("be told of requests to end"))?))
}

/// A request to end is a notice (safety A8): the operator decides, and a lost lease kills anyway.
fn pass_on(waiting: &Runtime, mut requests: Signal, mut supervisor: UnixStream) {
    waiting.block_on(async {
        while requests.recv().await.is_some() {
            tell(&mut supervisor, words::NOTICE);
        }
    });
}

#[cfg(test)]
#[path = "fence_tests.rs"]
mod tests;
