//! The way into guests through the server of the API, with agents in memory.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::{Error, client::IntoClientRequest as _};

use super::super::{api, paths};
use super::*;
use crate::{
    clock::Clock,
    driver::{
        agent::fake::{FakeAgent, FakeAgents},
        cluster::fake::FakeCluster,
        repository::fake::FakeRepository,
    },
    stream::{End, PROTOCOL},
};

const UID: &str = "3f2b8a10-9c1d-4e5f-8a7b-112233445566";

/// A server that knows one job with a member, which runs, and one that has none yet; its address.
async fn server() -> std::net::SocketAddr {
    let cluster = FakeCluster::new(Clock::system());
    let job = |name: &str, uid: &str, status: Value| {
        serde_json::from_value(json!({
            "apiVersion": "vmdeploy.io/v1alpha1", "kind": "BestEffortJob",
            "metadata": {"name": name, "namespace": "team", "uid": uid},
            "spec": {"members": 1, "run": {"command": ["pi"]}, "slots": {"site": "rennes", "walltime": "2h"}},
            "status": status,
        }))
        .unwrap()
    };
    let agent = json!({"slot": "77", "pod": "pi-0", "endpoint": "192.0.2.1:7445", "incarnation": 1});
    let running = json!({"phase": "Running", "members": [{"index": 0, "slot": "77", "agent": agent}]});
    cluster.put_job(job("pi", UID, running));
    cluster.put_job(job("e", "other", json!({"phase": "Queued"})));
    let (agents, repository) = (FakeAgents::default(), FakeRepository::new());
    agents.add(FakeAgent::loaded(UID.into(), 0, 1, Duration::from_secs(1), Clock::system()));
    let (view, store) = (Arc::new(cluster), Arc::new(repository.clone()));
    let source = Source { view, repository: Arc::new(repository), store, agents: Arc::new(agents) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, api::router(Arc::new(source))).await });
    address
}

async fn connect(path: &str) -> Result<tokio_tungstenite::WebSocketStream<TcpStream>, (u16, String)> {
    let address = server().await;
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", PROTOCOL.parse().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(reply)) => {
            let text = String::from_utf8(reply.body().clone().unwrap_or_default()).unwrap();
            Err((reply.status().as_u16(), text))
        }
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn bytes_go_to_a_guest_and_back() {
    let socket = connect(&paths::port("team", "pi", 0, 22)).await.unwrap();
    let (sent, mut back) = (vec![b'x'; 200_000], Vec::new());
    stream::carry(socket, End::User, &sent[..], &mut back).await.unwrap();
    assert_eq!(back, sent);
}

#[tokio::test]
async fn what_is_in_the_way_of_a_connection_is_said() {
    for (job, port, status, words) in [
        ("pi", 1, 409, "nothing listens at port 1"),
        ("e", 22, 409, "e is Queued: it has no guests now"),
        ("nobody", 22, 404, "not found"),
    ] {
        let (code, text) = connect(&paths::port("team", job, 0, port)).await.unwrap_err();
        assert!(code == status && text.contains(words), "{job}: {code} {text}");
    }
    let plain = reqwest::get(format!("http://{}{}", server().await, paths::port("team", "pi", 0, 22))).await.unwrap();
    assert_eq!(plain.status().as_u16(), 400);
}

#[tokio::test]
async fn a_command_goes_to_the_guest_and_its_result_comes_back() {
    crate::tls::install_provider();
    let address = server().await;
    let order = ExecOrder { command: vec!["uptime".into(), "-p".into()], timeout: 5 };
    let ask = |job: &str| {
        let url = format!("http://{address}{}", paths::exec("team", job, 0));
        reqwest::Client::new().post(url).json(&order).send()
    };
    let reply: crate::driver::agent::ExecReply = ask("pi").await.unwrap().json().await.unwrap();
    assert_eq!((reply.code, BASE64.decode(reply.stderr).unwrap()), (127, b"uptime -p: not found\n".to_vec()));
    let refused = ask("e").await.unwrap();
    assert_eq!(refused.status().as_u16(), 409);
    assert!(refused.text().await.unwrap().contains("no guests now"));
}

#[tokio::test]
async fn a_console_is_asked_for_as_a_command_is() {
    let address = server().await;
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, axum::body::Body>(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let ask = |method: &str| {
        let request = axum::http::Request::builder().method(method).uri(paths::console("team", "pi", 0));
        let request = request.header("connection", "upgrade").header("upgrade", "websocket");
        let request = request.header("sec-websocket-key", "a2V5").header("sec-websocket-protocol", PROTOCOL);
        request.header("host", "x").body(axum::body::Body::empty()).unwrap()
    };
    assert_eq!(sender.send_request(ask("GET")).await.unwrap().status(), 405, "who may only look does not type");
    let reply = sender.send_request(ask("POST")).await.unwrap();
    assert_eq!(reply.status(), 101);
    let socket = stream::over(TokioIo::new(hyper::upgrade::on(reply).await.unwrap()), End::User).await;
    let mut back = Vec::new();
    stream::carry(socket, End::User, &b"ls\r"[..], &mut back).await.unwrap();
    assert_eq!(back, b"ls\r");
}
