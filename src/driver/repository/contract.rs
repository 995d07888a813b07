//! One suite for the repository on a directory and in a bucket, behind its server and client, and for the double.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    ByteStore, DiskRecord, JobOwner, KeptPart, PartLedger, Repository, RepositoryError, fake::FakeRepository,
    http::HttpRepository,
};
use crate::{
    api::image::DiskFormat,
    clock::Clock,
    names::{Generation, Identity, Incarnation, JobUid, MemberIndex},
    repository::{
        arrivals::Arrivals,
        bearers::Bearers,
        bucket::testing::{Kind, TestStore},
        durable::AllSteps,
        http::{Service, router},
        room::Limits,
    },
    store::{
        adoption::{Adoption, Ancestor},
        manifest::{FileKind, Manifest, PartFile, tests::manifest},
        ticket::{Ticket, TicketKey},
    },
    tls::{self, Authority},
};

/// A repository under test and everybody who uses it.
pub(crate) struct Bench {
    pub(crate) operator: Arc<dyn Repository>,
    pub(crate) kget: Arc<dyn Repository>,
    pub(crate) ledger: Arc<dyn PartLedger>,
    pub(crate) importer: Arc<dyn ByteStore>,
    agents: BTreeMap<(MemberIndex, Incarnation), Arc<dyn ByteStore>>,
    pub(crate) key: Option<TicketKey>,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) clients: Option<(Authority, String)>,
    _stop: tokio_util::sync::DropGuard,
}

pub(crate) fn job() -> JobUid {
    manifest(1).job
}

fn agent(member: MemberIndex, incarnation: Incarnation) -> Identity {
    Identity::Agent { job: job(), member, incarnation }
}

const AGENTS: [(MemberIndex, Incarnation); 4] = [(0, 1), (1, 1), (0, 2), (1, 2)];

impl Bench {
    pub(crate) fn fake() -> Self {
        let fake = Arc::new(FakeRepository::new());
        let agents = AGENTS.map(|who| (who, fake.clone() as Arc<dyn ByteStore>));
        Self {
            operator: fake.clone(),
            kget: fake.clone(),
            ledger: fake.clone(),
            importer: fake,
            agents: agents.into(),
            key: None,
            directory: tempfile::tempdir().unwrap(),
            clients: None,
            _stop: CancellationToken::new().drop_guard(),
        }
    }

    pub(crate) async fn real() -> Self {
        Self::with_free(0).await
    }

    /// The real one, that keeps so many bytes of its disk free.
    pub(crate) async fn with_free(free: u64) -> Self {
        Self::serving(Kind::Directory, free, |router| router).await
    }

    /// The real one behind what keeps from it, and from others, all that was not in the first version.
    pub(crate) async fn of_the_first_version() -> Self {
        async fn older(request: axum::extract::Request, next: axum::middleware::Next) -> axum::response::Response {
            use axum::response::IntoResponse as _;
            let mut reply = if ["/blocks", "/pieces"].iter().any(|new| request.uri().path().ends_with(new)) {
                let error = super::wire::ErrorReply::from(RepositoryError::NotFound(super::wire::NO_PATH.into()));
                (axum::http::StatusCode::NOT_FOUND, axum::Json(error)).into_response()
            } else {
                next.run(request).await
            };
            reply.headers_mut().remove(super::wire::PROTOCOL);
            reply
        }
        Self::serving(Kind::Directory, 0, |router| router.layer(axum::middleware::from_fn(older))).await
    }

    /// The real one, and which addresses of images are asked of it.
    pub(crate) async fn of_images(asked: Arc<std::sync::Mutex<Vec<String>>>) -> Self {
        let note = move |request: axum::extract::Request, next: axum::middleware::Next| {
            if request.uri().path().starts_with(super::wire::IMAGES_PATH) {
                asked.lock().unwrap().push(request.uri().to_string());
            }
            next.run(request)
        };
        Self::serving(Kind::Directory, 0, |router| router.layer(axum::middleware::from_fn(note))).await
    }

    /// The real one, with a bucket.
    async fn bucket() -> Self {
        Self::serving(Kind::Bucket, 0, |router| router).await
    }

    async fn serving(kind: Kind, free: u64, change: impl FnOnce(axum::Router) -> axum::Router) -> Self {
        tls::install_provider();
        let now = jiff::Timestamp::now();
        let authority = Authority::create(now).unwrap();
        let issue = |who: &Identity| authority.issue(who, now, Duration::from_secs(3600)).unwrap();
        let key = TicketKey::new(b"a secret for the tests only").unwrap();
        let place = TestStore::new(kind);
        let store = place.open_at(AllSteps, now).unwrap();
        let directory = place.directory;
        let limits = Limits {
            part: 6 << 20,
            packs: 1 << 40,
            image: 1 << 22,
            output: 1 << 16,
            outputs: 1 << 17,
            output_files: 4,
            free,
        };
        let (arrivals, clock) = (Arrivals::default(), Clock::system());
        let service =
            Service { store: Arc::new(store), key: key.clone(), limits, arrivals, bearers: Bearers::default(), clock };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let (own, token, served) = (issue(&Identity::Repository), stop.clone(), change(router(service)));
        tokio::spawn(async move { tls::serve(listener, &own, served, token).await.unwrap() });
        let client = |who: &Identity| Arc::new(HttpRepository::new(&issue(who), &endpoint).unwrap());
        let kget = client(&Identity::Kget);
        Self {
            operator: client(&Identity::Operator),
            ledger: kget.clone(),
            kget,
            importer: client(&Identity::Importer),
            agents: AGENTS
                .map(|(member, incarnation)| {
                    let own: Arc<dyn ByteStore> = client(&agent(member, incarnation));
                    ((member, incarnation), own)
                })
                .into(),
            key: Some(key),
            directory,
            clients: Some((authority.clone(), endpoint.clone())),
            _stop: stop.drop_guard(),
        }
    }

    /// A client of the real one that speaks for somebody else.
    pub(crate) fn client(&self, who: &Identity) -> HttpRepository {
        let (authority, endpoint) = self.clients.as_ref().unwrap();
        let own = authority.issue(who, jiff::Timestamp::now(), Duration::from_secs(3600)).unwrap();
        HttpRepository::new(&own, endpoint).unwrap()
    }

    /// An agent of another job.
    fn agent_of(&self, job: &JobUid) -> Arc<dyn ByteStore> {
        let who = Identity::Agent { job: job.clone(), member: 1, incarnation: 1 };
        // the double is anybody's
        if self.clients.is_some() { Arc::new(self.client(&who)) } else { self.importer.clone() }
    }

    pub(crate) fn agent(&self, member: MemberIndex, incarnation: Incarnation) -> &dyn ByteStore {
        self.agents[&(member, incarnation)].as_ref()
    }

    pub(crate) fn ticket(&self, generation: Generation, member: MemberIndex, incarnation: Incarnation) -> String {
        let expires = jiff::Timestamp::now() + Duration::from_secs(3600);
        match &self.key {
            Some(key) => key.sign(&Ticket {
                job: job(),
                generation,
                member,
                incarnation,
                expires,
                most: None,
                quota: None,
                bearer: None,
            }),
            None => incarnation.to_string(),
        }
    }

    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Sends memory and disk of a member; content depends on all its numbers.
    async fn send(
        &self,
        generation: Generation,
        member: MemberIndex,
        incarnation: Incarnation,
    ) -> Result<Vec<PartFile>, RepositoryError> {
        let mut files = Vec::new();
        for kind in [FileKind::Memory, FileKind::Disk] {
            let path = self.file("part", &content(generation, member, incarnation, kind));
            let ticket = self.ticket(generation, member, incarnation);
            let store = self.agent(member, incarnation);
            files.push(store.put_part(&ticket, &job(), generation, member, kind, &path, &|_| {}).await?);
        }
        Ok(files)
    }

    /// Sends both members and returns the manifest that goes with them.
    pub(crate) async fn sent(
        &self,
        generation: Generation,
        incarnation: Incarnation,
    ) -> Result<Manifest, RepositoryError> {
        let mut made = Manifest { incarnation, ..manifest(generation) };
        for part in &mut made.members {
            part.files = self.send(generation, part.index, incarnation).await?;
        }
        Ok(made)
    }

    async fn complete(&self) -> Vec<Generation> {
        self.operator.content(&job()).await.unwrap().generations.iter().map(|g| g.generation).collect()
    }
}

fn content(generation: Generation, member: MemberIndex, incarnation: Incarnation, kind: FileKind) -> Vec<u8> {
    // more than one block, and nothing that compresses away altogether
    let mut bytes = vec![0; 300_000];
    blake3::Hasher::new()
        .update(format!("{generation} {member} {incarnation} {kind}").as_bytes())
        .finalize_xof()
        .fill(&mut bytes[..200_000]);
    bytes
}

/// Runs each check on all.
macro_rules! contract {
    ($($name:ident)*) => {
        mod real {
            $(#[tokio::test] async fn $name() { super::$name(&super::Bench::real().await).await; })*
        }
        mod bucket {
            $(#[tokio::test] async fn $name() { super::$name(&super::Bench::bucket().await).await; })*
        }
        mod double {
            $(#[tokio::test] async fn $name() { super::$name(&super::Bench::fake()).await; })*
        }
    };
}

contract! {
    b1_an_older_incarnation_is_refused
    b1_a_fence_makes_unfinished_generations_void
    b2_what_was_given_up_never_becomes_complete
    b2_numbers_are_remembered_and_nothing_is_replaced
    b15_safe_is_what_the_repository_lists
    d1_a_ticket_is_needed
    a_generation_is_sent_published_and_fetched
    a_missing_file_keeps_a_manifest_unpublished
    what_is_retired_or_removed_is_gone
    outputs_are_kept_and_listed
    images_are_their_digests
    b11_a_generation_lives_on_in_the_job_that_adopted_it
    c2_what_a_job_has_is_told_with_its_owner
    b12_images_go_once_nothing_names_them
    d2_a_disk_is_what_its_head_says
    wrong_names_are_refused
}

async fn a_generation_is_sent_published_and_fetched(bench: &Bench) {
    assert_eq!(bench.operator.content(&job()).await, Ok(super::JobContent::default()));
    let made = bench.sent(3, 1).await.unwrap();
    assert_eq!(bench.complete().await, [] as [Generation; 0]);
    assert!(matches!(bench.operator.manifest(&job(), 3).await, Err(RepositoryError::NotFound(_))));
    let early = bench.agent(1, 2).get_part(&job(), 3, 1, &made.members[1].files[0], "x".as_ref(), &|_| {}).await;
    assert!(matches!(early, Err(RepositoryError::NotFound(_))), "{early:?}");
    let line = bench.kget.publish(&made).await.unwrap();
    assert_eq!((line.generation, line.members, line.stored), (3, 2, made.stored()));
    assert_eq!(bench.operator.content(&job()).await.unwrap().generations, [line]);
    // another agent of the job, in a later incarnation, fetches it
    let reader = bench.agent(1, 2);
    assert_eq!(reader.get_manifest(&job(), 3).await, Ok(made.clone()));
    for file in &made.members[1].files {
        let to = bench.directory.path().join("fetched");
        reader.get_part(&job(), 3, 1, file, &to, &|_| {}).await.unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), content(3, 1, 1, file.kind));
        let wrong = PartFile { digest: "0".repeat(64), ..file.clone() };
        let to = bench.directory.path().join("not fetched");
        let missing = reader.get_part(&job(), 3, 1, &wrong, &to, &|_| {}).await;
        assert!(matches!(missing, Err(RepositoryError::NotFound(_))), "{missing:?}");
        assert!(!to.exists());
    }
}

async fn c2_what_a_job_has_is_told_with_its_owner(bench: &Bench) {
    assert_eq!(bench.operator.usage().await.unwrap(), []);
    let first = bench.sent(1, 1).await.unwrap();
    bench.kget.publish(&first).await.unwrap();
    let one = bench.operator.usage().await.unwrap();
    let owner = JobOwner { namespace: "alice".into(), name: "pi".into() };
    assert_eq!((one.len(), &one[0].job, &one[0].owner), (1, &job(), &Some(owner)));
    assert!(one[0].bytes >= first.stored(), "{one:?}");
    bench.kget.publish(&bench.sent(2, 1).await.unwrap()).await.unwrap();
    let two = bench.operator.usage().await.unwrap();
    assert!(two[0].bytes > one[0].bytes, "{one:?} {two:?}");
    bench.operator.retire(&job(), 1).await.unwrap();
    assert!(bench.operator.usage().await.unwrap()[0].bytes < two[0].bytes);
    bench.operator.remove_job(&job()).await.unwrap();
    // whoever was tidying up after the one that was retired may be making an index, until a slow disk lets it
    let mut left = u64::MAX;
    for _ in 0..600 {
        left = bench.operator.usage().await.unwrap().iter().map(|of| of.bytes).sum();
        if left < 1000 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{left} bytes are left");
}

async fn b1_an_older_incarnation_is_refused(bench: &Bench) {
    let late = bench.sent(8, 1).await.unwrap();
    bench.operator.fence(&job(), 2).await.unwrap();
    bench.operator.fence(&job(), 2).await.unwrap();
    assert!(matches!(bench.operator.fence(&job(), 1).await, Err(RepositoryError::Refused(_))));
    assert!(matches!(bench.kget.publish(&late).await, Err(RepositoryError::Refused(_))));
    assert!(matches!(bench.send(8, 0, 1).await, Err(RepositoryError::Refused(_))));
    let newer = bench.sent(9, 2).await.unwrap();
    bench.kget.publish(&newer).await.unwrap();
    assert_eq!(bench.complete().await, [9]);
    assert_eq!(bench.operator.content(&job()).await.unwrap().fence, 2);
}

async fn b1_a_fence_makes_unfinished_generations_void(bench: &Bench) {
    let complete = bench.sent(7, 1).await.unwrap();
    bench.kget.publish(&complete).await.unwrap();
    let unfinished = bench.sent(8, 1).await.unwrap();
    let kept = KeptPart { incarnation: 1, nonce: "n1".into(), part: unfinished.members[0].clone() };
    bench.ledger.keep_part(&job(), 8, &kept).await.unwrap();
    bench.operator.fence(&job(), 2).await.unwrap();
    assert_eq!(bench.ledger.kept_parts(&job(), 8).await.unwrap(), []);
    assert!(matches!(bench.ledger.keep_part(&job(), 8, &kept).await, Err(RepositoryError::Refused(_))));
    assert_eq!(bench.complete().await, [7]);
    // an answer that was lost is still given
    bench.kget.publish(&complete).await.unwrap();
    let to = bench.directory.path().join("fetched");
    bench.agent(0, 2).get_part(&job(), 7, 0, &complete.members[0].files[0], &to, &|_| {}).await.unwrap();
}

async fn b2_numbers_are_remembered_and_nothing_is_replaced(bench: &Bench) {
    let first = bench.sent(5, 1).await.unwrap();
    assert_eq!(bench.operator.content(&job()).await.unwrap().highest, 5);
    bench.kget.publish(&first).await.unwrap();
    bench.kget.publish(&first).await.unwrap();
    let other = Manifest { nonce: "another cut".into(), ..first.clone() };
    assert!(matches!(bench.kget.publish(&other).await, Err(RepositoryError::Refused(_))));
    assert_eq!(bench.operator.manifest(&job(), 5).await, Ok(first));
    bench.operator.retire(&job(), 5).await.unwrap();
    let left = bench.operator.content(&job()).await.unwrap();
    assert_eq!((left.highest, left.generations.len()), (5, 0));
}

async fn b2_what_was_given_up_never_becomes_complete(bench: &Bench) {
    let complete = bench.sent(5, 1).await.unwrap();
    bench.kget.publish(&complete).await.unwrap();
    let failed = bench.sent(6, 1).await.unwrap();
    let kept = KeptPart { incarnation: 1, nonce: "n1".into(), part: failed.members[0].clone() };
    bench.ledger.keep_part(&job(), 6, &kept).await.unwrap();
    bench.operator.give_up(&job(), 6).await.unwrap();
    bench.operator.give_up(&job(), 6).await.unwrap();
    assert_eq!(bench.ledger.kept_parts(&job(), 6).await.unwrap(), []);
    assert!(matches!(bench.send(6, 0, 1).await, Err(RepositoryError::Refused(_))));
    assert!(matches!(bench.ledger.keep_part(&job(), 6, &kept).await, Err(RepositoryError::Refused(_))));
    assert!(matches!(bench.kget.publish(&failed).await, Err(RepositoryError::Refused(_))));
    // only this one, and never a complete one
    assert!(matches!(bench.operator.give_up(&job(), 5).await, Err(RepositoryError::Refused(_))));
    let next = bench.sent(7, 1).await.unwrap();
    bench.kget.publish(&next).await.unwrap();
    assert_eq!(bench.complete().await, [5, 7]);
}

async fn b15_safe_is_what_the_repository_lists(bench: &Bench) {
    let made = bench.sent(4, 1).await.unwrap();
    let kept =
        |part: &crate::store::manifest::MemberPart| KeptPart { incarnation: 1, nonce: "n1".into(), part: part.clone() };
    assert_eq!(bench.ledger.kept_parts(&job(), 4).await.unwrap(), []);
    for part in &made.members {
        bench.ledger.keep_part(&job(), 4, &kept(part)).await.unwrap();
        bench.ledger.keep_part(&job(), 4, &kept(part)).await.unwrap();
    }
    let listed = bench.ledger.kept_parts(&job(), 4).await.unwrap();
    assert_eq!(listed, made.members.iter().map(kept).collect::<Vec<_>>());
    let mut never_sent = kept(&made.members[0]);
    never_sent.part.files[0].digest = "1".repeat(64);
    assert!(matches!(bench.ledger.keep_part(&job(), 4, &never_sent).await, Err(RepositoryError::NotFound(_))));
}

async fn d1_a_ticket_is_needed(bench: &Bench) {
    let path = bench.file("part", b"bytes");
    let store = bench.agent(0, 1);
    let refused = store.put_part("rubbish", &job(), 1, 0, FileKind::Memory, &path, &|_| {}).await;
    assert!(matches!(refused, Err(RepositoryError::Refused(_))), "{refused:?}");
    assert_eq!(bench.operator.content(&job()).await, Ok(super::JobContent::default()));
}

async fn a_missing_file_keeps_a_manifest_unpublished(bench: &Bench) {
    let mut made = manifest(2);
    made.members[0].files = bench.send(2, 0, 1).await.unwrap();
    let refused = bench.kget.publish(&made).await;
    assert!(matches!(refused, Err(RepositoryError::NotFound(_))), "{refused:?}");
    made.members.pop();
    made.members[0].index = 1;
    assert!(matches!(bench.kget.publish(&made).await, Err(RepositoryError::Refused(_))));
    assert_eq!(bench.complete().await, [] as [Generation; 0]);
}

async fn what_is_retired_or_removed_is_gone(bench: &Bench) {
    for generation in [1, 2, 3] {
        let made = bench.sent(generation, 1).await.unwrap();
        bench.kget.publish(&made).await.unwrap();
    }
    bench.operator.retire(&job(), 1).await.unwrap();
    bench.operator.retire(&job(), 1).await.unwrap();
    assert_eq!(bench.complete().await, [2, 3]);
    bench.agent(0, 1).put_output(&job(), 0, "output", futures::stream::empty().boxed()).await.unwrap();
    bench.operator.remove_job(&job()).await.unwrap();
    bench.operator.remove_job(&job()).await.unwrap();
    assert_eq!(bench.operator.content(&job()).await, Ok(super::JobContent::default()));
    assert_eq!(bench.operator.outputs(&job()).await, Ok(vec![]));
    assert!(matches!(bench.send(4, 0, 1).await, Err(RepositoryError::Refused(_))));
}

async fn outputs_are_kept_and_listed(bench: &Bench) {
    let own = bench.agent(1, 1);
    for text in ["first", "second"] {
        let body = futures::stream::iter([Ok(Bytes::from(text))]).boxed();
        own.put_output(&job(), 1, "/data/a file?&.txt", body).await.unwrap();
    }
    let listed = bench.operator.outputs(&job()).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].member, listed[0].path.as_str(), listed[0].size), (1, "/data/a file?&.txt", 6));
    if bench.key.is_none() {
        let read = bench.importer.get_output(&job(), 1, "/data/a file?&.txt").await.unwrap();
        assert_eq!(read.try_collect::<Vec<_>>().await.unwrap().concat(), b"second");
    }
}

async fn images_are_their_digests(bench: &Bench) {
    let path = bench.file("image", b"an image");
    let digest = crate::store::layout::image_name(&Sha256::digest(b"an image"));
    let other = format!("sha256:{}", "a".repeat(64));
    assert_eq!(bench.operator.image(&digest).await, Ok(None));
    assert!(matches!(bench.importer.put_image(&other, &path).await, Err(RepositoryError::Damaged(_))));
    assert_eq!(bench.operator.image(&other).await, Ok(None));
    bench.importer.put_image(&digest, &path).await.unwrap();
    bench.importer.put_image(&digest, &path).await.unwrap();
    assert_eq!(bench.operator.image(&digest).await, Ok(Some(8)));
    let to = bench.directory.path().join("fetched");
    bench.agent(0, 1).get_image(&digest, &to, &|_| {}).await.unwrap();
    assert_eq!(std::fs::read(to).unwrap(), b"an image");
    let to = bench.directory.path().join("not fetched");
    assert!(matches!(bench.agent(0, 1).get_image(&other, &to, &|_| {}).await, Err(RepositoryError::NotFound(_))));
    assert!(!to.exists());
}

async fn d2_a_disk_is_what_its_head_says(bench: &Bench) {
    let path = bench.file("image", &[7; 5000]);
    let digest = crate::store::layout::image_name(&Sha256::digest([7; 5000]));
    let record = DiskRecord { format: DiskFormat::Raw, virtual_size: 5000 };
    let missing = bench.importer.note_disk(&digest, &record).await;
    assert!(matches!(missing, Err(RepositoryError::NotFound(_))), "{missing:?}");
    bench.importer.put_image(&digest, &path).await.unwrap();
    assert_eq!(bench.operator.disk_record(&digest).await, Ok(None));
    for wrong in [DiskRecord { virtual_size: 1 << 40, ..record }, DiskRecord { format: DiskFormat::Qcow2, ..record }] {
        let refused = bench.importer.note_disk(&digest, &wrong).await;
        assert!(matches!(refused, Err(RepositoryError::Damaged(_))), "{refused:?}");
    }
    bench.importer.note_disk(&digest, &record).await.unwrap();
    bench.importer.note_disk(&digest, &record).await.unwrap();
    assert_eq!(bench.operator.disk_record(&digest).await, Ok(Some(record)));
}

async fn b12_images_go_once_nothing_names_them(bench: &Bench) {
    let path = bench.file("image", b"an image");
    let digest = crate::store::layout::image_name(&Sha256::digest(b"an image"));
    bench.importer.put_image(&digest, &path).await.unwrap();
    let review = |named: &[&String], second: i64| crate::store::images::ImageReview {
        named: named.iter().map(|digest| (*digest).clone()).collect(),
        now: jiff::Timestamp::from_second(second).unwrap(),
        grace: 3600,
    };
    let mut made = bench.sent(1, 1).await.unwrap();
    made.image.kernel = Some(digest.clone());
    bench.kget.publish(&made).await.unwrap();
    let gone = async |named: &[&String], second| bench.operator.review_images(&review(named, second)).await.unwrap();
    assert_eq!(gone(&[&digest], 0).await, [] as [String; 0]);
    assert_eq!(gone(&[], 10_000).await, [] as [String; 0], "a complete generation names it");
    bench.operator.retire(&job(), 1).await.unwrap();
    assert_eq!(gone(&[], 20_000).await, [] as [String; 0], "its time begins");
    assert_eq!(gone(&[], 23_599).await, [] as [String; 0]);
    assert_eq!(bench.operator.image(&digest).await, Ok(Some(8)));
    assert_eq!(gone(&[], 23_600).await, std::slice::from_ref(&digest));
    assert_eq!(bench.operator.image(&digest).await, Ok(None));
    bench.importer.put_image(&digest, &path).await.unwrap();
    assert_eq!(gone(&[], 30_000).await, [] as [String; 0], "it has all its time again");
}

async fn b11_a_generation_lives_on_in_the_job_that_adopted_it(bench: &Bench) {
    let made = bench.sent(7, 1).await.unwrap();
    let order = |generation| Adoption {
        from: Ancestor { job: job(), generation },
        job_name: "again".into(),
        namespace: made.namespace.clone(),
    };
    let own = JobUid::from("77777777-0000");
    let early = bench.operator.adopt(&own, &order(7)).await;
    assert!(matches!(early, Err(RepositoryError::NotFound(_))), "not complete yet: {early:?}");
    bench.kget.publish(&made).await.unwrap();
    let foreign = Adoption { namespace: "bob".into(), ..order(7) };
    assert!(matches!(bench.operator.adopt(&own, &foreign).await, Err(RepositoryError::Refused(_))));
    assert_eq!(bench.operator.content(&own).await, Ok(super::JobContent::default()));
    let summary = bench.operator.adopt(&own, &order(7)).await.unwrap();
    assert_eq!((summary.generation, summary.incarnation, summary.members), (0, 0, 2));
    bench.operator.remove_job(&job()).await.unwrap();
    assert_eq!(bench.operator.adopt(&own, &order(7)).await.as_ref(), Ok(&summary), "asked again");
    assert!(matches!(bench.operator.adopt(&own, &order(8)).await, Err(RepositoryError::Refused(_))));
    bench.operator.fence(&own, 1).await.unwrap();
    assert_eq!(bench.operator.content(&own).await.unwrap().generations, [summary]);
    let reader = bench.agent_of(&own);
    let found = reader.get_manifest(&own, 0).await.unwrap();
    assert_eq!((&found.guests, &found.job), (&made.guests, &own));
    for file in &found.members[1].files {
        let to = bench.directory.path().join("adopted");
        reader.get_part(&own, 0, 1, file, &to, &|_| {}).await.unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), content(7, 1, 1, file.kind));
    }
    bench.operator.fence(&"88888888".into(), 1).await.unwrap();
    let late = bench.operator.adopt(&"88888888".into(), &order(7)).await;
    assert!(late.is_err(), "{late:?}");
}

async fn wrong_names_are_refused(bench: &Bench) {
    for wrong in ["..", "../x", "a/b", "-x", ""] {
        let refused = bench.operator.fence(&wrong.into(), 1).await;
        assert!(refused.is_err(), "{wrong:?}");
    }
    assert!(matches!(bench.operator.image("sha256:../x").await, Err(RepositoryError::Refused(_))));
    let long = "x".repeat(500);
    let own = bench.agent(0, 1);
    let refused = own.put_output(&job(), 0, &long, futures::stream::empty().boxed()).await;
    assert!(matches!(refused, Err(RepositoryError::Refused(_))), "{refused:?}");
}
