//! Does what was decided: what must be true before it is said, the status once, then the other effects
//! and the events. Decides nothing.

use kube::{Resource, runtime::controller::Action};

use super::{
    Context,
    decide::{Effect, Plan},
};
use crate::{
    api::{Reason, Snapshot},
    controller::note,
    driver::{
        DriverError, Retry,
        cluster::{ClusterError, Kind, kube::owned_part},
        repository::RepositoryError,
    },
};

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kubernetes.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

impl DriverError for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Cluster(error) => error.reason(),
            Self::Repository(error) => error.reason(),
        }
    }
    fn retry(&self) -> Retry {
        match self {
            Self::Cluster(error) => error.retry(),
            Self::Repository(error) => error.retry(),
        }
    }
}

/// Carries a plan out.
pub async fn act(plan: &Plan, snapshot: &Snapshot, context: &Context) -> Result<Action, Error> {
    let meta = &snapshot.metadata;
    let present = snapshot.status.clone().unwrap_or_default();
    for effect in &plan.effects {
        if let Effect::GiveUp { job, generation } = effect {
            context.repository.give_up(job, *generation).await?;
        }
    }
    if owned_part(&plan.status) != owned_part(&present) {
        tracing::info!(snapshot = meta.name, phase = ?plan.status.phase, why = plan.why, "status changes");
        context.cluster.apply_snapshot_status(meta, &plan.status).await?;
    }
    for effect in &plan.effects {
        tracing::info!(snapshot = meta.name, ?effect, why = plan.why, "effect");
        match effect {
            Effect::AddFinalizer => context.cluster.add_finalizer(Kind::Snapshot, meta).await?,
            Effect::RemoveFinalizer => context.cluster.remove_finalizer(Kind::Snapshot, meta).await?,
            Effect::Retire { job, generation } => context.repository.retire(job, *generation).await?,
            // done before the status said so
            Effect::GiveUp { .. } => {}
            Effect::RemoveContent { job } => context.repository.remove_job(job).await?,
        }
    }
    note::record(&*context.cluster, &snapshot.object_ref(&()), "Store", &plan.notes).await;
    Ok(plan.wake.map_or_else(Action::await_change, Action::requeue))
}
