//! The words of an explanation: pure.

use std::fmt::Write as _;

use jiff::Timestamp;
use k8s_openapi::{
    api::events::v1::Event,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::ResourceExt as _;

use crate::api::{
    BestEffortJob, BestEffortJobStatus, ConditionType, Snapshot,
    conditions::{get, is_true},
};

/// Events that are shown.
const EVENTS: usize = 8;

/// Explains a job.
pub(super) fn render(job: &BestEffortJob, snapshots: &[Snapshot], events: &[Event], now: Timestamp) -> String {
    let status = job.status.clone().unwrap_or_default();
    let mut text = String::new();
    // writing to a string does not fail
    let _ = parts(&mut text, job, &status, snapshots, events, now);
    text
}

fn parts(
    text: &mut String,
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    snapshots: &[Snapshot],
    events: &[Event],
    now: Timestamp,
) -> std::fmt::Result {
    let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
    writeln!(text, "{namespace}/{name} is {:?}, attempt {}: {}", status.phase, status.attempt, summary(job, status))?;
    if let Some(retry) = &status.retry {
        let wait = retry.not_before.0.duration_since(now).as_secs().max(0);
        writeln!(text, "Tried again in {wait} s after {} failures: {}", retry.count, retry.message)?;
    }
    if job.metadata.generation.is_some_and(|generation| generation != status.observed_generation) {
        writeln!(text, "The newest change of the spec has not been looked at yet: is the operator running?")?;
    }
    writeln!(text, "\nConditions")?;
    for c in &status.conditions {
        let age = age(&c.last_transition_time, now);
        writeln!(text, "  {:<21} {:<8} {:<22} {age:>6}  {}", c.type_, c.status, c.reason, c.message)?;
    }
    if !status.slots.is_empty() || status.pending_submission.is_some() {
        writeln!(text, "\nSlots at {}", job.spec.slots.site)?;
    }
    for slot in &status.slots {
        let mut notes = vec![format!("{:?}", slot.state)];
        notes.extend((!slot.nodes.is_empty()).then(|| format!("on {}", slot.nodes.join(", "))));
        notes.extend(slot.until.as_ref().map(|until| format!("ends in {}", left(until, now))));
        notes.extend(slot.notice.as_ref().map(|notice| format!("wanted by somebody else for {}", age(notice, now))));
        notes.extend(slot.release.as_ref().map(|release| format!("being given back: {:?}", release.reason)));
        writeln!(text, "  {:<10} {}", slot.id, notes.join(", "))?;
    }
    if let Some(pending) = &status.pending_submission {
        let doubt = if pending.doubtful { "; its reply was lost, so its name is looked up first" } else { "" };
        writeln!(text, "  request {} was sent {} ago{doubt}", pending.number, age(&pending.since, now))?;
    }
    if !status.members.is_empty() {
        writeln!(text, "\nMembers")?;
    }
    for member in &status.members {
        let node = member.node.as_deref().unwrap_or("no node");
        let exit = member.exit_code.map(|code| format!(", exit code {code}")).unwrap_or_default();
        writeln!(text, "  {:<4} {:<10} {node}{exit}", member.index, format!("{:?}", member.phase))?;
    }
    if let Some(master) = &status.master {
        let node = master.node.as_deref().unwrap_or("no node");
        writeln!(text, "  {:<4} {:<10} {node}, the master", "", format!("{:?}", master.phase))?;
    }
    if let Some(way) = status.network.as_ref().and_then(|network| network.way_in.as_ref()) {
        writeln!(text, "  way in: ssh -J root@{} root@{}-0, host key {}", way.address, job.name_any(), way.host_key)?;
    }
    snapshots_part(text, status, snapshots, now)?;
    let (work, kills) = (&status.work, &status.kills);
    writeln!(
        text,
        "\nWork in member-seconds: {} kept, {} lost, {} saved by snapshots, {} overhead",
        work.useful, work.lost, work.saved, work.overhead
    )?;
    writeln!(
        text,
        "Ends: {} preempted, {} walltime, {} node, {} cancelled, {} failed of {} allowed",
        kills.preempted, kills.walltime, kills.node, kills.cancelled, status.failures, job.spec.backoff_limit
    )?;
    events_part(text, events, now)
}

fn snapshots_part(
    text: &mut String,
    status: &BestEffortJobStatus,
    snapshots: &[Snapshot],
    now: Timestamp,
) -> std::fmt::Result {
    let seen = &status.snapshots;
    match seen.last_stored {
        Some(generation) => {
            let when = seen.last_stored_at.as_ref().map(|at| format!(", captured {} ago", age(at, now)));
            writeln!(text, "\nSnapshots: {generation} can be restored{}", when.unwrap_or_default())?;
        }
        None => writeln!(text, "\nSnapshots: none can be restored yet; a kill now starts from the image again")?,
    }
    if let Some(next) = &seen.next_at {
        writeln!(text, "  the next is due in {}", left(next, now))?;
    }
    if let (Some(period), Some(reason)) = (&seen.period, &seen.period_reason) {
        writeln!(text, "  one is taken every {period:?}: {reason}")?;
    }
    let mut sorted: Vec<&Snapshot> = snapshots.iter().collect();
    sorted.sort_by_key(|snapshot| snapshot.status.as_ref().and_then(|s| s.generation));
    for snapshot in sorted {
        let found = snapshot.status.clone().unwrap_or_default();
        let moved = found.transfer.map(|t| format!("  {:?} {} of {} bytes", t.state, t.sent, t.total));
        let (phase, reason) = (format!("{:?}", found.phase), snapshot.spec.reason);
        writeln!(text, "  {:<20} {phase:<10} {reason:?}{}", snapshot.name_any(), moved.unwrap_or_default())?;
    }
    Ok(())
}

fn events_part(text: &mut String, events: &[Event], now: Timestamp) -> std::fmt::Result {
    let mut timed: Vec<(Timestamp, &Event)> = events.iter().filter_map(|event| Some((last(event)?, event))).collect();
    timed.sort_by_key(|(at, _)| *at);
    let shown = timed.len().min(EVENTS);
    if shown > 0 {
        writeln!(text, "\nLast events")?;
    }
    for (at, event) in &timed[timed.len() - shown..] {
        let (reason, note) = (event.reason.as_deref().unwrap_or_default(), event.note.as_deref().unwrap_or_default());
        writeln!(text, "  {:>6}  {reason:<22} {note}", age(&Time(*at), now))?;
    }
    Ok(())
}

fn last(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().map(|series| series.last_observed_time.0);
    series.or_else(|| event.event_time.as_ref().map(|time| time.0))
}

/// The one sentence that matters most.
fn summary(job: &BestEffortJob, status: &BestEffortJobStatus) -> String {
    let abnormal = [
        ConditionType::Stalled,
        ConditionType::Failed,
        ConditionType::SchedulerUnavailable,
        ConditionType::Evicting,
        ConditionType::GuestDegraded,
        ConditionType::SnapshotDamaged,
        ConditionType::SnapshotFailed,
    ];
    let list = &status.conditions;
    let said = |condition: &Condition| format!("{} ({})", condition.message, condition.reason);
    if let Some(kind) = abnormal.into_iter().find(|kind| is_true(list, *kind)) {
        return get(list, kind).map(said).unwrap_or_default();
    }
    if job.metadata.deletion_timestamp.is_some() {
        return "it is being deleted; what it holds at the site is given back first".into();
    }
    match get(list, ConditionType::Ready) {
        Some(ready) => said(ready),
        None => "no operator has looked at it yet".into(),
    }
}

fn age(time: &Time, now: Timestamp) -> String {
    short(now.duration_since(time.0).as_secs())
}

fn left(time: &Time, now: Timestamp) -> String {
    short(time.0.duration_since(now).as_secs())
}

fn short(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..=119 => format!("{s}s"),
        s @ 120..=7199 => format!("{}m", s / 60),
        s => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
