//! Files of parts: in from agents with a ticket, out to who restores.

use std::time::{Duration, Instant};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};

use super::{Reply, Service, send_file};
use crate::{
    driver::repository::{
        RepositoryError,
        wire::{DigestQuery, FileQuery, TICKET, Unread},
    },
    names::{Generation, Incarnation, JobUid, MemberIndex},
    repository::{
        access::{Action, may_write_part},
        receive::{Bounds, Hash, drain, receive},
        store::Store,
        uploads::Origin,
    },
    store::{
        manifest::{FileForm, FileKind, PartFile},
        recipe::MAX_STORED,
    },
    tls::Peer,
};

/// So long are packs read for a recipe until its sender is told how many are left.
const READ_FOR: Duration = Duration::from_secs(10);

pub(super) type FilePath = Path<(JobUid, Generation, MemberIndex, String)>;

pub(super) fn kind_of(name: &str) -> Result<FileKind, RepositoryError> {
    name.parse().map_err(|_| RepositoryError::NotFound("no such kind of file".into()))
}

pub(super) async fn receive_part(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path((job, generation, member, kind)): FilePath,
    Query(FileQuery { size, form }): Query<FileQuery>,
    headers: HeaderMap,
    body: Body,
) -> Reply<Response> {
    let admitted = match kind_of(&kind) {
        Ok(kind) => admit(&service, &peer, (&job, generation, member, kind), &headers, true).await,
        Err(error) => Err(error),
    };
    let Admitted { kind, incarnation, room, most } = match admitted {
        Ok(admitted) => admitted,
        Err(error) => {
            drain(body.into_data_stream());
            return Err(error.into());
        }
    };
    let arrival = service.arrivals.begin(format!("part {job} {generation} {member} {incarnation} {kind}"));
    let largest = match form {
        FileForm::Whole => u64::MAX,
        FileForm::Recipe => MAX_STORED,
    };
    let bounds = Bounds { most: room.min(largest), free: service.limits.free };
    let hash = Hash::Blake3(Box::default());
    let received = receive(&service.store.root, body, bounds, hash, &arrival).await?;
    let file = PartFile { kind, form, size, stored: received.length, packed: 0, digest: received.digest };
    file.check().map_err(|e| RepositoryError::Refused(e.to_string()))?;
    let staged = received.staged;
    let now = service.clock.now();
    let keep = move |store: &Store| {
        if form == FileForm::Recipe {
            let until = Instant::now() + READ_FOR;
            let packs = store.read_needs_back(&job, &staged, now, Some(until))?;
            if packs > 0 {
                return Ok((StatusCode::ACCEPTED, Json(Unread { packs })).into_response());
            }
        }
        Ok(Json(store.keep_file(&job, generation, (incarnation, member), &file, &staged, most)?).into_response())
    };
    Ok(service.blocking(keep).await?)
}

/// A file that may be sent, or what comes for it.
pub(super) struct Admitted {
    kind: FileKind,
    /// In whose name.
    pub(super) incarnation: Incarnation,
    /// Its most bytes, as things stand.
    pub(super) room: u64,
    /// Most bytes of the part it belongs to.
    pub(super) most: u64,
}

/// Whether the file may be sent, or what comes for it; `brings` unless it is only asked about.
pub(super) async fn admit(
    service: &Service,
    Peer(peer): &Peer,
    (job, generation, member, kind): (&JobUid, Generation, MemberIndex, FileKind),
    headers: &HeaderMap,
    brings: bool,
) -> Result<Admitted, RepositoryError> {
    let ticket = headers.get(TICKET).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let ticket =
        service.key.verify(ticket, service.clock.now()).map_err(|e| RepositoryError::Refused(e.to_string()))?;
    let incarnation = may_write_part(peer, &ticket, (job, generation, member)).map_err(RepositoryError::Refused)?;
    service.bearers.admit(&ticket, brings, service.clock.now()).map_err(RepositoryError::Refused)?;
    let most = ticket.most.unwrap_or(u64::MAX).min(service.limits.part);
    let (job, quota, now) = (job.clone(), ticket.quota, service.clock.now());
    let admit = move |store: &Store| {
        store.admit_part(&job, generation, incarnation)?;
        if let Some(share) = &quota {
            store.claim_share(&job, Origin { generation, incarnation, member, kind }, share, now)?;
        }
        store.room_in_part(&job, generation, (incarnation, member, kind), most)
    };
    Ok(Admitted { kind, incarnation, room: service.blocking(admit).await?, most })
}

pub(super) async fn send(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path((job, generation, member, kind)): FilePath,
    Query(DigestQuery { digest }): Query<DigestQuery>,
) -> Reply<Response> {
    let kind = kind_of(&kind)?;
    let wanted = job.clone();
    let open = move |store: &Store| store.open_file(&job, generation, member, kind, &digest);
    let file = service.run(&peer, Action::Restore(&wanted), open).await?;
    Ok(send_file(file)?)
}
