//! Blocks and packs of a job's files: which there are, in from agents with a ticket, out to who restores.

use axum::{
    Extension, Json,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{
    Reply, Service,
    files::{FilePath, admit, kind_of},
    read_file, send_file,
};
use crate::{
    driver::repository::{
        RepositoryError,
        wire::{ErrorKind, ErrorReply, read_names},
    },
    names::{Generation, JobUid, MemberIndex},
    repository::{
        access::Action,
        durable::disk_error,
        receive::{Bounds, Hash, drain, receive},
        room::Most,
        store::Store,
        uploads::Origin,
    },
    store::pack::{MAX_STORED, PackName},
    tls::Peer,
};

fn pack_of(name: &str) -> Result<PackName, RepositoryError> {
    name.parse().map_err(|error: crate::store::pack::PackError| RepositoryError::Refused(error.to_string()))
}

pub(super) async fn find(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path((job, generation, member, kind)): FilePath,
    headers: HeaderMap,
    body: Bytes,
) -> Reply<Vec<u8>> {
    let kind = kind_of(&kind)?;
    let admitted = admit(&service, &peer, (&job, generation, member, kind), &headers, false).await?;
    let names = read_names(&body).ok_or_else(|| RepositoryError::Refused("these are no names of blocks".into()))?;
    let (origin, now) = (Origin { generation, incarnation: admitted.incarnation, member, kind }, service.clock.now());
    let found = service.blocking(move |store| store.find_blocks(&job, origin, &names, now)).await?;
    Ok(postcard::to_stdvec(&found).map_err(|e| RepositoryError::Unreachable(e.to_string()))?)
}

pub(super) async fn receive_pack(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path((job, generation, member, kind, pack)): Path<(JobUid, Generation, MemberIndex, String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Reply<()> {
    let admitted = async {
        let (kind, pack) = (kind_of(&kind)?, pack_of(&pack)?);
        let admitted = admit(&service, &peer, (&job, generation, member, kind), &headers, true).await?;
        let origin = Origin { generation, incarnation: admitted.incarnation, member, kind };
        Ok((origin, pack, admitted, service.store.uploads.begin(&job, origin)?))
    };
    let (origin, pack, admitted, _arriving) = match admitted.await {
        Ok(admitted) => admitted,
        Err(error) => {
            drain(body.into_data_stream());
            let error: RepositoryError = error;
            return Err(error.into());
        }
    };
    let what = format!("pack {job} {generation} {member} {} {kind} {pack}", origin.incarnation);
    let arrival = service.arrivals.begin(what);
    let bounds = Bounds { most: (MAX_STORED as u64).min(admitted.room), free: service.limits.free };
    let received = receive(&service.store.root, body, bounds, Hash::None, &arrival).await?;
    let now = service.clock.now();
    let most = Most { part: admitted.most, job: service.limits.packs };
    let keep = move |store: &Store| store.keep_pack(&job, origin, pack, &received, most, now);
    Ok(service.blocking(keep).await?)
}

pub(super) async fn send(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path((job, pack)): Path<(JobUid, String)>,
    headers: HeaderMap,
) -> Reply<Response> {
    let (pack, wanted) = (pack_of(&pack)?, job.clone());
    let file = service.run(&peer, Action::Restore(&wanted), move |store| store.open_pack(&job, pack)).await?;
    let Some(range) = headers.get(header::RANGE) else { return Ok(send_file(file)?) };
    let length = file.length().map_err(|e| disk_error(&e))?;
    let Some((first, last)) = range.to_str().ok().and_then(|range| read_range(range, length)) else {
        let message = "one range of bytes that are there can be had".into();
        let reply = Json(ErrorReply { kind: ErrorKind::Refused, message });
        let range = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
        return Ok((StatusCode::RANGE_NOT_SATISFIABLE, range, reply).into_response());
    };
    let count = last - first + 1;
    let headers = [
        (header::CONTENT_LENGTH, count.to_string()),
        (header::CONTENT_RANGE, format!("bytes {first}-{last}/{length}")),
    ];
    let body = Body::from_stream(read_file(file, first..last + 1)?);
    Ok((StatusCode::PARTIAL_CONTENT, headers, body).into_response())
}

/// First and last byte of `bytes=a-b` or `bytes=a-`.
fn read_range(range: &str, length: u64) -> Option<(u64, u64)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let first = number(first)?;
    let end = length.checked_sub(1)?;
    let last = if last.is_empty() { end } else { number(last)?.min(end) };
    (first <= last).then_some((first, last))
}

/// What came of a doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Doubted {
    /// Nothing can be restored from the pack.
    damaged: bool,
}

pub(super) async fn doubt(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path((job, pack)): Path<(JobUid, String)>,
) -> Reply<Json<Doubted>> {
    let (pack, wanted) = (pack_of(&pack)?, job.clone());
    let damaged = service.run(&peer, Action::Restore(&wanted), move |store| store.doubt_pack(&job, pack)).await?;
    Ok(Json(Doubted { damaged }))
}

#[cfg(test)]
#[path = "packs_tests.rs"]
mod tests;
