//! Rights: who gives them, and what happens to a deployment when they go.

use serde_json::json;

use crate::{
    raw,
    world::{Server, needs},
};

#[tokio::test]
async fn only_administrators_manage_rights() {
    let server = Server::find().await;
    assert_eq!(server.get("/rights").await.status, 403);
    let Some(admin) = &server.admin else { return needs("only_administrators_manage_rights", "ADMIN") };
    let (user, node) = (&server.user, &server.nodes[0]);
    let ask = async |method: &str, path: &str, body| raw::ask(&server.address, admin, method, path, body).await;
    let known = ask("GET", &format!("/rights/{user}"), None).await.json();
    assert_eq!(known[user][node], json!(["*"]));
    let again = json!({"username": user, "nodes": [node]});
    assert_eq!(ask("POST", "/rights", Some(&again)).await.codes(), (400, Some(14)));
    let others = json!({"username": "nobody", "nodes": [node]});
    let conflict = ask("POST", "/rights", Some(&others)).await;
    assert_eq!(conflict.codes(), (400, Some(11)));
    assert!(conflict.text.contains(&format!("set for user {user} on nodes {node}")), "{conflict:?}");
    let stranger = json!({"username": user, "nodes": ["nope"]});
    assert_eq!(ask("POST", "/rights", Some(&stranger)).await.codes(), (400, Some(2)));
    let gone = ask("DELETE", &format!("/rights/{user}/{node}"), None).await;
    assert_eq!(gone.json()[user], json!({node.as_str(): ["*"]}));
    assert_eq!(ask("DELETE", &format!("/rights/{user}/{node}"), None).await.codes(), (400, Some(14)));
    assert_eq!(ask("GET", "/rights/nobody", None).await.status, 404);
    assert_eq!(server.post("/deployment", &server.deployment(&server.nodes)).await.codes(), (400, Some(6)));
    server.grant(user, node).await;
}

#[tokio::test]
async fn taking_rights_away_ends_a_deployment() {
    let server = Server::find().await;
    let id = server.begin(&server.nodes).await;
    if server.revoke(&server.user, &server.nodes[0]).await {
        assert_eq!(server.get(&format!("/deployment/{id}")).await.codes(), (400, Some(1)));
        let record = server.get(&format!("/nodes/{}", server.nodes[0])).await.json();
        assert_eq!((&record["state"], &record["environment"]["name"]), (&json!("aborted"), &json!(null)));
        server.grant(&server.user, &server.nodes[0]).await;
    } else {
        server.over(&id).await;
        needs("taking_rights_away_ends_a_deployment", "ADMIN");
    }
    server.ask("DELETE", &format!("/deployment/{id}"), None).await;
}

#[tokio::test]
async fn giving_a_node_to_another_one_does_not() {
    let server = Server::find().await;
    let test = "giving_a_node_to_another_one_does_not";
    let Some(other) = &server.other else { return needs(test, "OTHER") };
    let id = server.begin(&server.nodes).await;
    if server.grant(other.user(), &server.nodes[0]).await {
        let poll = server.over(&id).await;
        assert_eq!(poll["nodes"]["ok"].as_array().unwrap().len(), 2, "{poll}");
        assert_eq!(server.post("/deployment", &server.deployment(&server.nodes)).await.codes(), (400, Some(6)));
        server.grant(&server.user, &server.nodes[0]).await;
    } else {
        needs(test, "ADMIN");
    }
    server.over(&id).await;
    server.ask("DELETE", &format!("/deployment/{id}"), None).await;
}
