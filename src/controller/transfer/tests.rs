//! The whole controller over doubles, in simulated time.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::core::ObjectMeta;

use super::*;
use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, LABEL_JOB_UID, Reason, Snapshot, SnapshotSpec, SnapshotStatus,
        snapshot::{SnapshotMember, SnapshotPhase, SnapshotReason, Transfer, TransferState},
    },
    driver::{
        agent::{
            AgentError, Authority, CaptureOrder, NodeAgent,
            fake::{Call, FakeAgent, FakeAgents, Fault},
        },
        cluster::{Cluster, Kind, fake::FakeCluster},
        repository::fake::{FakeRepository, Trouble},
    },
    names::{Generation, JobUid},
    store::manifest::tests::manifest,
};

struct World {
    clock: Clock,
    cluster: FakeCluster,
    agents: FakeAgents,
    repository: FakeRepository,
    context: Arc<Context>,
    job: JobUid,
}

fn start() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

/// A process that remembers nothing.
pub(super) fn kget(
    epoch: u64,
    clock: &Clock,
    cluster: &FakeCluster,
    agents: &FakeAgents,
    repository: &FakeRepository,
) -> Arc<Context> {
    let (ledger, repository) = (Arc::new(repository.clone()), Arc::new(repository.clone()));
    let (board, agents) = (Arc::new(cluster.clone()), Arc::new(agents.clone()));
    let key = TicketKey::new(b"a secret for the tests only").unwrap();
    let changed = Arc::new(Notify::new());
    Arc::new(Context::new(epoch, clock.clone(), board, agents, repository, ledger, key, changed))
}

impl World {
    /// A job with two running members.
    async fn new() -> Self {
        let clock = Clock::manual(start());
        let cluster = FakeCluster::new(clock.clone());
        let job: BestEffortJob = crate::yaml::read(
            "apiVersion: vmdeploy.io/v1alpha1\nkind: BestEffortJob\nmetadata: {name: pi, namespace: alice}\n\
             spec: {members: 2, run: {command: [pi]}, slots: {site: rennes, walltime: 2h}}\n",
        )
        .unwrap();
        cluster.put_job(job);
        let job = TransferBoard::job_of(&cluster, "alice", "pi").unwrap();
        let status = BestEffortJobStatus { image: Some(manifest(1).image), ..BestEffortJobStatus::default() };
        cluster.patch_job_status(&job.metadata, &status).await.unwrap();
        let job = JobUid(job.metadata.uid.clone().unwrap());
        let (agents, repository) = (FakeAgents::default(), FakeRepository::trusting());
        let context = kget(1, &clock, &cluster, &agents, &repository);
        let world = Self { clock, cluster, agents, repository, context, job };
        for member in 0..2 {
            let agent = FakeAgent::loaded(world.job.clone(), member, 1, Duration::from_secs(2), world.clock.clone());
            let agent = world.agents.add(agent);
            agent.go(Authority { epoch: 1, incarnation: 1 }).await.unwrap();
            agent.set_prompt(false);
        }
        world
    }

    /// A new process that remembers nothing.
    fn restart(&mut self) {
        let epoch = self.context.epoch + 1;
        self.context = kget(epoch, &self.clock, &self.cluster, &self.agents, &self.repository);
    }

    fn agent(&self, member: u32) -> Arc<FakeAgent> {
        self.agents.get(&self.job, member, 1).unwrap()
    }

    /// Captures a generation of all members, as the operator does.
    async fn capture(&self, generation: Generation, reason: SnapshotReason) {
        let order = CaptureOrder {
            authority: Authority { epoch: 1, incarnation: 1 },
            generation,
            nonce: format!("n{generation}"),
            resume: true,
        };
        for member in 0..2 {
            self.agent(member).prepare(&order).await.unwrap();
        }
        for member in 0..2 {
            self.agent(member).stop(&order).await.unwrap();
        }
        for member in 0..2 {
            self.agent(member).cut(&order).await.unwrap();
            self.agent(member).captured();
        }
        let metadata = ObjectMeta {
            name: Some(format!("pi-{generation}")),
            namespace: Some("alice".into()),
            labels: Some([(LABEL_JOB_UID.to_owned(), self.job.0.clone())].into()),
            ..ObjectMeta::default()
        };
        let spec = SnapshotSpec { job: "pi".into(), reason, retain: false };
        self.cluster.create_snapshot(&Snapshot { metadata: metadata.clone(), spec, status: None }).await.unwrap();
        let member = |index| SnapshotMember {
            index,
            endpoint: format!("127.0.0.1:{}", 17_700 + index),
            ..SnapshotMember::default()
        };
        let status = SnapshotStatus {
            generation: Some(generation),
            phase: SnapshotPhase::Captured,
            incarnation: 1,
            job_uid: self.job.0.clone(),
            members: vec![member(0), member(1)],
            ..SnapshotStatus::default()
        };
        self.cluster.apply_snapshot_status(&metadata, &status).await.unwrap();
    }

    /// The operator says which members leave.
    async fn leaving(&self, generation: Generation, members: &[u32]) {
        let name = format!("pi-{generation}");
        let all = self.cluster.all_snapshots();
        let found = all.iter().find(|snapshot| snapshot.metadata.name.as_deref() == Some(&name)).unwrap();
        let status = SnapshotStatus { leaving: members.to_vec(), ..found.status.clone().unwrap() };
        self.cluster.apply_snapshot_status(&found.metadata, &status).await.unwrap();
    }

    /// Passes for so many simulated seconds; running uploads end after each.
    async fn passes(&self, seconds: u32, uploads_end: bool) {
        for _ in 0..seconds {
            pass(&self.context).await;
            // publications run beside the passes
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            for member in 0..2 {
                if uploads_end {
                    self.agent(member).uploaded();
                }
            }
            self.clock.advance(SignedDuration::from_secs(1));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }

    fn transfer(&self, generation: Generation) -> Transfer {
        let all = self.cluster.all_snapshots();
        let found = all.iter().find(|s| s.metadata.name.as_deref() == Some(&format!("pi-{generation}")));
        found.unwrap().status.as_ref().unwrap().transfer.clone().unwrap_or_default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_captured_generation_is_published() {
    let world = World::new().await;
    world.capture(1, SnapshotReason::Periodic).await;
    world.passes(8, true).await;
    let transfer = world.transfer(1);
    assert_eq!((transfer.state, &transfer.safe), (TransferState::Published, &vec![0, 1]), "{transfer:?}");
    assert_eq!(world.repository.complete(&world.job), [1].into());
    let times: Vec<Timestamp> = transfer.freed.iter().map(|freed| freed.at.0).collect();
    assert!(times.len() == 2 && times[0] < times[1] && times[1] < world.clock.now(), "{transfer:?}");
    let events: Vec<_> = world.cluster.events().into_iter().map(|event| (event.reason, event.action)).collect();
    let (safe, all) = ((Reason::MemberSafe, "StoreMember".into()), (Reason::Transferred, "Store".into()));
    assert_eq!(events, [safe.clone(), safe, all]);
    let writes = world.cluster.writes();
    assert_eq!(pass(&world.context).await, None, "nothing is left to look at");
    assert_eq!(world.cluster.writes(), writes);
}

/// It is held until it is stored or void: somebody has to come to one of them.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_deleted_while_it_is_stored_is_stored() {
    let world = World::new().await;
    world.capture(1, SnapshotReason::Notice).await;
    let metadata = world.cluster.all_snapshots()[0].metadata.clone();
    world.cluster.add_finalizer(Kind::Snapshot, &metadata).await.unwrap();
    world.cluster.delete(Kind::Snapshot, &metadata).await.unwrap();
    world.passes(8, true).await;
    assert_eq!(world.transfer(1).state, TransferState::Published);
    assert_eq!(world.repository.complete(&world.job), [1].into());
}

#[tokio::test(start_paused = true)]
async fn one_member_sends_and_another_is_only_tried_where_nothing_moves() {
    let world = World::new().await;
    world.capture(1, SnapshotReason::Periodic).await;
    let mut counts = Vec::new();
    for _ in 0..20 {
        world.passes(1, false).await;
        let uploads = (0..2).filter_map(|member| world.agent(member).peek().upload);
        counts.push(uploads.filter(|upload| upload.limit != Some(0)).count());
    }
    assert!(counts.starts_with(&[1, 1]) && counts.contains(&2) && counts.ends_with(&[1; 8]), "{counts:?}");
}

impl World {
    /// Passes for so many seconds, in which the link takes so many bytes a second of all that send, and each agent has
    /// no more to give than that. Most that sent at a time.
    async fn over_a_link(&self, seconds: u32, link: u64, each: u64) -> usize {
        let mut most = 0;
        for _ in 0..seconds * 4 {
            let moves = |member: &u32| {
                let upload = self.agent(*member).peek().upload;
                upload.is_some_and(|upload| !upload.done && upload.limit != Some(0))
            };
            let senders: Vec<u32> = (0..2).filter(moves).collect();
            most = most.max(senders.len());
            for member in &senders {
                self.agent(*member).sends((link / senders.len() as u64).min(each) / 4);
            }
            pass(&self.context).await;
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            self.clock.advance(SignedDuration::from_millis(250));
            tokio::time::advance(Duration::from_millis(250)).await;
        }
        most
    }
}

#[tokio::test(start_paused = true)]
async fn as_many_send_as_fill_the_link() {
    // a megabyte each
    for (each, expected) in [(100_000, 1), (30_000, 2)] {
        let world = World::new().await;
        world.capture(1, SnapshotReason::Notice).await;
        world.over_a_link(8, 50_000, each).await;
        assert_eq!(world.over_a_link(6, 50_000, each).await, expected, "{each}");
        let transfer = world.transfer(1);
        let (rate, filled) = (transfer.rate.unwrap(), 50_000.min(each * 2));
        assert!((filled * 8 / 10..=filled * 11 / 10).contains(&rate), "{transfer:?}");
        let left = transfer.eta.clone().unwrap().0.duration_since(world.clock.now()).as_secs_f64();
        let expected = (transfer.total - transfer.sent) as f64 / filled as f64;
        assert!((left - expected).abs() < expected * 0.25 + 1.0, "{left} {expected}");
        world.over_a_link(50, 50_000, each).await;
        assert_eq!(world.transfer(1).state, TransferState::Published);
    }
}

#[tokio::test(start_paused = true)]
async fn b6_who_leaves_is_free_first_although_another_has_begun() {
    let mut world = World::new().await;
    world.capture(1, SnapshotReason::Notice).await;
    world.leaving(1, &[0]).await;
    world.over_a_link(5, 50_000, 50_000).await;
    let begun = world.agent(0).peek().upload.unwrap();
    assert!(begun.sent > 100_000 && world.agent(1).peek().upload.is_none());
    // another slot is wanted instead
    world.leaving(1, &[1]).await;
    world.restart();
    world.over_a_link(15, 50_000, 50_000).await;
    let stands = world.agent(0).peek().upload.unwrap();
    assert!(stands.limit == Some(0) && stands.sent < begun.sent + 50_000, "{stands:?}");
    world.over_a_link(30, 50_000, 50_000).await;
    let transfer = world.transfer(1);
    assert_eq!(transfer.state, TransferState::Published);
    let freed: Vec<u32> = transfer.freed.iter().map(|freed| freed.member).collect();
    assert_eq!(freed, [1, 0]);
    assert_eq!(world.agent(0).peek().upload.unwrap().moved, Some(1 << 20), "nothing was sent twice");
}

#[tokio::test(start_paused = true)]
async fn a_limit_holds_for_periodic_transfers_only() {
    for (reason, limited) in [(SnapshotReason::Periodic, true), (SnapshotReason::Notice, false)] {
        let mut world = World::new().await;
        let limit = Limit { rate: Some(40_000), evacuations: false };
        let context = Arc::into_inner(world.context).unwrap().limited(limit);
        world.context = Arc::new(context);
        world.capture(1, reason).await;
        world.passes(2, false).await;
        let told = world.agent(0).peek().upload.unwrap().limit;
        assert_eq!(told, limited.then_some(40_000), "{reason:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_kget_that_is_killed_after_any_pass_goes_on() {
    for killed_after in 0..8 {
        let mut world = World::new().await;
        world.capture(1, SnapshotReason::Notice).await;
        world.passes(killed_after, true).await;
        let safe = world.transfer(1).safe;
        world.restart();
        // agents whose bytes are safe may be gone by now
        for member in &safe {
            world.agent(*member).set_reachable(false);
        }
        world.passes(8, true).await;
        assert_eq!(world.transfer(1).state, TransferState::Published, "killed after {killed_after} passes");
        assert_eq!(world.repository.complete(&world.job), [1].into());
    }
}

#[tokio::test(start_paused = true)]
async fn a_kget_that_begins_after_a_newer_capture_still_fetches_the_older_one() {
    let mut world = World::new().await;
    world.capture(1, SnapshotReason::Periodic).await;
    world.passes(2, false).await;
    world.capture(2, SnapshotReason::Periodic).await;
    world.restart();
    world.passes(20, true).await;
    for generation in [1, 2] {
        let transfer = world.transfer(generation);
        assert_eq!(transfer.state, TransferState::Published, "{transfer:?}");
    }
    assert_eq!(world.repository.complete(&world.job), [1, 2].into());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_lost_fails_the_transfer_and_no_other() {
    let world = World::new().await;
    world.capture(1, SnapshotReason::Periodic).await;
    world.passes(8, true).await;
    world.capture(2, SnapshotReason::Notice).await;
    world.agent(1).lose_lease();
    world.passes(40, true).await;
    assert_eq!(world.transfer(2).state, TransferState::Failed);
    assert!(world.transfer(2).message.unwrap().contains("member 1"));
    assert_eq!(world.repository.complete(&world.job), [1].into());
}

#[tokio::test(start_paused = true)]
async fn a_repository_that_is_away_or_full_is_waited_for() {
    for trouble in [Trouble::Unreachable, Trouble::Full] {
        let world = World::new().await;
        world.capture(1, SnapshotReason::Periodic).await;
        world.repository.set_trouble(trouble);
        world.passes(30, true).await;
        assert_ne!(world.transfer(1).state, TransferState::Failed, "{trouble:?}");
        assert_eq!(world.repository.complete(&world.job), [].into());
        world.repository.set_trouble(Trouble::None);
        world.passes(10, true).await;
        assert_eq!(world.transfer(1).state, TransferState::Published, "{trouble:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn b1_a_generation_that_was_overtaken_is_not_published() {
    let world = World::new().await;
    world.capture(1, SnapshotReason::Periodic).await;
    world.passes(2, true).await;
    crate::driver::repository::Repository::fence(&world.repository, &world.job, 2).await.unwrap();
    world.passes(10, true).await;
    assert_eq!(world.transfer(1).state, TransferState::Failed, "{:?}", world.transfer(1));
    assert_eq!(world.repository.complete(&world.job), [].into());
}

#[tokio::test(start_paused = true)]
async fn an_order_whose_answer_is_lost_or_refused_is_given_again() {
    let world = World::new().await;
    world.capture(1, SnapshotReason::Periodic).await;
    world.agent(0).fail(Call::Upload, Fault::After(AgentError::Unreachable("cut".into())));
    world.agent(1).fail(Call::Upload, Fault::Before(AgentError::Refused("busy".into())));
    world.passes(12, true).await;
    assert_eq!(world.transfer(1).state, TransferState::Published);
}

#[tokio::test(start_paused = true)]
async fn b17_an_evacuation_does_not_wait_for_the_api_server() {
    let world = World::new().await;
    world.capture(1, SnapshotReason::Notice).await;
    world.cluster.set_down(true);
    world.passes(8, true).await;
    assert_eq!(world.repository.complete(&world.job), [1].into());
}

#[tokio::test(start_paused = true)]
async fn b17_nor_for_one_that_takes_a_report_and_never_answers() {
    let world = World::new().await;
    world.capture(1, SnapshotReason::Notice).await;
    world.cluster.set_hung(true);
    world.passes(8, true).await;
    assert_eq!(world.repository.complete(&world.job), [1].into());
    world.cluster.set_hung(false);
    world.passes(8, true).await;
    assert_eq!(world.transfer(1).state, TransferState::Published);
}

#[tokio::test(start_paused = true)]
async fn b12_a_generation_of_a_job_that_cannot_be_read_is_not_given_up() {
    let world = World::new().await;
    world.capture(1, SnapshotReason::Periodic).await;
    world.cluster.set_unread(crate::driver::cluster::Kind::Job, "alice", "pi", true);
    world.passes(20, true).await;
    assert_ne!(world.transfer(1).state, TransferState::Failed);
    world.cluster.set_unread(crate::driver::cluster::Kind::Job, "alice", "pi", false);
    world.passes(5, true).await;
    assert_eq!(world.transfer(1).state, TransferState::Published);
}

#[tokio::test(start_paused = true)]
async fn a9_a_kget_that_no_longer_leads_orders_nothing() {
    let mut world = World::new().await;
    world.capture(1, SnapshotReason::Periodic).await;
    let old = world.context.clone();
    world.passes(1, false).await;
    world.restart();
    world.passes(3, true).await;
    world.capture(2, SnapshotReason::Periodic).await;
    let order = |epoch| crate::driver::agent::UploadOrder {
        epoch,
        generation: 99,
        incarnation: 1,
        ticket: "t".into(),
        limit: None,
        collector: None,
    };
    for member in 0..2 {
        // whatever the new one has ordered
        let refused = world.agent(member).upload(&order(world.context.epoch)).await;
        assert!(matches!(refused, Err(AgentError::Refused(_))));
    }
    // the old one wakes up
    let reports = world.cluster.writes()["report"];
    for _ in 0..10 {
        pass(&old).await;
        world.clock.advance(SignedDuration::from_secs(2));
    }
    assert_eq!(world.cluster.writes()["report"], reports, "what it takes for lost is not its to report");
    assert!(world.agent(0).state().await.unwrap().upload.is_none_or(|upload| upload.generation == 1));
    world.passes(8, true).await;
    assert_eq!(world.transfer(2).state, TransferState::Published);
}

#[tokio::test(start_paused = true)]
async fn d2_an_agent_that_says_another_kget_leads_stops_only_its_own_job() {
    let world = World::new().await;
    world.capture(1, SnapshotReason::Periodic).await;
    world.context.memory().superseded.insert("another".into());
    world.passes(8, true).await;
    assert_eq!(world.transfer(1).state, TransferState::Published);
}
