use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
};

use rstest::rstest;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const NAME: &str = "3f2b8a10-77";

struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(root)
    }

    /// As a node leaves it that crashes, so long ago.
    fn lease(&self, name: &str, age: Duration) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir(&path).unwrap();
        for (file, text) in [("nonce", "ab\n"), (LOCK, "77 ab 0000000012\n"), ("notice", "77\n")] {
            fs::write(path.join(file), text).unwrap();
            written(&path.join(file), age);
        }
        written(&path, age);
        path
    }

    fn remove(&self) -> Vec<String> {
        super::remove(self.0.path(), "3f2b8a10-99", SystemTime::now()).unwrap()
    }
}

fn written(path: &Path, age: Duration) {
    File::open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
}

#[test]
fn a_lease_that_a_crash_left_is_removed_after_a_day() {
    let root = Root::new();
    root.lease(NAME, 25 * HOUR);
    root.lease("3f2b8a10-78", 23 * HOUR);
    root.lease("3f2b8a10-99", 25 * HOUR);
    let mut made = root.lease(&format!(".{}", "ab".repeat(16)), 25 * HOUR);
    assert_eq!(root.remove().len(), 2);
    assert!(!made.exists());
    made.set_file_name(NAME);
    assert!(!made.exists());
    for stays in ["3f2b8a10-78", "3f2b8a10-99"] {
        assert!(root.0.path().join(stays).join("nonce").exists(), "{stays}");
    }
}

#[test]
fn a2_a_lease_that_is_locked_stays_however_old_it_is() {
    let root = Root::new();
    let path = root.lease(NAME, 1000 * HOUR);
    let holder = File::open(path.join(LOCK)).unwrap();
    rustix::fs::flock(&holder, FlockOperation::LockExclusive).unwrap();
    assert_eq!(root.remove(), [] as [&str; 0]);
    assert!(path.join("nonce").exists() && path.join("notice").exists());
    drop(holder);
    let removed = crate::lock::in_a_moment(|| Some(root.remove()).filter(|removed| !removed.is_empty()));
    assert_eq!(removed.unwrap(), [NAME]);
}

#[rstest]
#[case::a_beat(LOCK)]
#[case::another_agent("nonce")]
fn a_lease_that_was_written_to_stays(#[case] file: &str) {
    let root = Root::new();
    let path = root.lease(NAME, 25 * HOUR);
    written(&path.join(file), 23 * HOUR);
    assert_eq!(root.remove(), [] as [&str; 0]);
    assert!(path.join("nonce").exists());
    written(&path.join(file), 25 * HOUR);
    written(&path, 23 * HOUR);
    assert_eq!(root.remove(), [] as [&str; 0]);
}

#[test]
fn a5_no_link_is_followed() {
    let root = Root::new();
    let outside = tempfile::tempdir().unwrap();
    let precious = outside.path().join("3f2b8a10-1");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join(LOCK), "x").unwrap();
    written(&precious.join(LOCK), 25 * HOUR);
    written(&precious, 25 * HOUR);
    symlink(&precious, root.0.path().join("3f2b8a10-2")).unwrap();
    let path = root.lease(NAME, 25 * HOUR);
    fs::remove_file(path.join(LOCK)).unwrap();
    symlink(precious.join(LOCK), path.join(LOCK)).unwrap();
    written(&path, 25 * HOUR);
    // a link has a time of its own, and this one is new
    assert_eq!(root.remove(), [] as [&str; 0]);
    let later = SystemTime::now() + 25 * HOUR;
    assert_eq!(super::remove(root.0.path(), "none", later).unwrap(), [NAME]);
    assert!(precious.join(LOCK).exists());
    assert!(root.0.path().join("3f2b8a10-2").is_symlink());
}

#[test]
fn what_is_no_lease_stays() {
    let root = Root::new();
    for name in ["images", "lost+found", "3f2b8a10", "3f2b8a1g-7", "3f2b8a10-7x", ".abc"] {
        root.lease(name, 25 * HOUR);
    }
    let full = root.lease(NAME, 25 * HOUR);
    fs::create_dir(full.join("directory")).unwrap();
    written(&full.join("directory"), 25 * HOUR);
    written(&full, 25 * HOUR);
    let later = SystemTime::now() + 25 * HOUR;
    assert_eq!(super::remove(root.0.path(), "none", later).unwrap(), [] as [&str; 0]);
    assert!(full.join("nonce").exists() && root.0.path().join("images/nonce").exists());
}

#[test]
fn ways_of_images_go_with_the_lease_unless_something_is_in_use_or_strange_there() {
    let root = Root::new();
    let with_way = |inside: &dyn Fn(PathBuf)| {
        let path = root.lease(NAME, 25 * HOUR);
        let way = path.join("in-0123456789abcdef");
        fs::create_dir(&way).unwrap();
        fs::write(way.join("0"), "a piece").unwrap();
        written(&way.join("0"), 25 * HOUR);
        inside(way.clone());
        written(&way, 25 * HOUR);
        written(&path, 25 * HOUR);
        let removed = root.remove();
        let _ = fs::remove_dir_all(path);
        removed
    };
    assert_eq!(with_way(&|_| ()), [NAME]);
    assert_eq!(with_way(&|way| written(&way.join("0"), HOUR)), [] as [&str; 0]);
    let deep = |way: PathBuf| {
        fs::create_dir(way.join("in-1")).unwrap();
        written(&way.join("in-1"), 25 * HOUR);
    };
    assert_eq!(with_way(&deep), [] as [&str; 0]);
}

#[test]
fn a_name_of_a_lease_is_recognised() {
    let name = crate::names::lease_directory(&"3f2b8a10-aaaa-bbbb".into(), &crate::names::SlotId("77".into()));
    assert!(is_of_lease(&name), "{name}");
}
