//! The abnormal conditions of a job: there only while something is wrong, and what is told of them as an event.

use std::time::Duration;

use jiff::Timestamp;

use super::{called_slots, cause, lost_image, unrestorable};

use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, JobPhase, Reason,
        conditions::{self, ConditionType},
        job_status::{Retry, SlotState, SlotStatus},
    },
    controller::job::plan::{ImageSeen, Seen, SnapshotSeen},
    driver::{
        Fact,
        exchange::BAD_CERTIFICATE,
        site::{NoticeKind, SiteError},
    },
};

/// A site that does not answer for this long is said not to.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(15);
/// Of a job whose slots somebody has deleted at the site.
pub(super) const DELETED: &str =
    "a person deleted the slots at the site: set suspend to true and to false again to go on";

pub(super) fn reconciling(status: &BestEffortJobStatus) -> Option<(Reason, String)> {
    let before = matches!(status.phase, JobPhase::Pending | JobPhase::ImagePreparing) && status.retry.is_none();
    before.then(|| (Reason::NotYet, "not accepted yet".to_owned()))
}

pub(super) fn stalled(status: &BestEffortJobStatus, job: &BestEffortJob, seen: &Seen) -> Option<(Reason, String)> {
    if let Some(held_up) = deletion_held_up(status, seen) {
        return Some(held_up);
    }
    // what stood in the way of agents is mended once they are placed
    let placed = matches!(status.phase, JobPhase::Starting | JobPhase::Restoring);
    let stalls = |retry: &&Retry| retry.stalled || (needs_a_person(retry.reason) && !placed);
    if let Some(retry) = status.retry.as_ref().filter(stalls) {
        return Some((retry.reason, retry.message.clone()));
    }
    if status.suspended.as_ref().is_some_and(|suspended| suspended.by_site) {
        return Some((Reason::CancelledExternally, DELETED.into()));
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

/// What is waited for once all slots are given back, if it is for kubelets: nobody else can say that a pod has ended.
pub(super) fn unconfirmed(status: &BestEffortJobStatus, seen: &Seen) -> Option<String> {
    let (name, pod) = seen.pods.iter().find(|(_, pod)| !pod.launched)?;
    let waits = status.slots.is_empty() && seen.pods.values().all(|pod| pod.deleting);
    waits.then(|| {
        let node = &pod.node;
        format!(
            ": the kubelet of {node} has yet to say that pod {name} has ended; if that node never comes back, remove it \
             (kubectl delete node {node})"
        )
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

/// Whether a failure, though tried again, is one that a person has to mend.
fn needs_a_person(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::SubmissionRefused
            | Reason::NotEnoughNodes
            | Reason::CredentialsRefused
            | Reason::CredentialsMissing
            | Reason::EnvironmentNotFound
            | Reason::DeploymentRefused
            | Reason::UnknownNode
    )
}

pub(super) fn evicting(status: &BestEffortJobStatus, seen: &Seen) -> Option<(Reason, String)> {
    let mut noticed = status.slots.iter().filter(|slot| slot.state != SlotState::Ended && slot.notice.is_some());
    let said = conditions::get(&status.conditions, ConditionType::Evicting);
    if let (Fact::Unknown { .. }, Some(said)) = (&seen.slots, said) {
        // silence takes nothing back
        return noticed.next().map(|_| (cause(said), said.message.clone()));
    }
    let announced = |slot: &SlotStatus| {
        let facts = seen.slots.known()?.iter().find(|facts| facts.id.0 == slot.id)?;
        facts.notice.map(|notice| notice.kind)
    };
    // one that only its agent was told of is wanted by somebody
    let (over, wanted): (Vec<&SlotStatus>, Vec<&SlotStatus>) =
        noticed.partition(|slot| announced(slot) == Some(NoticeKind::Walltime));
    let reason = if wanted.is_empty() { Reason::WalltimeOver } else { Reason::Preempted };
    let wanted = called_slots(wanted, [": somebody else wants it", ": somebody else wants them"]);
    let over = called_slots(over, [": its time is nearly over", ": their time is nearly over"]);
    let all: Vec<String> = wanted.into_iter().chain(over).collect();
    (!all.is_empty()).then(|| (reason, all.join("; ")))
}

pub(super) fn unavailable(
    status: &BestEffortJobStatus,
    job: &BestEffortJob,
    seen: &Seen,
    now: Timestamp,
) -> Option<(Reason, String)> {
    let Fact::Unknown { since } = seen.slots else { return refused_release(status, seen) };
    let needed = !status.slots.is_empty() || status.pending_submission.is_some() || status.phase == JobPhase::Queued;
    let long = now.duration_since(since).unsigned_abs() >= UNREACHABLE_AFTER && now > since;
    if !needed || !long {
        return None;
    }
    let why = match &seen.site_error {
        Some(SiteError::Unreachable(why)) => format!(" ({why})"),
        Some(error) => format!(" ({error})"),
        None => String::new(),
    };
    let helps = if why.contains(BAD_CERTIFICATE) {
        format!("; an authority of your own goes into sites.{}.ca", job.spec.slots.site)
    } else {
        String::new()
    };
    Some((Reason::SiteUnreachable, format!("the site does not answer{why}; nothing is given up{helps}")))
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

/// Damage that a restore would meet: that of the newest generations, before the first that is whole. As long as the
/// repository is not known, it is as it was.
pub(super) fn damaged(status: &BestEffortJobStatus, job: &BestEffortJob, seen: &Seen) -> Option<(Reason, String)> {
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
