//! The job's command in the guest: started once, whatever is repeated, and its exit code read from a
//! file, because the guest's agent forgets what it has reported (safety B9).

use std::{collections::BTreeMap, time::Duration};

use super::{GuestError, channel::Channel, files};
use crate::api::job::RunSpec;

/// Directory of the command's traces in the guest.
const DIRECTORY: &str = "/var/lib/vmdeploy/job";
const ONCE: &str = include_str!("once.sh");
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const START_LIMIT: Duration = Duration::from_secs(60);

/// What a start came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// It runs now.
    Now,
    /// It had been started before.
    Before,
    /// It had been started, and the guest has booted since: the command is gone.
    Lost,
}

/// Starts the command unless it was started before.
pub async fn start(channel: &mut Channel, run: &RunSpec) -> Result<Started, GuestError> {
    let done = files::run(channel, "/bin/sh", &arguments(run), &environment(&run.env), &[], START_LIMIT).await?;
    match (done.code, done.text.lines().last().unwrap_or_default()) {
        (0, "started") => Ok(Started::Now),
        (0, "already") => Ok(Started::Before),
        (0, "lost") => Ok(Started::Lost),
        _ => Err(GuestError::Program { what: "the start of the command", text: done.text.trim().into() }),
    }
}

fn arguments(run: &RunSpec) -> Vec<String> {
    let user = run.user.as_deref().unwrap_or_default();
    let directory = run.working_dir.as_deref().unwrap_or("/");
    let first = ["-c", ONCE, "vmdeploy-once", DIRECTORY, user, directory].map(String::from);
    first.into_iter().chain(run.command.iter().cloned()).collect()
}

/// What a command finds in its environment, with what is asked for besides.
pub(super) fn environment(own: &BTreeMap<String, String>) -> Vec<String> {
    let mut all = BTreeMap::from([("PATH".to_owned(), PATH.to_owned()), ("HOME".into(), "/root".into())]);
    all.extend(own.clone());
    all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// The exit code, once the command has ended.
pub async fn exit_code(channel: &mut Channel) -> Result<Option<i32>, GuestError> {
    let Some(bytes) = files::read_small(channel, &format!("{DIRECTORY}/rc")).await? else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes);
    text.trim().parse().map(Some).map_err(|_| GuestError::Strange("guest-file-read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(user: Option<&str>) -> RunSpec {
        serde_json::from_value(serde_json::json!({
            "command": ["sh", "-c", "echo \"$X\""], "env": {"X": "a b", "PATH": "/opt/bin"}, "user": user,
        }))
        .unwrap()
    }

    #[test]
    fn the_command_is_passed_unchanged() {
        let arguments = arguments(&spec(Some("alice")));
        assert_eq!(arguments[3..], [DIRECTORY, "alice", "/", "sh", "-c", "echo \"$X\""]);
        assert_eq!(environment(&spec(None).env), ["HOME=/root", "PATH=/opt/bin", "X=a b"]);
    }

    /// Runs the script itself, with a directory and a port that a test may have.
    fn once(directory: &std::path::Path, command: &[&str]) -> String {
        let script = ONCE
            .replace("/sys/class/virtio-ports/*", &format!("{}/ports/*", directory.display()))
            .replace("port=/dev/${p##*/}", "port=/dev/null");
        let output = std::process::Command::new("sh")
            .args(["-c", &script, "once"])
            .arg(directory.join("state/job"))
            .args(["", "/"])
            .args(command)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).trim().into()
    }

    #[test]
    fn b9_a_second_start_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("ports/p1")).unwrap();
        std::fs::write(dir.path().join("ports/p1/name"), "vmdeploy.output\n").unwrap();
        let count = dir.path().join("count");
        let line = format!("echo x >> {}; exit 7", count.display());
        assert_eq!(once(dir.path(), &["sh", "-c", &line]), "started");
        let rc = dir.path().join("state/job/rc");
        // it is on the disk before it has its name
        for _ in 0..3000 {
            if rc.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(std::fs::read_to_string(&rc).unwrap(), "7\n");
        assert_eq!(once(dir.path(), &["sh", "-c", &line]), "already");
        std::fs::remove_file(&rc).unwrap();
        std::fs::write(dir.path().join("state/job/boot"), "another boot\n").unwrap();
        assert_eq!(once(dir.path(), &["sh", "-c", &line]), "lost");
        assert_eq!(std::fs::read_to_string(count).unwrap(), "x\n");
    }

    #[test]
    fn a_guest_without_the_port_starts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(once(dir.path(), &["true"]).contains("port"));
        assert!(!dir.path().join("state/job").exists());
    }
}
