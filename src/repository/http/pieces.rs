//! Images for nodes that pass them on to each other: the names of an image's pieces, and any of its bytes.
//!
//! Whoever asks for bytes compares them with the names. One for whom they do not fit asks for the whole image next, and
//! it is found out there whether it is damaged.

use axum::{
    Extension,
    body::Body,
    extract::{Path, Query, State},
    response::Response,
};

use super::{Reply, Service, images::put_aside, open, read_file, reply};
use crate::{
    driver::repository::{RepositoryError, wire::BytesQuery},
    repository::{access::Action, durable::disk_error},
    store::layout,
    tls::Peer,
};

pub(super) async fn names(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path(digest): Path<String>,
) -> Reply<Response> {
    let (store, wanted) = (service.store.clone(), digest.clone());
    let named = service.run(&peer, Action::ReadImage, move |store| {
        let identity = store.root.identity(&layout::image(&wanted)?).map_err(|e| disk_error(&e))?;
        Ok((store.image_pieces(&wanted), identity))
    });
    let (pieces, identity) = named.await?;
    if let Err(RepositoryError::Damaged(_)) = &pieces {
        tokio::task::spawn_blocking(move || put_aside(&store, &digest, identity));
    }
    let bytes = pieces?.to_bytes();
    Ok(reply(bytes.len() as u64, Body::from(bytes)))
}

pub(super) async fn bytes(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path(digest): Path<String>,
    Query(BytesQuery { from, to }): Query<BytesQuery>,
) -> Reply<Response> {
    let path = layout::image(&digest)?;
    let file = service.run(&peer, Action::ReadImage, move |store| open(store, &path, &digest)).await?;
    let length = file.length().map_err(|e| disk_error(&e))?;
    if from > to || to > length {
        return Err(RepositoryError::Refused(format!("bytes {from} to {to} of an image of {length}")).into());
    }
    Ok(reply(to - from, Body::from_stream(read_file(file, from..to)?)))
}
