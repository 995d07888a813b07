//! Kills everything but ourselves, QEMU first, and waits until it is gone.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// A process that does not die for this long sits in the kernel; our own end takes it along.
const LIMIT: Duration = Duration::from_secs(60);
const PACE: Duration = Duration::from_millis(1);
/// How the names of its programs begin.
const QEMU: &str = "qemu";

#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    name: String,
    dead: bool,
}

/// Reads a line of `/proc/<pid>/stat`. The name may contain anything.
fn parse(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut words = rest.split(' ');
    let state = words.next()?;
    let parent = words.next()?.parse().ok()?;
    Some(Process { pid: pid.parse().ok()?, parent, name: name.into(), dead: matches!(state, "Z" | "X") })
}

fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit))
        // a process that has gone meanwhile has no file any more
        .filter_map(|entry| parse(&std::fs::read_to_string(entry.path().join("stat")).ok()?))
        .collect()
}

/// Whether a process has these words among its arguments.
fn is_told(pid: i32, words: &[u8]) -> bool {
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.windows(words.len().max(1)).any(|found| found == words)
}

/// Who is to be killed: as process 1 everybody else, otherwise all our descendants. Those of a dead
/// child are ours too, because we adopt them.
fn victims(processes: &[Process], own: i32) -> Vec<&Process> {
    let mut ours = vec![own];
    let mut next = 0;
    while let Some(parent) = ours.get(next).copied() {
        ours.extend(
            processes
                .iter()
                .filter(|p| p.parent == parent && !ours.contains(&p.pid))
                .map(|p| p.pid)
                .collect::<Vec<_>>(),
        );
        next += 1;
    }
    let chosen = |p: &&Process| p.pid != own && (own == 1 || ours.contains(&p.pid)) && !p.dead;
    let mut victims: Vec<&Process> = processes.iter().filter(chosen).collect();
    victims.sort_by_key(|p| !p.name.starts_with(QEMU));
    victims
}

/// Makes this process the parent of whatever its children leave behind.
pub fn adopt() {
    let own = rustix::process::getpid();
    if let Err(error) = rustix::process::set_child_subreaper(Some(own)) {
        tracing::warn!(%error, "failed to adopt orphans");
    }
}

/// Waits until no QEMU of ours is left whose files are in this directory, not even one that was just being started; but
/// not for ever. Whether it is so.
pub fn no_qemu(directory: &Path, limit: Duration) -> bool {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let until = Instant::now() + limit;
    let its = |process: &&Process| {
        process.name.starts_with(QEMU) && is_told(process.pid, directory.as_os_str().as_encoded_bytes())
    };
    loop {
        let processes = all();
        if !victims(&processes, own).iter().any(its) {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(PACE);
    }
}

/// Kills everything else. Says whether it is all gone.
pub fn everything_else() -> bool {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let until = Instant::now() + LIMIT;
    loop {
        let processes = all();
        let victims = victims(&processes, own);
        if victims.is_empty() {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        for victim in victims {
            if let Some(pid) = Pid::from_raw(victim.pid) {
                // gone already, then
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(PACE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, name: &str) -> Process {
        Process { pid, parent, name: name.into(), dead: false }
    }

    #[test]
    fn the_name_of_a_process_may_be_a_trap() {
        let seen = parse("12 (a) S 99 (b)) Z 7 12 12 0").unwrap();
        assert_eq!(seen, Process { pid: 12, parent: 7, name: "a) S 99 (b)".into(), dead: true });
        assert_eq!(parse("12 (a"), None);
    }

    #[test]
    fn a6_a_qemu_that_was_just_being_started_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let program = directory.path().join("qemu-just");
        std::fs::copy("/bin/sleep", &program).unwrap();
        let mut child = loop {
            match std::process::Command::new(&program).arg("30").spawn() {
                Ok(child) => break child,
                // another thread's child has the copy open for writing
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ExecutableFileBusy, "{error}"),
            }
        };
        let wait = Duration::from_millis(50);
        assert!(!no_qemu(directory.path(), wait));
        assert!(no_qemu(other.path(), wait), "another one's");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(no_qemu(directory.path(), wait));
    }

    #[test]
    fn a6_qemu_is_killed_first() {
        let all =
            [process(1, 0, "vmdeploy"), process(5, 1, "vmdeploy"), process(9, 5, "qemu-vmdeploy"), process(7, 0, "sh")];
        let pids = |own| victims(&all, own).iter().map(|p| p.pid).collect::<Vec<_>>();
        assert_eq!(pids(1), [9, 5, 7], "as process 1, everybody");
        assert_eq!(pids(5), [9], "otherwise only what is ours");
    }
}
