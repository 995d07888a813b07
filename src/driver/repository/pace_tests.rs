//! A part that stands still and goes on, against the real server.

use std::{sync::Arc, time::Duration};

use super::{
    ByteStore as _, Sending,
    contract::{Bench, job},
    pace::Pace,
};
use crate::{names::Identity, store::manifest::FileKind};

/// More than a pack, and nothing that compresses away.
const SIZE: usize = 11 << 19;

#[tokio::test]
async fn what_is_whole_at_the_repository_is_not_sent_again_by_one_that_stood_still() {
    let bench = Bench::real().await;
    let mut content = vec![0; SIZE];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    let (path, ticket) = (bench.file("part", &content), bench.ticket(1, 0, 1));
    let pace = Arc::<Pace>::default();
    let agent = bench.client(&Identity::Agent { job: job(), member: 0, incarnation: 1 }).at(pace.clone());
    pace.set(Some(SIZE as u64));
    let (of, note) = (job(), |_: Sending| {});
    let send = || agent.put_part(&ticket, &of, 1, 0, FileKind::Disk, &path, &note);
    let stop = async {
        while pace.moved() < (9 << 19) {
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
    let before = pace.moved();
    assert!(before < SIZE as u64, "{before}");
    pace.set(None);
    let file = send().await.unwrap();
    let again = pace.moved() - before;
    assert_eq!(file.size, SIZE as u64);
    assert!(((SIZE - (9 << 19)) as u64..4 << 19).contains(&again), "{again} bytes were sent");
}
