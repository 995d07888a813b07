//! Environments that are recorded.

use serde_json::json;

use crate::{
    raw,
    world::{Server, described},
};

#[tokio::test]
async fn what_is_recorded_is_listed_changed_and_removed() {
    let server = Server::find().await;
    let Some(image) = server.files.as_ref().map(|files| files.join("hv.tgz")) else { return };
    std::fs::write(&image, "an image").unwrap();
    let user = &server.user;
    let named = "/environments?name=vmdeploy-e1";
    server.ask("DELETE", &format!("/environments/{user}/vmdeploy-e1"), None).await;
    assert_eq!(server.get(named).await.status, 404);
    for version in [1, 2] {
        let mut environment = described("vmdeploy-e1", &image);
        environment["version"] = json!(version);
        environment["alias"] = json!("nobody-keeps-this");
        let reply = server.post("/environments", &json!({"environment": environment})).await;
        assert_eq!((reply.status, reply.json().get("alias"), reply.json().get("user")), (200, None, None));
        assert_eq!((&reply.json()["visibility"], &reply.json()["multipart"]), (&json!("private"), &json!(false)));
        let again = server.post("/environments", &json!({"environment": environment})).await;
        assert_eq!(again.codes(), (400, Some(10)));
    }
    assert_eq!(server.get(named).await.json().as_array().unwrap().len(), 2);
    let last = server.get(&format!("{named}&last")).await.json();
    assert_eq!((&last[0]["version"], &last[0]["user"], last.as_array().unwrap().len()), (&json!(2), &json!(user), 1));
    assert_eq!(server.get(&format!("/environments/{user}/vmdeploy-e1")).await.status, 404);
    if let Some(other) = &server.other {
        let seen = raw::ask(&server.url, other, "GET", &format!("/environments?username={user}"), None).await;
        assert!(!seen.text.contains("vmdeploy-e1"), "{seen:?}");
        let path = format!("/environments/{user}/vmdeploy-e1/1");
        assert_eq!(raw::ask(&server.url, other, "DELETE", &path, None).await.status, 403);
    }
    let shared = json!({"visibility": "shared"});
    let path = format!("/environments/{user}/vmdeploy-e1/1");
    assert_eq!(server.ask("PUT", &path, Some(&shared)).await.json()["visibility"], "shared");
    assert_eq!(server.ask("PUT", &path, Some(&shared)).await.codes(), (400, Some(14)));
    assert_eq!(server.ask("PUT", &format!("/environments/{user}/vmdeploy-e1"), Some(&shared)).await.status, 404);
    let removed = server.ask("DELETE", &format!("/environments/{user}/vmdeploy-e1"), None).await.json();
    assert_eq!(removed.as_array().unwrap().len(), 2);
    assert_eq!(server.ask("DELETE", &format!("/environments/{user}/vmdeploy-e1"), None).await.status, 404);
}

#[tokio::test]
async fn a_description_is_checked() {
    let server = Server::find().await;
    let Some(image) = server.files.as_ref().map(|files| files.join("hv.tgz")) else { return };
    std::fs::write(&image, "an image").unwrap();
    let good = described("vmdeploy-e2", &image);
    let changed = |pointer: &str, value| {
        let mut environment = good.clone();
        *environment.pointer_mut(pointer).unwrap() = value;
        json!({"environment": environment})
    };
    let missing = format!("server://{}/none.tgz", image.parent().unwrap().display());
    for (body, status, code) in [
        (changed("/boot", json!({"initrd": "/initrd.img"})), 400, Some(7)),
        (changed("/image/file", json!(missing)), 400, Some(5)),
        (changed("/image/file", json!("/home/alice/x.tgz")), 400, Some(3)),
        (
            json!({"environment": {"visibility": "public", "name": "x", "image": good["image"], "boot": good["boot"],
            "filesystem": "ext4", "os": "linux"}}),
            403,
            None,
        ),
    ] {
        let reply = server.post("/environments", &body).await;
        assert_eq!(reply.codes(), (status, code), "{body}: {reply:?}");
    }
}
