//! A guest that should run and does not, whatever stopped it: an event that was missed, an error of the
//! processor's virtualisation, something in QEMU. It is let run, and lost if that does not help; it is
//! not left paused (safety B3).

use std::{sync::Arc, time::Duration};

use super::Supervisor;
use crate::driver::{agent::VmState, qemu::capture};

/// How often QEMU is asked.
const PACE: Duration = Duration::from_secs(5);
/// A guest that cannot be made to run for this long is lost.
const PATIENCE: Duration = Duration::from_secs(60);

impl Supervisor {
    /// Sees to it that the guest runs whenever no capture holds it.
    pub(super) async fn keep_running(self: Arc<Self>) {
        self.keep_running_at(PACE, PATIENCE).await;
    }

    async fn keep_running_at(&self, pace: Duration, patience: Duration) {
        // looks, and not time: neither a node that stood still itself nor a VM that somebody held says anything of it
        let (patience, mut in_vain) = (patience.as_millis() / pace.as_millis().max(1), 0);
        loop {
            tokio::time::sleep(pace).await;
            // whoever holds the VM now may have stopped the guest, and lets it run
            let Ok(vm) = self.vm.try_lock() else {
                in_vain = 0;
                continue;
            };
            let Some(vm) = vm.as_ref() else { return };
            let wanted = self.view.read(|facts| facts.vm == VmState::Running && !facts.barrier.holds_guest());
            // a QEMU that does not answer has ended, or is found out by those who need it
            let status = if wanted { capture::status(&vm.qmp).await.ok() } else { None };
            let Some(status) = status.filter(|status| status != "running") else {
                in_vain = 0;
                continue;
            };
            if in_vain >= patience {
                return self.lose_vm(&format!("its guest stands still and cannot be resumed: QEMU says {status}"));
            }
            if in_vain > 0 {
                tracing::warn!(status, "the guest stands still, and no capture holds it");
                // seen at the next look
                let _ = capture::resume(&vm.qmp).await;
            }
            in_vain += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{double::Double, testing::Making},
        *,
    };

    const QUICK: Duration = Duration::from_millis(50);

    /// A guest that somebody else stops.
    async fn stopped_guest(stuck: bool) -> (Arc<Supervisor>, Double, tempfile::TempDir) {
        let root = tempfile::tempdir().unwrap();
        let supervisor = Making::below(root.path()).make();
        let qemu = Double::default();
        qemu.run_in(&supervisor, 1).await;
        (qemu.lock().paused, qemu.lock().stuck) = (true, stuck);
        let own = supervisor.clone();
        tokio::spawn(async move { own.keep_running_at(QUICK, 10 * QUICK).await });
        (supervisor, qemu, root)
    }

    async fn until(so: impl Fn() -> bool) {
        let wait = async {
            while !so() {
                tokio::time::sleep(QUICK).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
    }

    #[tokio::test]
    async fn b3_a_guest_that_nobody_holds_is_let_run() {
        let (supervisor, qemu, _root) = stopped_guest(false).await;
        until(|| !qemu.lock().paused).await;
        // and one that a capture holds is left alone; whoever stops a guest holds the VM, at which nobody looks then
        {
            let _held = supervisor.vm.lock().await;
            supervisor.view.change(|facts| facts.set_vm(VmState::Stopped));
            qemu.lock().paused = true;
        }
        tokio::time::sleep(20 * QUICK).await;
        assert!(qemu.lock().paused && !supervisor.stop.is_cancelled());
    }

    #[tokio::test]
    async fn b3_a_guest_that_cannot_be_resumed_is_lost() {
        let (supervisor, _qemu, _root) = stopped_guest(true).await;
        until(|| supervisor.stop.is_cancelled()).await;
        let VmState::Gone { reason, .. } = supervisor.view.render().vm else { panic!() };
        assert!(reason.contains("QEMU says paused"), "{reason}");
    }
}
