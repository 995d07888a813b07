//! Files of parts to and from the repository: as blocks that it lacks, and a recipe that says where all
//! of them are. Held in memory are a few packs and the recipe.

mod carry;
mod fetch;
mod kept;
mod last;
mod named;
mod packing;
mod plan;
mod send;
mod target;
mod whole;

pub use kept::Kept;
pub(super) use last::LastNamed;

use super::RepositoryError;
use crate::{
    names::{Generation, JobUid, MemberIndex},
    store::manifest::FileKind,
};

/// Which file of which part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Which<'a> {
    pub(super) job: &'a JobUid,
    pub(super) generation: Generation,
    pub(super) member: MemberIndex,
    pub(super) kind: FileKind,
}

/// Does work on files off the event loop.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, RepositoryError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(std::io::Error::other(error))).map_err(|error| RepositoryError::local(what, &error))
}

#[cfg(test)]
mod tests;
