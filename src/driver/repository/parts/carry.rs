//! The two ends of a part that another agent carries: sent to a collector instead of the repository, and brought from
//! there. What is asked of the repository, it is asked straight.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};

use super::{
    super::{
        ByteStore, RepositoryError,
        carry::{Brought, Carrying, HeldFile},
        http::HttpRepository,
        pace::Pace,
        streams::local,
    },
    Which,
    send::SENT,
};
use crate::{
    driver::agent::AgentAddress,
    names::{Generation, Identity, JobUid, MemberIndex},
    store::{
        manifest::{FileKind, PartFile},
        pack::{BlockName, PackName},
    },
    tls::base_url,
};

/// No block has this name.
const NO_BLOCK: BlockName = BlockName([0xff; 32]);

async fn read(path: &Path) -> Result<Bytes, RepositoryError> {
    tokio::fs::read(path).await.map(Bytes::from).map_err(|error| local(path, &error))
}

#[async_trait]
impl Carrying for HttpRepository {
    fn through(&self, collector: &AgentAddress) -> Result<Arc<dyn ByteStore>, RepositoryError> {
        let AgentAddress { endpoint, job, member, incarnation } = collector;
        let peer = Identity::Agent { job: job.clone(), member: *member, incarnation: *incarnation };
        let client = self.credentials.http_client(&peer, &endpoint.to_string());
        let client = client.map_err(|error| RepositoryError::Refused(error.to_string()))?;
        Ok(Arc::new(self.clone().delivering(client, base_url(&peer))))
    }

    async fn may_bring(
        &self,
        ticket: &str,
        job: &JobUid,
        generation: Generation,
        member: MemberIndex,
    ) -> Result<(), RepositoryError> {
        let which = Which { job, generation, member, kind: FileKind::Memory };
        let refused = || RepositoryError::Refused("the repository is of an earlier version".into());
        self.find_blocks(ticket, which, &[NO_BLOCK]).await?.map(drop).ok_or_else(refused)
    }

    async fn bring(
        &self,
        ticket: &str,
        (job, generation, member): (&JobUid, Generation, MemberIndex),
        held: &HeldFile,
        pace: &Arc<Pace>,
        brought: Brought<'_>,
    ) -> Result<PartFile, RepositoryError> {
        let own = self.clone().at(pace.clone());
        let which = Which { job, generation, member, kind: held.file.kind };
        let send = async |(name, path): &(PackName, std::path::PathBuf)| {
            own.send_pack(ticket, which, *name, read(path).await?).await?;
            brought(*name);
            Ok::<_, RepositoryError>(())
        };
        futures::stream::iter(&held.packs).map(send).buffered(SENT).try_collect::<()>().await?;
        own.offer_recipe(ticket, which, &held.file, read(&held.recipe).await?, &|_| {}).await
    }
}
