//! What is seen of objects while something goes on: nothing that the API server had is missed.

use std::fmt::Debug;

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use kube::{
    Api, Resource,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

/// Values, and when each was seen.
pub type Seen<S> = Vec<(Timestamp, S)>;

/// All values that something of a namespace's objects has until one is the last. The watch has begun when this returns.
pub async fn watched<K, S>(
    api: Api<K>,
    of: impl Fn(K) -> Option<S> + Send + 'static,
    is_last: impl Fn(&S) -> bool + Send + 'static,
) -> Result<JoinHandle<Result<Seen<S>>>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    S: PartialEq + Send + 'static,
{
    let mut events = watcher(api, watcher::Config::default()).boxed();
    while !matches!(events.try_next().await?.context("the watch has ended")?, watcher::Event::InitDone) {}
    Ok(tokio::spawn(async move {
        let mut changes = events.applied_objects().boxed();
        let mut seen: Seen<S> = Vec::new();
        while let Some(object) = changes.try_next().await? {
            let Some(value) = of(object) else { continue };
            if seen.last().is_none_or(|(_, last)| *last != value) {
                let ends = is_last(&value);
                seen.push((Timestamp::now(), value));
                if ends {
                    break;
                }
            }
        }
        Ok(seen)
    }))
}
