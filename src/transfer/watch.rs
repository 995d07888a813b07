//! Watches kept in memory; each change calls for a pass. An object that cannot be read is left out.

use std::{fmt::Debug, sync::Arc};

use futures::StreamExt;
use kube::{
    Api, Client, Resource,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::driver::cluster::transfers::KubeBoard;

/// Watches all objects of a kind, in all namespaces.
pub(super) fn store<K>(client: &Client, changed: Arc<Notify>, tasks: &TaskTracker, stop: &CancellationToken) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, mut writer) = reflector::store::<K>();
    let api: Api<DeserializeGuard<K>> = Api::all(client.clone());
    let stop = stop.clone();
    tasks.spawn(async move {
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                None => return,
                Some(Err(error)) => tracing::warn!(%error, kind = %K::kind(&()), "failed to watch"),
                Some(Ok(event)) => {
                    if let Some(event) = readable(event) {
                        writer.apply_watcher_event(&event);
                        changed.notify_one();
                    }
                }
            }
        }
    });
    store
}

fn readable<K: Resource<DynamicType = ()>>(event: Event<DeserializeGuard<K>>) -> Option<Event<K>> {
    let read = |object: DeserializeGuard<K>| match object.0 {
        Ok(object) => Some(object),
        Err(error) => {
            tracing::warn!(%error, name = error.metadata.name, "failed to read an object");
            None
        }
    };
    Some(match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(read(object)?),
        Event::Apply(object) => Event::Apply(read(object)?),
        Event::Delete(object) => Event::Delete(read(object)?),
    })
}

/// Returns once both stores have been filled.
pub(super) async fn filled(board: &KubeBoard) {
    // an error means that the watch has ended: the process is stopping
    let _ = board.snapshots.wait_until_ready().await;
    let _ = board.jobs.wait_until_ready().await;
}
