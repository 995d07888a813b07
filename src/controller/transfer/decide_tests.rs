use rstest::rstest;

use super::*;
use crate::{
    driver::agent::fake::member_part,
    driver::agent::{CapturePart, GuestState, LeaseState, PROTOCOL, PartState, UploadState, VmState},
    store::manifest::tests::{manifest, part as stored_part},
};

const TERMS: Terms = Terms { senders: 1, rate: None, limit: Limit { rate: None, evacuations: false } };

fn decide(cases: &[Case], now: Timestamp) -> Plan {
    super::decide(cases, &TERMS, now)
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn before(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

fn state(member: MemberIndex, bytes: u64) -> AgentState {
    AgentState {
        protocol: PROTOCOL,
        job: "j1".into(),
        member,
        incarnation: 1,
        lease: LeaseState::Held,
        vm: VmState::Running,
        guest: GuestState::default(),
        notice: None,
        capture: Some(CapturePart {
            generation: 7,
            nonce: "n1".into(),
            state: PartState::Captured,
            stopped_at: None,
            pause_ms: None,
            bytes,
            record: Some(member_part(member)),
        }),
        earlier: Vec::new(),
        upload: None,
        held: Vec::new(),
        ran: 1.0,
        machine: None,
        offer: None,
        lacks: Vec::new(),
        waiting: None,
        restored: None,
        kept: None,
        leaving: None,
        cleared: false,
    }
}

fn agent(member: MemberIndex, bytes: u64) -> AgentSeen {
    let port = 17_700 + u16::try_from(member).unwrap();
    AgentSeen {
        address: Some(AgentAddress {
            endpoint: ([127, 0, 0, 1], port).into(),
            job: "j1".into(),
            member,
            incarnation: 1,
        }),
        member,
        state: Some(state(member, bytes)),
        silent: None,
        record: Some(("n1".into(), member_part(member))),
        ordered: None,
        carried: None,
        until: None,
    }
}

/// Two members with 200 and 100 bytes, nothing sent yet.
fn case() -> Case {
    Case {
        uid: "s1".into(),
        job: "j1".into(),
        job_name: "pi".into(),
        namespace: "alice".into(),
        generation: 7,
        incarnation: 1,
        parent: None,
        reason: SnapshotReason::Periodic,
        leaving: Vec::new(),
        taken_at: before(10),
        shown: Transfer::default(),
        written: None,
        safe_since: BTreeMap::new(),
        image: Fact::Known(manifest(7).image),
        guests: manifest(7).guests,
        most: None,
        quota: None,
        kept: Fact::Known(vec![]),
        published: Fact::Absent,
        publishing: false,
        refused: None,
        collects: false,
        agents: vec![agent(0, 200), agent(1, 100)],
    }
}

fn kept(member: MemberIndex) -> KeptPart {
    KeptPart { incarnation: 1, nonce: "n1".into(), part: stored_part(member) }
}

fn sending(generation: Generation) -> UploadState {
    UploadState { generation, sent: 40, total: 100, ..UploadState::default() }
}

fn done(member: MemberIndex) -> UploadState {
    let files = stored_part(member).files;
    UploadState { generation: 7, sent: 100, total: 100, files, done: true, ..UploadState::default() }
}

fn set(agent: &mut AgentSeen, upload: UploadState) {
    agent.state.as_mut().unwrap().upload = Some(upload);
}

/// Those that are told to begin, and not only to get ready.
fn uploads(plan: &Plan) -> Vec<(String, MemberIndex)> {
    let upload = |effect: &Effect| match effect {
        Effect::Upload { snapshot, agent, limit, .. } if *limit != Some(0) => Some((snapshot.clone(), agent.member)),
        Effect::Upload { .. }
        | Effect::Pace { .. }
        | Effect::Hand { .. }
        | Effect::Collect { .. }
        | Effect::Keep { .. }
        | Effect::Publish { .. } => None,
    };
    plan.effects.iter().filter_map(upload).collect()
}

fn report(plan: &Plan) -> Transfer {
    plan.reports[0].transfer.clone()
}

#[test]
fn nothing_to_move_asks_for_nothing() {
    assert_eq!(decide(&[], now()), Plan::default());
}

#[test]
fn the_smallest_member_sends_first_and_alone() {
    let plan = decide(&[case()], now());
    assert_eq!(uploads(&plan), [("s1".into(), 1)]);
    assert_eq!((report(&plan).state, report(&plan).total), (TransferState::Sending, 300));
    assert_eq!(plan.wake, Some(MOVING));
}

#[test]
fn nobody_else_sends_meanwhile() {
    let mut case = case();
    set(&mut case.agents[1], sending(7));
    let plan = decide(&[case], now());
    assert_eq!(uploads(&plan), []);
    assert_eq!((report(&plan).sent, report(&plan).total), (40, 300));
}

#[test]
fn b15_a_member_is_safe_by_the_repositorys_listing_only() {
    let mut case = case();
    set(&mut case.agents[1], done(1));
    let plan = decide(std::slice::from_ref(&case), now());
    assert_eq!(report(&plan).safe, [] as [u32; 0]);
    let Effect::Keep { part, .. } = &plan.effects[0] else { panic!("{plan:?}") };
    assert_eq!((part.part.index, &part.nonce, part.part.files.len()), (1, &"n1".to_owned(), 2));
    assert_eq!(uploads(&plan), [("s1".into(), 0)], "the next one does not wait for the books");
    case.kept = Fact::Known(vec![kept(1)]);
    assert_eq!(report(&decide(&[case], now())).safe, [1]);
}

#[test]
fn a_new_process_sends_again_only_what_is_not_safe() {
    let mut case = case();
    case.kept = Fact::Known(vec![kept(1)]);
    // the agent of the safe member is gone, and nobody minds
    case.agents[1].state = None;
    case.agents[1].silent = Some((before(60), 60));
    let plan = decide(&[case], now());
    assert_eq!(uploads(&plan), [("s1".into(), 0)]);
}

#[test]
fn a_generation_is_published_once_all_is_safe() {
    let mut case = case();
    case.kept = Fact::Known(vec![kept(1), kept(0)]);
    let plan = decide(std::slice::from_ref(&case), now());
    let [Effect::Publish { manifest, .. }] = plan.effects.as_slice() else { panic!("{plan:?}") };
    assert_eq!(manifest.check(), Ok(()));
    assert_eq!((manifest.members.len(), manifest.nonce.as_str(), manifest.generation), (2, "n1", 7));
    case.publishing = true;
    assert_eq!(decide(std::slice::from_ref(&case), now()).effects, []);
    case.publishing = false;
    case.published = Fact::Known(());
    let plan = decide(&[case], now());
    assert_eq!((report(&plan).state, report(&plan).safe), (TransferState::Published, vec![0, 1]));
    assert_eq!(plan.effects, []);
}

#[test]
fn b2_parts_of_different_cuts_are_no_generation() {
    let mut case = case();
    case.kept = Fact::Known(vec![kept(0), KeptPart { nonce: "n2".into(), ..kept(1) }]);
    let plan = decide(&[case], now());
    assert_eq!((report(&plan).state, plan.effects.len()), (TransferState::Failed, 0));
}

#[test]
fn b1_parts_of_another_incarnation_do_not_count() {
    let mut case = case();
    case.kept = Fact::Known(vec![kept(0), KeptPart { incarnation: 2, ..kept(1) }]);
    let plan = decide(&[case], now());
    assert_eq!(uploads(&plan), [("s1".into(), 1)]);
}

#[test]
fn evacuations_go_first_and_do_not_wait_for_periodic_ones() {
    let evacuation = Case { uid: "s2".into(), reason: SnapshotReason::Notice, taken_at: before(1), ..case() };
    let mut periodic = case();
    let plan = decide(&[periodic.clone(), evacuation.clone()], now());
    assert_eq!(uploads(&plan), [("s2".into(), 1)]);
    set(&mut periodic.agents[1], sending(7));
    let plan = decide(&[periodic, evacuation.clone()], now());
    assert_eq!(uploads(&plan), [("s2".into(), 1)]);
    let mut first = evacuation.clone();
    set(&mut first.agents[1], sending(7));
    let plan = decide(&[first, Case { uid: "s3".into(), ..evacuation }], now());
    assert_eq!(uploads(&plan), [], "evacuations share the link one by one");
}

#[test]
fn an_agent_that_still_sends_an_older_generation_is_waited_for() {
    let mut case = case();
    set(&mut case.agents[1], sending(6));
    let plan = decide(&[case], now());
    assert_eq!(uploads(&plan), [("s1".into(), 0)]);
    assert!(report(&plan).message.unwrap().contains("generation 6"));
}

/// Generation 7 is being sent by member 1, and generation 8 is the last of these members.
fn final_one(sent: u64, safe: &[MemberIndex]) -> [Case; 2] {
    let mut older = case();
    older.kept = Fact::Known(safe.iter().map(|member| kept(*member)).collect());
    let mut last = case();
    (last.uid, last.generation, last.reason) = ("s2".into(), 8, SnapshotReason::Notice);
    for case in [&mut older, &mut last] {
        set(&mut case.agents[1], UploadState { sent, ..sending(7) });
        for agent in &mut case.agents {
            agent.state.as_mut().unwrap().capture.as_mut().unwrap().generation = 8;
        }
    }
    older.agents[1].ordered = Some(Ordered { times: 1, last: before(5), refused: None, limit: None, collector: None });
    [older, last]
}

#[rstest]
#[case::others_are_missing_too(99, &[], true)]
#[case::the_last_one_has_only_begun(50, &[0], true)]
#[case::the_last_one_is_nearly_there(51, &[0], false)]
fn an_older_generation_gives_way_to_the_last_of_its_members(
    #[case] sent: u64,
    #[case] safe: &[MemberIndex],
    #[case] gives_way: bool,
) {
    let cases = final_one(sent, safe);
    let plan = decide(&cases, now());
    assert_eq!(uploads(&plan), [("s2".into(), u32::from(gives_way))]);
    // a periodic one goes on waiting
    let [older, mut later] = cases;
    later.reason = SnapshotReason::Periodic;
    assert_eq!(uploads(&decide(&[older, later], now())), []);
}

#[test]
fn what_the_repository_has_is_not_known_and_nothing_gives_way() {
    let mut cases = final_one(99, &[]);
    cases[0].kept = Fact::Unknown { since: before(1) };
    assert_eq!(uploads(&decide(&cases, now())), [("s2".into(), 0)]);
}

/// The other way round: the agent would refuse it.
#[test]
fn the_last_generation_never_gives_way_to_an_older_one() {
    let [mut older, mut last] = final_one(40, &[]);
    older.reason = SnapshotReason::Suspend;
    for case in [&mut older, &mut last] {
        set(&mut case.agents[1], UploadState { generation: 8, ..sending(8) });
    }
    let plan = decide(&[older, last], now());
    assert!(!uploads(&plan).contains(&("s1".into(), 1)), "{plan:?}");
}

#[test]
fn packs_that_are_read_again_are_said_to_be_and_hold_the_link() {
    let mut case = case();
    set(&mut case.agents[0], UploadState { reading_back: Some(12), ..sending(7) });
    let plan = decide(&[case], now());
    assert_eq!(plan.effects, []);
    let said = report(&plan).message.unwrap();
    assert_eq!(said, "member 0: the repository reads 12 packs again that it shares with earlier ones");
}

#[test]
fn an_upload_that_stands_still_holds_nobody_up_and_says_why() {
    let standing = |generation| UploadState { waiting: Some("no room".into()), ..sending(generation) };
    let mut case = case();
    set(&mut case.agents[1], standing(7));
    let plan = decide(std::slice::from_ref(&case), now());
    assert_eq!(uploads(&plan), [("s1".into(), 0)]);
    assert!(report(&plan).message.unwrap().contains("no room"));
    // an older one gives way, a newer one does not
    set(&mut case.agents[1], standing(6));
    assert_eq!(uploads(&decide(std::slice::from_ref(&case), now())), [("s1".into(), 1)]);
    set(&mut case.agents[1], standing(8));
    assert_eq!(uploads(&decide(&[case], now())), [("s1".into(), 0)]);
}

#[rstest]
#[case::lease_lost(|c: &mut Case| c.agents[0].state.as_mut().unwrap().lease = LeaseState::Lost, "slot was taken")]
#[case::silent(|c: &mut Case| c.agents[0].silent = Some((before(20), 9)), "does not answer")]
#[case::no_address(|c: &mut Case| c.agents[0].address = None, "where its agent is")]
#[case::another_capture(|c: &mut Case| c.agents[0].record = None, "no longer has generation 7")]
#[case::refused_too_often(|c: &mut Case| c.agents[0].ordered =
    Some(Ordered { times: ORDERS, last: before(9), refused: Some("too late".into()), limit: None , collector: None}), "too late")]
#[case::fenced(|c: &mut Case| c.refused = Some("incarnation 1 is older".into()), "older")]
#[case::job_gone(|c: &mut Case| c.image = Fact::Absent, "job is gone")]
#[case::abandoned(|c: &mut Case| c.agents[0].state.as_mut().unwrap().capture.as_mut().unwrap().state =
    PartState::Abandoned { reason: "heard nothing".into() }, "heard nothing")]
fn what_cannot_be_completed_is_said_to_have_failed(#[case] spoil: fn(&mut Case), #[case] why: &str) {
    let mut case = case();
    spoil(&mut case);
    let plan = decide(&[case], now());
    assert_eq!(report(&plan).state, TransferState::Failed);
    assert!(report(&plan).message.unwrap().contains(why), "{plan:?}");
    assert_eq!(plan.effects, []);
}

#[rstest]
#[case::just_silent(|c: &mut Case| c.agents[0].silent = Some((before(3), 3)))]
#[case::b13_this_process_stood_still(|c: &mut Case| c.agents[0].silent = Some((before(600), 2)))]
#[case::never_answered(|c: &mut Case| c.agents[0].state = None)]
#[case::still_writing(|c: &mut Case| c.agents[0].state.as_mut().unwrap().capture.as_mut().unwrap().state =
    PartState::Writing)]
#[case::repository_silent(|c: &mut Case| c.kept = Fact::Unknown { since: before(5) })]
#[case::image_not_known(|c: &mut Case| c.image = Fact::Unknown { since: before(5) })]
fn unknown_is_not_lost(#[case] spoil: fn(&mut Case)) {
    let mut case = case();
    spoil(&mut case);
    let plan = decide(&[case], now());
    assert_ne!(report(&plan).state, TransferState::Failed);
}

/// A new process finds the agents of a generation gone, whose parts the repository may have.
#[rstest]
#[case::silent(|a: &mut AgentSeen| a.silent = Some((before(60), 60)))]
#[case::lease_lost(|a: &mut AgentSeen| a.state.as_mut().unwrap().lease = LeaseState::Lost)]
#[case::another_capture(|a: &mut AgentSeen| a.record = None)]
#[case::tried_in_vain(|a: &mut AgentSeen| a.ordered =
    Some(Ordered { times: ORDERS, last: before(9), refused: Some("no route".into()), limit: None , collector: None}))]
fn b15_nothing_is_given_up_before_the_repository_has_listed_what_it_has(#[case] spoil: fn(&mut AgentSeen)) {
    let mut case = Case { kept: Fact::Unknown { since: before(60) }, ..case() };
    case.agents.iter_mut().for_each(spoil);
    let plan = decide(std::slice::from_ref(&case), now());
    assert_ne!(report(&plan).state, TransferState::Failed, "{plan:?}");
    assert!(report(&plan).message.unwrap().contains("repository does not answer"));
    case.kept = Fact::Known(vec![kept(0), kept(1)]);
    assert!(matches!(decide(std::slice::from_ref(&case), now()).effects[..], [Effect::Publish { .. }]));
    case.kept = Fact::Known(vec![kept(0)]);
    assert_eq!(report(&decide(&[case], now())).state, TransferState::Failed);
}

#[test]
fn a_silent_repository_uses_up_no_orders() {
    let mut case = Case { kept: Fact::Unknown { since: before(60) }, ..case() };
    let tried = Ordered { times: 1, last: before(9), refused: Some("no route".into()), limit: None, collector: None };
    case.agents.iter_mut().for_each(|agent| agent.ordered = Some(tried.clone()));
    assert_eq!(uploads(&decide(std::slice::from_ref(&case), now())), []);
    case.kept = Fact::Known(vec![]);
    assert_eq!(uploads(&decide(&[case], now())), [("s1".into(), 1)]);
}

#[rstest]
#[case::silent(|a: &mut AgentSeen| a.silent = Some((before(60), 60)))]
#[case::lease_lost(|a: &mut AgentSeen| a.state.as_mut().unwrap().lease = LeaseState::Lost)]
#[case::left(|a: &mut AgentSeen| a.state.as_mut().unwrap().leaving = Some(crate::driver::agent::LeaveCode::Saved))]
fn b15_what_an_agent_had_sent_is_kept_although_it_is_gone(#[case] spoil: fn(&mut AgentSeen)) {
    let mut case = Case { kept: Fact::Known(vec![kept(0)]), ..case() };
    set(&mut case.agents[1], done(1));
    spoil(&mut case.agents[1]);
    let plan = decide(&[case], now());
    assert!(matches!(&plan.effects[..], [Effect::Keep { part, .. }] if part.part.index == 1), "{plan:?}");
}

#[test]
fn a_failed_upload_is_ordered_again_after_a_while() {
    let mut case = case();
    case.kept = Fact::Known(vec![kept(1)]);
    let error = Some("failed to reach the repository".to_owned());
    set(&mut case.agents[0], UploadState { error, ..sending(7) });
    case.agents[0].ordered = Some(Ordered { times: 1, last: now(), refused: None, limit: None, collector: None });
    let plan = decide(std::slice::from_ref(&case), now());
    assert_eq!(uploads(&plan), []);
    assert!(report(&plan).message.unwrap().contains("repository"));
    case.agents[0].ordered.as_mut().unwrap().last = before(2);
    assert_eq!(uploads(&decide(&[case], now())), [("s1".into(), 0)]);
}

#[test]
fn progress_is_reported_once_a_second_and_news_at_once() {
    let mut case = case();
    set(&mut case.agents[1], sending(7));
    let shown = report(&decide(std::slice::from_ref(&case), now()));
    case.written = Some((now(), Transfer { sent: 10, ..shown.clone() }));
    assert_eq!(decide(std::slice::from_ref(&case), now()).reports, []);
    case.written = Some((before(2), Transfer { sent: 10, ..shown.clone() }));
    assert_eq!(decide(std::slice::from_ref(&case), now()).reports.len(), 1);
    case.written = Some((now(), Transfer { state: TransferState::Pending, ..shown.clone() }));
    assert_eq!(decide(std::slice::from_ref(&case), now()).reports.len(), 1);
    case.written = None;
    case.shown = shown;
    assert_eq!(decide(&[case], now()).reports, [], "what is shown already is not written again");
}

/// What is said after another two seconds, in which member 1 has sent so many bytes more.
fn later(case: &mut Case, said: &Transfer, at: Timestamp, sent: u64) -> (Timestamp, Plan) {
    case.written = Some((at, said.clone()));
    case.shown = said.clone();
    set(&mut case.agents[1], UploadState { sent, total: 1_000_000, ..sending(7) });
    let next = at + SignedDuration::from_secs(2);
    (next, decide(std::slice::from_ref(case), next))
}

#[test]
fn the_rate_is_smoothed_and_the_end_follows_from_it() {
    let mut case = case();
    set(&mut case.agents[1], UploadState { sent: 0, total: 1_000_000, ..sending(7) });
    let mut said = report(&decide(std::slice::from_ref(&case), now()));
    assert_eq!((said.rate, &said.eta), (None, &None), "nothing was measured yet");
    let (mut at, mut sent) = (now(), 0);
    for step in [20_000, 20_000, 60_000, 20_000, 20_000] {
        sent += step;
        let (next, plan) = later(&mut case, &said, at, sent);
        (at, said) = (next, report(&plan));
        let rate = said.rate.unwrap();
        assert!((10_000..16_000).contains(&rate), "{rate}");
        let left = said.eta.as_ref().unwrap().0.duration_since(at).as_secs_f64();
        let expected = (said.total - said.sent) as f64 / rate as f64;
        assert!((left - expected).abs() <= 1.0, "{left} {expected}");
    }
    assert_ne!(said.rate, Some(10_000), "a faster moment counts for a while");
    // while a part of unknown size is being captured nobody knows the end
    let capture = case.agents[0].state.as_mut().unwrap().capture.as_mut().unwrap();
    capture.state = PartState::Writing;
    let (next, plan) = later(&mut case, &said, at, sent + 20_000);
    (at, said) = (next, report(&plan));
    assert!(said.rate.is_some() && said.eta.is_none(), "{said:?}");
    // what stands still is not written again and again, and has no rate after a while
    let (_, plan) = later(&mut case, &said, at, sent + 20_000);
    assert_eq!(plan.reports, []);
    let plan = decide(std::slice::from_ref(&case), at + SignedDuration::from_secs(6));
    assert_eq!(report(&plan).rate, None);
    case.written = Some((at + SignedDuration::from_secs(6), report(&plan)));
    assert_eq!(decide(&[case], at + SignedDuration::from_secs(8)).reports, []);
}

#[test]
fn freed_members_are_told_once_with_their_time() {
    let mut case = Case { kept: Fact::Known(vec![kept(1), kept(0)]), published: Fact::Known(()), ..case() };
    case.safe_since = [(1, before(5)), (0, before(2))].into();
    let plan = decide(std::slice::from_ref(&case), now());
    let said = &plan.reports[0];
    let freed: Vec<_> = said.transfer.freed.iter().map(|freed| (freed.member, freed.at.0)).collect();
    assert_eq!(freed, [(1, before(5)), (0, before(2))], "in the order in which it came about");
    let reasons: Vec<_> = said.events.iter().map(|event| (event.action, event.reason)).collect();
    let safe = Reason::MemberSafe;
    assert_eq!(reasons, [("StoreMember", safe), ("StoreMember", safe), ("Store", Reason::Transferred)]);
    let of = |event: &Said, member: u32| event.message.contains(&format!("of member {member} are in the repository"));
    assert!(of(&said.events[0], 0) && of(&said.events[1], 1), "{said:?}");
    assert!(said.events[2].message.contains("10 s after the capture"), "{said:?}");
    // after a restart the object says what was told
    case.shown = Transfer { safe: vec![1], freed: said.transfer.freed[..1].to_vec(), ..Transfer::default() };
    let events = &decide(std::slice::from_ref(&case), now()).reports[0].events;
    assert_eq!(events.iter().map(|event| event.action).collect::<Vec<_>>(), ["StoreMember", "Store"]);
    assert!(of(&events[0], 0), "{events:?}");
    // and what this process has written counts although the watch is late
    case.written = Some((before(9), said.transfer.clone()));
    assert_eq!(decide(&[case], now()).reports[0].events, []);
}

#[path = "decide_turn_tests.rs"]
mod turns;
