//! The parsers on what a real Kadeploy 3.3.11 was heard to say.
//!
//! Each recording here is in one of two tables: what is read of an answer, and what a refusal means. Most are replies
//! to what the client asks, and some to other requests, for a code or a form that it may meet too: refusals of
//! environments and rights, a power operation's node that was left out, nodes that their user has rebooted.
//!
//! Of 167 exchanges the rest is left out. What the client never asks for: logs, how clusters stand (why a node failed
//! is in its state), trials, lists of rights, changes of environments and rights, reboots and power, the server's
//! version, clusters and statistics. And what has the form of another one that is here: more polls of success, more
//! 404s. The simulator is held to many of these too, by `e2e/tests/kadeploy`.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use super::{
    Environment, EnvironmentName, EnvironmentToDeploy, KadeployError, NodeState, Observation, Remains,
    environment::ImageKind,
    errors::{self, Refusal},
    judge::{self, Hosts},
    replay_tests::{self, Recorded, all, recorded},
    wire::{self, Begun, Named, Nodes, Poll, Record, Records, Split, State, Step},
};

/// How the states of two real machines changed in a deployment: seconds, and the body.
const TIMELINE: &str = "real_state_timeline.txt";

fn hosts(names: &[&str]) -> Hosts {
    names.iter().map(|name| ((*name).into(), (*name).to_owned())).collect()
}

fn read<T: DeserializeOwned>(reply: &Recorded) -> T {
    wire::parse(&reply.body).unwrap()
}

fn poll(name: &str) -> Poll {
    read(&recorded(name))
}

fn split(name: &str) -> Split {
    match poll(name).nodes {
        Some(Nodes::Own(split)) => split,
        other => panic!("{name}: {other:?}"),
    }
}

fn state(name: &str) -> State {
    read(&recorded(name))
}

fn states(seen: &Observation) -> Vec<String> {
    seen.nodes.iter().map(|(node, state)| format!("{node} {state:?}")).collect()
}

fn newest(name: &str) -> EnvironmentToDeploy {
    EnvironmentToDeploy::Recorded(EnvironmentName::newest(name))
}

/// What is known of nodes by the server's records of all nodes.
fn left(names: &[&str], recording: &str, environment: &str) -> Vec<NodeState> {
    let records: Records = read(&recorded(recording));
    judge::lost(&hosts(names), &records, &newest(environment), "alice").nodes.into_values().collect()
}

/// What is read of an answer, by what was asked.
fn meaning(reply: &Recorded) -> String {
    let (method, path) = reply.line().split_once(' ').unwrap();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match (method, parts.as_slice()) {
        ("POST", ["deployment"]) => format!("begun {}", read::<Begun>(reply).wid),
        ("GET", ["deployment"]) => joined(read::<Vec<Poll>>(reply).iter().map(of_poll)),
        ("GET", ["deployment", _]) => of_poll(&read(reply)),
        ("GET", ["deployment" | "power", _, "state"]) => joined(read::<State>(reply).iter().map(of_step)),
        ("GET", ["nodes"]) => {
            let known = |record: Option<&Record>| record.map_or_else(|| "never used".to_owned(), of_record);
            joined(read::<Records>(reply).iter().map(|(node, record)| format!("{node} {}", known(record.as_ref()))))
        }
        ("GET", ["nodes", _]) => of_record(&read(reply)),
        ("GET", [query]) if query.starts_with("environments") => {
            joined(read::<Vec<Environment>>(reply).iter().map(|environment| environment.id().to_string()))
        }
        // the first for what was asked, the others for their status
        ("GET", ["nodes?list"] | ["deployment", _, "error"]) | ("DELETE", _) => "not read".into(),
        other => panic!("the client does not ask for {other:?}"),
    }
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() { "none".into() } else { parts.join("; ") }
}

fn of_name(Named { name, user, version }: &Named) -> String {
    let name = name.clone().unwrap_or_else(|| "no environment".into());
    EnvironmentName { name, user: user.clone(), version: *version }.to_string()
}

fn of_poll(poll: &Poll) -> String {
    let end = match (poll.done, poll.error) {
        (false, _) => "at work",
        (true, false) => "over",
        (true, true) => "broken",
    };
    let nodes = match &poll.nodes {
        Some(Nodes::Own(Split { ok, ko, processing })) => {
            format!("ok [{}] ko [{}] processing [{}]", ok.join(" "), ko.join(" "), processing.join(" "))
        }
        Some(Nodes::Others(_)) => "another user's".into(),
        None => "no nodes".into(),
    };
    format!("{} {} {end} {nodes}", poll.wid, of_name(&poll.environment))
}

fn of_step((node, step): (&String, &Step)) -> String {
    let words = [&step.large, &step.small, &step.state].map(|word| word.as_deref().unwrap_or("-"));
    format!("{node} {}{}", words.join(" "), if step.error.is_some() { " with a reason" } else { "" })
}

fn of_record(record: &Record) -> String {
    let user = record.user.as_deref().unwrap_or("nobody");
    format!("{} {} of {user}", record.state, of_name(&record.environment))
}

#[test]
fn every_recording_is_in_a_table() {
    let tables = [
        include_str!("snapshots/vmdeploy__driver__kadeploy__golden__every_answer_is_read.snap"),
        include_str!("snapshots/vmdeploy__driver__kadeploy__golden__every_error_is_classified.snap"),
    ]
    .concat();
    for file in replay_tests::files() {
        let named = file.strip_suffix(".http").is_some_and(|name| tables.contains(&format!("\n{name}: ")));
        assert!(named || file == TIMELINE, "no test reads {file}");
    }
}

#[test]
fn every_answer_is_read() {
    let answers = all("").into_iter().filter(|(_, reply)| reply.status == 200);
    let table: BTreeMap<String, String> = answers.map(|(name, reply)| (name, meaning(&reply))).collect();
    insta::assert_yaml_snapshot!(table);
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
    let mut count = 0;
    for (name, reply) in all("env_").into_iter().filter(|(name, reply)| reply.status == 200 && name != "env_list_empty")
    {
        let found: Vec<Environment> = read(&reply);
        count += found.len();
        for environment in found {
            environment.check().unwrap();
            assert_eq!(environment.image.kind(), ImageKind::Tar, "{name}");
            assert!(environment.version.is_some() && environment.user.is_some(), "{name}");
            assert!(environment.boot.kernel.is_some() && environment.filesystem.is_some(), "{name}");
            assert!(environment.other.contains_key("partition_type"), "{name}: {environment:?}");
        }
    }
    assert!(count > 3);
}

#[test]
fn what_was_begun_is_polled_by_its_id() {
    for (begun, polled) in [
        ("anon_create", "anon_poll"),
        ("dep_create", "dep_poll_done"),
        ("dep_same_nodes", "dep_same_nodes_poll"),
        // over two clusters
        ("multi_create", "multi_poll"),
        // with texts for debugging
        ("partial_create", "partial_poll_done"),
        ("real_create", "real_poll_done"),
    ] {
        assert_eq!(read::<Begun>(&recorded(begun)).wid, poll(polled).wid, "{begun}");
    }
}

#[test]
fn a_workflow_at_work_says_its_steps() {
    let seen = judge::working(&hosts(&["dummy-1.test"]), &split("dep_poll_0"), &state("dep_state_mid"));
    assert_eq!(
        (states(&seen), seen.done),
        (vec![r#"dummy-1.test Working { step: "SetDeploymentEnvDummy: dummy" }"#.into()], false)
    );
    assert!(!poll("multi_poll_mid").done && poll("multi_poll_mid").start_time.is_some());
    // before its first step
    let seen = judge::working(&hosts(&["node-1.test"]), &split("cancel_before"), &State::new());
    assert_eq!(states(&seen), [r#"node-1.test Working { step: "begun" }"#]);
}

#[test]
fn two_real_machines_are_followed_to_the_end() {
    let both = hosts(&["node-1.test", "node-2.test"]);
    let begun = Split { processing: both.values().cloned().collect(), ..Split::default() };
    let mut steps = Vec::new();
    for line in replay_tests::text(TIMELINE).lines() {
        let (_, state) = line.split_once(' ').unwrap();
        let seen = judge::working(&both, &begun, &wire::parse(state.as_bytes()).unwrap());
        let stand: Vec<NodeState> = seen.nodes.into_values().collect();
        let [NodeState::Working { step }, NodeState::Working { step: other }] = stand.as_slice() else {
            panic!("{line}")
        };
        assert_eq!(step, other);
        steps.push(step.clone());
    }
    assert_eq!(
        steps,
        [
            "SetDeploymentEnvUntrusted: switch_pxe",
            "SetDeploymentEnvUntrusted: reboot",
            // it reboots, and has rebooted
            "SetDeploymentEnvUntrusted: wait_reboot",
            "SetDeploymentEnvUntrusted: wait_reboot",
            "SetDeploymentEnvUntrusted: send_key_in_deploy_env",
            "SetDeploymentEnvUntrusted: create_partition_table",
            "SetDeploymentEnvUntrusted: format_deploy_part",
            "SetDeploymentEnvUntrusted: mount_deploy_part",
            "BroadcastEnvTree: send_environment",
            "BroadcastEnvTree: manage_user_post_install",
            "BroadcastEnvTree: check_kernel_files",
            "BroadcastEnvTree: send_key",
            "BroadcastEnvTree: install_bootloader",
            "BroadcastEnvTree: sync",
            "BootNewEnvClassical: switch_pxe",
            "BootNewEnvClassical: reboot_from_deploy_env",
            "BootNewEnvClassical: wait_reboot",
            // through, and not yet over
            "ok",
        ]
    );
    let seen = judge::over(&both, &split("real_poll_done"), &state("real_state_done"));
    assert!(seen.nodes.values().all(|state| *state == NodeState::Deployed), "{seen:?}");
    let left = left(&["node-1.test", "node-2.test"], "real_nodes", "debian12-hv");
    assert!(left.iter().all(|state| *state == NodeState::Lost(Remains::Deployed)), "{left:?}");
}

#[test]
fn success_is_a_workflow_without_error_that_lists_the_node() {
    let both = hosts(&["dummy-1.test", "dummy-2.test"]);
    let seen = judge::over(&both, &split("dep_poll_done"), &state("dep_state_done"));
    assert!(seen.done && seen.nodes.values().all(|state| *state == NodeState::Deployed));
    // one that came along with its request, and one whose node was given to another user meanwhile
    for name in ["anon_poll", "overwrite_rights_poll"] {
        let seen = judge::over(&hosts(&["dummy-1.test"]), &split(name), &State::new());
        assert_eq!(states(&seen), ["dummy-1.test Deployed"], "{name}");
    }
    // done and no error, and failed on every node
    assert!(poll("fail_corrupt_poll").done && !poll("fail_corrupt_poll").error);
    let seen = judge::over(&hosts(&["node-1.test"]), &split("fail_corrupt_poll"), &state("fail_corrupt_state"));
    let NodeState::Failed { reason } = &seen.nodes[&"node-1.test".into()] else { panic!("{seen:?}") };
    assert!(reason.starts_with("BroadcastEnvTree-send_environment: gzip: stdin: unexpected end"), "{reason}");
    assert_eq!(reason.lines().count(), 1);
    let seen = judge::over(&hosts(&["node-1.test"]), &split("fail_nokernel_poll"), &state("fail_nokernel_state"));
    let NodeState::Failed { reason } = &seen.nodes[&"node-1.test".into()] else { panic!("{seen:?}") };
    assert!(reason.ends_with("kernel file /vmlinuz not found in tarball (/mnt/dest//vmlinuz)"), "{reason}");
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
    let left = left(&["node-1.test", "node-2.test"], "partial_nodes", "debian12-hv");
    assert_eq!(
        left,
        [Remains::Deployed, Remains::Other("deploy_failed".into())].map(NodeState::Lost),
        "once it is forgotten"
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
    for (name, error) in [
        ("fail_gone_error", Some("Invalid file -- Unable to grab the file /srv/kadeploy/img/gone.tgz")),
        ("fail_changed_error", Some("Invalid file -- Checksum of the file")),
        ("dep_same_nodes_error", None),
        ("restart_redeploy_error", None),
    ] {
        let reply = recorded(name);
        let seen = judge::broken(&node, reply.code, &String::from_utf8_lossy(&reply.body));
        match (&seen.nodes[&"node-1.test".into()], error) {
            (NodeState::Discarded, None) => {}
            (NodeState::Broke(KadeployError::Refused(text)), Some(start)) => assert!(text.starts_with(start), "{text}"),
            (other, _) => panic!("{name}: {other:?}"),
        }
    }
}

/// Codes of the server's configuration, of files and descriptions, and of what goes wrong within it. All others, also
/// those that nobody knows, may be of nodes.
#[test]
fn some_codes_of_a_workflow_that_broke_say_nothing_of_its_nodes() {
    let node = hosts(&["node-1.test"]);
    for code in (0..40).map(Some).chain([None]) {
        let why = || "why".to_owned();
        let wanted = match code {
            Some(0) => NodeState::Broke(KadeployError::Configuration(why())),
            Some(3 | 5 | 7) => NodeState::Broke(KadeployError::Refused(why())),
            Some(14) => NodeState::Discarded,
            Some(15 | 20..=22) => NodeState::Broke(KadeployError::Unreachable(why())),
            _ => NodeState::Failed { reason: why() },
        };
        let seen = judge::broken(&node, code, "why");
        assert_eq!((seen.done, &seen.nodes[&"node-1.test".into()]), (true, &wanted), "{code:?}");
    }
}

#[test]
fn where_the_workflow_is_forgotten_the_nodes_records_tell() {
    let of = |recording: &str, environment: &EnvironmentToDeploy, user: &str| {
        let records = Records::from([("x".to_owned(), Some(read(&recorded(recording))))]);
        match judge::lost(&hosts(&["x"]), &records, environment, user).nodes.remove(&"x".into()) {
            Some(NodeState::Lost(remains)) => remains,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(of("dep_node_after", &newest("hv"), "alice"), Remains::Deployed);
    assert_eq!(of("dep_node_after", &newest("other"), "alice"), Remains::Other("deployed".into()));
    assert_eq!(of("dep_node_after", &newest("hv"), "bob"), Remains::Other("deployed, by another user".into()));
    let second = EnvironmentName { version: Some(2), ..EnvironmentName::newest("hv") };
    let second = EnvironmentToDeploy::Recorded(second);
    assert_eq!(of("dep_node_after", &second, "alice"), Remains::Other("deployed".into()));
    assert_eq!(of("restart_node", &newest("debian12-hv"), "alice"), Remains::Stale);
    for gone in ["cancel_node", "revoke_node", "fail_gone_nodes"] {
        assert_eq!(of(gone, &newest("hv"), "alice"), Remains::Aborted, "{gone}");
    }
    // failed, or its user has done something else to it
    for (recording, word) in [
        ("fail_corrupt_node", "deploy_failed"),
        ("fail_nokernel_node", "deploy_failed"),
        ("power_off_node", "powered"),
        ("reboot2_node", "rebooted"),
        ("reboot_node", "reboot_failed"),
        ("reboot_deployenv_node", "deploy_env"),
    ] {
        assert_eq!(of(recording, &newest("corrupt"), "alice"), Remains::Other(word.into()), "{recording}");
    }
    let inline = Environment { name: "anon".into(), ..Environment::default() };
    assert_eq!(of("anon_node", &EnvironmentToDeploy::Inline(Box::new(inline)), "alice"), Remains::Deployed);

    let unused = ["never used", "not known to the server"].map(|word| NodeState::Lost(Remains::Other(word.into())));
    assert_eq!(left(&["dummy-1.test", "nope"], "nodes_unset", "hv"), unused);
    let stale = [Remains::Stale, Remains::Stale, Remains::Other("never used".into())].map(NodeState::Lost);
    assert_eq!(left(&["dummy-1.test", "dummy-2.test", "dummy-3.test"], "dep_busy_nodes", "hv"), stale);
}

#[test]
fn others_workflows_are_told_from_ones_own() {
    assert!(matches!(poll("dep_poll_other_user").nodes, Some(Nodes::Others(_))));
    let list: Vec<Poll> = read(&recorded("dep_list"));
    assert_eq!(list.iter().map(|poll| poll.done).collect::<Vec<_>>(), [false, true]);
    assert!(read::<Vec<Poll>>(&recorded("restart_list")).is_empty());
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
