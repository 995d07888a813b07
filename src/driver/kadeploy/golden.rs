//! The parsers on what a real Kadeploy 3.3.11 was heard to say.

use std::collections::BTreeMap;

use super::{
    Environment, EnvironmentName, EnvironmentSource, KadeployError, NodeState, Observation, Remains,
    environment::ImageKind,
    errors::{self, Refusal},
    judge::{self, Hosts},
    replay_tests::{all, recorded},
    wire::{self, Nodes, Poll, Records, Split, State},
};

fn hosts(names: &[&str]) -> Hosts {
    names.iter().map(|name| ((*name).into(), (*name).to_owned())).collect()
}

fn poll(name: &str) -> Poll {
    wire::parse(&recorded(name).body).unwrap()
}

fn split(name: &str) -> Split {
    match poll(name).nodes {
        Some(Nodes::Own(split)) => split,
        other => panic!("{name}: {other:?}"),
    }
}

fn state(name: &str) -> State {
    wire::parse(&recorded(name).body).unwrap()
}

fn states(seen: &Observation) -> Vec<String> {
    seen.nodes.iter().map(|(node, state)| format!("{node} {state:?}")).collect()
}

#[test]
fn every_error_is_classified() {
    let refused = all("").into_iter().filter(|(_, reply)| reply.status != 200);
    let table: BTreeMap<String, String> = refused
        .map(|(name, reply)| {
            let meaning = errors::classify(reply.status, reply.code, &reply.body);
            (name, format!("{} {:?}", reply.status, meaning))
        })
        .collect();
    insta::assert_yaml_snapshot!(table);
}

#[test]
fn every_description_is_read() {
    let mut read = 0;
    for (name, reply) in all("env_").into_iter().filter(|(name, reply)| reply.status == 200 && name != "env_list_empty")
    {
        let found: Vec<Environment> = wire::parse(&reply.body).unwrap();
        read += found.len();
        for environment in found {
            environment.check().unwrap();
            assert_eq!(environment.image.kind(), ImageKind::Tar, "{name}");
            assert!(environment.version.is_some() && environment.user.is_some(), "{name}");
            assert!(environment.boot.kernel.is_some() && environment.filesystem.is_some(), "{name}");
            assert!(environment.other.contains_key("partition_type"), "{name}: {environment:?}");
        }
    }
    assert!(read > 3);
}

#[test]
fn a_workflow_at_work_says_its_steps() {
    let seen = judge::working(&hosts(&["dummy-1.test"]), &split("dep_poll_0"), &state("dep_state_mid"));
    assert_eq!(
        (states(&seen), seen.done),
        (vec![r#"dummy-1.test Working { step: "SetDeploymentEnvDummy: dummy" }"#.into()], false)
    );
    assert!(!poll("multi_poll_mid").done && poll("multi_poll_mid").start_time.is_some());
}

#[test]
fn success_is_a_workflow_without_error_that_lists_the_node() {
    let both = hosts(&["dummy-1.test", "dummy-2.test"]);
    let seen = judge::over(&both, &split("dep_poll_done"), &state("dep_state_done"));
    assert!(seen.done && seen.nodes.values().all(|state| *state == NodeState::Deployed));
    // done and no error, and failed on every node
    assert!(poll("fail_corrupt_poll").done && !poll("fail_corrupt_poll").error);
    let seen = judge::over(&hosts(&["node-1.test"]), &split("fail_corrupt_poll"), &state("fail_corrupt_state"));
    let NodeState::Failed { reason } = &seen.nodes[&"node-1.test".into()] else { panic!("{seen:?}") };
    assert!(reason.starts_with("BroadcastEnvTree-send_environment: gzip: stdin: unexpected end"), "{reason}");
    assert_eq!(reason.lines().count(), 1);
}

#[test]
fn one_node_fails_and_one_does_not() {
    let both = hosts(&["node-1.test", "node-2.test"]);
    let seen = judge::over(&both, &split("partial_poll_done"), &state("partial_state_done"));
    assert_eq!(
        states(&seen),
        [
            "node-1.test Deployed",
            r#"node-2.test Failed { reason: "SetDeploymentEnvUntrusted-wait_reboot: Unreachable after the reboot" }"#
        ]
    );
    let three = hosts(&["dummy-1.test", "dummy-2.test", "node-4.test"]);
    let seen = judge::over(&three, &split("multi_poll"), &state("multi_state"));
    let NodeState::Failed { reason } = &seen.nodes[&"node-4.test".into()] else { panic!("{seen:?}") };
    assert!(reason.ends_with("very_hard_reboot command is not provided"));
}

#[test]
fn a_node_in_neither_list_was_left_out() {
    let both = hosts(&["node-1.test", "node-2.test"]);
    let ok = Split { ok: vec!["node-2.test".into()], ..Split::default() };
    for seen in [
        judge::over(&both, &ok, &state("power_status_state")),
        judge::working(&both, &Split::default(), &state("power_status_state")),
    ] {
        assert_eq!(seen.nodes[&"node-1.test".into()], NodeState::Discarded);
    }
}

#[test]
fn a_workflow_that_broke_has_no_nodes_and_says_why() {
    for name in ["fail_gone_poll", "fail_changed_poll", "dep_same_nodes_poll", "restart_redeploy_poll"] {
        let poll = poll(name);
        assert!(poll.done && poll.error && poll.nodes.is_none(), "{name}");
    }
    let node = hosts(&["node-1.test"]);
    for (name, reason) in [
        ("fail_gone_error", Some("Invalid file -- Unable to grab the file /srv/kadeploy/img/gone.tgz")),
        ("fail_changed_error", Some("Invalid file -- Checksum of the file")),
        ("dep_same_nodes_error", None),
        ("restart_redeploy_error", None),
    ] {
        let reply = recorded(name);
        let seen = judge::broken(&node, reply.code, &String::from_utf8_lossy(&reply.body));
        match (&seen.nodes[&"node-1.test".into()], reason) {
            (NodeState::Discarded, None) => {}
            (NodeState::Failed { reason }, Some(start)) => assert!(reason.starts_with(start), "{reason}"),
            (other, _) => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn where_the_workflow_is_forgotten_the_nodes_records_tell() {
    let name = |name: &str| EnvironmentSource::Recorded(EnvironmentName::newest(name));
    let of = |recording: &str, source: &EnvironmentSource, user: &str| {
        let record = serde_json::from_slice(&recorded(recording).body).unwrap();
        let records = Records::from([("x".to_owned(), record)]);
        match judge::lost(&hosts(&["x"]), &records, source, user).nodes.remove(&"x".into()) {
            Some(NodeState::Lost(remains)) => remains,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(of("dep_node_after", &name("hv"), "alice"), Remains::Deployed);
    assert_eq!(of("dep_node_after", &name("other"), "alice"), Remains::Other("deployed".into()));
    assert_eq!(of("dep_node_after", &name("hv"), "bob"), Remains::Other("deployed, by another user".into()));
    let second = EnvironmentName { version: Some(2), ..EnvironmentName::newest("hv") };
    let second = EnvironmentSource::Recorded(second);
    assert_eq!(of("dep_node_after", &second, "alice"), Remains::Other("deployed".into()));
    assert_eq!(of("restart_node", &name("debian12-hv"), "alice"), Remains::Stale);
    for gone in ["cancel_node", "revoke_node", "fail_gone_nodes"] {
        assert_eq!(of(gone, &name("hv"), "alice"), Remains::Aborted, "{gone}");
    }
    let inline = Environment { name: "anon".into(), ..Environment::default() };
    assert_eq!(of("anon_node", &EnvironmentSource::Inline(Box::new(inline)), "alice"), Remains::Deployed);

    let records: Records = wire::parse(&recorded("nodes_unset").body).unwrap();
    let seen = judge::lost(&hosts(&["dummy-1.test", "nope"]), &records, &name("hv"), "alice");
    assert_eq!(
        states(&seen),
        [r#"dummy-1.test Lost(Other("never used"))"#, r#"nope Lost(Other("not known to the server"))"#]
    );
}

#[test]
fn others_workflows_are_told_from_ones_own() {
    assert!(matches!(poll("dep_poll_other_user").nodes, Some(Nodes::Others(_))));
    let list: Vec<Poll> = wire::parse(&recorded("dep_list").body).unwrap();
    assert_eq!(list.iter().map(|poll| poll.done).collect::<Vec<_>>(), [false, true]);
    assert!(wire::parse::<Vec<Poll>>(&recorded("restart_list").body).unwrap().is_empty());
}

#[test]
fn a_server_in_trouble_is_no_refusal() {
    let trouble = |status, body: &str| {
        let refusal = errors::classify(status, None, body.as_bytes());
        assert!(matches!(refusal, Refusal::Error(KadeployError::Unreachable(_))), "{refusal:?}");
    };
    trouble(500, "---- NoMethodError ----");
    trouble(503, "");
    trouble(429, "");
    let proxy = errors::classify(400, None, b"<html>a proxy");
    assert!(matches!(proxy, Refusal::Error(KadeployError::Configuration(_))), "{proxy:?}");
}
