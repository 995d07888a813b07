//! Conditions: what readers see of a job. Derived from the status and the facts, never decided from.
//!
//! A text changes only when something of meaning has changed, since each change is a write.

mod guests;
mod hypervisor;
mod wrong;

pub use self::wrong::news;

use jiff::Timestamp;

use super::{
    decide::{called_slots, incompatible, left_out_of, nodes, stuck},
    plan::{ImageSeen, Seen},
};
use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, JobPhase, Reason,
        conditions::{self, ConditionType, Truth, clear},
        job::Allocation,
        job_status::{Adopted, MemberPhase, MemberStatus, SlotState, SlotStatus},
        quantity::Bytes,
        snapshot::SnapshotPhase,
    },
    driver::{Fact, agent::VmState},
};

/// Sets all conditions but `Failed` and `SnapshotFailed`, which are set where they come about.
pub fn conditions(status: &mut BestEffortJobStatus, job: &BestEffortJob, seen: &Seen, now: Timestamp) {
    let generation = job.metadata.generation.unwrap_or_default();
    let mut list = status.conditions.clone();
    let mut say = |kind, (truth, reason, message): (Truth, Reason, String)| {
        conditions::set(&mut list, kind, truth, reason, message, generation, now);
    };
    say(ConditionType::Ready, ready(status, job, seen));
    say(ConditionType::ImageReady, image(status, job, seen));
    say(ConditionType::Admitted, admitted(status, job, seen, now));
    say(ConditionType::Provisioned, provisioned(status, seen));
    say(ConditionType::Running, running(status, seen));
    say(ConditionType::Snapshotted, snapshotted(status));
    say(ConditionType::Complete, complete(status));
    match adopted(status, job, seen) {
        Some(found) => say(ConditionType::Adopted, found),
        None => clear(&mut list, ConditionType::Adopted),
    }
    let abnormal = [
        (ConditionType::Reconciling, wrong::reconciling(status)),
        (ConditionType::Stalled, wrong::stalled(status, job, seen)),
        (ConditionType::Evicting, wrong::evicting(status, seen)),
        (ConditionType::SchedulerUnavailable, wrong::unavailable(status, job, seen, now)),
        (ConditionType::SnapshotDamaged, wrong::damaged(status, job, seen)),
        (ConditionType::GuestDegraded, guests::degraded(status, job, seen)),
    ];
    for (kind, found) in abnormal {
        match found {
            Some((reason, message)) => {
                conditions::set(&mut list, kind, Truth::True, reason, message, generation, now);
            }
            None => clear(&mut list, kind),
        }
    }
    if matches!(status.phase, JobPhase::Completing | JobPhase::Succeeded | JobPhase::Failed | JobPhase::Terminating) {
        clear(&mut list, ConditionType::SnapshotFailed);
    }
    status.conditions = list;
}

/// What is held, in a few letters: ids of many slots would fill the line.
pub fn held(status: &BestEffortJobStatus, job: &BestEffortJob) -> Option<String> {
    let mut slots = status.slots.iter().filter(|slot| slot.is_in_use());
    match job.spec.slots.allocation {
        Allocation::Gang => slots.next().map(|slot| slot.id.clone()),
        Allocation::PerMember => {
            let some = slots.clone().next().is_some();
            let run = slots.filter(|slot| slot.state != SlotState::Waiting).count();
            some.then(|| format!("{run}/{}", nodes(&job.spec)))
        }
    }
}

fn has_slots(status: &BestEffortJobStatus) -> bool {
    status.slots.iter().any(SlotStatus::is_in_use)
}

fn ready(status: &BestEffortJobStatus, job: &BestEffortJob, seen: &Seen) -> (Truth, Reason, String) {
    if let Some(failed) = conditions::get(&status.conditions, ConditionType::Failed)
        && status.phase == JobPhase::Failed
    {
        return (Truth::False, cause(failed), failed.message.clone());
    }
    if let Some(retry) = &status.retry {
        return (Truth::False, retry.reason, retry.message.clone());
    }
    if status.suspended.as_ref().is_some_and(|suspended| suspended.by_site) {
        return (Truth::False, Reason::CancelledExternally, wrong::DELETED.into());
    }
    if let Some((reason, message)) = lost_image(status, seen).filter(|_| status.phase == JobPhase::Queued) {
        return (Truth::False, reason, message);
    }
    if let Some((reason, message)) = unrestorable(status, job, seen) {
        return (Truth::False, reason, message);
    }
    let attempt = status.attempt;
    let from = match status.origin.as_ref().and_then(|origin| origin.generation) {
        Some(generation) => format!("generation {generation}"),
        None => "the image".to_owned(),
    };
    let (truth, reason, message) = match status.phase {
        JobPhase::Pending => match adopted(status, job, seen).filter(|(_, _, message)| !message.is_empty()) {
            Some((Truth::False, reason, message)) => (Truth::Unknown, reason, message),
            Some(_) | None => (Truth::Unknown, Reason::NotYet, "being looked at".to_owned()),
        },
        JobPhase::ImagePreparing => (Truth::Unknown, Reason::ImageImporting, "the image is being imported".into()),
        JobPhase::Queued => (Truth::True, Reason::Accepted, format!("attempt {attempt} waits for slots")),
        JobPhase::Deploying => (Truth::True, Reason::Accepted, format!("attempt {attempt} is being placed")),
        JobPhase::Starting => (Truth::True, Reason::GuestsStarting, format!("attempt {attempt} boots")),
        JobPhase::Restoring => (Truth::True, Reason::GuestsRestoring, format!("attempt {attempt} restores {from}")),
        JobPhase::Running | JobPhase::Snapshotting => {
            (Truth::True, Reason::JobRunning, format!("attempt {attempt} runs from {from}"))
        }
        JobPhase::Evacuating => {
            let waits = wrong::unconfirmed(status, seen).unwrap_or_default();
            (Truth::True, Reason::Accepted, format!("attempt {attempt} leaves its slots{waits}"))
        }
        JobPhase::Completing => (Truth::True, Reason::Accepted, "the command has ended".into()),
        JobPhase::Succeeded => (Truth::True, Reason::Succeeded, format!("succeeded in attempt {attempt}")),
        JobPhase::Failed => (Truth::False, Reason::BackoffLimitExceeded, "failed".into()),
        JobPhase::Suspended => (Truth::True, Reason::Suspended, "suspended on request".into()),
        JobPhase::Terminating => {
            let waits = wrong::unconfirmed(status, seen).unwrap_or_default();
            (Truth::False, Reason::Deleting, format!("being deleted{waits}"))
        }
    };
    (truth, reason, message)
}

/// How far the job is on its way to having what its spec says that it starts from.
fn adopted(status: &BestEffortJobStatus, job: &BestEffortJob, seen: &Seen) -> Option<(Truth, Reason, String)> {
    let name = &job.spec.restore_from.as_ref()?.snapshot;
    if let Some(adopted) = &status.adopted {
        let Adopted { snapshot, generation, job, .. } = adopted;
        let addresses = match &status.network {
            Some(network) => format!(", with its addresses ({}) in a network of this job's own", network.subnet),
            None => String::new(),
        };
        let what = format!("Snapshot {snapshot}, generation {generation} of job {job},");
        return Some(match (&adopted.complete, &status.retry) {
            (Some(_), _) => (Truth::True, Reason::Adopted, format!("{what} is generation 0 here{addresses}")),
            (None, Some(retry)) => (Truth::False, retry.reason, retry.message.clone()),
            (None, None) => (Truth::False, Reason::Adopting, format!("{what} is being copied")),
        });
    }
    if let Some(retry) = &status.retry {
        return Some((Truth::False, retry.reason, retry.message.clone()));
    }
    let waiting = match seen.source.as_ref().and_then(|source| source.snapshot.as_ref()) {
        Some(snapshot) => match snapshot.phase {
            SnapshotPhase::Pending | SnapshotPhase::Capturing | SnapshotPhase::Captured => snapshot.phase,
            SnapshotPhase::Stored | SnapshotPhase::Failed => {
                return Some((Truth::Unknown, Reason::NotYet, String::new()));
            }
        },
        None => return Some((Truth::Unknown, Reason::NotYet, String::new())),
    };
    let message = format!("Snapshot {name} is {waiting:?}: the job starts once it is complete");
    Some((Truth::False, Reason::SnapshotIncomplete, message))
}

fn image(status: &BestEffortJobStatus, job: &BestEffortJob, seen: &Seen) -> (Truth, Reason, String) {
    if let Some((reason, message)) = lost_image(status, seen) {
        return (Truth::False, reason, message);
    }
    if let Some(image) = &status.image {
        return (Truth::True, Reason::ImageImported, format!("{}/{}", image.namespace, image.name));
    }
    if job.spec.image.is_none() && job.spec.restore_from.is_some() {
        return (Truth::Unknown, Reason::NotYet, "it is that of the snapshot".into());
    }
    match &seen.image {
        Fact::Known(ImageSeen::Ready(image)) => {
            (Truth::True, Reason::ImageImported, format!("{}/{}", image.namespace, image.name))
        }
        Fact::Known(ImageSeen::Importing(message)) => (Truth::False, Reason::ImageImporting, message.clone()),
        Fact::Known(ImageSeen::Broken(reason, message)) => (Truth::False, *reason, message.clone()),
        Fact::Absent => (Truth::False, Reason::ImageNotFound, "there is no such VmImage".into()),
        Fact::Unknown { .. } => (Truth::Unknown, Reason::NotYet, String::new()),
    }
}

/// What to do about the image of a job that has started, if the repository no longer has it.
fn lost_image(status: &BestEffortJobStatus, seen: &Seen) -> Option<(Reason, String)> {
    let image = status.image.as_ref().filter(|_| !has_slots(status))?;
    let said = conditions::get(&status.conditions, ConditionType::ImageReady)?;
    let message = match &seen.missing_image {
        Fact::Known(digest) => format!(
            "the repository no longer has {digest} of image {}/{}, from which this job was started: no slots are asked \
             for. It is imported again as long as that VmImage is there: if it is not, or its source has changed, apply \
             it again with a source of this digest. The job then goes on by itself",
            image.namespace, image.name
        ),
        Fact::Absent => return None,
        // silence takes nothing back
        Fact::Unknown { .. } => Some(said).filter(|said| cause(said) == Reason::ImageLost)?.message.clone(),
    };
    Some((Reason::ImageLost, message))
}

/// Why no slots are asked for a job that would be restored.
fn unrestorable(status: &BestEffortJobStatus, job: &BestEffortJob, seen: &Seen) -> Option<(Reason, String)> {
    if status.phase != JobPhase::Queued || has_slots(status) {
        return None;
    }
    if seen.content.known().is_some() {
        return incompatible(job, status, seen);
    }
    // silence takes nothing back
    let said = conditions::get(&status.conditions, ConditionType::Ready)?;
    let reason = cause(said);
    matches!(reason, Reason::Incompatible | Reason::MemoryTooLarge).then(|| (reason, said.message.clone()))
}

fn admitted(status: &BestEffortJobStatus, job: &BestEffortJob, seen: &Seen, now: Timestamp) -> (Truth, Reason, String) {
    let with_left_out = |said: String, nodes: &[String]| match left_out_of(nodes, status, seen, now) {
        Some(left_out) => format!("{said}; {left_out}"),
        None => said,
    };
    let slots: Vec<&SlotStatus> = status.slots.iter().filter(|slot| slot.is_in_use()).collect();
    let (waiting, held): (Vec<&SlotStatus>, Vec<&SlotStatus>) =
        slots.iter().partition(|slot| slot.state == SlotState::Waiting);
    let called = called_slots(waiting.iter().copied(), [" waits", " wait"]);
    if let (Some(first), Some(called)) = (waiting.first(), called) {
        let rest = if held.is_empty() { String::new() } else { format!("; {} run and are kept for them", held.len()) };
        let said = format!("{called} in the scheduler's queue{rest}");
        let left_out = first.asked.as_ref().map(|asked| asked.left_out.as_slice()).unwrap_or_default();
        return (Truth::False, Reason::SlotsRequested, with_left_out(said, left_out));
    }
    let wanted = nodes(&job.spec) as usize;
    // members that run need no slot of a lost master
    let runs = matches!(status.phase, JobPhase::Running | JobPhase::Snapshotting | JobPhase::Completing);
    let enough = runs || job.spec.slots.allocation == Allocation::Gang || held.len() >= wanted;
    if let Some(called) = called_slots(held.iter().copied(), [" on"; 2]).filter(|_| enough) {
        let nodes: Vec<&str> = held.iter().flat_map(|slot| slot.nodes.iter().map(String::as_str)).collect();
        return (Truth::True, Reason::SlotsRunning, format!("{called} {}", nodes.join(", ")));
    }
    let said = match (&seen.partly_started, held.len()) {
        (Some(other), 0) => format!("no slot is held; job {other} has some of its slots and waits for the rest first"),
        (_, 0) => "no slot is held".into(),
        (_, held) => format!("{held} of {wanted} slots are held, and others are asked for"),
    };
    let left_out = status.pending_submission.as_ref().map(|pending| pending.left_out.as_slice());
    (Truth::False, Reason::NotYet, with_left_out(said, left_out.unwrap_or_default()))
}

fn provisioned(status: &BestEffortJobStatus, seen: &Seen) -> (Truth, Reason, String) {
    let starting = || {
        let stuck = status.everyone().find_map(|member| stuck(seen, member));
        let message = stuck.unwrap_or_else(|| format!("incarnation {}", status.incarnation));
        (Truth::False, Reason::AgentsStarting, message)
    };
    match status.phase {
        // that leases are held is told with what comes of it
        JobPhase::Starting | JobPhase::Restoring if has_slots(status) => starting(),
        JobPhase::Running | JobPhase::Snapshotting | JobPhase::Evacuating | JobPhase::Completing
            if has_slots(status) =>
        {
            (Truth::True, Reason::LeasesHeld, format!("incarnation {}", status.incarnation))
        }
        JobPhase::Queued if let Some(deploying) = hypervisor::deploying(status, seen) => {
            (Truth::False, Reason::DeployingHypervisor, deploying)
        }
        JobPhase::Deploying => {
            let placed = |m: &crate::api::job_status::MemberStatus| {
                m.agent.as_ref().is_some_and(|agent| agent.incarnation == status.incarnation)
                    && m.phase != MemberPhase::Dead
            };
            let alive = status.everyone().filter(|member| placed(member)).count();
            if let Some(deploying) = hypervisor::deploying(status, seen) {
                (Truth::False, Reason::DeployingHypervisor, deploying)
            } else if alive == status.everyone().count() {
                starting()
            } else if seen.content.known().is_none() && alive == 0 {
                (Truth::False, Reason::RepositoryUnreachable, "the repository does not answer".into())
            } else {
                (Truth::False, Reason::Fencing, "old members are not confirmed dead yet".into())
            }
        }
        JobPhase::Pending
        | JobPhase::ImagePreparing
        | JobPhase::Queued
        | JobPhase::Starting
        | JobPhase::Restoring
        | JobPhase::Running
        | JobPhase::Snapshotting
        | JobPhase::Evacuating
        | JobPhase::Completing
        | JobPhase::Succeeded
        | JobPhase::Failed
        | JobPhase::Suspended
        | JobPhase::Terminating => (Truth::False, Reason::NotYet, "no agents".into()),
    }
}

fn running(status: &BestEffortJobStatus, seen: &Seen) -> (Truth, Reason, String) {
    match status.phase {
        JobPhase::Running | JobPhase::Snapshotting => {
            (Truth::True, Reason::JobRunning, format!("{} members", status.members.len()))
        }
        JobPhase::Starting => (Truth::False, Reason::GuestsStarting, held_back(status, seen)),
        JobPhase::Restoring => (Truth::False, Reason::GuestsRestoring, held_back(status, seen)),
        JobPhase::Succeeded => (Truth::False, Reason::Succeeded, String::new()),
        JobPhase::Suspended => (Truth::False, Reason::Suspended, String::new()),
        JobPhase::Pending
        | JobPhase::ImagePreparing
        | JobPhase::Queued
        | JobPhase::Deploying
        | JobPhase::Evacuating
        | JobPhase::Completing
        | JobPhase::Failed
        | JobPhase::Terminating => (Truth::False, Reason::NotYet, String::new()),
    }
}

/// Why guests do not run yet, where that takes a while.
fn held_back(status: &BestEffortJobStatus, seen: &Seen) -> String {
    if status.origin.as_ref().is_some_and(|origin| origin.silent) {
        return "a lost member that cannot be asked is given its time to end".into();
    }
    fetched(status, seen).unwrap_or_default()
}

/// How far the last of those is that fetch much, in quarters: each change is a write. Nothing while one has not begun.
fn fetched(status: &BestEffortJobStatus, seen: &Seen) -> Option<String> {
    let vm = |member: &MemberStatus| Some(&seen.agents.get(&member.agent.as_ref()?.pod)?.state.as_ref()?.vm);
    let vms: Option<Vec<&VmState>> = status.members.iter().map(vm).collect();
    let far = |vm: &VmState| match vm {
        VmState::None => Some((0, 0)),
        other => other.quarters(),
    };
    let (quarters, total) = vms?.into_iter().filter_map(far).min()?;
    let share = match quarters {
        0 => return None,
        1 => "a quarter",
        2 => "half",
        _ => "three quarters",
    };
    Some(format!("at least {share} of {} is on all nodes", Bytes::mebibytes(total >> 20)))
}

fn snapshotted(status: &BestEffortJobStatus) -> (Truth, Reason, String) {
    match status.snapshots.last_stored {
        Some(generation) => (Truth::True, Reason::SnapshotStored, format!("generation {generation} is complete")),
        None => (Truth::False, Reason::NotYet, "no generation is complete".into()),
    }
}

fn complete(status: &BestEffortJobStatus) -> (Truth, Reason, String) {
    if status.phase == JobPhase::Succeeded {
        (Truth::True, Reason::Succeeded, "all commands ended with 0".into())
    } else {
        (Truth::False, Reason::NotYet, String::new())
    }
}

/// The reason a condition was set with.
fn cause(condition: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition) -> Reason {
    serde_json::from_value(condition.reason.clone().into()).unwrap_or(Reason::BackoffLimitExceeded)
}
