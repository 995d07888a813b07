//! Conditions: what readers see of a job. Derived from the status and the facts, never decided from.
//!
//! A text changes only when something of meaning has changed, since each change is a write.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    decide::{called, incompatible},
    plan::{ImageSeen, Seen, SnapshotSeen},
};
use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, JobPhase, Reason,
        conditions::{self, ConditionType, Truth, clear},
        job_status::{Adopted, MemberPhase, SlotState, SlotStatus},
        snapshot::SnapshotPhase,
    },
    driver::{Fact, site::NoticeKind},
};

/// A site that does not answer for this long is said not to.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(15);

/// Sets all conditions but `Failed` and `SnapshotFailed`, which are set where they come about.
pub fn conditions(status: &mut BestEffortJobStatus, job: &BestEffortJob, seen: &Seen, now: Timestamp) {
    let generation = job.metadata.generation.unwrap_or_default();
    let mut list = status.conditions.clone();
    let mut say = |kind, (truth, reason, message): (Truth, Reason, String)| {
        conditions::set(&mut list, kind, truth, reason, message, generation, now);
    };
    say(ConditionType::Ready, ready(status, job, seen));
    say(ConditionType::ImageReady, image(status, job, seen));
    say(ConditionType::Admitted, admitted(status));
    say(ConditionType::Provisioned, provisioned(status, seen));
    say(ConditionType::Running, running(status));
    say(ConditionType::Snapshotted, snapshotted(status));
    say(ConditionType::Complete, complete(status));
    match adopted(status, job, seen) {
        Some(found) => say(ConditionType::Adopted, found),
        None => clear(&mut list, ConditionType::Adopted),
    }
    let abnormal = [
        (ConditionType::Reconciling, reconciling(status)),
        (ConditionType::Stalled, stalled(status, job, seen)),
        (ConditionType::Evicting, evicting(status, seen)),
        (ConditionType::SchedulerUnavailable, unavailable(status, seen, now)),
        (ConditionType::SnapshotDamaged, damaged(status, job, seen)),
        (ConditionType::GuestDegraded, degraded(status, job, seen)),
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

fn in_use(status: &BestEffortJobStatus) -> Option<&SlotStatus> {
    status.slots.iter().find(|slot| slot.release.is_none() && slot.state != SlotState::Ended)
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
        let message = "a person deleted the slots at the site: set suspend to true and to false again to go on";
        return (Truth::False, Reason::CancelledExternally, message.into());
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
        JobPhase::Evacuating => (Truth::True, Reason::Accepted, format!("attempt {attempt} leaves its slots")),
        JobPhase::Completing => (Truth::True, Reason::Accepted, "the command has ended".into()),
        JobPhase::Succeeded => (Truth::True, Reason::Succeeded, format!("succeeded in attempt {attempt}")),
        JobPhase::Failed => (Truth::False, Reason::BackoffLimitExceeded, "failed".into()),
        JobPhase::Suspended => (Truth::True, Reason::Suspended, "suspended on request".into()),
        JobPhase::Terminating => (Truth::False, Reason::Deleting, "being deleted".into()),
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
    let image = status.image.as_ref().filter(|_| in_use(status).is_none())?;
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
    if status.phase != JobPhase::Queued || in_use(status).is_some() {
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

fn admitted(status: &BestEffortJobStatus) -> (Truth, Reason, String) {
    match in_use(status) {
        Some(slot) if slot.state == SlotState::Waiting => {
            (Truth::False, Reason::SlotsRequested, format!("slot {} waits in the scheduler's queue", slot.id))
        }
        Some(slot) => (Truth::True, Reason::SlotsRunning, format!("slot {} on {}", slot.id, slot.nodes.join(", "))),
        None => (Truth::False, Reason::NotYet, "no slot is held".into()),
    }
}

fn provisioned(status: &BestEffortJobStatus, seen: &Seen) -> (Truth, Reason, String) {
    let starting = || {
        let message = stuck(status, seen).unwrap_or_else(|| format!("incarnation {}", status.incarnation));
        (Truth::False, Reason::AgentsStarting, message)
    };
    match status.phase {
        // that leases are held is told with what comes of it
        JobPhase::Starting | JobPhase::Restoring if in_use(status).is_some() => starting(),
        JobPhase::Running | JobPhase::Snapshotting | JobPhase::Evacuating | JobPhase::Completing
            if in_use(status).is_some() =>
        {
            (Truth::True, Reason::LeasesHeld, format!("incarnation {}", status.incarnation))
        }
        JobPhase::Deploying => {
            let placed = |m: &crate::api::job_status::MemberStatus| {
                m.agent.as_ref().is_some_and(|agent| agent.incarnation == status.incarnation)
                    && m.phase != MemberPhase::Dead
            };
            let alive = status.everyone().filter(|member| placed(member)).count();
            if alive == status.everyone().count() {
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

/// Why an agent's pod does not start.
fn stuck(status: &BestEffortJobStatus, seen: &Seen) -> Option<String> {
    status.everyone().find_map(|member| {
        let pod = &member.agent.as_ref()?.pod;
        Some(format!("pod {pod}: {}", seen.pods.get(pod)?.waiting.as_ref()?))
    })
}

fn running(status: &BestEffortJobStatus) -> (Truth, Reason, String) {
    match status.phase {
        JobPhase::Running | JobPhase::Snapshotting => {
            (Truth::True, Reason::JobRunning, format!("{} members", status.members.len()))
        }
        JobPhase::Starting => (Truth::False, Reason::GuestsStarting, held_back(status)),
        JobPhase::Restoring => (Truth::False, Reason::GuestsRestoring, held_back(status)),
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

/// Why loaded guests may stand still for a while.
fn held_back(status: &BestEffortJobStatus) -> String {
    let silent = status.origin.as_ref().is_some_and(|origin| origin.silent);
    if silent { "a lost member that cannot be asked is given its time to end".into() } else { String::new() }
}

fn snapshotted(status: &BestEffortJobStatus) -> (Truth, Reason, String) {
    match status.snapshots.last_stored {
        Some(generation) => (Truth::True, Reason::SnapshotStored, format!("generation {generation} is complete")),
        None => (Truth::False, Reason::NotYet, "no generation is complete".into()),
    }
}

/// Damage that a restore would meet: that of the newest generations, before the first that is whole. As long as the
/// repository is not known, it is as it was.
fn damaged(status: &BestEffortJobStatus, job: &BestEffortJob, seen: &Seen) -> Option<(Reason, String)> {
    let content = match &seen.content {
        Fact::Known(content) => content,
        Fact::Absent => return None,
        Fact::Unknown { .. } => {
            let before = conditions::get(&status.conditions, ConditionType::SnapshotDamaged)?;
            return Some((Reason::SnapshotDamaged, before.message.clone()));
        }
    };
    let whole = content.generations.iter().filter(|summary| summary.members == job.spec.members);
    let whole = whole.map(|summary| summary.generation).max();
    let mut hit = content.damaged.iter().filter(|damaged| Some(damaged.generation) > whole).collect::<Vec<_>>();
    hit.sort_by_key(|damaged| damaged.generation);
    let newest = hit.last()?;
    let instead = match whole {
        Some(generation) => format!("generation {generation} would be restored instead"),
        None => "no other is complete".into(),
    };
    let all: Vec<String> = hit.iter().map(|damaged| damaged.generation.to_string()).collect();
    let message = format!(
        "of the generations in the repository {} cannot be restored ({}: {}); {instead}",
        all.join(", "),
        newest.generation,
        newest.why
    );
    Some((Reason::SnapshotDamaged, message))
}

fn complete(status: &BestEffortJobStatus) -> (Truth, Reason, String) {
    if status.phase == JobPhase::Succeeded {
        (Truth::True, Reason::Succeeded, "all commands ended with 0".into())
    } else {
        (Truth::False, Reason::NotYet, String::new())
    }
}

fn reconciling(status: &BestEffortJobStatus) -> Option<(Reason, String)> {
    let before = matches!(status.phase, JobPhase::Pending | JobPhase::ImagePreparing) && status.retry.is_none();
    before.then(|| (Reason::NotYet, "not accepted yet".to_owned()))
}

fn stalled(status: &BestEffortJobStatus, job: &BestEffortJob, seen: &Seen) -> Option<(Reason, String)> {
    if let Some(held_up) = deletion_held_up(status, seen) {
        return Some(held_up);
    }
    if let Some(retry) = status.retry.as_ref().filter(|retry| retry.stalled || needs_a_person(retry.reason)) {
        return Some((retry.reason, retry.message.clone()));
    }
    if status.suspended.as_ref().is_some_and(|suspended| suspended.by_site) {
        return Some((Reason::CancelledExternally, "a person deleted the slots at the site".into()));
    }
    // a VmImage that is there is imported again by itself
    if let Some(lost) = lost_image(status, seen)
        && matches!(seen.image, Fact::Absent | Fact::Known(ImageSeen::Broken(..)))
    {
        return Some(lost);
    }
    if let Some(found) = unrestorable(status, job, seen) {
        return Some(found);
    }
    let failed = conditions::get(&status.conditions, ConditionType::Failed)?;
    (status.phase == JobPhase::Failed).then(|| (cause(failed), failed.message.clone()))
}

/// What a person has to change before a deleted job can go.
fn deletion_held_up(status: &BestEffortJobStatus, seen: &Seen) -> Option<(Reason, String)> {
    if status.phase != JobPhase::Terminating {
        return None;
    }
    if let Some(refused) = refused_release(status, seen) {
        return Some(refused);
    }
    let retained = seen.snapshots.iter().any(SnapshotSeen::keeps_content);
    let held_up = seen.unread_snapshots && status.slots.is_empty() && status.may_have_content() && !retained;
    held_up.then(|| {
        let message = "a Snapshot of the namespace cannot be read, and may be one of this job to be retained: the job's \
                       data is not removed, nor the job. The operator's log names it: change it so that it fits the CRD \
                       (kubectl get snapshots -o yaml), or delete it";
        (Reason::SnapshotUnreadable, message.to_owned())
    })
}

/// A slot that the site does not take back.
fn refused_release(status: &BestEffortJobStatus, seen: &Seen) -> Option<(Reason, String)> {
    let given_back = |slot: &&SlotStatus| slot.release.is_some() && slot.state != SlotState::Ended;
    status.slots.iter().filter(given_back).find_map(|slot| {
        let id = &slot.id;
        let message = match seen.releases.get(id) {
            Some(Some(error)) => format!(
                "slot {id} is to be given back, and the site refuses: {error}. Delete it at the site as its owner (oardel \
                 {id}), or put the account right (slots.credentials, or the site's configuration): it is tried again"
            ),
            Some(None) => return None,
            // another operator, which has not tried yet
            None => conditions::get(&status.conditions, ConditionType::SchedulerUnavailable)
                .filter(|said| cause(said) == Reason::ReleaseRefused)?
                .message
                .clone(),
        };
        Some((Reason::ReleaseRefused, message))
    })
}

/// The reason a condition was set with.
fn cause(condition: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition) -> Reason {
    serde_json::from_value(condition.reason.clone().into()).unwrap_or(Reason::BackoffLimitExceeded)
}

/// Whether a failure, though tried again, is one that a person has to mend.
fn needs_a_person(reason: Reason) -> bool {
    matches!(reason, Reason::SubmissionRefused | Reason::NotEnoughNodes | Reason::CredentialsRefused)
}

fn evicting(status: &BestEffortJobStatus, seen: &Seen) -> Option<(Reason, String)> {
    let slot = status.slots.iter().find(|slot| slot.state != SlotState::Ended && slot.notice.is_some())?;
    let announced = seen.slots.known()?.iter().find(|facts| facts.id.0 == slot.id)?.notice.map(|notice| notice.kind);
    let (reason, why) = match announced {
        Some(NoticeKind::Walltime) => (Reason::WalltimeOver, "its time is nearly over"),
        Some(NoticeKind::Preemption | NoticeKind::Person) | None => (Reason::Preempted, "somebody else wants it"),
    };
    Some((reason, format!("slot {}: {why}", slot.id)))
}

fn unavailable(status: &BestEffortJobStatus, seen: &Seen, now: Timestamp) -> Option<(Reason, String)> {
    let Fact::Unknown { since } = seen.slots else { return refused_release(status, seen) };
    let needed = !status.slots.is_empty() || status.pending_submission.is_some() || status.phase == JobPhase::Queued;
    let long = now.duration_since(since).unsigned_abs() >= UNREACHABLE_AFTER && now > since;
    (needed && long).then(|| (Reason::SiteUnreachable, "the site does not answer; nothing is given up".to_owned()))
}

fn degraded(status: &BestEffortJobStatus, job: &BestEffortJob, seen: &Seen) -> Option<(Reason, String)> {
    // what is wrong with what is kept of a guest is only known after its end
    if !matches!(status.phase, JobPhase::Running | JobPhase::Snapshotting | JobPhase::Completing) {
        return None;
    }
    let silent = status.members.iter().find_map(|member| {
        let pod = &member.agent.as_ref()?.pod;
        let guest = &seen.agents.get(pod)?.state.as_ref()?.guest;
        guest.silent.then(|| {
            let missing = if guest.answers { "does not answer any more" } else { "has never answered" };
            let message = format!(
                "member {}: qemu-guest-agent {missing} while the guest runs: see whether the image has it installed and \
                 started, and whether the guest boots: its console is in the log of pod {pod}",
                member.index
            );
            (Reason::GuestSilent, message)
        })
    });
    let found = silent.or_else(|| {
        status.everyone().find_map(|member| {
            let problem = seen.agents.get(&member.agent.as_ref()?.pod)?.state.as_ref()?.guest.problem.as_ref()?;
            Some((Reason::GuestNotReset, format!("{}: {problem}", called(member, job))))
        })
    });
    let kept = || {
        // an agent that is not heard takes nothing back
        let unheard = status
            .everyone()
            .filter(|member| member.phase != MemberPhase::Dead)
            .filter_map(|member| member.agent.as_ref())
            .any(|agent| seen.agents.get(&agent.pod).is_none_or(|agent| agent.state.is_none()));
        let before = degradation(status).filter(|_| unheard)?;
        Some((before, conditions::get(&status.conditions, ConditionType::GuestDegraded)?.message.clone()))
    };
    found.or_else(kept).or_else(|| lost_master(status))
}

/// What is to be known of a master that is lost while the members run.
fn lost_master(status: &BestEffortJobStatus) -> Option<(Reason, String)> {
    let runs = matches!(status.phase, JobPhase::Running | JobPhase::Snapshotting);
    let master = status.master.as_ref().filter(|master| runs && master.phase == MemberPhase::Dead)?;
    let message = format!(
        "the master on node {} is lost, and the way in with it: the members run on, and the next attempt has a way in \
         again; who needs it now sets suspend to true and to false again, which loses nothing",
        master.node.as_deref().unwrap_or_default()
    );
    Some((Reason::WayInLost, message))
}

/// Why a guest is said to be degraded, if one is.
fn degradation(status: &BestEffortJobStatus) -> Option<Reason> {
    conditions::get(&status.conditions, ConditionType::GuestDegraded).map(cause)
}

/// What has just come to be wrong and is told of by a condition, in its words: told of once, as long as it lasts.
pub fn news(old: Option<&BestEffortJobStatus>, new: &BestEffortJobStatus) -> Vec<(Reason, String)> {
    let told = |kind: ConditionType| {
        let condition = conditions::get(&new.conditions, kind)?;
        let reason = cause(condition);
        let news = match kind {
            ConditionType::GuestDegraded | ConditionType::SnapshotDamaged => true,
            ConditionType::ImageReady => reason == Reason::ImageLost,
            ConditionType::SchedulerUnavailable => reason == Reason::ReleaseRefused,
            ConditionType::SnapshotFailed => reason == Reason::QuotaExceeded,
            ConditionType::Stalled => {
                matches!(reason, Reason::SnapshotUnreadable) || (new.retry.is_none() && reason == Reason::Incompatible)
            }
            _ => false,
        };
        let before = old.and_then(|old| conditions::get(&old.conditions, kind)).map(cause);
        (news && before != Some(reason)).then(|| (reason, condition.message.clone()))
    };
    let kinds = [
        ConditionType::GuestDegraded,
        ConditionType::SnapshotDamaged,
        ConditionType::ImageReady,
        ConditionType::SchedulerUnavailable,
        ConditionType::SnapshotFailed,
        ConditionType::Stalled,
    ];
    kinds.into_iter().filter_map(told).collect()
}
