//! One member's agent, as operator and kget speak to it, and the processes behind it.

use std::{path::PathBuf, process::Command, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures::{
    StreamExt as _,
    future::{join_all, try_join_all},
};
use vmdeploy::{
    driver::agent::{AgentState, Authority, CaptureOrder, NodeAgent, PartState, VmState, http::AgentHttp},
    names::Generation,
};

use super::{LIMIT, Process, nonce};
use crate::testbed::until;

/// Between the stops of members that no barrier holds together.
const APART: Duration = Duration::from_millis(400);

/// Cuts all of them and lets them run on: with the barrier at one moment; without it one after the other, each at a
/// moment of its own. Returns how long each stood still, in milliseconds, once all are captured.
pub async fn capture(agents: &[Agent], generation: Generation, barrier: bool) -> Result<Vec<u64>> {
    let orders: Vec<CaptureOrder> = agents.iter().map(|agent| agent.order(generation, true)).collect();
    let pairs = || agents.iter().map(|agent| agent.operator.as_ref()).zip(&orders);
    if barrier {
        try_join_all(pairs().map(|(agent, order)| agent.prepare(order))).await?;
        let stopped: Result<Vec<()>, _> =
            join_all(pairs().map(|(agent, order)| agent.stop(order))).await.into_iter().collect();
        stopped?;
        try_join_all(pairs().map(|(agent, order)| agent.cut(order))).await?;
    } else {
        for (agent, order) in pairs() {
            agent.prepare(order).await?;
            agent.stop(order).await?;
            agent.cut(order).await?;
            tokio::time::sleep(APART).await;
        }
    }
    let captured = |state: &AgentState| {
        let part = state.capture.as_ref().filter(|part| part.generation == generation);
        part.is_some_and(|part| matches!(part.state, PartState::Captured | PartState::Abandoned { .. }))
    };
    let states = try_join_all(agents.iter().map(|agent| agent.until("capture", captured))).await?;
    let pauses = states.into_iter().map(|state| {
        let part = state.capture.context("no capture")?;
        ensure!(part.state == PartState::Captured, "{:?}", part.state);
        part.pause_ms.context("captured without a pause")
    });
    pauses.collect()
}

/// Cuts all of them at one moment; they stay down as long as the limit says, unless they are told otherwise. Returns
/// once all are captured.
pub async fn capture_and_stay(agents: &[Agent], generation: Generation, limit: Duration) -> Result<()> {
    let orders: Vec<CaptureOrder> = agents.iter().map(|agent| agent.order(generation, false)).collect();
    let pairs = || agents.iter().map(|agent| agent.operator.as_ref()).zip(&orders);
    try_join_all(pairs().map(|(agent, order)| agent.prepare(order))).await?;
    try_join_all(pairs().map(|(agent, order)| agent.stop(order))).await?;
    try_join_all(pairs().map(|(agent, order)| agent.cut(order))).await?;
    try_join_all(pairs().map(|(agent, order)| agent.stay_down(order, limit))).await?;
    let captured = |state: &AgentState| {
        let part = state.capture.as_ref().filter(|part| part.generation == generation);
        part.is_some_and(|part| part.state == PartState::Captured)
    };
    try_join_all(agents.iter().map(|agent| agent.until("capture", captured))).await?;
    Ok(())
}

/// Counters and nonces of all, once each has counted so far.
pub async fn reached(agents: &[Agent], number: u64, limit: Duration) -> Result<Vec<(u64, String)>> {
    try_join_all(agents.iter().map(|agent| agent.counts_to(number, limit))).await
}

/// Ends a process at once.
pub fn kill(pid: u32) -> Result<()> {
    ensure!(Command::new("kill").args(["-KILL", &pid.to_string()]).status()?.success(), "{pid} was not killed");
    Ok(())
}

/// A member's agent.
pub struct Agent {
    /// As the operator speaks to it.
    pub operator: Arc<AgentHttp>,
    /// As kget does.
    pub kget: Arc<AgentHttp>,
    /// Its first process.
    pub fence: Process,
    /// Who holds its lease.
    pub holder: Process,
    /// Name of the slot.
    pub slot: String,
    /// Where the VM's files are.
    pub vm: PathBuf,
    /// Its member.
    pub member: u32,
    /// What its orders are given with.
    pub authority: Authority,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // as the kubelet does with the pod's directories
        let _ = self.fence.0.kill().and_then(|()| self.fence.0.wait());
        let _ = std::fs::remove_dir_all(&self.vm);
    }
}

impl Agent {
    /// The order to capture a generation.
    pub fn order(&self, generation: Generation, resume: bool) -> CaptureOrder {
        CaptureOrder { authority: self.authority, generation, nonce: nonce(generation), resume }
    }

    /// Waits until it says so.
    pub async fn until(&self, what: &str, so: impl Fn(&AgentState) -> bool) -> Result<AgentState> {
        self.within(LIMIT, what, so).await
    }

    /// The same, with another limit.
    pub async fn within(&self, limit: Duration, what: &str, so: impl Fn(&AgentState) -> bool) -> Result<AgentState> {
        let mut last = String::new();
        let waited = tokio::time::timeout(limit, async {
            loop {
                if let Ok(mut states) = self.kget.watch().await {
                    while let Some(state) = states.next().await {
                        if so(&state) {
                            return state;
                        }
                        last = format!("{state:?}");
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        waited.await.ok().with_context(|| format!("member {}: not within {limit:?}: {what}; last: {last}", self.member))
    }

    /// The number and the nonce that its command prints in each line.
    pub fn counter(state: &AgentState) -> Option<(u64, String)> {
        let (number, nonce) = state.guest.last_line.as_deref()?.split_once(' ')?;
        Some((number.parse().ok()?, nonce.into()))
    }

    /// Waits until its command has counted so far.
    pub async fn counts_to(&self, number: u64, limit: Duration) -> Result<(u64, String)> {
        let what = format!("counting to {number}");
        let so = |state: &AgentState| {
            state.guest.exit_code.is_some() || Self::counter(state).is_some_and(|(now, _)| now >= number)
        };
        let state = self.within(limit, &what, so).await?;
        ensure!(state.guest.exit_code.is_none(), "the command of member {} has ended: {:?}", self.member, state.guest);
        Self::counter(&state).context("nothing is counted")
    }

    /// Bytes of its command's output that have reached the node.
    pub fn printed(&self) -> u64 {
        std::fs::metadata(self.vm.join("output")).map_or(0, |found| found.len())
    }

    /// Waits until there are more of them: what the agent says of them is seen with its next heartbeat only.
    pub async fn prints(&self, before: u64, limit: Duration) -> Result<()> {
        let printed = async {
            while self.printed() <= before {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(limit, printed).await.context("nothing is printed")
    }

    /// Lets its guest run, which was loaded.
    pub async fn go(&self) -> Result<()> {
        self.until("loading", |state| state.vm == VmState::Loaded).await?;
        Ok(self.operator.go(self.authority).await?)
    }

    /// Its QEMU, if that is there.
    pub fn qemu(&self) -> Result<Option<u32>> {
        let (guest, own) = (format!("guest=job-{}", self.member), self.vm.to_string_lossy().into_owned());
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            if line.contains(&guest) && line.contains(&own) {
                return Ok(entry.file_name().to_str().and_then(|pid| pid.parse().ok()));
            }
        }
        Ok(None)
    }

    /// The agent's own processes: fence and supervisor.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let own = self.vm.to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&str> = line.split('\0').collect();
            let ours = words.get(1) == Some(&"agent") && words.contains(&own.as_str());
            found.extend(entry.file_name().to_str().filter(|_| ours).and_then(|pid| pid.parse::<u32>().ok()));
        }
        ensure!(!found.is_empty(), "the agent of member {} has no process", self.member);
        Ok(found)
    }

    /// Ends its QEMU at once, as `kill -9` does.
    pub fn kill_qemu(&self) -> Result<()> {
        let pid = self.qemu()?.with_context(|| format!("member {} has no QEMU", self.member))?;
        kill(pid)
    }

    /// Waits until its QEMU is gone.
    pub async fn gone(&self, limit: Duration) -> Result<()> {
        until("the end of QEMU", limit, async || Ok(self.qemu()?.is_none().then_some(()))).await
    }
}
