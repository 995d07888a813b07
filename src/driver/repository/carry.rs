//! Parts that do not go to the repository straight: an agent whose turn is far gives its own to another one of the same
//! job, the collector, which brings it there later.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;

use super::{ByteStore, RepositoryError, pace::Pace};
use crate::{
    driver::agent::AgentAddress,
    names::{Generation, JobUid, MemberIndex},
    store::{manifest::PartFile, pack::PackName},
};

/// A file of another member's part, as a collector holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldFile {
    /// What was acknowledged to the member.
    pub file: PartFile,
    /// Where its recipe is, as it goes to the repository.
    pub recipe: PathBuf,
    /// The packs that came for it and are not known to be in the repository.
    pub packs: Vec<(PackName, PathBuf)>,
}

/// Is told of each pack that the repository has got.
pub type Brought<'a> = &'a (dyn Fn(PackName) + Send + Sync);

fn no_way<T>() -> Result<T, RepositoryError> {
    Err(RepositoryError::Refused("parts of others cannot be carried here".into()))
}

/// What sender and collector need of the repository. One that cannot do it refuses, and nothing is carried.
#[async_trait]
pub trait Carrying: Send + Sync {
    /// The same repository; but packs and recipes go to this collector.
    fn through(&self, _collector: &AgentAddress) -> Result<Arc<dyn ByteStore>, RepositoryError> {
        no_way()
    }

    /// Whether the repository would take this member's part from us.
    async fn may_bring(
        &self,
        _ticket: &str,
        _job: &JobUid,
        _generation: Generation,
        _member: MemberIndex,
    ) -> Result<(), RepositoryError> {
        no_way()
    }

    /// Brings a file that is held for a member; at the pace given.
    async fn bring(
        &self,
        _ticket: &str,
        _whose: (&JobUid, Generation, MemberIndex),
        _held: &HeldFile,
        _pace: &Arc<Pace>,
        _brought: Brought<'_>,
    ) -> Result<PartFile, RepositoryError> {
        no_way()
    }
}
