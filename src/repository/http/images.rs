//! Images: in from importers, out to agents. An image is its digest and never changes.
//!
//! What is sent is hashed on its way out: a file that turns out not to be what its name says is put
//! aside, and the image is imported again as one that is not there.

use std::{io::Read as _, sync::Arc};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    response::Response,
};

use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};

use super::{Reply, Service, allowed, open, read_file, reply};
use crate::{
    driver::{
        qemu::img::inspect,
        repository::{DiskRecord, RepositoryError},
    },
    repository::{
        access::Action,
        durable::disk_error,
        files::{FileIdentity, Opened},
        receive::{Bounds, Hash, drain, receive},
        store::Store,
    },
    store::{images::ImageReview, layout},
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
    if let Err(error) = admitted {
        drain(body.into_data_stream());
        return Err(error.into());
    }
    let hash = Hash::Sha256(Sha256::new());
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
    let named = digest.clone();
    service.blocking(move |store| store.keep_image(&digest, &received.staged)).await?;
    // before anybody asks for them
    let store = service.store;
    tokio::task::spawn_blocking(move || {
        if let Err(error) = store.image_pieces(&named) {
            tracing::warn!(digest = named, %error, "the pieces of an image are named when they are asked for");
        }
    });
    Ok(())
}

pub(super) async fn review(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Json(review): Json<ImageReview>,
) -> Reply<Json<Vec<String>>> {
    Ok(Json(service.run(&peer, Action::Rule, move |store| store.review_images(&review)).await?))
}

pub(super) async fn send(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path(digest): Path<String>,
) -> Reply<Response> {
    let (path, wanted) = (layout::image(&digest)?, digest.clone());
    let opened = move |store: &Store| {
        let file = open(store, &path, &wanted)?;
        Ok((file, store.root.identity(&path).map_err(|e| disk_error(&e))?))
    };
    let (file, identity) = service.run(&peer, Action::ReadImage, opened).await?;
    let length = file.length().map_err(|e| disk_error(&e))?;
    let blocks = read_file(file, 0..length)?;
    let (store, mut hasher, mut sent) = (service.store, Some(Sha256::new()), 0);
    let blocks = blocks.inspect_ok(move |block| {
        let Some(hash) = &mut hasher else { return };
        hash.update(block);
        sent += block.len() as u64;
        if sent < length {
            return;
        }
        let found = hasher.take().map(|hash| layout::image_name(&hash.finalize()));
        if found.as_ref() != Some(&digest) {
            let (store, digest) = (store.clone(), digest.clone());
            tokio::task::spawn_blocking(move || put_aside(&store, &digest, identity));
        }
    });
    Ok(reply(length, Body::from_stream(blocks)))
}

/// Puts a damaged image aside, unless another one has taken its place already, or only what was on the disk is damaged
/// and the bucket has it as it was.
pub(super) fn put_aside(store: &Arc<Store>, digest: &str, read: Option<FileIdentity>) {
    let done = (|| {
        let path = layout::image(digest)?;
        store.root.doubt(&path).map_err(|e| disk_error(&e))?;
        let (mut original, identity) = store.root.original(&path).map_err(|e| disk_error(&e))?;
        if Some(identity) != read || (!store.root.arrival_proves_storage() && is_what_it_says(&mut original, digest)?) {
            return Ok(false);
        }
        store.root.set_aside(&path, &layout::damaged_image(digest)?).map_err(|e| disk_error(&e))?;
        Ok::<_, RepositoryError>(true)
    })();
    match done {
        Ok(true) => tracing::error!(digest, "an image is damaged: it is put aside, to be imported again"),
        Ok(false) => tracing::warn!(digest, "an image that was sent was damaged, and is so no more"),
        Err(error) => tracing::error!(digest, %error, "an image is damaged, and could not be put aside"),
    }
}

fn is_what_it_says(file: &mut Opened, digest: &str) -> Result<bool, RepositoryError> {
    let mut hasher = Sha256::new();
    std::io::copy(file, &mut hasher).map_err(|e| disk_error(&e))?;
    Ok(layout::image_name(&hasher.finalize()) == digest)
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
        let length = file.length().map_err(|e| disk_error(&e))?;
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
