//! The fence as a process of its own: each test starts this test program again as the fence
//! ([`as_fence`]), with a shell script as its supervisor and a thread as the holder.

use std::{
    path::PathBuf,
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::FlockOperation;

use super::*;
use crate::agent::supervisor::testing;

const ROOT: &str = "VMDEPLOY_TEST_FENCE_ROOT";
const SCRIPT: &str = "VMDEPLOY_TEST_FENCE_SCRIPT";
const BEAT_LIMIT: &str = "VMDEPLOY_TEST_FENCE_BEAT_LIMIT";
/// For so long a script that says that it is isolated may hear nobody.
const ISOLATION: Duration = Duration::from_secs(5);

/// Not a test: what the tests start. It ends at once when nobody has asked for it.
#[test]
fn as_fence() {
    let (Some(root), Ok(script)) = (std::env::var_os(ROOT), std::env::var(SCRIPT)) else { return };
    let root = PathBuf::from(root);
    let mut config = testing::config(&root);
    config.lease.beat_limit = Duration::from_secs(std::env::var(BEAT_LIMIT).unwrap().parse().unwrap());
    if script.contains("isolated") {
        config.isolation = ISOLATION;
    }
    let mut supervisor = Command::new("sh");
    supervisor.args(["-c", &script]).current_dir(&root);
    let result = run(&config, &root.join("vm"), supervisor);
    std::fs::write(root.join("result"), format!("{result:?}")).unwrap();
}

struct Fence {
    root: tempfile::TempDir,
    child: Child,
    holder: Arc<AtomicBool>,
    beating: Arc<AtomicBool>,
}

impl Fence {
    /// Its holder is a thread, which may stand still.
    fn start(script: &str) -> Self {
        Self::with_beat(script, 20)
    }

    /// Its lease is lost once the beat has stood still for so many seconds.
    fn with_beat(script: &str, limit: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "agent::fence::tests::as_fence", "--nocapture"])
            .env(ROOT, root.path())
            .env(SCRIPT, script)
            .env(BEAT_LIMIT, limit.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (holder, beating) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        Self { root, child, holder, beating }
    }

    fn lease(&self) -> PathBuf {
        self.root.path().join("leases/3f2b8a10-77")
    }

    /// What the hold does on a node: takes the lock, then writes the beat, until it is told to end.
    fn hold(&self) {
        let (lease, holder, beating) = (self.lease(), self.holder.clone(), self.beating.clone());
        std::thread::spawn(move || {
            while !lease.join("nonce").exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
            let lock = std::fs::OpenOptions::new().write(true).create_new(true).open(lease.join("lock")).unwrap();
            rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
            let mut beat = 0;
            while holder.load(Ordering::SeqCst) && !lease.join("release").exists() {
                beat += u64::from(beating.load(Ordering::SeqCst));
                let nonce = std::fs::read_to_string(lease.join("nonce")).unwrap_or_default();
                let line = format!("77 {} {beat:010}\n", nonce.trim());
                std::os::unix::fs::FileExt::write_all_at(&lock, line.as_bytes(), 0).unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
        });
    }

    #[expect(clippy::unused_self, reason = "reads as a sentence")]
    fn wait_for(&self, what: &str, so: impl Fn() -> bool) -> Duration {
        let begun = Instant::now();
        while !so() {
            assert!(begun.elapsed() < Duration::from_secs(60), "waiting for {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
        begun.elapsed()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// The process whose number a script wrote down.
    fn alive(&self, name: &str) -> bool {
        let pid = std::fs::read_to_string(self.file(name)).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    }

    fn result(&mut self) -> String {
        assert!(self.child.wait().unwrap().success());
        std::fs::read_to_string(self.file("result")).unwrap()
    }
}

/// A supervisor that does nothing before it is armed, then has a VM: a program in a session of its
/// own, like QEMU, and a file.
const SUPERVISOR: &str = "read word; echo $word > armed; dd if=/dev/zero of=vm/memory bs=1M count=1 2>/dev/null; \
    $PROGRAM & echo $! > vm-pid; echo > started; ";

fn with(program: &str, rest: &str) -> String {
    format!("PROGRAM='{program}'; {SUPERVISOR} {rest}")
}

#[test]
fn a4_armed_only_after_refused_lock() {
    let fence = Fence::start(&with("setsid sleep 1000", "wait"));
    fence.wait_for("the directory", || fence.lease().join("nonce").exists());
    // a line without a lock: written by somebody who holds nothing
    let nonce = std::fs::read_to_string(fence.lease().join("nonce")).unwrap();
    for beat in 1..6 {
        let line = format!("77 {} {beat:010}\n", nonce.trim());
        // the agent may have left already
        let _ = std::fs::write(fence.lease().join("lock"), line);
        std::thread::sleep(Duration::from_millis(150));
    }
    let mut fence = fence;
    assert!(fence.result().contains(&format!("{:?}", ExitCode::from(LOST))));
    assert!(!fence.file("armed").exists(), "it was armed without a lease");
}

#[test]
fn a4_a_line_for_an_earlier_agent_arms_nobody() {
    let mut fence = Fence::start(&with("setsid sleep 1000", "wait"));
    fence.wait_for("the directory", || fence.lease().join("nonce").exists());
    // the holder has not heard of its hold since this agent came
    let lock = std::fs::OpenOptions::new().write(true).create_new(true).open(fence.lease().join("lock")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    std::fs::write(fence.lease().join("lock"), format!("77 {:032x} {:010}\n", 5, 7)).unwrap();
    assert!(fence.result().contains(&format!("{:?}", ExitCode::from(LOST))));
    assert!(!fence.file("armed").exists(), "it was armed for another one's nonce");
}

#[test]
fn a4_not_armed_in_time_gives_the_slot_back() {
    let mut fence = Fence::start(&with("setsid sleep 1000", "wait"));
    assert!(fence.result().contains(&format!("{:?}", ExitCode::from(LOST))));
    assert!(!fence.file("armed").exists());
    assert_eq!(std::fs::read_to_string(fence.lease().join("release")).unwrap(), "lost\n");
}

#[test]
fn c4_an_agent_that_leaves_before_its_holder_comes_leaves_no_directory() {
    let mut fence = Fence::start("exit 10");
    assert!(fence.result().contains(&format!("{:?}", ExitCode::from(0))));
    assert!(!fence.lease().exists(), "the lease's directory stays");
}

#[test]
fn a6_a_lost_lock_kills_qemu_at_once_and_removes_its_files() {
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output().is_ok();
    let program = if qemu {
        "setsid qemu-system-x86_64 -accel tcg -m 256M -nodefaults -display none"
    } else {
        "setsid sleep 1000"
    };
    let mut fence = Fence::start(&with(program, "wait"));
    fence.hold();
    fence.wait_for("the VM", || fence.file("started").exists());
    assert_eq!(std::fs::read_to_string(fence.file("armed")).unwrap(), "held\n");
    std::thread::sleep(Duration::from_millis(300));
    assert!(fence.alive("vm-pid"));
    fence.holder.store(false, Ordering::SeqCst);
    fence.wait_for("the lock to drop", || {
        let lock = std::fs::File::open(fence.lease().join("lock"));
        lock.is_err() || rustix::fs::flock(lock.unwrap(), FlockOperation::NonBlockingLockShared).is_ok()
    });
    let fence_s = fence.wait_for("the VM's end", || !fence.alive("vm-pid"));
    eprintln!("fence_s: {:.3} (lock dropped to no process, QEMU: {qemu})", fence_s.as_secs_f64());
    assert!(fence_s < Duration::from_secs(20), "{fence_s:?}");
    assert!(fence.result().contains(&format!("{:?}", ExitCode::from(LOST))));
    assert!(!fence.file("vm/memory").exists());
    assert!(!fence.lease().exists(), "the lease's directory stays");
}

#[test]
fn a2_a_beat_that_stands_still_is_a_lost_lease() {
    let mut fence = Fence::with_beat(&with("setsid sleep 1000", "wait"), 3);
    fence.hold();
    fence.wait_for("the VM", || fence.file("started").exists());
    fence.beating.store(false, Ordering::SeqCst);
    let took = fence.wait_for("the VM's end", || !fence.alive("vm-pid"));
    assert!(took > Duration::from_secs(2) && took < Duration::from_secs(6), "{took:?}");
    assert!(fence.result().contains(&format!("{:?}", ExitCode::from(LOST))));
}

#[test]
fn a1_an_agent_that_hears_nobody_kills_its_vm() {
    let silent = "isolated=1; echo contact 0 >&0; echo > heard; wait";
    let mut fence = Fence::start(&with("setsid sleep 1000", silent));
    fence.hold();
    fence.wait_for("a contact", || fence.file("heard").exists());
    let took = fence.wait_for("the VM's end", || !fence.alive("vm-pid"));
    assert!(took < ISOLATION + Duration::from_secs(2), "{took:?}");
    // written before the contact: whatever stands still meanwhile makes this longer
    let started = std::fs::metadata(fence.file("started")).unwrap().modified().unwrap();
    let lived = started.elapsed().unwrap();
    assert!(lived + Duration::from_secs(1) > ISOLATION, "at once: {lived:?}");
    assert!(fence.result().contains(&format!("{:?}", ExitCode::from(LOST))));
}

#[test]
fn a1_an_agent_that_is_heard_goes_on() {
    // for longer than it may hear nobody
    let heard = "isolated=1; for i in 1 2 3 4 5 6 7; do echo contact 0 >&0; sleep 1; done; exit 11";
    let mut fence = Fence::start(&with("setsid sleep 1000", heard));
    fence.hold();
    assert!(fence.result().contains(&format!("{:?}", ExitCode::from(0))));
    assert!(!fence.lease().exists(), "given up, and the holder has seen it");
}

#[test]
fn a7_the_vm_does_not_outlive_its_supervisor() {
    let mut fence = Fence::start(&with("setsid sleep 1000", "kill -9 $$"));
    fence.hold();
    assert!(fence.result().contains(&format!("{:?}", ExitCode::from(1))));
    assert!(!fence.alive("vm-pid"));
    assert!(fence.lease().join("lock").exists(), "the slot is not given up by a crash");
}

#[test]
fn c5_a_lost_lease_is_not_taken_up_again() {
    let mut fence = Fence::with_beat(&with("setsid sleep 1000", "wait"), 3);
    fence.hold();
    fence.wait_for("the VM", || fence.file("started").exists());
    fence.beating.store(false, Ordering::SeqCst);
    fence.wait_for("the VM's end", || !fence.alive("vm-pid"));
    fence.beating.store(true, Ordering::SeqCst);
    assert!(fence.result().contains(&format!("{:?}", ExitCode::from(LOST))));
    assert!(!fence.file("vm/memory").exists());
}

#[test]
fn the_slot_is_kept_for_the_next_incarnation() {
    let mut fence = Fence::start(&with("setsid sleep 1000", "exit 12"));
    fence.hold();
    assert!(fence.result().contains(&format!("{:?}", ExitCode::from(0))));
    assert!(fence.lease().join("lock").exists());
    assert!(!fence.lease().join("release").exists());
    fence.holder.store(false, Ordering::SeqCst);
}

/// A supervisor that writes down what it is told, and saves and leaves when it is told once more.
const HEARS_NOTICE: &str = "read word; echo $word > noticed; read word; exit 11";

#[test]
fn a8_a_request_to_end_is_a_notice() {
    let mut fence = Fence::start(&with("setsid sleep 1000", HEARS_NOTICE));
    fence.hold();
    fence.wait_for("the VM", || fence.file("started").exists());
    let pid = rustix::process::Pid::from_child(&fence.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    fence
        .wait_for("the notice", || std::fs::read_to_string(fence.file("noticed")).is_ok_and(|told| told == "notice\n"));
    assert!(fence.alive("vm-pid"), "a request to end killed the VM");
    assert!(fence.child.try_wait().unwrap().is_none());
    // the supervisor saves and leaves; here, at a second request
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(fence.result().contains(&format!("{:?}", ExitCode::from(0))));
    assert!(!fence.alive("vm-pid"));
    assert!(!fence.lease().exists(), "the slot was given up as saved");
}

#[test]
fn the_holds_notice_is_told_once() {
    let mut fence = Fence::with_beat(&with("setsid sleep 1000", HEARS_NOTICE), 3);
    fence.hold();
    fence.wait_for("the VM", || fence.file("started").exists());
    assert!(!fence.file("noticed").exists());
    std::fs::write(fence.lease().join("notice"), "77\n").unwrap();
    fence
        .wait_for("the notice", || std::fs::read_to_string(fence.file("noticed")).is_ok_and(|told| told == "notice\n"));
    std::thread::sleep(PACE * 4);
    assert!(fence.alive("vm-pid"), "told twice: it has left");
    fence.beating.store(false, Ordering::SeqCst);
    assert!(fence.result().contains(&format!("{:?}", ExitCode::from(LOST))));
}
