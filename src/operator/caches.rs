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

/// What the watches keep, and what wakes a controller when an object of its kind changes.
pub(super) struct Caches {
    pub(super) view: KubeView,
    /// How often jobs were killed.
    pub(super) history: History,
    pub(super) job_waker: Waker,
    pub(super) job_wakes: Wakes<BestEffortJob>,
    pub(super) image_wakes: Wakes<VmImage>,
    pub(super) snapshot_wakes: Wakes<Snapshot>,
}

/// What wakes for each request for a certificate, and the requests.
pub(super) type Requests = (Wakes<CertificateSigningRequest>, Store<CertificateSigningRequest>);

/// Starts all watches; returns once each has been filled. None if told to stop before.
pub(super) async fn start(
    client: &Client,
    namespace: &str,
    figures: &Arc<Figures>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Option<Caches> {
    let (job_waker, job_wakes) = wakes::<BestEffortJob>();
    let (image_waker, image_wakes) = wakes::<VmImage>();
    let (snapshot_waker, snapshot_wakes) = wakes::<Snapshot>();
    let history = History::default();
    let (unread_jobs, unread_snapshots) = (Unread::default(), Unread::default());
    let starter = Starter { client, tasks, stop };
    let jobs = starter.jobs(unread_jobs.clone(), job_waker.clone(), figures.clone(), history.clone());
    let images = starter.images(image_waker, job_waker.clone(), jobs.clone());
    let snapshots =
        starter.snapshots(unread_snapshots.clone(), snapshot_waker, figures.clone(), job_waker.clone(), jobs.clone());
    let agents = starter.agents(namespace, job_waker.clone());
    let nodes = starter.nodes();

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
        () = filled => Some(Caches { view, history, job_waker, job_wakes, image_wakes, snapshot_wakes }),
        () = stop.cancelled() => None,
    }
}

/// Watches who asks for certificates, and wakes for each.
pub(super) fn requests(client: &Client, tasks: &TaskTracker, stop: &CancellationToken) -> Requests {
    let (waker, requests) = wakes();
    let starter = Starter { client, tasks, stop };
    let (api, config) = (Api::all(client.clone()), small_pages());
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

/// What a list takes while it is read is never given back altogether.
fn small_pages() -> watcher::Config {
    watcher::Config::default().page_size(100)
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
    client: &'a Client,
    tasks: &'a TaskTracker,
    stop: &'a CancellationToken,
}

impl Starter<'_> {
    fn jobs(&self, unread: Unread, waker: Waker, figures: Arc<Figures>, history: History) -> Store<BestEffortJob> {
        self.watch(
            all::<BestEffortJob>(self.client),
            small_pages(),
            unread,
            |_| {},
            move |job| {
                figures.job(job);
                history.note(job);
                wake(&waker, job);
            },
        )
    }

    /// An image wakes the jobs that use it as well.
    fn images(&self, waker: Waker, job_waker: Waker, jobs: Store<BestEffortJob>) -> Store<VmImage> {
        self.watch(
            all::<VmImage>(self.client),
            small_pages(),
            Unread::default(),
            |_| {},
            move |image| {
                wake(&waker, image);
                users_of(&jobs, image).for_each(|job| job_waker.uid(&job));
            },
        )
    }

    /// A snapshot wakes its job and those that are to start from it as well.
    fn snapshots(
        &self,
        unread: Unread,
        waker: Waker,
        figures: Arc<Figures>,
        job_waker: Waker,
        jobs: Store<BestEffortJob>,
    ) -> Store<Snapshot> {
        self.watch(
            all::<Snapshot>(self.client),
            small_pages(),
            unread,
            |_| {},
            move |snapshot| {
                figures.snapshot(snapshot);
                wake(&waker, snapshot);
                job_waker.name(snapshot.metadata.namespace.as_deref().unwrap_or_default(), &snapshot.spec.job);
                starting_from(&jobs, snapshot).for_each(|job| job_waker.uid(&job));
            },
        )
    }

    /// An agent's pod wakes the agent's job.
    fn agents(&self, namespace: &str, job_waker: Waker) -> Store<Pod> {
        let pods: Api<DeserializeGuard<Pod>> = Api::namespaced(self.client.clone(), namespace);
        self.watch(
            pods,
            small_pages().labels(&format!("{LABEL_COMPONENT}=agent")),
            Unread::default(),
            |_| {},
            move |pod| {
                if let Some(job) = pod.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_JOB_UID)) {
                    job_waker.uid(&JobUid(job.clone()));
                }
            },
        )
    }

    /// Nodes, without the long lists of images that they have.
    fn nodes(&self) -> Store<Node> {
        let lean = |node: &mut Node| {
            if let Some(status) = &mut node.status {
                status.images = None;
            }
        };
        self.watch(Api::all(self.client.clone()), small_pages(), Unread::default(), lean, |_| {})
    }

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
