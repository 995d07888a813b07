//! A job as its user sees it: apply, watch, wait.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::{api::events::v1::Event, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;
use vmdeploy::api::{BestEffortJob, JobPhase, Snapshot};

use crate::{
    output::Collector,
    talk,
    testbed::{IMAGE, TestBed, read, until},
    ticks,
};

/// What is to be seen of a job that has succeeded is seen by then.
const AFTER_ALL: Duration = Duration::from_secs(30);

/// What a counting job is asked to do.
#[derive(Clone, Debug)]
pub struct Counting {
    /// Virtual machines.
    pub members: u32,
    /// Whether two members count over one connection, instead of each for itself.
    pub talk: bool,
    /// How far each counts, five a second at most.
    pub ticks: u32,
    /// Notice asked for, in seconds.
    pub grace: u32,
    /// Seconds between snapshots.
    pub period: u32,
    /// Walltime of a slot, in seconds.
    pub walltime: u32,
    /// KiB that each writes now and then, which no earlier capture has.
    pub noise: u32,
}

impl Default for Counting {
    fn default() -> Self {
        Self { members: 1, talk: false, ticks: 125, grace: 60, period: 10, walltime: 3600, noise: 0 }
    }
}

impl Counting {
    /// The object.
    pub fn object(&self, name: &str) -> Result<BestEffortJob> {
        let command = if self.talk { talk::COMMAND } else { ticks::COMMAND };
        let mut env = BTreeMap::from([("TICKS", self.ticks.to_string())]);
        if self.noise > 0 {
            env.insert("NOISE", self.noise.to_string());
        }
        Ok(serde_json::from_value(json!({
            "apiVersion": "vmdeploy.io/v1alpha1", "kind": "BestEffortJob", "metadata": {"name": name},
            "spec": {
                "members": self.members, "image": {"name": IMAGE}, "vm": {"cpus": 1, "memory": "256Mi"},
                "run": {"command": ["sh", "-c", command], "env": env},
                "outputs": [{"path": "/data/result"}],
                "slots": {"site": "testbed", "walltime": format!("{}s", self.walltime)},
                "snapshots": {"period": format!("{}s", self.period), "grace": format!("{}s", self.grace)},
            }
        }))?)
    }
}

/// A job on the test bed.
pub struct Job {
    api: Api<BestEffortJob>,
    snapshots: Api<Snapshot>,
    name: String,
    /// Uid of the object.
    pub uid: String,
    /// What its agents print.
    pub output: Collector,
    vnis: Mutex<BTreeSet<u32>>,
}

impl Job {
    /// Creates the object and starts to collect its output.
    pub async fn create(bed: &TestBed, namespace: &str, object: &BestEffortJob) -> Result<Self> {
        let api: Api<BestEffortJob> = Api::namespaced(bed.client.clone(), namespace);
        let made = api.create(&PostParams::default(), object).await.context("the job was refused")?;
        let uid = made.uid().context("no uid")?;
        Ok(Self {
            snapshots: Api::namespaced(bed.client.clone(), namespace),
            name: made.name_any(),
            output: Collector::start(bed.client.clone(), uid.clone()),
            vnis: Mutex::default(),
            api,
            uid,
        })
    }

    /// The object as it is now.
    pub async fn get(&self) -> Result<BestEffortJob> {
        let job = read(|| self.api.get(&self.name)).await?;
        if let Some(network) = job.status.as_ref().and_then(|status| status.network.as_ref()) {
            self.vnis.lock().unwrap_or_else(PoisonError::into_inner).insert(network.vni);
        }
        Ok(job)
    }

    /// The numbers its networks were seen to have.
    pub fn vnis(&self) -> BTreeSet<u32> {
        self.vnis.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its snapshots.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let every = ListParams::default();
        let all = read(|| self.snapshots.list(&every)).await?;
        Ok(all.items.into_iter().filter(|snapshot| snapshot.spec.job == self.name).collect())
    }

    /// What its events say, the oldest first, for the report of a failure.
    pub async fn story(&self) -> Result<String> {
        let namespace = self.api.namespace().context("no namespace")?;
        let events: Api<Event> = Api::namespaced(self.api.clone().into_client(), namespace);
        let all = events.list(&ListParams::default()).await?.items.into_iter();
        let own = all.filter(|event| event.regarding.as_ref().and_then(|about| about.uid.as_ref()) == Some(&self.uid));
        let mut lines: Vec<_> = own.map(|event| (event.event_time.map(|at| at.0), event.reason, event.note)).collect();
        lines.sort_by_key(|(at, ..)| *at);
        let begin = lines.iter().find_map(|(at, ..)| *at);
        let line = |(at, reason, note): (Option<jiff::Timestamp>, Option<String>, Option<String>)| {
            let seconds = at.zip(begin).map_or(0, |(at, begin)| (at - begin).get_seconds());
            format!("\n  {seconds} s {}: {}", reason.unwrap_or_default(), note.unwrap_or_default())
        };
        Ok(lines.into_iter().map(line).collect())
    }

    /// Waits until the job is as wanted. A job that has failed for good is not waited for, nor for long one that has
    /// succeeded.
    pub async fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&BestEffortJob) -> Option<T>,
    ) -> Result<T> {
        let succeeded = OnceLock::new();
        let answer = until(what, limit, async || {
            let job = self.get().await?;
            let answer = wanted(&job);
            match job.status.as_ref().map(|status| status.phase) {
                Some(JobPhase::Failed) if answer.is_none() => bail!("the job has failed, waiting for: {what}"),
                Some(JobPhase::Succeeded) if answer.is_none() => {
                    let since: &Instant = succeeded.get_or_init(Instant::now);
                    ensure!(since.elapsed() < AFTER_ALL, "the job has succeeded, waiting for: {what}");
                }
                _ => {}
            }
            Ok(answer)
        });
        match answer.await {
            Ok(answer) => Ok(answer),
            // the reason comes first: reports are cut after some lines
            Err(error) => {
                let now = self.get().await.ok().map(|job| describe(&job));
                bail!("{error:#}; {}\n{}", now.unwrap_or_default(), self.output.tail(15))
            }
        }
    }

    /// Waits for a phase.
    pub async fn wait_phase(&self, phase: JobPhase, limit: Duration) -> Result<BestEffortJob> {
        let what = format!("job {} {phase:?}", self.name);
        self.wait(&what, limit, |job| (job.status.as_ref()?.phase == phase).then(|| job.clone())).await
    }

    /// Waits until a generation newer than `after` is complete; returns its number.
    pub async fn wait_stored(&self, after: u32, limit: Duration) -> Result<u32> {
        let what = format!("a complete generation after {after}");
        self.wait(&what, limit, |job| job.status.as_ref()?.snapshots.last_stored.filter(|g| *g > after)).await
    }

    /// Waits until every member has printed this tick in its present incarnation.
    pub async fn wait_tick(&self, number: u64, members: u32, limit: Duration) -> Result<()> {
        let reached = || (0..members).all(|m| self.output.last_tick(m).is_some_and(|last| last >= number));
        self.wait(&format!("tick {number}"), limit, |_| reached().then_some(())).await
    }

    /// Waits until every member has printed something in so many incarnations.
    pub async fn wait_runs(&self, runs: usize, members: u32, limit: Duration) -> Result<()> {
        let counted = |m| self.output.ticks(m).iter().filter(|run| !run.is_empty()).count() >= runs;
        let what = format!("the first tick of run {runs}");
        self.wait(&what, limit, |_| (0..members).all(counted).then_some(())).await
    }

    /// What a member's command has printed, as `vmdeploy logs` shows it: cut back at every restore.
    pub async fn logs(&self, member: u32) -> Result<String> {
        let namespace = self.api.namespace().context("no namespace")?;
        let path = vmdeploy::subresources::paths::logs(namespace, &self.name, member, false);
        let client = self.api.clone().into_client();
        let request = http::Request::get(path).body(Vec::new())?;
        read(|| client.request_text(request.clone())).await
    }

    /// Changes the spec, as `kubectl apply` of a corrected object does: whatever the operator writes meanwhile.
    pub async fn correct(&self, change: impl FnOnce(&mut vmdeploy::api::BestEffortJobSpec)) -> Result<()> {
        let mut job = self.get().await?;
        change(&mut job.spec);
        loop {
            match self.api.replace(&self.name, &PostParams::default(), &job).await {
                Err(kube::Error::Api(status)) if status.is_conflict() => {
                    job.metadata.resource_version = self.get().await?.metadata.resource_version;
                }
                other => return Ok(other.map(drop)?),
            }
        }
    }

    /// Waits until the Ready condition has this reason, with these words in its message.
    pub async fn wait_reason(&self, reason: &str, words: &str, limit: Duration) -> Result<()> {
        self.wait(&format!("{reason} with {words:?}"), limit, |job| {
            let conditions = &job.status.as_ref()?.conditions;
            let said = |c: &&Condition| c.type_ == "Ready" && c.reason == reason && c.message.contains(words);
            conditions.iter().find(said).map(drop)
        })
        .await
    }

    /// Deletes the object and waits until it is gone.
    pub async fn delete(&self, limit: Duration) -> Result<()> {
        self.api.delete(&self.name, &DeleteParams::default()).await?;
        self.wait_gone(limit).await
    }

    /// Waits until the object is gone.
    pub async fn wait_gone(&self, limit: Duration) -> Result<()> {
        let what = format!("the end of job {}", self.name);
        let gone =
            until(&what, limit, async || Ok(read(|| self.api.get_opt(&self.name)).await?.is_none().then_some(())))
                .await;
        match gone {
            Ok(()) => Ok(()),
            Err(error) => {
                let now = self.get().await.ok().map(|job| describe(&job));
                bail!("{error:#}; {}", now.unwrap_or_default())
            }
        }
    }
}

/// Nodes the job's slots cover.
pub fn nodes(job: &BestEffortJob) -> Vec<String> {
    let slots = job.status.iter().flat_map(|status| &status.slots);
    slots.flat_map(|slot| slot.nodes.iter().cloned()).collect()
}

/// OAR's ids of the job's slots.
pub fn slot_ids(job: &BestEffortJob) -> Vec<String> {
    job.status.iter().flat_map(|status| &status.slots).map(|slot| slot.id.clone()).collect()
}

/// Phase and conditions, for the report of a failure.
fn describe(job: &BestEffortJob) -> String {
    let Some(status) = &job.status else { return "no status yet".into() };
    let conditions =
        status.conditions.iter().map(|c| format!("\n  {}={} {}: {}", c.type_, c.status, c.reason, c.message));
    format!("phase {:?}, attempt {}{}", status.phase, status.attempt, conditions.collect::<String>())
}
