//! Lives of a job of two VMs with a slot of its own for each, both of which somebody wants: how soon a slot is given
//! back once its member's bytes are safe.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    TestBed,
    job::{Counting, Job, nodes},
    rival::Rival,
    site::OarJob,
};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::{
    Api,
    runtime::{WatchStreamExt as _, watcher},
};
use vmdeploy::api::{Snapshot, job::Allocation, snapshot::SnapshotReason};

use crate::report::{Measured, figure};

const SAMPLES: u32 = 2;
const MEMBERS: u32 = 2;
const LIMIT: Duration = Duration::from_secs(300);
/// How often OAR is asked.
const LOOK: Duration = Duration::from_millis(100);

/// Measures on the test bed of the environment.
pub(crate) async fn measure() -> Result<Measured> {
    let bed = TestBed::find().await?.context("no test bed: eval \"$(e2e/testbed/testbed env)\" first")?;
    let (mut back, mut failed) = (Vec::new(), Vec::new());
    for number in 1..=SAMPLES {
        eprintln!("sample {number} of {SAMPLES}: a life with a notice ...");
        match evicted(&bed).await {
            Ok(seconds) => back.extend(seconds),
            Err(error) => failed.push(format!("life {number}: {error:#}")),
        }
        bed.clean();
    }
    let seen = Some("from the word of kget to that of OAR's API, asked ten times a second");
    let figures = [
        figure("slot_back_s", &back, 0.5, "s", Some(1.0), seen),
        figure("slot_back_s_max", &back, 1.0, "s", None, None),
    ];
    Ok(Measured { figures: figures.into_iter().flatten().collect(), failed })
}

/// Seconds from a member's bytes being safe to its slot being given back, of each.
async fn evicted(bed: &TestBed) -> Result<Vec<f64>> {
    let counting = Counting { members: MEMBERS, period: 20, ..Counting::default() };
    let namespace = bed.namespace("bench-evict").await?;
    let mut object = counting.object("count")?;
    object.spec.slots.allocation = Allocation::PerMember;
    let job = Job::create(bed, &namespace, &object).await?;
    job.wait_stored(0, LIMIT).await?;
    let before = job.get().await?;
    let members = before.status.iter().flat_map(|status| &status.members);
    let slots: BTreeMap<u32, String> =
        members.filter_map(|member| Some((member.index, member.agent.clone()?.slot))).collect();
    let safe = tokio::spawn(safe(bed.clone(), namespace));
    let over = slots.values().map(|slot| tokio::spawn(given_back(slot.clone())));
    let over: Vec<_> = over.collect();
    let rival = Rival::submit(bed, &nodes(&before), Duration::from_secs(1))?;
    let safe = safe.await??;
    let mut seconds = Vec::new();
    for ((member, slot), over) in slots.iter().zip(over) {
        let over = over.await??;
        let safe = safe.get(member).with_context(|| format!("the bytes of member {member} were never safe"))?;
        ensure!(over >= *safe, "slot {slot} was given back before the bytes of its member were safe");
        seconds.push(over.duration_since(*safe).as_secs_f64());
    }
    rival.found(LIMIT).await?;
    job.delete(LIMIT).await?;
    Ok(seconds)
}

/// When the bytes of each member of a last snapshot were seen to be safe.
async fn safe(bed: TestBed, namespace: String) -> Result<BTreeMap<u32, Instant>> {
    let api: Api<Snapshot> = Api::namespaced(bed.client, &namespace);
    let mut events = watcher(api, watcher::Config::default()).applied_objects().boxed();
    let mut safe = BTreeMap::new();
    while safe.len() < MEMBERS as usize {
        let snapshot = tokio::time::timeout(LIMIT, events.try_next()).await??.context("the watch has ended")?;
        if snapshot.reason() != SnapshotReason::Notice {
            continue;
        }
        let transfer = snapshot.status.and_then(|status| status.transfer).unwrap_or_default();
        for member in transfer.safe {
            safe.entry(member).or_insert_with(Instant::now);
        }
    }
    Ok(safe)
}

/// When OAR no longer says that a slot runs, or has been told to end it.
async fn given_back(slot: String) -> Result<Instant> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        let job = OarJob::read(&slot).await?;
        if job.state != "Running" || job.first("FRAG_JOB_REQUEST").is_some() {
            return Ok(Instant::now());
        }
        tokio::time::sleep(LOOK).await;
    }
    anyhow::bail!("slot {slot} was not given back")
}
