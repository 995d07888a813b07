//! Where a member's output and files are found: in the repository once the job has kept them, at the
//! agent while the guest runs, else in the newest complete generation.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, future};
use tokio_util::io::ReaderStream;

use crate::{
    api::{BestEffortJob, JobPhase, job_status::MemberStatus},
    driver::{
        agent::{AgentAddress, Agents, NodeAgent},
        cluster::ClusterView,
        repository::{ByteStore, ByteStream, Repository, RepositoryError},
    },
    names::{JobUid, MemberIndex},
    store::manifest::FileKind,
};

/// Name in the repository of what a member's command has printed.
pub const PRINTED: &str = "output";

/// Why there is nothing to read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No such job, member or file.
    #[error("{0}")]
    NotFound(String),
    /// It exists, and cannot be read now.
    #[error("{0}")]
    Unavailable(String),
    /// Not as things are, and to try again without a change is of no use.
    #[error("{0}")]
    Refused(String),
}

/// Finds outputs.
pub struct Source {
    /// Jobs.
    pub view: Arc<dyn ClusterView>,
    /// What was kept.
    pub repository: Arc<dyn Repository>,
    /// Its bytes.
    pub store: Arc<dyn ByteStore>,
    /// Running guests.
    pub agents: Arc<dyn Agents>,
}

/// A piece of output.
pub struct Piece {
    /// The bytes.
    pub bytes: ByteStream,
    /// Whether nothing will ever follow.
    pub last: bool,
}

impl Source {
    /// The job, and whether it has such a member.
    pub fn job(&self, namespace: &str, name: &str, member: MemberIndex) -> Result<Arc<BestEffortJob>, SourceError> {
        let job = self
            .view
            .job(namespace, name)
            .ok_or_else(|| SourceError::NotFound(format!("besteffortjobs.vmdeploy.io {name:?} not found")))?;
        if member >= job.spec.members {
            let message = format!("{name} has the members 0 to {}, not {member}", job.spec.members.saturating_sub(1));
            return Err(SourceError::NotFound(message));
        }
        Ok(job)
    }

    /// The agent of a member whose VM there is.
    pub fn agent(&self, job: &BestEffortJob, member: MemberIndex) -> Result<Arc<dyn NodeAgent>, SourceError> {
        let phase = job.status.as_ref().map_or(JobPhase::Pending, |status| status.phase);
        let found = job.status.as_ref().and_then(|status| agent(&uid(job), status.members.get(member as usize)?));
        let address = found.ok_or_else(|| {
            let name = job.metadata.name.as_deref().unwrap_or_default();
            SourceError::Refused(format!("{name} is {phase:?}: it has no guests now"))
        })?;
        Ok(self.agents.agent(&address))
    }

    /// What the member's command has printed, from a byte on.
    pub async fn printed(&self, job: &BestEffortJob, member: MemberIndex, from: u64) -> Result<Piece, SourceError> {
        let uid = uid(job);
        match self.store.get_output(&uid, member, PRINTED).await {
            Ok(bytes) => return Ok(Piece { bytes: skip(bytes, from), last: true }),
            Err(RepositoryError::NotFound(_)) => {}
            Err(error) => return Err(SourceError::Unavailable(error.to_string())),
        }
        let ended = job.status.as_ref().is_some_and(|s| matches!(s.phase, JobPhase::Succeeded | JobPhase::Failed));
        if let Some(address) = job.status.as_ref().and_then(|s| agent(&uid, s.members.get(member as usize)?)) {
            match self.agents.agent(&address).output(from).await {
                Ok(bytes) => return Ok(Piece { bytes, last: false }),
                Err(error) => tracing::debug!(%error, job = %uid, member, "the agent does not show its output"),
            }
        }
        let bytes = match self.in_generation(job, &uid, member).await? {
            Some(bytes) => skip(bytes, from),
            None => futures::stream::empty().boxed(),
        };
        Ok(Piece { bytes, last: ended })
    }

    /// The output as it was when the newest complete generation was captured.
    async fn in_generation(
        &self,
        job: &BestEffortJob,
        uid: &JobUid,
        member: MemberIndex,
    ) -> Result<Option<ByteStream>, SourceError> {
        let unavailable = |error: &dyn std::fmt::Display| SourceError::Unavailable(error.to_string());
        let Some(generation) = job.status.as_ref().and_then(|s| s.snapshots.last_stored) else { return Ok(None) };
        let manifest = self.repository.manifest(uid, generation).await.map_err(|e| unavailable(&e))?;
        let part = manifest.members.iter().find(|part| part.index == member);
        let Some(file) = part.and_then(|part| part.files.iter().find(|file| file.kind == FileKind::Output)) else {
            return Ok(None);
        };
        let directory = tempfile::tempdir().map_err(|e| unavailable(&e))?;
        let path = directory.path().join("output");
        self.store.get_part(uid, generation, member, file, &path, &|_| {}).await.map_err(|e| unavailable(&e))?;
        // the open file outlives its directory
        let file = tokio::fs::File::open(&path).await.map_err(|e| unavailable(&e))?;
        Ok(Some(ReaderStream::new(file).boxed()))
    }

    /// A file that the member has kept.
    pub async fn file(&self, job: &BestEffortJob, member: MemberIndex, path: &str) -> Result<ByteStream, SourceError> {
        self.store.get_output(&uid(job), member, path).await.map_err(|error| match error {
            RepositoryError::NotFound(_) => SourceError::NotFound(format!(
                "member {member} has kept no {path}: files named by spec.outputs are kept when the job has ended"
            )),
            error => SourceError::Unavailable(error.to_string()),
        })
    }
}

fn uid(job: &BestEffortJob) -> JobUid {
    JobUid(job.metadata.uid.clone().unwrap_or_default())
}

fn agent(job: &JobUid, member: &MemberStatus) -> Option<AgentAddress> {
    let agent = member.agent.as_ref()?;
    let (member, incarnation) = (member.index, agent.incarnation);
    Some(AgentAddress { endpoint: agent.endpoint.parse().ok()?, job: job.clone(), member, incarnation })
}

/// A stream without its first bytes.
fn skip(bytes: ByteStream, count: u64) -> ByteStream {
    let mut left = usize::try_from(count).unwrap_or(usize::MAX);
    bytes
        .map_ok(move |mut chunk| {
            let cut = left.min(chunk.len());
            left -= cut;
            chunk.split_off(cut)
        })
        .try_filter(|chunk| future::ready(!chunk.is_empty()))
        .boxed()
}
