//! The HTTP side of the repository: who asks, what for, and the reply. Policy is in `access`, state in
//! `store`.

mod files;
mod gate;
mod generations;
mod images;
mod outputs;
mod packs;
mod pieces;

use std::{
    io::{Seek as _, SeekFrom},
    ops::Range,
    path::Path,
    sync::Arc,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Request},
    http::header,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use super::{
    access::{Action, may},
    arrivals::Arrivals,
    bearers::Bearers,
    collect,
    durable::disk_error,
    files::Opened,
    room::Limits,
    store::Store,
};
use crate::{
    clock::Clock,
    driver::repository::{
        RepositoryError,
        wire::{ErrorKind, ErrorReply, NO_PATH, PROTOCOL, TOO_NEW, VERSION},
    },
    names::{Identity, JobUid},
    store::{manifest::MAX_BYTES, ticket::TicketKey},
    tls::Peer,
};

pub(super) use self::gate::Gate;

/// What every handler works with.
#[derive(Clone)]
pub struct Service {
    /// The directory.
    pub store: Arc<Store>,
    /// Checks tickets.
    pub key: TicketKey,
    /// Sizes.
    pub limits: Limits,
    /// What is being received.
    pub arrivals: Arrivals,
    /// Who brings what.
    pub bearers: Bearers,
    /// The time.
    pub clock: Clock,
}

/// All routes.
pub fn router(service: Service) -> Router {
    Router::new()
        .route("/v1/jobs/{job}", get(generations::content).delete(generations::remove))
        .route("/v1/jobs/{job}/fence", put(generations::fence))
        .route("/v1/jobs/{job}/adopted", put(generations::adopt))
        .route(
            "/v1/jobs/{job}/generations/{generation}",
            get(generations::manifest).put(generations::publish).delete(generations::retire),
        )
        .route(
            "/v1/jobs/{job}/generations/{generation}/parts",
            get(generations::kept_parts).post(generations::keep_part).delete(generations::give_up),
        )
        .route(
            "/v1/jobs/{job}/generations/{generation}/members/{member}/files/{kind}",
            get(files::send).put(files::receive_part),
        )
        .route("/v1/jobs/{job}/generations/{generation}/members/{member}/files/{kind}/blocks", post(packs::find))
        .route(
            "/v1/jobs/{job}/generations/{generation}/members/{member}/files/{kind}/packs/{pack}",
            put(packs::receive_pack),
        )
        .route("/v1/jobs/{job}/packs/{pack}", get(packs::send).post(packs::doubt))
        .route("/v1/jobs/{job}/outputs", get(outputs::list))
        .route("/v1/jobs/{job}/outputs/{member}", get(outputs::send).put(outputs::receive_output))
        .route("/v1/usage", get(generations::usage))
        .route("/v1/images", put(images::review))
        .route("/v1/images/{digest}/disk", get(images::disk).put(images::note_disk))
        .route("/v1/images/{digest}/pieces", get(pieces::names))
        .route("/v1/images/{digest}/bytes", get(pieces::bytes))
        .route("/v1/images/{digest}", get(images::send).put(images::receive_image))
        .fallback(|| async { Failure(RepositoryError::NotFound(NO_PATH.into())) })
        // streams have their own limits; this is for what is read into memory
        .layer(DefaultBodyLimit::max(MAX_BYTES))
        .layer(from_fn(speak))
        .with_state(service)
}

/// Says which version is spoken here. A request of a later one that is not understood is told so: whoever sent it may
/// know another way, or waits until this repository is upgraded.
async fn speak(request: Request, next: Next) -> Response {
    let theirs = request.headers().get(PROTOCOL).and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    let mut reply = next.run(request).await;
    let is_ours = reply.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    // those that do not fit what is expected here are turned away before any handler sees them
    if let Some(theirs) = theirs.filter(|theirs| *theirs > VERSION && reply.status().is_client_error() && !is_ours) {
        let message = format!(
            "the request is of version {theirs} of the protocol, and this repository speaks {VERSION}: it must be upgraded"
        );
        reply = (TOO_NEW, Json(ErrorReply { kind: ErrorKind::Unavailable, message })).into_response();
    }
    reply.headers_mut().insert(PROTOCOL, VERSION.into());
    reply
}

/// An error as a reply.
pub(super) struct Failure(RepositoryError);

impl<E: Into<RepositoryError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let reply = ErrorReply::from(self.0);
        (reply.status(), Json(reply)).into_response()
    }
}

type Reply<T> = Result<T, Failure>;

fn allowed(peer: &Identity, action: Action<'_>) -> Result<(), RepositoryError> {
    if may(peer, action) { Ok(()) } else { Err(RepositoryError::Refused(format!("{peer} may not do this"))) }
}

impl Service {
    /// Checks the right, then does the disk's work off the event loop.
    async fn run<T: Send + 'static>(
        &self,
        Peer(peer): &Peer,
        action: Action<'_>,
        work: impl FnOnce(&Store) -> Result<T, RepositoryError> + Send + 'static,
    ) -> Result<T, RepositoryError> {
        allowed(peer, action)?;
        self.blocking(work).await
    }

    /// Something of a job is gone, and with it perhaps the need for some packs.
    fn collect_soon(&self, job: JobUid) {
        collect::request(&self.store, &self.clock, [job]);
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, RepositoryError> + Send + 'static,
    ) -> Result<T, RepositoryError> {
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.unwrap_or_else(|error| Err(RepositoryError::Unreachable(error.to_string())))
    }
}

/// The bytes of a file on their way out.
type Blocks = BoxStream<'static, std::io::Result<Bytes>>;

/// A file as the body of a reply.
fn send_file(file: Opened) -> Result<Response, RepositoryError> {
    let length = file.length().map_err(|e| disk_error(&e))?;
    Ok(reply(length, Body::from_stream(read_file(file, 0..length)?)))
}

/// Bytes of a file that are there.
fn read_file(file: Opened, range: Range<u64>) -> Result<Blocks, RepositoryError> {
    match file {
        Opened::Here(mut file) => {
            file.seek(SeekFrom::Start(range.start)).map_err(|e| disk_error(&e))?;
            let file = tokio::fs::File::from_std(file).take(range.end - range.start);
            Ok(Box::pin(ReaderStream::with_capacity(file, 1 << 18)))
        }
        Opened::There(remote) => Ok(remote.stream(range)),
    }
}

fn reply(length: u64, body: Body) -> Response {
    ([(header::CONTENT_LENGTH, length.to_string())], body).into_response()
}

/// Opens a file below the root, if it is there.
fn open(store: &Store, below: &Path, what: &str) -> Result<Opened, RepositoryError> {
    store.root.whole(below).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => RepositoryError::NotFound(what.into()),
        _ => disk_error(&error),
    })
}
