//! Loads a VM's memory from a file. The guest stands still afterwards.

use std::{
    fs::File,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    QemuError,
    capture::{progress, status},
    qmp::Qmp,
};

const FILE_NAME: &str = "load";
const PACE: Duration = Duration::from_millis(5);

/// Loads the memory into a QEMU that was started to receive it. A QEMU that refuses ends itself,
/// which is seen as a closed connection.
pub async fn load(qmp: &Qmp, memory: &File, limit: Duration) -> Result<(), QemuError> {
    qmp.pass_file(FILE_NAME, memory.as_fd()).await?;
    qmp.execute("migrate-incoming", json!({ "uri": format!("fd:{FILE_NAME}") })).await?;
    let until = Instant::now() + limit;
    while Instant::now() < until {
        let now = progress(qmp).await?;
        if now.status == "completed" && status(qmp).await? != "inmigrate" {
            return Ok(());
        }
        if now.ended() && now.status != "completed" {
            return Err(QemuError::Migration { what: "load the memory", status: now.status });
        }
        tokio::time::sleep(PACE).await;
    }
    Err(QemuError::Late("loading the memory"))
}
