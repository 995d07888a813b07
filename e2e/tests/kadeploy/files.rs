//! Images that are gone or were changed: the workflow breaks before it touches a node.

use serde_json::json;

use crate::world::{Server, needs};

#[tokio::test]
async fn a_workflow_breaks_on_an_image_that_is_not_what_it_was() {
    let server = Server::find().await;
    let Some(files) = &server.files else {
        return needs("a_workflow_breaks_on_an_image_that_is_not_what_it_was", "FILES");
    };
    for (name, gone, text) in
        [("vmdeploy-gone", true, "Unable to grab the file"), ("vmdeploy-changed", false, "does not match")]
    {
        let image = format!("{name}.tgz");
        files.write(&image, "an image");
        server.ask("DELETE", &format!("/environments/{}/{name}", server.user), None).await;
        let reply = server.post("/environments", &json!({"environment": files.described(name, &image)})).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        if gone {
            files.remove(&image);
        } else {
            files.write(&image, "another image");
        }
        let body = json!({"nodes": [server.nodes[0]], "environment": {"name": name, "user": server.user}});
        let reply = server.post("/deployment", &body).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let id = reply.json()["wid"].as_str().unwrap().to_owned();
        let poll = server.over(&id).await;
        assert_eq!((&poll["error"], poll.get("nodes")), (&json!(true), None));
        let error = server.get(&format!("/deployment/{id}/error")).await;
        assert_eq!(error.codes(), (400, Some(5)));
        assert!(error.text.contains(text), "{error:?}");
        let record = server.get(&format!("/nodes/{}", server.nodes[0])).await.json();
        assert_eq!((&record["state"], &record["environment"]["name"]), (&json!("aborted"), &json!(null)));
        server.ask("DELETE", &format!("/deployment/{id}"), None).await;
        server.ask("DELETE", &format!("/environments/{}/{name}", server.user), None).await;
    }
}
