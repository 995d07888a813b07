//! Watches of everything the operator reads often, kept in memory, and whom a change wakes.
//!
//! An object that cannot be read is left out and does not stop the others.

use std::{fmt::Debug, sync::Arc};

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::{
    certificates::v1::CertificateSigningRequest,
    core::v1::{Node, Pod},
};
use kube::{
    Api, Client, Resource,
    core::{DeserializeGuard, NamespaceResourceScope},
    runtime::{
        WatchStreamExt as _,
        reflector::{self, Store},
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::figures::Figures;
use crate::{
    api::{BestEffortJob, LABEL_COMPONENT, LABEL_JOB_UID, Snapshot, VmImage},
    controller::{
        job::history::History,
        wake::{Waker, Wakes, wakes},
    },
    driver::cluster::{unread::Unread, view::KubeView},
    names::JobUid,
};

/// Who is woken when an object changes: the object's own controller.
pub(super) struct Wakers {
    pub(super) jobs: Waker,
    pub(super) images: Waker,
    pub(super) snapshots: Waker,
}

/// Starts all watches; returns once each has been filled. None if told to stop before.
pub(super) async fn start(
    client: &Client,
    namespace: &str,
    wakers: Wakers,
    figures: &Arc<Figures>,
    history: &History,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Option<KubeView> {
    let starter = Starter { tasks, stop };
    // small pages: what a list takes while it is read is never given back altogether
    let everywhere = || watcher::Config::default().page_size(100);
    let Wakers { jobs: jobs_waker, images: images_waker, snapshots: snapshots_waker } = wakers;
    let agents_only = everywhere().labels(&format!("{LABEL_COMPONENT}=agent"));

    let (waker, seen, history) = (jobs_waker.clone(), figures.clone(), history.clone());
    let (unread_jobs, unread_snapshots) = (Unread::default(), Unread::default());
    let jobs = starter.watch(
        all::<BestEffortJob>(client),
        everywhere(),
        unread_jobs.clone(),
        |_| {},
        move |job| {
            seen.job(job);
            history.note(job);
            wake(&waker, job);
        },
    );
    let (waker, known) = (jobs_waker.clone(), jobs.clone());
    let images = starter.watch(
        all::<VmImage>(client),
        everywhere(),
        Unread::default(),
        |_| {},
        move |image| {
            wake(&images_waker, image);
            users_of(&known, image).for_each(|job| waker.uid(&job));
        },
    );
    let (waker, seen, known) = (jobs_waker.clone(), figures.clone(), jobs.clone());
    let snapshots = starter.watch(
        all::<Snapshot>(client),
        everywhere(),
        unread_snapshots.clone(),
        |_| {},
        move |snapshot| {
            seen.snapshot(snapshot);
            wake(&snapshots_waker, snapshot);
            waker.name(snapshot.metadata.namespace.as_deref().unwrap_or_default(), &snapshot.spec.job);
            starting_from(&known, snapshot).for_each(|job| waker.uid(&job));
        },
    );
    let waker = jobs_waker;
    let pods: Api<DeserializeGuard<Pod>> = Api::namespaced(client.clone(), namespace);
    let agents = starter.watch(
        pods,
        agents_only,
        Unread::default(),
        |_| {},
        move |pod| {
            if let Some(job) = pod.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_JOB_UID)) {
                waker.uid(&JobUid(job.clone()));
            }
        },
    );
    let lean = |node: &mut Node| {
        if let Some(status) = &mut node.status {
            status.images = None;
        }
    };
    let nodes = starter.watch(Api::all(client.clone()), everywhere(), Unread::default(), lean, |_| {});

    let view = KubeView {
        client: client.clone(),
        namespace: namespace.into(),
        jobs,
        unread_jobs,
        images,
        snapshots,
        unread_snapshots,
        agents,
        nodes,
    };
    let filled = async {
        // an error means that the watch's task has ended: the process is stopping
        let _ = view.jobs.wait_until_ready().await;
        let _ = view.images.wait_until_ready().await;
        let _ = view.snapshots.wait_until_ready().await;
        let _ = view.agents.wait_until_ready().await;
        let _ = view.nodes.wait_until_ready().await;
    };
    tokio::select! {
        () = filled => Some(view),
        () = stop.cancelled() => None,
    }
}

/// Watches who asks for certificates, and wakes for each.
pub(super) fn requests(
    client: &Client,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> (Wakes<CertificateSigningRequest>, Store<CertificateSigningRequest>) {
    let (waker, requests) = wakes();
    let starter = Starter { tasks, stop };
    let (api, config) = (Api::all(client.clone()), watcher::Config::default().page_size(100));
    let store = starter.watch(
        api,
        config,
        Unread::default(),
        |_| {},
        move |request: &CertificateSigningRequest| waker.name("", request.metadata.name.as_deref().unwrap_or_default()),
    );
    (requests, store)
}

/// Wakes the controller of an object that has changed or is gone.
fn wake(waker: &Waker, object: &impl Resource) {
    let meta = object.meta();
    waker.name(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
}

fn all<K>(client: &Client) -> Api<DeserializeGuard<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::all(client.clone())
}

/// The jobs that name this image, or might get it by default.
fn users_of(jobs: &Store<BestEffortJob>, image: &VmImage) -> impl Iterator<Item = JobUid> {
    let (name, namespace) = (image.metadata.name.clone(), image.metadata.namespace.clone());
    let standard = image.spec.standard;
    jobs.state().into_iter().filter_map(move |job| {
        let named = job.spec.image.as_ref().is_none_or(|image| Some(&image.name) == name.as_ref());
        let reaches = standard || job.metadata.namespace == namespace;
        job.metadata.uid.clone().filter(|_| named && reaches).map(JobUid)
    })
}

/// The jobs that are to start from a snapshot.
fn starting_from(jobs: &Store<BestEffortJob>, snapshot: &Snapshot) -> impl Iterator<Item = JobUid> {
    let (name, namespace) = (snapshot.metadata.name.clone(), snapshot.metadata.namespace.clone());
    jobs.state().into_iter().filter_map(move |job| {
        let named = job.spec.restore_from.as_ref().is_some_and(|from| Some(&from.snapshot) == name.as_ref());
        let waits = job.status.as_ref().is_none_or(|status| status.started.is_none());
        let here = job.metadata.namespace == namespace;
        job.metadata.uid.clone().filter(|_| named && waits && here).map(JobUid)
    })
}

struct Starter<'a> {
    tasks: &'a TaskTracker,
    stop: &'a CancellationToken,
}

impl Starter<'_> {
    /// Keeps what a watch brings, and in `unread` what of it cannot be read; `lean` drops what nobody reads,
    /// `changed` is told of each change.
    fn watch<K>(
        &self,
        api: Api<DeserializeGuard<K>>,
        config: watcher::Config,
        unread: Unread,
        lean: impl Fn(&mut K) + Send + 'static,
        changed: impl Fn(&K) + Send + 'static,
    ) -> Store<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let (reader, writer) = reflector::store();
        let stop = self.stop.clone();
        let events = watcher(api, config).default_backoff().inspect(move |event| unread.note(event));
        let events = readable(events, lean);
        let mut events = reflector::reflector(writer, events).boxed();
        let filled = reader.clone();
        self.tasks.spawn(async move {
            loop {
                let event = tokio::select! {
                    () = stop.cancelled() => return,
                    event = events.next() => event,
                };
                match event {
                    Some(Ok(Event::Apply(object) | Event::Delete(object))) => changed(&object),
                    // what a list brings is in the store only when the list is complete
                    Some(Ok(Event::Init | Event::InitApply(_))) => {}
                    Some(Ok(Event::InitDone)) => filled.state().iter().for_each(|object| changed(object)),
                    Some(Err(error)) => tracing::warn!(%error, kind = %K::kind(&()), "failed to watch"),
                    None => return,
                }
            }
        });
        reader
    }
}

/// The events of objects that can be read.
fn readable<K>(
    events: impl Stream<Item = watcher::Result<Event<DeserializeGuard<K>>>> + Send + 'static,
    lean: impl Fn(&mut K) + Send + 'static,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Send + 'static,
{
    events.filter_map(move |event| {
        let object = |guarded: DeserializeGuard<K>| match guarded.0 {
            Ok(mut object) => {
                object.meta_mut().managed_fields = None;
                lean(&mut object);
                Some(object)
            }
            Err(error) => {
                tracing::warn!(%error, kind = %K::kind(&()), name = ?error.metadata.name, "failed to read an object");
                None
            }
        };
        let event = match event {
            Ok(Event::Apply(guarded)) => object(guarded).map(|object| Ok(Event::Apply(object))),
            Ok(Event::InitApply(guarded)) => object(guarded).map(|object| Ok(Event::InitApply(object))),
            Ok(Event::Delete(guarded)) => object(guarded).map(|object| Ok(Event::Delete(object))),
            Ok(Event::Init) => Some(Ok(Event::Init)),
            Ok(Event::InitDone) => Some(Ok(Event::InitDone)),
            Err(error) => Some(Err(error)),
        };
        std::future::ready(event)
    })
}
