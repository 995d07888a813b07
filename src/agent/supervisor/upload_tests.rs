//! An upload goes on until the repository has the bytes or will not take them.

use std::{
    collections::VecDeque,
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use async_trait::async_trait;

use super::{
    super::testing::{FileStore, Making},
    *,
};
use crate::{
    driver::{
        agent::{CapturePart, PartState},
        repository::{Brought, ByteStore, ByteStream, DiskRecord},
    },
    names::{JobUid, MemberIndex},
    store::manifest::Manifest,
};

/// A repository that fails as it is told to; then it takes everything.
struct Moody {
    inner: FileStore,
    /// The last one for ever.
    failures: Mutex<VecDeque<RepositoryError>>,
    always: Option<RepositoryError>,
    sent: Mutex<Vec<Generation>>,
}

impl crate::driver::repository::carry::Carrying for Moody {}

impl crate::driver::repository::piecewise::Piecewise for Moody {}

#[async_trait]
impl ByteStore for Moody {
    async fn get_manifest(&self, job: &JobUid, generation: Generation) -> Result<Manifest, RepositoryError> {
        self.inner.get_manifest(job, generation).await
    }

    async fn put_part(
        &self,
        ticket: &str,
        job: &JobUid,
        generation: Generation,
        member: MemberIndex,
        kind: FileKind,
        file: &Path,
        progress: crate::driver::repository::SendingProgress<'_>,
    ) -> Result<PartFile, RepositoryError> {
        self.sent.lock().unwrap().push(generation);
        if let Some(error) = self.failures.lock().unwrap().pop_front().or_else(|| self.always.clone()) {
            return Err(error);
        }
        self.inner.put_part(ticket, job, generation, member, kind, file, progress).await
    }

    async fn ready(&self, _: FileKind, _: &Path) -> Result<Option<u64>, RepositoryError> {
        Ok(None)
    }

    async fn get_part(
        &self,
        _: &JobUid,
        _: Generation,
        _: MemberIndex,
        _: &PartFile,
        _: &Path,
        _: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Brought, RepositoryError> {
        Err(RepositoryError::NotFound("it only takes".into()))
    }

    async fn put_output(&self, _: &JobUid, _: MemberIndex, _: &str, _: ByteStream) -> Result<(), RepositoryError> {
        Err(RepositoryError::NotFound("it only takes parts".into()))
    }

    async fn get_output(&self, job: &JobUid, member: MemberIndex, path: &str) -> Result<ByteStream, RepositoryError> {
        self.inner.get_output(job, member, path).await
    }

    async fn put_image(&self, digest: &str, file: &Path) -> Result<(), RepositoryError> {
        self.inner.put_image(digest, file).await
    }

    async fn note_disk(&self, digest: &str, record: &DiskRecord) -> Result<(), RepositoryError> {
        self.inner.note_disk(digest, record).await
    }

    async fn get_image(
        &self,
        digest: &str,
        to: &Path,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RepositoryError> {
        self.inner.get_image(digest, to, progress).await
    }
}

/// An agent with generations 1 and 2 on its disk.
struct Node {
    supervisor: Arc<Supervisor>,
    store: Arc<Moody>,
    _root: tempfile::TempDir,
}

impl Node {
    fn new(failures: impl IntoIterator<Item = RepositoryError>, always: Option<RepositoryError>) -> Self {
        let root = tempfile::tempdir().unwrap();
        let inner = FileStore::new(&root.path().join("store"));
        let failures = Mutex::new(failures.into_iter().collect());
        let store = Arc::new(Moody { inner, failures, always, sent: Mutex::default() });
        let supervisor = Making::below(root.path()).store(store.clone()).make();
        for generation in [1, 2] {
            std::fs::create_dir_all(supervisor.paths.generation(generation)).unwrap();
            for kind in KINDS {
                std::fs::write(supervisor.paths.part(generation, kind), format!("{generation} {kind}")).unwrap();
            }
            let part = CapturePart {
                generation,
                nonce: format!("n{generation}"),
                state: PartState::Captured,
                stopped_at: None,
                pause_ms: None,
                bytes: 9,
                record: None,
            };
            supervisor.view.change(|facts| facts.captured.push(part));
        }
        Self { supervisor, store, _root: root }
    }

    async fn order(&self, generation: Generation) -> Result<(), AgentError> {
        self.order_with(generation, "t".into()).await
    }

    async fn order_with(&self, generation: Generation, ticket: String) -> Result<(), AgentError> {
        self.supervisor
            .start_upload(&UploadOrder { epoch: 1, generation, incarnation: 1, ticket, limit: None, collector: None })
            .await
    }

    async fn limit(&self, generation: Generation, limit: Option<u64>) -> Result<(), AgentError> {
        let order = UploadOrder { epoch: 1, generation, incarnation: 1, ticket: "t".into(), limit, collector: None };
        self.supervisor.start_upload(&order).await
    }

    fn state(&self) -> UploadState {
        self.supervisor.view.render().upload.unwrap()
    }

    async fn until(&self, so: impl Fn(&UploadState) -> bool) -> UploadState {
        let begun = Instant::now();
        while !so(&self.state()) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", self.state());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.state()
    }
}

fn silent() -> RepositoryError {
    RepositoryError::Unreachable("it starts again".into())
}

fn full() -> RepositoryError {
    RepositoryError::Full("no room yet".into())
}

fn unreadable() -> RepositoryError {
    RepositoryError::local("memory", &std::io::Error::other("a bad sector"))
}

#[tokio::test(start_paused = true)]
async fn an_upload_outlasts_a_repository_that_is_away_or_full() {
    let node = Node::new((0..20).map(|n| if n % 2 == 0 { silent() } else { full() }), None);
    let begun = tokio::time::Instant::now();
    node.order(1).await.unwrap();
    let state = node.until(|state| state.done || state.error.is_some() || state.waiting.is_some()).await;
    assert_eq!((state.done, state.error), (false, None));
    // a repetition of the order leaves it as it is
    node.order(1).await.unwrap();
    let state = node.until(|state| state.done || state.error.is_some()).await;
    assert_eq!((state.error, state.waiting, state.files.len()), (None, None, 3));
    assert_eq!(state.sent, state.total);
    let took = begun.elapsed();
    assert!((Duration::from_secs(100)..Duration::from_secs(450)).contains(&took), "{took:?} for 20 attempts");
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_refused_ends() {
    let node = Node::new([silent(), RepositoryError::Refused("a newer incarnation".into())], None);
    node.order(1).await.unwrap();
    let state = node.until(|state| state.error.is_some()).await;
    assert!(state.error.unwrap().contains("a newer incarnation"));
    assert_eq!(state.waiting, None);
    // and may be ordered again
    node.order(1).await.unwrap();
    node.until(|state| state.done).await;
}

#[tokio::test(start_paused = true)]
async fn a_part_that_the_node_cannot_read_is_not_tried_for_ever() {
    let node = Node::new([], Some(unreadable()));
    node.order(1).await.unwrap();
    let state = node.until(|state| state.error.is_some()).await;
    assert!(state.error.unwrap().contains("on this machine: memory: a bad sector"));
    assert_eq!(node.store.sent.lock().unwrap().len(), LOCAL_TRIES as usize);
}

#[tokio::test(start_paused = true)]
async fn a_later_generation_takes_the_place_of_one_that_waits() {
    let node = Node::new([silent()], Some(full()));
    node.order(1).await.unwrap();
    node.until(|state| state.waiting.is_some()).await;
    node.order(2).await.unwrap();
    node.until(|state| state.generation == 2 && state.waiting.is_some()).await;
    let before = node.store.sent.lock().unwrap().len();
    assert!(matches!(node.order(1).await, Err(AgentError::Refused(_))), "an older one does not");
    tokio::time::sleep(Duration::from_secs(200)).await;
    let sent = node.store.sent.lock().unwrap().clone();
    assert!(sent.len() > before && sent[before..].iter().all(|generation| *generation == 2), "{sent:?}");
    node.supervisor.stop.cancel();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = node.store.sent.lock().unwrap().len();
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(node.store.sent.lock().unwrap().len(), after, "it goes on after the end");
}

#[tokio::test]
async fn an_upload_is_tried_no_longer_than_its_ticket_lasts_and_says_so() {
    let node = Node::new([], Some(silent()));
    let ticket = |seconds| {
        let ticket = crate::store::ticket::Ticket {
            job: node.supervisor.config.job.clone(),
            generation: 1,
            member: 0,
            incarnation: 1,
            expires: jiff::Timestamp::now() + Duration::from_secs(seconds),
            most: None,
            quota: None,
            bearer: None,
        };
        crate::store::ticket::TicketKey::new(&[7; 32]).unwrap().sign(&ticket)
    };
    node.order_with(2, ticket(3600)).await.unwrap();
    let state = node.until(|state| state.waiting.is_some()).await;
    assert!(state.waiting.unwrap().contains("it starts again; tried again until 20"));
    let node = Node::new([], Some(silent()));
    node.order_with(1, ticket(0)).await.unwrap();
    let state = node.until(|state| state.error.is_some()).await;
    assert!(state.error.unwrap().contains("it starts again"));
}

#[tokio::test(start_paused = true)]
async fn an_upload_stands_still_for_others_and_goes_on_when_it_is_told_to() {
    let node = Node::new([silent()], None);
    node.limit(1, Some(0)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(node.store.sent.lock().unwrap().is_empty());
    assert_eq!((node.state().limit, node.state().done), (Some(0), false));
    node.limit(1, Some(5000)).await.unwrap();
    let state = node.until(|state| state.waiting.is_some()).await;
    assert_eq!(state.limit, Some(5000));
    // told to while it waits for the repository
    node.limit(1, Some(0)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(node.store.sent.lock().unwrap().len(), 1);
    assert_eq!(node.state().waiting, None, "it is for others that it stands still now");
    node.limit(1, None).await.unwrap();
    let state = node.until(|state| state.done).await;
    assert_eq!((state.error, state.limit), (None, None));
    // and one that stands still is replaced like any other
    let node = Node::new([], None);
    node.limit(1, Some(0)).await.unwrap();
    node.order(2).await.unwrap();
    node.until(|state| state.done && state.generation == 2).await;
}
