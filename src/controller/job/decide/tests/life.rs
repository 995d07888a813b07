//! A job and its facts. [`Life::pass`] decides, writes the status, and lets every effect work.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

mod effects;

use super::hypervisor::Server;
use crate::{
    api::{
        BestEffortJob, FINALIZER, JobPhase, LAST_STORED, Reason, SnapshotStatus,
        job::Allocation,
        job_status::{BestEffortJobStatus, ResolvedImage, SystemIdentity},
        snapshot::{SnapshotPhase, SnapshotReason},
    },
    config::NodeProperties,
    controller::{
        job::{
            decide::{decide, nodes, sent_key},
            plan::{
                AgentSeen, BarrierSeen, BarrierState, CaptureJob, Effect, ImageSeen, Leadership, NetworkSeen, NodeSeen,
                Plan, PodSeen, Reply, Seen, Setup, SiteSeen, SnapshotSeen,
            },
            tally::Tally,
        },
        note::Note,
    },
    driver::{
        Fact,
        agent::{
            Accelerator, AgentState, CapturePart, LeaveCode, LoadFault, PartState, VmState,
            fake::{loaded_state, machine_record, member_part},
        },
        repository::{GenerationSummary, JobContent},
        site::{Capabilities, End, Notice, NoticeKind, SlotFacts, SlotPhase},
    },
    names::NodeName,
    store::machine::Offer,
};

pub(super) const START: i64 = 1_800_000_000;
pub(super) const UID: &str = "3f2b8a10-9c1d-4e5f-8a7b-112233445566";

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A system, by some name.
pub(super) fn system(name: &str) -> SystemIdentity {
    SystemIdentity { uid: format!("uid of {name}"), boot: format!("boot of {name}") }
}

/// A node as the cluster shows it.
pub(super) fn node(n: u8) -> NodeSeen {
    NodeSeen {
        address: [192, 0, 2, n].into(),
        system: system(&format!("node-{n}")),
        of_another_slot: false,
        ready: true,
        control_plane: false,
    }
}

/// What the agents offer.
pub(super) fn offer() -> Offer {
    Offer { qemu: "7.2.22".into(), machines: vec!["pc-q35-7.2".into()], accelerator: Accelerator::Kvm, flags: None }
}

/// A job with its world.
#[derive(Clone)]
pub(super) struct Life {
    pub(super) job: BestEffortJob,
    pub(super) seen: Seen,
    pub(super) now: Timestamp,
    /// Whether slots run as soon as they are asked for.
    pub(super) prompt: bool,
    /// Whether generations become complete as soon as their Snapshots say that they are captured.
    pub(super) stores: bool,
    /// Whether generations are copied as soon as that is asked for.
    pub(super) adopts: bool,
    /// How long captures stop the guests, in milliseconds.
    pub(super) pause_ms: u64,
    pub(super) writes: u32,
    pub(super) done: Vec<Effect>,
    pub(super) whys: Vec<&'static str>,
    pub(super) told: Vec<Note>,
    pub(super) gone: bool,
    pub(super) server: Server,
    next_slot: u32,
}

pub(super) fn life(members: u32) -> Life {
    let text = format!(
        "apiVersion: vmdeploy.io/v1alpha1\nkind: BestEffortJob\nmetadata: {{name: pi, namespace: team, uid: {UID}, generation: 1}}\n\
         spec:\n  members: {members}\n  image: {{name: debian-12}}\n  run: {{command: [/bin/true]}}\n  \
         slots: {{site: rennes, walltime: 2h}}\n  snapshots: {{period: 10m, grace: 60s}}\n"
    );
    let mut job: BestEffortJob = crate::yaml::read(&text).unwrap();
    job.metadata.creation_timestamp = Some(Time(at(START)));
    let image = ResolvedImage {
        namespace: "team".into(),
        name: "debian-12".into(),
        disk: format!("sha256:{}", "0".repeat(64)),
        virtual_size: 1 << 30,
        kernel: None,
        initrd: None,
        params: None,
    };
    let nodes = (1..=8).map(|n| (NodeName(format!("node-{n}")), node(n)));
    let seen = Seen {
        leader: Leadership { epoch: 1, since: at(START) },
        setup: Setup {
            port_first: 17700,
            port_count: 64,
            sites: ["rennes".to_owned()].into(),
            accelerator: Accelerator::Probe,
            shared_images: false,
            agents: "vmdeploy:1".into(),
            offer: offer(),
        },
        site: Some(SiteSeen {
            capabilities: Capabilities { notice: true, per_member: true },
            isolation: Duration::from_secs(120),
            agent_wait: Duration::from_secs(300),
            deployment_wait: Some(Duration::from_secs(1800)),
            launches: false,
            max_memory: Some(4 << 30),
            properties: NodeProperties::default(),
        }),
        account: Fact::Known(Ok(())),
        image: Fact::Known(ImageSeen::Ready(image)),
        network: NetworkSeen {
            pool: Some("198.18.0.0/15".parse().unwrap()),
            subnet: Some("198.18.3.0/28".parse().unwrap()),
            mtu: 1450,
            port: 4789,
            vni: Some(77),
            overlap: None,
            host_key: Some("ssh-ed25519 AAAA".into()),
        },
        source: None,
        missing_inputs: Fact::Absent,
        slots: Fact::Known(Vec::new()),
        looked_up: Some(at(START)),
        reads_good_since: Some(at(START - 100)),
        site_error: None,
        releases: BTreeMap::new(),
        reply: None,
        pods: BTreeMap::new(),
        agents: BTreeMap::new(),
        nodes: nodes.collect(),
        deployments: BTreeMap::new(),
        tokens: BTreeMap::new(),
        environment: Fact::Absent,
        launch_key: Fact::Absent,
        silent_launchers: BTreeMap::new(),
        barrier: None,
        content: Fact::Known(JobContent::default()),
        snapshots: Vec::new(),
        missing_image: Fact::Absent,
        repository_silent: None,
        unread_snapshots: false,
        room: Fact::Absent,
        unfit: Vec::new(),
        partly_started: None,
        others: Tally::default(),
        sent: BTreeMap::new(),
    };
    Life {
        job,
        seen,
        now: at(START),
        prompt: true,
        stores: true,
        adopts: true,
        pause_ms: 30,
        writes: 0,
        done: Vec::new(),
        whys: Vec::new(),
        told: Vec::new(),
        gone: false,
        server: Server::default(),
        next_slot: 101,
    }
}

impl Life {
    pub(super) fn status(&self) -> BestEffortJobStatus {
        self.job.status.clone().unwrap_or_default()
    }

    pub(super) fn phase(&self) -> JobPhase {
        self.status().phase
    }

    pub(super) fn message(&self, kind: &str) -> String {
        let status = self.status();
        let found = status.conditions.iter().find(|condition| condition.type_ == kind);
        found.map(|c| format!("{} {}: {}", c.status, c.reason, c.message)).unwrap_or_default()
    }

    pub(super) fn plan(&self) -> Plan {
        decide(&self.job, &self.seen, self.now)
    }

    /// Writes the status of a plan, and lets nothing else of it happen: a crash.
    pub(super) fn write_only(&mut self, plan: &Plan) {
        if self.job.status.as_ref() != Some(&plan.status) && plan.status != BestEffortJobStatus::default() {
            self.writes += 1;
            let (from, to) = (self.phase(), plan.status.phase);
            let allowed = from == to || crate::controller::job::states::next(from).contains(&to);
            assert!(allowed, "{from:?} -> {to:?}: {}", plan.why);
            self.job.status = Some(plan.status.clone());
        }
        self.forget_other_workflows();
        // whoever is in the status is listened to, whether it exists or not
        for agent in plan.status.everyone().filter_map(|member| member.agent.as_ref()) {
            let nobody = AgentSeen { state: None, heard: None, moved: None, listening: self.now };
            self.seen.agents.entry(agent.pod.clone()).or_insert(nobody);
        }
    }

    /// One pass, in which everything works.
    pub(super) fn pass(&mut self) -> Plan {
        let plan = self.plan();
        self.whys.push(plan.why);
        self.told.extend(plan.notes.iter().cloned());
        self.write_only(&plan);
        self.perform(&plan);
        plan
    }

    /// Lets the effects of a plan work.
    pub(super) fn perform(&mut self, plan: &Plan) {
        for effect in &plan.effects {
            self.seen.sent.insert(sent_key(effect), self.now);
            self.work(effect);
            self.done.push(effect.clone());
        }
    }

    /// Passes until one has nothing to do.
    pub(super) fn settle(&mut self) {
        for _ in 0..40 {
            let writes = self.writes;
            let plan = self.pass();
            if self.gone || (plan.effects.is_empty() && self.writes == writes) {
                return;
            }
        }
        panic!("it never comes to rest: {:?}", &self.whys[self.whys.len() - 10..]);
    }

    /// Lets time go by in steps of a second, with a pass after each.
    pub(super) fn run(&mut self, seconds: u32) {
        for _ in 0..seconds {
            if self.gone {
                return;
            }
            self.advance(1);
            self.settle();
        }
    }

    /// Lets time go by without a pass: living agents go on speaking, and guests running.
    pub(super) fn advance(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
        self.seen.looked_up = self.seen.looked_up.map(|_| self.now);
        if self.seen.content.known().is_none() {
            self.seen.repository_silent = Some(self.now);
        }
        for (pod, agent) in &mut self.seen.agents {
            let ended = self.seen.pods.get(pod).is_none_or(|pod| pod.ended.is_some());
            if let Some(state) = agent.state.as_mut().filter(|_| !ended && agent.heard.is_some()) {
                agent.heard = Some(self.now);
                if state.vm == VmState::Running {
                    state.ran += seconds as f64;
                }
            }
        }
    }

    pub(super) fn slots(&mut self) -> &mut Vec<SlotFacts> {
        match &mut self.seen.slots {
            Fact::Known(slots) => slots,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn slot(&mut self, id: &str) -> &mut SlotFacts {
        self.slots().iter_mut().find(|slot| slot.id.0 == id).unwrap()
    }

    pub(super) fn content(&mut self) -> &mut JobContent {
        match &mut self.seen.content {
            Fact::Known(content) => content,
            other => panic!("{other:?}"),
        }
    }

    /// A slot of a submission, as the site shows it.
    pub(super) fn add_slot(&mut self, submission: u32) -> String {
        let id = self.next_slot.to_string();
        self.next_slot += 1;
        let name = crate::names::slot_name(&UID.into(), submission);
        let phase = SlotPhase::Waiting { message: "in the queue".into(), expected: None };
        let slot = SlotFacts {
            id: id.clone().into(),
            name,
            phase,
            nodes: Vec::new(),
            since: None,
            until: None,
            notice: None,
            unreached: false,
        };
        self.slots().push(slot);
        id
    }

    pub(super) fn start_slot(&mut self, id: &str) {
        let each = match self.job.spec.slots.allocation {
            Allocation::Gang => nodes(&self.job.spec) as usize,
            Allocation::PerMember => 1,
        };
        let runs = |slot: &&SlotFacts| slot.phase == SlotPhase::Running;
        let taken: Vec<NodeName> = self.slots().iter().filter(runs).flat_map(|slot| slot.nodes.clone()).collect();
        let all = (1..=16).map(|n| NodeName(format!("node-{n}")));
        let free: Vec<NodeName> = all.filter(|node| each > 1 || !taken.contains(node)).take(each).collect();
        let now = self.now;
        let slot = self.slot(id);
        slot.phase = SlotPhase::Running;
        slot.nodes = free;
        slot.since = Some(now);
        slot.until = Some(now + SignedDuration::from_hours(2));
    }

    /// The slot is over and everything in it is dead.
    pub(super) fn end_slot(&mut self, id: &str, end: End) {
        self.slot(id).phase = SlotPhase::Ended(end);
        for member in self.status().everyone() {
            if let Some(agent) = member.agent.as_ref().filter(|agent| agent.slot == id) {
                self.end_pod(&agent.pod);
            }
        }
    }

    pub(super) fn end_pod(&mut self, pod: &str) {
        if let Some(pod) = self.seen.pods.get_mut(pod) {
            pod.ended = Some("Completed, exit code 0".into());
        }
    }

    pub(super) fn notice(&mut self, id: &str, kind: NoticeKind) {
        let now = self.now;
        self.slot(id).notice = Some(Notice { kind, at: now });
    }

    /// The pod of a member's agent, or of the master's.
    pub(super) fn pod_of(&self, member: u32) -> String {
        let found = self.status().everyone().nth(member as usize).unwrap().agent.clone();
        found.unwrap().pod
    }

    pub(super) fn agent(&mut self, member: u32) -> &mut AgentState {
        let pod = self.pod_of(member);
        self.seen.agents.get_mut(&pod).unwrap().state.as_mut().unwrap()
    }

    /// The member is heard no more, and nothing of it is known to have ended.
    pub(super) fn silence(&mut self, member: u32) {
        let pod = self.pod_of(member);
        self.seen.agents.get_mut(&pod).unwrap().heard = None;
        self.seen.agents.get_mut(&pod).unwrap().listening = self.now;
    }

    /// Events of a reason, in the order in which they were told.
    pub(super) fn told(&self, reason: Reason) -> Vec<&str> {
        self.told.iter().filter(|note| note.reason == reason).map(|note| note.message.as_str()).collect()
    }

    pub(super) fn effects(&self, name: &str) -> Vec<&Effect> {
        self.done.iter().filter(|effect| effect.name() == name).collect()
    }

    fn capture(&mut self, capture: &CaptureJob) {
        let now = self.now;
        for agent in &capture.agents {
            let Some(state) = self.seen.agents.get_mut(&agent.pod).and_then(|agent| agent.state.as_mut()) else {
                continue;
            };
            let mut record = member_part(agent.member);
            record.ran = state.ran;
            state.capture = Some(CapturePart {
                generation: capture.generation,
                nonce: capture.nonce.clone(),
                state: PartState::Captured,
                stopped_at: Some(now),
                pause_ms: Some(self.pause_ms),
                bytes: 1 << 20,
                record: Some(record),
            });
            state.vm = if capture.resume { VmState::Running } else { VmState::Stopped };
        }
        self.seen.barrier = Some(BarrierSeen { job: capture.clone(), since: now, state: BarrierState::Cut });
    }

    /// The repository has a generation.
    pub(super) fn store(&mut self, generation: u32, incarnation: u32) {
        let (now, members) = (self.now, self.job.spec.members);
        let content = self.content();
        content.highest = content.highest.max(generation);
        content.generations.push(GenerationSummary {
            generation,
            incarnation,
            parent: None,
            taken_at: now,
            stored: 1000,
            members,
            machine: Some(machine_record()),
        });
    }

    pub(super) fn add_snapshot(&mut self, name: &str, reason: SnapshotReason) {
        self.seen.snapshots.push(SnapshotSeen {
            name: name.into(),
            uid: format!("uid of {name}"),
            reason,
            retain: false,
            deleting: false,
            status: SnapshotStatus::default(),
        });
    }

    /// All commands have ended.
    pub(super) fn finish(&mut self, code: i32) {
        for member in 0..self.job.spec.members {
            let guest = &mut self.agent(member).guest;
            guest.exit_code = Some(code);
            guest.outputs_kept = true;
        }
    }

    /// A job that runs, some seconds after its start.
    pub(super) fn running(members: u32) -> Self {
        let mut life = life(members);
        life.run(5);
        assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
        life
    }
}
