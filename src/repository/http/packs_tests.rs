use std::sync::Arc;

use axum::{
    Router,
    http::{Method, Request},
};
use tower_service::Service as _;

use super::{super::router, *};
use crate::{
    clock::Clock,
    driver::repository::wire::{TICKET, blocks_path, file_path, new_pack_path, pack_path, write_names},
    names::Identity,
    repository::{
        arrivals::Arrivals,
        bearers::Bearers,
        durable::AllSteps,
        packs_tests::{job, packed, recipe_of, sum_of},
        room::Limits,
    },
    store::{
        layout,
        manifest::{FileForm, FileKind, PartFile},
        pack::{BlockName, Index, PackRef},
        recipe::{Located, Place},
        ticket::{Ticket, TicketKey},
    },
};

const KIND: FileKind = FileKind::Disk;

struct Bench {
    directory: tempfile::TempDir,
    router: Router,
    ticket: String,
}

fn agent(job: &str, member: MemberIndex) -> Identity {
    Identity::Agent { job: job.into(), member, incarnation: 1 }
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("root"), Box::new(AllSteps), jiff::Timestamp::now()).unwrap();
        let key = TicketKey::new(b"a secret for the tests only").unwrap();
        let expires = jiff::Timestamp::MAX;
        let ticket = key.sign(&Ticket {
            job: job(),
            generation: 1,
            member: 0,
            incarnation: 1,
            expires,
            most: Some(1 << 20),
            quota: None,
            bearer: None,
        });
        let limits =
            Limits { part: 1 << 30, packs: 1 << 40, image: 0, output: 0, outputs: 0, output_files: 0, free: 0 };
        let (arrivals, clock) = (Arrivals::default(), Clock::system());
        let router =
            router(Service { store: Arc::new(store), key, limits, arrivals, bearers: Bearers::default(), clock });
        Self { directory, router, ticket }
    }

    async fn ask(
        &self,
        who: Identity,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> (StatusCode, HeaderMap, Vec<u8>) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut router = self.router.clone().layer(Extension(Peer(who)));
        let reply = router.as_service::<Body>().call(request.body(Body::from(body)).unwrap()).await.unwrap();
        let (parts, body) = reply.into_parts();
        (parts.status, parts.headers, axum::body::to_bytes(body, 1 << 24).await.unwrap().to_vec())
    }

    /// As the agent with its ticket.
    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> (StatusCode, Vec<u8>) {
        let own = agent(&job().0, 0);
        let (status, _, reply) = self.ask(own, method, path, &[(TICKET, &self.ticket)], body).await;
        (status, reply)
    }
}

#[tokio::test]
async fn a_file_is_sent_as_a_recipe_and_its_packs_are_read_in_ranges() {
    let bench = Bench::new();
    let made = packed(&[1, 2, 3]);
    let tail = usize::try_from(made.pack.index_range().start).unwrap();
    let index = Index::parse(made.pack.name, &made.bytes[tail..]).unwrap();
    let names: Vec<BlockName> = index.blocks().iter().copied().chain([BlockName([9; 32])]).collect();
    let question = blocks_path(&job(), 1, 0, KIND);
    let found = |reply: &[u8]| postcard::from_bytes::<Located>(reply).unwrap();
    let (status, reply) = bench.send(Method::POST, &question, write_names(&names)).await;
    assert_eq!((status, found(&reply)), (StatusCode::OK, Located { packs: vec![], places: vec![None; 4] }));
    let to_pack = new_pack_path(&job(), 1, 0, KIND, made.pack.name);
    for _ in 0..2 {
        assert_eq!(bench.send(Method::PUT, &to_pack, made.bytes.clone()).await.0, StatusCode::OK);
    }
    let (_, reply) = bench.send(Method::POST, &question, write_names(&names)).await;
    let places: Vec<Option<Place>> = (0..3).map(|slot| Some(Place { pack: 0, slot })).chain([None]).collect();
    assert_eq!(found(&reply), Located { packs: vec![made.pack], places: places.clone() });
    let sent = recipe_of(&[made.pack], &places[..3], sum_of(&[1, 2, 3]));
    let to_file = format!("{}?size=196608&form=recipe", file_path(&job(), 1, 0, KIND));
    let (status, reply) = bench.send(Method::PUT, &to_file, sent.clone()).await;
    assert_eq!(status, StatusCode::OK);
    let digest = blake3::hash(&sent).to_hex().to_string();
    let packed = made.bytes.len() as u64;
    let expected =
        PartFile { kind: KIND, form: FileForm::Recipe, size: 196_608, stored: sent.len() as u64, packed, digest };
    assert_eq!(serde_json::from_slice::<PartFile>(&reply).unwrap(), expected);
    // out again
    let path = pack_path(&job(), made.pack.name);
    let get = async |range: Option<&str>| {
        let headers: Vec<_> = range.map(|range| ("range", range)).into_iter().collect();
        bench.ask(agent(&job().0, 5), Method::GET, &path, &headers, vec![]).await
    };
    let (status, _, bytes) = get(None).await;
    assert!(status == StatusCode::OK && bytes == made.bytes);
    let (status, headers, bytes) = get(Some("bytes=10-29")).await;
    assert_eq!((status, &bytes[..]), (StatusCode::PARTIAL_CONTENT, &made.bytes[10..30]));
    assert_eq!(headers["content-range"], format!("bytes 10-29/{}", made.bytes.len()));
    assert_eq!(headers["content-length"], "20");
    let (status, headers, _) = get(Some("bytes=99999999-")).await;
    assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(headers["content-range"], format!("bytes */{}", made.bytes.len()));
}

#[tokio::test]
async fn b7_who_doubts_a_pack_has_it_read_again() {
    let bench = Bench::new();
    let made = packed(&[1]);
    bench.send(Method::PUT, &new_pack_path(&job(), 1, 0, KIND, made.pack.name), made.bytes).await;
    let path = pack_path(&job(), made.pack.name);
    let doubt = async || {
        let (status, _, reply) = bench.ask(agent(&job().0, 3), Method::POST, &path, &[], vec![]).await;
        assert_eq!(status, StatusCode::OK);
        serde_json::from_slice::<serde_json::Value>(&reply).unwrap()["damaged"].as_bool().unwrap()
    };
    assert!(!doubt().await);
    let stored = bench.directory.path().join("root").join(layout::pack(&job(), made.pack.name).unwrap());
    let mut bytes = std::fs::read(&stored).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&stored, bytes).unwrap();
    assert!(doubt().await);
    assert!(!stored.exists() && stored.with_extension("damaged").exists());
    assert!(doubt().await, "there is none");
}

#[tokio::test]
async fn d1_packs_and_questions_need_certificate_and_ticket() {
    let bench = Bench::new();
    let made = packed(&[1]);
    let PackRef { name, .. } = made.pack;
    let ours = agent(&job().0, 0);
    let ticket = (TICKET, bench.ticket.as_str());
    let refused = async |who: &Identity, method, path: &str, headers: &[(&str, &str)]| {
        let (status, _, _) = bench.ask(who.clone(), method, path, headers, made.bytes.clone()).await;
        status == StatusCode::FORBIDDEN
    };
    for member in [0, 1] {
        let question = blocks_path(&job(), 1, member, KIND);
        let to = new_pack_path(&job(), 1, member, KIND, name);
        for (method, path) in [(Method::POST, question), (Method::PUT, to)] {
            assert!(refused(&ours, method.clone(), &path, &[]).await);
            assert!(refused(&agent(&job().0, 1), method.clone(), &path, &[ticket]).await);
            assert!(refused(&Identity::Kget, method.clone(), &path, &[ticket]).await);
            assert!(member == 0 || refused(&ours, method, &path, &[ticket]).await);
        }
    }
    assert_eq!(bench.send(Method::PUT, &new_pack_path(&job(), 1, 0, KIND, name), made.bytes.clone()).await.0, 200);
    let path = pack_path(&job(), name);
    for method in [Method::GET, Method::POST] {
        assert!(refused(&agent("ffffffff", 0), method.clone(), &path, &[]).await);
        assert!(refused(&Identity::Importer, method, &path, &[]).await);
    }
    // a part that may take little takes little
    let large: Vec<u16> = (1..40).collect();
    let large = packed(&large);
    let sent = bench.send(Method::PUT, &new_pack_path(&job(), 1, 0, KIND, large.pack.name), large.bytes).await;
    assert_eq!(sent.0, StatusCode::PAYLOAD_TOO_LARGE);
}

#[test]
fn d3_only_ranges_that_are_there_are_read() {
    for (range, expected) in [
        ("bytes=0-0", Some((0, 0))),
        ("bytes=3-9", Some((3, 9))),
        ("bytes=3-", Some((3, 9))),
        ("bytes=3-99", Some((3, 9))),
        ("bytes=10-12", None),
        ("bytes=5-4", None),
        ("bytes=-4", None),
        ("bytes=0-1,3-4", None),
        ("bytes=+1-2", None),
        ("bytes=99999999999999999999-", None),
        ("lines=0-1", None),
        ("", None),
    ] {
        assert_eq!(read_range(range, 10), expected, "{range}");
    }
    assert_eq!(read_range("bytes=0-", 0), None);
}
