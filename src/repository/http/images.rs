//! Images: in from importers, out to agents. An image is its digest and never changes.

use std::io::Read as _;

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    response::Response,
};

use super::{Reply, Service, allowed, open, send_file};
use crate::{
    driver::{
        qemu::img::inspect,
        repository::{DiskRecord, RepositoryError},
    },
    repository::{
        access::Action,
        durable::disk_error,
        receive::{Bounds, Hash, drain, receive},
        store::Store,
    },
    store::layout,
    tls::Peer,
};

pub(super) async fn receive_image(
    State(service): State<Service>,
    Extension(Peer(peer)): Extension<Peer>,
    Path(digest): Path<String>,
    body: Body,
) -> Reply<()> {
    let admitted = allowed(&peer, Action::WriteImage)
        .and_then(|()| layout::image(&digest).map_err(|e| RepositoryError::Refused(e.to_string())));
    let path = match admitted {
        Ok(path) => path,
        Err(error) => {
            drain(body.into_data_stream());
            return Err(error.into());
        }
    };
    let hash = Hash::Sha256(sha2::Digest::new());
    let arrival = service.arrivals.begin(format!("image {digest}"));
    let bounds = Bounds { most: service.limits.image, free: service.limits.free };
    let received = match receive(&service.store.root, body, bounds, hash, &arrival).await {
        // the same file, as its digest says: whoever asks again finds it
        Err(_) if arrival.overtaken.is_cancelled() => {
            return Err(RepositoryError::Unreachable("another importer sends the same image".into()).into());
        }
        received => received?,
    };
    if digest != received.digest {
        return Err(RepositoryError::Damaged(format!("the image is {}", received.digest)).into());
    }
    let place = move |store: &Store| store.root.place(&received.staged, &path).map_err(|e| disk_error(&e));
    Ok(service.blocking(place).await?)
}

pub(super) async fn send(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path(digest): Path<String>,
) -> Reply<Response> {
    let path = layout::image(&digest)?;
    let file = service.run(&peer, Action::ReadImage, move |store| open(store, &path, &digest)).await?;
    Ok(send_file(file).await?)
}

pub(super) async fn disk(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path(digest): Path<String>,
) -> Reply<Json<DiskRecord>> {
    let read = move |store: &Store| {
        let record = store.root.read(&layout::disk_record(&digest)?).map_err(|e| disk_error(&e))?;
        // without its file it says nothing
        let there = store.root.at(&layout::image(&digest)?).exists();
        let record = record.filter(|_| there).ok_or_else(|| RepositoryError::NotFound(digest.clone()))?;
        serde_json::from_slice(&record).map_err(|e| RepositoryError::Damaged(format!("the record of {digest}: {e}")))
    };
    Ok(Json(service.run(&peer, Action::ReadImage, read).await?))
}

/// An importer has checked an image as a disk. What can be seen of that in its head is checked again:
/// the word of one namespace's importer counts for all.
pub(super) async fn note_disk(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path(digest): Path<String>,
    Json(record): Json<DiskRecord>,
) -> Reply<()> {
    let note = move |store: &Store| {
        let file = open(store, &layout::image(&digest)?, &digest)?;
        let length = file.metadata().map_err(|e| disk_error(&e))?.len();
        let mut head = Vec::new();
        file.take(1 << 12).read_to_end(&mut head).map_err(|e| disk_error(&e))?;
        let (format, virtual_size) = inspect(&head, length).map_err(RepositoryError::Damaged)?;
        if record != (DiskRecord { format, virtual_size }) {
            return Err(RepositoryError::Damaged("the head of the image says otherwise".into()));
        }
        let bytes = serde_json::to_vec(&record).map_err(|e| RepositoryError::Refused(e.to_string()))?;
        store.root.write(&layout::disk_record(&digest)?, &bytes).map_err(|e| disk_error(&e))
    };
    Ok(service.run(&peer, Action::WriteImage, note).await?)
}
