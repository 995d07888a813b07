//! The controller of transfers, run by kget: captured generations leave the nodes and are published.
//!
//! One pass looks at all snapshots at once, because they share the way into the repository. It owns
//! `status.transfer` and the condition `Stored` of a snapshot, and nothing else (safety B14). It keeps
//! no truth: what is safe is in the repository, what is captured is with the agents; a new process
//! goes on from both.

pub mod act;
pub mod decide;
pub mod link;
pub mod memory;
pub mod observe;
pub mod status;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::{decide::Limit, memory::Memory};
use crate::{
    clock::Clock,
    driver::{
        agent::Agents,
        cluster::transfers::TransferBoard,
        repository::{PartLedger, Repository},
    },
    store::ticket::TicketKey,
};

/// Everything a pass may use.
pub struct Context {
    /// Of this leadership: agents obey the latest (safety A9).
    pub epoch: u64,
    /// The time.
    pub clock: Clock,
    /// Snapshots and jobs.
    pub board: Arc<dyn TransferBoard>,
    /// The agents.
    pub agents: Arc<dyn Agents>,
    /// The repository, to publish.
    pub repository: Arc<dyn Repository>,
    /// The repository, for parts.
    pub ledger: Arc<dyn PartLedger>,
    /// Signs the tickets.
    pub key: TicketKey,
    /// Told when a pass is due before its time.
    pub changed: Arc<Notify>,
    /// How fast agents may send.
    pub limit: Limit,
    /// Whether members that wait may give their bytes to others.
    pub collectors: bool,
    memory: Mutex<Memory>,
}

impl Context {
    /// With nothing remembered.
    #[expect(clippy::too_many_arguments, reason = "each is a different thing, and none has a default")]
    pub fn new(
        epoch: u64,
        clock: Clock,
        board: Arc<dyn TransferBoard>,
        agents: Arc<dyn Agents>,
        repository: Arc<dyn Repository>,
        ledger: Arc<dyn PartLedger>,
        key: TicketKey,
        changed: Arc<Notify>,
    ) -> Self {
        let (limit, memory) = (Limit::default(), Mutex::default());
        Self { epoch, clock, board, agents, repository, ledger, key, changed, limit, collectors: true, memory }
    }

    /// The same, with agents that send no faster.
    #[must_use]
    pub fn limited(self, limit: Limit) -> Self {
        Self { limit, ..self }
    }

    /// The same, in which all send to the repository themselves.
    #[must_use]
    pub fn without_collectors(self) -> Self {
        Self { collectors: false, ..self }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One pass. Returns when the next is due by itself; never if nothing is under way.
pub async fn pass(context: &Arc<Context>) -> Option<Duration> {
    let cases = observe::observe(context).await;
    let terms = observe::terms(context, &cases);
    let facts: Vec<decide::Case> = cases.iter().map(|(_, case)| case.clone()).collect();
    let plan = decide::decide(&facts, &terms, context.clock.now());
    act::act(&plan, &cases, context).await;
    plan.wake
}

/// Passes until `stop` is cancelled: when something changed, and when a pass asked for another.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    loop {
        let wake = pass(&context).await;
        let rest = async {
            match wake {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = context.changed.notified() => {}
            () = rest => {}
        }
    }
}

#[cfg(test)]
mod collect_tests;
#[cfg(test)]
mod tests;
