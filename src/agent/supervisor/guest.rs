//! What the guest is asked, from `go` to the end of its command. Each conversation takes the guest's
//! channel for itself, and gives it back quickly: a capture waits for it (safety B9).

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::io::AsyncWriteExt as _;

use super::{Supervisor, problems::Problem, upload::LOCAL_TRIES};
use crate::{
    api::job::RunMembers,
    driver::{
        guest::{
            GuestError, after_restore,
            command::{self, Started},
            files,
        },
        repository::{ByteStream, RepositoryError},
    },
};

/// How often the guest is asked whether its command has ended.
const PACE: Duration = Duration::from_millis(500);
/// How long one question for a sign of life waits.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// How long until the repository is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// What a command has printed before its end is taken within this time.
const LAST_WORDS: Duration = Duration::from_secs(60);
/// What is kept of one file at most.
const MOST: u64 = 16 << 30;
/// Exit code of a command that could not be started, as shells have it.
const NOT_STARTED: i32 = 126;
/// Exit code of a command that went with a boot of its guest.
const LOST: i32 = 255;
/// Name of the command's output among the files that are kept.
const OUTPUT: &str = "output";

macro_rules! with_channel {
    ($self:ident, $channel:ident => $work:expr) => {{
        let mut guard = $self.guest.lock().await;
        match guard.as_mut() {
            Some($channel) => $work.await,
            None => Err(GuestError::Socket("there is none".into())),
        }
    }};
}
pub(super) use with_channel;

impl Supervisor {
    /// Follows the guest from its first instruction here to the end of its command.
    pub(super) async fn follow_guest(self: Arc<Self>) {
        if let Some(channel) = self.guest.lock().await.as_mut() {
            channel.lose_step();
        }
        loop {
            let answer = with_channel!(self, channel => channel.sync(SIGN_OF_LIFE));
            self.heard_guest(&answer);
            match answer {
                Ok(()) => break,
                Err(error) => tracing::debug!(%error, "the guest does not answer yet"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if self.config.restore.is_some() {
            self.put_right().await;
        }
        self.view.change(|facts| facts.guest.answers = true);
        if let Some(code) = self.run_command().await {
            self.view.change(|facts| facts.guest.exit_code = Some(code));
            self.keep_outputs().await;
            self.view.change(|facts| facts.guest.outputs_kept = true);
        }
    }

    /// Takes note of whether the guest's agent answers. Who does not for long is told of: a job whose
    /// guest does not boot, or has no agent, would seem to compute for ever.
    fn heard_guest<T>(&self, answer: &Result<T, GuestError>) {
        let unheard = matches!(answer, Err(GuestError::Late(_) | GuestError::Socket(_)));
        let limit = self.config.guest_silence.as_secs_f64();
        let (was, is) = self.view.quietly(|facts| {
            let (now, was) = (facts.ran(), facts.guest.silent);
            let since = if unheard { Some(*facts.unheard.get_or_insert(now)) } else { facts.unheard.take() };
            facts.guest.silent = unheard && since.is_some_and(|since| now - since >= limit);
            (was, facts.guest.silent)
        });
        if was != is {
            tracing::warn!(silent = is, "whether the guest's agent answers has changed");
            self.view.change(|_| ());
        }
    }

    /// After a restore: randomness of its own, then the right time.
    async fn put_right(&self) {
        if let Err(error) = with_channel!(self, channel => after_restore::reseed(channel)) {
            self.problem(Problem::Randomness, &error.to_string());
        }
        if let Err(error) = with_channel!(self, channel => after_restore::set_clock(channel, &self.view.clock)) {
            self.problem(Problem::Clock, &error.to_string());
        }
    }

    /// Starts the command, unless it was started before, and waits for its end.
    async fn run_command(&self) -> Option<i32> {
        let run = self.config.run.as_ref()?;
        if run.members == RunMembers::First && !self.view.read(|facts| facts.guest.started) {
            self.wait_for_members().await;
        }
        loop {
            let started = with_channel!(self, channel => command::start(channel, run));
            self.heard_guest(&started);
            match started {
                Ok(Started::Now | Started::Before) => break,
                Ok(Started::Lost) => {
                    self.problem(Problem::Command, "the guest has booted again: the command is gone");
                    return Some(LOST);
                }
                Err(error @ GuestError::Program { .. }) => {
                    self.problem(Problem::Command, &error.to_string());
                    return Some(NOT_STARTED);
                }
                // whether it was started is not known: asking again does no harm
                Err(error) => tracing::warn!(%error, "the start of the command is repeated"),
            }
            tokio::time::sleep(PACE).await;
        }
        self.view.change(|facts| facts.guest.started = true);
        loop {
            tokio::time::sleep(PACE).await;
            let code = with_channel!(self, channel => command::exit_code(channel));
            self.heard_guest(&code);
            match code {
                Ok(None) => {}
                Ok(Some(code)) => return Some(code),
                Err(error) => tracing::warn!(%error, "the guest does not say whether its command has ended"),
            }
        }
    }

    /// Brings the output and the wanted files to the repository.
    async fn keep_outputs(&self) {
        let output = self.vm.lock().await.as_ref().map(|vm| vm.output.clone());
        if let Some(output) = output {
            output.drain_last(LAST_WORDS).await;
        }
        self.keep(OUTPUT, &self.paths.output()).await;
        for wanted in &self.config.outputs {
            let path = self.paths.vm.join("fetched");
            match self.fetch_file(&wanted.path, &path).await {
                Ok(()) => self.keep(&wanted.path, &path).await,
                Err(error) => self.not_kept(&wanted.path, &error.to_string()),
            }
        }
    }

    async fn fetch_file(&self, path: &str, to: &std::path::Path) -> Result<(), GuestError> {
        let local = |error: std::io::Error| GuestError::Socket(error.to_string());
        let mut options = tokio::fs::OpenOptions::new();
        let mut to = options.write(true).create(true).truncate(true).mode(0o600).open(to).await.map_err(local)?;
        let Some(file) = with_channel!(self, channel => files::open(channel, path))? else {
            return Err(GuestError::Program { what: "reading it", text: "there is no such file".into() });
        };
        let mut length = 0;
        loop {
            let piece = with_channel!(self, channel => file.read(channel))?;
            if piece.is_empty() {
                break;
            }
            length += piece.len() as u64;
            if length > MOST {
                return Err(GuestError::Program { what: "reading it", text: "it is too large".into() });
            }
            to.write_all(&piece).await.map_err(local)?;
        }
        to.flush().await.map_err(local)?;
        with_channel!(self, channel => file.close(channel))
    }

    fn not_kept(&self, name: &str, why: &str) {
        self.problem(Problem::NotKept(name.into()), &format!("{name} is not kept: {why}"));
    }

    /// Brings one file to the repository; waits for one that does not answer, and not for ever for a disk of the
    /// node's own: one that cannot be read so often never will be.
    async fn keep(&self, name: &str, path: &std::path::Path) {
        let mut local = 0;
        loop {
            let unread = Unread::default();
            let sent = match tokio::fs::File::open(path).await {
                Ok(file) => {
                    let body = stream(file, unread.clone());
                    self.store.put_output(&self.config.job, self.config.member, name, body).await
                }
                Err(error) => return self.not_kept(name, &error.to_string()),
            };
            let Err(error) = sent else { return };
            if let Some(error) = unread.lock().unwrap_or_else(PoisonError::into_inner).take() {
                // whatever is said of a file that ended early: this is why
                local += 1;
                tracing::warn!(%error, name, local, "an output cannot be read");
                if local == LOCAL_TRIES {
                    let why = format!("it could not be read on the node, {local} times: {error}");
                    return self.not_kept(name, &why);
                }
            } else if matches!(error, RepositoryError::Unreachable(_) | RepositoryError::Full(_)) {
                tracing::warn!(%error, name, "an output waits for the repository");
            } else {
                return self.not_kept(name, &error.to_string());
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Why a file could not be read on, if so.
type Unread = Arc<Mutex<Option<std::io::Error>>>;

fn stream(file: tokio::fs::File, unread: Unread) -> ByteStream {
    use futures::{StreamExt as _, TryStreamExt as _};
    let pieces = tokio_util::io::ReaderStream::with_capacity(file, 256 << 10);
    let noted = pieces.map_err(move |error| {
        let kind = error.kind();
        *unread.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        kind.into()
    });
    noted.boxed()
}

#[cfg(test)]
#[path = "guest_tests.rs"]
mod tests;
