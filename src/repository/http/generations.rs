//! Requests about a job and its generations.

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State},
};

use super::{Failure, Reply, Service};
use crate::{
    driver::repository::{GenerationSummary, JobContent, JobUsage, KeptPart, RepositoryError, wire::FenceOrder},
    names::{Generation, Identity, JobUid},
    repository::{access::Action, store::Store},
    store::{adoption::Adoption, manifest::Manifest},
    tls::Peer,
};

pub(super) async fn content(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path(job): Path<JobUid>,
) -> Reply<Json<JobContent>> {
    Ok(Json(service.run(&peer, Action::Look, move |store| store.content(&job)).await?))
}

pub(super) async fn usage(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
) -> Reply<Json<Vec<JobUsage>>> {
    let now = service.clock.now();
    Ok(Json(service.run(&peer, Action::Look, move |store| store.usage(now)).await?))
}

pub(super) async fn remove(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path(job): Path<JobUid>,
) -> Reply<()> {
    let now = service.clock.now();
    Ok(service.run(&peer, Action::Rule, move |store| store.remove_job(&job, now)).await?)
}

pub(super) async fn fence(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path(job): Path<JobUid>,
    Json(order): Json<FenceOrder>,
) -> Reply<()> {
    let fenced = job.clone();
    service.run(&peer, Action::Rule, move |store| store.fence(&fenced, order.incarnation)).await?;
    service.collect_soon(job);
    Ok(())
}

pub(super) async fn manifest(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path((job, generation)): Path<(JobUid, Generation)>,
) -> Reply<Json<Manifest>> {
    let wanted = job.clone();
    let action = Action::Restore(&wanted);
    // an agent asks now and then: so it learns that a newer incarnation has taken its place
    let incarnation = match peer.0 {
        Identity::Agent { incarnation, .. } => Some(incarnation),
        Identity::Operator | Identity::Kget | Identity::Repository | Identity::Importer | Identity::Launcher => None,
    };
    let read = move |store: &Store| {
        if let Some(incarnation) = incarnation {
            store.check_writable(&job, incarnation)?;
        }
        store.manifest(&job, generation)
    };
    Ok(Json(service.run(&peer, action, read).await?))
}

pub(super) async fn publish(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path((job, generation)): Path<(JobUid, Generation)>,
    body: Bytes,
) -> Reply<Json<GenerationSummary>> {
    let manifest = Manifest::parse(&body).map_err(|e| RepositoryError::Refused(e.to_string()))?;
    if (&manifest.job, manifest.generation) != (&job, generation) {
        return Err(Failure(RepositoryError::Refused("the manifest is of another generation".into())));
    }
    let now = service.clock.now();
    Ok(Json(service.run(&peer, Action::Publish, move |store| store.publish(&manifest, now)).await?))
}

pub(super) async fn adopt(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path(job): Path<JobUid>,
    Json(order): Json<Adoption>,
) -> Reply<Json<GenerationSummary>> {
    let (now, free) = (service.clock.now(), service.limits.free);
    Ok(Json(service.run(&peer, Action::Rule, move |store| store.adopt(&job, &order, free, now)).await?))
}

pub(super) async fn retire(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path((job, generation)): Path<(JobUid, Generation)>,
) -> Reply<()> {
    let of = job.clone();
    service.run(&peer, Action::Rule, move |store| store.retire(&of, generation)).await?;
    service.collect_soon(job);
    Ok(())
}

pub(super) async fn give_up(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path((job, generation)): Path<(JobUid, Generation)>,
) -> Reply<()> {
    let of = job.clone();
    service.run(&peer, Action::Rule, move |store| store.give_up(&of, generation)).await?;
    service.collect_soon(job);
    Ok(())
}

pub(super) async fn keep_part(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path((job, generation)): Path<(JobUid, Generation)>,
    Json(kept): Json<KeptPart>,
) -> Reply<()> {
    Ok(service.run(&peer, Action::Publish, move |store| store.keep_part(&job, generation, &kept)).await?)
}

pub(super) async fn kept_parts(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path((job, generation)): Path<(JobUid, Generation)>,
) -> Reply<Json<Vec<KeptPart>>> {
    Ok(Json(service.run(&peer, Action::Look, move |store| store.kept_parts(&job, generation)).await?))
}
