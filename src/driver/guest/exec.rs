//! A person's command in the guest: begun, asked for, or killed, in short conversations each, so that
//! the channel is free in between (safety B9). What it prints is bounded in the guest.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use super::{
    GuestError,
    channel::Channel,
    command::environment,
    files::{SHORT, exit_code},
};

const BOUNDED: &str = include_str!("exec.sh");
const KILL: &str = "k() { for c in $(cat /proc/$1/task/$1/children); do k $c; done; kill -KILL $1; }; k $1";
/// What is kept of each of the two outputs.
pub const MOST: usize = 256 << 10;

/// What a command came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code; a signal counts as 128 and more, as for a shell.
    pub code: i32,
    /// The first [`MOST`] bytes of its standard output.
    pub stdout: Vec<u8>,
    /// The same of its standard error.
    pub stderr: Vec<u8>,
    /// Whether it printed more.
    pub cut: bool,
}

/// Starts a command; its number.
pub async fn begin(channel: &mut Channel, command: &[String]) -> Result<i64, GuestError> {
    let first = ["-c", BOUNDED, "vmdeploy-exec"].map(String::from);
    // one byte more shows that there was more
    let all = first.into_iter().chain([(MOST + 1).to_string()]).chain(command.iter().cloned());
    let order = json!({ "path": "/bin/sh", "arg": all.collect::<Vec<_>>(), "env": environment(&[].into()),
        "capture-output": true });
    let started = channel.execute("guest-exec", order, SHORT).await?;
    started["pid"].as_i64().ok_or(GuestError::Strange("guest-exec"))
}

/// What it came to, once it has ended. It is said once.
pub async fn ended(channel: &mut Channel, number: i64) -> Result<Option<Ended>, GuestError> {
    let status = channel.execute("guest-exec-status", json!({ "pid": number }), SHORT * 3).await?;
    if status["exited"].as_bool() != Some(true) {
        return Ok(None);
    }
    let (stdout, more) = first(&status["out-data"])?;
    let (stderr, more_errors) = first(&status["err-data"])?;
    Ok(Some(Ended { code: exit_code(&status), stdout, stderr, cut: more || more_errors }))
}

/// Kills it with all that it has started.
pub async fn kill(channel: &mut Channel, number: i64) -> Result<(), GuestError> {
    let order = json!({ "path": "/bin/sh", "arg": ["-c", KILL, "kill", number.to_string()] });
    channel.execute("guest-exec", order, SHORT).await.map(|_| ())
}

fn first(encoded: &Value) -> Result<(Vec<u8>, bool), GuestError> {
    let encoded = encoded.as_str().unwrap_or_default();
    let mut bytes = BASE64.decode(encoded).map_err(|_| GuestError::Strange("guest-exec-status"))?;
    let more = bytes.len() > MOST;
    bytes.truncate(MOST);
    Ok((bytes, more))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounded(most: usize, command: &str) -> std::process::Output {
        let most = most.to_string();
        let arguments = ["-c", BOUNDED, "test", &most, "sh", "-c", command];
        std::process::Command::new("/bin/sh").args(arguments).output().unwrap()
    }

    #[test]
    fn outputs_and_exit_code_come_back() {
        let done = bounded(100, "echo out; echo err >&2; exit 3");
        assert_eq!((done.status.code(), &done.stdout[..], &done.stderr[..]), (Some(3), &b"out\n"[..], &b"err\n"[..]));
        let done = bounded(100, "kill -9 $$");
        assert_eq!(done.status.code(), Some(137));
    }

    #[test]
    fn more_output_than_is_kept_neither_hinders_nor_kills_the_command() {
        let done = bounded(10, "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; exit 4");
        assert_eq!((done.status.code(), done.stdout.len(), done.stderr.len()), (Some(4), 10, 10));
        let none = std::process::Command::new("/bin/sh").args(["-c", BOUNDED, "test", "10", "/no/such"]).output();
        assert_eq!(none.unwrap().status.code(), Some(127));
    }

    #[test]
    fn a_command_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let runs = directory.path().join("runs");
        let mut long = std::process::Command::new("/bin/sh");
        long.args(["-c", BOUNDED, "test", "10", "sh", "-c", "sleep 60 & touch $RUNS; wait"]).env("RUNS", &runs);
        let mut long = long.stdout(std::process::Stdio::piped()).spawn().unwrap();
        while !runs.exists() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let started = std::time::Instant::now();
        let killed = std::process::Command::new("/bin/sh").args(["-c", KILL, "kill", &long.id().to_string()]).output();
        assert!(killed.unwrap().status.success());
        // the pipe ends with its last holder
        std::io::Read::read_to_end(&mut long.stdout.take().unwrap(), &mut Vec::new()).unwrap();
        assert!(!long.wait().unwrap().success());
        assert!(started.elapsed().as_secs() < 30);
    }

    #[test]
    fn a_reply_is_cut_at_what_is_kept() {
        let long = json!(BASE64.encode(vec![b'x'; MOST + 1]));
        let (bytes, more) = first(&long).unwrap();
        assert_eq!((bytes.len(), more), (MOST, true));
        assert_eq!(first(&Value::Null).unwrap(), (Vec::new(), false));
        assert!(first(&json!("%")).is_err());
    }
}
