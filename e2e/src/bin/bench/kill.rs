//! Lives of a job of two VMs on the test bed, each killed once with notice: how soon the kill is noticed, how
//! soon the job counts again, how long a snapshot stops it, how often its status is written; then lives that
//! end with a lost lease, for the time until no VM is left.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    TestBed,
    job::{Counting, Job, nodes, slot_ids},
    rival::Rival,
    site::OarJob,
    testbed::number,
    watched::watched,
};
use jiff::Timestamp;
use kube::{Api, ResourceExt as _};
use vmdeploy::api::{BestEffortJob, BestEffortJobStatus, JobPhase};

use crate::report::{Figure, Measured, figure};

/// Lives, and lost leases.
const SAMPLES: u32 = 2;
const LIMIT: Duration = Duration::from_secs(300);

/// Kills the lease's holder on a node, then prints the nanoseconds until no VM is left there.
const LOSE_LEASE: &str = r#"for p in /proc/[0-9]*; do
  case $(readlink "$p/fd/9") in */leases/*/lock) holders="$holders ${p#/proc/}" ;; esac
done
[ -n "$holders" ] && pgrep qemu-vmdeploy > /dev/null || exit 1
begin=$(date +%s%N); kill -KILL $holders
while pgrep qemu-vmdeploy > /dev/null; do :; done
echo $(($(date +%s%N) - begin))"#;

#[derive(Default)]
struct Samples {
    noticed: Vec<f64>,
    counting: Vec<f64>,
    pauses: Vec<f64>,
    writes: Vec<f64>,
    fence: Vec<f64>,
}

/// Measures on the test bed of the environment. A sample that fails costs only its own figures.
pub(crate) async fn measure() -> Result<Measured> {
    let bed = TestBed::find().await?.context("no test bed: eval \"$(e2e/testbed/testbed env)\" first")?;
    let mut samples = Samples::default();
    let mut failed = Vec::new();
    for number in 1..=SAMPLES {
        eprintln!("sample {number} of {SAMPLES}: a life with a notice ...");
        let life = life(&bed, &mut samples).await;
        failed.extend(life.err().map(|error| format!("life {number}: {error:#}")));
        eprintln!("sample {number} of {SAMPLES}: a lost lease ...");
        match lost_lease(&bed).await {
            Ok(seconds) => samples.fence.push(seconds),
            Err(error) => failed.push(format!("lost lease {number}: {error:#}")),
        }
        // a job that a failed sample has left would be in the way of the next
        bed.clean();
    }
    Ok(Measured { figures: samples.figures(), failed })
}

impl Samples {
    /// What was measured; nothing of a metric without a sample.
    fn figures(&self) -> Vec<Figure> {
        let second = Some("OAR's dates are whole seconds: up to 1 s too long");
        [
            figure("kill_noticed_s", &self.noticed, 0.5, "s", Some(3.0), second),
            figure("fence_s", &self.fence, 0.5, "s", Some(0.2), None),
            figure("slot_to_counting_s", &self.counting, 0.5, "s", Some(10.0), second),
            figure("barrier_pause_ms", &self.pauses, 0.5, "ms", None, None),
            figure("barrier_pause_ms_p95", &self.pauses, 0.95, "ms", None, None),
            figure("status_writes_per_life", &self.writes, 0.5, "writes", Some(16.0), None),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Submitted, one snapshot, killed once with notice, succeeded.
async fn life(bed: &TestBed, samples: &mut Samples) -> Result<()> {
    let counting = Counting { members: 2, period: 20, ..Counting::default() };
    let namespace = bed.namespace("bench-kill").await?;
    let jobs: Api<BestEffortJob> = Api::namespaced(bed.client.clone(), &namespace);
    let succeeded = |status: &BestEffortJobStatus| status.phase == JobPhase::Succeeded;
    let statuses = watched(jobs, |job: BestEffortJob| job.status, succeeded).await?;
    let job = Job::create(bed, &namespace, &counting.object("count")?).await?;
    job.wait_stored(0, LIMIT).await?;
    pauses(&job, samples).await?;
    let before = job.get().await?;
    let rival = Rival::submit(bed, &nodes(&before), Duration::from_secs(1))?;
    job.wait("other slots", LIMIT, |job| {
        let status = job.status.as_ref()?;
        (status.attempt == 2 && slot_ids(job) != slot_ids(&before) && !nodes(job).is_empty()).then_some(())
    })
    .await?;
    let again = job.get().await?;
    job.wait_runs(2, 1, LIMIT).await?;
    let counts = Timestamp::now();
    job.wait_phase(JobPhase::Succeeded, LIMIT).await?;
    pauses(&job, samples).await?;
    ensure!(rival.state()? != "Error", "the rival failed");

    let seen = statuses.await??;
    let evacuating = seen.iter().find(|(_, status)| status.phase == JobPhase::Evacuating);
    let noticed = evacuating.context("never seen evacuating")?.0;
    let old = OarJob::read(slot_ids(&before).first().context("no slot")?).await?;
    let announced = old.first("CHECKPOINT").context("OAR announced nothing")?;
    samples.noticed.push(after(noticed, announced));
    let new = OarJob::read(slot_ids(&again).first().context("no slot")?).await?;
    samples.counting.push(after(counts, new.start_time));
    samples.writes.push(seen.len() as f64);
    job.delete(LIMIT).await
}

/// Seconds from a date of OAR's, which may lie a second or two ahead, to a moment.
fn after(moment: Timestamp, date: i64) -> f64 {
    (moment.as_millisecond() - date * 1000) as f64 / 1000.0
}

/// The pauses of the job's present snapshots; those of an evacuation do not end and are left out.
async fn pauses(job: &Job, samples: &mut Samples) -> Result<()> {
    let of_name: BTreeMap<String, u64> = job
        .snapshots()
        .await?
        .into_iter()
        .filter_map(|snapshot| Some((snapshot.name_any(), snapshot.status?.pause_ms?)))
        .collect();
    samples.pauses.extend(of_name.into_values().map(|ms| ms as f64));
    Ok(())
}

/// Seconds from the end of the lease's holder to no VM on its node.
async fn lost_lease(bed: &TestBed) -> Result<f64> {
    let namespace = bed.namespace("bench-fence").await?;
    let counting = Counting { ticks: 5000, grace: 0, ..Counting::default() };
    let job = Job::create(bed, &namespace, &counting.object("count")?).await?;
    job.wait_tick(5, 1, LIMIT).await?;
    let held = nodes(&job.get().await?);
    let number = number(held.first().context("no node")?)?;
    let begun = Instant::now();
    let printed = bed.run(&["node", number, "sh", "-c", LOSE_LEASE])?;
    let seconds = printed.trim().parse::<u64>().with_context(|| format!("the node said {printed:?}"))? as f64 / 1e9;
    ensure!(seconds <= begun.elapsed().as_secs_f64(), "{seconds} s is longer than the whole command took");
    job.delete(LIMIT).await?;
    Ok(seconds)
}
