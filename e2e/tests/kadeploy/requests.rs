//! Requests that are wrong, and the codes they get.

use serde_json::{Value, json};

use crate::{raw, world::Server};

#[tokio::test]
async fn each_mistake_has_its_code() {
    let server = Server::find().await;
    let node = &server.nodes[0];
    let environment = json!({"name": server.environment, "user": server.owner});
    for (what, body, status, code) in [
        ("no nodes", json!({"environment": environment}), 400, Some(2)),
        ("unknown node", json!({"nodes": ["nope"], "environment": environment}), 400, Some(2)),
        ("unknown environment", json!({"nodes": [node], "environment": {"name": "nope"}}), 400, Some(7)),
        // a bug of the original
        ("no environment", json!({"nodes": [node]}), 500, None),
    ] {
        let reply = server.post("/deployment", &body).await;
        assert_eq!(reply.codes(), (status, code), "{what}: {reply:?}");
        // the text is also in a header
        assert_eq!(reply.info.is_some(), code.is_some());
        assert!(reply.info.is_none_or(|info| info == reply.text.trim_end()), "{what}");
    }
    let json = |body: &'static str| {
        raw::request(&server.address, &server.account, "POST", "/deployment")
            .header("content-type", "application/json")
            .body(body)
    };
    assert_eq!(raw::send(json("{nope")).await.status, 415);
    let untyped = raw::request(&server.address, &server.account, "POST", "/deployment").body("{}");
    assert_eq!(raw::send(untyped).await.status, 415);
}

#[tokio::test]
async fn a_trial_is_checked_and_does_nothing() {
    let server = Server::find().await;
    let mut body = server.deployment(&server.nodes);
    body["dry_run"] = json!(true);
    let reply = server.post("/deployment", &body).await;
    assert_eq!((reply.status, reply.text.as_str()), (200, "\n"));
    body["nodes"] = json!(["nope"]);
    assert_eq!(server.post("/deployment", &body).await.codes(), (400, Some(2)));
}

#[tokio::test]
async fn paths_methods_and_empty_headers() {
    let server = Server::find().await;
    let unknown = server.get("/nope").await;
    assert!(unknown.status == 404 && unknown.text.starts_with("<!DOCTYPE HTML"), "{unknown:?}");
    let method = server.ask("DELETE", "/nodes", None).await;
    assert!(method.status == 405 && method.header("allow").unwrap().contains("GET"), "{method:?}");
    let nodes = server.get("/nodes").await;
    assert_eq!((nodes.header("etag"), nodes.header("content-encoding")), (Some(""), Some("")));
    let known: Vec<String> = serde_json::from_value(server.get("/nodes?list").await.json()).unwrap();
    assert!(server.nodes.iter().all(|node| known.contains(node)), "{known:?}");
    assert!(server.nodes.iter().all(|node| nodes.json().get(node).is_some()));
    assert_eq!(server.get("/nodes/nope").await.text.trim(), "File Not Found -- nope");
    // one that was never used is null in the list, and like an unknown one alone
    let unused: Vec<String> = known.into_iter().filter(|node| nodes.json()[node] == Value::Null).collect();
    for node in unused {
        assert_eq!(server.get(&format!("/nodes/{node}")).await.status, 404);
    }
}
