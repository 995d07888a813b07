//! The parts of a capture on one VM, in the order in which they are used.
//!
//! The sink of the memory is always a file whose space was reserved: QEMU 7.2 freezes its guest for
//! good when a background snapshot fails or is cancelled. For the same reason none is cancelled here.

use std::{
    fs::File,
    os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _},
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    QemuError,
    cmdline::{Layer, blockdev},
    qmp::{Qmp, QmpError},
};

/// How memory is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// While the guest runs on.
    Background,
    /// While the guest stands still.
    Stopped,
}

/// What became of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// The overlays are merged.
    Done,
    /// It was ended before; the chain is as it was.
    Ended,
}

/// Name under which QEMU knows the file of the memory.
const FILE_NAME: &str = "memory";
/// More than any disk takes: the default limit makes a pause of a second out of 128 MiB.
const NO_LIMIT: u64 = 1 << 40;
/// Room for the state of devices, beside the guest's memory.
const DEVICE_STATE: u64 = 64 << 20;
/// How often QEMU is asked while a guest stands still.
const QUICK: Duration = Duration::from_millis(1);
/// How often it is asked otherwise.
const SLOW: Duration = Duration::from_millis(20);
/// How long nothing may be heard of a merge until QEMU is asked whether it is there.
const COMMIT_PACE: Duration = Duration::from_secs(2);
/// A guest whose background snapshot has not let it run again after this time is lost.
const RESUME_LIMIT: Duration = Duration::from_secs(20);
/// What is cancelled ends within this time.
const CANCEL_LIMIT: Duration = Duration::from_secs(10);

/// Makes the file of the memory and reserves its space.
pub fn reserve(path: &Path, guest_memory: u64) -> Result<File, QemuError> {
    let what = || format!("reserve {}", path.display());
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(QemuError::io(what()))?;
    let room = guest_memory + DEVICE_STATE;
    if let Err(error) = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, room) {
        // nobody else knows of it yet
        let _ = std::fs::remove_file(path);
        return Err(QemuError::io(what())(error.into()));
    }
    Ok(file)
}

/// Gives back the reserved space that was not needed.
pub fn trim(path: &Path) -> Result<u64, QemuError> {
    let what = || format!("trim {}", path.display());
    let file = std::fs::OpenOptions::new().write(true).open(path).map_err(QemuError::io(what()))?;
    let length = file.metadata().map_err(QemuError::io(what()))?.len();
    file.set_len(length).map_err(QemuError::io(what()))?;
    Ok(length)
}

/// Opens an overlay in QEMU; nothing lies below it until the switch.
pub async fn add_overlay(qmp: &Qmp, layer: &Layer) -> Result<(), QemuError> {
    qmp.execute("blockdev-add", blockdev(layer, None, false)).await?;
    Ok(())
}

/// Closes an overlay that is not used after all.
pub async fn remove_overlay(qmp: &Qmp, node: &str) -> Result<(), QemuError> {
    qmp.execute("blockdev-del", json!({ "node-name": node })).await?;
    Ok(())
}

/// Chooses how memory will be written: in the background if that is wanted and the node can do it.
pub async fn choose(qmp: &Qmp, background: bool) -> Result<Mechanism, QemuError> {
    qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": NO_LIMIT })).await?;
    if background {
        match set_background(qmp, true).await {
            Ok(()) => return Ok(Mechanism::Background),
            Err(QmpError::Refused { text, .. }) => {
                tracing::warn!(reason = text, "memory is written while the guest stands still");
            }
            Err(error) => return Err(error.into()),
        }
    }
    set_background(qmp, false).await?;
    Ok(Mechanism::Stopped)
}

async fn set_background(qmp: &Qmp, state: bool) -> Result<(), QmpError> {
    let capabilities = json!([{ "capability": "background-snapshot", "state": state }]);
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": capabilities })).await.map(|_| ())
}

/// Gives QEMU the file of the memory.
pub async fn offer(qmp: &Qmp, file: &File) -> Result<(), QemuError> {
    Ok(qmp.pass_file(FILE_NAME, file.as_fd()).await?)
}

/// Takes the file back: the capture does not happen.
pub async fn withdraw(qmp: &Qmp) -> Result<(), QemuError> {
    qmp.execute("closefd", json!({ "fdname": FILE_NAME })).await?;
    Ok(())
}

/// Stops the guest, within this time. If that fails, nobody knows whether the guest stands still.
pub async fn stop(qmp: &Qmp, limit: Duration) -> Result<(), QemuError> {
    let stopped = tokio::time::timeout(limit, qmp.execute("stop", Value::Null)).await;
    stopped.map_err(|_| QemuError::Late("the stop of the guest"))??;
    Ok(())
}

/// Lets the guest run.
pub async fn resume(qmp: &Qmp) -> Result<(), QemuError> {
    if status(qmp).await? != "running" {
        qmp.execute("cont", Value::Null).await?;
    }
    Ok(())
}

/// Freezes the disk: from now on the guest writes to the new overlay.
pub async fn switch(qmp: &Qmp, top: &str, overlay: &str) -> Result<(), QemuError> {
    let actions = json!([{ "type": "blockdev-snapshot", "data": { "node": top, "overlay": overlay } }]);
    qmp.execute("transaction", json!({ "actions": actions })).await?;
    Ok(())
}

/// Starts to write the memory as it is now. In the background, returns when the guest runs again.
pub async fn begin(qmp: &Qmp, mechanism: Mechanism, resumes_by_itself: bool) -> Result<(), QemuError> {
    qmp.execute("migrate", json!({ "uri": format!("fd:{FILE_NAME}") })).await?;
    if mechanism == Mechanism::Stopped {
        return Ok(());
    }
    let until = Instant::now() + RESUME_LIMIT;
    while Instant::now() < until {
        if status(qmp).await? == "running" {
            return Ok(());
        }
        let progress = progress(qmp).await?;
        // the state is saved once pages are being sent; a guest let go before would be cut twice
        if progress.ended() || (!resumes_by_itself && progress.pages > 0) {
            return resume(qmp).await;
        }
        tokio::time::sleep(QUICK).await;
    }
    Err(QemuError::Late("the resumption of the guest"))
}

/// Waits until the memory is written, so long at most.
pub async fn written(qmp: &Qmp, mechanism: Mechanism, limit: Duration) -> Result<(), QemuError> {
    let begun = Instant::now();
    let pace = if mechanism == Mechanism::Stopped { QUICK } else { SLOW };
    loop {
        let progress = progress(qmp).await?;
        if progress.status == "completed" {
            return Ok(());
        }
        if progress.ended() {
            return Err(QemuError::Migration { what: "write the memory", status: progress.status });
        }
        if begun.elapsed() >= limit {
            return Err(QemuError::Unwritten(limit));
        }
        tokio::time::sleep(pace).await;
    }
}

/// Ends the writing of a guest's memory that stands still; only then may the guest run on, or it
/// would be stopped once more at the end of the writing.
pub async fn end_writing(qmp: &Qmp) -> Result<(), QemuError> {
    qmp.execute("migrate_cancel", Value::Null).await?;
    let until = Instant::now() + CANCEL_LIMIT;
    while Instant::now() < until {
        if progress(qmp).await?.ended() {
            return Ok(());
        }
        tokio::time::sleep(SLOW).await;
    }
    Err(QemuError::Late("the end of the writing"))
}

/// What the guest does.
pub async fn status(qmp: &Qmp) -> Result<String, QemuError> {
    let reply = qmp.execute("query-status", Value::Null).await?;
    Ok(reply["status"].as_str().unwrap_or_default().to_owned())
}

/// How far the writing or loading of memory is.
pub(super) struct Progress {
    pub(super) status: String,
    pages: u64,
}

impl Progress {
    pub(super) fn ended(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "failed" | "cancelled")
    }
}

pub(super) async fn progress(qmp: &Qmp) -> Result<Progress, QemuError> {
    let reply = qmp.execute("query-migrate", Value::Null).await?;
    let pages = |kind: &str| reply["ram"][kind].as_u64().unwrap_or_default();
    let status = reply["status"].as_str().unwrap_or_default().to_owned();
    Ok(Progress { status, pages: pages("normal") + pages("duplicate") })
}

/// Merges overlays into an older one while the guest runs; returns when that is done, or when it was
/// ended because `wanted` came. An unfinished merge leaves the chain as it was.
pub async fn commit(
    qmp: &Qmp,
    active: &str,
    top: &str,
    base: &str,
    wanted: impl Future<Output = ()>,
) -> Result<Merge, QemuError> {
    let mut events = qmp.events();
    let mut wanted = std::pin::pin!(wanted);
    let mut cancelled: Option<Instant> = None;
    let job = json!({ "job-id": "commit", "device": active, "top-node": top, "base-node": base });
    qmp.execute("block-commit", job).await?;
    loop {
        let event = tokio::select! {
            event = tokio::time::timeout(COMMIT_PACE, events.recv()) => event,
            () = &mut wanted, if cancelled.is_none() => {
                cancelled = Some(Instant::now());
                match qmp.execute("block-job-cancel", json!({ "device": "commit" })).await {
                    // refused: it has just ended
                    Ok(_) | Err(QmpError::Refused { .. }) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let Ok(event) = event else {
            if cancelled.is_some_and(|at| at.elapsed() > CANCEL_LIMIT) {
                return Err(QemuError::Late("the end of a merge"));
            }
            // notices a QEMU that has ended
            status(qmp).await?;
            continue;
        };
        match event {
            Ok(event) if event.name == "BLOCK_JOB_COMPLETED" && event.data["device"] == "commit" => {
                return match event.data["error"].as_str() {
                    None => Ok(Merge::Done),
                    Some(why) => {
                        Err(QemuError::Migration { what: "merge overlays", status: why.chars().take(300).collect() })
                    }
                };
            }
            Ok(event) if event.name == "BLOCK_JOB_CANCELLED" && cancelled.is_some() => return Ok(Merge::Ended),
            Ok(event) if event.name == "BLOCK_JOB_CANCELLED" => {
                return Err(QemuError::Migration { what: "merge overlays", status: "cancelled".into() });
            }
            Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
            Err(tokio::sync::broadcast::error::RecvError::Closed) => return Err(QmpError::Closed.into()),
        }
    }
}
