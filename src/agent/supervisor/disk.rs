//! A disk of the node that takes no more data. QEMU stops the guest for it and would let it stand
//! for ever; here it is tried again, and lost if that does not help.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{Supervisor, problems::Problem};
use crate::driver::qemu::{
    capture,
    qmp::{Event, Qmp},
};

/// Between two attempts.
const PACE: Duration = Duration::from_secs(2);
/// A guest that was let run and runs on after this time has got its data to the disk.
const PROOF: Duration = Duration::from_millis(500);
/// A disk that fails for this long is not waited for.
const PATIENCE: Duration = Duration::from_secs(30);

impl Supervisor {
    /// Sees to it that no guest stands still because of its disk (safety B3).
    pub(super) async fn follow_disk(self: Arc<Self>, qmp: Arc<Qmp>) {
        let mut events = qmp.events();
        // the channel must not outlive the VM's
        drop(qmp);
        loop {
            match events.recv().await {
                Ok(event) if event.name == "BLOCK_IO_ERROR" && event.data["action"] == "stop" => {
                    self.outlast(&event, &mut events).await;
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    async fn outlast(&self, event: &Event, events: &mut Receiver<Event>) {
        let why = event.data["reason"].as_str().unwrap_or("an error");
        self.problem(Problem::Disk, &format!("the guest stands still: its disk on the node takes no data: {why}"));
        self.make_room().await;
        let mut until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            tokio::time::sleep(PACE).await;
            if self.view.read(|facts| facts.barrier.holds_guest()) {
                // the capture lets it run, and what it has captured may be whole
                until = Instant::now() + PATIENCE;
                continue;
            }
            match self.try_again(events).await {
                Some(true) => {
                    self.problem_ends(&Problem::Disk);
                    return;
                }
                Some(false) => {}
                None => return,
            }
        }
        self.lose_vm(&format!("its disk on the node takes no data: {why}"));
    }

    /// Lets the guest run, and sees whether it does. None: there is no VM any more.
    async fn try_again(&self, events: &mut Receiver<Event>) -> Option<bool> {
        let vm = self.vm.lock().await;
        let vm = vm.as_ref()?;
        // a capture may have begun meanwhile
        if self.view.read(|facts| facts.barrier.holds_guest()) || capture::resume(&vm.qmp).await.is_err() {
            return Some(false);
        }
        // the failure was reported for each request that waited; one that comes from now on is another
        *events = events.resubscribe();
        tokio::time::sleep(PROOF).await;
        Some(capture::status(&vm.qmp).await.is_ok_and(|status| status == "running"))
    }
}
