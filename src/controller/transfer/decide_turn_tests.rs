//! Who sends, in which order, and how fast.

use super::{super::decide as decide_with, *};

fn with(senders: usize) -> Terms {
    Terms { senders, ..TERMS }
}

/// Four members with 400, 300, 200 and 100 bytes, nothing sent yet.
fn four(uid: &str, reason: SnapshotReason) -> Case {
    let mut agents: Vec<AgentSeen> = (0..4).map(|member| agent(member, 400 - 100 * u64::from(member))).collect();
    for seen in &mut agents {
        // those of different snapshots are different agents
        seen.address.as_mut().unwrap().job = uid.into();
    }
    Case { uid: uid.into(), job: uid.into(), reason, agents, ..case() }
}

/// It has sent so much, and was told to go so fast.
fn moving(seen: &mut AgentSeen, sent: u64, limit: Option<u64>) {
    let total = seen.state.as_ref().unwrap().capture.as_ref().unwrap().bytes;
    set(seen, UploadState { generation: 7, sent, total, limit, ..UploadState::default() });
    seen.ordered = Some(Ordered { times: 1, last: before(5), refused: None, limit, collector: None });
}

/// Members that are told only to get ready.
fn ready(plan: &Plan) -> Vec<MemberIndex> {
    let ready = |effect: &Effect| match effect {
        Effect::Upload { agent, limit: Some(0), .. } => Some(agent.member),
        _ => None,
    };
    plan.effects.iter().filter_map(ready).collect()
}

/// Snapshot, member and limit of all others that are told how fast to go, beginning or in the middle.
fn told(plan: &Plan) -> Vec<(&str, MemberIndex, Option<u64>)> {
    let told = |effect| match effect {
        &Effect::Upload { ref snapshot, ref agent, limit, .. } => {
            (limit != Some(0)).then_some((snapshot.as_str(), agent.member, limit))
        }
        &Effect::Pace { ref snapshot, ref agent, limit, .. } => Some((snapshot.as_str(), agent.member, limit)),
        Effect::Hand { .. } | Effect::Collect { .. } | Effect::Keep { .. } | Effect::Publish { .. } => None,
    };
    plan.effects.iter().filter_map(told).collect()
}

#[test]
fn as_many_send_as_may_and_the_smallest_first() {
    for senders in 0..6 {
        let plan = decide_with(&[four("a", SnapshotReason::Notice)], &with(senders), now());
        let mut members: Vec<MemberIndex> = uploads(&plan).into_iter().map(|(_, member)| member).collect();
        members.sort_unstable();
        let (waiting, expected): (Vec<MemberIndex>, _) = (0..4).partition(|n| *n < 4 - senders.clamp(1, 4) as u32);
        assert_eq!((members, ready(&plan)), (expected, waiting), "{senders}");
    }
}

#[test]
fn one_that_brought_nothing_stands_still_and_goes_on_in_its_turn() {
    let mut case = four("a", SnapshotReason::Notice);
    moving(&mut case.agents[3], 20, None);
    moving(&mut case.agents[2], 150, None);
    let plan = decide_with(std::slice::from_ref(&case), &with(2), now());
    assert_eq!(told(&plan), []);
    // the one with less left to send goes on
    let plan = decide(std::slice::from_ref(&case), now());
    assert_eq!(told(&plan), [("a", 3, Some(0))]);
    assert_eq!(report(&plan).state, TransferState::Sending);
    moving(&mut case.agents[3], 20, Some(0));
    assert_eq!(told(&decide(std::slice::from_ref(&case), now())), []);
    // whatever it waited for before it was told
    case.agents[3].state.as_mut().unwrap().upload.as_mut().unwrap().waiting = Some("no room".into());
    case.kept = Fact::Known(vec![kept(2)]);
    assert_eq!(told(&decide(&[case], now())), [("a", 3, None)], "before others begin");
}

#[test]
fn the_next_one_begins_before_the_last_has_ended() {
    let mut case = four("a", SnapshotReason::Notice);
    moving(&mut case.agents[3], 80, None);
    let known = |rate| Terms { rate: Some(rate), ..TERMS };
    assert_eq!(uploads(&decide_with(std::slice::from_ref(&case), &known(10.0), now())), []);
    let plan = decide_with(&[case], &known(20.0), now());
    assert_eq!(told(&plan), [("a", 2, None)]);
}

#[test]
fn a_periodic_transfer_gives_way_in_the_middle_and_goes_on_afterwards() {
    let mut periodic = four("a", SnapshotReason::Periodic);
    moving(&mut periodic.agents[3], 20, None);
    moving(&mut periodic.agents[2], 20, None);
    let mut evacuation = four("b", SnapshotReason::Notice);
    let plan = decide_with(&[periodic.clone(), evacuation.clone()], &with(2), now());
    let expected = [("b", 2, None), ("b", 3, None), ("a", 2, Some(0)), ("a", 3, Some(0))];
    assert_eq!(told(&plan), expected);
    // what only waits leaves the link to others
    for seen in &mut evacuation.agents {
        seen.state.as_mut().unwrap().capture.as_mut().unwrap().state = PartState::Writing;
    }
    let plan = decide_with(&[periodic.clone(), evacuation.clone()], &with(2), now());
    assert_eq!(told(&plan), []);
    for member in [2, 3] {
        moving(&mut periodic.agents[member], 20, Some(0));
    }
    let plan = decide_with(&[periodic.clone()], &with(2), now());
    assert_eq!(told(&plan), [("a", 2, None), ("a", 3, None)]);
    // one that is nearly a complete generation goes on beside
    moving(&mut periodic.agents[0], 300, None);
    periodic.kept = Fact::Known(vec![kept(1), kept(2), kept(3)]);
    let plan = decide(&[periodic, four("b", SnapshotReason::Suspend)], now());
    assert_eq!(told(&plan), [("b", 3, None)]);
}

#[test]
fn b6_members_that_leave_go_first_and_those_that_stay_last() {
    let mut partial = four("b", SnapshotReason::Notice);
    partial.leaving = vec![0, 2];
    let periodic = four("a", SnapshotReason::User);
    let plan = decide_with(&[periodic.clone(), partial.clone()], &with(9), now());
    assert_eq!(told(&plan), [("b", 0, None), ("b", 2, None)]);
    partial.kept = Fact::Known(vec![kept(0), kept(2)]);
    let plan = decide_with(&[periodic, partial.clone()], &with(2), now());
    assert_eq!(told(&plan), [("a", 2, None), ("a", 3, None)]);
    assert_eq!(plan.reports[0].transfer.message.as_deref(), Some("waiting for another transfer"));
    assert!(ready(&plan).is_empty(), "what stays does not even get ready");
    let plan = decide_with(std::slice::from_ref(&partial), &with(9), now());
    assert_eq!(told(&plan), [("b", 1, None), ("b", 3, None)]);
    // one that stays leaves after all
    moving(&mut partial.agents[3], 10, None);
    partial.leaving = vec![0, 1, 2];
    let plan = decide_with(std::slice::from_ref(&partial), &with(1), now());
    assert_eq!(told(&plan), [("b", 1, None), ("b", 3, Some(0))]);
    partial.leaving.clear();
    assert_eq!(told(&decide(&[partial], now())), [], "all leave");
}

#[test]
fn a_limit_is_shared_and_does_not_hold_for_members_that_leave() {
    let limit = Limit { rate: Some(100_000), evacuations: false };
    let terms = |senders, limit| Terms { senders, limit, ..TERMS };
    let mut periodic = four("a", SnapshotReason::Periodic);
    moving(&mut periodic.agents[3], 20, None);
    let plan = decide_with(std::slice::from_ref(&periodic), &terms(2, limit), now());
    assert_eq!(told(&plan), [("a", 2, Some(50_000)), ("a", 3, Some(50_000))]);
    // an agent of the version before never says that it was told
    periodic.agents[3].ordered =
        Some(Ordered { times: 1, last: now(), refused: None, limit: Some(100_000), collector: None });
    assert_eq!(told(&decide_with(&[periodic], &terms(1, limit), now())), []);
    let evacuation = four("b", SnapshotReason::Notice);
    let plan = decide_with(std::slice::from_ref(&evacuation), &terms(1, limit), now());
    assert_eq!(told(&plan), [("b", 3, None)]);
    let plan = decide_with(&[evacuation], &terms(1, Limit { evacuations: true, ..limit }), now());
    assert_eq!(told(&plan), [("b", 3, Some(100_000))]);
}
