//! What is seen of objects while something goes on: nothing that the API server had is missed.

use std::{fmt::Debug, time::Duration};

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use jiff::Timestamp;
use kube::{
    Api, Resource,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

/// Values, and when each was seen.
pub type Seen<S> = Vec<(Timestamp, S)>;

/// A watch has begun within this time.
const BEGINS: Duration = Duration::from_secs(120);
/// Longest watch: whoever waits for its end has seen the last value in another way, or has a limit of his own.
const LONGEST: Duration = Duration::from_secs(1500);

/// All values that something of a namespace's objects has until one is the last. The watch has begun when this returns;
/// one that breaks goes on where it was.
pub async fn watched<K, S>(
    api: Api<K>,
    of: impl Fn(K) -> Option<S> + Send + 'static,
    is_last: impl Fn(&S) -> bool + Send + 'static,
) -> Result<JoinHandle<Result<Seen<S>>>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    S: PartialEq + Send + 'static,
{
    // an error is one of a connection, or of the API server for a moment: it is asked again
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let begins = async {
        loop {
            match events.next().await.context("the watch has ended")? {
                Ok(watcher::Event::InitDone) => return anyhow::Ok(()),
                Ok(_) => {}
                Err(error) => eprintln!("watched again: {error}"),
            }
        }
    };
    tokio::time::timeout(BEGINS, begins).await.context("the watch does not begin")??;
    Ok(tokio::spawn(async move {
        let all = async move {
            let mut changes = events.applied_objects().boxed();
            let mut seen: Seen<S> = Vec::new();
            while let Some(change) = changes.next().await {
                let object = match change {
                    Ok(object) => object,
                    Err(error) => {
                        eprintln!("watched again: {error}");
                        continue;
                    }
                };
                let Some(value) = of(object) else { continue };
                if seen.last().is_none_or(|(_, last)| *last != value) {
                    let ends = is_last(&value);
                    seen.push((Timestamp::now(), value));
                    if ends {
                        break;
                    }
                }
            }
            seen
        };
        tokio::time::timeout(LONGEST, all).await.context("the last value was never seen")
    }))
}
