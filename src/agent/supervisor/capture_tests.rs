//! What becomes of a guest when a step of a capture goes wrong: it runs, or it is gone; it is never
//! left paused (safety B3).

use super::{
    super::{
        double::{Double, Fault},
        orders::Orders,
        testing::{FileStore, Small, config},
    },
    *,
};
use crate::{
    clock::Clock,
    driver::agent::{Authority, NodeAgent as _},
};

struct Node {
    supervisor: Arc<Supervisor>,
    orders: Orders,
    qemu: Double,
    _root: tempfile::TempDir,
}

impl Node {
    async fn new(overlays: u32) -> Self {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths { vm: root.path().join("vm"), cache: root.path().join("cache") };
        Self::at(root, paths, overlays).await
    }

    async fn at(root: tempfile::TempDir, paths: Paths, overlays: u32) -> Self {
        Self::with(root, paths, overlays, Double::default()).await
    }

    async fn with(root: tempfile::TempDir, paths: Paths, overlays: u32, qemu: Double) -> Self {
        let store = Arc::new(FileStore::new(&root.path().join("store")));
        let supervisor =
            Supervisor::new(config(root.path()), paths, store, None, Arc::default(), Clock::system(), None);
        qemu.run_in(&supervisor, overlays).await;
        Self { orders: Orders(supervisor.clone()), supervisor, qemu, _root: root }
    }

    fn vm(&self) -> VmState {
        self.supervisor.view.render().vm
    }

    fn part(&self) -> PartState {
        self.supervisor.view.render().capture.unwrap().state
    }

    fn runs(&self) {
        assert_eq!(self.vm(), VmState::Running);
        assert!(!self.qemu.lock().paused, "shown as running, and paused");
    }

    fn lost(&self) {
        assert!(matches!(self.vm(), VmState::Gone { .. }), "{:?}", self.vm());
        assert!(self.supervisor.stop.is_cancelled(), "its QEMU goes on");
    }

    fn void(&self) {
        assert!(matches!(self.part(), PartState::Abandoned { .. }), "{:?}", self.part());
    }

    async fn until(&self, so: impl Fn(&PartState) -> bool) {
        let wait = async {
            while !so(&self.part()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap();
    }

    /// Prepares, stops and cuts.
    async fn cut(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.orders.prepare(order).await?;
        self.stop_and_cut(order).await
    }

    async fn stop_and_cut(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.orders.stop(order).await?;
        self.orders.cut(order).await
    }
}

fn order(generation: Generation, resume: bool) -> CaptureOrder {
    let authority = Authority { epoch: 1, incarnation: 1 };
    CaptureOrder { authority, generation, nonce: format!("n{generation}"), resume }
}

async fn stop_that_fails(fault: Fault) -> Node {
    let node = Node::new(1).await;
    node.qemu.lock().faults.insert("stop", fault);
    node.orders.prepare(&order(1, true)).await.unwrap();
    assert!(node.orders.stop(&order(1, true)).await.is_err());
    assert!(node.qemu.was_told("stop"));
    node.void();
    node
}

#[tokio::test]
async fn b3_a_guest_whose_stop_is_answered_late_runs_on() {
    let node = stop_that_fails(Fault::Late(Duration::from_secs(3))).await;
    node.runs();
    node.qemu.lock().faults.clear();
    node.cut(&order(2, true)).await.unwrap();
    node.until(|part| *part == PartState::Captured).await;
    node.runs();
}

#[tokio::test]
async fn b3_a_guest_whose_stop_is_never_answered_is_lost() {
    stop_that_fails(Fault::Never).await.lost();
}

#[tokio::test]
async fn b3_a_guest_whose_connection_breaks_at_its_stop_is_lost() {
    stop_that_fails(Fault::Broken).await.lost();
}

#[tokio::test]
async fn b3_a_guest_whose_stop_is_refused_runs_on() {
    stop_that_fails(Fault::Refused).await.runs();
}

#[tokio::test]
async fn b3_a_guest_that_cannot_be_resumed_after_an_abandon_is_lost() {
    let node = Node::new(1).await;
    node.qemu.lock().faults.insert("cont", Fault::Broken);
    node.orders.prepare(&order(1, true)).await.unwrap();
    node.orders.stop(&order(1, true)).await.unwrap();
    assert!(node.orders.abandon(&order(1, true)).await.is_err());
    node.lost();
}

#[tokio::test]
async fn b3_a_final_capture_that_its_disk_does_not_take_is_void_and_the_guest_runs_on() {
    let node = Node::new(1).await;
    node.qemu.lock().disk_hangs = true;
    node.supervisor.vm.lock().await.as_mut().unwrap().patience = Duration::from_millis(300);
    node.cut(&order(1, false)).await.unwrap();
    assert_eq!(node.vm(), VmState::Stopped);
    node.until(|part| matches!(part, PartState::Abandoned { .. })).await;
    drop(node.supervisor.vm.lock().await);
    node.runs();
    let told = node.qemu.lock().told.clone();
    let at = |command: &str| told.iter().rposition(|told| told == command).unwrap();
    assert!(at("migrate_cancel") < at("cont"), "resumed while its memory was written");
    // a word that comes late changes nothing
    assert!(node.orders.stay_down(&order(1, false), Duration::from_secs(9)).await.is_err());
    assert!(node.supervisor.view.render().earlier.is_empty());
}

#[tokio::test]
async fn b3_a_final_capture_whose_writing_cannot_be_ended_loses_the_guest() {
    let node = Node::new(1).await;
    node.qemu.lock().disk_hangs = true;
    node.qemu.lock().cannot_cancel = true;
    node.supervisor.vm.lock().await.as_mut().unwrap().patience = Duration::from_millis(300);
    node.cut(&order(1, false)).await.unwrap();
    node.until(|part| matches!(part, PartState::Abandoned { .. })).await;
    node.lost();
}

#[tokio::test]
async fn b3_a_background_capture_that_its_disk_does_not_take_loses_the_guest() {
    let node = Node::new(1).await;
    node.qemu.lock().disk_hangs = true;
    node.supervisor.vm.lock().await.as_mut().unwrap().patience = Duration::from_millis(300);
    node.cut(&order(1, true)).await.unwrap();
    node.until(|part| matches!(part, PartState::Abandoned { .. })).await;
    node.lost();
}

/// Generation 1 was given up while it was being written, and ends only when 2 holds the guest.
#[tokio::test]
async fn b2_an_abandoned_capture_that_ends_late_leaves_the_next_alone() {
    let node = Node::new(1).await;
    node.qemu.lock().disk_hangs = true;
    node.cut(&order(1, true)).await.unwrap();
    node.orders.abandon(&order(1, true)).await.unwrap();
    node.orders.prepare(&order(2, false)).await.unwrap();
    node.orders.stop(&order(2, false)).await.unwrap();
    node.qemu.end_writing();
    let ended = async {
        while node.supervisor.paths.generation(1).exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("what is void is removed");
    {
        let vm = node.supervisor.vm.lock().await;
        let vm = vm.as_ref().unwrap();
        assert!(vm.captured.is_empty() && vm.gate.is_some() && vm.prepared.is_some());
    }
    assert_eq!((node.part(), node.vm()), (PartState::Stopped, VmState::Stopped));
    assert!(node.qemu.lock().paused, "the guest ran on before its cut");
    node.qemu.lock().disk_hangs = true;
    node.orders.cut(&order(2, false)).await.unwrap();
    // the first one's end is told once more, and books nothing
    let cut = Cut {
        generation: 1,
        mechanism: Mechanism::Background,
        resume: true,
        frozen: node.supervisor.paths.overlay(0),
        output_bytes: 0,
        started: true,
        ran: 1.0,
        memory_limit: Duration::from_secs(1),
        files_limit: Duration::from_secs(1),
    };
    node.supervisor.captured(node.supervisor.vm.lock().await.as_mut().unwrap(), cut, 9).await;
    assert_eq!(node.part(), PartState::Writing);
    assert!(node.supervisor.view.render().earlier.is_empty());
    node.qemu.end_writing();
    node.until(|part| *part == PartState::Captured).await;
    assert_eq!(node.supervisor.view.render().capture.unwrap().generation, 2);
    assert!(node.qemu.lock().paused);
}

/// A node that cannot write memory behind a running guest, which takes a while to write.
async fn without_background() -> Node {
    let node = Node::new(1).await;
    (node.qemu.lock().no_background, node.qemu.lock().disk_hangs) = (true, true);
    // a real qemu-img makes the overlay
    node.orders.prepare(&order(1, true)).await.unwrap();
    let cut = tokio::time::timeout(Duration::from_secs(5), node.stop_and_cut(&order(1, true))).await;
    cut.expect("the coordinator does not wait that long").unwrap();
    assert_eq!((node.part(), node.vm()), (PartState::Writing, VmState::Stopped));
    node
}

#[tokio::test]
async fn a_guest_that_stands_still_for_its_memory_runs_on_once_it_is_written() {
    let node = without_background().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.supervisor.tick().await;
    assert_eq!((node.part(), node.vm()), (PartState::Writing, VmState::Stopped));
    node.qemu.end_writing();
    node.until(|part| *part == PartState::Captured).await;
    node.runs();
    assert!(node.supervisor.view.render().capture.unwrap().pause_ms.unwrap() >= 300);
}

#[tokio::test]
async fn b3_a_guest_whose_memory_is_written_too_slowly_runs_on_without_a_capture() {
    let node = Node::new(1).await;
    (node.qemu.lock().no_background, node.qemu.lock().disk_hangs) = (true, true);
    node.supervisor.vm.lock().await.as_mut().unwrap().patience = Duration::from_millis(300);
    node.cut(&order(1, true)).await.unwrap();
    node.until(|part| matches!(part, PartState::Abandoned { .. })).await;
    drop(node.supervisor.vm.lock().await);
    node.runs();
    assert!(node.qemu.was_told("migrate_cancel"));
}

#[tokio::test]
async fn b3_an_abandoned_capture_of_a_guest_that_stands_still_lets_it_run() {
    let node = without_background().await;
    let given_up = tokio::time::timeout(Duration::from_secs(5), node.orders.abandon(&order(1, true))).await;
    given_up.expect("it waits for the disk").unwrap();
    node.void();
    node.qemu.end_writing();
    let running = async {
        while node.vm() != VmState::Running || node.supervisor.paths.generation(1).exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), running).await.unwrap();
    node.runs();
    node.void();
}

#[tokio::test]
async fn b3_a_guest_whose_output_waits_for_the_disk_does_not_stand_still_for_it() {
    let root = tempfile::tempdir().unwrap();
    let paths = Paths { vm: root.path().join("vm"), cache: root.path().join("cache") };
    std::fs::create_dir_all(&paths.vm).unwrap();
    std::os::unix::fs::symlink("/dev/full", paths.output()).unwrap();
    let qemu = Double::default();
    qemu.lock().prints = b"a line\n".to_vec();
    let node = Node::with(root, paths, 1, qemu).await;
    node.orders.prepare(&order(1, true)).await.unwrap();
    let stopped = tokio::time::timeout(Duration::from_secs(10), node.orders.stop(&order(1, true))).await;
    assert!(stopped.expect("it stands still for ever").is_err());
    node.void();
    node.runs();
}

#[ignore = "mounts a small disk, as root: e2e/test --e2e"]
#[tokio::test]
async fn a_capture_takes_the_room_of_images_that_nobody_uses() {
    let root = tempfile::tempdir().unwrap();
    let small = Small::mount(root.path().join("disk"), "100m");
    let paths = Paths { vm: small.0.join("vm"), cache: small.0.join("cache") };
    std::fs::create_dir_all(&paths.cache).unwrap();
    let unused = paths.cache.join(format!("sha256-{}", "0".repeat(64)));
    std::fs::write(&unused, vec![1; 50 << 20]).unwrap();
    let node = Node::at(root, paths, 1).await;
    node.cut(&order(1, true)).await.unwrap();
    assert!(!unused.exists());
    node.until(|part| *part == PartState::Captured).await;
    drop(node);
    drop(small);
}

#[tokio::test]
async fn a_notice_does_not_wait_for_a_merge_of_overlays() {
    let node = Node::new(4).await;
    node.cut(&order(1, true)).await.unwrap();
    // the merge that follows does not end by itself
    node.qemu.lock().disk_hangs = true;
    while !node.qemu.was_told("block-commit") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let last = order(2, false);
    let prepared = tokio::time::timeout(Duration::from_secs(5), node.orders.prepare(&last)).await;
    prepared.expect("the merge is waited for").unwrap();
    assert!(node.qemu.was_told("block-job-cancel"));
    node.qemu.lock().disk_hangs = false;
    node.orders.stop(&last).await.unwrap();
    node.orders.cut(&last).await.unwrap();
    node.until(|part| *part == PartState::Captured).await;
    assert_eq!(node.vm(), VmState::Stopped);
}
