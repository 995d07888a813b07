//! The repository in front of a real S3 server: what is complete outlives every process and every volume, and only one
//! repository writes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    agents::{JOB, LIMIT, digest},
    bucket::{KINDS, Store, Told, content, noise},
};
use rstest::rstest;
use vmdeploy::{
    driver::repository::{ByteStore as _, Repository as _},
    names::Identity,
};

fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Runtime::new()?.block_on(work)
}

#[ignore = "needs versitygw: e2e/test --e2e"]
#[test]
fn b7_all_is_restored_when_the_volume_is_lost() -> Result<()> {
    let store = Store::new()?;
    run(async {
        let mut server = store.serve("volume", &Told::default())?;
        ensure!(store.complete(&mut server).await?.is_empty());
        for generation in 1..=3 {
            store.publish(&server, generation, 1).await?;
        }
        // sent in parts, and too large for the cache
        let path = store.volume("image");
        let image = noise(&path, 40 << 20)?;
        let digest = digest(&image);
        store.client(&server, &Identity::Importer)?.put_image(&digest, &path).await?;
        server.process.kill()?;
        std::fs::remove_dir_all(store.volume("volume"))?;

        let mut server = store.serve("volume", &Told::default())?;
        ensure!(store.complete(&mut server).await? == [1, 2, 3]);
        for generation in 1..=3 {
            store.restore(&server, generation).await?;
        }
        let agent = Identity::Agent { job: JOB.into(), member: 0, incarnation: 1 };
        let to = store.volume("fetched");
        store.client(&server, &agent)?.get_image(&digest, &to, &|_| {}).await?;
        ensure!(std::fs::read(&to)? == image, "the image is another");
        // what was there is found, and not sent again
        let fourth = store.publish(&server, 4, 1).await?;
        let packed: u64 = fourth.members.iter().flat_map(|part| &part.files).map(|file| file.packed).sum();
        let new = KINDS.map(|kind| content(4, kind).len() as u64 / 2).iter().sum::<u64>();
        ensure!(packed < new + new / 20, "{packed} bytes were sent, and {new} are new");
        let said = store.ask("verify")?;
        ensure!(said.contains("4 generations"), "{said}");
        let said = store.ask("usage")?;
        ensure!(said.contains(JOB), "{said}");
        Ok(())
    })
}

/// Deaths: who comes after one waits a minute for what the dead one may still have under way.
const ROUNDS: u32 = 2;

#[ignore = "needs versitygw: e2e/test --e2e"]
#[test]
fn b7_whatever_was_complete_stays_so_when_the_repository_is_killed_at_any_moment() -> Result<()> {
    let store = Store::new()?;
    run(async {
        let mut server = store.serve("volume", &Told::default())?;
        let mut complete = Vec::new();
        // the moments are spread over the time that a publication takes
        let mut takes = Duration::from_secs(4);
        for round in 1..=ROUNDS {
            let begun = Instant::now();
            let moment = takes.mul_f64(f64::from(round * 3 % 10) / 10.0);
            let published = tokio::select! {
                published = store.publish(&server, round, 1) => published.map(drop),
                () = tokio::time::sleep(moment) => Err(anyhow::anyhow!("killed after {moment:?}")),
            };
            match published {
                Ok(()) => {
                    complete.push(round);
                    takes = begun.elapsed();
                }
                Err(error) => eprintln!("generation {round}: {error}"),
            }
            server.process.kill()?;
            server = store.serve("volume", &Told::default())?;
            let there = store.complete(&mut server).await?;
            ensure!(complete.iter().all(|one| there.contains(one)), "{there:?} after {complete:?} in round {round}");
            // what was published when nobody waited any more is complete as well
            complete = there;
            for generation in complete.iter().rev().take(2) {
                store.restore(&server, *generation).await?;
            }
        }
        store.publish(&server, ROUNDS + 1, 1).await?;
        store.restore(&server, ROUNDS + 1).await?;
        let said = store.ask("verify")?;
        ensure!(said.contains(&format!("{} generations", complete.len() + 1)), "{said}");
        Ok(())
    })
}

#[ignore = "needs versitygw: e2e/test --e2e"]
#[test]
fn b1_of_two_repositories_the_older_one_publishes_nothing_more() -> Result<()> {
    let store = Store::new()?;
    run(async {
        let mut old = store.serve("old", &Told::default())?;
        store.complete(&mut old).await?;
        store.publish(&old, 1, 1).await?;
        let mut new = store.serve("new", &Told::default())?;
        ensure!(store.complete(&mut new).await? == [1]);
        let late = store.publish(&old, 2, 1).await.err().context("it published")?;
        ensure!(late.to_string().contains("another repository"), "{late}");
        let operator = store.client(&old, &Identity::Operator)?;
        ensure!(operator.fence(&JOB.into(), 2).await.is_err() && operator.retire(&JOB.into(), 1).await.is_err());
        let operator = store.client(&new, &Identity::Operator)?;
        operator.fence(&JOB.into(), 2).await?;
        store.publish(&new, 3, 2).await?;
        ensure!(store.complete(&mut new).await? == [1, 3]);
        for generation in [1, 3] {
            store.restore(&new, generation).await?;
        }
        store.ask("verify").map(drop)
    })
}

#[rstest]
#[case::credentials(Told { password: "wrong".into(), ..Told::default() }, "AWS_SECRET_ACCESS_KEY")]
#[case::bucket(Told { bucket: "s3://another/folder".into(), ..Told::default() }, "no such bucket")]
#[ignore = "needs versitygw: e2e/test --e2e"]
fn what_is_wrong_with_a_bucket_is_said_to_whoever_asks(#[case] told: Told, #[case] text: &str) -> Result<()> {
    let store = Store::new()?;
    run(async {
        let server = store.serve("volume", &told)?;
        let operator = store.client(&server, &Identity::Operator)?;
        let begun = Instant::now();
        loop {
            let error = operator.content(&JOB.into()).await.err().context("it serves")?;
            if error.to_string().contains(text) {
                return Ok(());
            }
            ensure!(begun.elapsed() < LIMIT, "{error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
}
