//! Collects the logs of a job's agent pods while they come and go.

use std::fmt::Write as _;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{ListParams, LogParams},
};
use tokio::task::JoinHandle;
use vmdeploy::api::LABEL_JOB_UID;

use crate::{
    testbed::SYSTEM,
    ticks::{Tick, tick},
};

/// A pod is one incarnation of one member.
type Key = (u32, u32);
type Lines = Arc<Mutex<BTreeMap<Key, Vec<String>>>>;

/// The logs of all agents a job has had since [`Collector::start`].
pub struct Collector {
    lines: Lines,
    task: JoinHandle<()>,
}

impl Collector {
    /// Starts to collect.
    pub fn start(client: Client, job_uid: String) -> Self {
        let lines = Lines::default();
        let task = tokio::spawn(follow(client, job_uid, Arc::clone(&lines)));
        Self { lines, task }
    }

    fn read<T>(&self, with: impl FnOnce(&BTreeMap<Key, Vec<String>>) -> T) -> T {
        with(&self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The ticks of a member, one list for each incarnation.
    pub fn ticks(&self, member: u32) -> Vec<Vec<Tick>> {
        self.read(|all| {
            let of_member = all.iter().filter(|((m, _), _)| *m == member);
            of_member.map(|(_, lines)| lines.iter().filter_map(|line| tick(line)).collect()).collect()
        })
    }

    /// The last tick of a member.
    pub fn last_tick(&self, member: u32) -> Option<u64> {
        self.ticks(member).iter().rev().find_map(|run| run.last()).map(|tick| tick.number)
    }

    /// The last lines of each pod, for the report of a failure.
    pub fn tail(&self, count: usize) -> String {
        self.read(|all| {
            let mut text = String::new();
            for ((member, incarnation), lines) in all {
                let _ = writeln!(text, "--- member {member}, incarnation {incarnation}");
                for line in lines.iter().rev().take(count).rev() {
                    text.push_str(line);
                    text.push('\n');
                }
            }
            text
        })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `agent-<uid>-<member>-<incarnation>` as (member, incarnation).
fn key(pod: &str) -> Option<Key> {
    let mut parts = pod.rsplit('-');
    let incarnation = parts.next()?.parse().ok()?;
    Some((parts.next()?.parse().ok()?, incarnation))
}

async fn follow(client: Client, job_uid: String, lines: Lines) {
    let pods: Api<Pod> = Api::namespaced(client, SYSTEM);
    let wanted = ListParams::default().labels(&format!("{LABEL_JOB_UID}={job_uid}"));
    let mut followed = BTreeMap::new();
    loop {
        for pod in pods.list(&wanted).await.map(|list| list.items).unwrap_or_default() {
            let name = pod.metadata.name.unwrap_or_default();
            let started = pod.status.and_then(|s| s.phase).is_some_and(|phase| phase != "Pending");
            if let Some(key) = key(&name).filter(|key| started && !followed.contains_key(key)) {
                followed.insert(key, tokio::spawn(follow_pod(pods.clone(), name, key, Arc::clone(&lines))));
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

async fn follow_pod(pods: Api<Pod>, name: String, key: Key, lines: Lines) {
    let is_over =
        |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.as_ref()).is_some_and(|phase| phase != "Running");
    loop {
        let followed = follow_once(&pods, &name, key, &lines).await;
        match pods.get_opt(&name).await {
            Ok(None) => return,
            Ok(Some(pod)) if followed.is_ok() && is_over(&pod) => return,
            // the connection broke
            Ok(Some(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

/// Adds what a pod says to the lines that it has said.
async fn follow_once(pods: &Api<Pod>, name: &str, key: Key, lines: &Lines) -> Result<()> {
    let all = LogParams { follow: true, ..LogParams::default() };
    let mut known = lines.lock().unwrap_or_else(PoisonError::into_inner).get(&key).map_or(0, Vec::len);
    let mut stream = pods.log_stream(name, &all).await?.lines();
    while let Some(line) = stream.try_next().await? {
        if known > 0 {
            known -= 1;
            continue;
        }
        lines.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().push(line);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_a_member_in_an_incarnation() {
        assert_eq!(key(&vmdeploy::names::agent_pod_name(&"3f2b8a10-9c1d".into(), 3, 12)), Some((3, 12)));
        assert_eq!(key("operator"), None);
    }
}
