use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::{Path as UrlPath, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Redirect, Response as Answer},
    routing::get,
};
use rstest::rstest;

use super::*;
use crate::image::{FileOrder, LoginOrder, Place, fetch::fetch, login::Login};

const FILE: &[u8] = b"a file that comes in several parts";
/// As much comes of it before the connection breaks.
const PART: usize = 10;

/// A request: its path, its range and its login.
type Request = (String, Option<String>, Option<String>);

/// What servers were asked.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<Request>>>);

impl Asked {
    fn note(&self, path: &str, headers: &HeaderMap) {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        self.0.lock().unwrap().push((path.into(), text("range"), text("authorization")));
    }

    fn ranges(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(_, range, _)| range.clone().unwrap_or_default()).collect()
    }

    fn logins(&self) -> Vec<(String, bool)> {
        self.0.lock().unwrap().iter().map(|(path, _, login)| (path.clone(), login.is_some())).collect()
    }
}

/// Breaks each answer after a part, in the manner of `kind`.
async fn broken(UrlPath(kind): UrlPath<String>, State(asked): State<Asked>, headers: HeaderMap) -> Answer {
    asked.note(&kind, &headers);
    let requests = asked.ranges().len();
    let condition = headers.get("if-range").map(|value| value.to_str().unwrap().to_owned());
    let tag = match kind.as_str() {
        "changes" => format!("\"{requests}\""),
        "weak" => "W/\"1\"".into(),
        _ => "\"1\"".into(),
    };
    let dated = kind == "dated";
    let same = condition == Some(if dated { "Wed, 25 Nov 2026 12:00:00 GMT".into() } else { tag.clone() });
    let range = headers.get("range").map(|range| range.to_str().unwrap().to_owned());
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let from = from.filter(|_| same && !matches!(kind.as_str(), "no-ranges" | "never")).unwrap_or(0);
    let whole = matches!(kind.as_str(), "changes" | "weak" | "no-ranges") && requests == 3;
    let part = &FILE[from..if whole { FILE.len() } else { FILE.len().min(from + PART) }];
    let ends = from + part.len() == FILE.len();
    let first = futures::stream::iter([Ok(part.to_vec())]);
    let cut = async {
        // what came before is on its way by then
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::other("cut"))
    };
    let cut = futures::stream::once(cut).take(usize::from(!ends));
    let body = first.chain(cut);
    let mut answer = Answer::builder().header("content-length", FILE.len() - from);
    answer = if dated {
        answer.header("last-modified", "Wed, 25 Nov 2026 12:00:00 GMT")
    } else {
        answer.header("etag", tag)
    };
    if from > 0 {
        let shown = if kind == "lies" { from - 1 } else { from };
        answer = answer.status(206).header("content-range", format!("bytes {shown}-{}/{}", FILE.len() - 1, FILE.len()));
    }
    answer.body(Body::from_stream(body)).unwrap()
}

async fn serve(router: Router) -> SocketAddr {
    crate::tls::install_provider();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

fn order(url: String, login: Option<LoginOrder>) -> FileOrder {
    let digest = Some(format!("sha256:{:x}", Sha256::digest(FILE)));
    FileOrder { field: "spec.source.http".into(), place: Place::Url(url), digest, limit: 1 << 20, login, trusted: None }
}

#[rstest]
#[case::by_its_tag("tagged", &["", "bytes=10-", "bytes=20-", "bytes=30-"])]
#[case::by_its_date("dated", &["", "bytes=10-", "bytes=20-", "bytes=30-"])]
#[case::of_a_server_that_sends_it_whole("no-ranges", &["", "bytes=10-", "bytes=10-"])]
#[case::that_changes("changes", &["", "bytes=10-", "bytes=10-"])]
#[case::without_a_strong_tag("weak", &["", "", ""])]
#[tokio::test]
async fn a_broken_transfer_goes_on_or_begins_again(#[case] kind: &str, #[case] ranges: &[&str]) {
    let asked = Asked::default();
    let address = serve(Router::new().route("/{kind}", get(broken)).with_state(asked.clone())).await;
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("disk");
    let got = fetch(&order(format!("http://{address}/{kind}"), None), &to).await.unwrap();
    assert_eq!((got.size, std::fs::read(&to).unwrap()), (FILE.len() as u64, FILE.to_vec()));
    assert_eq!(asked.ranges(), ranges);
}

#[rstest]
#[case::the_wrong_part("lies", ["", "bytes=10-", "", "bytes=10-"])]
#[case::never_the_end("never", ["", "bytes=10-", "bytes=10-", "bytes=10-"])]
#[tokio::test]
async fn it_does_not_go_on_for_ever(#[case] kind: &str, #[case] first: [&str; 4]) {
    let asked = Asked::default();
    let address = serve(Router::new().route("/{kind}", get(broken)).with_state(asked.clone())).await;
    let directory = tempfile::tempdir().unwrap();
    let download = Download {
        client: &super::super::web::client(None).unwrap(),
        url: &format!("http://{address}/{kind}").parse().unwrap(),
        authorization: None,
        renew: None,
        refused: &|_, status| panic!("{status}"),
        field: "spec.source.http",
        limit: 1 << 20,
        pauses: Backoff { first: Duration::ZERO, longest: Duration::ZERO },
    };
    let trouble = download.run(&directory.path().join("disk")).await.unwrap_err();
    assert!(trouble.again && trouble.message.contains("failed to fetch"), "{trouble}");
    let ranges = asked.ranges();
    assert_eq!((&ranges[..4], ranges.len()), (first.map(ToOwned::to_owned).as_slice(), BREAKS as usize + 1));
}

/// A server that wants a login, but not everywhere, and another one that it leads to.
async fn guarded(asked: &Asked, elsewhere: SocketAddr) -> SocketAddr {
    let seen = asked.clone();
    let file = get(move |headers: HeaderMap| async move {
        seen.note("/file", &headers);
        match headers.get("authorization").map(|login| login.as_bytes() == b"Basic YWxpY2U6czNjcmV0") {
            Some(true) => FILE.into_response(),
            Some(false) => StatusCode::FORBIDDEN.into_response(),
            None => StatusCode::UNAUTHORIZED.into_response(),
        }
    });
    let router = Router::new()
        .route("/file", file)
        .route("/moved", get(|| async { Redirect::temporary("/file") }))
        .route("/around", get(|| async { Redirect::permanent("/around") }))
        .route("/away", get(move || async move { Redirect::temporary(&format!("http://{elsewhere}/open")) }))
        .route("/guarded", get(move || async move { Redirect::temporary(&format!("http://{elsewhere}/closed")) }))
        .route("/odd", get(|| async { Redirect::temporary("file:///etc/passwd") }));
    serve(router).await
}

async fn other(asked: &Asked) -> SocketAddr {
    let (open, closed) = (asked.clone(), asked.clone());
    let note = move |headers: HeaderMap| async move {
        open.note("/open", &headers);
        FILE
    };
    let refuse = move |headers: HeaderMap| async move {
        closed.note("/closed", &headers);
        StatusCode::UNAUTHORIZED
    };
    serve(Router::new().route("/open", get(note)).route("/closed", get(refuse))).await
}

fn login(directory: &Path, password: &str) -> LoginOrder {
    let login = Login::Basic { username: "alice".into(), password: password.into() };
    let file = directory.join("login-mirror");
    std::fs::write(&file, login.to_file()).unwrap();
    LoginOrder { secret: "mirror".into(), file }
}

#[rstest]
#[case::where_it_is_named("/file", &[("/file", true)])]
#[case::elsewhere_on_the_same_server("/moved", &[("/file", true)])]
#[case::not_at_another_one("/away", &[("/open", false)])]
#[tokio::test]
async fn a_login_is_sent_to_its_own_server_only(#[case] path: &str, #[case] logins: &[(&str, bool)]) {
    let asked = Asked::default();
    let address = guarded(&asked, other(&asked).await).await;
    let directory = tempfile::tempdir().unwrap();
    let order = order(format!("http://{address}{path}"), Some(login(directory.path(), "s3cret")));
    fetch(&order, &directory.path().join("disk")).await.unwrap();
    let logins: Vec<_> = logins.iter().map(|(path, sent)| ((*path).to_owned(), *sent)).collect();
    assert_eq!(asked.logins(), logins);
}

#[rstest]
#[case::no_login("/file", None, TroubleKind::LoginMissing, false, "in spec.source.http.credentials")]
#[case::a_wrong_one("/file", Some("wrong"), TroubleKind::LoginRefused, true, "403 Forbidden: correct Secret mirror")]
#[case::at_another_server(
    "/guarded",
    Some("s3cret"),
    TroubleKind::LoginRefused,
    false,
    "leads to 127.0.0.1, which answers 401"
)]
#[case::round_and_round("/around", None, TroubleKind::Fetch, false, "leads on more than 10 times: correct the url")]
#[case::to_no_address("/odd", None, TroubleKind::Fetch, false, "leads to what is no http")]
#[tokio::test]
async fn a_closed_door_says_which_key_is_wrong(
    #[case] path: &str,
    #[case] password: Option<&str>,
    #[case] kind: TroubleKind,
    #[case] again: bool,
    #[case] words: &str,
) {
    let asked = Asked::default();
    let address = guarded(&asked, other(&asked).await).await;
    let directory = tempfile::tempdir().unwrap();
    let login = password.map(|password| login(directory.path(), password));
    let trouble = fetch(&order(format!("http://{address}{path}"), login), &directory.path().join("disk")).await;
    let trouble = trouble.unwrap_err();
    assert_eq!((trouble.kind, trouble.again), (kind, again), "{trouble}");
    assert!(trouble.message.contains(words) && !trouble.message.contains("s3cret"), "{trouble}");
}
