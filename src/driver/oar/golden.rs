//! The parsers on everything a real OAR 2.5.9 was heard to say.

use std::{collections::BTreeMap, fs, path::Path};

use jiff::Timestamp;
use serde_json::Value;

use super::{
    classify, errors,
    wire::{self, Collection, Item, Job, Node, Submitted, Version, Whoami},
};
use crate::driver::site::{End, SiteError, SlotPhase};

fn recordings(prefix: &str) -> BTreeMap<String, (u16, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/driver/oar/recorded");
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            let exchange: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let reply = &exchange["reply"];
            let status = reply["status"].as_u64().unwrap() as u16;
            all.insert(name, (status, serde_json::to_vec(&reply["body"]).unwrap()));
        }
    }
    all
}

fn time(second: i64) -> Option<Timestamp> {
    Timestamp::from_second(second).ok()
}

fn is_list(name: &str) -> bool {
    name.ends_with("-nodes") || name.ends_with("-resources")
}

#[test]
fn every_job_is_classified() {
    let mut table = BTreeMap::new();
    for (name, (_, body)) in recordings("job-").into_iter().filter(|(name, _)| !is_list(name)) {
        let job: Job = wire::parse(&body).unwrap();
        let phase = match classify::phase(&job, time) {
            SlotPhase::Ended(End::Infrastructure(text)) => {
                format!("Ended(Infrastructure({}))", text.split(':').next().unwrap())
            }
            SlotPhase::Waiting { expected, .. } => format!("Waiting(expected: {})", expected.is_some()),
            other => format!("{other:?}"),
        };
        let notice = classify::notice(&job, time).map(|n| format!("{:?} at {}", n.kind, n.at.as_second()));
        table.insert(name, [job.state, phase, notice.unwrap_or_default()]);
    }
    insta::assert_yaml_snapshot!(table);
}

#[test]
fn every_error_is_classified() {
    let table: BTreeMap<String, String> = recordings("err-")
        .into_iter()
        .map(|(name, (status, body))| (name, format!("{status} {:?}", errors::classify(status, &body))))
        .collect();
    insta::assert_yaml_snapshot!(table);
}

#[test]
fn every_list_is_read() {
    for (name, (_, body)) in recordings("jobs") {
        let list: Collection<Item> = wire::parse(&body).unwrap();
        assert!(list.items.iter().all(|i| i.id.is_some() && !i.state.is_empty()), "{name}");
        assert_eq!(list.items.is_empty(), name == "jobs-empty", "{name}");
    }
    for (name, (_, body)) in recordings("job-").into_iter().filter(|(name, _)| is_list(name)) {
        let list: Collection<Node> = wire::parse(&body).unwrap();
        assert!(!list.items.is_empty() && list.items.iter().all(|n| n.network_address.starts_with("node-")), "{name}");
    }
}

#[test]
fn every_submission_has_an_id() {
    for (name, (status, body)) in recordings("submit") {
        let reply: Submitted = wire::parse(&body).unwrap();
        assert!(status == 201 && reply.id.is_some_and(|id| id > 0), "{name}");
    }
    let (_, body) = &recordings("version")["version"];
    let version: Version = wire::parse(body).unwrap();
    assert!(version.oar_version.starts_with("2.5") && version.oar_server_version.is_empty());
    let (_, body) = &recordings("whoami")["whoami"];
    assert_eq!(wire::parse::<Whoami>(body).unwrap().authenticated_user, "alice");
}

#[test]
fn a_user_without_a_home_is_no_bug_of_ours() {
    let body = br#"{"code": 500, "title": "Oar server error", "message": "Oarsub command exited with status 1: cp: cannot create regular file '/nonexistent/': Not a directory\n\nCmd:\noarsub"}"#;
    assert!(matches!(errors::classify(500, body), SiteError::Credentials(_)));
}

#[test]
fn a_web_server_in_trouble_is_not_oar() {
    assert!(matches!(errors::classify(500, b"<html>oops"), SiteError::Unreachable(_)));
    assert!(matches!(errors::classify(503, b""), SiteError::Unreachable(_)));
    assert!(matches!(errors::classify(401, b"<html>login"), SiteError::Credentials(_)));
    assert!(matches!(errors::classify(404, b"<html>"), SiteError::Configuration(_)));
    assert!(matches!(errors::classify(302, b""), SiteError::Configuration(_)));
}
