//! Agents that serve each other over real connections, with a real repository behind them.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, response::Response, routing::get};
use futures::{StreamExt as _, stream};
use rstest::rstest;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        Supervisor, images, server,
        testing::{Making, config},
    },
    Origin,
};
use crate::{
    driver::{
        agent::{
            AgentAddress, AgentConfig, ChainPeer,
            http::AgentHttp,
            peer::{self, ImagePeer as _, PORTION, Report},
        },
        repository::{
            contract::{Bench, job},
            piecewise::Piecewise as _,
        },
    },
    names::{Identity, MemberIndex},
    tls,
};

const HOUR: Duration = Duration::from_secs(3600);
/// A few pieces, and a part of one.
const SIZE: usize = (3 << 20) + 1234;

fn content() -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    blake3::Hasher::new().update(b"an image").finalize_xof().fill(&mut bytes);
    bytes
}

fn identity(member: MemberIndex) -> Identity {
    Identity::Agent { job: job(), member, incarnation: 1 }
}

fn issue(bench: &Bench, who: &Identity) -> tls::Credentials {
    bench.clients.as_ref().unwrap().0.issue(who, jiff::Timestamp::now(), HOUR).unwrap()
}

/// A repository with an image, and what is asked of it.
struct World {
    bench: Bench,
    digest: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl World {
    async fn new() -> Self {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let world = Self { bench: Bench::of_images(asked.clone()).await, digest: String::new(), asked };
        world.with_image().await
    }

    async fn with_image(mut self) -> Self {
        self.digest = format!("sha256:{:x}", Sha256::digest(content()));
        let file = self.bench.file("image", &content());
        self.bench.importer.put_image(&self.digest, &file).await.unwrap();
        self
    }

    /// How often bytes were asked of the repository, in pieces or whole.
    fn fetches(&self) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|uri| uri.contains("/bytes?") || uri.ends_with(&self.digest.replace(':', "%3A"))).count()
    }

    /// Serves in the name of a member.
    async fn serve(&self, member: MemberIndex, router: Router) -> (ChainPeer, CancellationToken) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (endpoint, own, stop) =
            (listener.local_addr().unwrap(), issue(&self.bench, &identity(member)), CancellationToken::new());
        let token = stop.clone();
        tokio::spawn(async move { tls::serve(listener, &own, router, token).await });
        (ChainPeer { member, endpoint }, stop)
    }

    /// An agent behind others.
    async fn node(&self, member: MemberIndex, chain: &[ChainPeer]) -> Node {
        let root = tempfile::tempdir().unwrap();
        let mut told = AgentConfig { job: job(), member, members: 4, chain: chain.into(), ..config(root.path()) };
        told.image.disk.clone_from(&self.digest);
        let store = Arc::new(self.bench.client(&identity(member)));
        let supervisor = Making::below(root.path()).config(told).store(store).make();
        let (peer, stop) = self.serve(member, server::router(supervisor.clone())).await;
        Node { supervisor, peer, stop, root }
    }
}

struct Node {
    supervisor: Arc<Supervisor>,
    peer: ChainPeer,
    stop: CancellationToken,
    root: tempfile::TempDir,
}

impl Node {
    fn cache(&self) -> &Path {
        &self.supervisor.paths.cache
    }

    /// Brings the image.
    async fn image(&self) -> images::Cached {
        let (own, progress) = (&self.supervisor, Mutex::new(Vec::new()));
        let cache = images::Cache { directory: self.cache(), limit: u64::MAX };
        let note = |done: u64| progress.lock().unwrap().push(done);
        let bringing = images::image(own.store.as_ref(), &own.chain, &cache, &own.config.image.disk, &note);
        let cached = tokio::time::timeout(Duration::from_secs(120), bringing).await.unwrap().unwrap();
        assert!(std::fs::read(&cached.path).unwrap() == content());
        assert!(progress.into_inner().unwrap().is_sorted());
        cached
    }

    fn from(&self) -> Origin {
        self.supervisor.chain.images[&self.supervisor.config.image.disk].borrow().from
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_image_leaves_the_repository_for_all_and_none_for_the_warm() {
    let world = World::new().await;
    let first = world.node(0, &[]).await;
    let second = world.node(1, std::slice::from_ref(&first.peer)).await;
    let third = world.node(2, &[second.peer.clone(), first.peer.clone()]).await;
    // the last one first: each waits for the one before it
    let (third_has, second_has, first_has) = tokio::join!(third.image(), second.image(), first.image());
    assert_eq!(world.fetches(), 1);
    assert_eq!([first.from(), second.from(), third.from()], [Origin::Repository, Origin::Member(0), Origin::Member(1)]);
    let known = third.supervisor.chain.images[&world.digest].borrow().known.clone();
    assert_eq!(known.first().map(|report| report.member), Some(1), "it says how far it is");
    drop((third_has, second_has, first_has));
    let asked = world.asked.lock().unwrap().len();
    second.image().await;
    assert_eq!(world.asked.lock().unwrap().len(), asked, "a warm node asks nothing of anybody");
    let left = std::fs::read_dir(third.cache()).unwrap().flatten().filter(|entry| entry.file_name() != "lock");
    assert_eq!(left.count(), 1, "nothing else is left there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_agent_serves_at_once_also_with_nobody_before_it() {
    let world = World::new().await;
    let warm = world.node(0, &[]).await;
    drop(warm.image().await);
    let again = world.node(0, &[]).await;
    std::fs::create_dir_all(again.cache()).unwrap();
    for entry in std::fs::read_dir(warm.cache()).unwrap().flatten() {
        std::fs::copy(entry.path(), again.cache().join(entry.file_name())).unwrap();
    }
    drop(again.image().await);
    let cold = world.node(1, std::slice::from_ref(&again.peer)).await;
    cold.image().await;
    assert_eq!((world.fetches(), again.from(), cold.from()), (1, Origin::Nobody, Origin::Member(0)));
}

/// What another agent does instead of serving the image to its end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Ends,
    FallsSilent,
    SendsOtherBytes,
    SendsTooMuch,
    KnowsNoImages,
}

fn router(does: Does) -> Router {
    if does == Does::KnowsNoImages {
        return Router::new().route("/v1/state", get(|| async { "" }));
    }
    let serve = move || async move {
        let mut bytes = content();
        match does {
            Does::SendsOtherBytes => bytes[1_500_000] ^= 1,
            Does::SendsTooMuch => bytes.extend_from_slice(&[0; 5000]),
            _ => bytes.truncate(2 * PORTION + 1000),
        }
        let reports = peer::reports(&[Report { member: 1, have: SIZE as u64, pace: None, from: Origin::Nobody }]);
        let frames: Vec<_> = std::iter::once(reports).chain(bytes.chunks(PORTION).map(peer::part)).collect();
        let frames = stream::iter(frames.into_iter().map(Ok::<_, std::convert::Infallible>));
        let silence = stream::once(std::future::pending());
        let body = if does == Does::FallsSilent {
            Body::from_stream(frames.chain(silence))
        } else {
            Body::from_stream(frames)
        };
        Response::new(body)
    };
    Router::new().route("/v1/images/{digest}", get(serve))
}

#[rstest]
#[case(Does::Ends, Origin::Member(0))]
#[case(Does::FallsSilent, Origin::Member(0))]
#[case(Does::SendsOtherBytes, Origin::Member(0))]
// all was right before what was too much
#[case(Does::SendsTooMuch, Origin::Member(1))]
#[case(Does::KnowsNoImages, Origin::Member(0))]
#[tokio::test(flavor = "multi_thread")]
async fn d1_an_agent_that_does_not_do_its_part_is_passed_over(#[case] does: Does, #[case] from: Origin) {
    let world = World::new().await;
    let first = world.node(0, &[]).await;
    let (bad, _stop) = world.serve(1, router(does)).await;
    let third = world.node(2, &[bad, first.peer.clone()]).await;
    let fourth = world.node(3, std::slice::from_ref(&third.peer)).await;
    let _all = tokio::join!(first.image(), third.image(), fourth.image());
    assert_eq!((world.fetches(), third.from(), fourth.from()), (1, from, Origin::Member(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interrupted_fetch_has_left_is_not_fetched_again_and_a_dead_chain_is_no_end() {
    let world = World::new().await;
    let (ends, _stop) = world.serve(0, router(Does::Ends)).await;
    let node = world.node(1, std::slice::from_ref(&ends)).await;
    node.image().await;
    let asked = world.asked.lock().unwrap().clone();
    let bytes: Vec<_> = asked.iter().filter(|uri| uri.contains("/bytes?")).collect();
    assert!(bytes.len() == 1 && bytes[0].ends_with(&format!("/bytes?from={}&to={SIZE}", 2 * PORTION)), "{bytes:?}");
    // the same node later, with a part of the file
    let path = images_path(node.cache(), &world.digest);
    let mut part = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    part.truncate(1_600_000);
    std::fs::write(node.cache().join(format!(".part-{}", &world.digest["sha256:".len()..])), part).unwrap();
    let again = Node { supervisor: node.supervisor.clone(), ..world.node(1, &[]).await };
    drop(again.image().await);
    let asked = world.asked.lock().unwrap().last().cloned().unwrap();
    let have = 1_600_000 / PORTION * PORTION;
    assert!(have > 2 * PORTION && asked.ends_with(&format!("/bytes?from={have}&to={SIZE}")), "{asked}");
    assert!(node.root.path().exists() && !node.stop.is_cancelled());
}

fn images_path(cache: &Path, digest: &str) -> std::path::PathBuf {
    cache.join(digest.replace(':', "-"))
}

#[tokio::test(flavor = "multi_thread")]
async fn d1_images_go_to_the_agents_of_the_same_job_only() {
    let world = World::new().await;
    let node = world.node(0, &[]).await;
    drop(node.image().await);
    let address = AgentAddress { endpoint: node.peer.endpoint, job: job(), member: 0, incarnation: 1 };
    let ask = async |who: &Identity, digest: &str| {
        AgentHttp::new(&issue(&world.bench, who), &address).image_from(digest, 0).await.map(drop)
    };
    ask(&identity(3), &world.digest).await.unwrap();
    assert!(ask(&identity(3), &format!("sha256:{}", "0".repeat(64))).await.is_err());
    for stranger in [
        Identity::Agent { job: "ffffffff".into(), member: 3, incarnation: 1 },
        Identity::Agent { job: job(), member: 3, incarnation: 2 },
        Identity::Operator,
        Identity::Importer,
    ] {
        assert!(ask(&stranger, &world.digest).await.is_err(), "{stranger}");
    }
    // no more than its link can feed, while the image is still to come
    let cold = world.node(0, &[]).await;
    let address = AgentAddress { endpoint: cold.peer.endpoint, ..address };
    let mut taken = Vec::new();
    let client = AgentHttp::new(&issue(&world.bench, &identity(3)), &address);
    while let Ok(frames) = client.image_from(&world.digest, 0).await {
        taken.push(frames);
        assert!(taken.len() <= super::MOST);
    }
    assert_eq!(taken.len(), super::MOST);
    let mut one = taken.pop().unwrap();
    assert!(matches!(one.next().await, Some(Ok(peer::Frame::Reports(_)))), "it is heard at once");
    cold.supervisor.stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(60), one.count()).await;
    assert_eq!(ended.unwrap(), 0, "nothing is sent after the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_without_pieces_gives_images_whole() {
    let asked = Arc::default();
    let world = World { bench: Bench::of_the_first_version().await, digest: String::new(), asked };
    let world = world.with_image().await;
    assert_eq!(world.bench.client(&identity(0)).image_pieces(&world.digest).await, Ok(None));
    let first = world.node(0, &[]).await;
    let second = world.node(1, std::slice::from_ref(&first.peer)).await;
    let _all = tokio::join!(first.image(), second.image());
    assert_eq!([first.from(), second.from()], [Origin::Nobody, Origin::Nobody]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_image_of_the_repository_is_put_aside_whoever_asks_for_its_pieces() {
    let world = World::new().await;
    let stored = world.bench.directory.path().join("root").join(crate::store::layout::image(&world.digest).unwrap());
    let client = world.bench.client(&identity(0));
    client.image_pieces(&world.digest).await.unwrap().unwrap();
    // after its pieces were named
    let mut spoilt = content();
    spoilt[2_000_000] ^= 1;
    std::fs::write(&stored, spoilt).unwrap();
    let node = world.node(0, &[]).await;
    let cache = images::Cache { directory: node.cache(), limit: u64::MAX };
    let own = &node.supervisor;
    let fetched = images::image(own.store.as_ref(), &own.chain, &cache, &world.digest, &|_| {}).await;
    assert!(matches!(fetched, Err(crate::driver::repository::RepositoryError::Damaged(_))), "{fetched:?}");
    for _ in 0..3000 {
        if !stored.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(stored.with_extension("damaged").exists() && !stored.exists());
}
