use std::{io::Write as _, net::SocketAddr, os::unix::fs::symlink};

use axum::{Router, body::Body, http::StatusCode, response::Redirect, routing::get};
use rstest::rstest;

use super::*;

/// Digest of "vmdeploy".
fn digest(text: &str) -> String {
    format!("sha256:{:x}", Sha256::digest(text))
}

async fn server() -> SocketAddr {
    crate::tls::install_provider();
    let cut = || async {
        let parts = [Ok("half".to_owned()), Err(std::io::Error::other("cut"))];
        Body::from_stream(futures::stream::iter(parts))
    };
    let endless =
        || async { Body::from_stream(futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![0_u8; 65536]))) };
    let router = Router::new()
        .route("/file", get(|| async { "vmdeploy" }))
        .route("/moved", get(|| async { Redirect::temporary("/file") }))
        .route("/busy", get(|| async { StatusCode::SERVICE_UNAVAILABLE }))
        .route("/cut", get(cut))
        .route("/endless", get(endless));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

fn order(place: Place, wanted: Option<&str>) -> FileOrder {
    FileOrder {
        field: "spec.source.http".into(),
        place,
        digest: wanted.map(digest),
        limit: 1 << 20,
        login: None,
        trusted: None,
    }
}

#[rstest]
#[case::file("/file")]
#[case::redirect("/moved")]
#[tokio::test]
async fn a_file_is_fetched_and_named(#[case] path: &str) {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("disk");
    let order = order(Place::Url(format!("http://{}{path}", server().await)), Some("vmdeploy"));
    let got = fetch(&order, &to).await.unwrap();
    assert_eq!(got, StoredFile { digest: digest("vmdeploy"), size: 8 });
    assert_eq!(std::fs::read(to).unwrap(), b"vmdeploy");
}

#[rstest]
#[case::another_file("/file", "other", TroubleKind::Digest, false, "correct the digest of spec.source.http")]
#[case::wrong_address("/none", "vmdeploy", TroubleKind::Fetch, false, "404 Not Found: correct the url")]
#[case::server_in_trouble("/busy", "vmdeploy", TroubleKind::Fetch, true, "503")]
#[case::connection_cut("/cut", "vmdeploy", TroubleKind::Fetch, true, "failed to fetch")]
#[case::no_end("/endless", "vmdeploy", TroubleKind::Unusable, false, "larger than 1048576 bytes")]
#[tokio::test]
async fn trouble_says_what_to_change(
    #[case] path: &str,
    #[case] wanted: &str,
    #[case] kind: TroubleKind,
    #[case] again: bool,
    #[case] words: &str,
) {
    let directory = tempfile::tempdir().unwrap();
    let order = order(Place::Url(format!("http://{}{path}", server().await)), Some(wanted));
    let trouble = fetch(&order, &directory.path().join("disk")).await.unwrap_err();
    assert_eq!((trouble.kind, trouble.again), (kind, again), "{trouble}");
    assert!(trouble.message.contains(words), "{trouble}");
}

#[tokio::test]
async fn a_server_that_is_not_there_may_come_back() {
    crate::tls::install_provider();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let directory = tempfile::tempdir().unwrap();
    let order = order(Place::Url(format!("http://{address}/file")), Some("vmdeploy"));
    let trouble = fetch(&order, &directory.path().join("disk")).await.unwrap_err();
    assert!(trouble.again && trouble.message.contains("refused"), "{trouble}");
}

#[tokio::test]
async fn a_file_of_a_claim_cannot_lie_outside_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let claim = directory.path().join("claim");
    std::fs::create_dir(&claim).unwrap();
    std::fs::File::create(claim.join("disk.qcow2")).unwrap().write_all(b"vmdeploy").unwrap();
    std::fs::write(directory.path().join("key"), "secret").unwrap();
    symlink("../key", claim.join("out")).unwrap();
    symlink("disk.qcow2", claim.join("in")).unwrap();
    rustix::fs::mknodat(CWD, claim.join("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    let ask = async |path: &str| {
        let place = Place::Beneath { root: claim.clone(), path: path.into() };
        fetch(&order(place, None), &directory.path().join("copy")).await
    };
    for path in ["disk.qcow2", "/disk.qcow2", "in"] {
        assert_eq!(ask(path).await.unwrap().digest, digest("vmdeploy"), "{path}");
    }
    for path in ["out", "../key", "/../key", "none", "fifo", ""] {
        let trouble = ask(path).await.unwrap_err();
        assert!(!trouble.again && trouble.message.contains("correct the path"), "{path}: {trouble}");
    }
}
