//! Where another member's bytes come in: at the same addresses as at the repository, and only what that member's own
//! agent sends for which kget has made room (safety D1). A pack has its name only when it is on the disk and its frames
//! are what its index says; a file is acknowledged once its recipe is, which comes after its packs.

use std::{io::Write as _, path::Path, sync::Arc};

use axum::{
    Extension, Json, Router,
    body::{Body, Bytes},
    extract::{Path as At, Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::put,
};

use super::super::{Supervisor, upload::KINDS, view::Facts};
use crate::{
    driver::repository::{
        RepositoryError,
        wire::{ErrorReply, FileQuery, PROTOCOL, VERSION},
    },
    names::{Generation, Identity, JobUid, MemberIndex},
    store::{
        manifest::{FileForm, FileKind, PartFile},
        pack::{self, PackName},
        recipe,
    },
    tls::Peer,
};

/// The addresses.
pub(in super::super) fn routes() -> Router<Arc<Supervisor>> {
    const FILE: &str = "/v1/jobs/{job}/generations/{generation}/members/{member}/files/{kind}";
    Router::new().route(FILE, put(take_recipe)).route(&format!("{FILE}/packs/{{pack}}"), put(take_pack))
}

/// All of a body, once it is known who sends it.
async fn whole(body: Body, most: usize) -> Result<Bytes, RepositoryError> {
    axum::body::to_bytes(body, most).await.or_else(refused)
}

fn reply<T>(result: Result<T, RepositoryError>, good: impl FnOnce(T) -> Response) -> Response {
    let mut reply = match result {
        Ok(value) => good(value),
        Err(error) => {
            let reply = ErrorReply::from(error);
            (reply.status(), Json(reply)).into_response()
        }
    };
    reply.headers_mut().insert(PROTOCOL, VERSION.into());
    reply
}

fn refused<T>(why: impl ToString) -> Result<T, RepositoryError> {
    Err(RepositoryError::Refused(why.to_string()))
}

/// A file of a part that may come in.
#[derive(Clone, Copy)]
struct Coming {
    generation: Generation,
    member: MemberIndex,
    kind: FileKind,
}

async fn take_pack(
    State(own): State<Arc<Supervisor>>,
    Extension(peer): Extension<Peer>,
    At((job, generation, member, kind, pack)): At<(JobUid, Generation, MemberIndex, String, String)>,
    body: Body,
) -> Response {
    let taken = async {
        let coming = own.admit_to_shelf(&peer, &job, generation, member, &kind)?;
        let name: PackName = pack.parse().or_else(refused)?;
        let body = whole(body, pack::MAX_STORED).await?;
        pack::check_whole(name, &body).map_err(|error| RepositoryError::Damaged(format!("pack {name}: {error}")))?;
        own.put_pack(coming, name, body).await
    };
    reply(taken.await, |()| StatusCode::NO_CONTENT.into_response())
}

async fn take_recipe(
    State(own): State<Arc<Supervisor>>,
    Extension(peer): Extension<Peer>,
    At((job, generation, member, kind)): At<(JobUid, Generation, MemberIndex, String)>,
    Query(FileQuery { size, form }): Query<FileQuery>,
    body: Body,
) -> Response {
    let taken = async {
        let coming = own.admit_to_shelf(&peer, &job, generation, member, &kind)?;
        if form != FileForm::Recipe {
            return refused("only recipes are taken here");
        }
        let most = usize::try_from(recipe::MAX_STORED).unwrap_or(usize::MAX);
        own.put_recipe(coming, size, whole(body, most).await?).await
    };
    reply(taken.await, |file| Json(file).into_response())
}

/// Writes a file that has its name only when it is on the disk.
async fn store(path: std::path::PathBuf, body: Bytes) -> Result<(), RepositoryError> {
    let written = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || write(&path, &body)).await
    };
    let written = written.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    written.map_err(|error| match RepositoryError::local(path.display(), &error) {
        RepositoryError::Local { why, full: true } => RepositoryError::Full(why),
        error => error,
    })
}

fn write(path: &Path, body: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    // nobody else may read it: memory images hold secrets
    let mut file = tempfile::Builder::new().prefix("coming.").tempfile_in(directory)?;
    file.write_all(body)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    std::fs::File::open(directory)?.sync_all()
}

impl Supervisor {
    fn admit_to_shelf(
        &self,
        Peer(peer): &Peer,
        job: &JobUid,
        generation: Generation,
        member: MemberIndex,
        kind: &str,
    ) -> Result<Coming, RepositoryError> {
        let (own, incarnation) = (&self.config.job, self.config.incarnation);
        if job != own || *peer != (Identity::Agent { job: own.clone(), member, incarnation }) {
            return refused(format!("{peer} sends no part of member {member} here"));
        }
        let kind = kind.parse().or_else(|_| refused("no such kind of file"))?;
        if self.view.read(Facts::ends) {
            return refused("this agent leaves its node, or has lost its VM");
        }
        match self.of_held(generation, member, |held| held.state.whole) {
            Some(false) => Ok(Coming { generation, member, kind }),
            Some(true) => refused("the part is here already"),
            None => refused(format!("kget has made no room here for member {member} in generation {generation}")),
        }
    }

    /// Counts bytes that are about to come.
    fn count_in(&self, coming: Coming, bytes: u64) -> Result<(), RepositoryError> {
        let counted = self.of_held(coming.generation, coming.member, |held| {
            if held.to_come() < bytes {
                return Err(RepositoryError::Full(format!("room was made for {} bytes of it", held.reserved)));
            }
            held.state.stored += bytes;
            Ok(())
        });
        counted.unwrap_or_else(|| refused("the part is not taken any more"))
    }

    async fn put_pack(&self, coming: Coming, name: PackName, body: Bytes) -> Result<(), RepositoryError> {
        let Coming { generation, member, kind } = coming;
        let has = |held: &mut super::Held| held.packs.get(&kind).is_some_and(|packs| packs.contains(&name));
        if self.of_held(generation, member, has) == Some(true) {
            return Ok(());
        }
        self.count_in(coming, body.len() as u64)?;
        store(self.held_path(generation, member, &format!("{kind}.{name}")), body).await?;
        self.of_held(generation, member, |held| held.packs.entry(kind).or_default().insert(name));
        Ok(())
    }

    async fn put_recipe(self: &Arc<Self>, coming: Coming, size: u64, body: Bytes) -> Result<PartFile, RepositoryError> {
        let Coming { generation, member, kind } = coming;
        let stored = body.len() as u64;
        let digest = blake3::hash(&body).to_string();
        let file = PartFile { kind, form: FileForm::Recipe, size, stored, packed: 0, digest };
        file.check().or_else(refused)?;
        self.count_in(coming, stored)?;
        store(self.held_path(generation, member, &format!("{kind}.recipe")), body).await?;
        let whole = self.of_held(generation, member, |held| {
            held.files.insert(kind, file.clone());
            held.state.whole = KINDS.iter().all(|kind| held.files.contains_key(kind));
            held.state.size = held.files.values().map(|file| file.size).sum();
            held.state.whole
        });
        if whole == Some(true) {
            tracing::info!(generation, member, "holds the part of another member");
            self.bring_soon(generation, member);
        }
        Ok(file)
    }
}
