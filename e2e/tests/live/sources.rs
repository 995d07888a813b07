//! Images from a private web server that leads on to another one, and the image that the chart offers to all.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, LOCATION, RANGE, WWW_AUTHENTICATE},
    },
    response::{IntoResponse as _, Response},
    routing::get,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use e2e::{
    TestBed, Turn,
    agents::digest,
    environment::Environment,
    job::{Counting, Job},
    testbed::{SYSTEM, read, until},
    watched::watched,
    world::{LIFE, ends_right},
};
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{net::TcpListener, sync::watch};
use vmdeploy::api::{ConditionType, VmImage, VmImageStatus, conditions};

/// The image, and the Secret with the login that it needs.
const IMAGE: &str = "private";
const SECRET: &str = "mirror";
const USER: &str = "alice";
const PASSWORD: &str = "s3cret";
/// Where both servers have the file.
const PATH: &str = "/root.tar.zst";
/// What names it there.
const TAG: &str = "\"the one\"";
/// Between two bytes of the rest of it, until the image has said that it is fetched: an operator looks at an importer
/// every two seconds, or later.
const PAUSE: Duration = Duration::from_millis(500);
/// What an image says of its import, unless it has to wait.
const STEPS: [&str; 3] =
    ["the importer is being started", "the importer fetches the image", "the image is in the repository"];
/// The image of the chart.
const OFFERED: &str = "offered";

/// What the servers were asked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Request {
    /// The private one, without the right login.
    Refused,
    /// The private one, with the right login.
    LedOn,
    /// The open one, for the whole file.
    Whole,
    /// The open one, for what follows so many bytes.
    Rest(usize),
    /// The open one, with a login that is none of its business.
    Leaked,
}

/// A private server that leads on to an open one, whose answers break off unless they are asked for the rest.
struct Mirror {
    file: Bytes,
    open: SocketAddr,
    requests: Mutex<Vec<Request>>,
    /// What the image was last seen to say.
    message: watch::Receiver<String>,
}

impl Mirror {
    /// Starts both; gives the address of the file at the private one.
    async fn start(host: IpAddr, file: Bytes, message: watch::Receiver<String>) -> Result<(Arc<Self>, String)> {
        let (first, second) = (TcpListener::bind((host, 0)).await?, TcpListener::bind((host, 0)).await?);
        let url = format!("http://{}{PATH}", first.local_addr()?);
        let mirror = Arc::new(Self { file, open: second.local_addr()?, requests: Mutex::default(), message });
        for (listener, server) in [(first, get(private)), (second, get(open))] {
            let router: Router = Router::new().route(PATH, server).with_state(mirror.clone());
            tokio::spawn(async move { axum::serve(listener, router).await });
        }
        Ok((mirror, url))
    }

    fn note(&self, request: Request) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn private(State(mirror): State<Arc<Mirror>>, headers: HeaderMap) -> Response {
    let login = format!("Basic {}", BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")));
    if headers.get(AUTHORIZATION).is_some_and(|given| given == login.as_str()) {
        mirror.note(Request::LedOn);
        (StatusCode::FOUND, [(LOCATION, format!("http://{}{PATH}", mirror.open))]).into_response()
    } else {
        mirror.note(Request::Refused);
        (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Basic realm=\"images\"")]).into_response()
    }
}

async fn open(State(mirror): State<Arc<Mirror>>, headers: HeaderMap) -> Response {
    if headers.contains_key(AUTHORIZATION) {
        mirror.note(Request::Leaked);
        return StatusCode::BAD_REQUEST.into_response();
    }
    let size = mirror.file.len();
    let same = headers.get(IF_RANGE).is_some_and(|tag| tag == TAG);
    let range = headers.get(RANGE).and_then(|range| range.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-'));
    let from = range.and_then(|from| from.parse::<usize>().ok()).filter(|from| same && *from < size);
    if let Some(from) = from {
        mirror.note(Request::Rest(from));
        let part = format!("bytes {from}-{}/{size}", size - 1);
        let rest = mirror.file.slice(from..);
        let headers = [(ETAG, TAG.to_owned()), (CONTENT_RANGE, part), (CONTENT_LENGTH, rest.len().to_string())];
        let pieces = stream::unfold(rest, move |mut rest| {
            let message = mirror.message.clone();
            async move {
                if rest.is_empty() {
                    return None;
                }
                tokio::time::sleep(PAUSE).await;
                let said = *message.borrow() == STEPS[1];
                let piece = rest.split_to(if said { rest.len() } else { 1 });
                Some((Ok::<_, std::io::Error>(piece), rest))
            }
        });
        return (StatusCode::PARTIAL_CONTENT, headers, Body::from_stream(pieces)).into_response();
    }
    mirror.note(Request::Whole);
    let cut = async {
        // what came before is on its way by then
        tokio::time::sleep(Duration::from_millis(200)).await;
        Err::<Bytes, _>(std::io::Error::other("cut"))
    };
    let body = stream::iter([Ok(mirror.file.slice(..size / 2))]).chain(stream::once(cut));
    ([(ETAG, TAG.to_owned()), (CONTENT_LENGTH, size.to_string())], Body::from_stream(body)).into_response()
}

/// The guest's system, as an archive.
fn archive(bed: &TestBed) -> Result<Bytes> {
    let environment = Environment::of(bed.guest_image())?;
    Ok(fs::read(environment.pack("root.tar.zst", "zstd -3")?)?.into())
}

/// Waits until an image's Ready condition has this reason, with these words in its message; the status then.
pub(crate) async fn said(images: &Api<VmImage>, image: &str, reason: &str, words: &str) -> Result<VmImageStatus> {
    until(&format!("{image}: {reason} with {words:?}"), LIFE, async || {
        let status = read(|| images.get(image)).await?.status.unwrap_or_default();
        let ready = conditions::get(&status.conditions, ConditionType::Ready);
        let is_said = ready.is_some_and(|ready| ready.reason == reason && ready.message.contains(words));
        let stalled = conditions::get(&status.conditions, ConditionType::Stalled).filter(|_| !is_said);
        let stalled = stalled.map(|condition| &condition.message);
        ensure!(stalled.is_none(), "{image}: waiting for {reason}: {stalled:?}");
        Ok(is_said.then_some(status))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_a_private_server_comes_by_another_one_and_in_two_parts() -> Result<()> {
    let Some(bed) = Turn::with(1).await? else { return Ok(()) };
    let namespace = bed.namespace("private").await?;
    bed.allow(&namespace, "vmdeploy-credentials-reader").await?;
    let secrets: Api<Secret> = Api::namespaced(bed.client.clone(), &namespace);
    let password = |text: &str| json!({"stringData": {"username": USER, "password": text}});
    let mut secret: Secret = serde_json::from_value(password("wrong"))?;
    secret.metadata.name = Some(SECRET.into());
    secrets.create(&PostParams::default(), &secret).await?;

    let file = archive(&bed)?;
    let (digest, half) = (digest(&file), file.len() / 2);
    let (says, message) = watch::channel(String::new());
    let (mirror, url) = Mirror::start(bed.host()?, file, message).await?;
    let http = json!({"url": url, "digest": digest, "credentials": {"name": SECRET}, "plainHttp": true});
    let image: VmImage = serde_json::from_value(json!({
        "apiVersion": "vmdeploy.io/v1alpha1", "kind": "VmImage", "metadata": {"name": IMAGE},
        "spec": {"format": "tar", "diskSize": "4Gi", "skipBootCheck": true, "source": {"http": http}},
    }))?;
    let images: Api<VmImage> = Api::namespaced(bed.client.clone(), &namespace);
    let ready = move |image: VmImage| {
        let status = image.status?;
        let message = conditions::get(&status.conditions, ConditionType::Ready)?.message.clone();
        says.send_replace(message.clone());
        Some(message)
    };
    let [.., last] = STEPS;
    let messages = watched(images.clone(), ready, move |message: &String| message == last).await?;
    images.create(&PostParams::default(), &image).await?;
    let words = format!("401 Unauthorized: correct Secret {SECRET}, which spec.source.http.credentials names");
    said(&images, IMAGE, "CredentialsRefused", &words).await?;

    // it is read again at the next try, which is some seconds away
    secrets.patch(SECRET, &PatchParams::default(), &Patch::Merge(password(PASSWORD))).await?;
    let status = said(&images, IMAGE, "ImageImported", "").await?;
    let messages: Vec<String> = messages.await??.into_iter().map(|(_, message)| message).collect();
    let mut steps: Vec<usize> =
        messages.iter().filter_map(|message| STEPS.iter().position(|step| step == message)).collect();
    // while the API server is waited for something else is said, and then the same again
    steps.dedup();
    ensure!(steps.ends_with(&[0, 1, 2]), "after it was let in, not {STEPS:?}: {messages:?}");
    let requests = mirror.requests();
    let refused = requests.iter().take_while(|request| **request == Request::Refused).count();
    ensure!(refused > 0, "it was let in with a wrong password: {requests:?}");
    let [Request::LedOn, Request::Whole, Request::LedOn, Request::Rest(from)] = requests[refused..] else {
        anyhow::bail!("{requests:?}")
    };
    ensure!((1..=half).contains(&from), "it went on after {from} bytes, of {half} that were sent");
    let log = status.log.context("no log")?;
    ensure!(!log.contains("started once"), "it was started: {log}");

    let counting = Counting { ticks: 10, ..Counting::default() };
    let mut object = counting.object("count")?;
    object.spec.image.as_mut().context("no image")?.name = IMAGE.into();
    let job = Job::create(&bed, &namespace, &object).await?;
    ends_right(&bed, &job, &counting).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn a_job_that_names_no_image_runs_from_the_one_that_the_chart_offers() -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    let namespace = bed.namespace("offered").await?;
    let (values, spec) = (tempfile::NamedTempFile::new()?, bed.image()?.spec);
    let offered = json!({"defaultImage": OFFERED, "standardImages": [{"name": OFFERED, "spec": spec}]});
    fs::write(values.path(), offered.to_string())?;
    let ran = async {
        bed.run(&["install", "--values", &values.path().to_string_lossy()])?;
        let counting = Counting { ticks: 10, ..Counting::default() };
        let mut object = counting.object("count")?;
        object.spec.image = None;
        let job = Job::create(&bed, &namespace, &object).await?;
        let end = ends_right(&bed, &job, &counting).await?;
        let image = end.status.and_then(|status| status.image).context("the job has no image")?;
        ensure!((image.namespace.as_str(), image.name.as_str()) == (SYSTEM, OFFERED), "{image:?}");
        anyhow::Ok(())
    };
    let ran = ran.await;
    // whatever came of it: those after this one have none
    bed.run(&["install"])?;
    ran
}
