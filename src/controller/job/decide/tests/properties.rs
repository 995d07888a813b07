//! Random things happen to a job.

use std::time::Duration;

use proptest::prelude::*;

use super::{adopt::cloning, life::*};
use crate::{
    api::{JobPhase, job_status::SlotState, period::Period},
    controller::job::plan::{Effect, Plan},
    driver::{
        Fact,
        agent::{LoadFault, VmState},
        site::{End, NoticeKind, SlotPhase},
    },
    names::submission_of,
};

#[derive(Clone, Debug)]
enum Event {
    Time(u8),
    End(End),
    Notice(NoticeKind),
    Silence(u8),
    MemberGone(u8, LoadFault),
    PodEnds(u8),
    SiteUnknown,
    SiteKnown,
    RepositoryUnknown,
    RepositoryKnown,
    Finish(i32),
    Suspend(bool),
    LeaderChange,
    Stores(bool),
    Prompt(bool),
    Stranger(u8),
    UserSnapshot,
    Adopts(bool),
    SourceGoes,
    Crash,
}

fn event() -> impl Strategy<Value = Event> {
    let end = prop_oneof![
        Just(End::Preempted),
        Just(End::Walltime),
        Just(End::Infrastructure("x".into())),
        Just(End::Deleted("alice".into())),
        Just(End::HoldFailed("the hold was killed".into())),
        Just(End::Released),
    ];
    prop_oneof![
        12 => (1_u8..120).prop_map(Event::Time),
        2 => end.prop_map(Event::End),
        1 => Just(Event::Notice(NoticeKind::Preemption)),
        1 => Just(Event::Notice(NoticeKind::Walltime)),
        1 => Just(Event::Notice(NoticeKind::Person)),
        1 => any::<u8>().prop_map(Event::Silence),
        1 => (any::<u8>(), prop::sample::select(vec![LoadFault::Unknown, LoadFault::Node, LoadFault::Part]))
            .prop_map(|(member, fault)| Event::MemberGone(member, fault)),
        1 => any::<u8>().prop_map(Event::PodEnds),
        1 => Just(Event::SiteUnknown),
        2 => Just(Event::SiteKnown),
        1 => Just(Event::RepositoryUnknown),
        2 => Just(Event::RepositoryKnown),
        1 => (0..2).prop_map(Event::Finish),
        1 => any::<bool>().prop_map(Event::Suspend),
        1 => Just(Event::LeaderChange),
        1 => any::<bool>().prop_map(Event::Stores),
        1 => any::<bool>().prop_map(Event::Prompt),
        1 => (0_u8..4).prop_map(Event::Stranger),
        1 => Just(Event::UserSnapshot),
        1 => any::<bool>().prop_map(Event::Adopts),
        1 => Just(Event::SourceGoes),
        2 => Just(Event::Crash),
    ]
}

/// A life with parts of its world hidden.
struct Story {
    life: Life,
    site_hidden: bool,
    repository_hidden: bool,
    requests: Vec<u32>,
    captures: Vec<u32>,
}

impl Story {
    fn seen_plan(&self) -> Plan {
        let mut seen = self.life.seen.clone();
        if self.site_hidden {
            seen.slots = Fact::Unknown { since: at(START) };
            seen.reads_good_since = None;
        }
        if self.repository_hidden {
            seen.content = Fact::Unknown { since: self.life.now };
        }
        crate::controller::job::decide::decide(&self.life.job, &seen, self.life.now)
    }

    fn clones(&self) -> bool {
        self.life.job.spec.restore_from.is_some()
    }

    fn check(&mut self, plan: &Plan) {
        let before = self.life.status();
        for effect in &plan.effects {
            match effect {
                Effect::SubmitSlots { submission, .. } => {
                    assert!(!self.requests.contains(submission), "submission {submission} is sent twice");
                    self.requests.push(*submission);
                    assert!(!self.site_hidden, "a request while the site is not known");
                    let complete = plan.status.adopted.as_ref().is_some_and(|adopted| adopted.complete.is_some());
                    assert!(!self.clones() || complete, "a request before there is something to start from");
                    assert_eq!(plan.status.pending_submission.as_ref().map(|p| p.number), Some(*submission));
                }
                Effect::Capture(capture) => {
                    assert!(!self.captures.contains(&capture.generation), "generation {} again", capture.generation);
                    self.captures.push(capture.generation);
                }
                Effect::CreateAgent(placement) => {
                    assert!(!self.clones() || placement.restore.is_some(), "a cold boot of a clone");
                    let old = before.members.iter().filter_map(|m| m.agent.as_ref());
                    for pod in old.filter(|agent| agent.incarnation < placement.incarnation).map(|agent| &agent.pod) {
                        let Some(agent) = self.life.seen.agents.get(pod) else { continue };
                        let alive = agent.state.as_ref().is_some_and(|state| !matches!(state.vm, VmState::Gone { .. }))
                            && agent.heard == Some(self.life.now);
                        let ended = self.life.seen.pods.get(pod).is_none_or(|pod| pod.ended.is_some());
                        assert!(!alive || ended, "a member of an older incarnation lives");
                    }
                }
                Effect::ReleaseSlot { id } => {
                    let slot = plan.status.slots.iter().find(|slot| slot.id == id.0).unwrap();
                    assert!(slot.release.is_some(), "a deletion without an intent");
                }
                _ => {}
            }
        }
        let used = plan.status.slots.iter().filter(|slot| slot.release.is_none() && slot.state != SlotState::Ended);
        assert!(used.count() <= 1, "two slots in use");
        assert!(plan.effects.iter().filter(|effect| effect.name() == "SubmitSlots").count() <= 1);
        assert!(plan.status.submission >= before.submission && plan.status.incarnation >= before.incarnation);
        assert!(plan.status.snapshots.next_generation >= before.snapshots.next_generation);
    }

    /// One pass; a crash lets only the status be written, and some of the effects work.
    fn pass(&mut self, crash_after: Option<usize>) {
        let plan = self.seen_plan();
        self.check(&plan);
        let again = self.seen_plan();
        assert_eq!(plan, again, "the same facts make the same plan");
        let finalizer = plan.effects.iter().any(|effect| effect.name() == "AddFinalizer");
        let Some(crash_after) = crash_after.filter(|_| !finalizer) else {
            self.act(&plan, usize::MAX);
            return;
        };
        self.act(&plan, crash_after);
        self.restart();
    }

    fn act(&mut self, plan: &Plan, effects: usize) {
        self.life.write_only(plan);
        self.life.whys.push(plan.why);
        let part = Plan { effects: plan.effects.iter().take(effects).cloned().collect(), ..plan.clone() };
        self.life.perform(&part);
    }

    fn restart(&mut self) {
        self.life.seen.reply = None;
        self.life.seen.barrier = None;
        self.life.seen.sent.clear();
        self.life.seen.leader.epoch += 1;
        let now = self.life.now;
        for agent in self.life.seen.agents.values_mut() {
            agent.listening = now;
        }
    }

    fn in_use(&self) -> Option<String> {
        let status = self.life.status();
        status.slots.iter().find(|slot| slot.state != SlotState::Ended).map(|slot| slot.id.clone())
    }

    fn member(&self, pick: u8) -> Option<u32> {
        let status = self.life.status();
        let member = u32::from(pick) % self.life.job.spec.members;
        let agent = status.members.get(member as usize)?.agent.as_ref()?;
        self.life.seen.agents.get(&agent.pod)?.state.as_ref().map(|_| member)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Time(seconds) => self.life.advance(i64::from(seconds)),
            Event::End(end) => {
                if let Some(id) = self.in_use()
                    && !matches!(self.life.slot(&id).phase, SlotPhase::Ended(_))
                {
                    self.life.end_slot(&id, end);
                }
            }
            Event::Notice(kind) => {
                if let Some(id) = self.in_use() {
                    self.life.notice(&id, kind);
                }
            }
            Event::Silence(pick) => {
                if let Some(member) = self.member(pick) {
                    self.life.silence(member);
                }
            }
            Event::MemberGone(pick, fault) => {
                if let Some(member) = self.member(pick) {
                    self.life.agent(member).vm = VmState::Gone { reason: "x".into(), fault };
                }
            }
            Event::PodEnds(pick) => {
                if let Some(member) = self.member(pick) {
                    let pod = self.life.status().members[member as usize].agent.clone().unwrap().pod;
                    self.life.end_pod(&pod);
                }
            }
            Event::SiteUnknown => self.site_hidden = true,
            Event::SiteKnown => self.site_hidden = false,
            Event::RepositoryUnknown => self.repository_hidden = true,
            Event::RepositoryKnown => self.repository_hidden = false,
            Event::Finish(code) => {
                if self.life.phase() == JobPhase::Running {
                    for member in 0..self.life.job.spec.members {
                        let guest = &mut self.life.agent(member).guest;
                        (guest.exit_code, guest.outputs_kept) = (Some(code), true);
                    }
                }
            }
            Event::Suspend(suspend) => self.life.job.spec.suspend = suspend,
            Event::LeaderChange => self.restart(),
            Event::Stores(stores) => self.life.stores = stores,
            Event::Prompt(prompt) => self.life.prompt = prompt,
            Event::Stranger(ahead) => {
                let submission = self.life.status().submission + u32::from(ahead);
                let id = self.life.add_slot(submission.max(1));
                assert!(submission_of(&UID.into(), &self.life.slot(&id).name).is_some());
                self.requests.push(submission.max(1));
            }
            Event::UserSnapshot => {
                let name = format!("user-{}", self.life.seen.snapshots.len() + self.life.done.len());
                if !self.life.seen.snapshots.iter().any(|snapshot| snapshot.name == name) {
                    self.life.add_snapshot(&name, crate::api::snapshot::SnapshotReason::User);
                }
            }
            Event::Adopts(adopts) => self.life.adopts = adopts,
            Event::SourceGoes => {
                let adopted = !self.life.content().generations.is_empty();
                if let Some(source) = &mut self.life.seen.source {
                    source.snapshot = None;
                    if !adopted {
                        source.manifest = Fact::Absent;
                    }
                }
            }
            Event::Crash => self.pass(Some(self.life.done.len() % 3)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_nothing_forbidden_is_done_and_it_ends(
        events in prop::collection::vec(event(), 1..60), adaptive: bool, clones in prop::bool::weighted(0.3),
    ) {
        let mut life = if clones { cloning(2) } else { life(2) };
        if adaptive {
            life.job.spec.snapshots.period = Period::Adaptive;
        }
        life.pass();
        let mut story = Story {
            life, site_hidden: false, repository_hidden: false, requests: Vec::new(), captures: Vec::new(),
        };
        for event in events {
            story.happen(event);
            story.pass(None);
            story.life.advance(1);
            story.pass(None);
        }
        // the faults stop; whatever it was doing, deletion leaves nothing
        (story.site_hidden, story.repository_hidden) = (false, false);
        story.life.job.metadata.deletion_timestamp = story.life.job.metadata.creation_timestamp.clone();
        for _ in 0..400 {
            if story.life.gone { break; }
            story.life.advance(1);
            story.pass(None);
        }
        prop_assert!(story.life.gone, "{:?}", &story.life.whys);
        let left = story.life.slots().iter().filter(|slot| !matches!(slot.phase, SlotPhase::Ended(_))).count();
        prop_assert_eq!((left, story.life.seen.pods.len()), (0, 0));
    }
}

#[test]
fn waiting_is_never_shorter_than_a_moment() {
    let mut life = life(1);
    for _ in 0..50 {
        life.advance(1);
        let wake = life.pass().wake;
        assert!(wake.is_none_or(|wake| wake >= Duration::from_millis(50)));
    }
}
