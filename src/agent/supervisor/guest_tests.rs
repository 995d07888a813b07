//! A guest that does not answer.

use std::time::Instant;

use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::{
    super::{
        testing::{FileStore, config},
        vm::Paths,
    },
    *,
};
use crate::{
    clock::Clock,
    driver::{agent::VmState, guest::channel::Channel},
};

/// A guest's agent that answers only while `awake`.
async fn agent(theirs: tokio::net::UnixStream, awake: tokio::sync::watch::Receiver<bool>) {
    let (from, mut to) = theirs.into_split();
    let mut lines = BufReader::new(from).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let asked: serde_json::Value = serde_json::from_slice(line.strip_prefix(&[0xff]).unwrap_or(&line)).unwrap();
        if *awake.borrow() {
            let reply = serde_json::json!({ "return": asked["arguments"]["id"] });
            to.write_all(&[&[0xff], format!("{reply}\n").as_bytes()].concat()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_guest_that_never_answers_is_told_of_and_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let mut config = config(root.path());
    (config.run, config.guest_silence) = (None, Duration::from_secs(4));
    let paths = Paths { vm: root.path().join("vm"), cache: root.path().join("cache") };
    let store = Arc::new(FileStore::new(&root.path().join("store")));
    let supervisor = Supervisor::new(config, paths, store, Clock::system(), None);
    let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
    let (wake, awake) = tokio::sync::watch::channel(false);
    tokio::spawn(agent(theirs, awake));
    *supervisor.guest.lock().await = Some(Channel::over(ours));
    // time in which it stands still does not count
    supervisor.view.change(|facts| facts.set_vm(VmState::Stopped));
    tokio::spawn(supervisor.clone().follow_guest());
    let silent = || supervisor.view.render().guest.silent;
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(!silent());
    supervisor.view.change(|facts| facts.set_vm(VmState::Running));
    let begun = Instant::now();
    while !silent() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(begun.elapsed() >= Duration::from_secs(4));
    assert_eq!(supervisor.view.render().vm, VmState::Running);
    wake.send(true).unwrap();
    tokio::time::timeout(Duration::from_secs(20), supervisor.view.until(|facts| facts.guest.answers)).await.unwrap();
    assert!(!silent());
}
