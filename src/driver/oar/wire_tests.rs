//! The client against a small server that answers with recordings: what it sends, how it pages, and
//! what it makes of a server in trouble.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
};
use serde_json::{Value, json};

use super::OarRest;
use crate::{
    clock::Clock,
    driver::site::{Credentials, End, Site, SiteError, SlotPhase, SlotRequest, contract},
    names::{NodeName, SlotId},
};

/// A request as the server saw it: method, path and query, headers, body.
type Seen = (String, String, HeaderMap, Bytes);
type Answer = Arc<dyn Fn(&str, &str) -> Option<(u16, Vec<u8>)> + Send + Sync>;

#[derive(Clone)]
struct Server {
    answer: Answer,
    seen: Arc<Mutex<Vec<Seen>>>,
    url: String,
}

async fn handle(
    State(server): State<Server>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, Vec<u8>) {
    let path = uri.to_string().replacen("/oarapi", "", 1);
    server.seen.lock().unwrap().push((method.to_string(), path.clone(), headers, body));
    let (status, body) = (server.answer)(method.as_str(), &path).unwrap_or_else(|| match path.as_str() {
        "/version.json" => recorded("version"),
        "/whoami.json" => recorded("whoami"),
        _ => recorded("err-no-such-uri"),
    });
    (StatusCode::from_u16(status).unwrap(), body)
}

/// The reply of a recording.
fn recorded(name: &str) -> (u16, Vec<u8>) {
    let path = format!("{}/src/driver/oar/recorded/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let exchange: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let reply = &exchange["reply"];
    (reply["status"].as_u64().unwrap() as u16, serde_json::to_vec(&reply["body"]).unwrap())
}

fn ok(body: &Value) -> (u16, Vec<u8>) {
    (200, serde_json::to_vec(body).unwrap())
}

async fn server(answer: impl Fn(&str, &str) -> Option<(u16, Vec<u8>)> + Send + Sync + 'static) -> Server {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/oarapi", listener.local_addr().unwrap());
    let server = Server { answer: Arc::new(answer), seen: Arc::default(), url };
    let router = Router::new().fallback(handle).with_state(server.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    server
}

impl Server {
    fn client(&self, credentials: Credentials) -> OarRest {
        crate::tls::install_provider();
        let config = format!(
            "kind: oar2\nurl: {}/\nuids: {{}}\nheaders: {{X-Site: here}}\nnodes: {{node-1: worker-1.example}}\n",
            self.url
        );
        OarRest::new(&serde_yaml::from_str(&config).unwrap(), credentials, Clock::system()).unwrap()
    }

    fn alice(&self) -> OarRest {
        self.client(Credentials::Header { user: "alice".into() })
    }

    fn seen(&self, method: &str) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().filter(|s| s.0 == method).cloned().collect()
    }
}

#[tokio::test]
async fn a_submission_is_sent_once_with_the_identity_and_read_again() {
    let server = server(|method, path| match (method, path) {
        ("POST", "/jobs.json") => Some(recorded("submit")),
        ("GET", "/jobs/1.json") => Some(ok(&json!({"id": 1, "name": "vmdeploy-a-1", "state": "Waiting"}))),
        _ => None,
    })
    .await;
    let id = server.alice().submit(&contract::request("a", 1, 30)).await;
    assert_eq!(id, Ok(vec!["1".into()]));
    let posts = server.seen("POST");
    let [(_, _, headers, body)] = posts.as_slice() else { panic!("{} requests", posts.len()) };
    assert_eq!(
        (&headers["x-remote-ident"], &headers["x-site"]),
        ("alice".parse().as_ref().unwrap(), "here".parse().as_ref().unwrap())
    );
    assert_eq!(headers["content-type"], "application/json");
    let body: Value = serde_json::from_slice(body).unwrap();
    assert_eq!(
        (&body["type"], &body["checkpoint"], &body["types"]),
        (&json!(["besteffort"]), &json!(30), &Value::Null)
    );
}

#[tokio::test]
async fn a_yes_without_a_job_is_no_yes() {
    let missing = server(|method, _| (method == "POST").then(|| recorded("submit"))).await;
    let other = server(|method, path| match (method, path) {
        ("POST", _) => Some(recorded("submit")),
        (_, "/jobs/1.json") => Some(recorded("job-running")),
        _ => None,
    })
    .await;
    let empty = server(|method, _| (method == "POST").then(|| (200, b"{}".to_vec()))).await;
    for server in [other, empty] {
        let refused = server.alice().submit(&contract::request("a", 1, 0)).await;
        assert!(matches!(refused, Err(SiteError::Unreachable(_))), "{refused:?}");
    }
    // here only the check itself fails: the id is known
    assert_eq!(missing.alice().submit(&contract::request("a", 1, 0)).await, Ok(vec!["1".into()]));
}

#[tokio::test]
async fn other_identities_are_sent_as_asked() {
    let server = server(|_, _| None).await;
    let basic = Credentials::Basic { username: "alice".into(), password: "secret".into() };
    server.client(basic).user().await.unwrap();
    let headers = &server.seen("GET")[0].2;
    assert_eq!(headers["authorization"], "Basic YWxpY2U6c2VjcmV0");
    assert!(!headers.contains_key("x-remote-ident"));
}

/// The page of a list that is asked for.
fn page(all: &[Value], path: &str) -> Option<(u16, Vec<u8>)> {
    let query = path.strip_prefix("/jobs.json?")?;
    let number = |key: &str| -> usize {
        query.split('&').find_map(|p| p.strip_prefix(key)).and_then(|n| n.parse().ok()).unwrap()
    };
    let page: Vec<_> = all.iter().skip(number("offset=")).take(number("limit=")).collect();
    Some(ok(&json!({"items": page, "total": all.len()})))
}

#[tokio::test]
async fn a10_an_array_of_more_than_a_page_is_known_whole() {
    for jobs in [499_u32, 500, 501, 1203] {
        let request = SlotRequest { reservations: jobs, ..contract::request("a", 1, 30) };
        let named = |id| json!({"id": id, "name": request.name, "state": "Waiting", "owner": "alice"});
        let all: Vec<Value> = (1..=jobs).map(named).collect();
        let server = server(move |method, path| match method {
            "POST" => Some(recorded("submit")),
            _ => page(&all, path),
        })
        .await;
        let ids = server.alice().submit(&request).await;
        assert_eq!(ids.map(|ids| ids.len()), Ok(jobs as usize));
    }
}

#[tokio::test]
async fn a10_every_page_of_unfinished_jobs_is_read() {
    let all: Vec<Value> = (1..=1203)
        .map(|id| json!({"id": id, "name": format!("vmdeploy-{}-{id}", id % 2), "state": "Waiting", "owner": "alice"}))
        .collect();
    let server = server(move |_, path| page(&all, path)).await;
    assert_eq!(server.alice().look_up("vmdeploy-", None).await.unwrap().len(), 1203);
    assert_eq!(server.alice().look_up("vmdeploy-1-", None).await.unwrap().len(), 602);
    assert!(server.seen("GET").iter().filter(|s| s.1.starts_with("/jobs")).all(|s| s.1.contains("user=alice")));
}

#[tokio::test]
async fn other_peoples_jobs_are_not_found() {
    let server = server(|_, path| {
        let items = json!([{"id": 1, "name": "vmdeploy-a-1", "state": "Running", "owner": "mallory"}]);
        path.starts_with("/jobs.json").then(|| ok(&json!({"items": items})))
    })
    .await;
    assert!(server.alice().look_up("vmdeploy-", None).await.unwrap().is_empty());
}

#[tokio::test]
async fn facts_have_nodes_by_their_names_in_kubernetes() {
    let server = server(|_, path| match path {
        "/jobs/1.json" => Some(recorded("job-running")),
        "/jobs/1/nodes.json" => Some(recorded("job-running-nodes")),
        "/jobs/2.json" => Some(recorded("job-deleted")),
        "/jobs/2/nodes.json" => Some(recorded("job-deleted-nodes")),
        "/jobs/3.json" => Some(recorded("err-job-unknown")),
        _ => None,
    })
    .await;
    let site = server.alice();
    let ids: Vec<SlotId> = ["1", "2", "3"].map(SlotId::from).to_vec();
    let facts = site.status(&ids).await.unwrap();
    assert_eq!(facts.len(), 2);
    assert_eq!(
        (&facts[&ids[0]].phase, &facts[&ids[0]].nodes),
        (&SlotPhase::Running, &vec![NodeName::from("worker-1.example")])
    );
    assert_eq!(facts[&ids[1]].phase, SlotPhase::Ended(End::Deleted("alice".into())));
    // the server's clock is behind ours: its times are moved to our clock
    let since = facts[&ids[0]].since.unwrap();
    assert!(since.duration_since(Clock::system().now()).as_secs().abs() < 60, "{since}");
    // the nodes of a running job are asked for once
    site.status(&ids[..1]).await.unwrap();
    assert_eq!(server.seen("GET").iter().filter(|s| s.1 == "/jobs/1/nodes.json").count(), 1);
}

#[tokio::test]
async fn lists_are_asked_for_in_pages_of_ids() {
    let server = server(|_, path| path.starts_with("/jobs.json?ids=").then(|| recorded("jobs-by-ids"))).await;
    let ids: Vec<SlotId> = (1..=250).map(|n| SlotId(n.to_string())).collect();
    let found: BTreeMap<_, _> = server.alice().glance(&ids).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(server.seen("GET").iter().filter(|s| s.1.starts_with("/jobs.json")).count(), 3);
    let strange = server.alice().glance(&["1:2".into()]).await;
    assert!(matches!(strange, Err(SiteError::Bug(_))));
}

#[tokio::test]
async fn a_deletion_that_was_made_before_is_no_error() {
    for (name, done) in [
        ("delete", true),
        ("err-delete-again", true),
        ("err-delete-ended", true),
        ("err-delete-again-wakes-server", true),
        ("err-delete-unknown", false),
        ("err-delete-of-another-user", false),
        ("err-delete-server-down", false),
    ] {
        let server = server(move |method, _| (method == "DELETE").then(|| recorded(name))).await;
        assert_eq!(server.alice().release(&"1".into()).await.is_ok(), done, "{name}");
    }
}

#[tokio::test]
async fn oar_3_is_refused() {
    let server = server(|_, path| {
        (path == "/version.json").then(|| ok(&json!({"oar_server_version": "3.0.2", "api_version": "1"})))
    })
    .await;
    let refused = server.alice().submit(&contract::request("a", 1, 30)).await;
    assert!(matches!(&refused, Err(SiteError::Configuration(text)) if text.contains("OAR 3.0.2")), "{refused:?}");
    assert!(server.seen("POST").is_empty());
}

#[tokio::test]
async fn what_is_not_oar_changes_nothing() {
    for (status, body) in [(200, "<html>"), (200, "{}"), (500, "<html>"), (502, ""), (200, "[]")] {
        let server = server(move |_, path| path.starts_with("/jobs").then(|| (status, body.into()))).await;
        let read = server.alice().glance(&["1".into()]).await;
        assert!(matches!(read, Err(SiteError::Unreachable(_))), "{status} {body}: {read:?}");
        let read = server.alice().status(&["1".into()]).await;
        assert!(matches!(read, Err(SiteError::Unreachable(_))), "{status} {body}: {read:?}");
    }
}

#[tokio::test]
async fn nobody_at_the_address_is_an_outage() {
    let server = server(|_, _| None).await;
    let gone = Server { url: "http://127.0.0.1:9/oarapi".into(), ..server };
    let read = gone.alice().look_up("x", None).await;
    assert!(matches!(read, Err(SiteError::Unreachable(_))));
    // it is shown: the same words whatever was asked for
    let said = read.unwrap_err().to_string();
    assert!(said.contains("http://127.0.0.1:9: ") && !said.contains("oarapi"), "{said}");
    assert_eq!(gone.alice().glance(&["1".into()]).await.unwrap_err().to_string(), said);
}
