//! The life of a workflow, in the server's own words.

use serde_json::{Value, json};
use vmdeploy::driver::kadeploy::contract::World as _;

use crate::{
    raw,
    world::{Server, needs, needs_simulator},
};

fn names(value: &Value) -> Vec<String> {
    let mut names: Vec<String> = serde_json::from_value(value.clone()).unwrap();
    names.sort();
    names
}

#[tokio::test]
async fn a_workflow_from_its_begin_to_its_end() {
    let server = Server::find().await;
    let reply = server.post("/deployment", &server.deployment(&server.nodes)).await.json();
    let id = reply["wid"].as_str().unwrap().to_owned();
    let path = format!("/deployment/{id}");
    assert!(id.starts_with("D-") && reply["resources"]["state"] == format!("{path}/state"), "{reply}");

    let poll = server.get(&path).await.json();
    assert_eq!((&poll["done"], &poll["error"], &poll["user"]), (&json!(false), &json!(false), &json!(server.user)));
    assert_eq!(names(&poll["nodes"]["processing"]), server.nodes);
    let record = server.get(&format!("/nodes/{}", server.nodes[0])).await.json();
    assert_eq!((&record["state"], &record["environment"]["name"]), (&json!("deploying"), &json!(server.environment)));

    let poll = server.over(&id).await;
    assert_eq!((&poll["error"], &poll["environment"]["id"]), (&json!(false), &Value::Null));
    assert_eq!((names(&poll["nodes"]["ok"]), poll["nodes"].get("processing")), (server.nodes.clone(), None));
    assert_eq!(server.get(&format!("{path}/status")).await.json(), json!({}));
    let state = server.get(&format!("{path}/state")).await.json();
    assert_eq!(state[&server.nodes[0]], json!({"macro": null, "micro": null, "state": "ok"}));
    let error = server.get(&format!("{path}/error")).await;
    assert_eq!((error.status, error.text.as_str()), (200, "\n"));
    // what is read of the logs is gone
    assert!(server.get(&format!("{path}/logs")).await.text.contains('|'));
    assert_eq!(server.get(&format!("{path}/logs")).await.text, "\n");

    assert_eq!(server.ask("DELETE", &path, None).await.json(), json!({"wid": id}));
    assert_eq!(server.get(&path).await.codes(), (400, Some(1)));
    assert_eq!(server.get(&format!("{path}/state")).await.codes(), (400, Some(1)));
    assert_eq!(server.ask("DELETE", &path, None).await.status, 405);
    let record = server.get(&format!("/nodes/{}", server.nodes[0])).await.json();
    assert_eq!((&record["state"], &record["environment"]["name"]), (&json!("deployed"), &json!(server.environment)));
}

#[tokio::test]
async fn others_are_told_little() {
    let server = Server::find().await;
    let Some(other) = &server.other else { return needs("others_are_told_little", "OTHER") };
    let id = server.begin(&server.nodes).await;
    let path = format!("/deployment/{id}");
    let poll = raw::ask(&server.address, other, "GET", &path, None).await.json();
    assert_eq!((names(&poll["nodes"]), poll.get("environment")), (server.nodes.clone(), None));
    assert_eq!(raw::ask(&server.address, other, "GET", &format!("{path}/logs"), None).await.status, 403);
    let list = raw::ask(&server.address, other, "GET", "/deployment", None).await.json();
    assert!(list.as_array().unwrap().iter().all(|workflow| workflow["wid"] != id), "{list}");
    server.over(&id).await;
    server.ask("DELETE", &path, None).await;
}

#[tokio::test]
async fn busy_nodes_are_left_out() {
    let server = Server::find().await;
    let first = server.begin(&server.nodes[..1]).await;
    // one of two is busy: the other goes on alone, and the first is in neither list
    let second = server.begin(&server.nodes).await;
    let poll = server.over(&second).await;
    assert_eq!(names(&poll["nodes"]["ok"]), server.nodes[1..], "{poll}");
    assert_eq!(names(&poll["nodes"]["ko"]), Vec::<String>::new());
    let state = server.get(&format!("/deployment/{second}/state")).await.json();
    assert_eq!(state[&server.nodes[0]]["state"], "discarded");
    server.ask("DELETE", &format!("/deployment/{second}"), None).await;
    server.over(&first).await;
    server.ask("DELETE", &format!("/deployment/{first}"), None).await;

    let first = server.begin(&server.nodes).await;
    let none = server.begin(&server.nodes).await;
    let poll = server.over(&none).await;
    assert_eq!((&poll["error"], poll.get("nodes"), poll.get("logs")), (&json!(true), None, None));
    let error = server.get(&format!("/deployment/{none}/error")).await;
    assert_eq!(error.codes(), (400, Some(14)));
    assert!(error.text.contains("All the nodes have been discarded"));
    server.ask("DELETE", &format!("/deployment/{none}"), None).await;
    server.over(&first).await;
    server.ask("DELETE", &format!("/deployment/{first}"), None).await;
}

#[tokio::test]
async fn failures_are_no_error_and_have_a_reason() {
    let server = Server::find().await;
    let Some(simulator) = &server.simulator else { return needs_simulator("failures_are_no_error_and_have_a_reason") };
    simulator.plan(&json!({"nodes": {server.nodes[1].as_str(): {"does": "fail", "error": "no room"}}}));
    let mixed = [server.nodes[1].clone(), "other-1.test".into()];
    server.grant(&server.user, "other-1.test").await;
    let id = server.begin(&mixed).await;
    let poll = server.over(&id).await;
    assert_eq!((&poll["error"], names(&poll["nodes"]["ko"])), (&json!(false), server.nodes[1..].to_vec()));
    assert_eq!(names(&poll["nodes"]["ok"]), ["other-1.test"]);
    let state = server.get(&format!("/deployment/{id}/state")).await.json();
    assert_eq!(state[&server.nodes[1]]["error"], "SetDeploymentEnvDummy-dummy: no room");
    let record = server.get(&format!("/nodes/{}", server.nodes[1])).await.json();
    assert_eq!(record["state"], "deploy_failed");
}

#[tokio::test]
async fn a_server_that_dies_forgets_its_workflows_and_keeps_its_marks() {
    let server = Server::find().await;
    let Some(simulator) = &server.simulator else {
        return needs_simulator("a_server_that_dies_forgets_its_workflows_and_keeps_its_marks");
    };
    simulator.plan(&json!({"dies": "dummy"}));
    let id = server.begin(&server.nodes).await;
    assert_eq!(simulator.wait(), Some(137));
    simulator.plan(&json!({}));
    simulator.restart();
    assert_eq!(server.get(&format!("/deployment/{id}")).await.codes(), (400, Some(1)));
    assert_eq!(server.get("/deployment").await.json(), json!([]));
    assert_eq!(server.get(&format!("/nodes/{}", server.nodes[0])).await.json()["state"], "deploying");
    let left_out = server.begin(&server.nodes).await;
    assert_eq!(server.over(&left_out).await["error"], true);
    let mut body = server.deployment(&server.nodes);
    body["force"] = json!(true);
    let id = server.post("/deployment", &body).await.json()["wid"].as_str().unwrap().to_owned();
    assert_eq!(names(&server.over(&id).await["nodes"]["ok"]), server.nodes);
}

#[tokio::test]
async fn a_node_that_hangs_can_be_cancelled() {
    let server = Server::find().await;
    let Some(simulator) = &server.simulator else { return needs_simulator("a_node_that_hangs_can_be_cancelled") };
    simulator.plan(&json!({"nodes": {server.nodes[0].as_str(): {"does": "hang"}}}));
    let id = server.begin(&server.nodes).await;
    // longer than all steps take
    for _ in 0..90 {
        server.pass().await;
    }
    assert_eq!(server.get(&format!("/deployment/{id}")).await.json()["done"], false);
    assert_eq!(server.ask("DELETE", &format!("/deployment/{id}"), None).await.status, 200);
    assert_eq!(server.get(&format!("/nodes/{}", server.nodes[0])).await.json()["state"], "aborted");
}
