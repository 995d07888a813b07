use std::{os::unix::fs::symlink, time::Duration};

use super::*;

fn config(root: &Path) -> LeaseConfig {
    LeaseConfig {
        root: root.to_string_lossy().into(),
        directory: "3f2b8a10-77".into(),
        owner: rustix::process::geteuid().as_raw(),
        arm_within: Duration::from_secs(1),
        beat_limit: Duration::from_secs(1),
    }
}

fn line(slot: &str, nonce: &str, beat: u64) -> String {
    format!("{slot} {nonce} {beat:010}\n")
}

#[test]
fn lines_of_the_holder() {
    let whole = Line { slot: "77".into(), nonce: "ab".into(), beat: 12 };
    assert_eq!(parse(line("77", "ab", 12).as_bytes()), Some(whole));
    for half in
        ["", "77", "77 ab 00000000", "77 ab 0000000012", "77 ab 0000000012 x\n", "77 ab 000000001x\n", "\u{fffd}\n"]
    {
        assert_eq!(parse(half.as_bytes()), None, "{half:?}");
    }
}

#[test]
fn a5_the_beat_counts_only_with_our_slot_and_nonce() {
    let dir = tempfile::tempdir().unwrap();
    let lease = Lease::make(&config(dir.path()), "77").unwrap();
    let nonce = std::fs::read_to_string(dir.path().join("3f2b8a10-77/nonce")).unwrap();
    let path = dir.path().join("3f2b8a10-77/lock");
    assert!(lease.lock().unwrap().is_none());
    std::fs::write(&path, line("77", "another", 5)).unwrap();
    let lock = lease.lock().unwrap().unwrap();
    assert_eq!(lock.beat(), None);
    std::fs::write(&path, line("78", nonce.trim(), 5)).unwrap();
    assert_eq!(lock.beat(), None);
    std::fs::write(&path, line("77", nonce.trim(), 5)).unwrap();
    assert_eq!(lock.beat(), Some(5));
}

#[test]
fn a5_links_and_foreign_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let lease = Lease::make(&config(dir.path()), "77").unwrap();
    let own = dir.path().join("3f2b8a10-77");
    std::fs::write(dir.path().join("elsewhere"), "x").unwrap();
    symlink(dir.path().join("elsewhere"), own.join("lock")).unwrap();
    assert!(matches!(lease.lock(), Err(LeaseError::Refused(_))));
    std::fs::remove_file(own.join("lock")).unwrap();
    std::fs::create_dir(own.join("lock")).unwrap();
    assert!(matches!(lease.lock(), Err(LeaseError::Refused(_))));
    // a name that exists is replaced, not written through
    symlink(dir.path().join("elsewhere"), own.join("release")).unwrap();
    lease.release("done").unwrap();
    assert_eq!(std::fs::read_to_string(dir.path().join("elsewhere")).unwrap(), "x");
    assert_eq!(std::fs::read_to_string(own.join("release")).unwrap(), "done\n");
}

#[test]
fn a5_a_directory_that_is_a_link_or_open_to_others_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
    symlink("elsewhere", dir.path().join("3f2b8a10-77")).unwrap();
    assert!(Lease::make(&config(dir.path()), "77").is_err());
    std::fs::remove_file(dir.path().join("3f2b8a10-77")).unwrap();
    std::fs::create_dir(dir.path().join("3f2b8a10-77")).unwrap();
    assert!(matches!(Lease::make(&config(dir.path()), "77"), Err(LeaseError::Refused(_))), "it is open to others");
    assert!(check_file_system(0x6969).is_err(), "NFS");
    let outside = LeaseConfig { directory: "../x".into(), ..config(dir.path()) };
    assert!(Lease::make(&outside, "77").is_err());
}

#[test]
fn a_later_agent_of_the_slot_gets_a_nonce_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let first = Lease::make(&config(dir.path()), "77").unwrap();
    let second = Lease::make(&config(dir.path()), "77").unwrap();
    assert_ne!(first.nonce, second.nonce);
    let nonce = std::fs::read_to_string(dir.path().join("3f2b8a10-77/nonce")).unwrap();
    assert_eq!(nonce.trim(), second.nonce);
    first.release("saved").unwrap();
    assert!(Lease::make(&config(dir.path()), "77").is_err(), "given back is given back");
    first.remove();
    assert!(!dir.path().join("3f2b8a10-77").exists());
}

#[test]
fn an_agent_is_known_to_live_by_a_lock_that_the_user_can_try() {
    let dir = tempfile::tempdir().unwrap();
    let free = || {
        let presence = File::open(dir.path().join("3f2b8a10-77/agent")).unwrap();
        rustix::fs::flock(&presence, FlockOperation::NonBlockingLockShared).is_ok()
    };
    let first = Lease::make(&config(dir.path()), "77").unwrap();
    assert!(!free());
    let second = Lease::make(&config(dir.path()), "77").unwrap();
    drop(first);
    assert!(!free(), "the one that follows lives");
    drop(second);
    assert!(crate::lock::in_a_moment(|| free().then_some(())).is_some());
}

#[test]
fn a2_a_beat_must_rise() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut beat = Beat::new(start);
    beat.see(Some(5), at(1));
    beat.see(Some(5), at(2));
    beat.see(None, at(3));
    beat.see(Some(4), at(4));
    assert_eq!(beat.risen, start);
    beat.see(Some(6), at(5));
    assert_eq!(beat.risen, at(5));
    beat.see(Some(6), at(9));
    assert_eq!(beat.risen, at(5));
}

#[test]
fn a_lease_is_removed_with_the_ways_of_images_and_a5_nothing_behind_links() {
    let dir = tempfile::tempdir().unwrap();
    let lease = Lease::make(&config(dir.path()), "77").unwrap();
    let (own, outside) = (dir.path().join("3f2b8a10-77"), tempfile::tempdir().unwrap());
    std::fs::write(outside.path().join("0"), "precious").unwrap();
    std::fs::create_dir(own.join("in-1")).unwrap();
    std::fs::write(own.join("in-1/0"), "a piece").unwrap();
    symlink(outside.path(), own.join("out-1")).unwrap();
    symlink(outside.path().join("0"), own.join("in-1/1")).unwrap();
    lease.close_passages();
    assert!(!own.join("in-1").exists() && !own.join("out-1").is_symlink() && own.join("nonce").exists());
    lease.remove();
    assert!(!own.exists());
    assert_eq!(std::fs::read_to_string(outside.path().join("0")).unwrap(), "precious");
}
