//! Both sides through the directories of real leases; the hold is played by moving files.

use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rstest::rstest;
use sha2::{Digest as _, Sha256};

use super::{super::arriving::Arriving, *};
use crate::{
    agent::{fence::lease::Lease, supervisor::testing::config},
    store::pieces::tests::pieces_of,
};

const SIZE: usize = 2 * (PIECE as usize) + 300_000;

struct Node {
    root: tempfile::TempDir,
    lease: LeaseConfig,
    _held: Lease,
    image: Vec<u8>,
    digest: String,
}

impl Node {
    fn new(feed: Option<&str>) -> Self {
        let root = tempfile::tempdir().unwrap();
        let lease = config(root.path()).lease;
        let held = Lease::make(&lease, "77").unwrap();
        let mut image = vec![0; SIZE];
        blake3::Hasher::new().update(b"an image").finalize_xof().fill(&mut image);
        let digest = format!("sha256:{:x}", Sha256::digest(&image));
        let node = Self { root, lease, _held: held, image, digest };
        if let Some(feed) = feed {
            fs::write(node.path("feed"), format!("{feed}\n")).unwrap();
        }
        fs::write(node.path("lock"), "").unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.lease.root).join(&self.lease.directory).join(name)
    }

    fn names(&self) -> Names {
        Names::of(&self.digest).unwrap()
    }

    fn piece(&self, number: usize) -> &[u8] {
        self.image.chunks(PIECE as usize).nth(number).unwrap()
    }

    fn inward(&self, number: usize) -> PathBuf {
        self.path(&self.names().inward).join(number.to_string())
    }

    fn outward(&self, number: usize) -> PathBuf {
        self.path(&self.names().outward).join(number.to_string())
    }

    fn arriving(&self) -> Arriving {
        Arriving::open(self.root.path(), &self.digest, Arc::new(pieces_of(&self.image))).unwrap()
    }

    fn putting(&self) -> Arc<Putting> {
        Putting::of(self.lease.clone(), CancellationToken::new())
    }

    /// What was taken while somebody puts.
    async fn take(&self, puts: impl AsyncFnOnce()) -> u64 {
        let Some(Place::Node(directory)) = self.putting().place().await else { panic!("it takes nothing") };
        let (progress, begun) = (AtomicU64::new(0), std::time::Instant::now());
        let note = |have: u64| progress.store(have, Ordering::Relaxed);
        let taking = async {
            let arriving = take(&directory, &self.digest, self.arriving(), &note).await.unwrap();
            // long before nothing came in time
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            arriving
        };
        let (arriving, ()) = tokio::join!(taking, puts());
        for name in [self.names().want, self.names().inward] {
            assert!(!self.path(&name).exists(), "{name} stays");
        }
        // it is told with each piece of TakTuk's
        let told = progress.into_inner();
        assert!(told <= arriving.have() && arriving.have() - told < 4 << 20, "{told} of {}", arriving.have());
        arriving.have()
    }

    async fn wanted(&self) {
        until(|| self.path(&self.names().want).exists()).await;
        let mode = fs::metadata(self.path(&self.names().inward)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}

async fn until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn pieces_are_taken_as_they_come_and_removed() {
    let node = Node::new(Some("node"));
    let puts = async || {
        node.wanted().await;
        for number in 0..3 {
            // in two parts, as it arrives
            let (first, rest) = node.piece(number).split_at(100_000);
            fs::write(node.inward(number), first).unwrap();
            sleep(3 * PACE).await;
            let mut file = File::options().append(true).open(node.inward(number)).unwrap();
            std::io::Write::write_all(&mut file, rest).unwrap();
            until(|| !node.inward(number).exists()).await;
        }
    };
    assert_eq!(node.take(puts).await, SIZE as u64);
}

/// What the directory may hold that is not the next piece.
#[derive(Clone, Copy, Debug)]
enum Bad {
    Wrong,
    Long,
    Link,
    Pipe,
    Missing,
    TooMany,
}

#[rstest]
#[case(Bad::Wrong, (PIECE + (1 << 20)) & !0xffff)]
#[case(Bad::Long, PIECE)]
#[case(Bad::Link, PIECE)]
#[case(Bad::Pipe, PIECE)]
#[case(Bad::Missing, PIECE)]
#[case(Bad::TooMany, PIECE)]
#[tokio::test(start_paused = true)]
async fn d1_what_is_no_piece_ends_it_at_once_and_what_was_right_stays(#[case] bad: Bad, #[case] have: u64) {
    let node = Node::new(Some("node"));
    let puts = async || {
        node.wanted().await;
        fs::write(node.inward(0), node.piece(0)).unwrap();
        until(|| !node.inward(0).exists()).await;
        let (new, mut bytes) = (node.root.path().join("new"), node.piece(1).to_vec());
        match bad {
            Bad::Wrong => bytes[(1 << 20) + 5] ^= 1,
            Bad::Long => bytes.push(0),
            _ => {}
        }
        fs::write(&new, bytes).unwrap();
        match bad {
            Bad::Wrong | Bad::Long => fs::rename(new, node.inward(1)).unwrap(),
            Bad::Link => symlink(new, node.inward(1)).unwrap(),
            Bad::Pipe => {
                rustix::fs::mknodat(
                    rustix::fs::CWD,
                    node.inward(1),
                    rustix::fs::FileType::Fifo,
                    rustix::fs::Mode::from_raw_mode(0o600),
                    0,
                )
                .unwrap();
            }
            Bad::Missing => fs::rename(new, node.inward(2)).unwrap(),
            Bad::TooMany => (10..20).for_each(|number| fs::write(node.inward(number), "").unwrap()),
        }
    };
    assert_eq!(node.take(puts).await, have);
}

#[tokio::test(start_paused = true)]
async fn what_is_here_already_need_not_come_again() {
    let node = Node::new(Some("node"));
    let mut before = node.arriving();
    before.add(&node.image[..PIECE as usize + 500_000]).unwrap();
    drop(before);
    let puts = async || {
        node.wanted().await;
        for number in 0..3 {
            fs::write(node.inward(number), node.piece(number)).unwrap();
            until(|| !node.inward(number).exists()).await;
        }
    };
    assert_eq!(node.take(puts).await, SIZE as u64);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_late_by_a_time_in_which_the_machine_stood_still() {
    let node = Node::new(Some("node"));
    let puts = async || {
        node.wanted().await;
        for number in 0..3 {
            // longer than any piece may take
            tokio::time::advance(Duration::from_secs(20)).await;
            sleep(3 * PACE).await;
            fs::write(node.inward(number), node.piece(number)).unwrap();
            until(|| !node.inward(number).exists()).await;
        }
    };
    assert_eq!(node.take(puts).await, SIZE as u64);
}

#[tokio::test]
async fn nobody_waits_for_what_an_agent_without_images_would_give() {
    let first = Node::new(Some("root"));
    first.putting().gives_nothing();
    assert!(first.path(NO_IMAGES).exists());
    let node = Node::new(Some("node"));
    let puts = async || {
        node.wanted().await;
        // as the hold tells it, over what it said
        fs::write(node.path("feed"), format!("{NOTHING}\n")).unwrap();
    };
    assert_eq!(node.take(puts).await, 0);
}

#[rstest]
#[case::older(None)]
#[case::nothing(Some(NOTHING))]
#[case::newer(Some("branch"))]
#[tokio::test(start_paused = true)]
async fn a_hold_that_puts_nothing_is_not_waited_for(#[case] feed: Option<&str>) {
    let begun = Instant::now();
    assert!(Node::new(feed).putting().place().await.is_none());
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn an_image_is_given_two_pieces_at_a_time_as_far_as_it_is_here_and_as_often_as_it_is_wanted() {
    let node = Node::new(Some("root"));
    let source = node.root.path().join("source");
    fs::write(&source, &node.image).unwrap();
    let mut standing = Standing::new();
    standing.size = Some(SIZE as u64);
    standing.file = Some(Arc::new(File::open(source).unwrap()));
    let image = watch::Sender::new(standing);
    let putting = node.putting();
    // of an agent that was here before
    fs::create_dir(node.path(&node.names().outward)).unwrap();
    fs::write(node.outward(7), "old").unwrap();
    putting.offer(&node.digest, image.subscribe());
    until(|| !node.path(&node.names().outward).exists()).await;
    let wanted = node.path(&node.names().wanted);
    fs::write(&wanted, "").unwrap();
    until(|| node.path(&node.names().outward).exists()).await;
    sleep(5 * PACE).await;
    assert!(!node.outward(0).exists(), "nothing of it is here");
    image.send_modify(|standing| standing.have = PIECE + 5);
    until(|| node.outward(0).exists()).await;
    sleep(5 * PACE).await;
    assert!(!node.outward(1).exists());
    for _ in 0..2 {
        image.send_modify(|standing| standing.have = SIZE as u64);
        until(|| node.outward(1).exists()).await;
        sleep(5 * PACE).await;
        assert!(!node.outward(2).exists(), "two are enough");
        for number in 0..3 {
            until(|| node.outward(number).exists()).await;
            assert!(fs::read(node.outward(number)).unwrap() == node.piece(number));
            let mode = fs::metadata(node.outward(number)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o444, "the site's user reads it");
            fs::remove_file(node.outward(number)).unwrap();
        }
        until(|| !wanted.exists() && !node.path(&node.names().outward).exists()).await;
        fs::write(&wanted, "").unwrap();
    }
    // nobody wants it any more in the middle
    until(|| node.outward(1).exists()).await;
    fs::remove_file(&wanted).unwrap();
    until(|| !node.path(&node.names().outward).exists()).await;
}
