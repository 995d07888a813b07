//! One deployment.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    time::Instant,
};

use anyhow::Result;
use jiff::Timestamp;
use tokio::task::JoinHandle;

use super::Environment;
use crate::{Settings, reply::Refusal};

/// How a node stands.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) cluster: String,
    /// Whether it has all steps behind it.
    pub(crate) through: bool,
    /// The step it is in; nothing before the first and after the last.
    pub(crate) step: Option<(&'static str, &'static str)>,
    pub(crate) state: &'static str,
    pub(crate) error: Option<String>,
}

/// A deployment. Ends what it has started when it goes.
#[derive(Debug)]
pub(crate) struct Workflow {
    pub(crate) id: String,
    pub(crate) user: String,
    pub(crate) environment: Environment,
    pub(crate) nodes: BTreeMap<String, Progress>,
    pub(crate) discarded: Vec<String>,
    /// Of all nodes that were asked for.
    pub(crate) clusters: BTreeSet<String>,
    /// Whether texts for debugging were asked for.
    pub(crate) debug: bool,
    pub(crate) started: Timestamp,
    pub(crate) clock: Instant,
    /// What it took, once it is over.
    pub(crate) took: Option<f64>,
    pub(crate) done: bool,
    /// Why it broke as a whole.
    pub(crate) broken: Option<Refusal>,
    pub(crate) logs: String,
    pub(crate) task: Option<JoinHandle<()>>,
}

impl Drop for Workflow {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Workflow {
    pub(crate) fn new(
        settings: &Settings,
        user: &str,
        environment: Environment,
        nodes: Vec<String>,
        discarded: Vec<String>,
        debug: bool,
    ) -> Result<Self> {
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let progress = |node: &str| Progress {
            cluster: settings.cluster(node).unwrap_or_default().to_owned(),
            through: false,
            step: None,
            state: "ok",
            error: None,
        };
        Ok(Self {
            id: format!("D-{}", uuid.trim()),
            user: user.into(),
            environment,
            clusters: nodes
                .iter()
                .chain(&discarded)
                .filter_map(|node| settings.cluster(node))
                .map(str::to_owned)
                .collect(),
            debug,
            nodes: nodes.into_iter().map(|node| (node.clone(), progress(&node))).collect(),
            discarded,
            started: Timestamp::now(),
            clock: Instant::now(),
            took: None,
            done: false,
            broken: None,
            logs: String::new(),
            task: None,
        })
    }

    pub(crate) fn log(&mut self, line: &str) {
        let now = Timestamp::now();
        // a text takes all that is written to it
        let _ = writeln!(self.logs, "{}.{:05}|{line}", now.as_second(), now.subsec_nanosecond() / 10_000);
    }

    /// Nodes that have come to no end.
    pub(crate) fn unfinished(&self) -> Vec<String> {
        if self.done { Vec::new() } else { self.nodes.keys().cloned().collect() }
    }

    pub(crate) fn finish(&mut self, broken: Option<Refusal>) {
        self.done = true;
        self.broken = broken;
        self.took = Some(self.clock.elapsed().as_secs_f64());
    }
}
