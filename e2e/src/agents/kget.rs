//! kget's own controller over the agents: what it sees of Kubernetes is in memory.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use kube::core::ObjectMeta;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use vmdeploy::{
    api::{
        BestEffortJob, BestEffortJobStatus, LABEL_JOB_UID, Snapshot, SnapshotSpec, SnapshotStatus,
        snapshot::{SnapshotMember, SnapshotPhase, SnapshotReason, Transfer, TransferState},
    },
    clock::Clock,
    controller::transfer::{self, Context},
    driver::{
        agent::http::AgentsHttp,
        cluster::{Cluster as _, ClusterView as _, fake::FakeCluster},
        repository::Repository as _,
    },
    names::{Generation, Identity},
    store::{manifest::Manifest, ticket::TicketKey},
};

use super::{Agent, JOB, LIMIT, SECRET, World, endpoint, issue};
use crate::testbed::until;

impl World {
    /// Has kget take a generation to the repository that was captured for this reason. What it says of the transfer,
    /// and the generation.
    pub async fn transfer(
        &self,
        agents: &[Agent],
        generation: Generation,
        reason: SnapshotReason,
    ) -> Result<(Transfer, Manifest)> {
        let board = self.board(agents, generation, reason).await?;
        let own = issue(&self.certificates, &Identity::Kget)?;
        let repository = Arc::new(self.repository(&Identity::Kget)?);
        let key = TicketKey::new(SECRET).context("the secret is too short")?;
        let (agents, changed) = (Arc::new(AgentsHttp::new(own, None)), Arc::new(Notify::new()));
        let (kube, ledger) = (Arc::new(board.clone()), repository.clone());
        let context = Context::new(1, Clock::system(), kube, agents, repository.clone(), ledger, key, changed);
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        tokio::spawn(transfer::run(Arc::new(context), stop));
        let transfer = until("the end of the transfer", LIMIT, async || {
            let all = board.all_snapshots();
            let found = all.into_iter().find_map(|snapshot| snapshot.status?.transfer).unwrap_or_default();
            let over = matches!(found.state, TransferState::Published | TransferState::Failed);
            Ok(over.then_some(found))
        });
        let transfer = transfer.await?;
        ensure!(transfer.state == TransferState::Published, "{transfer:?}");
        Ok((transfer, repository.manifest(&JOB.into(), generation).await?))
    }

    /// The job and its snapshot, as the operator leaves them to kget.
    async fn board(&self, agents: &[Agent], generation: Generation, reason: SnapshotReason) -> Result<FakeCluster> {
        let board = FakeCluster::new(Clock::system());
        let meta = |name: String| ObjectMeta {
            name: Some(name),
            namespace: Some("default".into()),
            labels: Some([(LABEL_JOB_UID.to_owned(), JOB.to_owned())].into()),
            ..ObjectMeta::default()
        };
        let spec = serde_json::json!({
            "members": agents.len(), "vm": {"memory": self.guests.memory}, "run": {"command": ["true"]},
            "slots": {"site": "none", "walltime": "1h"},
        });
        let mut job = BestEffortJob::new("job", serde_json::from_value(spec)?);
        job.metadata = ObjectMeta { uid: Some(JOB.into()), ..meta("job".into()) };
        board.put_job(job);
        let job = board.job("default", "job").context("the job is gone")?;
        let status = BestEffortJobStatus { image: Some(self.image.clone()), ..BestEffortJobStatus::default() };
        board.patch_job_status(&job.metadata, &status).await?;
        let incarnation = agents.first().context("no members")?.authority.incarnation;
        let spec = SnapshotSpec { job: "job".into(), reason, retain: false };
        let snapshot = Snapshot { metadata: meta(format!("job-{generation}")), spec, status: None };
        board.create_snapshot(&snapshot).await?;
        let member = |agent: &Agent| {
            let endpoint = endpoint(agent.member, incarnation)?.to_string();
            Ok(SnapshotMember { index: agent.member, endpoint, ..SnapshotMember::default() })
        };
        let status = SnapshotStatus {
            generation: Some(generation),
            phase: SnapshotPhase::Captured,
            incarnation,
            job_uid: JOB.into(),
            members: agents.iter().map(member).collect::<Result<_>>()?,
            ..SnapshotStatus::default()
        };
        board.apply_snapshot_status(&snapshot.metadata, &status).await?;
        Ok(board)
    }
}
