//! The demonstration's story: applies the sample job, lets somebody else take its nodes, watches it go
//! on elsewhere, and tells with figures from the real objects what happened. Called by `e2e/demo`.
#![expect(clippy::print_stdout, reason = "the story is for people")]

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use e2e::{
    TestBed,
    job::{Job, nodes, slot_ids},
    rival::{Found, Rival},
    site::OarJob,
    testbed::node,
    ticks::{Continuity, continuity},
};
use vmdeploy::api::{BestEffortJob, JobPhase};

/// Tells the story of a job that is killed once.
#[derive(Parser)]
struct Args {
    /// The job to apply.
    #[arg(long, default_value = "manifests/samples/counter.yaml")]
    sample: PathBuf,
    /// Its TICKS, ten a second: the story needs no more.
    #[arg(long, default_value_t = 240)]
    ticks: u64,
    /// Where to apply it.
    #[arg(long, default_value = "demo")]
    namespace: String,
    /// Nodes of the site, all of which somebody else wants.
    #[arg(long, default_value_t = 4)]
    nodes: u32,
    /// Longest time for the whole story, in seconds.
    #[arg(long, default_value_t = 420)]
    limit: u64,
}

/// What is seen on the way.
#[derive(Default)]
struct Seen {
    first_slot: Option<String>,
    last_slot: Option<String>,
    stored_before: Option<u32>,
    rival: Option<String>,
    found: Option<Found>,
    ended: Option<BestEffortJob>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let bed = TestBed::find().await?.context("start the test bed first")?;
    bed.namespace_named(&args.namespace).await?;
    let text = fs::read_to_string(&args.sample).with_context(|| args.sample.display().to_string())?;
    let mut object: BestEffortJob = vmdeploy::yaml::read(&text)?;
    *object.spec.run.env.get_mut("TICKS").context("no TICKS")? = args.ticks.to_string();
    let job = Job::create(&bed, &args.namespace, &object).await?;
    let seen = watch(&bed, &job, &args).await.with_context(|| job.output.tail(20))?;
    tell(&job, &seen, args.ticks).await
}

/// Shows the job's progress and plays the other user, until the job has ended.
async fn watch(bed: &TestBed, job: &Job, args: &Args) -> Result<Seen> {
    let begin = Instant::now();
    let mut seen = Seen::default();
    let mut rival: Option<Rival<'_>> = None;
    let mut line = String::new();
    let mut shown = Instant::now();
    loop {
        let object = job.get().await?;
        let status = object.status.clone().unwrap_or_default();
        let tick = job.output.last_tick(0).unwrap_or(0);
        let now = format!(
            "{:<14} attempt {}  slots {:<6} generation stored {:<4}",
            format!("{:?}", status.phase),
            status.attempt,
            slot_ids(&object).join(","),
            status.snapshots.last_stored.map_or("-".into(), |g| g.to_string()),
        );
        if now != line || shown.elapsed() > Duration::from_secs(5) {
            println!("{:6.1} s   {now} tick {tick}", begin.elapsed().as_secs_f32());
            (line, shown) = (now, Instant::now());
        }
        seen.last_slot = slot_ids(&object).pop().or(seen.last_slot);
        match status.phase {
            JobPhase::Succeeded => {
                seen.ended = Some(object);
                break;
            }
            JobPhase::Failed => bail!("the job has failed"),
            JobPhase::Running if rival.is_none() && status.snapshots.last_stored.is_some() && tick > 0 => {
                seen.first_slot = slot_ids(&object).pop();
                seen.stored_before = status.snapshots.last_stored;
                ensure!(!nodes(&object).is_empty(), "running, but on no node");
                let all: Vec<String> = (1..=args.nodes).map(|n| node(&n.to_string())).collect();
                let other = Rival::submit(bed, &all, Duration::from_secs(5))?;
                println!(
                    "{:6.1} s   bob submits job {}, which takes all {} nodes",
                    begin.elapsed().as_secs_f32(),
                    other.id,
                    args.nodes
                );
                seen.rival = Some(other.id.clone());
                rival = Some(other);
            }
            _ => {}
        }
        ensure!(begin.elapsed() < Duration::from_secs(args.limit), "not within {} s", args.limit);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let rival = rival.context("the job ended before anybody wanted its nodes")?;
    seen.found = Some(rival.found(Duration::from_secs(5)).await?);
    Ok(seen)
}

/// Checks what happened, and tells it.
async fn tell(job: &Job, seen: &Seen, total: u64) -> Result<()> {
    let ended = seen.ended.as_ref().context("no end")?;
    let status = ended.status.clone().unwrap_or_default();
    let first = seen.first_slot.clone().context("no first slot")?;
    let last = seen.last_slot.clone().context("no last slot")?;
    let (killed, resumed) = (OarJob::read(&first).await?, OarJob::read(&last).await?);
    let at = |second: Option<i64>| -> Result<String> {
        let time = jiff::Timestamp::from_second(second.context("OAR has no such event")?)?;
        Ok(time.strftime("%H:%M:%S").to_string())
    };
    let Continuity { nonce, resumed_at, again, last: counted } = continuity(&job.output.ticks(0))?;
    let generation = status.origin.and_then(|origin| origin.generation);
    let qemu: u32 = seen.found.iter().flat_map(|found| &found.qemu).map(|(_, count)| count).sum();

    println!("\nThe story");
    println!(
        "  OAR job {first} ({}) began at {} and computed.",
        killed.name.as_deref().unwrap_or("?"),
        at(Some(killed.start_time))?
    );
    println!(
        "  bob's job {} wanted its node: notice: {}; kill: {}.",
        seen.rival.as_deref().unwrap_or("?"),
        killed.first("CHECKPOINT").map_or(Ok("none".into()), |second| at(Some(second)))?,
        killed
            .first("BESTEFFORT_KILL")
            .map_or(Ok("not needed, the node was left before".into()), |second| at(Some(second)))?,
    );
    println!("  When bob's first process ran, {qemu} VMs were left on its nodes.");
    println!(
        "  OAR job {last} began at {} and went on from generation {}.",
        at(Some(resumed.start_time))?,
        generation.unwrap_or(0)
    );
    println!("  The counter: 1 to {counted}, without a gap; {again} ticks after the generation were computed again.");
    println!("  It resumed at tick {}.", resumed_at.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    println!("  The nonce, in the memory of the guest only: {nonce} before the kill and after it.");
    println!(
        "  Work in member-seconds: useful {}, saved {}, lost {}, overhead {}.",
        status.work.useful, status.work.saved, status.work.lost, status.work.overhead
    );
    for snapshot in job.snapshots().await? {
        let status = snapshot.status.unwrap_or_default();
        println!(
            "  Generation {}: {:?}, {:?}, pause {} ms",
            status.generation.unwrap_or(0),
            snapshot.spec.reason,
            status.phase,
            status.pause_ms.unwrap_or(0)
        );
    }

    ensure!(first != last, "no other OAR job");
    ensure!(status.kills.preempted >= 1, "no preemption was counted: {:?}", status.kills);
    ensure!(
        generation >= seen.stored_before && generation.is_some(),
        "restored {generation:?}, but {:?} was complete",
        seen.stored_before
    );
    ensure!(qemu == 0, "{qemu} VMs lived beside the next user's job");
    ensure!(counted == total, "the counter ended at {counted} instead of {total}");
    ensure!(!resumed_at.is_empty(), "no restore in the output");
    println!("\nAll of it was checked.");
    Ok(())
}
