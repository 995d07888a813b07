//! Environments that are recorded.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use vmdeploy::{
    api::image::EnvironmentSource,
    clock::Clock,
    config::Config,
    controller::image::recorded::{Looked, look_up},
    driver::{cluster::fake::FakeCluster, kadeploy::directory::KadeployDirectory},
};

use crate::{
    raw::{self, Account},
    world::{Server, needs},
};

#[tokio::test]
async fn what_is_recorded_is_listed_changed_and_removed() {
    are_recorded(&Server::find().await, "what_is_recorded_is_listed_changed_and_removed").await;
}

/// Environments are recorded, listed, changed and removed.
pub(crate) async fn are_recorded(server: &Server, test: &str) {
    let Some(files) = &server.files else { return needs(test, "FILES") };
    files.write("hv.tgz", "an image");
    let user = &server.user;
    let named = "/environments?name=vmdeploy-e1";
    server.ask("DELETE", &format!("/environments/{user}/vmdeploy-e1"), None).await;
    assert_eq!(server.get(named).await.status, 404);
    for version in [1, 2] {
        let mut environment = files.described("vmdeploy-e1", "hv.tgz");
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
        let seen = raw::ask(&server.address, other, "GET", &format!("/environments?username={user}"), None).await;
        assert!(!seen.text.contains("vmdeploy-e1"), "{seen:?}");
        let path = format!("/environments/{user}/vmdeploy-e1/1");
        assert_eq!(raw::ask(&server.address, other, "DELETE", &path, None).await.status, 403);
    } else {
        needs(test, "OTHER");
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
    let Some(files) = &server.files else { return needs("a_description_is_checked", "FILES") };
    files.write("hv.tgz", "an image");
    let good = files.described("vmdeploy-e2", "hv.tgz");
    let changed = |pointer: &str, value| {
        let mut environment = good.clone();
        *environment.pointer_mut(pointer).unwrap() = value;
        json!({"environment": environment})
    };
    let missing = files.address("none.tgz");
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

#[tokio::test]
async fn an_image_may_name_what_is_recorded() {
    are_named(&Server::find().await, "an_image_may_name_what_is_recorded").await;
}

/// Names in images' specs, as the image controller asks for them: with the account that the configuration gives a
/// namespace, or, for one with a password, that of a Secret there.
pub(crate) async fn are_named(server: &Server, test: &str) {
    let Some(files) = &server.files else { return needs(test, "FILES") };
    let user = &server.user;
    files.write("hv.tgz", "an image");
    let (users, secret) = match &server.account {
        Account::Basic(user, password) => {
            let data = json!({"username": BASE64_STANDARD.encode(user), "password": BASE64_STANDARD.encode(password)});
            (json!({}), Some(json!({"metadata": {"name": "login", "namespace": "team"}, "data": data})))
        }
        _ => (json!({"team": user}), None),
    };
    let section = server.address.section();
    let sites = json!({"here": {
        "kind": "oar2", "url": "http://nowhere", "uids": {}, "users": users, "kadeploy": section,
    }});
    let config = json!({"sites": sites, "namespace": "x", "repository": "x:1", "agents": {"image": "x"}});
    let config: Config = serde_json::from_value(config).unwrap();
    let servers = KadeployDirectory::new(config.sites.clone(), Clock::system());
    let cluster = FakeCluster::new(Clock::system());
    if let Some(secret) = &secret {
        cluster.put_secret(serde_json::from_value(secret.clone()).unwrap());
    }
    let ask = async |mut source: Value| {
        if secret.is_some() {
            source["credentials"] = json!({"name": "login"});
        }
        let source: EnvironmentSource = serde_json::from_value(source).unwrap();
        look_up(&source, "team", &config, &cluster, &servers).await
    };
    for version in [1, 2] {
        let mut environment = files.described("vmdeploy-e5", "hv.tgz");
        environment["version"] = json!(version);
        let reply = server.post("/environments", &json!({"environment": environment})).await;
        assert!(matches!(reply.codes(), (200, None) | (400, Some(10))), "{reply:?}");
    }
    for (version, found) in [(None, 2), (Some(1), 1)] {
        let looked = ask(json!({"site": "here", "name": "vmdeploy-e5", "version": version})).await;
        let Looked::Found(environment) = looked else { panic!("{looked:?}") };
        assert_eq!((environment.version, environment.user.as_ref()), (Some(found), Some(user)));
        assert!(environment.description.contains("kernel: /vmlinuz"), "{}", environment.description);
    }
    let looked = ask(json!({"site": "here", "name": "vmdeploy-e5", "version": 3})).await;
    assert!(matches!(&looked, Looked::Wrong(trouble) if trouble.message.contains("correct name, user")), "{looked:?}");
    if let Some(admin) = &server.admin {
        let mut environment = files.described("vmdeploy-e6", "hv.tgz");
        environment["visibility"] = json!("public");
        let body = json!({"environment": environment});
        let reply = raw::ask(&server.address, admin, "POST", "/environments", Some(&body)).await;
        assert!(matches!(reply.codes(), (200, None) | (400, Some(10))), "{reply:?}");
        let looked = ask(json!({"site": "here", "name": "vmdeploy-e6"})).await;
        assert!(matches!(&looked, Looked::Found(found) if found.user.as_ref() != Some(user)), "{looked:?}");
    } else {
        needs(test, "ADMIN");
    }
    let path = format!("/environments/{user}/vmdeploy-e5");
    assert_eq!(server.ask("DELETE", &path, None).await.status, 200);
    if let Some(admin) = &server.admin {
        let path = format!("/environments/{}/vmdeploy-e6", admin.user());
        raw::ask(&server.address, admin, "DELETE", &path, None).await;
    }
}
