//! When a job is to be captured, and what of it is kept: a part of the job's spec.

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{job::DURATION, period::Period};

/// When to take snapshots and how many to keep.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.period == 'Adaptive' || (!has(self.minPeriod) && !has(self.maxPeriod))", "minPeriod and maxPeriod need period: Adaptive"))]
#[x_kube(validation = ("(has(self.minPeriod) ? duration(self.minPeriod) : duration('30s')) <= (has(self.maxPeriod) ? duration(self.maxPeriod) : duration('1h'))", "minPeriod, 30s if absent, must not be longer than maxPeriod, 1h if absent"))]
pub struct SnapshotPolicy {
    /// Time between two snapshots: a length, for example 10m, or the word Adaptive. With Adaptive the operator
    /// takes Young's sqrt(2 x C x M), where C is how long a snapshot of this job stops its guests, and M the time
    /// between two kills of it, both as measured so far; status.snapshots tells the period and why.
    #[x_kube(validation = ("self == 'Adaptive' || self.matches('^[0-9]')", "period must be a length such as 10m, or the word Adaptive"))]
    #[x_kube(validation = ("!self.matches('^[0-9]') || duration(self) >= duration('5s')", "period must be at least 5s, for example 10m"))]
    #[serde(default = "default_period")]
    pub period: Period,
    /// Shortest period that Adaptive may choose; 30s if absent.
    #[x_kube(validation = ("duration(self) >= duration('5s')", "minPeriod must be at least 5s, for example 30s"))]
    #[schemars(regex(pattern = DURATION), length(max = 32))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_period: Option<Duration>,
    /// Longest period that Adaptive may choose; 1h if absent.
    #[x_kube(validation = ("duration(self) >= duration('5s')", "maxPeriod must be at least 5s, for example 1h"))]
    #[schemars(regex(pattern = DURATION), length(max = 32))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_period: Option<Duration>,
    /// Complete generations to keep; never fewer than two.
    #[schemars(range(min = 2, max = 100))]
    #[serde(default = "default_keep")]
    pub keep: u32,
    /// Time of notice asked of the scheduler before a preemption; 0s asks for none. A long grace
    /// delays other people's jobs.
    #[x_kube(validation = ("duration(self) >= duration('0s') && duration(self) <= duration('10m')", "grace must lie between 0s and 10m"))]
    #[schemars(regex(pattern = DURATION), length(max = 32))]
    #[serde(default = "default_grace")]
    pub grace: Duration,
    /// Longest time the guests may stand still for a snapshot; one that would take longer is abandoned.
    #[x_kube(validation = ("duration(self) >= duration('100ms') && duration(self) <= duration('10m')", "maxPause must lie between 100ms and 10m, for example 2s"))]
    #[schemars(regex(pattern = DURATION), length(max = 32))]
    #[serde(default = "default_max_pause")]
    pub max_pause: Duration,
    /// What to do at a notice.
    #[serde(default)]
    pub on_notice: OnNotice,
}

fn seconds(n: u64) -> Duration {
    std::time::Duration::from_secs(n).into()
}
fn default_period() -> Period {
    Period::Fixed(seconds(600))
}
fn default_keep() -> u32 {
    2
}
fn default_grace() -> Duration {
    seconds(60)
}
fn default_max_pause() -> Duration {
    seconds(2)
}

impl SnapshotPolicy {
    /// The shortest and the longest period that may be chosen for an adaptive one.
    pub fn bounds(&self) -> (std::time::Duration, std::time::Duration) {
        let least = self.min_period.unwrap_or_else(|| seconds(30)).into();
        let most = self.max_period.unwrap_or_else(|| seconds(3600)).into();
        (least, most)
    }
}

impl Default for SnapshotPolicy {
    fn default() -> Self {
        Self {
            period: default_period(),
            min_period: None,
            max_period: None,
            keep: default_keep(),
            grace: default_grace(),
            max_pause: default_max_pause(),
            on_notice: OnNotice::Capture,
        }
    }
}

/// What to do at a notice.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnNotice {
    /// Take one last snapshot and leave as soon as it is stored.
    #[default]
    Capture,
    /// Leave at once with the last complete generation.
    Leave,
}
