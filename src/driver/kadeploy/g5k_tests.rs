//! The client of the Grid'5000 API on bodies written from its public descriptions: nobody recorded any.

use serde_json::json;

use super::{
    DeployRequest, EnvironmentName, EnvironmentSource, KadeployError, NodeState, Remains, WorkflowId, connect,
    replay_tests::{Recorded, Replay, alice},
};

const MORE: &str = ", flavour: g5k, partition: '3'";

fn id() -> WorkflowId {
    WorkflowId("D-1".into())
}

fn request() -> DeployRequest {
    let name = EnvironmentName { name: "debian12-min".into(), user: Some("deploy".into()), version: None };
    let nodes = vec!["worker-1".into(), "dummy-2.test".into()];
    DeployRequest { nodes, environment: EnvironmentSource::Recorded(name), key_url: None, takes_over: None }
}

fn deployment(status: &str) -> Recorded {
    let step = |state: &str| json!({"macro": "BootNewEnvClassical", "micro": "wait_reboot", "state": state});
    let body = json!({
        "uid": "D-1", "user_uid": "alice", "site_uid": "rennes", "status": status,
        "environment": "debian12-min@deploy", "nodes": ["dummy-1.test", "dummy-2.test"], "created_at": 1_795_325_920,
        "result": {"dummy-1.test": step("OK"), "dummy-2.test": step("KO")}, "output": "no image",
    });
    Recorded::made(200, "", &body.to_string())
}

#[tokio::test]
async fn a_deployment_is_asked_for_and_its_id_is_where_it_is_found() {
    let made = "Location: /3.0/sites/rennes/deployments/D-1\n";
    let server = Replay::start(move |line| match line {
        "POST /deployments" => Recorded::made(201, made, ""),
        _ => Recorded::made(404, "", "not there"),
    })
    .await;
    let client = connect(&server.site(MORE), &alice()).unwrap();
    assert_eq!(client.deploy(&request()).await.unwrap(), id());
    let wanted = json!({
        "nodes": ["dummy-2.test", "dummy-1.test"], "environment": "debian12-min@deploy", "partition_label": "3",
    });
    assert_eq!(server.last().body, wanted);
    client.deploy(&DeployRequest { takes_over: Some(id()), ..request() }).await.unwrap();
    assert_eq!(server.last().body["ignore_nodes_deploying"], true);
    let error = client.describe(&EnvironmentName::newest("x")).await.unwrap_err();
    assert!(matches!(error, KadeployError::Refused(_)), "{error}");
}

#[tokio::test]
async fn what_it_says_is_fresh_and_terminated_is_no_success() {
    for (status, first, second, done) in [
        ("processing", working(), working(), false),
        ("terminated", NodeState::Deployed, failed("BootNewEnvClassical: wait_reboot"), true),
        ("canceled", NodeState::Lost(Remains::Aborted), NodeState::Lost(Remains::Aborted), true),
        ("error", failed("no image"), failed("no image"), true),
    ] {
        let server = Replay::start(move |_| deployment(status)).await;
        let client = connect(&server.site(MORE), &alice()).unwrap();
        let DeployRequest { nodes, environment, .. } = request();
        let seen = client.observe(&id(), &nodes, &environment).await.unwrap();
        assert_eq!((&seen.nodes[&nodes[0]], &seen.nodes[&nodes[1]], seen.done), (&first, &second, done), "{status}");
        assert_eq!(server.lines().contains(&"PUT /deployments/D-1".to_owned()), !done);
    }
}

fn working() -> NodeState {
    NodeState::Working { step: "BootNewEnvClassical: wait_reboot".into() }
}

fn failed(reason: &str) -> NodeState {
    NodeState::Failed { reason: reason.into() }
}

#[tokio::test]
async fn only_what_is_at_work_is_cancelled() {
    for (status, cancelled) in [("processing", true), ("terminated", false)] {
        let server = Replay::start(move |line| match line {
            "DELETE /deployments/D-1" => Recorded::made(202, "", ""),
            _ => deployment(status),
        })
        .await;
        connect(&server.site(MORE), &alice()).unwrap().forget(&id()).await.unwrap();
        assert_eq!(server.lines().contains(&"DELETE /deployments/D-1".to_owned()), cancelled);
    }
    let server = Replay::start(|_| {
        let one = String::from_utf8(deployment("waiting").body).unwrap();
        Recorded::made(200, "", &format!("{{\"total\":1,\"offset\":0,\"items\":[{one}]}}"))
    })
    .await;
    let list = connect(&server.site(MORE), &alice()).unwrap().workflows().await.unwrap();
    assert_eq!(
        (&list[0].id, list[0].done, list[0].environment.to_string().as_str()),
        (&id(), false, "debian12-min@deploy")
    );
    assert_eq!(list[0].nodes, request().nodes);
}
