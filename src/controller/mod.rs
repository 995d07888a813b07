//! The runner that every controller uses: watch, wake-ups from outside, back-off, metrics, shutdown.
//!
//! A controller is a function from an object to [`Action`] or an error; it is called again when the
//! object or something it owns changes (its own status included, so that a pass that only wrote the
//! status is followed by one that sees it), when somebody wakes the object, when the time it asked
//! for has come, and after an error. Waiting is not an error. No policy of any kind of object may be
//! here.

mod account;
pub mod accounts;
pub mod agents;
pub mod image;
pub mod job;
pub mod join;
pub mod note;
pub mod served;
pub mod snapshot;
pub mod transfer;
pub mod wake;

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, StreamExt};
use kube::{
    Resource, ResourceExt,
    runtime::{
        controller::{Action, Config, Error as RunError, applier},
        reflector::{ObjectRef, Store},
    },
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use self::wake::Wakes;
use crate::{
    backoff::Backoff,
    driver::{DriverError, Retry},
    metrics::{Failure, Metrics},
};

/// What a controlled kind must be.
pub trait Object: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static {}
impl<K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static> Object for K {}

/// How a controller runs.
#[derive(Clone)]
pub struct Runner {
    /// Where reconciles are counted.
    pub metrics: Metrics,
    /// Ends the controller; passes that have begun are finished first.
    pub stop: CancellationToken,
    /// Passes at the same time; never two of the same object.
    pub concurrency: u16,
    /// Changes within this time are one change.
    pub debounce: Duration,
}

impl Runner {
    /// Runs a controller of kind `K` until it is told to stop. `reconcile` is one pass. The objects
    /// are those of the store that everybody reads, so that each is in memory once; who fills it also
    /// wakes what has changed.
    pub async fn run<K, C, E, F>(
        self,
        wakes: Wakes<K>,
        objects: Store<K>,
        context: Arc<C>,
        reconcile: impl Fn(Arc<K>, Arc<C>) -> F + Send + Sync + 'static,
    ) where
        K: Object,
        C: Send + Sync + 'static,
        E: DriverError + Send + Sync + 'static,
        F: Future<Output = Result<Action, E>> + Send + 'static,
    {
        let kind = K::kind(&()).into_owned();
        let Self { metrics, stop, concurrency, debounce } = self;
        let (woken, index) = wakes.into_stream();
        let woken = woken.map(Ok::<_, Infallible>).take_until(async move { stop.cancelled().await });
        let failures = Arc::new(Failures::<K>::default());
        let pass = {
            let (failures, index, metrics, kind) = (failures.clone(), index.clone(), metrics.clone(), kind.clone());
            move |object: Arc<K>, context: Arc<C>| {
                index.known(&object);
                let work = reconcile(object.clone(), context);
                let (failures, metrics, kind) = (failures.clone(), metrics.clone(), kind.clone());
                async move {
                    let begun = Instant::now();
                    let result = work.await;
                    metrics.reconcile.get_or_create(&kind.as_str().into()).observe(begun.elapsed().as_secs_f64());
                    match &result {
                        Ok(_) => failures.forget(&ObjectRef::from_obj(&*object)),
                        Err(error) => {
                            let failure = Failure { kind, reason: error.reason().name() };
                            metrics.reconcile_failures.get_or_create(&failure).inc();
                        }
                    }
                    result
                }
                .boxed()
            }
        };
        let policy = {
            let failures = failures.clone();
            move |object: Arc<K>, error: &E, _: Arc<C>| {
                let failed = failures.count(ObjectRef::from_obj(&*object));
                let wait = after_error(&error.retry(), failed);
                let (namespace, name) = (object.namespace(), object.name_any());
                tracing::warn!(kind, namespace, name, %error, failed, ?wait, "reconcile failed");
                Action::requeue(wait)
            }
        };
        let settings = Config::default().concurrency(concurrency).debounce(debounce);
        applier(pass, policy, context, objects, woken, settings)
            .for_each(|result| {
                match result {
                    Ok(_) | Err(RunError::ReconcilerFailed(..)) => {}
                    Err(RunError::ObjectNotFound(gone)) => {
                        let named = ObjectRef::new(&gone.name);
                        let place = gone.namespace.as_deref().filter(|namespace| !namespace.is_empty());
                        let gone = place.map_or(named.clone(), |namespace| named.within(namespace));
                        index.forget(&gone);
                        failures.forget(&gone);
                    }
                    Err(RunError::QueueError(never)) => match never {},
                    Err(error @ RunError::RunnerError(_)) => tracing::warn!(%error, "failed to run passes"),
                }
                std::future::ready(())
            })
            .await;
    }
}

/// The wait before the pass after an error: the error's own wish, and longer with each failure.
fn after_error(retry: &Retry, failures: u32) -> Duration {
    let backoff = Backoff::API.wait(failures, &mut rand::rng());
    match retry {
        Retry::After(least) => backoff.max(*least),
        Retry::Gone => backoff,
        Retry::Denied | Retry::Bug => backoff.max(Backoff::API.longest),
    }
}

/// Failures in a row of each object.
struct Failures<K: Resource<DynamicType = ()>>(Mutex<HashMap<ObjectRef<K>, u32>>);

impl<K: Resource<DynamicType = ()>> Default for Failures<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Resource<DynamicType = ()>> Failures<K>
where
    ObjectRef<K>: Hash + Eq,
{
    fn count(&self, object: ObjectRef<K>) -> u32 {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(object).or_default();
        *count = count.saturating_add(1);
        *count
    }

    fn forget(&self, object: &ObjectRef<K>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::soon(Retry::After(Duration::from_secs(5)), 1, 5, 5)]
    #[case::later_with_each_failure(Retry::After(Duration::from_secs(1)), 6, 16, 32)]
    #[case::a_person_must_act(Retry::Denied, 1, 60, 60)]
    fn errors_are_retried(#[case] retry: Retry, #[case] failures: u32, #[case] least: u64, #[case] most: u64) {
        let wait = after_error(&retry, failures);
        assert!(wait >= Duration::from_secs(least) && wait <= Duration::from_secs(most), "{wait:?}");
    }
}
