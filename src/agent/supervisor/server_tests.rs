//! The agent's HTTP side and its client, over real mutual TLS; there is no VM behind it.

use std::{io::Read as _, os::unix::net::UnixStream};

use futures::StreamExt as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::{
    super::testing::{Making, config},
    *,
};
use crate::{
    driver::agent::{AgentAddress, Authority, LeaseState, NodeAgent, VmState, contract, http::AgentHttp},
    names::Incarnation,
    tls::{self, Authority as Certificates},
};

const HOUR: Duration = Duration::from_secs(3600);

struct Served {
    supervisor: Arc<Supervisor>,
    certificates: Certificates,
    address: AgentAddress,
    /// What the fence is told.
    fence: UnixStream,
    _root: tempfile::TempDir,
}

impl Served {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut crate::driver::agent::AgentConfig)) -> Self {
        tls::install_provider();
        let root = tempfile::tempdir().unwrap();
        let mut config = config(root.path());
        change(&mut config);
        let certificates = Certificates::create(jiff::Timestamp::now()).unwrap();
        let own = Identity::Agent { job: config.job.clone(), member: 0, incarnation: 1 };
        let own = certificates.issue(&own, jiff::Timestamp::now(), HOUR).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap();
        let address = AgentAddress { endpoint, job: config.job.clone(), member: 0, incarnation: 1 };
        let (fence, theirs) = UnixStream::pair().unwrap();
        fence.set_nonblocking(true).unwrap();
        let supervisor = Making::below(root.path()).config(config).fence(theirs).make();
        let router = router(supervisor.clone());
        tokio::spawn(async move { tls::serve(listener, &own, router, CancellationToken::new()).await });
        Self { supervisor, certificates, address, fence, _root: root }
    }

    fn client(&self, who: &Identity) -> AgentHttp {
        let credentials = self.certificates.issue(who, jiff::Timestamp::now(), HOUR).unwrap();
        AgentHttp::new(&credentials, &self.address)
    }

    /// Whether the fence was told of a contact since it was asked last; the next one is told.
    async fn contact(&self) -> bool {
        let told = (&self.fence).read(&mut [0; 1024]).is_ok();
        tokio::time::sleep(Duration::from_millis(600)).await;
        told
    }
}

fn authority(epoch: u64, incarnation: Incarnation) -> Authority {
    Authority { epoch, incarnation }
}

fn refused(result: &Result<(), AgentError>, part: &str) {
    assert!(matches!(result, Err(AgentError::Refused(why)) if why.contains(part)), "{result:?}");
}

#[tokio::test]
async fn only_the_operator_gives_orders() {
    let served = Served::new().await;
    let stranger = Identity::Agent { job: served.address.job.clone(), member: 1, incarnation: 1 };
    for other in [stranger, Identity::Repository, Identity::Importer] {
        let result = served.client(&other).state().await;
        assert!(matches!(result, Err(AgentError::Refused(_))), "{other}: {result:?}");
    }
    let kget = served.client(&Identity::Kget);
    assert_eq!(kget.state().await.unwrap().lease, LeaseState::Waiting);
    refused(&kget.go(authority(1, 1)).await, "only the operator");
    refused(&kget.leave(authority(1, 1), crate::driver::agent::LeaveCode::Done).await, "only the operator");
    let upload =
        UploadOrder { epoch: 1, generation: 3, incarnation: 1, ticket: "t".into(), limit: None, collector: None };
    refused(&kget.upload(&upload).await, "not captured");
    let earlier = UploadOrder { incarnation: 0, ..upload };
    refused(&kget.upload(&earlier).await, "incarnation 0 is not 1");
    refused(&served.client(&Identity::Operator).go(authority(1, 1)).await, "not loaded");
}

#[tokio::test]
async fn a1_only_the_operator_that_leads_is_a_contact() {
    let served = Served::new().await;
    let operator = |epoch| served.client(&Identity::Operator).of_leader(epoch);
    served.client(&Identity::Kget).state().await.unwrap();
    served.client(&Identity::Kget).of_leader(9).state().await.unwrap();
    let mut polled = served.client(&Identity::Kget).of_leader(9).watch().await.unwrap();
    polled.next().await.unwrap();
    served.client(&Identity::Operator).state().await.unwrap();
    assert!(!served.contact().await, "neither kget nor an operator of no epoch");
    let mut old = operator(4).watch().await.unwrap();
    old.next().await.unwrap();
    assert!(served.contact().await);
    operator(5).state().await.unwrap();
    assert!(served.contact().await);
    operator(4).state().await.unwrap();
    for _ in 0..3 {
        old.next().await.unwrap();
    }
    assert!(!served.contact().await, "an operator that led before");
}

#[tokio::test]
async fn a9_orders_of_an_older_leader_are_refused() {
    let served = Served::new().await;
    let operator = served.client(&Identity::Operator);
    refused(&operator.go(authority(5, 1)).await, "not loaded");
    refused(&operator.go(authority(4, 1)).await, "older");
    refused(&operator.go(authority(9, 2)).await, "incarnation");
}

#[tokio::test]
async fn changes_are_told_at_once_and_heartbeats_every_second() {
    let served = Served::new().await;
    let mut states = served.client(&Identity::Kget).watch().await.unwrap();
    assert_eq!(states.next().await.unwrap().vm, VmState::None);
    served.supervisor.view.change(|facts| facts.set_vm(VmState::Fetching { done: 1, total: 2 }));
    let change = async { while states.next().await.unwrap().vm == VmState::None {} };
    tokio::time::timeout(Duration::from_millis(900), change).await.unwrap();
    for _ in 0..2 {
        let beat = tokio::time::timeout(Duration::from_secs(2), states.next()).await.unwrap();
        assert_eq!(beat.unwrap().incarnation, 1);
    }
}

#[tokio::test]
async fn d3_a_reply_without_end_is_cut_off() {
    let served = Served::new().await;
    let now = jiff::Timestamp::now();
    let own = Identity::Agent { job: served.address.job.clone(), member: 0, incarnation: 1 };
    let own = served.certificates.issue(&own, now, HOUR).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = AgentAddress { endpoint: listener.local_addr().unwrap(), ..served.address.clone() };
    let endless = || Body::from_stream(futures::stream::repeat(Ok::<_, Infallible>(Bytes::from(vec![b' '; 4096]))));
    let refusal = move || async move { (StatusCode::CONFLICT, endless()).into_response() };
    let router = Router::new()
        .route("/v1/state", get(move || async move { endless().into_response() }))
        .route("/v1/go", post(refusal));
    tokio::spawn(async move { tls::serve(listener, &own, router, CancellationToken::new()).await });
    let credentials = served.certificates.issue(&Identity::Operator, now, HOUR).unwrap();
    let client = AgentHttp::new(&credentials, &address);
    let result = client.state().await;
    assert!(matches!(&result, Err(AgentError::Failed(why)) if why.contains("sent more than")), "{result:?}");
    let result = client.go(authority(1, 1)).await;
    assert!(matches!(&result, Err(AgentError::Failed(why)) if why.contains("sent more than")), "{result:?}");
}

#[tokio::test]
async fn a_client_that_finds_nobody_or_another_says_so() {
    let served = Served::new().await;
    let credentials = served.certificates.issue(&Identity::Operator, jiff::Timestamp::now(), HOUR).unwrap();
    let other = AgentAddress { incarnation: 2, ..served.address.clone() };
    let result = AgentHttp::new(&credentials, &other).state().await;
    assert!(matches!(result, Err(AgentError::Unreachable(_))), "an agent of another incarnation: {result:?}");
    let nobody = AgentAddress { endpoint: ([127, 0, 0, 1], 1).into(), ..served.address.clone() };
    let result = AgentHttp::new(&credentials, &nobody).state().await;
    assert!(matches!(result, Err(AgentError::Unreachable(_))), "{result:?}");
}

#[tokio::test]
async fn the_real_agent_keeps_the_contract_over_its_protocol() {
    let served = Served::new().await;
    super::super::double::Double::default().run_in(&served.supervisor, 1).await;
    let ticking = served.supervisor.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            ticking.tick().await;
        }
    });
    assert_eq!(served.supervisor.config.max_pause, contract::MAX_PAUSE);
    contract::holds(&served.client(&Identity::Operator)).await;
}

/// An agent whose guest is this machine.
async fn with_guest() -> Served {
    let network = serde_json::json!({
        "subnet": "127.0.0.0/28", "vni": 7, "port": 14789, "mtu": 1450, "door": "127.0.0.9",
        "doorMac": "02:76:c6:12:00:09",
        "members": [{"name": "count-0", "address": "127.0.0.1", "mac": "02:76:c6:12:00:01", "node": "192.0.2.1"}],
    });
    let served = Served::with(|config| config.network = Some(serde_json::from_value(network).unwrap())).await;
    served.supervisor.door.set(Arc::new(crate::driver::network::Door::here())).unwrap();
    served.supervisor.view.change(|facts| facts.set_vm(VmState::Running));
    served
}

#[tokio::test]
async fn a_port_of_the_guest_is_joined_with_the_operator() {
    let served = with_guest().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let guest = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.unwrap();
        stream.write_all(format!("{heard} to you").as_bytes()).await.unwrap();
    });
    let connection = served.client(&Identity::Operator).connect(port).await.unwrap();
    let mut said = Vec::new();
    let socket = crate::stream::over(connection, crate::stream::End::User).await;
    crate::stream::carry(socket, crate::stream::End::User, &b"hello"[..], &mut said).await.unwrap();
    assert_eq!(said, b"hello to you");
    guest.await.unwrap();
}

fn why<T>(result: Result<T, AgentError>) -> String {
    match result {
        Err(AgentError::Refused(why)) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    }
}

#[tokio::test]
async fn what_keeps_people_from_a_guest_is_said() {
    let served = with_guest().await;
    let operator = served.client(&Identity::Operator);
    let order = ExecOrder { command: vec!["true".into()], timeout: 5 };
    for other in [Identity::Kget, Identity::Repository] {
        assert!(why(served.client(&other).connect(22).await).contains("only the operator"));
        assert!(why(served.client(&other).exec(&order).await).contains("only the operator"));
    }
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    assert!(why(operator.connect(free).await).contains("nothing listens at port"));
    assert!(why(operator.exec(&order).await).contains("does not answer"));
    let all = served.supervisor.visits.clone().acquire_many_owned(visit::MOST as u32).await.unwrap();
    assert!(why(operator.connect(free).await).contains("16 connections"));
    drop(all);
    served.supervisor.view.change(|facts| facts.set_vm(VmState::Loaded));
    assert!(why(operator.connect(free).await).contains("does not run"));
    let without = Served::new().await;
    without.supervisor.view.change(|facts| facts.set_vm(VmState::Running));
    assert!(why(without.client(&Identity::Operator).connect(22).await).contains("no network of its own"));
}

/// A guest's agent, as long as there is one command that runs until it is killed.
async fn busy_guest(theirs: tokio::net::UnixStream) {
    let (from, mut to) = theirs.into_split();
    let mut lines = tokio::io::BufReader::new(from).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = line.strip_prefix(&[0xff]).unwrap_or(&line);
        let asked: serde_json::Value = serde_json::from_slice(line).unwrap();
        let mut reply = match asked["execute"].as_str().unwrap() {
            "guest-sync-delimited" => vec![0xff],
            _ => Vec::new(),
        };
        let result = match asked["execute"].as_str().unwrap() {
            "guest-sync-delimited" => asked["arguments"]["id"].clone(),
            "guest-exec" => serde_json::json!({"pid": 7}),
            _ => serde_json::json!({"exited": false}),
        };
        reply.extend_from_slice(format!("{}\n", serde_json::json!({"return": result})).as_bytes());
        to.write_all(&reply).await.unwrap();
    }
}

#[tokio::test]
async fn b9_a_persons_command_leaves_the_guests_channel_free() {
    let served = with_guest().await;
    let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
    tokio::spawn(busy_guest(theirs));
    *served.supervisor.guest.lock().await = Some(crate::driver::guest::channel::Channel::over(ours));
    served.supervisor.view.change(|facts| facts.guest.answers = true);
    let operator = served.client(&Identity::Operator);
    let order = ExecOrder { command: vec!["sleep".into()], timeout: 8 };
    let running = tokio::spawn(async move { operator.exec(&order).await });
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let taken = tokio::time::timeout(Duration::from_millis(500), served.supervisor.guest.lock()).await;
        assert!(taken.is_ok(), "the channel is held");
    }
    assert!(!running.is_finished());
    assert!(why(running.await.unwrap()).contains("killed after 8 s"));
}
