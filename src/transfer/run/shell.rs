//! Starts the node's side through a remote shell, with nothing installed there beforehand.
//!
//! The binary at this one's path is used if it is the same; else the node gets it, from a node that has it already.
//! Only the first is given it from here. Its file is removed before it runs, so that nothing of it is left there.

use std::{
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};

use super::{
    binary,
    spread::{Source, Spread, Taken},
    wire::{Binary, Order, Report, VERSION},
};

/// What the node's shell does: `p` is the path of a binary that may be the same, or nothing. What it says are reports.
const SCRIPT: &str = r#"if [ -n "$p" ] && [ -x "$p" ]; then exec "$p" kget node; fi; \
echo '"need"'; read -r d s w b k a || exit 1; \
t=$(mktemp -p "${TMPDIR:-/var/tmp}") || exit 1; trap 'rm -f "$t"' EXIT; trap 'exit 1' HUP INT TERM; \
right() { echo "$d  $t" | sha256sum -c >/dev/null 2>&1; }; \
if [ "$w" = here ]; then head -c "$s" >"$t"; \
else for x in $a; do bash -c 'exec 3<>"/dev/tcp/$1/$2" && printf "%s\n\"binary\"\n" "$3" >&3 && cat <&3' bash "$x" "$b" "$k" >"$t" && right && break; done; fi; \
if right; then chmod 700 "$t" && exec 9<"$t" && rm -f "$t" && exec /proc/self/fd/9 kget node; exit 1; fi; \
echo '{"unfit":{"reason":"the binary did not come as it was sent"}}'; exit 1"#;
/// For a host to answer, and for it to do what it was asked; a binary may take longer.
const PATIENCE: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(600);
/// For a remote shell that has failed to say why.
const WHY: Duration = Duration::from_secs(2);

/// How hosts are reached.
#[derive(Clone, Debug)]
pub(super) struct Shells {
    /// A command to which the host and a shell command are appended.
    pub(super) rsh: String,
    pub(super) known: Option<Binary>,
    /// Where this process may be reached, if the remote shell passes on nothing but lines.
    pub(super) lines: Option<(Vec<SocketAddr>, Arc<str>)>,
    pub(super) spread: Arc<Spread>,
}

/// A node's side that runs.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) input: ChildStdin,
    pub(super) output: Lines<BufReader<ChildStdout>>,
    pub(super) said: Said,
    /// Who has given it the binary, until it can give it itself.
    pub(super) given: Option<Taken>,
}

/// What a remote shell says on its standard error; the last line is the reason, if it ends.
#[derive(Debug)]
pub(super) struct Said {
    line: Arc<Mutex<String>>,
    reading: JoinHandle<()>,
}

impl Said {
    fn read(errors: ChildStderr) -> Self {
        let line = Arc::new(Mutex::new(String::new()));
        let last = line.clone();
        let reading = tokio::spawn(async move {
            let mut errors = BufReader::new(errors).lines();
            while let Ok(Some(line)) = errors.next_line().await {
                if !line.trim().is_empty() {
                    line.trim().clone_into(&mut last.lock().unwrap_or_else(PoisonError::into_inner));
                }
            }
        });
        Self { line, reading }
    }

    /// The last line of one that ends: it may still be under way when all else is known.
    pub(super) async fn last(&mut self) -> Option<String> {
        if !self.reading.is_finished() {
            // somebody else who holds the pipe is not waited for
            let _ = timeout(WHY, &mut self.reading).await;
        }
        let said = self.line.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (!said.is_empty()).then_some(said)
    }
}

enum Ended {
    /// The binary that was found there is another one, or does not run.
    Other,
    Failed(String),
}

impl Shells {
    /// Starts it, or says why it cannot be.
    pub(super) async fn start(&self, host: &str) -> Result<Started, String> {
        let path = binary::path().ok().and_then(|path| path.into_os_string().into_string().ok());
        if let Some(path) = path {
            match self.attempt(host, &path).await {
                Ok(started) => return Ok(started),
                Err(Ended::Failed(reason)) => return Err(reason),
                Err(Ended::Other) => {}
            }
        }
        self.attempt(host, "").await.map_err(|ended| match ended {
            Ended::Other => "the binary does not run there".to_owned(),
            Ended::Failed(reason) => reason,
        })
    }

    fn spawn(&self, host: &str, path: &str) -> std::io::Result<Started> {
        let script = format!("exec sh -c {}", quoted(&format!("p={}; {}", quoted(path), SCRIPT.replace("\\\n", ""))));
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {} \"$@\"", self.rsh), "sh", host, &script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let missing = || std::io::Error::other("a pipe is missing");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = BufReader::new(child.stdout.take().ok_or_else(missing)?).lines();
        let said = Said::read(child.stderr.take().ok_or_else(missing)?);
        Ok(Started { child, input, output, said, given: None })
    }

    async fn attempt(&self, host: &str, path: &str) -> Result<Started, Ended> {
        let failed = |error: std::io::Error| Ended::Failed(error.to_string());
        let mut started = self.spawn(host, path).map_err(failed)?;
        let (mut fetched, mut patience) = (false, PATIENCE);
        loop {
            let Ok(report) = timeout(patience, started.report()).await else {
                return Err(Ended::Failed("it does not answer".into()));
            };
            let Some(report) = report else { return Err(started.why(path).await) };
            match report {
                Report::Need => {
                    let digest = tokio::task::spawn_blocking(binary::digest).await;
                    let (size, sha256) = digest.map_err(|error| failed(error.into()))?.map_err(failed)?;
                    (fetched, patience) = (true, LONG);
                    let taken = self.spread.take().await;
                    let (whence, piped) = match (&taken.source, &self.lines) {
                        (Source::Here, Some((here, token))) => (from(here, token), false),
                        (Source::Here, None) => ("here".to_owned(), true),
                        (Source::Node { address, token }, _) => (from(std::slice::from_ref(address), token), false),
                    };
                    started.write(format!("{sha256} {size} {whence}\n").as_bytes()).await.map_err(failed)?;
                    if piped {
                        binary::pass(&mut started.input).await.map_err(failed)?;
                    }
                    started.given = Some(taken);
                }
                Report::Unfit { reason } => {
                    // it ends with its input, once it has said why
                    drop(started.input);
                    let said =
                        started.said.last().await.map(|said| format!(": {}", advised(&said))).unwrap_or_default();
                    return Err(Ended::Failed(format!("{reason}{said}")));
                }
                Report::Ready { version, binary } => {
                    if fetched || (version == VERSION && binary.is_some() && binary == self.known) {
                        return Ok(started);
                    }
                    started.order(&Order::Digest).await.map_err(failed)?;
                }
                Report::Digest { sha256 } => {
                    let own = tokio::task::spawn_blocking(binary::digest).await;
                    let (_, own) = own.map_err(|error| failed(error.into()))?.map_err(failed)?;
                    return if own == sha256 { Ok(started) } else { Err(Ended::Other) };
                }
                _ => {}
            }
        }
    }
}

impl Started {
    /// The next report; what a login says besides is nothing. None: it has ended.
    pub(super) async fn report(&mut self) -> Option<Report> {
        while let Ok(Some(line)) = self.output.next_line().await {
            if let Ok(report) = serde_json::from_str(&line) {
                return Some(report);
            }
        }
        None
    }

    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.input.write_all(bytes).await?;
        self.input.flush().await
    }

    pub(super) async fn order(&mut self, order: &Order) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.write(&line).await
    }

    async fn why(&mut self, path: &str) -> Ended {
        let status = self.child.wait().await;
        let code = status.as_ref().ok().and_then(std::process::ExitStatus::code);
        // 255 is ssh's own
        if !path.is_empty() && code != Some(255) && code != Some(0) {
            return Ended::Other;
        }
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        Ended::Failed(self.said.last().await.map_or(status, |said| advised(&said)))
    }
}

/// What ssh says when it connects to nobody, with what is to be done.
fn advised(said: &str) -> String {
    let advice = if said.contains("Host key verification failed") {
        "connect to it once by hand to see why its host key is not trusted here"
    } else if said.contains("Permission denied (") {
        "it takes none of the keys that ssh has here; -e 'ssh -i KEY' names another"
    } else {
        return said.to_owned();
    };
    format!("{said} ({advice})")
}

/// By which of these addresses, which have one port, the binary may be had.
fn from(addresses: &[SocketAddr], token: &str) -> String {
    let port = addresses.first().map_or(0, SocketAddr::port);
    let hosts: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    format!("from {port} {token} {}", hosts.join(" "))
}

/// One word for a shell.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ssh_says_comes_with_advice() {
        assert!(advised("Host key verification failed.").contains("by hand"));
        assert!(advised("root@n1: Permission denied (publickey).").contains("-e 'ssh -i KEY'"));
        assert_eq!(advised("mktemp: Permission denied"), "mktemp: Permission denied");
    }

    #[tokio::test]
    async fn the_reason_is_known_though_it_comes_after_the_end() {
        let late = "sh -c '{ sleep 0.1; echo no route to it >&2; } > /dev/null & exit 255'";
        let shells = Shells { rsh: late.into(), known: None, lines: None, spread: Arc::default() };
        assert_eq!(shells.start("n1").await.unwrap_err(), "no route to it");
    }

    #[test]
    fn a_word_stays_one_in_a_shell() {
        for text in ["a b", "it's", "$HOME `x` \"y\" \\", ""] {
            let script = format!("printf %s {}", quoted(text));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        }
    }
}
