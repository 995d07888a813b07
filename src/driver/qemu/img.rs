//! Disk images: overlays over a base that nobody writes.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use tokio::{io::AsyncReadExt as _, process::Command};

use super::QemuError;
use crate::api::image::DiskFormat;

/// Format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Bytes as the guest sees them.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// Bytes of a header that are looked at.
const HEADER: usize = 80;

/// Tells the format of an image and its size from its first bytes. One that names other files is
/// refused: a stranger's image must not reach the node's own. The size is known for qcow2 only.
pub fn classify(header: &[u8]) -> Result<(Format, Option<u64>), String> {
    let Some(rest) = header.strip_prefix(b"QFI\xfb") else { return Ok((Format::Raw, None)) };
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let field = rest.get(at - 4..at - 4 + bytes)?;
        Some(field.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let version = number(4, 4).ok_or("its header is cut off")?;
    if version != 2 && version != 3 {
        return Err(format!("qcow2 version {version} is not known"));
    }
    if number(8, 8) != Some(0) {
        return Err("it is an overlay over another file".into());
    }
    let size = number(24, 8).ok_or("its header is cut off")?;
    let features = if version == 3 { number(72, 8).ok_or("its header is cut off")? } else { 0 };
    if features & 4 != 0 {
        return Err("its data lies in another file".into());
    }
    Ok((Format::Qcow2, Some(size)))
}

/// Format of a base image by its head, and the size the guest sees; what is wrong with it otherwise.
pub fn inspect(head: &[u8], length: u64) -> Result<(DiskFormat, u64), String> {
    let (format, size) = classify(&head[..head.len().min(HEADER)])?;
    let format = match format {
        Format::Qcow2 => DiskFormat::Qcow2,
        Format::Raw => DiskFormat::Raw,
    };
    Ok((format, size.unwrap_or(length)))
}

/// Looks at a base image: its format and the size the guest sees.
pub async fn inspect_base(path: &Path) -> Result<(Format, u64), QemuError> {
    let at = |source| QemuError::Io { what: format!("read {}", path.display()), source };
    let file = tokio::fs::File::open(path).await.map_err(at)?;
    let length = file.metadata().await.map_err(at)?.len();
    let mut header = Vec::with_capacity(HEADER);
    file.take(HEADER as u64).read_to_end(&mut header).await.map_err(at)?;
    let (format, size) = classify(&header).map_err(|why| QemuError::Image { path: path.display().to_string(), why })?;
    Ok((format, size.unwrap_or(length)))
}

/// Makes an empty overlay. The file below is not opened: it may be in use.
pub async fn create_overlay(path: &Path, below: &Path, format: Format, size: u64) -> Result<(), QemuError> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-u", "-F", &format.to_string(), "-b"]).arg(below);
    command.arg(path).arg(size.to_string());
    run(command).await
}

/// Says in an overlay's header what lies below it, without looking at the content.
pub async fn set_below(path: &Path, below: &Path, format: Format) -> Result<(), QemuError> {
    let mut command = Command::new("qemu-img");
    command.args(["rebase", "-q", "-u", "-f", "qcow2", "-F", &format.to_string(), "-b"]).arg(below).arg(path);
    run(command).await
}

/// Writes one overlay over the base that has the content of a chain of frozen ones.
///
/// `qemu-img convert -B` would copy only the uppermost of them. So that one is copied as a file, and
/// a rebase adds what the others have beyond the base.
pub async fn flatten(top: &Path, base: &Path, format: Format, to: &Path) -> Result<(), QemuError> {
    let (from, copy) = (top.to_owned(), to.to_owned());
    let copied = tokio::task::spawn_blocking(move || copy_private(&from, &copy)).await;
    copied.map_err(io::Error::other).flatten().map_err(QemuError::io(format!("copy {}", top.display())))?;
    let mut command = Command::new("qemu-img");
    command.args(["rebase", "-q", "-U", "-f", "qcow2", "-F", &format.to_string(), "-b"]).arg(base).arg(to);
    run(command).await
}

fn copy_private(from: &Path, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut from = std::fs::File::open(from)?;
    let mut to = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    // shares the blocks where the file system can
    if rustix::fs::ioctl_ficlone(&to, &from).is_err() {
        io::copy(&mut from, &mut to)?;
    }
    Ok(())
}

async fn run(mut command: Command) -> Result<(), QemuError> {
    command.kill_on_drop(true).stdin(std::process::Stdio::null());
    let output = command.output().await.map_err(QemuError::io("start qemu-img"))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
    Err(QemuError::Program { program: "qemu-img", message })
}

/// The files of a VM's disk, the oldest overlay first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Overlays: number, which is in its node's name, and file. The last one is being written.
    pub overlays: Vec<(u32, PathBuf)>,
}

/// Longest chain of overlays that is left alone.
const MAX_OVERLAYS: usize = 3;

impl Chain {
    /// Name of an overlay's node.
    pub fn node(number: u32) -> String {
        format!("disk{number}")
    }

    /// Which overlays to merge into the oldest one: the numbers of the uppermost that goes, and of
    /// the one that takes. Never while a frozen overlay is still being read for a generation, never
    /// into the base (safety B8).
    pub fn to_commit(&self, being_read: bool) -> Option<(u32, u32)> {
        if being_read || self.overlays.len() <= MAX_OVERLAYS {
            return None;
        }
        let frozen = self.overlays.len() - 2;
        Some((self.overlays[frozen].0, self.overlays[0].0))
    }

    /// The overlays between were merged: takes them out and names their files.
    pub fn committed(&mut self, top: u32) -> Vec<PathBuf> {
        let Some(end) = self.overlays.iter().position(|(number, _)| *number == top) else { return Vec::new() };
        self.overlays.drain(1..=end).map(|(_, path)| path).collect()
    }
}

#[cfg(test)]
#[path = "img_tests.rs"]
mod tests;
