//! Figures for OpenMetrics: one registry per process, names `vmdeploy_*`, seconds and bytes.
//!
//! Only counts; nothing is ever decided from a metric.

use std::{collections::BTreeMap, sync::Arc};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

/// Media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A label set of one label.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $field:ident }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub struct $name {
            #[doc = "The value of the label."]
            pub $field: String,
        }
        impl From<&str> for $name {
            fn from(value: &str) -> Self {
                Self { $field: value.into() }
            }
        }
    };
}

label!(
    /// By kind of object.
    Kind { kind }
);
label!(
    /// By phase.
    Phase { phase }
);
label!(
    /// By cause.
    Cause { cause }
);
label!(
    /// By kind of work: useful, lost, saved, overhead.
    Work { kind }
);
label!(
    /// By kind of bytes: logical, stored, sent.
    ByteKind { kind }
);
label!(
    /// By where bytes came from: repository, node.
    Source { source }
);
label!(
    /// By namespace of the jobs; not the process's own, which monitoring systems add as `namespace`.
    JobNamespace { job_namespace }
);
label!(
    /// By outside system.
    System { system }
);

/// By outside system and verb.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Call {
    /// `kubernetes`, or the name of a site.
    pub system: String,
    /// The HTTP method, `WATCH` for watches.
    pub verb: String,
}

/// By kind of object and reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Failure {
    /// The kind.
    pub kind: String,
    /// The reason, as in conditions.
    pub reason: String,
}

/// Makes histograms with the given bounds.
#[derive(Clone, Copy)]
pub struct Bounds(&'static [f64]);

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

const SHORT: &[f64] = &[0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0];
const PAUSES: &[f64] = &[0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];
const PERIODS: &[f64] = &[10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0, 7200.0];
const LONG: &[f64] = &[0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0];

/// All figures of a process. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// Jobs by phase.
    pub jobs: Family<Phase, Gauge>,
    /// Ends of attempts by cause.
    pub kills: Family<Cause, Counter>,
    /// Member-seconds by kind of work.
    pub work: Family<Work, Counter>,
    /// Time a guest stood still for a capture.
    pub capture_pause: Histogram,
    /// Time between the first and the last member's stop.
    pub capture_skew: Histogram,
    /// Time between two snapshots of a job, at each choice of one.
    pub snapshot_period: Histogram,
    /// Bytes of generations.
    pub bytes: Family<ByteKind, Counter>,
    /// Time from slots running to guests running again.
    pub restore: Histogram,
    /// Bytes that guests were restored from, by where they came from.
    pub restored: Family<Source, Counter>,
    /// Bytes of jobs' data in the repository, by namespace; the repository's own.
    pub repository: Family<JobNamespace, Gauge>,
    /// Bytes that a namespace may have there.
    pub quota: Family<JobNamespace, Gauge>,
    /// Requests to outside systems.
    pub api_calls: Family<Call, Counter>,
    /// Time of a reconcile.
    pub reconcile: Family<Kind, Histogram, Bounds>,
    /// Reconciles that ended in an error.
    pub reconcile_failures: Family<Failure, Counter>,
    /// Observations that brought no answer.
    pub unknown_facts: Family<System, Counter>,
    /// 1 while this process is the elected one.
    pub leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Makes the figures, all zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("vmdeploy");
        let mut metrics = Self {
            registry: Arc::default(),
            jobs: Family::default(),
            kills: Family::default(),
            work: Family::default(),
            capture_pause: Histogram::new(PAUSES.iter().copied()),
            capture_skew: Histogram::new(PAUSES.iter().copied()),
            snapshot_period: Histogram::new(PERIODS.iter().copied()),
            bytes: Family::default(),
            restore: Histogram::new(LONG.iter().copied()),
            restored: Family::default(),
            repository: Family::default(),
            quota: Family::default(),
            api_calls: Family::default(),
            reconcile: Family::new_with_constructor(Bounds(SHORT)),
            reconcile_failures: Family::default(),
            unknown_facts: Family::default(),
            leader: Gauge::default(),
        };
        let r = &mut registry;
        r.register("jobs", "Jobs by phase", metrics.jobs.clone());
        r.register("kills", "Ends of attempts by cause", metrics.kills.clone());
        r.register_with_unit("work", "Member-seconds by kind of work", Unit::Seconds, metrics.work.clone());
        r.register_with_unit(
            "capture_pause",
            "Time a guest stood still for a capture",
            Unit::Seconds,
            metrics.capture_pause.clone(),
        );
        r.register_with_unit(
            "capture_skew",
            "Time between the first and the last member's stop",
            Unit::Seconds,
            metrics.capture_skew.clone(),
        );
        r.register_with_unit(
            "snapshot_period",
            "Time between two snapshots of a job, at each choice of one",
            Unit::Seconds,
            metrics.snapshot_period.clone(),
        );
        r.register_with_unit("generation", "Bytes of generations by kind", Unit::Bytes, metrics.bytes.clone());
        r.register_with_unit(
            "restore",
            "Time from slots running to guests running again",
            Unit::Seconds,
            metrics.restore.clone(),
        );
        r.register_with_unit(
            "restored",
            "Bytes that guests were restored from, by where they came from",
            Unit::Bytes,
            metrics.restored.clone(),
        );
        r.register_with_unit(
            "repository",
            "Bytes of jobs' data in the repository, by namespace",
            Unit::Bytes,
            metrics.repository.clone(),
        );
        r.register_with_unit("quota", "Bytes that a namespace may have there", Unit::Bytes, metrics.quota.clone());
        r.register("api_calls", "Requests to outside systems by verb", metrics.api_calls.clone());
        r.register_with_unit("reconcile", "Time of a reconcile", Unit::Seconds, metrics.reconcile.clone());
        r.register(
            "reconcile_failures",
            "Reconciles that ended in an error, by reason",
            metrics.reconcile_failures.clone(),
        );
        r.register("unknown_facts", "Observations that brought no answer", metrics.unknown_facts.clone());
        r.register("leader", "1 while this process is the elected one", metrics.leader.clone());
        metrics.registry = Arc::new(registry);
        metrics
    }

    /// Counts a request to an outside system.
    pub fn called(&self, system: &str, verb: &str) {
        self.api_calls.get_or_create(&Call { system: system.into(), verb: verb.into() }).inc();
    }

    /// Shows what namespaces have in the repository, and of no other ones.
    pub fn show_usage(&self, namespaces: &BTreeMap<&str, u64>) {
        show(&self.repository, namespaces);
    }

    /// Shows what namespaces may have there.
    pub fn show_quota(&self, namespaces: &BTreeMap<&str, u64>) {
        show(&self.quota, namespaces);
    }

    /// Writes all figures as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // writing to a string does not fail
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

fn show(family: &Family<JobNamespace, Gauge>, namespaces: &BTreeMap<&str, u64>) {
    family.clear();
    for (namespace, bytes) in namespaces {
        family.get_or_create(&(*namespace).into()).set(i64::try_from(*bytes).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_units_and_labels_are_as_documented() {
        let metrics = Metrics::new();
        metrics.kills.get_or_create(&"preempted".into()).inc();
        metrics.called("kubernetes", "GET");
        metrics.show_usage(&BTreeMap::from([("gone", 3)]));
        metrics.show_usage(&BTreeMap::from([("team", 5)]));
        metrics.show_quota(&BTreeMap::from([("team", u64::MAX)]));
        metrics.clone().work.get_or_create(&"lost".into()).inc_by(7);
        metrics.reconcile.get_or_create(&"VmImage".into()).observe(0.01);
        let text = metrics.encode();
        for line in [
            "vmdeploy_kills_total{cause=\"preempted\"} 1",
            "vmdeploy_api_calls_total{system=\"kubernetes\",verb=\"GET\"} 1",
            "vmdeploy_work_seconds_total{kind=\"lost\"} 7",
            "vmdeploy_reconcile_seconds_count{kind=\"VmImage\"} 1",
            "vmdeploy_repository_bytes{job_namespace=\"team\"} 5",
            "vmdeploy_quota_bytes{job_namespace=\"team\"} 9223372036854775807",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing from\n{text}");
        }
        assert!(!text.contains("gone"));
    }
}
