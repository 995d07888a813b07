//! Acting: what is done, and what is not, when parts of the outside fail.

use super::*;
use crate::{
    api::JobPhase,
    controller::job::{decide::decide, memory::Account, observe::observe, plan::BarrierState, testing::Stage},
};

fn plan(stage: &Stage, effects: Vec<Effect>) -> Plan {
    let mut status = stage.job().status.unwrap_or_default();
    status.phase = JobPhase::Queued;
    status.submission += 1;
    Plan { status, effects, notes: Vec::new(), wake: None, why: "test" }
}

fn submit_one() -> Effect {
    let request = SlotRequest {
        name: "vmdeploy-x-1".into(),
        nodes: 1,
        reservations: 1,
        acquire: Duration::ZERO,
        walltime: Duration::from_secs(60),
        grace: Duration::ZERO,
        lease_prefix: "x-".into(),
        queue: None,
        project: None,
        property: None,
        deploy: false,
        puts_images: false,
        launch: false,
        narrowed: Vec::new(),
        avoid: Vec::new(),
    };
    Effect::SubmitSlots { submission: 1, request }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_done_if_the_status_was_changed_by_somebody_else() {
    let stage = Stage::new();
    stage.cluster.conflict(1);
    let result = act(&plan(&stage, vec![submit_one()]), &stage.job(), &stage.ctx).await;
    assert!(matches!(result, Err(Error::Cluster(ClusterError::Conflict(_)))));
    assert_eq!(stage.site.calls().submit, 0);
}

#[tokio::test(start_paused = true)]
async fn a_plan_from_an_old_object_does_nothing() {
    let stage = Stage::new();
    let old = stage.job();
    let plan = plan(&stage, vec![submit_one()]);
    act(&plan, &old, &stage.ctx).await.unwrap();
    assert!(act(&plan, &old, &stage.ctx).await.is_err());
    assert_eq!(stage.site.calls().submit, 1);
}

#[tokio::test(start_paused = true)]
async fn b17_without_the_api_server_only_a_reserved_capture_is_made() {
    let stage = Stage::new();
    let (_, capture) = stage.running(false).await;
    stage.cluster.set_down(true);
    let effects = vec![submit_one(), Effect::Capture(capture)];
    assert!(act(&plan(&stage, effects), &stage.job(), &stage.ctx).await.is_err());
    assert_eq!(stage.site.calls().submit, 0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.ctx.memory.get(&stage.uid).barrier.unwrap().state, BarrierState::Cut);
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_a_request_is_a_fact_of_the_next_pass() {
    let stage = Stage::new();
    act(&plan(&stage, vec![submit_one()]), &stage.job(), &stage.ctx).await.unwrap();
    let seen = observe(&stage.job(), &stage.ctx).await.unwrap();
    let reply = seen.reply.unwrap();
    assert_eq!(reply.submission, 1);
    assert!(reply.outcome.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_pass_with_nothing_to_do_writes_nothing() {
    let stage = Stage::new();
    for _ in 0..3 {
        crate::controller::job::reconcile(&stage.job(), &stage.ctx).await.unwrap();
    }
    assert_eq!(stage.job().status.unwrap().phase, JobPhase::Pending, "its image does not exist");
    let before = stage.cluster.writes();
    for _ in 0..3 {
        let seen = observe(&stage.job(), &stage.ctx).await.unwrap();
        let plan = decide(&stage.job(), &seen, stage.ctx.clock.now());
        assert_eq!(act(&plan, &stage.job(), &stage.ctx).await.unwrap(), plan.wake);
    }
    assert_eq!(stage.cluster.writes(), before);
}

#[tokio::test(start_paused = true)]
async fn c4_slots_are_given_back_with_the_account_they_were_asked_for_with() {
    let stage = Stage::new();
    let mut job = stage.job();
    job.spec.slots.credentials = Some(crate::api::job::SecretReference { name: "gone".into() });
    let missing = observe(&job, &stage.ctx).await.unwrap();
    assert!(matches!(missing.account.known(), Some(Err(text)) if text.contains("gone")));
    let old = jiff::Timestamp::UNIX_EPOCH;
    let credentials = Credentials::Basic { username: "alice".into(), password: "x".into() };
    let account = Account { secret: "gone".into(), credentials, read: old };
    stage.ctx.memory.update(&stage.uid, |memory| memory.account = Some(account));
    let status = job.status.get_or_insert_default();
    status.pending_submission = Some(crate::api::job_status::PendingSubmission {
        reservations: 1,
        number: 1,
        since: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(old),
        doubtful: true,
        request: String::new(),
        left_out: Vec::new(),
    });
    let held = observe(&job, &stage.ctx).await.unwrap();
    assert_eq!(held.account.known(), Some(&Ok(())));
    job.spec.slots.credentials = Some(crate::api::job::SecretReference { name: "other".into() });
    let other = observe(&job, &stage.ctx).await.unwrap();
    assert!(
        matches!(other.account.known(), Some(Err(text)) if text.contains("other")),
        "another account's is not used"
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_site_says_to_a_slot_given_back_is_a_fact_of_the_next_pass() {
    let stage = Stage::new();
    act(&plan(&stage, vec![submit_one()]), &stage.job(), &stage.ctx).await.unwrap();
    let id = stage.site.slots()[0].id.clone();
    let said = async |refusal: Option<SiteError>| {
        stage.site.set_refusal(refusal);
        perform(&Effect::ReleaseSlot { id: id.clone() }, &stage.job(), &stage.uid, &stage.ctx).await.unwrap();
        stage.ctx.memory.get(&stage.uid).releases.get(&id.0).cloned()
    };
    let refused = SiteError::Credentials("unknown".into());
    assert_eq!(said(Some(SiteError::Unreachable("away".into()))).await, None);
    assert_eq!(said(Some(refused.clone())).await, Some(Some(refused.clone())));
    assert!(stage.ctx.memory.get(&stage.uid).account_refused(), "the account is read again");
    assert_eq!(
        said(Some(SiteError::Unreachable("away".into()))).await,
        Some(Some(refused)),
        "silence takes nothing back"
    );
    assert_eq!(said(None).await, Some(None));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_let_go_is_forgotten_though_others_hold_it_back() {
    let stage = Stage::new();
    let mut job = stage.job();
    job.metadata.deletion_timestamp = job.metadata.creation_timestamp.clone();
    job.metadata.finalizers = Some(vec!["example.com/theirs".into()]);
    stage.ctx.memory.update(&stage.uid, |memory| memory.adoption = Some((crate::api::Reason::NodeLost, "x".into())));
    assert_eq!(crate::controller::job::reconcile(&job, &stage.ctx).await.unwrap(), None);
    assert!(stage.ctx.memory.get(&stage.uid).adoption.is_none(), "it is remembered for ever");
    assert_eq!(stage.ctx.memory.update_known(&stage.uid, |_| ()), None);
}

#[test]
fn what_belongs_to_slots_that_are_gone_is_forgotten() {
    let mut known = crate::controller::job::memory::Remembered::default();
    let refused = || Some(SiteError::Credentials("no".into()));
    known.releases = [("7".to_owned(), refused()), ("8".to_owned(), refused())].into();
    known.withdrawn = ["abc123".to_owned()].into();
    let slot = serde_json::from_value(serde_json::json!({"id": "8", "submission": 1, "state": "Running"})).unwrap();
    known.retain(&BestEffortJobStatus { slots: vec![slot], ..BestEffortJobStatus::default() });
    assert!(known.releases.keys().eq(["8"]) && known.withdrawn.is_empty());
    known.retain(&BestEffortJobStatus::default());
    assert!(!known.account_refused(), "one refusal has its Secret read for ever");
}
