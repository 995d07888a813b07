//! What becomes of snapshots, scenario by scenario.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rstest::rstest;

use super::*;
use crate::{
    api::{
        ConditionType, SnapshotSpec, conditions,
        snapshot::{SnapshotReason, Transfer},
    },
    driver::repository::GenerationSummary,
};

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn snapshot(phase: SnapshotPhase) -> Snapshot {
    let mut snapshot =
        Snapshot::new("pi-7", SnapshotSpec { job: "pi".into(), reason: SnapshotReason::Periodic, retain: false });
    snapshot.metadata.namespace = Some("team".into());
    snapshot.metadata.generation = Some(1);
    snapshot.metadata.finalizers = Some(vec![FINALIZER.into()]);
    snapshot.status = Some(SnapshotStatus {
        generation: Some(7),
        incarnation: 3,
        job_uid: "u1".into(),
        phase,
        ..SnapshotStatus::default()
    });
    snapshot
}

fn transferred(state: TransferState) -> Snapshot {
    let mut snapshot = snapshot(SnapshotPhase::Captured);
    let status = snapshot.status.as_mut().unwrap();
    status.transfer = Some(Transfer { state, message: Some("disk full".into()), ..Transfer::default() });
    snapshot
}

fn deleted_by_somebody(mut snapshot: Snapshot) -> Snapshot {
    snapshot.metadata.deletion_timestamp = Some(Time(now()));
    snapshot
}

fn job(phase: JobPhase) -> JobSeen {
    let live = !matches!(phase, JobPhase::Succeeded | JobPhase::Failed | JobPhase::Terminating);
    JobSeen {
        no_room: None,
        uid: "u1".into(),
        live,
        phase,
        incarnation: 3,
        capturing: Some(7),
        next_generation: 8,
        restoring: None,
        falls_back_to: None,
    }
}

fn content(generations: &[(Generation, Incarnation)], fence: Incarnation) -> Fact<JobContent> {
    let summary = |(generation, incarnation): &(Generation, Incarnation)| GenerationSummary {
        generation: *generation,
        incarnation: *incarnation,
        parent: None,
        taken_at: now(),
        stored: 1234,
        members: 2,
        machine: None,
    };
    let generations = generations.iter().map(summary).collect();
    Fact::Known(JobContent { generations, highest: 9, fence, ..JobContent::default() })
}

fn unknown<T>() -> Fact<T> {
    Fact::Unknown { since: now() }
}

fn seen(job: Fact<JobSeen>, content: Fact<JobContent>) -> Seen {
    Seen { job, content, copied_by: None, siblings: 1 }
}

fn running() -> Fact<JobSeen> {
    Fact::Known(job(JobPhase::Running))
}

#[test]
fn the_object_is_held_before_anything_else() {
    let mut fresh = snapshot(SnapshotPhase::Captured);
    fresh.metadata.finalizers = None;
    let plan = decide(&fresh, &seen(running(), unknown()), now());
    assert_eq!(plan.effects, [Effect::AddFinalizer]);
    assert_eq!(plan.status.phase, SnapshotPhase::Captured);
}

#[rstest]
#[case::no_such_job(Fact::Absent, SnapshotPhase::Failed, Some(Reason::JobNotFound))]
#[case::job_has_ended(Fact::Known(job(JobPhase::Succeeded)), SnapshotPhase::Failed, Some(Reason::SnapshotVoid))]
#[case::job_queues(Fact::Known(job(JobPhase::Queued)), SnapshotPhase::Pending, None)]
#[case::job_runs(running(), SnapshotPhase::Pending, None)]
#[case::job_not_known(unknown(), SnapshotPhase::Pending, None)]
fn a_users_snapshot_waits_for_its_job(
    #[case] job: Fact<JobSeen>,
    #[case] phase: SnapshotPhase,
    #[case] note: Option<Reason>,
) {
    let mut fresh = snapshot(SnapshotPhase::Pending);
    fresh.spec.reason = SnapshotReason::User;
    fresh.status = None;
    let plan = decide(&fresh, &seen(job, unknown()), now());
    assert_eq!((plan.status.phase, plan.notes.first().map(|note| note.reason)), (phase, note));
    let ready = conditions::get(&plan.status.conditions, ConditionType::Ready).unwrap();
    assert_eq!(ready.status, if note.is_some() { "False" } else { "Unknown" });
    assert!(ready.last_transition_time.0 == now() && ready.observed_generation == Some(1));
    assert!(!ready.message.is_empty());
}

#[rstest]
#[case::published_and_there(TransferState::Published, content(&[(6, 2), (7, 3)], 3), SnapshotPhase::Stored)]
#[case::failed_but_there(TransferState::Failed, content(&[(7, 3)], 3), SnapshotPhase::Stored)]
#[case::failed(TransferState::Failed, content(&[(6, 2)], 3), SnapshotPhase::Failed)]
#[case::published_but_not_there(TransferState::Published, content(&[(6, 2)], 3), SnapshotPhase::Captured)]
#[case::published_number_of_another_incarnation(TransferState::Published, content(&[(7, 2)], 3), SnapshotPhase::Captured)]
#[case::published_repository_down(TransferState::Published, unknown(), SnapshotPhase::Captured)]
#[case::failed_repository_down(TransferState::Failed, unknown(), SnapshotPhase::Captured)]
#[case::sending(TransferState::Sending, unknown(), SnapshotPhase::Captured)]
fn b14_the_manifest_decides_whether_it_is_stored(
    #[case] transfer: TransferState,
    #[case] content: Fact<JobContent>,
    #[case] phase: SnapshotPhase,
) {
    let snapshot = transferred(transfer);
    let plan = decide(&snapshot, &seen(running(), content), now());
    assert_eq!(plan.status.phase, phase, "{}", plan.why);
    // parts of a generation that failed do not stay
    let given_up = Effect::GiveUp { job: "u1".into(), generation: 7 };
    assert_eq!(plan.effects, if phase == SnapshotPhase::Failed { vec![given_up] } else { vec![] });
    assert_eq!(plan.status.bytes.map(|b| b.stored), (phase == SnapshotPhase::Stored).then_some(1234));
    assert_eq!(plan.wake.is_none(), matches!(phase, SnapshotPhase::Stored | SnapshotPhase::Failed));
}

#[rstest]
#[case::not_fenced_yet(content(&[(6, 2)], 3), SnapshotPhase::Captured)]
#[case::fenced(content(&[(6, 2)], 4), SnapshotPhase::Failed)]
#[case::published_in_time(content(&[(7, 3)], 4), SnapshotPhase::Stored)]
#[case::repository_down(unknown(), SnapshotPhase::Captured)]
fn b1_what_a_later_incarnation_overtook_is_void(#[case] content: Fact<JobContent>, #[case] phase: SnapshotPhase) {
    let later = Fact::Known(JobSeen { incarnation: 4, ..job(JobPhase::Restoring) });
    let plan = decide(&transferred(TransferState::Sending), &seen(later, content), now());
    assert_eq!(plan.status.phase, phase, "{}", plan.why);
}

#[rstest]
#[case::same_incarnation(running(), SnapshotPhase::Capturing)]
#[case::later_incarnation(Fact::Known(JobSeen { incarnation: 4, ..job(JobPhase::Queued) }), SnapshotPhase::Failed)]
#[case::job_gone(Fact::Absent, SnapshotPhase::Failed)]
#[case::job_not_known(unknown(), SnapshotPhase::Capturing)]
fn b2_a_capture_of_an_earlier_incarnation_is_void(#[case] job: Fact<JobSeen>, #[case] phase: SnapshotPhase) {
    let plan = decide(&snapshot(SnapshotPhase::Capturing), &seen(job, unknown()), now());
    assert_eq!(plan.status.phase, phase, "{}", plan.why);
}

#[rstest]
#[case::still_taken(job(JobPhase::Snapshotting), unknown(), SnapshotPhase::Capturing)]
#[case::not_yet_seen_of_the_job(
    JobSeen { capturing: None, next_generation: 7, ..job(JobPhase::Running) }, unknown(), SnapshotPhase::Capturing)]
#[case::given_up(
    JobSeen { capturing: None, ..job(JobPhase::Running) }, content(&[(6, 2)], 3), SnapshotPhase::Failed)]
#[case::stored_meanwhile(
    JobSeen { capturing: Some(9), ..job(JobPhase::Running) }, content(&[(7, 3)], 3), SnapshotPhase::Stored)]
#[case::repository_down(JobSeen { capturing: None, ..job(JobPhase::Running) }, unknown(), SnapshotPhase::Capturing)]
fn b2_a_capture_that_its_job_has_left_is_not_shown_as_under_way(
    #[case] job: JobSeen,
    #[case] content: Fact<JobContent>,
    #[case] phase: SnapshotPhase,
) {
    let plan = decide(&snapshot(SnapshotPhase::Capturing), &seen(Fact::Known(job), content), now());
    assert_eq!(plan.status.phase, phase, "{}", plan.why);
}

const RETIRED: &[&str] = &["Retire", "RemoveFinalizer"];
const HELD: &[&str] = &[];

#[rstest]
#[case::newest_of_a_live_job(running(), content(&[(6, 2), (7, 3)], 3), HELD)]
#[case::newest_of_a_suspended_job(Fact::Known(job(JobPhase::Suspended)), content(&[(7, 3)], 3), HELD)]
#[case::older_one(running(), content(&[(7, 3), (8, 3)], 3), RETIRED)]
#[case::the_newest_one_did_not_restore(
    Fact::Known(JobSeen { falls_back_to: Some(7), ..job(JobPhase::Running) }), content(&[(7, 3), (8, 3)], 3), HELD)]
#[case::not_complete(running(), content(&[(6, 2)], 3), RETIRED)]
#[case::repository_down(running(), unknown(), HELD)]
#[case::job_not_known(unknown(), unknown(), HELD)]
#[case::being_restored(
    Fact::Known(JobSeen { restoring: Some(7), ..job(JobPhase::Restoring) }), content(&[(7, 3), (8, 3)], 3), HELD)]
#[case::job_succeeded(Fact::Known(job(JobPhase::Succeeded)), unknown(), RETIRED)]
#[case::job_being_deleted(Fact::Known(job(JobPhase::Terminating)), unknown(), RETIRED)]
#[case::job_gone(Fact::Absent, unknown(), RETIRED)]
fn b12_the_newest_complete_generation_of_a_live_job_is_held(
    #[case] job: Fact<JobSeen>,
    #[case] content: Fact<JobContent>,
    #[case] effects: &[&str],
) {
    let snapshot = deleted_by_somebody(snapshot(SnapshotPhase::Stored));
    let asks = depends_on_content(&snapshot, &job);
    assert_eq!(asks, job.known().is_some_and(|job| job.live), "asked only when the answer matters");
    let plan = decide(&snapshot, &seen(job, content), now());
    let names: Vec<String> = plan.effects.iter().map(|e| format!("{e:?}")).collect();
    assert_eq!(names.len(), effects.len(), "{names:?}: {}", plan.why);
    assert!(names.iter().zip(effects).all(|(name, expected)| name.starts_with(expected)), "{names:?}");
    let stalled = conditions::get(&plan.status.conditions, ConditionType::Stalled);
    assert_eq!(stalled.map(|c| c.reason.as_str()), effects.is_empty().then_some("LastGeneration"));
    assert_eq!(plan.status.phase, SnapshotPhase::Stored);
    assert_eq!(plan.wake.is_some(), effects.is_empty());
}

#[rstest]
#[case(SnapshotPhase::Capturing)]
#[case(SnapshotPhase::Captured)]
fn what_is_being_taken_is_not_torn_from_under_it(#[case] phase: SnapshotPhase) {
    let snapshot = deleted_by_somebody(snapshot(phase));
    assert!(decide(&snapshot, &seen(running(), content(&[(6, 2)], 3)), now()).effects.is_empty());
    let later = Fact::Known(JobSeen { incarnation: 4, ..job(JobPhase::Running) });
    assert_eq!(decide(&snapshot, &seen(later, content(&[(6, 2)], 3)), now()).effects.len(), 2);
}

#[test]
fn the_last_snapshot_of_a_job_that_is_gone_takes_everything_with_it() {
    let snapshot = deleted_by_somebody(snapshot(SnapshotPhase::Stored));
    let facts = Seen { siblings: 0, ..seen(Fact::Absent, unknown()) };
    let plan = decide(&snapshot, &facts, now());
    assert_eq!(plan.effects, [Effect::RemoveContent { job: "u1".into() }, Effect::RemoveFinalizer]);
}

#[test]
fn one_without_a_generation_goes_at_once() {
    let mut snapshot = deleted_by_somebody(snapshot(SnapshotPhase::Pending));
    snapshot.status.as_mut().unwrap().generation = None;
    assert_eq!(decide(&snapshot, &seen(running(), unknown()), now()).effects, [Effect::RemoveFinalizer]);
    snapshot.metadata.finalizers = None;
    assert!(decide(&snapshot, &seen(running(), unknown()), now()).effects.is_empty());
}

#[test]
fn the_same_facts_twice_change_nothing() {
    let facts = seen(running(), content(&[(7, 3)], 3));
    let mut snapshot = transferred(TransferState::Published);
    let first = decide(&snapshot, &facts, now());
    assert_eq!(first.notes.len(), 1);
    snapshot.status = Some(first.status.clone());
    let later = Timestamp::from_second(1_800_000_900).unwrap();
    let second = decide(&snapshot, &facts, later);
    assert_eq!((second.status, second.notes, second.effects), (first.status, Vec::new(), Vec::new()));
}

#[test]
fn b11_what_is_being_copied_for_another_job_is_not_deleted_before_it_has_it() {
    let cases = [Fact::Known(job(JobPhase::Running)), Fact::Known(job(JobPhase::Succeeded)), Fact::Absent];
    for owner in cases {
        let gone = deleted_by_somebody(snapshot(SnapshotPhase::Stored));
        let facts = Seen { copied_by: Some("again".into()), ..seen(owner.clone(), content(&[(7, 3), (8, 3)], 3)) };
        let plan = decide(&gone, &facts, now());
        assert!(plan.effects.is_empty() && plan.wake.is_some(), "{owner:?}: {plan:?}");
        let said = plan.status.conditions.iter().find(|condition| condition.type_ == "Stalled").unwrap();
        assert!(said.message.contains("BestEffortJob again"), "{}", said.message);
        let plan = decide(&gone, &Seen { copied_by: None, ..facts }, now());
        assert!(plan.effects.contains(&Effect::RemoveFinalizer), "{owner:?}: {plan:?}");
    }
}
