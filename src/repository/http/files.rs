//! Files of parts: in from agents with a ticket, out to who restores.

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, Query, State},
    http::HeaderMap,
    response::Response,
};

use super::{Reply, Service, send_file};
use crate::{
    driver::repository::{
        RepositoryError,
        wire::{DigestQuery, FileQuery, TICKET},
    },
    names::{Generation, Incarnation, JobUid, MemberIndex},
    repository::{
        access::{Action, may_write_part},
        receive::{Hash, drain, receive},
    },
    store::manifest::{FileKind, PartFile},
    tls::Peer,
};

type FilePath = Path<(JobUid, Generation, MemberIndex, String)>;

fn kind_of(name: &str) -> Result<FileKind, RepositoryError> {
    name.parse().map_err(|_| RepositoryError::NotFound("no such kind of file".into()))
}

pub(super) async fn receive_part(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path((job, generation, member, kind)): FilePath,
    Query(FileQuery { size }): Query<FileQuery>,
    headers: HeaderMap,
    body: Body,
) -> Reply<Json<PartFile>> {
    let admitted = admit(&service, &peer, &job, generation, member, &headers).await;
    let (kind, incarnation) = match (kind_of(&kind), admitted) {
        (Ok(kind), Ok(incarnation)) => (kind, incarnation),
        (Err(error), _) | (_, Err(error)) => {
            drain(body.into_data_stream());
            return Err(error.into());
        }
    };
    let hash = Hash::Blake3(Box::default());
    let received = receive(&service.store.root, body, service.limits.part, hash).await?;
    let file = PartFile { kind, size, stored: received.length, digest: received.digest };
    file.check().map_err(|e| RepositoryError::Refused(e.to_string()))?;
    let (kept, staged) = (file.clone(), received.staged);
    service.blocking(move |store| store.keep_file(&job, generation, incarnation, member, &kept, &staged)).await?;
    Ok(Json(file))
}

async fn admit(
    service: &Service,
    Peer(peer): &Peer,
    job: &JobUid,
    generation: Generation,
    member: MemberIndex,
    headers: &HeaderMap,
) -> Result<Incarnation, RepositoryError> {
    let ticket = headers.get(TICKET).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let ticket =
        service.key.verify(ticket, service.clock.now()).map_err(|e| RepositoryError::Refused(e.to_string()))?;
    let incarnation = may_write_part(peer, &ticket, (job, generation, member)).map_err(RepositoryError::Refused)?;
    let job = job.clone();
    service.blocking(move |store| store.admit_part(&job, generation, incarnation)).await?;
    Ok(incarnation)
}

pub(super) async fn send(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path((job, generation, member, kind)): FilePath,
    Query(DigestQuery { digest }): Query<DigestQuery>,
) -> Reply<Response> {
    let kind = kind_of(&kind)?;
    let wanted = job.clone();
    let open = move |store: &crate::repository::store::Store| store.open_file(&job, generation, member, kind, &digest);
    let file = service.run(&peer, Action::Restore(&wanted), open).await?;
    Ok(send_file(file).await?)
}
