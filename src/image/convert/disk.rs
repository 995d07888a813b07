//! The disk: an ext4 file system that `mke2fs` makes of an archive on its standard input, without privileges.
//!
//! Measured on the way from an archive of 168 MB to a disk of 10 GiB, on two busy cores: `mke2fs` 1.47.2 with
//! libarchive 1.0 s (1.5 s with tables of inodes that the guest has not to clear later), `genext2fs` and `tune2fs`
//! 2.2 s and without attributes of files, that is without capabilities. A tree that is unpacked under `fakeroot` for
//! the `mke2fs` of Debian 12 took 5.6 s where the first took 2.8, and room for the tree.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use super::scrub::LABEL;
use crate::image::{Trouble, TroubleKind};

/// Bytes of the archive on their way to `mke2fs`, which takes them 4 KiB at a time. With 64 KiB the two wait for each
/// other so often that all takes a fifth longer.
const PIPE: usize = 1 << 20;

/// `mke2fs` at work.
pub(super) struct Making {
    child: Child,
    words: File,
    disk: PathBuf,
}

impl Making {
    /// Starts it: the archive goes to the pipe. The same archive and the same name make the same disk.
    pub(super) fn start(disk: &Path, size: u64, name: &str) -> Result<(Self, ChildStdin), Trouble> {
        let words =
            tempfile::tempfile_in(disk.parent().unwrap_or(disk)).map_err(|e| local("keep what mke2fs says", &e))?;
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-i"]).arg(super::stream::BYTES_A_FILE.to_string());
        command.args(["-m", "1", "-L", LABEL, "-U", name, "-E"]);
        command.arg(format!("root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,hash_seed={name}"));
        command.args(["-d", "-"]).arg(disk).arg(format!("{}k", size >> 10));
        command.env("SOURCE_DATE_EPOCH", "1").env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::null());
        command.stderr(words.try_clone().map_err(|e| local("keep what mke2fs says", &e))?);
        let mut child = command.spawn().map_err(|e| local("start mke2fs", &e))?;
        let stdin = child.stdin.take().ok_or_else(|| Trouble::passing(TroubleKind::Importer, "mke2fs has no input"))?;
        // where that much is not allowed, it only goes slower
        let _ = rustix::pipe::fcntl_setpipe_size(&stdin, PIPE);
        Ok((Self { child, words, disk: disk.to_owned() }, stdin))
    }

    /// Waits for its end, once the pipe is closed.
    pub(super) fn finish(mut self) -> Result<(), Trouble> {
        let status = self.child.wait().map_err(|e| local("wait for mke2fs", &e))?;
        let mut words = String::new();
        let _ = self.words.rewind().and_then(|()| (&self.words).take(2000).read_to_string(&mut words));
        if status.success() {
            return Ok(());
        }
        let words = words.trim();
        let free = rustix::fs::statvfs(&self.disk).map_or(u64::MAX, |found| found.f_bavail * found.f_frsize);
        if free < 1 << 20 || words.contains("No space left") {
            let message = format!("no room is left for the disk while it is made: {words}");
            return Err(Trouble::passing(TroubleKind::Importer, message));
        }
        let message = format!("mke2fs (1.47.1 or later, with libarchive) makes no disk of the archive: {words}");
        Err(Trouble::refused(TroubleKind::Unusable, message))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // one that has ended is not there any more
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Checks the file system.
pub(super) fn check(disk: &Path) -> Result<(), Trouble> {
    run(Command::new("e2fsck").args(["-fn"]).arg(disk), "e2fsck")
}

/// Writes the disk as qcow2, without what is empty.
pub(super) fn pack(disk: &Path, to: &Path) -> Result<(), Trouble> {
    run(Command::new("qemu-img").args(["convert", "-q", "-f", "raw", "-O", "qcow2"]).arg(disk).arg(to), "qemu-img")
}

/// Runs a tool to its end, which is good or an error with its words.
fn run(command: &mut Command, name: &str) -> Result<(), Trouble> {
    let output =
        command.stdin(Stdio::null()).env("LC_ALL", "C").output().map_err(|e| local(&format!("start {name}"), &e))?;
    if output.status.success() {
        return Ok(());
    }
    let words = [output.stdout, output.stderr].concat();
    let message = format!("{name} failed: {}", String::from_utf8_lossy(&words).trim());
    Err(Trouble::passing(TroubleKind::Importer, message))
}

/// What keeps the importer from its work here.
pub(super) fn local(what: &str, error: &io::Error) -> Trouble {
    Trouble::passing(TroubleKind::Importer, format!("failed to {what}: {error}"))
}
