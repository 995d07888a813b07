//! Rubbish from the network: never a panic, never a byte outside the root.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use axum::{
    Extension, Router,
    body::Body,
    http::{Method, Request, StatusCode},
};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use tower_service::Service as _;

use super::{
    arrivals::Arrivals,
    bearers::Bearers,
    durable::AllSteps,
    http::{Service, router},
    packs_tests::recipe,
    room::Limits,
    store::Store,
};
use crate::{
    clock::Clock,
    names::Identity,
    store::{
        manifest::tests::manifest,
        pack::{BlockName, Builder, PAGE, Packed},
        recipe::Place,
        ticket::{Ticket, TicketKey},
    },
    tls::Peer,
};

const REQUESTS: usize = 2000;

fn segment() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "..",
            ".",
            "%2e%2e",
            "..%2f..%2fx",
            "%2fetc%2fpasswd",
            "%00",
            "%ff%fe",
            "a%0ab",
            "4294967296",
            "-1",
            "0",
            "7",
            "99999999999999999999999",
            "memory",
            "disk",
            "jobs",
            "images",
            "staging",
            "lock",
            "manifest.json",
            "record.json",
            "sha256:..%2f..%2fx",
            "3f2b8a10-9c1d-4e5f-8a7b-112233445566",
            "generations",
            "outputs",
            "members",
            "files",
            "fence",
            "parts",
        ])
        .prop_map(str::to_owned),
        "[a-zA-Z0-9%._~:-]{0,20}",
        "[a-f0-9]{64}",
        Just(pack().pack.name.to_string()),
    ]
}

/// A pack within the limits.
fn pack() -> Packed {
    let mut builder = Builder::new(PAGE);
    builder.push(BlockName::of(&[7; PAGE]), &[7; PAGE]).unwrap();
    builder.finish().unwrap()
}

fn path() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "/v1/jobs/{}",
        "/v1/jobs/{}/fence",
        "/v1/jobs/{}/generations/{}",
        "/v1/jobs/{}/generations/{}/parts",
        "/v1/jobs/{}/generations/{}/members/{}/files/{}?size={}",
        "/v1/jobs/{}/generations/7/members/1/files/{}?digest={}",
        "/v1/jobs/3f2b8a10-9c1d-4e5f-8a7b-112233445566/generations/7/members/1/files/memory?size={}",
        "/v1/jobs/3f2b8a10-9c1d-4e5f-8a7b-112233445566/generations/7/members/1/files/disk?size={}&form=recipe",
        "/v1/jobs/3f2b8a10-9c1d-4e5f-8a7b-112233445566/generations/7/members/1/files/disk/blocks",
        "/v1/jobs/3f2b8a10-9c1d-4e5f-8a7b-112233445566/generations/7/members/1/files/disk/packs/{}",
        "/v1/jobs/{}/generations/{}/members/{}/files/{}/packs/{}",
        "/v1/jobs/3f2b8a10-9c1d-4e5f-8a7b-112233445566/packs/{}",
        "/v1/jobs/{}/packs/{}",
        "/v1/jobs/{}/outputs",
        "/v1/jobs/{}/outputs/{}?path={}",
        "/v1/images/{}",
        "/v1/images/sha256:{}",
        "/{}/{}/{}",
        "/v1/jobs/3f2b8a10-9c1d-4e5f-8a7b-112233445566/outputs/1?path={}",
    ]);
    (known, prop::collection::vec(segment(), 5))
        .prop_map(|(shape, words)| words.iter().fold(shape.to_owned(), |path, word| path.replacen("{}", word, 1)))
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let good = serde_json::to_vec(&manifest(7)).unwrap();
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        Just(br#"{"incarnation":4294967296}"#.to_vec()),
        Just(br#"{"incarnation":3}"#.to_vec()),
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(move |(at, value)| {
            let mut bytes = good.clone();
            let at = at.index(bytes.len());
            bytes[at] = value;
            bytes
        }),
        Just(pack().bytes),
        Just(recipe(&[pack().pack], &[Some(Place { pack: 0, slot: 0 })])),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(|bytes| zstd::bulk::compress(&bytes, 1).unwrap()),
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, value)| {
            let mut bytes = pack().bytes;
            let at = at.index(bytes.len());
            bytes[at] = value;
            bytes
        }),
        Just(vec![7; 320]),
    ]
}

fn tree(path: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(tree(&entry.path()).into_iter().map(|below| format!("{name}/{below}")));
        }
        found.insert(name);
    }
    found
}

fn service(root: &Path, key: &TicketKey) -> Router {
    let store = Store::open(root, Box::new(AllSteps), jiff::Timestamp::now()).unwrap();
    let limits = Limits { part: 200, packs: 1 << 40, image: 200, output: 200, outputs: 900, output_files: 9, free: 0 };
    let (arrivals, clock) = (Arrivals::default(), Clock::system());
    router(Service { store: Arc::new(store), key: key.clone(), limits, arrivals, bearers: Bearers::default(), clock })
}

#[tokio::test]
async fn d3_rubbish_requests_stay_inside_the_root() {
    let outside = tempfile::tempdir().unwrap();
    let root = outside.path().join("deep/down/root");
    std::fs::create_dir_all(&root).unwrap();
    let key = TicketKey::new(b"a secret for the tests only").unwrap();
    let router = service(&root, &key);
    let job = manifest(7).job;
    let ticket = Ticket {
        job: job.clone(),
        generation: 7,
        member: 1,
        incarnation: 9,
        expires: jiff::Timestamp::MAX,
        most: None,
        quota: None,
        bearer: None,
    };
    let ticket = key.sign(&ticket);
    let peers =
        [Identity::Operator, Identity::Kget, Identity::Importer, Identity::Agent { job, member: 1, incarnation: 9 }];
    let methods = [Method::GET, Method::PUT, Method::POST, Method::DELETE, Method::HEAD];
    let requests = (
        path(),
        body(),
        prop::sample::select(peers.to_vec()),
        prop::sample::select(methods.to_vec()),
        prop_oneof![Just(ticket), "[a-zA-Z0-9_.-]{0,80}"],
        any::<bool>(),
    );
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let mut seen = BTreeSet::new();
    for _ in 0..REQUESTS {
        let (path, body, peer, method, ticket, json) = requests.new_tree(&mut runner).unwrap().current();
        let mut request = Request::builder().method(method).uri(&path).header("x-vmdeploy-ticket", ticket);
        if json {
            request = request.header("content-type", "application/json");
        }
        // what is no address at all never leaves a client
        let Ok(request) = request.body(Body::from(body)) else { continue };
        let mut router = router.clone().layer(Extension(Peer(peer)));
        let reply = router.as_service::<Body>().call(request).await.unwrap();
        seen.insert(reply.status());
        assert!(
            reply.status() != StatusCode::INTERNAL_SERVER_ERROR && reply.status() != StatusCode::SERVICE_UNAVAILABLE,
            "{path}: {reply:?}"
        );
    }
    assert!(seen.contains(&StatusCode::OK) && seen.contains(&StatusCode::FORBIDDEN), "{seen:?}");
    assert_eq!(tree(outside.path()).iter().filter(|p| !p.starts_with("deep")).count(), 0);
    let allowed = ["lock", "staging", "trash", "images", "jobs"];
    for name in tree(&root) {
        let first = name.split('/').next().unwrap();
        assert!(allowed.contains(&first), "{name}");
    }
    assert_eq!(std::fs::read_dir(root.join("staging")).unwrap().count(), 0, "half received files are left");
    // and the store is as usable as before
    drop(router);
    Store::open(&root, Box::new(AllSteps), jiff::Timestamp::now()).unwrap();
}
