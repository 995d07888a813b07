use serde_json::json;

use super::*;

fn now() -> Timestamp {
    "2026-11-25T12:00:00Z".parse().unwrap()
}

fn job(status: serde_json::Value) -> BestEffortJob {
    serde_json::from_value(json!({
        "apiVersion": "vmdeploy.io/v1alpha1", "kind": "BestEffortJob",
        "metadata": {"name": "pi", "namespace": "team", "generation": 2},
        "spec": {"members": 2, "run": {"command": ["pi"]}, "slots": {"site": "rennes", "walltime": "2h"}},
        "status": status,
    }))
    .unwrap()
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> serde_json::Value {
    json!({"type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-11-25T11:58:30Z"})
}

#[test]
fn a_job_that_is_being_evacuated() {
    let job = job(json!({
        "observedGeneration": 2, "phase": "Evacuating", "attempt": 3, "incarnation": 4,
        "conditions": [
            condition("Ready", "True", "Accepted", "the job runs"),
            condition("Evicting", "True", "Preempted", "slot 1204 is wanted by somebody else: 48 s are left"),
        ],
        "slots": [{"id": "1204", "submission": 3, "state": "Running", "nodes": ["node-1", "node-2"],
            "until": "2026-11-25T13:30:00Z", "notice": "2026-11-25T11:59:48Z"}],
        "members": [
            {"index": 0, "address": "", "mac": "", "phase": "Running", "node": "node-1"},
            {"index": 1, "address": "", "mac": "", "phase": "Ended", "node": "node-2", "exitCode": 0},
        ],
        "snapshots": {"lastStored": 7, "lastStoredAt": "2026-11-25T11:50:00Z", "nextGeneration": 9,
            "period": "293s", "periodReason": "293 s by Young's rule. Pause 1.0 s (median of 3)."},
        "work": {"useful": 1200, "lost": 30, "saved": 900, "overhead": 12},
        "kills": {"preempted": 2},
    }));
    let snapshot: Snapshot = serde_json::from_value(json!({
        "apiVersion": "vmdeploy.io/v1alpha1", "kind": "Snapshot", "metadata": {"name": "pi-8"},
        "spec": {"job": "pi", "reason": "Notice"},
        "status": {"generation": 8, "phase": "Captured", "transfer": {"state": "Sending", "sent": 5, "total": 9}},
    }))
    .unwrap();
    let event: Event = serde_json::from_value(json!({
        "metadata": {}, "eventTime": "2026-11-25T11:59:49.000000Z", "reason": "Preempted", "note": "OAR wants the nodes"
    }))
    .unwrap();
    insta::assert_snapshot!(render(&job, &[snapshot], &[event], now()));
}

#[test]
fn a_job_that_a_person_must_mend() {
    let mut job = job(json!({
        "observedGeneration": 1, "phase": "Pending",
        "conditions": [
            condition("Ready", "False", "ImageNotFound", "x"),
            condition("Stalled", "True", "ImageNotFound", "no VmImage debian-13 in team: create it or correct spec.image"),
        ],
    }));
    let text = render(&job, &[], &[], now());
    assert!(text.starts_with(
        "team/pi is Pending, attempt 0: no VmImage debian-13 in team: create it or correct spec.image (ImageNotFound)\n"
    ));
    assert!(text.contains("has not been looked at yet"), "{text}");
    job.status = None;
    assert!(render(&job, &[], &[], now()).contains("no operator has looked at it yet"));
}
