//! What we ask of OAR. Pure.
//!
//! Never `idempotent` (OAR and the operator would both submit again), never `types` (refused), the
//! walltime always as h:mm:ss (a plain number would be hours).

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{
    classify::SIGNAL,
    hold::{HoldScript, LauncherScript, UnsafeText, check_text},
    property::{self, BadProperty},
};
use crate::{
    backoff::Backoff,
    config::{JoinConfig, LaunchConfig},
    driver::site::SlotRequest,
};

/// Time between two beats of the lease.
const BEAT: Duration = Duration::from_secs(2);

/// What of a submission comes from the site's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SubmitSettings {
    /// Directory in which the hold starts; the user's home if absent.
    pub(super) directory: Option<String>,
    /// Root of the leases on the nodes.
    pub(super) lease_root: String,
    /// How the hold reaches the nodes of its job.
    pub(super) connector: String,
    /// How long the agents may take to appear.
    pub(super) agent_wait: Duration,
    /// Kubernetes names of the site's hosts, where they differ.
    pub(super) nodes: BTreeMap<String, String>,
    /// Of nodes that are deployed first; absent where none are.
    pub(super) deployed: Option<DeployedSettings>,
    /// How agents are started where there is no kubelet; absent where none are.
    pub(super) launch: Option<LaunchConfig>,
}

/// What is different where nodes are deployed first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeployedSettings {
    /// How the hold reaches them, from the frontend.
    pub(super) connector: String,
    /// How long that may take.
    pub(super) wait: Duration,
    /// How they come to join the cluster, if that is the hold's affair.
    pub(super) join: Option<JoinConfig>,
}

/// The body of `POST /jobs.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Submission {
    resource: String,
    #[serde(rename = "type")]
    kinds: Vec<&'static str>,
    script: String,
    name: String,
    signal: i64,
    stdout: &'static str,
    stderr: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    array: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    property: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    directory: Option<String>,
}

/// Why a request is not sent.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum BadRequest {
    /// A text that a shell could take for its own.
    #[error(transparent)]
    Text(#[from] UnsafeText),
    /// A condition that is more than that.
    #[error(transparent)]
    Property(#[from] BadProperty),
    /// No node of the site is deployed.
    #[error("the site's configuration has no kadeploy section: its nodes are not deployed")]
    NotDeployed,
    /// Agents are not started there.
    #[error("the site's configuration has no launch section: no agents are started in its slots")]
    NotLaunched,
}

/// Renders a request. Refuses every text that one of the shells behind the API could take for its own.
pub(super) fn submission(request: &SlotRequest, settings: &SubmitSettings) -> Result<Submission, BadRequest> {
    check_text("name", &request.name, "._-")?;
    let checked = |what, text: &Option<String>, allowed| match text {
        Some(text) => check_text(what, text, allowed).map(|()| Some(text.clone())),
        None => Ok(None),
    };
    let deployed = match (request.deploy, &settings.deployed) {
        (false, _) => None,
        (true, Some(deployed)) => Some(deployed),
        (true, None) => return Err(BadRequest::NotDeployed),
    };
    let launch = match (request.launch, &settings.launch) {
        (false, _) => None,
        (true, Some(launch)) => Some(launch),
        (true, None) => return Err(BadRequest::NotLaunched),
    };
    let join = deployed.and_then(|deployed| deployed.join.as_ref());
    let deploys = deployed.map_or(Duration::ZERO, |deployed| deployed.wait);
    let agent_wait = settings.agent_wait + request.acquire + deploys;
    let hold = HoldScript {
        lease_root: &settings.lease_root,
        lease_prefix: &request.lease_prefix,
        connector: deployed.map_or(&settings.connector, |deployed| &deployed.connector),
        beat: BEAT,
        agent_wait,
        // a slot is kept until its job is tried again, and has then to get its agents
        forgotten: Backoff::OUTSIDE.longest + agent_wait,
        deployed: request.deploy,
        launcher: launch.map(|launch| LauncherScript { command: &launch.command, port: launch.port }),
        key_file: launch.map(|launch| launch.key_file.as_str()).or(join.map(|join| join.key_file.as_str())),
        token_file: join.map(|join| join.token_file.as_str()),
        holds: request.reservations,
        puts_images: request.puts_images,
    };
    let grace = whole_seconds(request.grace);
    Ok(Submission {
        resource: format!("/nodes={},walltime={}", request.nodes, hours(request.walltime)),
        kinds: if request.deploy { vec!["besteffort", "deploy"] } else { vec!["besteffort"] },
        script: hold.render()?,
        name: request.name.clone(),
        signal: SIGNAL,
        stdout: "/dev/null",
        stderr: "/dev/null",
        // a count as text
        array: (request.reservations > 1).then(|| request.reservations.to_string()),
        checkpoint: (grace > 0).then_some(grace),
        project: checked("project", &request.project, "._-")?,
        queue: checked("queue", &request.queue, "._-")?,
        property: condition(request, &settings.nodes)?,
        directory: checked("directory", &settings.directory, "._/-")?,
    })
}

/// The job's own condition, those of the site's configuration, and the hosts that are to be left out.
fn condition(request: &SlotRequest, nodes: &BTreeMap<String, String>) -> Result<Option<String>, BadRequest> {
    let mut all: Vec<String> = request.property.iter().chain(&request.narrowed).cloned().collect();
    all.iter().try_for_each(|text| property::check(text))?;
    let hosts = request.avoid.iter().map(|node| {
        let host = nodes.iter().find(|(_, name)| **name == node.0).map_or(&node.0, |(host, _)| host);
        check_text("host", host, "._-").map(|()| format!("'{host}'"))
    });
    let hosts: Vec<String> = hosts.collect::<Result<_, _>>()?;
    if !hosts.is_empty() {
        all.push(format!("network_address NOT IN ({})", hosts.join(",")));
    }
    match all.as_slice() {
        [] | [_] => Ok(all.pop()),
        several => Ok(Some(several.iter().map(|text| format!("({text})")).collect::<Vec<_>>().join(" AND "))),
    }
}

fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

fn hours(time: Duration) -> String {
    let seconds = whole_seconds(time).max(1);
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn request() -> SlotRequest {
        SlotRequest {
            name: "vmdeploy-3f2b8a10-1".into(),
            nodes: 4,
            reservations: 1,
            acquire: Duration::ZERO,
            deploy: false,
            puts_images: false,
            launch: false,
            walltime: Duration::from_secs(2 * 3600 + 61),
            grace: Duration::from_secs(60),
            lease_prefix: "3f2b8a10-".into(),
            queue: None,
            project: Some("vmdeploy".into()),
            property: Some("cluster='paravance' AND mem > 64".into()),
            narrowed: Vec::new(),
            avoid: Vec::new(),
        }
    }

    fn settings() -> SubmitSettings {
        SubmitSettings {
            directory: Some("/home/alice".into()),
            lease_root: "/var/lib/vmdeploy/leases".into(),
            connector: "oarsh".into(),
            agent_wait: Duration::from_secs(300),
            nodes: BTreeMap::from([("host-3.site".into(), "node-3".into())]),
            deployed: Some(DeployedSettings {
                connector: "ssh -l root".into(),
                wait: Duration::from_secs(1800),
                join: Some(crate::yaml::read("tokenFile: /etc/join/token").unwrap()),
            }),
            launch: Some(crate::yaml::read("command: sudo -n /opt/vmdeploy/vmdeploy").unwrap()),
        }
    }

    #[rstest]
    #[case::nothing(None, &[], &[], None)]
    #[case::the_jobs_own(Some("mem > 64 OR x='y'"), &[], &[], Some("mem > 64 OR x='y'"))]
    #[case::a_node(None, &[], &["node-1"], Some("network_address NOT IN ('node-1')"))]
    #[case::all(
        Some("mem > 64 OR x='y'"),
        &["virtual <> 'NO'"],
        &["node-1", "node-3"],
        Some("(mem > 64 OR x='y') AND (virtual <> 'NO') AND (network_address NOT IN ('node-1','host-3.site'))")
    )]
    fn what_narrows_a_request_comes_together(
        #[case] property: Option<&str>,
        #[case] narrowed: &[&str],
        #[case] avoid: &[&str],
        #[case] says: Option<&str>,
    ) {
        let request = SlotRequest {
            property: property.map(Into::into),
            narrowed: narrowed.iter().map(|text| (*text).into()).collect(),
            avoid: avoid.iter().map(|node| (*node).into()).collect(),
            ..request()
        };
        let body = submission(&request, &settings()).unwrap();
        assert_eq!(body.property.as_deref(), says);
        assert!(body.property.is_none_or(|text| property::check(&text).is_ok()));
        let bad = SlotRequest { narrowed: vec!["1=1) OR (1=1".into()], ..request };
        assert!(submission(&bad, &settings()).is_err());
    }

    #[test]
    fn a_request_becomes_oars_options() {
        let mut body = serde_json::to_value(submission(&request(), &settings()).unwrap()).unwrap();
        let script = body.as_object_mut().unwrap().remove("script").unwrap();
        assert!(script.as_str().unwrap().starts_with("#!/bin/sh\n") && !script.as_str().unwrap().contains('@'));
        insta::assert_yaml_snapshot!(body, @r#"
        checkpoint: 60
        directory: /home/alice
        name: vmdeploy-3f2b8a10-1
        project: vmdeploy
        property: "cluster='paravance' AND mem > 64"
        resource: "/nodes=4,walltime=2:01:01"
        signal: 12
        stderr: /dev/null
        stdout: /dev/null
        type:
          - besteffort
        "#);
    }

    #[test]
    fn nodes_to_be_deployed_are_asked_for_as_such_and_held_from_the_frontend() {
        let deploy = SlotRequest { deploy: true, ..request() };
        let body = serde_json::to_value(submission(&deploy, &settings()).unwrap()).unwrap();
        assert_eq!(body["type"], serde_json::json!(["besteffort", "deploy"]));
        let script = body["script"].as_str().unwrap();
        // as long as agents and deployments may take together
        assert!(
            script.contains("taktuk -s $tree -t 2100") && script.contains("until ssh -l root \"$0\" \"$ASK\""),
            "{script}"
        );
        let refused = submission(&deploy, &SubmitSettings { deployed: None, ..settings() }).unwrap_err();
        assert!(refused.to_string().contains("kadeploy"), "{refused}");
    }

    #[test]
    fn only_holds_that_are_asked_to_and_run_on_the_nodes_put_images() {
        let puts = |puts_images: bool, deploy: bool| {
            let body = submission(&SlotRequest { puts_images, deploy, ..request() }, &settings()).unwrap();
            let script = serde_json::to_value(body).unwrap()["script"].as_str().unwrap().to_owned();
            assert!(!script.contains('@'), "{script}");
            script.contains("broadcast put")
        };
        assert_eq!([puts(false, false), puts(true, false), puts(true, true)], [false, true, false]);
    }

    #[test]
    fn launchers_are_started_where_they_are_asked_for_and_no_key_stands_in_the_script() {
        let launch = SlotRequest { launch: true, ..request() };
        let script = serde_json::to_value(submission(&launch, &settings()).unwrap()).unwrap()["script"].to_string();
        assert!(script.contains("[ sudo -n /opt/vmdeploy/vmdeploy launcher --port 17699 > /dev/null"), "{script}");
        assert!(script.contains("file=$HOME/.vmdeploy-launch-key"), "{script}");
        let without = serde_json::to_value(submission(&request(), &settings()).unwrap()).unwrap()["script"].to_string();
        assert!(!without.contains("/opt/vmdeploy/vmdeploy"));
        let deploy = SlotRequest { deploy: true, ..request() };
        let script = serde_json::to_value(submission(&deploy, &settings()).unwrap()).unwrap()["script"].to_string();
        assert!(script.contains("file=$HOME/.vmdeploy-launch-key"), "{script}");
        assert!(script.contains("test -d /etc/join &&"), "{script}");

        let refused = submission(&launch, &SubmitSettings { launch: None, ..settings() }).unwrap_err();
        assert!(refused.to_string().contains("launch"), "{refused}");
    }

    /// On nodes that are deployed OAR ends no process, so that its kill is no fence.
    #[test]
    fn a12_no_slot_is_asked_for_as_nodes_to_be_deployed_whatever_a_user_writes() {
        let texts = ["deploy", "besteffort -t deploy", "x;type=deploy", "a\n-t deploy", "a' -t deploy"];
        for text in texts {
            let given = Some(text.to_owned());
            for request in [
                SlotRequest { queue: given.clone(), ..request() },
                SlotRequest { project: given.clone(), ..request() },
                SlotRequest { property: given.clone(), ..request() },
                SlotRequest { narrowed: vec![text.into()], ..request() },
                SlotRequest { name: text.into(), ..request() },
            ] {
                let Ok(body) = submission(&request, &settings()) else { continue };
                let body = serde_json::to_value(body).unwrap();
                assert_eq!(body["type"], serde_json::json!(["besteffort"]), "{text:?}");
                let types = body.as_object().unwrap().keys().filter(|key| key.contains("type")).count();
                assert_eq!(types, 1, "{text:?}");
                // a property is one value for OAR, whatever stands in it
                let spoken =
                    body.as_object().unwrap().iter().filter(|(key, _)| !["script", "property"].contains(&key.as_str()));
                assert!(spoken.into_iter().all(|(_, value)| !value.to_string().contains("-t ")), "{text:?}: {body}");
            }
        }
    }

    #[test]
    fn reservations_of_their_own_are_an_array() {
        let request = SlotRequest { nodes: 1, reservations: 3, acquire: Duration::from_secs(600), ..request() };
        let body = serde_json::to_value(submission(&request, &settings()).unwrap()).unwrap();
        assert_eq!((&body["array"], &body["resource"]), (&"3".into(), &"/nodes=1,walltime=2:01:01".into()));
        // the first of them waits for the last
        let script = body["script"].as_str().unwrap();
        assert!(script.contains("test $waited -gt 450") && script.contains("-ge 3"), "{script}");
        // and all of them the job's next try
        assert!(script.contains("[ $((beat - attended)) -gt 750 ]"), "{script}");
    }

    #[test]
    fn without_grace_there_is_no_checkpoint() {
        let body = submission(&SlotRequest { grace: Duration::ZERO, ..request() }, &settings()).unwrap();
        assert_eq!(body.checkpoint, None);
    }

    #[rstest]
    #[case::quote_in_name("it's", "p", "x='y'", "/home/alice")]
    #[case::command_in_project("n", "$(id)", "x='y'", "/home/alice")]
    #[case::double_quote_in_property("n", "p", "x=\"y\"", "/home/alice")]
    #[case::backquote_in_property("n", "p", "`id`", "/home/alice")]
    #[case::second_statement_in_property("n", "p", "x='y'; DROP", "/home/alice")]
    #[case::blank_in_directory("n", "p", "x='y'", "/home/al ice")]
    fn texts_that_a_shell_would_take_are_refused(
        #[case] name: &str,
        #[case] project: &str,
        #[case] property: &str,
        #[case] directory: &str,
    ) {
        let request = SlotRequest {
            name: name.into(),
            project: Some(project.into()),
            property: Some(property.into()),
            ..request()
        };
        let settings = SubmitSettings { directory: Some(directory.into()), ..settings() };
        assert!(submission(&request, &settings).is_err());
    }
}
