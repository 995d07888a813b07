use std::time::Duration;

use axum::{Extension, Router, routing::get};
use tokio_util::sync::CancellationToken;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

async fn who(Extension(Peer(peer)): Extension<Peer>) -> String {
    peer.to_string()
}

/// A server that speaks for the repository and says who asks; its endpoint.
async fn server(authority: &Authority) -> (String, CancellationToken) {
    let own = authority.issue(&Identity::Repository, jiff::Timestamp::now(), HOUR).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        let router = Router::new().route("/who", get(who));
        serve(listener, &own, router, token).await.unwrap();
    });
    (endpoint, stop)
}

async fn ask(credentials: &Credentials, peer: &Identity, endpoint: &str) -> Result<String, reqwest::Error> {
    let client = credentials.http_client(peer, endpoint).unwrap();
    client.get(format!("{}/who", base_url(peer))).send().await?.text().await
}

fn authority() -> Authority {
    install_provider();
    Authority::create(jiff::Timestamp::now()).unwrap()
}

fn agent() -> Identity {
    Identity::Agent { job: "3f2b8a10-9c1d-4e5f-8a7b-112233445566".into(), member: 1, incarnation: 4 }
}

#[tokio::test]
async fn the_server_knows_who_asks() {
    let authority = authority();
    let (endpoint, _stop) = server(&authority).await;
    let own = authority.issue(&agent(), jiff::Timestamp::now(), HOUR).unwrap();
    assert_eq!(ask(&own, &Identity::Repository, &endpoint).await.unwrap(), agent().to_string());
}

#[tokio::test]
async fn a_server_with_another_identity_is_refused() {
    let authority = authority();
    let (endpoint, _stop) = server(&authority).await;
    let own = authority.issue(&Identity::Operator, jiff::Timestamp::now(), HOUR).unwrap();
    assert!(ask(&own, &agent(), &endpoint).await.is_err());
}

#[tokio::test]
async fn certificates_of_another_authority_are_refused() {
    let (here, elsewhere) = (authority(), authority());
    let (endpoint, _stop) = server(&here).await;
    let mut stranger = elsewhere.issue(&Identity::Operator, jiff::Timestamp::now(), HOUR).unwrap();
    stranger.ca = here.certificate.clone();
    assert!(ask(&stranger, &Identity::Repository, &endpoint).await.is_err());
}

#[tokio::test]
async fn expired_certificates_are_refused() {
    let authority = authority();
    let (endpoint, _stop) = server(&authority).await;
    let long_ago = jiff::Timestamp::now() - HOUR * 48;
    let old = authority.issue(&Identity::Operator, long_ago, HOUR).unwrap();
    assert!(ask(&old, &Identity::Repository, &endpoint).await.is_err());
}
