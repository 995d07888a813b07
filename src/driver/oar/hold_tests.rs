//! The real hold under a real TakTuk, with a connector that runs everything on this machine: each
//! "node" has a lease directory of its own. Agents are played by writing their files.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, Signal, kill_process},
};
use tempfile::TempDir;

#[path = "put_tests.rs"]
mod putting;
#[path = "start_tests.rs"]
mod starting;

use super::hold::{DONE, FAILED, HoldScript, LOST_HOLDER, LauncherScript, NO_AGENT, SAVED};

const JOB: &str = "7";

struct Hold {
    child: Child,
    folder: TempDir,
    nodes: &'static [&'static str],
}

/// Starts a hold; none where there is no TakTuk, unless `VMDEPLOY_E2E` says that all is there.
fn hold(nodes: &'static [&'static str], agent_wait: u64, connector: &str) -> Option<Hold> {
    hold_of(nodes, agent_wait, connector, false)
}

/// The same; of nodes that are deployed first.
fn hold_of(nodes: &'static [&'static str], agent_wait: u64, connector: &str, deployed: bool) -> Option<Hold> {
    hold_that(nodes, agent_wait, connector, deployed, Extras::default())
}

/// What is started on each node, and the key that its user has.
#[derive(Clone, Copy)]
struct Launch {
    text: &'static str,
    key: Option<&'static str>,
    mode: u32,
}

/// What a hold does besides.
#[derive(Clone, Copy, Default)]
struct Extras {
    puts_images: bool,
    launch: Option<Launch>,
}

fn hold_that(
    nodes: &'static [&'static str],
    agent_wait: u64,
    connector: &str,
    deployed: bool,
    extras: Extras,
) -> Option<Hold> {
    if Command::new("taktuk").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        assert!(std::env::var_os("VMDEPLOY_E2E").is_none(), "there is no taktuk on this machine");
        eprintln!("skipped: there is no taktuk on this machine");
        return None;
    }
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    let command = root.join("connector");
    let launch = root.join("vmdeploy");
    if let Some(Launch { text, key, mode }) = extras.launch {
        if let Some(key) = key {
            fs::write(root.join("key"), format!("{key}\n")).unwrap();
            fs::set_permissions(root.join("key"), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::write(&launch, text).unwrap();
        fs::set_permissions(&launch, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let launcher =
        extras.launch.filter(|_| !deployed).map(|_| LauncherScript { command: launch.to_str().unwrap(), port: 1 });
    let token = root.join("joins/token");
    let script = HoldScript {
        lease_root: root.to_str().unwrap(),
        lease_prefix: "3f2b8a10-",
        connector: command.to_str().unwrap(),
        beat: Duration::from_secs(1),
        agent_wait: Duration::from_secs(agent_wait),
        forgotten: Duration::from_secs(agent_wait),
        deployed,
        launcher,
        key_file: extras.launch.map(|_| "key"),
        token_file: extras.launch.filter(|_| deployed).map(|_| token.to_str().unwrap()),
        holds: 1,
        puts_images: extras.puts_images,
    };
    // all nodes share this machine's disk: their leases are told apart by the node's name
    let here = format!("d={}/\\$TAKTUK_HOSTNAME/3f2b8a10-{JOB};", root.display());
    let script = script.render().unwrap().replace("d=$lease;", &here);
    // the hold's own node, and where it puts pieces
    let own = format!("/{}/3f2b8a10-$job\n", nodes[0]);
    let script = script.replacen("/3f2b8a10-$job\n", &own, 1);
    let there = format!("[ {}/\\$TAKTUK_HOSTNAME/3f2b8a10-{JOB}/in-", root.display());
    let script = script.replace("[ $lease/in-", &there);
    fs::write(root.join("hold"), script).unwrap();
    fs::write(root.join("nodes"), [nodes, nodes].concat().join("\n")).unwrap();
    fs::write(root.join("connector"), connector).unwrap();
    fs::set_permissions(root.join("connector"), fs::Permissions::from_mode(0o755)).unwrap();
    let child = Command::new("dash")
        .arg(root.join("hold"))
        .envs([("OAR_JOB_ID", JOB), ("OAR_NODEFILE", root.join("nodes").to_str().unwrap())])
        .env("TMPDIR", root)
        .env("HOME", root)
        .stderr(fs::File::create(root.join("log")).unwrap())
        .spawn()
        .unwrap();
    Some(Hold { child, folder, nodes })
}

const LOCAL: &str = "#!/bin/sh\nshift; unset TAKTUK_HOSTNAME TAKTUK_POSITION; exec sh -c \"$*\"\n";

impl Hold {
    fn lease(&self, node: &str) -> PathBuf {
        self.folder.path().join(node).join(format!("3f2b8a10-{JOB}"))
    }

    fn file(&self, node: &str, name: &str) -> PathBuf {
        self.lease(node).join(name)
    }

    fn agent_writes(&self, node: &str, name: &str, text: &str) {
        let new = self.file(node, "new");
        fs::write(&new, format!("{text}\n")).unwrap();
        fs::rename(new, self.file(node, name)).unwrap();
    }

    fn agent_comes(&self, node: &str) {
        fs::create_dir_all(self.lease(node)).unwrap();
        fs::set_permissions(self.lease(node), fs::Permissions::from_mode(0o700)).unwrap();
        self.agent_writes(node, "nonce", &format!("nonce{node}"));
    }

    /// All agents come, and all leases are taken.
    fn started(self) -> Self {
        for node in self.nodes {
            self.agent_comes(node);
        }
        for node in self.nodes {
            assert!(within(60, || self.beat(node).is_some_and(|b| b > 0)), "{}", self.log());
        }
        self
    }

    fn line(&self, node: &str) -> Option<Vec<String>> {
        let text = fs::read_to_string(self.file(node, "lock")).ok()?;
        Some(text.split_whitespace().map(str::to_owned).collect())
    }

    fn beat(&self, node: &str) -> Option<u64> {
        self.line(node)?.get(2)?.parse().ok()
    }

    fn free(&self, node: &str) -> bool {
        lock_is_free(&self.file(node, "lock"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn ends(&mut self, seconds: u64) -> Option<i32> {
        let mut code = None;
        within(seconds, || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        code.and_then(|c| c.code())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lock_is_free(path: &Path) -> bool {
    let file = fs::File::open(path).unwrap();
    flock(&file, FlockOperation::NonBlockingLockShared).is_ok()
}

fn within(seconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(seconds) {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    condition()
}

#[test]
fn a3_locks_drop_when_the_hold_is_killed() {
    let Some(hold) = hold(&["node-1", "node-2"], 60, LOCAL) else { return };
    let hold = hold.started();
    assert!(!hold.free("node-1") && !hold.free("node-2"));
    hold.signal(Signal::KILL);
    assert!(within(2, || hold.free("node-1") && hold.free("node-2")));
}

#[test]
fn a4_the_line_names_slot_and_nonce_and_follows_a_new_agent() {
    let Some(hold) = hold(&["node-1"], 60, LOCAL) else { return };
    let hold = hold.started();
    assert_eq!(hold.line("node-1").unwrap()[..2], [JOB.to_owned(), "noncenode-1".to_owned()]);
    hold.agent_writes("node-1", "nonce", "another");
    assert!(within(5, || hold.line("node-1").unwrap()[1] == "another"));
    assert!(!hold.free("node-1"));
}

#[test]
fn a2_the_beat_stands_still_when_the_link_hangs() {
    // the connector stands for an ssh whose link was cut without a word: it stays, and passes nothing on
    let connector = "#!/bin/sh\nhost=$1; shift; unset TAKTUK_HOSTNAME TAKTUK_POSITION\n\
        [ \"$host\" = node-2 ] || exec sh -c \"$*\"\n\
        here=${0%/*}; mkfifo \"$here/pass\"; sh -c \"$*\" < \"$here/pass\" &\n\
        exec 5> \"$here/pass\" 6<&0; dd bs=64k 2> /dev/null >&5 <&6 5>&- 6<&- & echo $! > \"$here/dd\"; exec 5>&- 6<&-; wait\n";
    let Some(hold) = hold(&["node-1", "node-2"], 60, connector) else { return };
    let hold = hold.started();
    let dd: i32 = fs::read_to_string(hold.folder.path().join("dd")).unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(dd).unwrap(), Signal::STOP).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let (cut, other) = (hold.beat("node-2"), hold.beat("node-1"));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(hold.beat("node-2"), cut);
    assert!(hold.beat("node-1") > other);
    // and the holder does not outlive the silence
    assert!(!hold.free("node-2"));
    assert!(within(25, || hold.free("node-2")));
    assert!(!hold.free("node-1"));
    kill_process(Pid::from_raw(dd).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn a_notice_reaches_every_node_and_repeats_do_no_harm() {
    let Some(hold) = hold(&["node-1", "node-2"], 60, LOCAL) else { return };
    let mut hold = hold.started();
    assert!(!hold.file("node-2", "notice").exists());
    for _ in 0..20 {
        hold.signal(Signal::USR2);
        std::thread::sleep(Duration::from_millis(30));
    }
    assert!(within(3, || hold.file("node-1", "notice").exists() && hold.file("node-2", "notice").exists()));
    let beat = hold.beat("node-1").unwrap();
    assert!(within(5, || hold.beat("node-1").unwrap() > beat + 1), "{}", hold.log());
    assert_eq!(hold.child.try_wait().unwrap(), None);
    assert!(!hold.free("node-1"));
}

#[test]
fn the_hold_ends_when_all_agents_have_left() {
    let Some(hold) = hold(&["node-1", "node-2"], 60, LOCAL) else { return };
    let mut hold = hold.started();
    hold.agent_writes("node-1", "release", "done");
    assert!(within(5, || hold.free("node-1")));
    assert!(!hold.free("node-2"));
    assert_eq!(hold.child.try_wait().unwrap(), None);
    hold.agent_writes("node-2", "release", "saved");
    assert_eq!(hold.ends(10), Some(SAVED), "{}", hold.log());
    let left: Vec<_> = fs::read_dir(hold.folder.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("tmp."))
        .collect();
    assert!(left.is_empty());
}

#[test]
fn done_everywhere_is_done() {
    let Some(hold) = hold(&["node-1", "node-2"], 60, LOCAL) else { return };
    let mut hold = hold.started();
    for node in hold.nodes {
        hold.agent_writes(node, "release", "done");
    }
    assert_eq!(hold.ends(10), Some(DONE), "{}", hold.log());
}

#[test]
fn c4_a_hold_without_agents_ends() {
    let Some(mut hold) = hold(&["node-1", "node-2"], 10, LOCAL) else { return };
    hold.agent_comes("node-1");
    assert!(within(60, || hold.beat("node-1").is_some()), "{}", hold.log());
    assert_eq!(hold.ends(22), Some(NO_AGENT), "{}", hold.log());
    assert!(within(2, || hold.free("node-1")));
}

/// As on a node that OAR did not reach when it ended the job.
#[test]
fn c4_a_hold_all_of_whose_agents_have_died_ends() {
    let Some(dead) = hold(&["a", "b"], 20, LOCAL) else { return };
    let (half, older) = (hold(&["a", "b"], 20, LOCAL).unwrap(), hold(&["a"], 20, LOCAL).unwrap());
    let alive = |hold: &Hold, node: &str| {
        hold.agent_writes(node, "agent", &format!("nonce{node}"));
        let presence = fs::File::open(hold.file(node, "agent")).unwrap();
        flock(&presence, FlockOperation::LockExclusive).unwrap();
        presence
    };
    let (mut dead, mut half, mut older) = (dead.started(), half.started(), older.started());
    let gone = [alive(&dead, "a"), alive(&dead, "b"), alive(&half, "a")];
    let _lives = alive(&half, "b");
    // this agent does not know the file, and follows one that did
    older.agent_writes("a", "agent", "another");
    drop(gone);
    assert_eq!(dead.ends(60), Some(LOST_HOLDER), "{}", dead.log());
    assert!(dead.log().contains("all agents have gone") && dead.beat("a").is_some_and(|beat| beat > 20));
    assert!(within(10, || dead.free("a") && dead.free("b")));
    for hold in [&mut half, &mut older] {
        assert!(within(60, || hold.beat("a").is_some_and(|beat| beat > 47)), "{}", hold.log());
        assert_eq!(hold.child.try_wait().unwrap(), None, "{}", hold.log());
    }
}

#[test]
fn c5_a_lost_lease_is_not_taken_again() {
    let Some(mut hold) = hold(&["node-1"], 60, LOCAL) else { return };
    fs::create_dir_all(hold.lease("node-1")).unwrap();
    fs::write(hold.file("node-1", "lock"), "7 old 0000000009\n").unwrap();
    hold.agent_comes("node-1");
    assert_eq!(hold.ends(10), Some(LOST_HOLDER), "{}", hold.log());
    assert_eq!(hold.beat("node-1"), Some(9));
}

#[test]
fn c5_an_agent_that_gave_up_gives_the_node_back() {
    let Some(hold) = hold(&["node-1"], 60, LOCAL) else { return };
    let mut hold = hold.started();
    hold.agent_writes("node-1", "release", "lost");
    assert_eq!(hold.ends(10), Some(LOST_HOLDER), "{}", hold.log());
}

/// As on a frontend: the hold runs on none of its nodes, and nothing there ends with it but by its connection.
#[test]
fn a12_every_lease_hangs_on_a_connection_of_its_own_wherever_the_hold_runs() {
    let noting = "#!/bin/sh\nhere=$(dirname \"$0\"); echo $$ > \"$here/connection-$1\"; shift; \
        unset TAKTUK_HOSTNAME TAKTUK_POSITION; exec sh -c \"$*\"\n";
    let Some(hold) = hold(&["a", "b"], 60, noting) else { return };
    let hold = hold.started();
    let connection = |node: &str| {
        let pid = fs::read_to_string(hold.folder.path().join(format!("connection-{node}")));
        Pid::from_raw(pid.unwrap_or_else(|_| panic!("no connection to {node}")).trim().parse().unwrap()).unwrap()
    };
    for node in ["a", "b"] {
        connection(node);
        let before = hold.beat(node);
        assert!(within(5, || hold.beat(node) > before), "no beat on {node}");
        assert!(!hold.free(node));
    }
    // the link to one is cut: that lease drops, and the other one does not
    kill_process(connection("b"), Signal::KILL).unwrap();
    assert!(within(10, || hold.free("b")), "the lease outlives its connection");
    let before = hold.beat("a");
    assert!(within(5, || hold.beat("a") > before) && !hold.free("a"));
    // and with the hold the last one
    hold.signal(Signal::KILL);
    assert!(within(10, || hold.free("a")), "the lease outlives the hold");
}

#[test]
fn a5_links_are_not_followed() {
    let Some(mut hold) = hold(&["node-1"], 60, LOCAL) else { return };
    let other = hold.folder.path().join("other");
    fs::write(&other, "precious").unwrap();
    fs::create_dir_all(hold.lease("node-1")).unwrap();
    symlink(&other, hold.file("node-1", "lock")).unwrap();
    hold.agent_comes("node-1");
    assert_eq!(hold.ends(10), Some(LOST_HOLDER), "{}", hold.log());
    assert_eq!(fs::read_to_string(other).unwrap(), "precious");
}

/// OAR's API leaves the file of an array in the user's home.
#[test]
fn files_of_arrays_go_with_their_last_job_or_with_a_later_hold() {
    let folder = TempDir::new().unwrap();
    let file = |name: &str| folder.path().join(format!("oarapi.subscript.{name}"));
    let wait = Duration::from_secs(300);
    let (beat, holds) = (Duration::from_secs(2), 3);
    let script = HoldScript {
        lease_root: "/l",
        lease_prefix: "a-",
        connector: "ssh",
        beat,
        agent_wait: wait,
        forgotten: wait,
        deployed: false,
        launcher: None,
        key_file: None,
        token_file: None,
        holds,
        puts_images: false,
    };
    let script = script.render();
    let aged = |name: &str, text: &str, days: u64| {
        fs::write(file(name), text).unwrap();
        let then = std::time::SystemTime::now() - Duration::from_secs(days * 24 * 3600);
        fs::File::options().write(true).open(file(name)).unwrap().set_modified(then).unwrap();
    };
    let script = script.unwrap();
    // two jobs of it began and were given back with the third
    for (name, text) in [("begun", script.as_str()), ("begun.1", ""), ("begun.2", "")] {
        aged(name, text, 2);
    }
    // it had waited for long, and has only begun; one waits still; another user of the API
    for (name, text, days) in [("late", script.as_str(), 9), ("late.4", "", 0), ("waits", &script, 9), ("x", "true", 9)]
    {
        aged(name, text, days);
    }
    aged("x.5", "", 9);
    fs::write(file("own"), &script).unwrap();
    // they end at once
    fs::write(folder.path().join("nodes"), "no!node\n").unwrap();
    let left = || {
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
            .into_iter()
            .filter_map(|name| Some(name.strip_prefix("oarapi.subscript.")?.to_owned()))
            .collect::<Vec<_>>()
    };
    let others = ["late", "late.4", "waits", "x", "x.5"];
    for (job, own) in [("7", ["own", "own.7"].as_slice()), ("8", &["own", "own.7", "own.8"]), ("9", &[])] {
        let mut hold = Command::new("dash");
        hold.arg(file("own"))
            .envs([("OAR_JOB_ID", job), ("OAR_NODEFILE", folder.path().join("nodes").to_str().unwrap())]);
        let ended = hold.stderr(Stdio::null()).status().unwrap();
        assert_eq!(ended.code(), Some(FAILED));
        let mut expected = [others.as_slice(), own].concat();
        expected.sort_unstable();
        assert_eq!(left(), expected, "after job {job}");
    }
}

#[test]
fn a_node_out_of_reach_ends_the_hold() {
    let connector = format!("#!/bin/sh\n[ \"$1\" = node-2 ] && exit 255\n{}", &LOCAL[10..]);
    let Some(mut hold) = hold(&["node-1", "node-2"], 60, &connector) else { return };
    assert_eq!(hold.ends(10), Some(LOST_HOLDER), "{}", hold.log());
}

#[test]
fn a_dead_holder_leaves_the_others_at_work() {
    let connector = format!("#!/bin/sh\n[ \"$1\" = node-2 ] && echo $$ > \"${{0%/*}}/pid\"\n{}", &LOCAL[10..]);
    let Some(hold) = hold(&["node-1", "node-2"], 60, &connector) else { return };
    let mut hold = hold.started();
    let pid: i32 = fs::read_to_string(hold.folder.path().join("pid")).unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    assert!(within(3, || hold.free("node-2")));
    assert!(!hold.free("node-1"));
    let beat = hold.beat("node-1");
    assert!(within(5, || hold.beat("node-1") > beat));
    hold.agent_writes("node-1", "release", "saved");
    // the silent node is counted out after two rounds
    assert_eq!(hold.ends(40), Some(LOST_HOLDER), "{}", hold.log());
}
