//! The client and the hold against a real OAR: `OAR_API_URL` of a test bed, and its settings in the
//! environment. Not run without.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::OarRest;
use crate::{
    clock::Clock,
    config::SiteConfig,
    driver::site::{
        Credentials, End, NoticeKind, Site, SiteError, SlotFacts, SlotPhase, SlotRequest,
        contract::{self, World, request},
    },
    names::SlotId,
};

/// Nodes of the test bed. Tests run beside each other as far as they go; one that breaks something takes all.
const NODES: u32 = 4;
static FREE: Semaphore = Semaphore::const_new(NODES as usize);

struct Live {
    site: OarRest,
    /// Makes the names of its jobs differ from those of other tests and of other runs.
    tag: String,
    _nodes: SemaphorePermit<'static>,
}

impl Drop for Live {
    /// What a test that fails leaves at OAR would take the nodes of the next ones. Best effort: it fails already.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let unfinished = "SELECT job_id FROM jobs WHERE state NOT IN ('Terminated', 'Error')";
        let query = format!("{unfinished} AND job_name LIKE 'vmdeploy-_{}-%'", self.tag);
        for _ in 0..30 {
            let left = try_oarbox(&["sql", &query]).unwrap_or_default();
            if left.is_empty() {
                return;
            }
            let ids: Vec<&str> = left.lines().collect();
            let _ = try_oarbox(&[&["user", "alice", "oardel"], &ids[..]].concat());
            std::thread::sleep(Duration::from_secs(2));
        }
    }
}

#[async_trait]
impl World for Live {
    fn site(&self) -> &dyn Site {
        &self.site
    }
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
    fn user(&self) -> String {
        "alice".into()
    }
    async fn pass(&self) {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// The site as `user`, with so many nodes for this test; none where there is no test bed.
async fn live(user: &str, nodes: u32) -> Option<Live> {
    let Ok(url) = std::env::var("OAR_API_URL") else {
        assert!(std::env::var_os("VMDEPLOY_E2E").is_none(), "OAR_API_URL is not set");
        println!("not run: OAR_API_URL is not set");
        return None;
    };
    crate::tls::install_provider();
    // the test bed's nodes share all folders but a few
    let config = format!("kind: oar2\nurl: {url}\nuids: {{}}\nleaseRoot: /tmp/leases\nagentWait: 60s\n");
    let config: SiteConfig = serde_yaml::from_str(&config).unwrap();
    let site = OarRest::new(&config, Credentials::Header { user: user.into() }, Clock::system()).unwrap();
    let nodes = FREE.acquire_many(nodes).await.unwrap();
    Some(Live { site, tag: tag(), _nodes: nodes })
}

/// With a letter before it an id of a job, as its names have it.
fn tag() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (run, test) = (Timestamp::now().as_second() % 100_000, NEXT.fetch_add(1, Ordering::Relaxed) % 100);
    format!("{run:05}{test:02}")
}

fn try_oarbox(arguments: &[&str]) -> std::io::Result<String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/testbed/oar/oarbox");
    let output = Command::new(program).args(arguments).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn oarbox(arguments: &[&str]) -> String {
    try_oarbox(arguments).unwrap()
}

/// Runs a shell command on a node, as root.
fn on(facts: &SlotFacts, node: usize, command: &str) -> String {
    let number = facts.nodes[node].0.strip_prefix("node-").unwrap().to_owned();
    oarbox(&["node", &number, "sh", "-c", command])
}

fn lease(facts: &SlotFacts) -> String {
    format!("/tmp/leases/{}-{}", facts.name.split('-').nth(1).unwrap(), facts.id)
}

/// Plays the agent's part at the start.
fn agent_comes(facts: &SlotFacts, node: usize) {
    let lease = lease(facts);
    on(
        facts,
        node,
        &format!("mkdir -p {lease} && echo nonce{node} > {lease}/nonce && chmod 700 {lease} && chown alice {lease}"),
    );
}

fn held(facts: &SlotFacts, node: usize) -> bool {
    let lock = format!("{}/lock", lease(facts));
    on(facts, node, &format!("if [ -s {lock} ] && ! flock -sn {lock} true; then echo held; fi")) == "held"
}

fn seen(facts: &SlotFacts, node: usize, file: &str) -> String {
    on(facts, node, &format!("cat {}/{file} 2>/dev/null", lease(facts)))
}

fn within(seconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(seconds) {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    condition()
}

/// A slot whose leases are held on all its nodes.
async fn leased(world: &Live, job: &str, nodes: u32, grace: u64) -> SlotFacts {
    let id = world.site.submit(&request(job, nodes, grace)).await.unwrap().remove(0);
    let facts = contract::until(world, &id, |p| *p == SlotPhase::Running).await;
    for node in 0..nodes as usize {
        agent_comes(&facts, node);
    }
    for node in 0..nodes as usize {
        assert!(within(60, || held(&facts, node)), "no lease on {}", facts.nodes[node]);
        assert!(seen(&facts, node, "lock").starts_with(&format!("{id} nonce{node} ")));
    }
    facts
}

async fn end(world: &Live, id: &SlotId) -> End {
    match contract::until(world, id, |p| matches!(p, SlotPhase::Ended(_))).await.phase {
        SlotPhase::Ended(end) => end,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_keeps_the_contract() {
    let Some(world) = live("alice", 2).await else { return };
    contract::holds(&world, &world.tag).await;
}

/// The jobs of an array run one file, which the API leaves in the user's home.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_job_of_an_array_removes_its_file() {
    let Some(world) = live("alice", NODES).await else { return };
    let name = format!("f{}", world.tag);
    // others submit arrays meanwhile
    let files = || oarbox(&["exec", "sh", "-c", &format!("grep -l {name} /home/alice/oarapi.subscript.* | wc -l")]);
    // the last one waits for a node of the others
    let request = SlotRequest { reservations: NODES + 1, ..request(&name, 1, 30) };
    let ids = world.site.submit(&request).await.unwrap();
    let (last, others) = ids.split_last().unwrap();
    let mut running = Vec::new();
    for id in others {
        let facts = contract::until(&world, id, |phase| *phase == SlotPhase::Running).await;
        agent_comes(&facts, 0);
        running.push(facts);
    }
    for facts in &running {
        assert!(within(60, || held(facts, 0)), "job {} of the array holds no lease", facts.id);
    }
    assert_eq!(files(), "1", "files of the array before its last job runs");
    world.site.release(&others[0]).await.unwrap();
    end(&world, &others[0]).await;
    let facts = contract::until(&world, last, |phase| *phase == SlotPhase::Running).await;
    agent_comes(&facts, 0);
    assert!(within(60, || held(&facts, 0)), "the last job of the array, {last}, holds no lease");
    assert!(within(60, || files() == "0"), "{} files are left", files());
    for id in &ids[1..] {
        world.site.release(id).await.unwrap();
        end(&world, id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_checked() {
    let Some(world) = live("nobody-of-ours", 1).await else { return };
    let refused = world.site.submit(&request("d0000000", 1, 0)).await;
    assert!(matches!(refused, Err(SiteError::Credentials(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn released_by_its_agents_the_slot_says_so() {
    let Some(world) = live("alice", 2).await else { return };
    for (word, wanted) in [("done", End::Done), ("saved", End::Released)] {
        let facts = leased(&world, &format!("e{}", world.tag), 2, 30).await;
        for node in 0..2 {
            on(&facts, node, &format!("echo {word} > {}/release", lease(&facts)));
        }
        assert_eq!(end(&world, &facts.id).await, wanted);
        assert!(!held(&facts, 0) && !held(&facts, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preempted_slot_saves_itself_at_the_notice() {
    let Some(world) = live("alice", NODES).await else { return };
    let facts = leased(&world, &format!("f{}", world.tag), 4, 60).await;
    let rival = submit_rival(4, "true");
    for node in 0..4 {
        assert!(within(45, || !seen(&facts, node, "notice").is_empty()), "no notice on {}", facts.nodes[node]);
    }
    let noticed = contract::until(&world, &facts.id, |p| *p == SlotPhase::Running).await.notice.unwrap();
    assert_eq!(noticed.kind, NoticeKind::Preemption);
    assert!(held(&facts, 0));
    for node in 0..4 {
        on(&facts, node, &format!("echo saved > {}/release", lease(&facts)));
    }
    assert_eq!(end(&world, &facts.id).await, End::SavedAtPreemption);
    wait_for_rival(&rival);
}

#[tokio::test(flavor = "multi_thread")]
async fn a1_every_lock_is_free_before_the_next_users_job_starts() {
    let Some(world) = live("alice", NODES).await else { return };
    let facts = leased(&world, &format!("0{}", world.tag), 4, 0).await;
    for node in 0..4 {
        let watch = format!("rm -f /tmp/started; flock -s {}/lock sh -c 'date +%s%N > /tmp/dropped'", lease(&facts));
        on(&facts, node, &format!("({watch}) > /dev/null 2>&1 &"));
    }
    let rival = submit_rival(4, "date +%s%N > /tmp/started");
    assert_eq!(end(&world, &facts.id).await, End::Preempted);
    wait_for_rival(&rival);
    for node in 0..4 {
        let times = on(&facts, node, "cat /tmp/dropped /tmp/started");
        let times: Vec<u64> = times.lines().map(|l| l.parse().unwrap()).collect();
        assert!(times[0] < times[1], "{times:?}");
        println!("free {} ms before the next job's first process", (times[1] - times[0]) / 1_000_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a10_a_request_sent_while_the_server_is_down_is_found_by_name() {
    let Some(world) = live("alice", NODES).await else { return };
    let request = request(&format!("2{}", world.tag), 1, 0);
    assert!(world.site.look_up(&request.name, None).await.unwrap().is_empty());
    oarbox(&["server-stop"]);
    let lost = world.site.submit(&request).await;
    let found = world.site.look_up(&request.name, None).await;
    let id = found.as_ref().ok().and_then(|f| f.keys().next().cloned());
    let refused = match &id {
        Some(id) => world.site.release(id).await,
        None => Ok(()),
    };
    oarbox(&["server-start"]);
    assert!(matches!(lost, Err(SiteError::Unreachable(_))), "{lost:?}");
    assert_eq!(found.unwrap().len(), 1);
    // a deletion is only noted while the server is down, and has to be repeated
    assert!(matches!(refused, Err(SiteError::Unreachable(_))), "{refused:?}");
    world.site.release(&id.clone().unwrap()).await.unwrap();
    assert_eq!(end(&world, &id.unwrap()).await, End::Deleted("alice".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_down_is_an_outage() {
    let Some(world) = live("alice", NODES).await else { return };
    let request = request(&format!("3{}", world.tag), 1, 0);
    world.site.user().await.unwrap();
    oarbox(&["db-stop"]);
    let read = world.site.look_up(&request.name, None).await;
    let lost = world.site.submit(&request).await;
    oarbox(&["db-start"]);
    assert!(matches!(read, Err(SiteError::Unreachable(_))), "{read:?}");
    assert!(matches!(lost, Err(SiteError::Unreachable(_))), "{lost:?}");
    // the request was accepted all the same, after the client had given up
    let mut found = BTreeMap::default();
    for _ in 0..60 {
        world.pass().await;
        found = world.site.look_up(&request.name, None).await.unwrap_or_default();
        if !found.is_empty() {
            break;
        }
    }
    println!("found after the outage: {found:?}");
    for id in found.keys() {
        world.site.release(id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c4_a_slot_to_which_no_agent_comes_ends() {
    let Some(world) = live("alice", 1).await else { return };
    let id = world.site.submit(&request(&format!("1{}", world.tag), 1, 0)).await.unwrap().remove(0);
    contract::until(&world, &id, |p| *p == SlotPhase::Running).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(end(&world, &id).await, End::HoldFailed(super::hold::said(Some(super::hold::NO_AGENT))));
}

/// Submits somebody else's job; it runs `command` on each of its nodes.
fn submit_rival(nodes: u32, command: &str) -> String {
    let script = format!("for n in $(sort -u $OAR_NODEFILE); do oarsh $n '{command}'; done");
    let put = "printf '%s\\n' \"$1\" > /home/bob/rival && chmod 755 /home/bob/rival && chown bob /home/bob/rival";
    oarbox(&["exec", "sh", "-c", put, "sh", &format!("#!/bin/sh\n{script}")]);
    let resources = format!("nodes={nodes},walltime=0:1:0");
    let said = oarbox(&["user", "bob", "oarsub", "-l", &resources, "/home/bob/rival"]);
    said.lines().find_map(|l| l.strip_prefix("OAR_JOB_ID=")).unwrap().to_owned()
}

fn wait_for_rival(id: &str) {
    let state = || oarbox(&["sql", &format!("SELECT state FROM jobs WHERE job_id={id}")]);
    assert!(within(90, || state() == "Terminated"), "the other user's job is {}", state());
}
