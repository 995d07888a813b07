//! When the next periodic snapshot is due, and what an adaptive period is chosen from.
//!
//! Everything is measured from what is there anyway: the Snapshot objects of the job and the status.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    draft::{Draft, after, since},
    evacuate::RESERVE,
    period::{self, Facts},
    period_reason::reason,
};
use crate::{
    api::{
        ConditionType, conditions,
        job::OnNotice,
        period::Period,
        snapshot::{SnapshotReason, SnapshotStatus},
    },
    controller::job::{plan::SnapshotSeen, tally::Tally},
};

/// The newest snapshots that are measured.
const MEASURED: usize = 5;
/// Pause that is assumed before the first snapshot, unless less is allowed.
const PAUSE: Duration = Duration::from_secs(1);

impl Draft<'_> {
    /// Plans the next periodic snapshot: a little earlier or later for each, so that the jobs of a site
    /// do not all store at once.
    pub(super) fn plan_next(&mut self) {
        let period = self.choose_period();
        let seed = format!("{}/{}", self.uid, self.status.snapshots.next_generation);
        let tenths = f64::from(blake3::hash(seed.as_bytes()).as_bytes()[0]) / 255.0 * 0.2 - 0.1;
        let next = after(self.now, period.mul_f64(1.0 + tenths));
        self.status.snapshots.next_at = Some(Time(next));
    }

    /// A generation is complete, and so its figures are known: an adaptive period is chosen again.
    pub(super) fn plan_again(&mut self) {
        let before = self.status.snapshots.period;
        if self.job.spec.snapshots.period == Period::Adaptive && before != Some(self.choose_period().into()) {
            self.plan_next();
        }
    }

    /// Says what the period is from now on. An adaptive one stays, and its reason with it, until another
    /// would be better by more than a tenth.
    pub(super) fn choose_period(&mut self) -> Duration {
        let policy = &self.job.spec.snapshots;
        let (period, reason) = match policy.period {
            Period::Fixed(period) => (period.into(), None),
            Period::Adaptive => {
                let facts = self.period_facts();
                let choice = period::choose(&facts);
                (choice.period, Some(reason(&choice, &facts)))
            }
        };
        let (least, most) = policy.bounds();
        let shown = &mut self.status.snapshots;
        if let Some(kept) = shown.period.map(Duration::from)
            && reason.is_some()
            && shown.period_reason.is_some()
            && (least..=most).contains(&kept)
            && kept.abs_diff(period) * 10 <= kept
        {
            return kept;
        }
        shown.period = Some(period.into());
        shown.period_reason = reason;
        period
    }

    fn period_facts(&self) -> Facts {
        let policy = &self.job.spec.snapshots;
        let mut snapshots: Vec<&SnapshotSeen> = self.seen.snapshots.iter().collect();
        snapshots.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.status.generation));
        let resumed =
            |snapshot: &&&SnapshotSeen| matches!(snapshot.reason, SnapshotReason::Periodic | SnapshotReason::User);
        let pauses = snapshots.iter().filter(resumed).filter_map(|snapshot| snapshot.status.pause_ms);
        let pauses: Vec<Duration> = pauses.take(MEASURED).map(Duration::from_millis).collect();
        let completions = snapshots.iter().filter_map(|snapshot| completion(&snapshot.status));
        let completions: Vec<Duration> = completions.take(MEASURED).collect();
        let notice = self.seen.site.as_ref().is_some_and(|site| site.capabilities.notice);
        let grace = Duration::from(policy.grace);
        let fits = |last: &Duration| notice && policy.on_notice == OnNotice::Capture && grace > *last + RESERVE;
        let vm = &self.job.spec.vm;
        Facts {
            pauses: pauses.len(),
            pause: median(pauses).unwrap_or_else(|| PAUSE.min(policy.max_pause.into())),
            last: completions.iter().max().copied().filter(fits),
            completion: median(completions),
            own: Tally::of(&self.status.kills, self.member_seconds(), vm.cpus),
            others: self.seen.others,
            cpus: u64::from(self.job.spec.members) * u64::from(vm.cpus),
            bounds: policy.bounds(),
        }
    }

    /// Seconds the members have run in all, whatever became of what they computed.
    fn member_seconds(&self) -> u64 {
        let work = &self.status.work;
        let reached = self.status.under_way().map_or(0, |origin| origin.work + self.ran());
        work.useful.max(reached).saturating_add(work.lost)
    }
}

/// How long a generation took from the cut until it was complete.
fn completion(status: &SnapshotStatus) -> Option<Duration> {
    let ready = conditions::get(&status.conditions, ConditionType::Ready).filter(|ready| ready.status == "True")?;
    Some(since(status.taken_at.as_ref()?.0, ready.last_transition_time.0))
}

fn median(mut all: Vec<Duration>) -> Option<Duration> {
    all.sort_unstable();
    all.get(all.len() / 2).copied()
}
