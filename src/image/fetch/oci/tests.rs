use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::{Path as UrlPath, Query, State},
    http::HeaderMap as Headers,
    response::{IntoResponse as _, Redirect, Response as Answer},
    routing::get,
};
use futures::StreamExt as _;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::image::{LoginOrder, fetch::fetch};

const FILE: &[u8] = b"a disk in an artifact";
/// As much comes of it before a connection breaks.
const PART: usize = 9;

/// A path, and the login that came along.
type Request = (String, Option<String>);

/// A small registry that keeps its blobs on another server, as large ones do.
#[derive(Clone)]
struct Content {
    /// What is wanted of those who read: nothing, a password, or a token.
    door: &'static str,
    manifests: Arc<Mutex<BTreeMap<String, Value>>>,
    blobs: SocketAddr,
    own: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Content {
    fn note(&self, path: &str, headers: &Headers) -> Option<String> {
        let login = headers.get("authorization").map(|login| login.to_str().unwrap().to_owned());
        self.asked.lock().unwrap().push((path.into(), login.clone()));
        login
    }

    fn logins_of(&self, wanted: &str) -> Vec<Option<String>> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(path, _)| path == wanted).map(|(_, login)| login.clone()).collect()
    }
}

fn closed(content: &Content, login: Option<&str>) -> Option<Answer> {
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"reg\"", content.own);
    let (key, challenge) = match content.door {
        "password" => ("Basic YWxpY2U6czNjcmV0", "Basic realm=\"reg\"".to_owned()),
        "token" | "short token" => ("Bearer for-repository:team/disks:pull", realm),
        _ => return None,
    };
    (login != Some(key)).then(|| (StatusCode::UNAUTHORIZED, [("www-authenticate", challenge)]).into_response())
}

async fn manifest(State(content): State<Content>, UrlPath(name): UrlPath<String>, headers: Headers) -> Answer {
    let login = content.note("manifest", &headers);
    if let Some(refused) = closed(&content, login.as_deref()) {
        return refused;
    }
    match content.manifests.lock().unwrap().get(&name) {
        Some(manifest) => manifest.to_string().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn blob(State(content): State<Content>, UrlPath(digest): UrlPath<String>, headers: Headers) -> Answer {
    let login = content.note("blob", &headers);
    // a token that does not last is asked for anew before the rest is sent
    let again = content.logins_of("blob").len() == 2 && content.door == "short token";
    let late = again.then(|| StatusCode::UNAUTHORIZED.into_response());
    let refused = late.or_else(|| closed(&content, login.as_deref()));
    refused.unwrap_or_else(|| Redirect::temporary(&format!("http://{}/{digest}", content.blobs)).into_response())
}

async fn token(
    State(content): State<Content>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: Headers,
) -> Answer {
    let login = content.note("token", &headers);
    assert_eq!(query["service"], "reg");
    match login.as_deref() {
        None | Some("Basic YWxpY2U6czNjcmV0") => {
            json!({"token": format!("for-{}", query["scope"])}).to_string().into_response()
        }
        Some(_) => StatusCode::FORBIDDEN.into_response(),
    }
}

async fn listen() -> (tokio::net::TcpListener, SocketAddr) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn registry(door: &'static str) -> Content {
    crate::tls::install_provider();
    let ((blobs_listener, blobs), (listener, own)) = (listen().await, listen().await);
    let content = Content { door, manifests: Arc::default(), blobs, own, asked: Arc::default() };
    let stored = |State(content): State<Content>, headers: Headers| async move {
        content.note("stored", &headers);
        let from = if headers.contains_key("range") { PART } else { 0 };
        let answer = Answer::builder().header("etag", "\"1\"").header("content-length", FILE.len() - from);
        if from > 0 {
            let range = format!("bytes {from}-{}/{}", FILE.len() - 1, FILE.len());
            return answer.status(206).header("content-range", range).body(Body::from(&FILE[from..])).unwrap();
        }
        let breaks = content.door == "short token";
        let first = futures::stream::iter([Ok(&FILE[..if breaks { PART } else { FILE.len() }])]);
        let cut = async {
            // what came before is on its way by then
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            Err(std::io::Error::other("cut"))
        };
        answer.body(Body::from_stream(first.chain(futures::stream::once(cut).take(usize::from(breaks))))).unwrap()
    };
    let store = Router::new().route("/{digest}", get(stored)).with_state(content.clone());
    tokio::spawn(async move { axum::serve(blobs_listener, store).await });
    let api = Router::new()
        .route("/v2/team/disks/manifests/{name}", get(manifest))
        .route("/v2/team/disks/blobs/{digest}", get(blob))
        .route("/token", get(token))
        .with_state(content.clone());
    tokio::spawn(async move { axum::serve(listener, api).await });
    content
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

fn layer(bytes: &[u8], size: usize) -> Value {
    json!({"digest": digest(bytes), "size": size, "annotations": {"org.opencontainers.image.title": "disk.qcow2"}})
}

/// Puts a manifest under a name, and under its digest, which it says.
fn put(content: &Content, name: &str, manifest: Value) -> String {
    let named = digest(manifest.to_string().as_bytes());
    let mut manifests = content.manifests.lock().unwrap();
    manifests.insert(name.into(), manifest.clone());
    manifests.insert(named.clone(), manifest);
    named
}

fn good() -> Value {
    json!({"schemaVersion": 2, "config": {}, "layers": [layer(FILE, FILE.len())]})
}

fn order(content: &Content, name: &str, login: Option<LoginOrder>) -> FileOrder {
    let reference = format!("{}/team/disks{name}", content.own);
    let place = Place::Oci(OciPlace { reference, file: None, manifest: None, plain_http: true });
    FileOrder { field: "spec.source.oci".into(), place, digest: None, limit: 1 << 20, login, trusted: None }
}

fn login(directory: &Path, login: Login) -> LoginOrder {
    let file = directory.join("login");
    std::fs::write(&file, login.to_file()).unwrap();
    LoginOrder { secret: "registry".into(), file }
}

fn alice(directory: &Path, password: &str) -> LoginOrder {
    login(directory, Login::Basic { username: "alice".into(), password: password.into() })
}

#[rstest]
#[case::of_everybody("none", None, None)]
#[case::by_a_password("password", Some("s3cret"), Some("Basic YWxpY2U6czNjcmV0"))]
#[case::by_a_token_for_nobody("token", None, Some("Bearer for-repository:team/disks:pull"))]
#[case::by_a_token_for_a_password("token", Some("s3cret"), Some("Bearer for-repository:team/disks:pull"))]
#[tokio::test]
async fn a_file_is_fetched_and_no_login_follows_it(
    #[case] door: &'static str,
    #[case] password: Option<&str>,
    #[case] shown: Option<&str>,
) {
    let content = registry(door).await;
    put(&content, "12", good());
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("disk");
    let order = order(&content, ":12", password.map(|password| alice(directory.path(), password)));
    let got = fetch(&order, &to).await.unwrap();
    assert_eq!((got.digest, std::fs::read(to).unwrap()), (digest(FILE), FILE.to_vec()));
    let shown = shown.map(str::to_owned);
    assert_eq!(content.logins_of("manifest").first(), Some(&None), "it is not sent before it is asked for");
    assert_eq!(content.logins_of("blob"), [shown]);
    assert_eq!(content.logins_of("stored"), [None], "where the registry leads to is given nothing");
}

#[tokio::test]
async fn a_tag_is_what_it_was_when_the_import_began() {
    let content = registry("none").await;
    let first = put(&content, "12", good());
    let mut import = ImportOrder {
        disk: order(&content, ":12", None),
        format: crate::api::image::ImageFormat::Raw,
        boot: None,
        check: None,
        disk_size: None,
        kernel: Some(order(&content, &format!("@{first}"), None)),
        initrd: Some(order(&content, ":12", None)),
    };
    let pinned = pin(&mut import).await.unwrap();
    assert_eq!(content.logins_of("manifest").len(), 1, "the files of one artifact are of one manifest");
    assert_eq!(pinned, [(format!("{}/team/disks:12", content.own), first.clone())].into(), "a digest needs no record");
    put(&content, "12", json!({"layers": []}));
    let directory = tempfile::tempdir().unwrap();
    for file in [&import.disk, import.kernel.as_ref().unwrap(), import.initrd.as_ref().unwrap()] {
        assert_eq!(fetch(file, &directory.path().join("disk")).await.unwrap().digest, digest(FILE));
    }
    assert_eq!(pin(&mut import).await.unwrap().into_values().collect::<Vec<_>>(), [first], "as the operator says it");
}

#[rstest]
#[case::no_such_tag(":13", good(), TroubleKind::Fetch, false, "404 Not Found: correct the reference")]
#[case::an_index(":12", json!({"manifests": []}), TroubleKind::Unusable, false, "index")]
#[case::no_files(":12", json!({"layers": []}), TroubleKind::Unusable, false, "no layer")]
#[case::another_file(":12", json!({"layers": [layer(b"other", FILE.len())]}), TroubleKind::Digest, true, "comes with the digest")]
#[case::more_than_it_says(":12", json!({"layers": [layer(FILE, 3)]}), TroubleKind::Unusable, false, "larger than 3 bytes")]
#[case::too_much(":12", json!({"layers": [layer(FILE, 2 << 20)]}), TroubleKind::Unusable, false, "larger than 1048576 bytes")]
#[tokio::test]
async fn trouble_says_what_to_change(
    #[case] name: &str,
    #[case] manifest: Value,
    #[case] kind: TroubleKind,
    #[case] again: bool,
    #[case] words: &str,
) {
    let content = registry("none").await;
    put(&content, "12", manifest);
    let directory = tempfile::tempdir().unwrap();
    let trouble = fetch(&order(&content, name, None), &directory.path().join("disk")).await.unwrap_err();
    assert_eq!((trouble.kind, trouble.again), (kind, again), "{trouble}");
    assert!(trouble.message.contains(words), "{trouble}");
}

#[tokio::test]
async fn another_manifest_or_file_than_the_spec_says_is_refused() {
    let content = registry("none").await;
    let named = put(&content, "12", good());
    content.manifests.lock().unwrap().insert(named.clone(), json!({"layers": [layer(b"x", 1)]}));
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("disk");
    let trouble = fetch(&order(&content, &format!("@{named}"), None), &to).await.unwrap_err();
    assert!(trouble.kind == TroubleKind::Digest && trouble.message.contains("which is another one"), "{trouble}");
    let wanted = FileOrder { digest: Some(digest(b"x")), ..order(&content, ":12", None) };
    let trouble = fetch(&wanted, &to).await.unwrap_err();
    assert!(trouble.kind == TroubleKind::Digest && trouble.message.contains("correct the digest"), "{trouble}");
    assert!(content.logins_of("blob").is_empty(), "which is known before it is fetched");
}

#[rstest]
#[case::none("password", None, TroubleKind::LoginMissing, "in spec.source.oci.credentials")]
#[case::a_wrong_password("password", Some("wrong"), TroubleKind::LoginRefused, "correct Secret registry")]
#[case::no_token_for_it("token", Some("wrong"), TroubleKind::LoginRefused, "403 Forbidden: correct Secret registry")]
#[tokio::test]
async fn a_closed_door_says_which_key_is_wrong(
    #[case] door: &'static str,
    #[case] password: Option<&str>,
    #[case] kind: TroubleKind,
    #[case] words: &str,
) {
    let content = registry(door).await;
    put(&content, "12", good());
    let directory = tempfile::tempdir().unwrap();
    let login = password.map(|password| alice(directory.path(), password));
    let trouble = fetch(&order(&content, ":12", login), &directory.path().join("disk")).await.unwrap_err();
    assert_eq!((trouble.kind, trouble.again), (kind, password.is_some()), "{trouble}");
    assert!(trouble.message.contains(words) && !trouble.message.contains("s3cret"), "{trouble}");
}

#[tokio::test]
async fn a_token_of_a_secret_is_used_as_it_is() {
    let content = registry("token").await;
    put(&content, "12", good());
    let directory = tempfile::tempdir().unwrap();
    let own = login(directory.path(), Login::Bearer("for-repository:team/disks:pull".into()));
    fetch(&order(&content, ":12", Some(own)), &directory.path().join("disk")).await.unwrap();
    assert!(content.logins_of("token").is_empty());
}

#[tokio::test]
async fn a_transfer_outlives_its_token() {
    let content = registry("short token").await;
    put(&content, "12", good());
    let directory = tempfile::tempdir().unwrap();
    let got = fetch(&order(&content, ":12", None), &directory.path().join("disk")).await.unwrap();
    assert_eq!(got.digest, digest(FILE));
    let asked = ["token", "blob", "stored"].map(|path| content.logins_of(path).len());
    assert_eq!(asked, [2, 3, 2], "refused once, and then it went on where it had broken");
}

#[tokio::test]
async fn a_registry_that_is_not_encrypted_is_said_to_be_so() {
    let content = registry("none").await;
    let mut order = order(&content, ":12", None);
    let Place::Oci(place) = &mut order.place else { unreachable!() };
    place.plain_http = false;
    let directory = tempfile::tempdir().unwrap();
    let trouble = fetch(&order, &directory.path().join("disk")).await.unwrap_err();
    assert!(trouble.message.ends_with("or set plainHttp of spec.source.oci"), "{trouble}");
}

#[tokio::test]
async fn a_password_is_not_sent_unencrypted_for_a_token() {
    let content = registry("token").await;
    let directory = tempfile::tempdir().unwrap();
    let order = order(&content, ":12", Some(alice(directory.path(), "s3cret")));
    let Place::Oci(place) = &order.place else { unreachable!() };
    let encrypted = OciPlace { plain_http: false, ..place.clone() };
    let registry = Registry::new(&order, &encrypted).unwrap();
    let realm = format!("http://{}/token", content.own);
    let trouble = registry.token(&realm, Some("reg"), HeaderValue::from_str("Basic x").ok()).await.unwrap_err();
    assert!(trouble.message.contains("no https address") && content.logins_of("token").is_empty(), "{trouble}");
}
