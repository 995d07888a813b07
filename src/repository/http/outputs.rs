//! Results of jobs: in from the member's own agent, out to the operator.

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, Query, State},
    response::Response,
};

use super::{Reply, Service, open, send_file};
use crate::{
    driver::repository::{OutputSummary, RepositoryError, wire::OutputQuery},
    names::{Incarnation, JobUid, MemberIndex},
    repository::{
        access::{Action, may_write_output},
        durable::disk_error,
        receive::{Bounds, Hash, drain, receive},
        store::Store,
    },
    store::layout,
    tls::Peer,
};

pub(super) async fn receive_output(
    State(service): State<Service>,
    Extension(Peer(peer)): Extension<Peer>,
    Path((job, member)): Path<(JobUid, MemberIndex)>,
    Query(OutputQuery { path }): Query<OutputQuery>,
    body: Body,
) -> Reply<()> {
    let admitted = match may_write_output(&peer, (&job, member)) {
        Ok(incarnation) => admit(&service, &job, member, &path, incarnation).await,
        Err(why) => Err(RepositoryError::Refused(why)),
    };
    let (incarnation, most) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => {
            drain(body.into_data_stream());
            return Err(error.into());
        }
    };
    // a member sends its files one after the other
    let arrival = service.arrivals.begin(format!("output {job} {member} {incarnation}"));
    let bounds = Bounds { most, free: service.limits.free };
    let received = receive(&service.store.root, body, bounds, Hash::None, &arrival).await?;
    let limits = service.limits;
    let keep = move |store: &Store| store.keep_output(&job, incarnation, member, &path, &received, &limits);
    Ok(service.blocking(keep).await?)
}

/// The incarnation in whose name the file is kept, and its most bytes.
async fn admit(
    service: &Service,
    job: &JobUid,
    member: MemberIndex,
    path: &str,
    incarnation: Incarnation,
) -> Result<(Incarnation, u64), RepositoryError> {
    let (job, path, limits) = (job.clone(), path.to_owned(), service.limits);
    let room = move |store: &Store| {
        layout::output_name(member, &path)?;
        store.check_writable(&job, incarnation)?;
        store.room_for_output(&job, member, &path, &limits)
    };
    Ok((incarnation, service.blocking(room).await?))
}

pub(super) async fn send(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path((job, member)): Path<(JobUid, MemberIndex)>,
    Query(OutputQuery { path }): Query<OutputQuery>,
) -> Reply<Response> {
    let below = layout::outputs(&job)?.join(layout::output_name(member, &path)?);
    let file = service.run(&peer, Action::ReadOutput, move |store| open(store, &below, &path)).await?;
    Ok(send_file(file)?)
}

pub(super) async fn list(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Path(job): Path<JobUid>,
) -> Reply<Json<Vec<OutputSummary>>> {
    let kept = move |store: &Store| {
        let directory = layout::outputs(&job)?;
        let mut kept = Vec::new();
        for name in store.root.list(&directory).map_err(|e| disk_error(&e))? {
            let Some((member, path)) = layout::parse_output_name(&name) else { continue };
            let found = store.root.found(&directory.join(&name)).map_err(|e| disk_error(&e))?;
            kept.extend(found.map(|found| OutputSummary { member, path, size: found.len() }));
        }
        kept.sort_by(|a, b| (a.member, &a.path).cmp(&(b.member, &b.path)));
        Ok(kept)
    };
    Ok(Json(service.run(&peer, Action::ReadOutput, kept).await?))
}
