//! Images: in from importers, out to agents. An image is its digest and never changes.

use axum::{
    Extension,
    body::Body,
    extract::{Path, State},
    response::Response,
};

use super::{Reply, Service, allowed, open, send_file};
use crate::{
    driver::repository::RepositoryError,
    repository::{
        access::Action,
        durable::disk_error,
        receive::{Bounds, Hash, drain, receive},
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
    let received = receive(&service.store.root, body, bounds, hash, &arrival).await?;
    if digest != received.digest {
        return Err(RepositoryError::Damaged(format!("the image is {}", received.digest)).into());
    }
    let place = move |store: &crate::repository::store::Store| {
        store.root.place(&received.staged, &path).map_err(|e| disk_error(&e))
    };
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
