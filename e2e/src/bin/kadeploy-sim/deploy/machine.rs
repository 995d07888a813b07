//! A machine: the command that does a step on it.

use std::{path::Path, process::Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;

use super::steps::Order;

/// Longest text of a command that is told.
const SHOWN: usize = 2000;

/// All processes of a command: they end when nobody waits for them any more.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Has the deployer do a step; what it says on its standard error is why it failed.
pub(super) async fn order(
    deployer: &Path,
    order: Order,
    node: &str,
    image: &str,
    key: Option<&str>,
) -> Result<(), String> {
    let mut command = Command::new(deployer);
    match order {
        Order::Prepare => command.args(["prepare", node]),
        Order::Unpack => command.args(["unpack", node, image]).args(key),
        Order::Boot => command.args(["boot", node, image]),
    };
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let child = command.spawn().map_err(|error| format!("{}: {error}", deployer.display()))?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id as i32)));
    let output = child.wait_with_output().await.map_err(|error| error.to_string())?;
    // what it has left running on purpose, it has put into a session of its own
    group.0 = None;
    if output.status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).chars().take(SHOWN).collect();
    Err(if said.is_empty() { format!("{order:?} failed") } else { said.trim_end().into() })
}
