//! The client against the very bytes of a real Kadeploy: what it sends, and what it makes of the answers.

use std::sync::atomic::{AtomicBool, Ordering};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::json;

use super::{
    DeployRequest, Environment, EnvironmentName, EnvironmentToDeploy, KadeployError, NodeState, Remains, WorkflowId,
    connect,
    replay_tests::{Recorded, Replay, alice, recorded},
};
use crate::{driver::site::Credentials, names::NodeName};

const WID: &str = "D-36de396c-dd29-47fb-b36e-6f5de6d4aba9";

fn id() -> WorkflowId {
    WorkflowId(WID.into())
}

/// The nodes `dummy-1.test`, by the name it has in Kubernetes, and `dummy-2.test`.
fn nodes() -> Vec<NodeName> {
    vec!["worker-1".into(), "dummy-2.test".into()]
}

fn hv() -> EnvironmentToDeploy {
    EnvironmentToDeploy::Recorded(EnvironmentName::newest("hv"))
}

fn request() -> DeployRequest {
    DeployRequest { nodes: nodes(), environment: hv(), key_url: None, takes_over: None }
}

/// Answers by the path's parts after the workflow's id.
fn workflow(line: &str, poll: &str, state: &str) -> Recorded {
    match line.strip_prefix(&format!("GET /deployment/{WID}")) {
        Some("") => recorded(poll),
        Some("/state") => recorded(state),
        Some("/error") => recorded("dep_same_nodes_error"),
        _ if line == "GET /nodes" => recorded("dep_nodes_after"),
        _ => panic!("{line}"),
    }
}

#[tokio::test]
async fn a_deployment_is_asked_for_as_the_server_takes_it() {
    let server = Replay::start(|line| match line {
        "GET /environments?name=hv&last" => recorded("env_get_name"),
        "POST /deployment" => recorded("dep_create"),
        _ => panic!("{line}"),
    })
    .await;
    let site = server.site(", partition: '3', partitionField: deploy_part, blockDevice: sda");
    let client = connect(&site, &alice()).unwrap();
    let request = DeployRequest { key_url: Some("http://keys/alice.pub".into()), ..request() };
    assert_eq!(client.deploy(&request).await.unwrap(), id());
    let sent = server.last();
    assert_eq!(
        sent.body,
        json!({
            "nodes": ["dummy-2.test", "dummy-1.test"],
            "environment": {"kind": "database", "name": "hv", "user": "alice", "version": 2},
            "ssh_authorized_keys": "http://keys/alice.pub", "deploy_part": "3", "block_device": "sda",
        })
    );
    assert!(sent.head.contains("x-kadeploy-user: alice") && sent.head.contains("content-type: application/json"));
}

#[tokio::test]
async fn a_description_goes_along_without_what_the_server_chokes_on() {
    let server = Replay::start(|_| recorded("anon_create")).await;
    let client = connect(&server.site(""), &alice()).unwrap();
    let text = "name: mine\nuser: alice\narch: x86_64\nimage: {file: 'http://files/x.tgz', kind: tar}\n";
    let environment = EnvironmentToDeploy::Inline(Box::new(Environment::from_yaml(text).unwrap()));
    client.deploy(&DeployRequest { environment, ..request() }).await.unwrap();
    let sent = &server.last().body["environment"];
    assert_eq!(
        (&sent["kind"], &sent["description"], &sent["arch"]),
        (&json!("anonymous"), &json!("mine"), &json!("x86_64"))
    );
    assert!(sent.get("user").is_none());
}

#[tokio::test]
async fn only_a_forgotten_workflow_is_taken_over() {
    let known = std::sync::Arc::new(AtomicBool::new(true));
    let asked = known.clone();
    let server = Replay::start(move |line| match line {
        "GET /environments?name=hv&last" => recorded("env_get_name"),
        "POST /deployment" => recorded("dep_create"),
        _ if asked.load(Ordering::Relaxed) => recorded("dep_poll_0"),
        _ => recorded("dep_get_deleted"),
    })
    .await;
    let client = connect(&server.site(""), &alice()).unwrap();
    let taking = DeployRequest { takes_over: Some(id()), ..request() };
    assert!(matches!(client.deploy(&taking).await, Err(KadeployError::Refused(_))));
    known.store(false, Ordering::Relaxed);
    client.deploy(&taking).await.unwrap();
    assert_eq!(server.last().body["force"], true);
    client.deploy(&request()).await.unwrap();
    assert_eq!(server.last().body.get("force"), None);
}

#[tokio::test]
async fn a_workflow_is_followed_to_its_end_and_beyond() {
    for (poll, state, wanted) in [
        ("dep_poll_0", "dep_state_mid", NodeState::Working { step: "SetDeploymentEnvDummy: dummy".into() }),
        ("dep_poll_done", "dep_state_done", NodeState::Deployed),
        ("dep_get_deleted", "dep_get_deleted", NodeState::Lost(Remains::Deployed)),
        // forgotten between the two questions
        ("dep_poll_done", "dep_get_deleted", NodeState::Lost(Remains::Deployed)),
    ] {
        let server = Replay::start(move |line| workflow(line, poll, state)).await;
        let client = connect(&server.site(""), &alice()).unwrap();
        let seen = client.observe(&id(), &nodes(), &hv()).await.unwrap();
        assert_eq!(seen.nodes.keys().cloned().collect::<Vec<_>>(), ["dummy-2.test".into(), NodeName::from("worker-1")]);
        assert!(seen.nodes.values().all(|found| *found == wanted), "{poll}: {seen:?}");
        assert_eq!(seen.done, poll != "dep_poll_0");
    }
}

#[tokio::test]
async fn a_workflow_of_which_no_node_is_left_did_nothing() {
    let broken = WorkflowId("D-5cdaf106-e95c-440b-af54-c8564e9a34d6".into());
    let server = Replay::start(|line| {
        recorded(if line.ends_with("/error") { "dep_same_nodes_error" } else { "dep_same_nodes_poll" })
    })
    .await;
    let client = connect(&server.site(""), &alice()).unwrap();
    let seen = client.observe(&broken, &nodes(), &hv()).await.unwrap();
    assert!(seen.done && seen.nodes.values().all(|state| *state == NodeState::Discarded), "{seen:?}");
    // an answer about another workflow is none
    assert!(matches!(client.observe(&id(), &nodes(), &hv()).await, Err(KadeployError::Unreachable(_))));
}

#[tokio::test]
async fn a_workflow_that_broke_says_so_of_its_file_and_has_failed_where_it_does_not_say_why() {
    let broken = WorkflowId("D-7c70cd42-5e0b-4a8e-925e-4b479608ba35".into());
    let gone = "Invalid file -- Unable to grab the file /srv/kadeploy/img/gone.tgz";
    for (error, wanted) in [
        ("fail_gone_error", NodeState::Broke(KadeployError::Refused(gone.into()))),
        ("dep_error_done", NodeState::Failed { reason: "the server does not say why".into() }),
    ] {
        let server =
            Replay::start(move |line| recorded(if line.ends_with("/error") { error } else { "fail_gone_poll" })).await;
        let client = connect(&server.site(""), &alice()).unwrap();
        let seen = client.observe(&broken, &nodes(), &hv()).await.unwrap();
        assert!(seen.done && seen.nodes.values().all(|state| *state == wanted), "{seen:?}");
    }
}

#[tokio::test]
async fn ones_own_workflows_are_listed_with_their_nodes() {
    let server = Replay::start(|_| recorded("dep_list")).await;
    let client = connect(&server.site(""), &alice()).unwrap();
    let list = client.workflows().await.unwrap();
    assert_eq!((list[0].id.clone(), &list[0].nodes, list[0].done), (id(), &nodes(), false));
    assert_eq!(list[0].environment.to_string(), "hv:1@alice");
    assert_eq!(list[0].started.map(jiff::Timestamp::as_second), Some(1_795_325_920));
    assert_eq!((list[1].nodes.len(), list[1].done), (0, true));
}

#[tokio::test]
async fn what_is_forgotten_already_is_no_error() {
    for name in ["dep_delete", "dep_delete_err", "dep_delete_again", "cancel_delete", "dep_get_deleted"] {
        let server = Replay::start(move |_| recorded(name)).await;
        connect(&server.site(""), &alice()).unwrap().forget(&id()).await.unwrap();
        assert_eq!(server.lines(), [format!("DELETE /deployment/{WID}")]);
    }
    let server = Replay::start(|_| recorded("dep_missing_env")).await;
    let client = connect(&server.site(""), &alice()).unwrap();
    assert!(matches!(client.forget(&id()).await, Err(KadeployError::Unreachable(_))));
    let odd = WorkflowId("../nodes".into());
    assert!(matches!(client.forget(&odd).await, Err(KadeployError::Bug(_))));
}

#[tokio::test]
async fn an_environment_is_found_or_not() {
    let server = Replay::start(|line| match line {
        "GET /environments?name=hv&last" | "GET /environments?name=hv&username=alice&version=2" => {
            recorded("env_get_name")
        }
        "GET /environments?name=nope&last" => recorded("env_get_missing"),
        "GET /environments?name=empty&last" => recorded("env_list_empty"),
        _ => recorded("path_unknown"),
    })
    .await;
    let client = connect(&server.site(""), &alice()).unwrap();
    let newest = client.describe(&EnvironmentName::newest("hv")).await.unwrap();
    assert_eq!((newest.id().to_string().as_str(), newest.image.compression()), ("hv:2@alice", "gzip"));
    assert_eq!(client.describe(&newest.id()).await.unwrap(), newest);
    for none in ["nope", "empty"] {
        let error = client.describe(&EnvironmentName::newest(none)).await.unwrap_err();
        assert!(matches!(error, KadeployError::NoEnvironment(_)), "{error}");
    }
    // something else at that address is no server without environments
    let error = client.describe(&EnvironmentName::newest("x")).await.unwrap_err();
    assert!(matches!(error, KadeployError::Configuration(_)), "{error}");
}

#[tokio::test]
async fn each_kind_of_account_speaks_for_itself() {
    let server = Replay::start(|_| recorded("restart_list")).await;
    let sent = async |more: &str, credentials: &Credentials| {
        connect(&server.site(more), credentials).unwrap().workflows().await.unwrap();
        server.last().head
    };
    let head = sent(", headerPrefix: X-Remote-", &alice()).await;
    assert!(head.contains("x-remote-user: alice") && !head.contains("authorization"), "{head}");
    // as in requests that were accepted
    let recording = recorded("auth_basic_ok");
    let accepted = format!("authorization: {}", recording.sent("Authorization"));
    let basic = Credentials::Basic { username: "alice".into(), password: "alicepw".into() };
    let head = sent("", &basic).await;
    assert!(head.contains(&accepted) && !head.contains("x-kadeploy-user"), "{head}");
    let recording = recorded("auth_cert_ok");
    let accepted = recording.sent("X-Kadeploy-Certificate");
    let certificate = String::from_utf8(BASE64_STANDARD.decode(accepted).unwrap()).unwrap();
    let head = sent("", &Credentials::Certificate { certificate, key: "KEY".into() }).await;
    let accepted = format!("x-kadeploy-certificate: {accepted}");
    assert!(head.contains("x-kadeploy-user: alice") && head.contains(&accepted), "{head}");

    let injected = Credentials::Header { user: "alice\r\nx: y".into() };
    assert!(matches!(connect(&server.site(""), &injected).err(), Some(KadeployError::Credentials(_))));
    let none = crate::config::SiteConfig { kadeploy: None, ..server.site("") };
    assert!(connect(&none, &alice()).err().unwrap().to_string().contains("kadeploy section"));
}

#[tokio::test]
async fn an_answer_without_an_end_is_cut_off() {
    let server = Replay::start(|_| Recorded::made(200, "", &"x".repeat(17 << 20))).await;
    let error = connect(&server.site(""), &alice()).unwrap().workflows().await.unwrap_err();
    assert!(matches!(&error, KadeployError::Unreachable(text) if text.contains("more than")), "{error}");
}

mod pinned {
    use std::sync::Arc;

    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use sha2::{Digest as _, Sha256};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    #[tokio::test]
    async fn a_certificate_that_nobody_signed_is_known_by_its_digest() {
        crate::tls::install_provider();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let digest = format!("{:x}", Sha256::digest(certificate.der()));
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((connection, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(connection).await else { continue };
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]").await;
                let _ = stream.shutdown().await;
            }
        });
        let wrong = "0".repeat(64);
        for (pin, good) in [(&digest, true), (&wrong, false)] {
            let text =
                format!("kind: oar2\nurl: http://oar\nuids: {{}}\nkadeploy: {{url: '{url}', pin: 'sha256:{pin}'}}\n");
            let client = connect(&serde_yaml::from_str(&text).unwrap(), &alice()).unwrap();
            let said = client.workflows().await;
            assert_eq!(said.is_ok(), good, "{said:?}");
            assert!(said.err().is_none_or(|error| error.to_string().contains("set sites.*.kadeploy.pin or ca")));
        }
    }
}
