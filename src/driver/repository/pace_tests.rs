//! A part that stands still and goes on, against the real server.

use std::{path::Path, sync::Arc, time::Duration};

use super::{
    ByteStore as _, Sending,
    contract::{Bench, job},
    pace::Pace,
};
use crate::{names::Identity, store::manifest::FileKind};

/// More than a pack, and nothing that compresses away.
const SIZE: u64 = 11 << 19;
/// Of a recipe, and of what is said of packs.
const BESIDE: u64 = 1 << 16;

/// Bytes of the packs that are whole in a store.
fn whole(packs: &Path) -> u64 {
    let found = std::fs::read_dir(packs).into_iter().flatten().flatten();
    found.map(|entry| entry.metadata().unwrap().len()).sum()
}

#[tokio::test]
async fn what_is_whole_at_the_repository_is_not_sent_again_by_one_that_stood_still() {
    let bench = Bench::real().await;
    let packs = bench.directory.path().join(format!("root/jobs/{}/packs", job()));
    let mut content = vec![0; SIZE as usize];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    let (path, ticket) = (bench.file("part", &content), bench.ticket(1, 0, 1));
    let pace = Arc::<Pace>::default();
    let agent = bench.client(&Identity::Agent { job: job(), member: 0, incarnation: 1 }).at(pace.clone());
    pace.set(Some(SIZE / 2));
    let (of, note) = (job(), |_: Sending| {});
    let send = || agent.put_part(&ticket, &of, 1, 0, FileKind::Disk, &path, &note);
    let stop = async {
        while whole(&packs) == 0 {
            // both packs are on their way by then: the disk may take half a minute for the one that is through first
            if pace.moved() > SIZE * 3 / 5 {
                pace.set(Some(SIZE / 80));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        pace.set(Some(0));
    };
    tokio::select! {
        sent = send() => panic!("{sent:?}"),
        () = stop => {}
    }
    // what was on its way is lost, and only that
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (before, there) = (pace.moved(), whole(&packs));
    assert!(there > 0 && before < SIZE, "{there} {before}");
    pace.set(None);
    let file = send().await.unwrap();
    let again = pace.moved() - before;
    assert!(again <= SIZE - there + BESIDE, "{again} bytes were sent, and {there} were there");
    assert!(file.size == SIZE && file.packed >= SIZE, "{file:?}");
}
