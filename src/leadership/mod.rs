//! Leadership: one process of several does the work, by a Lease of Kubernetes.
//!
//! The number of the leadership's changes is the epoch that every order to agents and repository
//! carries, so that an old leader that wakes up late is refused by everybody (safety A9). Losing the
//! leadership is an error that ends the process: nothing may go on in the belief of leading.

mod evaluate;

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio_util::sync::CancellationToken;

use self::evaluate::{Observation, Step, evaluate, released};

/// How long a leader that is silent stays the leader.
const DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for this long gives up: before anybody else may take over.
const RENEW_LIMIT: Duration = Duration::from_secs(10);
/// Time between two tries.
const INTERVAL: Duration = Duration::from_secs(2);
/// Limit of one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(4);

/// Why the work ended.
#[derive(Debug, thiserror::Error)]
pub enum LeadershipError {
    /// Somebody else leads, or this process could not say in time that it still does.
    #[error("lost the leadership: {0}")]
    Lost(String),
    /// The work itself failed.
    #[error(transparent)]
    Work(#[from] anyhow::Error),
}

/// Which Lease, and who asks.
#[derive(Clone)]
pub struct Candidate {
    /// The cluster.
    pub client: Client,
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub lease: String,
    /// Name of this process, never used again by another one.
    pub identity: String,
}

impl Candidate {
    /// A candidate whose name nobody else has: the host's name and a random part.
    pub fn new(client: Client, namespace: &str, lease: &str) -> Self {
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| lease.into());
        let identity = format!("{host}_{:016x}", rand::random::<u64>());
        Self { client, namespace: namespace.into(), lease: lease.into(), identity }
    }

    /// Waits for the leadership, then does `work` with its epoch until the work ends, `stop` is
    /// cancelled or the leadership is lost. The token given to the work says that it should end; the
    /// leadership is kept until it has. When it is lost, the work is dropped where it stands.
    pub async fn lead<W>(
        self,
        stop: CancellationToken,
        work: impl FnOnce(u64, CancellationToken) -> W,
    ) -> Result<(), LeadershipError>
    where
        W: Future<Output = anyhow::Result<()>>,
    {
        let mut seen = None;
        let epoch = loop {
            match self.attempt(&mut seen).await {
                Ok(Some(epoch)) => break epoch,
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, lease = self.lease, "failed to ask for the leadership"),
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(INTERVAL) => {}
            }
        };
        tracing::info!(epoch, identity = self.identity, lease = self.lease, "leading");
        let work = work(epoch, stop.child_token());
        tokio::select! {
            result = work => {
                self.release().await;
                Ok(result?)
            }
            why = self.keep(epoch, seen) => Err(LeadershipError::Lost(why)),
        }
    }

    /// Renews until that fails for too long; says why.
    async fn keep(&self, epoch: u64, mut seen: Option<Observation>) -> String {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(INTERVAL).await;
            match self.attempt(&mut seen).await {
                Ok(Some(same)) if same == epoch => renewed = Instant::now(),
                Ok(Some(_) | None) => return "somebody else has it".into(),
                Err(error) if renewed.elapsed() > RENEW_LIMIT => return error,
                Err(error) => tracing::warn!(%error, lease = self.lease, "failed to renew the leadership"),
            }
        }
    }

    /// One try to get or renew the leadership: its epoch, if this process leads now.
    async fn attempt(&self, seen: &mut Option<Observation>) -> Result<Option<u64>, String> {
        tokio::time::timeout(REQUEST_LIMIT, self.exchange(seen))
            .await
            .map_err(|_| "the API server does not answer".to_owned())?
            .map_err(|error| error.to_string())
    }

    async fn exchange(&self, seen: &mut Option<Observation>) -> Result<Option<u64>, kube::Error> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = leases.get_opt(&self.lease).await?;
        let spec = found.as_ref().and_then(|lease| lease.spec.clone());
        let observation = Observation::of(spec, seen.take(), Instant::now());
        let step = evaluate(&observation, &self.identity, DURATION, Instant::now(), Timestamp::now());
        *seen = Some(observation);
        let (Step::Take(spec) | Step::Renew(spec)) = step else { return Ok(None) };
        let epoch = evaluate::epoch(&spec);
        let params = PostParams::default();
        let written = match found {
            Some(mut lease) => {
                lease.spec = Some(spec);
                // carries the resource version that was read: of two that try, one fails
                leases.replace(&self.lease, &params, &lease).await
            }
            None => {
                let metadata = ObjectMeta { name: Some(self.lease.clone()), ..ObjectMeta::default() };
                leases.create(&params, &Lease { metadata, spec: Some(spec) }).await
            }
        };
        match written {
            Ok(_) => Ok(Some(epoch)),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives the leadership up, so that the next one need not wait. Failing is no harm.
    async fn release(&self) {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let release = async {
            let mut lease = leases.get(&self.lease).await?;
            lease.spec = lease.spec.and_then(|spec| released(spec, &self.identity));
            if lease.spec.is_some() {
                leases.replace(&self.lease, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        if let Ok(Err(error)) = tokio::time::timeout(REQUEST_LIMIT, release).await {
            tracing::debug!(%error, "failed to give the leadership up");
        }
    }
}
