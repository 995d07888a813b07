use std::sync::Arc;

use futures::stream;
use tower_service::Service as _;

use super::*;
use crate::{
    clock::Clock,
    driver::{
        agent::fake::FakeAgents,
        cluster::fake::FakeCluster,
        repository::{ByteStore as _, fake::FakeRepository},
    },
};

async fn ask(source: &Arc<Source>, path: &str) -> (u16, String) {
    let request = axum::http::Request::get(path).body(Body::empty()).unwrap();
    let reply = router(source.clone()).as_service::<Body>().call(request).await.unwrap();
    let status = reply.status().as_u16();
    let body = axum::body::to_bytes(reply.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

const UID: &str = "3f2b8a10-9c1d-4e5f-8a7b-112233445566";
const JOB: &str = "/apis/subresources.vmdeploy.io/v1alpha1/namespaces/team/besteffortjobs/pi";

async fn source(kept: &[(&str, &'static str)]) -> Arc<Source> {
    let cluster = FakeCluster::new(Clock::system());
    let job = json!({
        "apiVersion": "vmdeploy.io/v1alpha1", "kind": "BestEffortJob",
        "metadata": {"name": "pi", "namespace": "team", "uid": UID},
        "spec": {"members": 2, "run": {"command": ["pi"]}, "slots": {"site": "rennes", "walltime": "2h"}},
    });
    cluster.put_job(serde_json::from_value(job).unwrap());
    let repository = FakeRepository::new();
    for (path, content) in kept {
        let body = stream::iter([Ok(Bytes::from_static(content.as_bytes()))]).boxed();
        repository.put_output(&UID.into(), 1, path, body).await.unwrap();
    }
    let (view, store) = (Arc::new(cluster), Arc::new(repository.clone()));
    Arc::new(Source { view, repository: Arc::new(repository), store, agents: Arc::new(FakeAgents::default()) })
}

#[tokio::test]
async fn what_was_kept_is_read_back() {
    let source = source(&[("output", "3.14\n"), ("/data/a b", "result")]).await;
    let log = crate::subresources::paths::logs("team", "pi", 1, false);
    assert_eq!(ask(&source, &log).await, (200, "3.14\n".into()));
    let follow = crate::subresources::paths::logs("team", "pi", 1, true);
    assert_eq!(ask(&source, &follow).await, (200, "3.14\n".into()), "nothing can follow: it ends");
    let file = crate::subresources::paths::output("team", "pi", 1, "/data/a b");
    assert_eq!(ask(&source, &file).await, (200, "result".into()));
}

#[tokio::test]
async fn a_job_that_has_printed_nothing_yet_is_no_error() {
    assert_eq!(ask(&source(&[]).await, &format!("{JOB}/logs")).await, (200, String::new()));
}

#[tokio::test]
async fn what_does_not_exist_is_said_in_the_clusters_own_form() {
    let source = source(&[]).await;
    let of_nobody = JOB.replace("/pi", "/e");
    for (path, words) in [
        (format!("{of_nobody}/logs"), "not found"),
        (format!("{JOB}/logs?member=2"), "members 0 to 1"),
        (format!("{JOB}/outputs/data?member=1"), "named by spec.outputs"),
        (format!("{JOB}/console"), "no such subresource"),
    ] {
        let (status, text) = ask(&source, &path).await;
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &body["kind"]), (404, &json!("Status")), "{path}");
        assert!(body["message"].as_str().unwrap().contains(words), "{text}");
    }
}

#[tokio::test]
async fn discovery_names_the_subresources() {
    let (status, text) = ask(&source(&[]).await, "/apis/subresources.vmdeploy.io/v1alpha1").await;
    let list: Value = serde_json::from_str(&text).unwrap();
    let names: Vec<_> = list["resources"].as_array().unwrap().iter().map(|r| r["name"].clone()).collect();
    assert_eq!(
        (status, names),
        (
            200,
            ["logs", "outputs", "portforward", "attach", "exec"]
                .map(|name| json!(format!("besteffortjobs/{name}")))
                .to_vec()
        )
    );
}
