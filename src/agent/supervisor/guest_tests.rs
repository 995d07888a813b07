//! A guest that does not answer.

use std::time::Instant;

use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::{
    super::testing::{Making, config},
    *,
};
use crate::driver::{
    agent::VmState,
    guest::channel::Channel,
    repository::{
        Repository as _,
        fake::{FakeRepository, Trouble},
    },
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
    let supervisor = Making::below(root.path()).config(config).make();
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
        assert!(begun.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(begun.elapsed() >= Duration::from_secs(4));
    assert_eq!(supervisor.view.render().vm, VmState::Running);
    wake.send(true).unwrap();
    tokio::time::timeout(Duration::from_secs(60), supervisor.view.until(|facts| facts.guest.answers)).await.unwrap();
    assert!(!silent());
}

/// A supervisor whose repository is this one.
fn keeper(root: &std::path::Path, repository: &FakeRepository) -> Arc<Supervisor> {
    Making::below(root).store(Arc::new(repository.clone())).make()
}

#[tokio::test(start_paused = true)]
async fn an_output_that_cannot_be_read_on_is_given_up_and_told_of() {
    let (root, repository) = (tempfile::tempdir().unwrap(), FakeRepository::new());
    let supervisor = keeper(root.path(), &repository);
    // it opens, and fails as it is read
    tokio::time::timeout(Duration::from_secs(60), supervisor.keep("/data/result", root.path())).await.unwrap();
    let problem = supervisor.view.render().guest.problem.unwrap();
    for part in ["/data/result is not kept", "could not be read on the node", "directory"] {
        assert!(problem.contains(part), "{problem}");
    }
}

#[tokio::test(start_paused = true)]
async fn c2_an_output_waits_for_the_repository_however_long_that_takes() {
    let (root, repository) = (tempfile::tempdir().unwrap(), FakeRepository::new());
    let supervisor = keeper(root.path(), &repository);
    let file = root.path().join("result");
    std::fs::write(&file, b"42").unwrap();
    repository.set_trouble(Trouble::Unreachable);
    let own = supervisor.clone();
    let keeping = tokio::spawn(async move { own.keep("/data/result", &file).await });
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!keeping.is_finished() && supervisor.view.render().guest.problem.is_none());
    repository.set_trouble(Trouble::None);
    keeping.await.unwrap();
    assert_eq!(repository.outputs(&supervisor.config.job).await.unwrap().len(), 1);
}
