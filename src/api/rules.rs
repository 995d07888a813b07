//! The rules of the three kinds, tried without a cluster on the cases of `rejected.yaml`; the
//! end-to-end tests try the same cases on a real API server.

use serde_json::{Value, json};

use super::{
    BestEffortJob, Snapshot, VmImage,
    rejected::{Case, good, merge},
};
use crate::yaml;

fn patched(kind: &str, patch: &Value, status: Option<&Value>) -> Value {
    let mut object = good(kind);
    merge(&mut object, patch);
    if let Some(status) = status {
        object["status"] = status.clone();
    }
    object
}

/// What the rules say about an object, or about a change of one.
fn verdict(kind: &str, object: Value, old: Option<Value>) -> Result<(), String> {
    macro_rules! check {
        ($kind:ty) => {{
            let object: $kind = serde_json::from_value(object).unwrap();
            match old {
                Some(old) => object.validate_cel_update(&serde_json::from_value(old).unwrap()),
                None => object.validate_cel(),
            }
            .map_err(|errors| errors.to_string())
        }};
    }
    match kind {
        "BestEffortJob" => check!(BestEffortJob),
        "VmImage" => check!(VmImage),
        _ => check!(Snapshot),
    }
}

#[test]
fn bad_objects_are_refused_with_a_message() {
    let cases: Vec<Case> = yaml::read(include_str!("rejected.yaml")).unwrap();
    for case in cases.iter().filter(|case| case.by.is_none()) {
        let old = case.old.as_ref().map(|old| patched(&case.kind, old, case.status.as_ref()));
        let object = patched(&case.kind, &case.patch, case.status.as_ref());
        let said = verdict(&case.kind, object, old).expect_err(&case.name);
        assert!(said.contains(&case.says), "{}: {said}", case.name);
    }
}

#[test]
fn good_objects_are_accepted() {
    for kind in ["BestEffortJob", "VmImage", "Snapshot"] {
        assert_eq!(verdict(kind, good(kind), None), Ok(()));
        assert_eq!(verdict(kind, good(kind), Some(good(kind))), Ok(()));
    }
}

#[test]
fn a_way_in_is_accepted_with_keys() {
    for master in ["Shared", "Dedicated"] {
        let spec = json!({"network": {"master": master}, "access": {"sshKeys": ["ssh-ed25519 AAAA a"]}});
        assert_eq!(verdict("BestEffortJob", patched("BestEffortJob", &json!({"spec": spec}), None), None), Ok(()));
    }
}

#[test]
fn a_period_is_a_length_or_left_to_the_operator() {
    for snapshots in [
        json!({"period": "5s"}),
        json!({"period": "1h30m"}),
        json!({"period": "Adaptive"}),
        json!({"period": "Adaptive", "minPeriod": "5s", "maxPeriod": "5s"}),
        json!({"period": "Adaptive", "maxPeriod": "6h"}),
    ] {
        let object = patched("BestEffortJob", &json!({"spec": {"snapshots": snapshots}}), None);
        assert_eq!(verdict("BestEffortJob", object, None), Ok(()), "{snapshots}");
    }
}

#[test]
fn mistakes_are_mended_by_apply_before_the_start() {
    for patch in [
        json!({"spec": {"members": 4}}),
        json!({"spec": {"image": {"name": "other"}}}),
        json!({"spec": {"vm": {"memory": "1Gi"}}}),
        json!({"spec": {"run": {"command": ["other"]}}}),
        json!({"spec": {"slots": {"site": "lyon", "walltime": "2h"}}}),
    ] {
        let queued = json!({"submission": 1, "conditions": []});
        let old = patched("BestEffortJob", &json!({}), Some(&queued));
        let object = patched("BestEffortJob", &patch, Some(&queued));
        assert_eq!(verdict("BestEffortJob", object, Some(old)), Ok(()), "{patch}");
    }
}

#[test]
fn what_may_change_under_a_running_job_can_be_changed() {
    let started = json!({"started": "2026-11-25T20:00:00Z"});
    for patch in [
        json!({"spec": {"suspend": true}}),
        json!({"spec": {"snapshots": {"period": "1m"}}}),
        json!({"spec": {"snapshots": {"period": "Adaptive", "maxPeriod": "20m"}}}),
        json!({"spec": {"slots": {"walltime": "2h"}}}),
        json!({"spec": {"backoffLimit": 0}}),
    ] {
        let old = patched("BestEffortJob", &json!({}), Some(&started));
        let object = patched("BestEffortJob", &patch, Some(&started));
        assert_eq!(verdict("BestEffortJob", object, Some(old)), Ok(()), "{patch}");
    }
}

#[test]
fn conditions_on_properties_may_use_operators_and_quotes() {
    for property in [
        "cluster = 'a' AND (mem > 64 or not(host in ('n-1', 'n-2')))",
        "((gpu_count >= 2)) and x=(1)",
        "host LIKE 'para%' AND NOT (cputype = 'Intel(R) x')",
    ] {
        let object = patched("BestEffortJob", &json!({"spec": {"slots": {"oar": {"property": property}}}}), None);
        assert_eq!(verdict("BestEffortJob", object, None), Ok(()), "{property}");
    }
}
