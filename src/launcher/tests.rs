//! Real processes in real namespaces; a script plays the agents.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{io::AsyncWriteExt as _, task::JoinHandle};

use super::*;
use crate::driver::launcher::{LaunchOrder, LaunchedAgent, Launcher, LauncherDirectory, LauncherError, Launchers as _};

const KEY: &str = "0123456789abcdef0123456789abcdef";
/// Leaves a child behind that writes as long as it lives, and ends as its configuration says.
const AGENT: &str = "#!/bin/sh
test \"$$\" = 1 || exit 9
while [ $# != 0 ]; do case $1 in --config) config=$2 ;; --vm-dir) vm=$2 ;; esac; shift; done
trap 'exit 12' TERM
(while :; do date +%N > $vm/alive; cp $vm/alive @HERE@; sleep 0.05; done) &
echo it has begun
test -s $config/config.json || exit 8
test ! -e $config/fails || { echo it cannot; exit 3; }
while :; do sleep 0.05; done
";

struct Node {
    folder: TempDir,
    port: u16,
    /// Beats until it is aborted.
    hold: JoinHandle<()>,
    ended: JoinHandle<anyhow::Result<()>>,
}

impl Node {
    async fn start(first: &str) -> Self {
        crate::tls::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("agent");
        let text = AGENT.replace("@HERE@", folder.path().join("alive").to_str().unwrap());
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let (mut hold, input) = tokio::io::duplex(4096);
        hold.write_all(format!("{first}\n").as_bytes()).await.unwrap();
        let hold = tokio::spawn(async move {
            while hold.write_all(b"1\n").await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        });
        let args = Args { port, node_dir: folder.path().join("node") };
        let ended = tokio::spawn(async move { launch(&args, &program, BufReader::new(input)).await });
        Self { folder, port, hold, ended }
    }

    fn client(&self, key: &str) -> Arc<dyn Launcher> {
        let directory = LauncherDirectory::new(Clock::system());
        directory.at((Ipv4Addr::LOCALHOST, self.port).into(), &LaunchKey::read(key).unwrap())
    }

    fn launched(&self) -> PathBuf {
        self.folder.path().join("node/launched")
    }

    /// Whether the child of an agent comes to work.
    async fn breathes(&self) -> bool {
        self.writes_within(Duration::from_secs(30)).await
    }

    /// Whether it is at work still.
    async fn lives_on(&self) -> bool {
        self.writes_within(Duration::from_millis(500)).await
    }

    async fn writes_within(&self, limit: Duration) -> bool {
        let read = || fs::read_to_string(self.folder.path().join("alive")).unwrap_or_default();
        let (before, begun) = (read(), Instant::now());
        while begun.elapsed() < limit {
            sleep(Duration::from_millis(20)).await;
            let now = read();
            if !now.is_empty() && now != before {
                return true;
            }
        }
        false
    }
}

fn order(fails: bool) -> LaunchOrder {
    let mut files = std::collections::BTreeMap::from([("config.json".to_owned(), "{}".to_owned())]);
    if fails {
        files.insert("fails".into(), String::new());
    }
    LaunchOrder { incarnation: 3, files, log: "info".into(), lease: "/nonexistent/3f2b8a10-7".into() }
}

async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "in vain");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn answers(client: &dyn Launcher) -> Vec<LaunchedAgent> {
    until(async || client.agents().await.ok()).await
}

#[tokio::test]
async fn an_agent_lives_until_it_is_told_and_nothing_of_it_longer() {
    let node = Node::start(KEY).await;
    let client = node.client(KEY);
    assert_eq!(answers(&*client).await, []);
    client.start("pi-0", &order(false)).await.unwrap();
    client.start("pi-0", &order(false)).await.unwrap();
    assert!(node.breathes().await, "{:?}", client.agents().await);
    let running = LaunchedAgent { name: "pi-0".into(), incarnation: 3, ended: None, ending: false };
    assert_eq!(client.agents().await.unwrap(), [running]);
    client.end("pi-0").await.unwrap();
    until(async || client.agents().await.unwrap().is_empty().then_some(())).await;
    assert!(!node.lives_on().await, "its child lives on");
    assert!(!node.launched().join("pi-0").exists());
    client.end("pi-0").await.unwrap();
}

/// Nobody but QEMU's group passes through to its files, and what it is told is on no disk.
#[tokio::test]
async fn d3_nobody_else_on_the_node_sees_what_an_agent_has() {
    let node = Node::start(KEY).await;
    let client = node.client(KEY);
    answers(&*client).await;
    client.start("pi-0", &order(false)).await.unwrap();
    assert!(node.breathes().await, "{:?}", client.agents().await);
    let own = node.launched().join("pi-0");
    assert_eq!(fs::metadata(&own).unwrap().permissions().mode() & 0o7777, 0o710);
    assert_eq!(fs::read_dir(own.join("config")).unwrap().count(), 0);
}

#[tokio::test]
async fn how_an_agent_has_ended_is_told_until_it_is_forgotten() {
    let node = Node::start(KEY).await;
    let client = node.client(KEY);
    answers(&*client).await;
    client.start("pi-0", &order(true)).await.unwrap();
    let ended = until(async || client.agents().await.unwrap()[0].ended.clone()).await;
    assert_eq!(ended, "exit code 3: it cannot");
    client.start("pi-0", &order(false)).await.unwrap();
    assert!(client.agents().await.unwrap()[0].ended.is_some(), "an order that is repeated starts nothing again");
    assert!(!node.launched().join("pi-0").exists());
    client.end("pi-0").await.unwrap();
    assert_eq!(client.agents().await.unwrap(), []);
    let again = client.start("pi-0", &order(false)).await.unwrap_err();
    assert_eq!(again, LauncherError::Refused("pi-0 was here, and has ended".into()), "a late order");
    let late = client.start("pi-1", &LaunchOrder { incarnation: 2, ..order(false) }).await.unwrap_err();
    assert!(late.to_string().contains("of an earlier one"), "{late}");
    for name in ["../pi", ".pi", "lock", "a b"] {
        let name = name.replace('/', "%2F").replace(' ', "%20");
        assert!(matches!(client.start(&name, &order(false)).await, Err(LauncherError::Refused(_))), "{name}");
    }
}

/// Its root is the hold: when that has gone, all has.
#[tokio::test]
async fn a3_with_the_hold_all_that_was_started_has_gone() {
    let node = Node::start(KEY).await;
    let client = node.client(KEY);
    answers(&*client).await;
    client.start("pi-0", &order(false)).await.unwrap();
    assert!(node.breathes().await);
    let lease = node.folder.path().join("leases/3f2b8a10-7");
    fs::create_dir_all(&lease).unwrap();
    client.start("pi-9", &LaunchOrder { lease: lease.clone(), ..order(true) }).await.unwrap();
    for bad in ["/", "/3f2b8a10-7", "/var/lib", "/var/../3f2b8a10-7", "leases/3f2b8a10-7"] {
        let refused = client.start("pi-8", &LaunchOrder { lease: bad.into(), ..order(false) }).await.unwrap_err();
        assert!(refused.to_string().contains("is no lease's directory"), "{bad}: {refused}");
    }
    node.hold.abort();
    until(async || node.ended.is_finished().then_some(())).await;
    assert!(!node.lives_on().await, "its child lives on");
    assert!(!node.launched().join("pi-0").exists());
    assert!(!lease.exists() && lease.parent().unwrap().exists(), "the lease of an agent that had died stays");
    assert!(matches!(client.agents().await, Err(LauncherError::Unreachable(_))));
}

/// What the process was killed with nobody tells: its files go nevertheless, but not those of the next one.
#[tokio::test]
async fn what_a_launcher_that_was_killed_has_left_goes_unless_the_next_one_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let left = folder.path().join("launched/pi-0/vm");
    let lease = folder.path().join("leases/3f2b8a10-7");
    let died = |agents: LaunchedAgents| {
        fs::create_dir_all(&left).unwrap();
        fs::create_dir_all(&lease).unwrap();
        // its agent was dead before
        std::os::unix::fs::symlink(&lease, folder.path().join("launched/leases/pi-9")).unwrap();
        drop(agents);
    };
    let open = || LaunchedAgents::open(folder.path(), Path::new("/bin/true"), Duration::from_secs(60));
    died(open().await.unwrap());
    until(async || (!left.exists()).then_some(())).await;
    assert!(!lease.exists() && lease.parent().unwrap().exists());
    died(open().await.unwrap());
    let next = open().await.unwrap();
    assert!(!left.exists() && !lease.exists(), "the next one removes it at once");
    fs::create_dir_all(&left).unwrap();
    sleep(Duration::from_millis(1500)).await;
    assert!(left.exists());
    drop(next);
}

#[tokio::test]
async fn d3_only_who_has_the_key_is_answered() {
    let node = Node::start(KEY).await;
    answers(&*node.client(KEY)).await;
    let stranger = node.client(&"f".repeat(32));
    assert_eq!(stranger.agents().await, Err(LauncherError::OtherKey));
    assert_eq!(stranger.start("pi-0", &order(false)).await, Err(LauncherError::OtherKey));
    let now = jiff::Timestamp::now();
    let ours = LaunchKey::read(KEY).unwrap().authority(now).unwrap();
    let another = tls::Authority::create(now).unwrap();
    let endpoint = format!("127.0.0.1:{}", node.port);
    let ask = async |credentials: tls::Credentials| {
        let client = credentials.http_client(&Identity::Launcher, &endpoint).unwrap();
        let reply = client.get(format!("{}/v1/agents", tls::base_url(&Identity::Launcher))).send().await;
        reply.map(|reply| reply.status().as_u16()).ok()
    };
    let issue = |authority: &tls::Authority, identity| authority.issue(&identity, now, LIFETIME).unwrap();
    assert_eq!(ask(issue(&ours, Identity::Operator)).await, Some(200));
    let agent = Identity::Agent { job: "uid".into(), member: 0, incarnation: 1 };
    for other in [Identity::Launcher, Identity::Kget, agent] {
        assert_eq!(ask(issue(&ours, other)).await, Some(403), "it has the key, and is not the operator");
    }
    let trusting = tls::Credentials { ca: ours.certificate.clone(), ..issue(&another, Identity::Operator) };
    assert_eq!(ask(trusting).await, None, "an operator without the key");
}

#[tokio::test]
async fn a_hold_without_a_key_starts_nothing() {
    let node = Node::start("x").await;
    let error = node.ended.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("32 to 256 letters and digits"), "{error}");
}
