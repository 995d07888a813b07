//! Two agents and the repository, all real but for their VMs: one gives its part to the other, which brings it.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{
    super::{
        server,
        testing::{Making, config},
        upload::KINDS,
    },
    *,
};
use crate::{
    driver::{
        agent::{
            AgentAddress, AgentState, CapturePart, Collector, NodeAgent, PartState, UploadOrder, fake::member_part,
            http::AgentHttp,
        },
        repository::{
            ByteStore as _, KeptPart, RepositoryError, Sending,
            carry::Carrying as _,
            contract::{Bench, job},
        },
    },
    names::Identity,
    store::{
        manifest::{Manifest, MemberPart, tests::manifest},
        ticket::Ticket,
    },
    tls,
};

const HOUR: Duration = Duration::from_secs(3600);
const GENERATION: Generation = 1;
/// Of each file: more than a pack.
const SIZE: usize = 3 << 19;

struct Node {
    supervisor: Arc<Supervisor>,
    address: AgentAddress,
    kget: AgentHttp,
    _root: tempfile::TempDir,
}

fn content(member: MemberIndex, kind: FileKind) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{member} {kind}").as_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

fn identity(member: MemberIndex) -> Identity {
    Identity::Agent { job: job(), member, incarnation: 1 }
}

impl Node {
    /// An agent with a captured part on its disk.
    async fn new(bench: &Bench, member: MemberIndex) -> Self {
        let root = tempfile::tempdir().unwrap();
        let (authority, _) = bench.clients.as_ref().unwrap();
        let issue = |who: &Identity| authority.issue(who, jiff::Timestamp::now(), HOUR).unwrap();
        let config = crate::driver::agent::AgentConfig { job: job(), member, members: 3, ..config(root.path()) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap();
        let address = AgentAddress { endpoint, job: job(), member, incarnation: 1 };
        let store = Arc::new(bench.client(&identity(member)));
        let supervisor = Making::below(root.path()).config(config).store(store).make();
        std::fs::create_dir_all(supervisor.paths.generation(GENERATION)).unwrap();
        for kind in KINDS {
            std::fs::write(supervisor.paths.part(GENERATION, kind), content(member, kind)).unwrap();
        }
        let part = CapturePart {
            generation: GENERATION,
            nonce: "n1".into(),
            state: PartState::Captured,
            stopped_at: None,
            pause_ms: None,
            bytes: 3 * SIZE as u64,
            record: Some(member_part(member)),
        };
        supervisor.view.change(|facts| facts.captured.push(part));
        let (own, router) = (issue(&identity(member)), server::router(supervisor.clone()));
        tokio::spawn(async move { tls::serve(listener, &own, router, CancellationToken::new()).await });
        let kget = AgentHttp::new(&issue(&Identity::Kget), &address);
        Self { supervisor, address, kget, _root: root }
    }

    async fn until(&self, what: &str, so: impl Fn(&AgentState) -> bool) -> AgentState {
        for _ in 0..2400 {
            // an answer that does not come in time says nothing
            if let Ok(state) = self.kget.state().await
                && so(&state)
            {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not {what}: {:?}", self.kget.state().await.unwrap());
    }

    /// What its agent is ordered to send, and where.
    async fn send(&self, bench: &Bench, collector: Option<&Self>) {
        let member = self.address.member;
        let to = |node: &Self| Collector { member: node.address.member, endpoint: node.address.endpoint };
        let order = UploadOrder {
            epoch: 1,
            generation: GENERATION,
            incarnation: 1,
            ticket: bench.ticket(GENERATION, member, 1),
            limit: None,
            collector: collector.map(to),
        };
        self.kget.upload(&order).await.unwrap();
    }

    /// The stand of what is held of a member here.
    fn held(&self, member: MemberIndex) -> HeldPart {
        let held = self.supervisor.view.render().held.into_iter().find(|held| held.part.index == member);
        held.unwrap()
    }
}

/// Lets `bearer` take and bring the part of `member`.
fn grant(bench: &Bench, member: MemberIndex, bearer: Option<MemberIndex>, limit: Option<u64>) -> CollectOrder {
    let ticket = Ticket {
        job: job(),
        generation: GENERATION,
        member,
        incarnation: 1,
        expires: jiff::Timestamp::now() + HOUR,
        most: None,
        quota: None,
        bearer,
    };
    CollectOrder {
        epoch: 1,
        generation: GENERATION,
        incarnation: 1,
        part: member_part(member),
        nonce: "n1".into(),
        bytes: 3 * SIZE as u64,
        ticket: bench.key.as_ref().unwrap().sign(&ticket),
        limit,
    }
}

async fn job_of_two() -> (Bench, Node, Node) {
    let bench = Bench::real().await;
    // the first question about a generation is written down, and a collector does not wait long for a slow disk
    let asked = bench.client(&identity(0));
    asked.may_bring(&bench.ticket(GENERATION, 0, 1), &job(), GENERATION, 0).await.unwrap();
    let (sender, collector) = (Node::new(&bench, 0).await, Node::new(&bench, 1).await);
    (bench, sender, collector)
}

#[tokio::test]
async fn b15_what_is_held_is_in_the_repository_in_the_end_with_its_own_node_gone() {
    let (bench, sender, collector) = job_of_two().await;
    collector.kget.collect(&grant(&bench, 0, Some(1), Some(0))).await.unwrap();
    sender.send(&bench, Some(&collector)).await;
    let state = collector.until("held", |state| state.held.iter().any(|held| held.whole)).await;
    assert!(state.held[0].stored > 3 * SIZE as u64 && state.held[0].size == 3 * SIZE as u64, "{state:?}");
    let state = sender.until("done", |state| state.upload.as_ref().is_some_and(|upload| upload.done)).await;
    assert_eq!(state.upload.unwrap().collector, Some(1));
    let kept = bench.ledger.kept_parts(&job(), GENERATION).await;
    assert!(!kept.is_ok_and(|kept| !kept.is_empty()), "it is not in the repository");
    assert!(!collector.held(0).done, "it has not been told to bring it");
    // the node is somebody else's now
    sender.supervisor.stop.cancel();
    std::fs::remove_dir_all(&sender.supervisor.paths.vm).unwrap();

    collector.kget.collect(&grant(&bench, 0, Some(1), None)).await.unwrap();
    collector.send(&bench, None).await;
    let state = collector.until("brought", |state| state.held[0].done).await;
    let HeldPart { part, nonce, .. } = state.held[0].clone();
    let kept = KeptPart { incarnation: 1, nonce, part };
    bench.ledger.keep_part(&job(), GENERATION, &kept).await.unwrap();
    let state = collector.until("sent", |state| state.upload.as_ref().is_some_and(|upload| upload.done)).await;
    let own = MemberPart { files: state.upload.unwrap().files, ..member_part(1) };
    let members = vec![kept.part.clone(), own];
    bench.kget.publish(&Manifest { members, ..manifest(GENERATION) }).await.unwrap();
    let restoring = bench.client(&identity(0));
    let to = tempfile::tempdir().unwrap();
    for file in &kept.part.files {
        let path = to.path().join("file");
        restoring.get_part(&job(), GENERATION, 0, file, &path, &|_| {}).await.unwrap();
        assert!(std::fs::read(&path).unwrap() == content(0, file.kind), "{}", file.kind);
    }
}

#[tokio::test]
async fn b15_a_collector_brings_on_where_it_was_stopped_and_a_repeated_order_takes_nothing_twice() {
    let (bench, sender, collector) = job_of_two().await;
    let order = grant(&bench, 0, Some(1), Some(0));
    collector.kget.collect(&order).await.unwrap();
    collector.kget.collect(&order).await.unwrap();
    sender.send(&bench, Some(&collector)).await;
    let whole = collector.until("held", |state| state.held[0].whole).await;
    sender.send(&bench, Some(&collector)).await;
    assert_eq!(collector.held(0).stored, whole.held[0].stored);
    // some of it
    collector.kget.collect(&CollectOrder { limit: Some(1 << 20), ..order.clone() }).await.unwrap();
    collector.until("on its way", |state| state.held[0].moved > 1 << 18).await;
    collector.kget.collect(&order).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let stood = collector.held(0).moved;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(collector.held(0).moved, stood);
    collector.kget.collect(&CollectOrder { limit: None, ..order }).await.unwrap();
    let state = collector.until("brought", |state| state.held[0].done).await;
    assert_eq!(state.held.len(), 1);
}

#[tokio::test]
async fn d1_only_the_members_own_agent_sends_its_part_and_only_with_kgets_word() {
    let (bench, sender, collector) = job_of_two().await;
    let content = sender.supervisor.paths.part(GENERATION, FileKind::Disk);
    let send = async |who: &Identity, member: MemberIndex| {
        let store = bench.client(who).through(&collector.address).unwrap();
        let ticket = bench.ticket(GENERATION, member, 1);
        let progress = |_: Sending| {};
        store.put_part(&ticket, &job(), GENERATION, member, FileKind::Disk, &content, &progress).await
    };
    let refused = |result: Result<PartFile, RepositoryError>, part: &str| {
        assert!(matches!(&result, Err(RepositoryError::Refused(why)) if why.contains(part)), "{result:?}");
    };
    refused(send(&identity(0), 0).await, "has made no room");
    // the operator, another agent and the member itself make none
    for who in
        [Identity::Repository, identity(0), Identity::Agent { job: "ffffffff".into(), member: 0, incarnation: 1 }]
    {
        let (authority, _) = bench.clients.as_ref().unwrap();
        let own = authority.issue(&who, jiff::Timestamp::now(), HOUR).unwrap();
        let order = grant(&bench, 0, Some(1), Some(0));
        let result = AgentHttp::new(&own, &collector.address).collect(&order).await;
        assert!(matches!(&result, Err(AgentError::Refused(_))), "{who}: {result:?}");
    }
    // nor does kget with what the repository would not take from here
    for (member, bearer) in [(0, None), (0, Some(2)), (1, Some(1))] {
        let result = collector.kget.collect(&grant(&bench, member, bearer, Some(0))).await;
        assert!(matches!(&result, Err(AgentError::Refused(_))), "{member} by {bearer:?}: {result:?}");
    }
    let other = CollectOrder { incarnation: 2, ..grant(&bench, 0, Some(1), Some(0)) };
    assert!(matches!(collector.kget.collect(&other).await, Err(AgentError::Refused(_))));
    collector.kget.collect(&grant(&bench, 0, Some(1), Some(0))).await.unwrap();
    // an agent of another member, in its own name and in that of the one that is waited for
    refused(send(&identity(1), 1).await, "has made no room");
    let stranger = bench.client(&identity(1)).through(&collector.address).unwrap();
    let result = stranger
        .put_part(&bench.ticket(GENERATION, 1, 1), &job(), GENERATION, 0, FileKind::Disk, &content, &|_| {})
        .await;
    assert!(matches!(&result, Err(RepositoryError::Refused(_))), "{result:?}");
    send(&identity(0), 0).await.unwrap();
    let earlier = CollectOrder { epoch: 0, ..grant(&bench, 0, Some(1), None) };
    assert!(matches!(collector.kget.collect(&earlier).await, Err(AgentError::Superseded(_))));
}

#[tokio::test]
async fn d1_what_is_not_what_its_name_says_is_not_taken() {
    let (bench, _sender, collector) = job_of_two().await;
    collector.kget.collect(&grant(&bench, 0, Some(1), Some(0))).await.unwrap();
    let (authority, _) = bench.clients.as_ref().unwrap();
    let own = authority.issue(&identity(0), jiff::Timestamp::now(), HOUR).unwrap();
    let client = own.http_client(&identity(1), &collector.address.endpoint.to_string()).unwrap();
    let mut builder = crate::store::pack::Builder::new(crate::store::pack::PAGE);
    let block = [7; crate::store::pack::PAGE];
    builder.push(crate::store::pack::BlockName::of(&block), &block).unwrap();
    let packed = builder.finish().unwrap();
    let put = async |body: Vec<u8>| {
        let path = crate::driver::repository::wire::new_pack_path(&job(), 1, 0, FileKind::Disk, packed.pack.name);
        let url = format!("{}{path}", tls::base_url(&identity(1)));
        client.put(url).body(body).send().await.unwrap().status().as_u16()
    };
    let mut damaged = packed.bytes.clone();
    damaged[0] ^= 1;
    assert_eq!(put(damaged).await, 422);
    assert_eq!(put(b"short".to_vec()).await, 422);
    assert_eq!(put(packed.bytes[..packed.bytes.len() - 1].to_vec()).await, 422);
    assert_eq!(collector.held(0).stored, 0);
    assert_eq!(put(packed.bytes.clone()).await, 204);
    assert_eq!(put(packed.bytes.clone()).await, 204);
    assert_eq!(collector.held(0).stored, packed.bytes.len() as u64, "it is there once");
}

#[tokio::test]
async fn a_collector_without_room_says_so_and_what_did_not_fit_goes_to_the_repository() {
    let (bench, sender, collector) = job_of_two().await;
    let huge = CollectOrder { bytes: u64::MAX / 4, ..grant(&bench, 0, Some(1), Some(0)) };
    let result = collector.kget.collect(&huge).await;
    assert!(matches!(&result, Err(AgentError::Refused(why)) if why.contains("no room")), "{result:?}");
    // less than comes, but for what is allowed for
    let small = CollectOrder { bytes: 1, ..grant(&bench, 0, Some(1), Some(0)) };
    collector.kget.collect(&small).await.unwrap();
    sender.send(&bench, Some(&collector)).await;
    let failed = sender.until("refused", |state| state.upload.as_ref().is_some_and(|u| u.error.is_some())).await;
    let upload = failed.upload.unwrap();
    assert!(upload.collector == Some(1) && upload.error.as_ref().unwrap().contains("full"), "{upload:?}");
    sender.send(&bench, None).await;
    let state = sender.until("sent", |state| state.upload.as_ref().is_some_and(|upload| upload.done)).await;
    assert_eq!(state.upload.unwrap().collector, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn b15_what_is_held_is_brought_with_the_vm_lost_and_nothing_more_is_taken() {
    let (bench, sender, collector) = job_of_two().await;
    // kept back until the VM is lost
    collector.kget.collect(&grant(&bench, 0, Some(1), Some(0))).await.unwrap();
    sender.send(&bench, Some(&collector)).await;
    collector.until("held", |state| state.held.iter().any(|held| held.whole)).await;
    collector.supervisor.lose_vm("its disk takes no data");
    let refused = collector.kget.collect(&grant(&bench, 2, Some(1), Some(0))).await.unwrap_err();
    assert!(matches!(&refused, AgentError::Refused(why) if why.contains("lost its VM")), "{refused}");
    collector.kget.collect(&grant(&bench, 0, Some(1), None)).await.unwrap();
    collector.until("brought", |state| state.held.iter().any(|held| held.done)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b15_a_collector_that_was_given_up_replaces_nothing_that_the_own_agent_has_sent() {
    let (bench, sender, collector) = job_of_two().await;
    let order = grant(&bench, 0, Some(1), Some(0));
    collector.kget.collect(&order).await.unwrap();
    sender.send(&bench, Some(&collector)).await;
    collector.until("held", |state| state.held.iter().any(|held| held.whole)).await;
    sender.send(&bench, None).await;
    sender.until("sent", |state| state.upload.as_ref().is_some_and(|u| u.done && u.collector.is_none())).await;
    collector.kget.collect(&CollectOrder { limit: None, ..order }).await.unwrap();
    let state = collector.until("refused", |state| state.held[0].error.is_some()).await;
    assert!(state.held[0].error.as_ref().unwrap().contains("sends its part itself"), "{state:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_of_a_capture_goes_with_the_next_one() {
    let (bench, sender, collector) = job_of_two().await;
    collector.kget.collect(&grant(&bench, 0, Some(1), Some(0))).await.unwrap();
    sender.send(&bench, Some(&collector)).await;
    collector.until("held", |state| state.held.iter().any(|held| held.whole)).await;
    let files = || std::fs::read_dir(collector.supervisor.paths.held()).unwrap().count();
    let before = files();
    collector.supervisor.forget_held(GENERATION).await;
    assert!(before >= KINDS.len() && files() == before, "{before}");
    collector.supervisor.forget_held(GENERATION + 1).await;
    assert_eq!((files(), collector.kget.state().await.unwrap().held.len()), (0, 0));
}
