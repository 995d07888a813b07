//! Members that give their bytes to others, in simulated time: whoever dies, whenever.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use kube::core::ObjectMeta;
use rstest::rstest;

use super::{tests::kget, *};
use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, LABEL_JOB_UID, Reason, Snapshot, SnapshotSpec, SnapshotStatus,
        job_status::{AgentStatus, MemberStatus, SlotStatus},
        snapshot::{CollectedState, SnapshotMember, SnapshotPhase, SnapshotReason, Transfer, TransferState},
    },
    driver::{
        agent::{
            AgentError, Authority, CaptureOrder, NodeAgent,
            fake::{Call, FakeAgent, FakeAgents, Fault},
        },
        cluster::{Cluster, fake::FakeCluster},
        repository::fake::FakeRepository,
    },
    names::JobUid,
    store::manifest::tests::manifest,
};

const MEMBERS: u32 = 4;
/// Of each member's part.
const BYTES: u64 = 1 << 20;
/// A part takes eight seconds over any link.
const LINK: u64 = BYTES / 8;
/// Looks in a second.
const STEPS: u32 = 4;
const GENERATION: u32 = 2;

/// A job of four members, each with a slot of its own.
struct World {
    clock: Clock,
    cluster: FakeCluster,
    agents: FakeAgents,
    repository: FakeRepository,
    context: Arc<Context>,
    job: JobUid,
    /// Members whose agents are gone.
    gone: BTreeSet<u32>,
    /// When each member's slot was given back, in steps.
    freed: BTreeMap<u32, u32>,
    steps: u32,
}

fn start() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

impl World {
    /// Its members are captured and have to leave, those that are `leaving` or all, within so many seconds.
    async fn new(grace: u32, leaving: &[u32], complete: Option<u32>) -> Self {
        let clock = Clock::manual(start());
        let cluster = FakeCluster::new(clock.clone());
        let job: BestEffortJob = crate::yaml::read(&format!(
            "apiVersion: vmdeploy.io/v1alpha1\nkind: BestEffortJob\nmetadata: {{name: pi, namespace: alice}}\n\
             spec: {{members: {MEMBERS}, run: {{command: [pi]}}, slots: {{site: rennes, walltime: 2h, allocation: PerMember}}, \
             snapshots: {{grace: {grace}s}}}}\n",
        ))
        .unwrap();
        cluster.put_job(job);
        let job = TransferBoard::job_of(&cluster, "alice", "pi").unwrap();
        let mut status = BestEffortJobStatus { image: Some(manifest(1).image), ..BestEffortJobStatus::default() };
        status.snapshots.last_stored = complete;
        for index in 0..MEMBERS {
            let wanted = leaving.is_empty() || leaving.contains(&index);
            let notice = if wanted { format!("notice: '{}', ", start()) } else { String::new() };
            let until = start() + SignedDuration::from_secs(7200);
            let slot: SlotStatus = crate::yaml::read(&format!(
                "{{id: '{index}', submission: 1, state: Running, {notice}until: '{until}'}}"
            ))
            .unwrap();
            status.slots.push(slot);
            let agent = crate::yaml::read::<AgentStatus>(&format!(
                "{{pod: p{index}, endpoint: '127.0.0.1:1', incarnation: 1, slot: '{index}'}}"
            ));
            status.members.push(MemberStatus { index, agent: Some(agent.unwrap()), ..MemberStatus::default() });
        }
        cluster.patch_job_status(&job.metadata, &status).await.unwrap();
        let job = JobUid(job.metadata.uid.clone().unwrap());
        let (agents, repository) = (FakeAgents::default(), FakeRepository::trusting());
        let context = kget(1, &clock, &cluster, &agents, &repository);
        for member in 0..MEMBERS {
            let agent = FakeAgent::loaded(job.clone(), member, 1, Duration::from_secs(2), clock.clone());
            let agent = agents.add(agent);
            agent.go(Authority { epoch: 1, incarnation: 1 }).await.unwrap();
            agent.set_prompt(false);
        }
        let (gone, freed) = (BTreeSet::new(), BTreeMap::new());
        let world = Self { clock, cluster, agents, repository, context, job, gone, freed, steps: 0 };
        world.capture(leaving).await;
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

    async fn capture(&self, leaving: &[u32]) {
        let order = CaptureOrder {
            authority: Authority { epoch: 1, incarnation: 1 },
            generation: GENERATION,
            nonce: "n2".into(),
            resume: false,
        };
        for member in 0..MEMBERS {
            self.agent(member).prepare(&order).await.unwrap();
        }
        for member in 0..MEMBERS {
            self.agent(member).stop(&order).await.unwrap();
        }
        for member in 0..MEMBERS {
            self.agent(member).cut(&order).await.unwrap();
            self.agent(member).captured();
        }
        let metadata = ObjectMeta {
            name: Some("pi-2".into()),
            namespace: Some("alice".into()),
            labels: Some([(LABEL_JOB_UID.to_owned(), self.job.0.clone())].into()),
            ..ObjectMeta::default()
        };
        let spec = SnapshotSpec { job: "pi".into(), reason: SnapshotReason::Notice, retain: false };
        self.cluster.create_snapshot(&Snapshot { metadata: metadata.clone(), spec, status: None }).await.unwrap();
        let member = |index| SnapshotMember {
            index,
            endpoint: format!("127.0.0.1:{}", 17_700 + index),
            ..SnapshotMember::default()
        };
        let status = SnapshotStatus {
            generation: Some(GENERATION),
            phase: SnapshotPhase::Captured,
            incarnation: 1,
            job_uid: self.job.0.clone(),
            members: (0..MEMBERS).map(member).collect(),
            leaving: leaving.to_vec(),
            ..SnapshotStatus::default()
        };
        self.cluster.apply_snapshot_status(&metadata, &status).await.unwrap();
    }

    fn transfer(&self) -> Transfer {
        self.cluster.all_snapshots()[0].status.as_ref().unwrap().transfer.clone().unwrap_or_default()
    }

    /// Bytes move: to the repository over its link, which all share, and between nodes.
    fn move_bytes(&self) {
        let alive: Vec<u32> = (0..MEMBERS).filter(|member| !self.gone.contains(member)).collect();
        let mut feeding: Vec<(u32, Option<u32>)> = Vec::new();
        for member in &alive {
            let state = self.agent(*member).peek();
            match &state.upload {
                Some(upload) if upload.done || upload.limit == Some(0) => {}
                Some(upload) if upload.collector.is_none() => feeding.push((*member, None)),
                Some(upload) => {
                    let by = upload.collector.unwrap();
                    if self.gone.contains(&by) {
                        continue;
                    }
                    let taken = self.agent(by).peek().held.iter().any(|held| held.part.index == *member);
                    assert!(taken, "d1: member {member} sends to {by}, which was not told of it");
                    self.agent(*member).sends(LINK / u64::from(STEPS));
                    if self.agent(*member).peek().upload.is_some_and(|upload| upload.done) {
                        self.agent(by).takes(*member, BYTES);
                    }
                }
                None => {}
            }
            let held = state.held.iter().filter(|held| held.whole && !held.done && held.limit != Some(0));
            feeding.extend(held.map(|held| (*member, Some(held.part.index))));
        }
        let each = LINK / u64::from(STEPS) / feeding.len().max(1) as u64;
        for (agent, held) in feeding {
            match held {
                None => self.agent(agent).sends(each),
                Some(member) => self.agent(agent).brings(member, each),
            }
        }
    }

    /// The operator gives back what it may.
    fn give_back(&mut self) {
        let status = self.cluster.all_snapshots()[0].status.clone().unwrap();
        let transfer = status.transfer.unwrap_or_default();
        let wanted = |member: &u32| status.leaving.is_empty() || status.leaving.contains(member);
        for member in transfer.needs_not().iter().filter(|member| wanted(member)) {
            if self.gone.insert(*member) {
                let held = self.agent(*member).peek().held;
                // what is sent to the repository by its own agent is nobody else's any more
                let kept = |of: u32| {
                    let mut all = transfer.collected.iter();
                    !all.any(|one| one.member == of && one.state == CollectedState::GivenUp)
                };
                let left = held.iter().filter(|held| !held.done).map(|held| held.part.index).filter(|of| kept(*of));
                let left: Vec<u32> = left.collect();
                assert_eq!(left, [] as [u32; 0], "b15: member {member} is let go with bytes of others: {transfer:?}");
                self.agent(*member).set_reachable(false);
                self.freed.insert(*member, self.steps);
            }
        }
    }

    /// What holds always.
    fn check(&self) {
        let transfer = self.transfer();
        for member in (0..MEMBERS).filter(|member| !self.gone.contains(member)) {
            let Some(upload) = self.agent(member).peek().upload else { continue };
            if let Some(by) = upload.collector {
                let said = transfer.collected.iter().any(|one| one.member == member && one.by == by);
                assert!(said, "b15: member {member} sends to {by}, and it is written nowhere: {transfer:?}");
            }
        }
    }

    async fn step(&mut self) {
        self.move_bytes();
        pass(&self.context).await;
        // reports and publications run beside the passes
        for _ in 0..30 {
            tokio::task::yield_now().await;
        }
        self.check();
        self.give_back();
        self.steps += 1;
        let step = Duration::from_secs(1) / STEPS;
        self.clock.advance(step.try_into().unwrap());
        tokio::time::advance(step).await;
    }

    /// Until it is published or given up.
    async fn run_to_its_end(&mut self) -> TransferState {
        for _ in 0..300 * STEPS {
            let state = self.transfer().state;
            if matches!(state, TransferState::Published | TransferState::Failed) {
                return state;
            }
            self.step().await;
        }
        panic!("it has come to no end: {:?}", self.transfer());
    }

    /// Who has bytes of others or is being given some.
    fn collectors(&self) -> BTreeSet<u32> {
        self.transfer().collected.iter().map(|one| one.by).collect()
    }

    /// Seconds until so many were free.
    fn free_after(&self, members: usize) -> f64 {
        let mut all: Vec<u32> = self.freed.values().copied().collect();
        all.sort_unstable();
        f64::from(all[members - 1]) / f64::from(STEPS)
    }
}

#[tokio::test(start_paused = true)]
async fn most_are_free_before_the_repository_has_the_bytes_of_half() {
    let mut world = World::new(600, &[], Some(1)).await;
    assert_eq!(world.run_to_its_end().await, TransferState::Published);
    let (two, three, all) = (world.free_after(2), world.free_after(3), world.free_after(4));
    // one by one it would be 16, 24 and 32 seconds
    assert!(two < 13.0 && three < 20.0 && all < 36.0, "{two} {three} {all}: {:?}", world.freed);
    assert_eq!(world.repository.complete(&world.job), [GENERATION].into());
    let transfer = world.transfer();
    assert!(transfer.collected.iter().all(|one| one.state == CollectedState::Held), "{transfer:?}");
    let events: Vec<_> = world.cluster.events().into_iter().map(|event| event.reason).collect();
    assert!(events.contains(&Reason::MemberCollected), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn who_stays_takes_the_bytes_of_who_leaves() {
    let mut world = World::new(600, &[1, 2], Some(1)).await;
    assert_eq!(world.run_to_its_end().await, TransferState::Published);
    let collectors = world.collectors();
    assert!(!collectors.is_empty() && collectors.is_subset(&[0, 3].into()), "{collectors:?}");
    assert!(world.free_after(2) < 13.0, "{:?}", world.freed);
}

#[tokio::test(start_paused = true)]
async fn in_doubt_all_send_to_the_repository() {
    // no generation to go back to; too little time; switched off
    for (grace, complete, on) in [(600, None, true), (40, Some(1), true), (600, Some(1), false)] {
        let mut world = World::new(grace, &[], complete).await;
        if !on {
            let context = kget(1, &world.clock, &world.cluster, &world.agents, &world.repository);
            world.context = Arc::new(Arc::into_inner(context).unwrap().without_collectors());
        }
        assert_eq!(world.run_to_its_end().await, TransferState::Published);
        assert_eq!(world.collectors(), [].into(), "grace {grace}, complete {complete:?}");
        assert_eq!(world.freed.len(), 4);
    }
}

#[tokio::test(start_paused = true)]
async fn b15_kget_that_dies_after_any_of_its_writes_goes_on_from_what_is_written_and_listed() {
    let writes = |world: &World| world.cluster.writes().values().sum::<u64>();
    let mut undisturbed = World::new(600, &[], Some(1)).await;
    let before = writes(&undisturbed);
    undisturbed.run_to_its_end().await;
    let all = writes(&undisturbed) - before;
    for n in 0..all {
        let mut world = World::new(600, &[], Some(1)).await;
        let before = writes(&world);
        while writes(&world) - before <= n {
            world.step().await;
        }
        world.restart();
        let moved = |world: &World| {
            (0..MEMBERS).map(|member| world.agent(member).peek().upload.map(|u| u.sent)).collect::<Vec<_>>()
        };
        let known = moved(&world);
        world.step().await;
        for (before, after) in known.iter().zip(moved(&world)) {
            assert!(before <= &after, "after {n} writes something is sent again");
        }
        assert_eq!(world.run_to_its_end().await, TransferState::Published, "after {n} writes");
    }
}

#[tokio::test(start_paused = true)]
async fn b15_a_collector_that_dies_takes_with_it_what_only_it_has_and_no_more() {
    let mut undisturbed = World::new(600, &[], Some(1)).await;
    undisturbed.run_to_its_end().await;
    let mut ends = BTreeMap::new();
    for n in 0..undisturbed.steps {
        let mut world = World::new(600, &[], Some(1)).await;
        let mut victim = None;
        for _ in 0..=n {
            world.step().await;
            victim = world.collectors().first().copied();
        }
        let Some(victim) = victim.filter(|victim| !world.gone.contains(victim)) else { continue };
        world.gone.insert(victim);
        world.agent(victim).lose_lease();
        let end = world.run_to_its_end().await;
        let transfer = world.transfer();
        *ends.entry(format!("{end:?}")).or_insert(0) += 1;
        if end == TransferState::Failed {
            let why = transfer.message.unwrap_or_default();
            assert!(why.contains("member"), "{why}");
            assert_eq!(world.repository.complete(&world.job), [].into(), "nothing half is complete");
        }
    }
    assert!(ends["Failed"] > 10, "{ends:?}");
}

#[rstest]
#[case::refused(AgentError::Refused("no room".into()))]
// though kget and they see each other
#[case::unanswered(AgentError::Unreachable("no answer in time".into()))]
#[tokio::test(start_paused = true)]
async fn what_no_collector_takes_goes_to_the_repository(#[case] why: AgentError) {
    let mut world = World::new(600, &[], Some(1)).await;
    for member in 0..MEMBERS {
        for _ in 0..400 {
            world.agent(member).fail(Call::Collect, Fault::Before(why.clone()));
        }
    }
    assert_eq!(world.run_to_its_end().await, TransferState::Published);
    let transfer = world.transfer();
    assert!(!transfer.collected.is_empty(), "{transfer:?}");
    assert!(transfer.collected.iter().all(|one| one.state == CollectedState::GivenUp), "{transfer:?}");
    assert_eq!(world.freed.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_a_collector_has_no_room_for_in_the_middle_goes_to_the_repository() {
    let mut world = World::new(600, &[], Some(1)).await;
    let mut failed = false;
    while !failed {
        world.step().await;
        for member in 0..MEMBERS {
            let agent = world.agent(member);
            let half = agent.peek().upload.is_some_and(|u| u.collector.is_some() && !u.done && u.sent > BYTES / 2);
            if half {
                agent.change(|state| {
                    state.upload.as_mut().unwrap().error = Some("the repository is full: no room".into());
                });
                failed = true;
            }
        }
    }
    assert_eq!(world.run_to_its_end().await, TransferState::Published);
    let given_up = world.transfer().collected.iter().filter(|one| one.state == CollectedState::GivenUp).count();
    assert_eq!((given_up, world.freed.len()), (1, 4), "{:?}", world.transfer());
}
