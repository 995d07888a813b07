//! Loads a VM's memory from a file. The guest stands still afterwards.

use std::{
    fs::File,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    QemuError,
    capture::{self, status},
    qmp::Qmp,
};

const FILE_NAME: &str = "load";
const PACE: Duration = Duration::from_millis(5);

/// Loads the memory into a QEMU that was started to receive it. A QEMU that refuses ends itself,
/// which is seen as a closed connection; one that reads nothing for as long as `limit` is given up.
/// `progress` is told the number of bytes read so far.
pub async fn load(
    qmp: &Qmp,
    memory: &File,
    limit: Duration,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), QemuError> {
    qmp.pass_file(FILE_NAME, memory.as_fd()).await?;
    qmp.execute("migrate-incoming", json!({ "uri": format!("fd:{FILE_NAME}") })).await?;
    let (mut read, mut moved) = (0, Instant::now());
    while moved.elapsed() < limit {
        let now = capture::progress(qmp).await?;
        if now.status == "completed" && status(qmp).await? != "inmigrate" {
            return Ok(());
        }
        if now.ended() && now.status != "completed" {
            return Err(QemuError::Migration { what: "load the memory", status: now.status });
        }
        // QEMU reads by our own open file
        let at = rustix::fs::tell(memory).map_err(|error| QemuError::io("follow the memory")(error.into()))?;
        if at != read {
            (read, moved) = (at, Instant::now());
            progress(read);
        }
        tokio::time::sleep(PACE).await;
    }
    Err(QemuError::Late("loading the memory"))
}
