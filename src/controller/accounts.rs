//! Keeps the Secrets whose accounts hold slots (safety C4).
//!
//! When a namespace is deleted, its Secrets may go before its jobs; without the account nothing could
//! be given back. So a Secret has our finalizer from a job's first request for slots until no job
//! holds any with it. Only Secrets that jobs name are touched, and nothing is asked for again while
//! nothing changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    api::{BestEffortJob, job_status::SlotState},
    driver::cluster::{Cluster, ClusterError, ClusterView, Kind},
};

/// Time between two looks at what the watches have brought.
const INTERVAL: Duration = Duration::from_secs(1);
/// Looks without another try after a failure.
const PAUSE: u32 = 30;

/// Namespace and name of a Secret.
type Key = (String, String);

/// Keeps and releases Secrets until told to stop. `jobs` is what the watch has brought.
pub async fn keep(
    jobs: impl Fn() -> Vec<Arc<BestEffortJob>>,
    view: Arc<dyn ClusterView>,
    cluster: Arc<dyn Cluster>,
    stop: CancellationToken,
) {
    let mut keeper = Keeper::default();
    loop {
        keeper.pass(&jobs(), &*view, &*cluster).await;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// What is known of the Secrets.
#[derive(Default)]
struct Keeper {
    /// Whether a Secret has our finalizer.
    kept: BTreeMap<Key, bool>,
    /// Looks to wait after a failure.
    paused: BTreeMap<Key, u32>,
}

impl Keeper {
    async fn pass(&mut self, jobs: &[Arc<BestEffortJob>], view: &dyn ClusterView, cluster: &dyn Cluster) {
        let (named, used) = accounts(jobs);
        // a job that cannot be read may hold slots
        let sure = |(key, keep): &(Key, bool)| *keep || view.has_all_jobs(&key.0);
        for (key, keep) in changes(&named, &used, &self.kept).into_iter().filter(sure) {
            match self.paused.get_mut(&key) {
                Some(looks @ 1..) => *looks -= 1,
                _ => match change(&key, keep, view, cluster).await {
                    Ok(()) => {
                        self.paused.remove(&key);
                        self.kept.insert(key, keep);
                    }
                    Err(error) => {
                        let (namespace, name) = &key;
                        tracing::warn!(%error, namespace, name, keep, "failed to keep or release the Secret of an account");
                        self.paused.insert(key, PAUSE);
                    }
                },
            }
        }
        // what nobody names and nothing keeps is forgotten
        self.kept.retain(|key, kept| *kept || named.contains(key));
        self.paused.retain(|key, _| named.contains(key) || self.kept.contains_key(key));
    }
}

/// Makes a Secret be kept or not. One that is gone needs neither.
async fn change(key: &Key, keep: bool, view: &dyn ClusterView, cluster: &dyn Cluster) -> Result<(), ClusterError> {
    let Some(secret) = view.secret(&key.0, &key.1).await? else { return Ok(()) };
    if !keep {
        return cluster.remove_finalizer(Kind::Secret, &secret.metadata).await;
    }
    if secret.metadata.deletion_timestamp.is_some() {
        // too late: nothing new can hold an object that is on its way out
        return Ok(());
    }
    cluster.add_finalizer(Kind::Secret, &secret.metadata).await
}

/// The Secrets that jobs name, and those whose account may hold slots.
fn accounts(jobs: &[Arc<BestEffortJob>]) -> (BTreeSet<Key>, BTreeSet<Key>) {
    let (mut named, mut used) = (BTreeSet::new(), BTreeSet::new());
    for job in jobs {
        let Some(secret) = &job.spec.slots.credentials else { continue };
        let key = (job.metadata.namespace.clone().unwrap_or_default(), secret.name.clone());
        if holds(job) {
            used.insert(key.clone());
        }
        named.insert(key);
    }
    (named, used)
}

/// Whether a job has anything at its site, or may have.
fn holds(job: &BestEffortJob) -> bool {
    job.status.as_ref().is_some_and(|status| {
        status.pending_submission.is_some() || status.slots.iter().any(|slot| slot.state != SlotState::Ended)
    })
}

/// What to change. What is not known yet may have been kept by an earlier process.
fn changes(named: &BTreeSet<Key>, used: &BTreeSet<Key>, kept: &BTreeMap<Key, bool>) -> Vec<(Key, bool)> {
    let all: BTreeSet<&Key> = named.iter().chain(kept.keys()).collect();
    all.into_iter()
        .filter(|key| kept.get(*key) != Some(&used.contains(*key)))
        .map(|key| (key.clone(), used.contains(key)))
        .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Secret;
    use serde_json::{Value, json};

    use super::*;
    use crate::{api::FINALIZER, clock::Clock, driver::cluster::fake::FakeCluster};

    fn job(name: &str, status: Value) -> Arc<BestEffortJob> {
        let job = json!({
            "apiVersion": "vmdeploy.io/v1alpha1", "kind": "BestEffortJob",
            "metadata": {"name": name, "namespace": "team"},
            "spec": {"run": {"command": ["pi"]},
                "slots": {"site": "rennes", "walltime": "2h", "credentials": {"name": "oar-alice"}}},
            "status": status,
        });
        Arc::new(serde_json::from_value(job).unwrap())
    }

    fn slot(state: &str) -> Value {
        json!({"slots": [{"id": "1", "submission": 1, "state": state}]})
    }

    fn pending() -> Value {
        json!({"pendingSubmission": {"number": 1, "since": "2026-11-25T12:00:00Z"}})
    }

    fn world() -> FakeCluster {
        let cluster = FakeCluster::new(Clock::system());
        let mut secret = Secret::default();
        secret.metadata.namespace = Some("team".into());
        secret.metadata.name = Some("oar-alice".into());
        cluster.put_secret(secret);
        cluster
    }

    async fn is_kept(cluster: &FakeCluster) -> bool {
        let secret = cluster.secret("team", "oar-alice").await.unwrap().unwrap();
        secret.metadata.finalizers.is_some_and(|all| all.iter().any(|f| f == FINALIZER))
    }

    #[tokio::test]
    async fn c4_a_used_secret_is_kept_until_the_slots_are_gone() {
        let (cluster, mut keeper) = (world(), Keeper::default());
        for (jobs, kept) in [
            (vec![job("a", json!({}))], false),
            (vec![job("a", pending())], true),
            (vec![job("a", slot("Running"))], true),
            (vec![job("a", slot("Ended")), job("b", slot("Waiting"))], true),
            (vec![job("a", slot("Ended")), job("b", slot("Ending"))], true),
            (vec![job("a", slot("Ended"))], false),
        ] {
            keeper.pass(&jobs, &cluster, &cluster).await;
            assert_eq!(is_kept(&cluster).await, kept, "{:?}", jobs[0].status);
        }
    }

    #[tokio::test]
    async fn c4_a_new_operator_releases_what_the_old_one_kept() {
        let cluster = world();
        Keeper::default().pass(&[job("a", slot("Running"))], &cluster, &cluster).await;
        let mut next = Keeper::default();
        next.pass(&[job("a", slot("Ended"))], &cluster, &cluster).await;
        assert!(!is_kept(&cluster).await);
    }

    #[tokio::test]
    async fn c4_a_secret_is_released_when_its_job_is_gone() {
        let (cluster, mut keeper) = (world(), Keeper::default());
        keeper.pass(&[job("a", slot("Running"))], &cluster, &cluster).await;
        keeper.pass(&[], &cluster, &cluster).await;
        assert!(!is_kept(&cluster).await);
        assert!(keeper.kept.is_empty() && keeper.paused.is_empty());
    }

    #[tokio::test]
    async fn c4_a_job_that_cannot_be_read_keeps_the_secrets_of_its_namespace() {
        let (cluster, mut keeper) = (world(), Keeper::default());
        keeper.pass(&[job("a", slot("Running"))], &cluster, &cluster).await;
        cluster.set_unread(Kind::Job, "team", "a", true);
        keeper.pass(&[], &cluster, &cluster).await;
        assert!(is_kept(&cluster).await);
        cluster.set_unread(Kind::Job, "team", "a", false);
        keeper.pass(&[], &cluster, &cluster).await;
        assert!(!is_kept(&cluster).await);
    }

    #[tokio::test]
    async fn nothing_is_written_while_nothing_changes() {
        let (cluster, mut keeper) = (world(), Keeper::default());
        let jobs = [job("a", slot("Running"))];
        keeper.pass(&jobs, &cluster, &cluster).await;
        let writes = cluster.writes();
        for _ in 0..5 {
            keeper.pass(&jobs, &cluster, &cluster).await;
        }
        assert_eq!(cluster.writes(), writes);
    }
}
