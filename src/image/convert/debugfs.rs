//! Files of an ext2, ext3 or ext4 file system, read by `debugfs`: no kernel mounts what a stranger has made. Names are a
//! stranger's too: only what `debugfs` cannot misunderstand is asked for.

use std::{
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
};

use super::disk::{local, run};
use crate::image::{Trouble, TroubleKind};

/// As much of an answer of `debugfs` is read.
const ANSWER: u64 = 4 << 20;

/// Copies a file of this size out of the disk.
pub(super) fn copy_out(disk: &Path, name: &[u8], size: u64, to: &Path) -> Result<(), Trouble> {
    let name = std::str::from_utf8(name).ok().filter(|name| is_plain(name.as_bytes()));
    let Some(name) = name else {
        let message = "the kernel's name has other characters than letters, digits and /._+~-:@: rename it";
        return Err(Trouble::refused(TroubleKind::Unusable, message));
    };
    // a fixed name in a directory of its own: the importer's directory may be called anything
    let directory = tempfile::tempdir_in(to.parent().unwrap_or(to)).map_err(|e| local("copy a file", &e))?;
    let mut command = Command::new("debugfs");
    command.current_dir(directory.path()).arg("-R").arg(format!("dump \"/{name}\" file"));
    command.arg(std::path::absolute(disk).map_err(|e| local("find the disk", &e))?);
    run(&mut command, "debugfs")?;
    let copied = directory.path().join("file");
    let length = std::fs::metadata(&copied).map_err(|e| local(&format!("copy {name} out of the disk"), &e))?.len();
    if length != size {
        let message = format!("{name} should have {size} bytes, and has {length} on the disk");
        return Err(Trouble::passing(TroubleKind::Importer, message));
    }
    std::fs::rename(&copied, to).map_err(|e| local("copy a file", &e))
}

/// Whether a name is one that `debugfs` cannot misunderstand.
pub(super) fn is_plain(name: &[u8]) -> bool {
    name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"/._+~-:@".contains(byte))
}

/// What `debugfs` answers. It says nothing of what is not there.
pub(super) fn ask(disk: &Path, request: &str) -> Result<String, Trouble> {
    let disk = std::path::absolute(disk).map_err(|e| local("find the disk", &e))?;
    let mut command = Command::new("debugfs");
    command.arg("-R").arg(request).arg(disk).env("LC_ALL", "C");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| local("start debugfs", &e))?;
    let mut answer = Vec::new();
    // when nobody reads on, it ends
    let read = child.stdout.take().map(|said| said.take(ANSWER).read_to_end(&mut answer)).transpose();
    let ended = child.wait();
    read.and(ended).map_err(|e| local("ask debugfs", &e))?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
