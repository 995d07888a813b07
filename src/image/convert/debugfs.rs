//! Files of an ext2, ext3 or ext4 file system, read by `debugfs`: no kernel mounts what a stranger has made. Names are
//! a stranger's too: only what `debugfs` cannot misunderstand is asked for. So are sizes, and directories may have no
//! end: only so much of an answer is read, and `debugfs` is given only so much time.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    process::{ChildStdout, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{disk::local, names::show};
use crate::image::{Trouble, TroubleKind};

/// As much of an answer of `debugfs` is read.
const ANSWER: u64 = 4 << 20;
/// As long as a file may take to be copied, and all that is asked before.
pub(super) const LIMIT: Duration = Duration::from_secs(300);

/// Copies a file of this size out of the disk.
pub(super) fn copy_out(disk: &Path, name: &[u8], size: u64, to: &Path) -> Result<(), Trouble> {
    let Some(plain) = std::str::from_utf8(name).ok().filter(|name| is_plain(name.as_bytes())) else {
        let message = format!("{} has other characters than letters, digits and /._+~-:@: rename it", show(name));
        return Err(Trouble::refused(TroubleKind::Unusable, message));
    };
    let mut file = File::create(to).map_err(|e| local("copy a file", &e))?;
    // another byte shows that there are more: the size may be that of another file
    let copy = |said: ChildStdout| io::copy(&mut said.take(size + 1), &mut file);
    let length = answer(disk, &format!("cat \"/{plain}\""), Instant::now() + LIMIT, copy)?;
    if length == size {
        return Ok(());
    }
    let message = format!("of {plain} there are not the {size} bytes that it should have: its file system is damaged");
    Err(Trouble::refused(TroubleKind::Unusable, message))
}

/// Whether a name is one that `debugfs` cannot misunderstand.
pub(super) fn is_plain(name: &[u8]) -> bool {
    name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"/._+~-:@".contains(byte))
}

/// What `debugfs` answers. It says nothing of what is not there.
pub(super) fn ask(disk: &Path, request: &str, until: Instant) -> Result<String, Trouble> {
    let mut answered = Vec::new();
    answer(disk, request, until, |said| said.take(ANSWER).read_to_end(&mut answered))?;
    Ok(String::from_utf8_lossy(&answered).into_owned())
}

/// Has `debugfs` answer; it ends when its answer has been read, or is late.
fn answer<T>(
    disk: &Path,
    request: &str,
    until: Instant,
    read: impl FnOnce(ChildStdout) -> io::Result<T>,
) -> Result<T, Trouble> {
    let disk = std::path::absolute(disk).map_err(|e| local("find the disk", &e))?;
    let mut command = Command::new("debugfs");
    command.arg("-R").arg(request).arg(disk).env("LC_ALL", "C");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| local("start debugfs", &e))?;
    let pid = Pid::from_child(&child);
    let said = child.stdout.take();
    let (over, is_over) = mpsc::channel::<()>();
    let (answered, late) = thread::scope(|scope| {
        let watching = scope.spawn(move || {
            let left = until.saturating_duration_since(Instant::now());
            let late = is_over.recv_timeout(left) == Err(RecvTimeoutError::Timeout);
            // it goes on when nobody reads any more; nobody else has waited for it by now
            let _ = kill_process(pid, Signal::KILL);
            late
        });
        let answered = said.map(read).transpose();
        drop(over);
        (answered, watching.join().unwrap_or(true))
    });
    let ended = child.wait();
    if late {
        let message = "debugfs takes too long to read its file system, which is damaged";
        return Err(Trouble::refused(TroubleKind::Unusable, message));
    }
    let answered = ended.and(answered).map_err(|e| local("read what debugfs answers", &e))?;
    answered.ok_or_else(|| Trouble::passing(TroubleKind::Importer, "debugfs has no output"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn run(program: &str, arguments: &[&str], disk: &Path) {
        let made = Command::new(program).args(arguments).arg(disk).output().unwrap();
        assert!(made.status.success(), "{program}: {}", String::from_utf8_lossy(&made.stderr));
    }

    /// Makes a disk with two files, of which one says that it has 4 TiB.
    fn with_a_huge_file(directory: &Path, disk: &Path) {
        let root = directory.join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("kernel"), "kernel").unwrap();
        fs::write(root.join("huge"), "").unwrap();
        fs::File::create(disk).unwrap().set_len(4 << 20).unwrap();
        run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", root.to_str().unwrap()], disk);
        run("debugfs", &["-w", "-R", "set_inode_field /huge size 0x40000000000"], disk);
    }

    #[test]
    fn a_file_is_copied_and_of_one_that_is_larger_than_its_size_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        with_a_huge_file(directory.path(), &disk);
        let to = directory.path().join("copied");
        copy_out(&disk, b"kernel", 6, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"kernel");
        for (name, size) in [("huge", 6), ("kernel", 7), ("missing", 6)] {
            let trouble = copy_out(&disk, name.as_bytes(), size, &to).unwrap_err();
            assert!(!trouble.again && trouble.message.contains("not the"), "{trouble}");
            assert!(fs::metadata(&to).unwrap().len() <= size + 1, "{name}");
        }
        let trouble = copy_out(&disk, b"a \"name\"", 6, &to).unwrap_err();
        assert!(trouble.message.contains("rename it"), "{trouble}");
    }

    #[test]
    fn nobody_waits_for_an_answer_that_is_late() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        with_a_huge_file(directory.path(), &disk);
        let begun = Instant::now();
        // there is no end of it before debugfs is killed
        let late = |mut said: ChildStdout| -> io::Result<()> {
            let mut piece = vec![0; 64 << 10];
            while said.read(&mut piece)? > 0 {
                assert!(begun.elapsed() < Duration::from_secs(60), "it is waited for");
                thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        };
        let trouble = answer(&disk, "cat \"/huge\"", begun + Duration::from_millis(200), late).unwrap_err();
        assert!(!trouble.again && trouble.message.contains("too long"), "{trouble}");
        assert!(ask(&disk, "ls -p \"/\"", Instant::now() + LIMIT).unwrap().contains("lost+found"));
    }
}
