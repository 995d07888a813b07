//! What a job's state and events mean. Pure.
//!
//! A state alone never tells how a job ended: `Terminated` may be a preemption, and "preempted" is not
//! a state. The rows of [`end`] are read from the top; the first that fits decides.

use jiff::Timestamp;

use super::{
    hold,
    wire::{Event, Job},
};
use crate::driver::site::{End, Notice, NoticeKind, SlotPhase};

/// Number of the signal that OAR sends for a notice.
pub(super) const SIGNAL: i64 = 12;
/// Failures of nodes and of OAR itself.
const INFRASTRUCTURE: [&str; 6] = [
    "EXTERMINATE_JOB",
    "CPUSET_ERROR",
    "CPUSET_CLEAN_ERROR",
    "PING_CHECKER_NODE_SUSPECTED",
    "PROLOGUE_ERROR",
    "LAUNCHING_OAREXEC_TIMEOUT",
];

/// Whether a job in this state has nodes.
pub(super) fn has_nodes(state: &str) -> bool {
    matches!(state, "Running" | "Finishing" | "Suspended" | "Resuming")
}

/// Whether a job in this state is over.
pub(super) fn is_over(state: &str) -> bool {
    matches!(state, "Terminated" | "Error")
}

/// The phase of a job; `time` turns the server's seconds into our time.
pub(super) fn phase(job: &Job, time: impl Fn(i64) -> Option<Timestamp>) -> SlotPhase {
    let events = Events::of(job);
    match job.state.as_str() {
        "Waiting" | "Hold" | "toLaunch" | "toAckReservation" | "Launching" => SlotPhase::Waiting {
            message: job.message.clone(),
            expected: job.scheduled_start.filter(|s| *s > 0).and_then(time),
        },
        "Running" | "Suspended" | "Resuming" => {
            // asked to go, by whomever; it may still run for a long time if OAR's server is down
            if events.has("FRAG_JOB_REQUEST") || events.has("BESTEFFORT_KILL") {
                SlotPhase::Ending
            } else {
                SlotPhase::Running
            }
        }
        "Finishing" | "toError" => SlotPhase::Ending,
        state if is_over(state) => SlotPhase::Ended(end(job, &events)),
        other => SlotPhase::Unknown(other.into()),
    }
}

/// The notice of a job. The grace counts from the first one, whoever asked for it (safety B5), while
/// the kind is that of the gravest.
pub(super) fn notice(job: &Job, time: impl Fn(i64) -> Option<Timestamp>) -> Option<Notice> {
    let events = Events::of(job);
    let at = time(events.0.iter().find(|e| e.kind == "CHECKPOINT")?.date?)?;
    Some(Notice { kind: events.notice_kind()?, at })
}

/// Whether OAR could not do something on a node of the job, whatever the job ended of: a kill that did
/// not reach a node is told beside its cause.
pub(super) fn unreached(job: &Job) -> bool {
    job.events.iter().any(is_infrastructure)
}

fn is_infrastructure(event: &Event) -> bool {
    INFRASTRUCTURE.contains(&event.kind.as_str())
}

fn end(job: &Job, events: &Events<'_>) -> End {
    let terminated = job.state == "Terminated";
    let code = job.exit_code.filter(|status| signal_of(*status) == 0).map(|status| (status >> 8) as i32);
    let notice = events.notice_kind();
    match code {
        Some(hold::DONE) if terminated => return End::Done,
        Some(hold::SAVED) if terminated => {
            return match notice {
                Some(NoticeKind::Preemption) => End::SavedAtPreemption,
                Some(NoticeKind::Walltime) => End::SavedAtWalltime,
                Some(NoticeKind::Person) | None => End::Released,
            };
        }
        _ => {}
    }
    if events.has("BESTEFFORT_KILL") {
        return End::Preempted;
    }
    if events.has("WALLTIME") {
        return End::Walltime;
    }
    if let Some(event) = events.0.iter().find(|e| is_infrastructure(e)) {
        return End::Infrastructure(format!("{}: {}", event.kind, event.description));
    }
    if let Some(event) = events.0.iter().find(|e| e.kind == "FRAG_JOB_REQUEST") {
        return End::Deleted(user(&event.description));
    }
    if let Some(event) = events.0.iter().find(|e| e.kind == "WORKING_DIRECTORY") {
        return End::Rejected(event.description.clone());
    }
    if terminated && job.exit_code.map(signal_of) == Some(SIGNAL) {
        // the signal came before the hold could catch it
        match notice {
            Some(NoticeKind::Preemption) => return End::Preempted,
            Some(NoticeKind::Walltime) => return End::Walltime,
            Some(NoticeKind::Person) | None => {}
        }
    }
    if terminated { End::HoldFailed(hold::said(code)) } else { End::Infrastructure(job.message.clone()) }
}

/// The signal in a raw wait status, whose exit code is in the second byte.
fn signal_of(status: i64) -> i64 {
    status & 0x7f
}

/// The user in `User alice requested to frag the job 2`.
fn user(description: &str) -> String {
    let rest = description.strip_prefix("User ").unwrap_or(description);
    rest.split(' ').next().unwrap_or(rest).into()
}

/// Events in the order in which they happened.
struct Events<'a>(Vec<&'a Event>);

impl<'a> Events<'a> {
    fn of(job: &'a Job) -> Self {
        let mut events: Vec<&Event> = job.events.iter().collect();
        events.sort_by_key(|e| e.id);
        Self(events)
    }

    fn has(&self, kind: &str) -> bool {
        self.0.iter().any(|e| e.kind == kind)
    }

    fn notice_kind(&self) -> Option<NoticeKind> {
        let checkpoints = || self.0.iter().filter(|e| e.kind == "CHECKPOINT");
        checkpoints().next()?;
        Some(if checkpoints().any(|e| e.description.contains("(metasched)")) {
            NoticeKind::Preemption
        } else if checkpoints().any(|e| e.description.contains("(sarko)")) {
            NoticeKind::Walltime
        } else {
            NoticeKind::Person
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::preempted("BESTEFFORT_KILL", End::Preempted)]
    #[case::timed_out("WALLTIME", End::Walltime)]
    fn a1_a_kill_that_reached_no_node_is_told_beside_its_cause(#[case] cause: &str, #[case] end: End) {
        let event = |id, kind: &str| Event { id: Some(id), kind: kind.into(), ..Event::default() };
        let mut job = Job { state: "Error".into(), events: vec![event(1, cause)], ..Job::default() };
        assert!(!unreached(&job));
        job.events.push(event(2, "EXTERMINATE_JOB"));
        assert!(unreached(&job));
        assert_eq!(phase(&job, |_| None), SlotPhase::Ended(end));
    }
}
