//! Conditions: one list of types and one of reasons for the three kinds.
//!
//! `Ready`, `Reconciling` and `Stalled` follow kstatus, so that Flux and Argo CD judge health without
//! code of their own. Positive conditions are present from the first visit, abnormal ones only while
//! true. Conditions are for readers: nothing is ever decided from them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The types of condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum ConditionType {
    /// Accepted, and nothing is wrong. True while a job queues, so that a GitOps tool does not block.
    Ready,
    /// Work is under way; present only while true.
    Reconciling,
    /// Nothing goes on until a person changes something; present only while true.
    Stalled,
    /// The image is in the repository.
    ImageReady,
    /// The repository has the snapshot of `restoreFrom` as the job's own; present only with it.
    Adopted,
    /// The scheduler has given the slots.
    Admitted,
    /// The agents are on their nodes and hold their leases.
    Provisioned,
    /// The guests compute.
    Running,
    /// A complete generation exists.
    Snapshotted,
    /// The command has ended with 0 everywhere.
    Complete,
    /// The job will not be tried again; present only while true.
    Failed,
    /// The slots are wanted by somebody else, or their time is nearly over; present only while true.
    Evicting,
    /// The scheduler does not answer or does not act; present only while true.
    SchedulerUnavailable,
    /// The last snapshot failed, or was left out for want of room; present only until one succeeds.
    SnapshotFailed,
    /// A complete generation is damaged in the repository, and another is restored instead; present only while true.
    SnapshotDamaged,
    /// Something is wrong in a guest, it does not answer, or the way in is lost; present only while true.
    GuestDegraded,
    /// The generation is complete in the repository.
    Stored,
}

/// The reasons of conditions and events.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// Accepted.
    Accepted,
    /// The site is not in the operator's configuration.
    UnknownSite,
    /// A node of the slot is not one of this cluster; the message says what to change.
    UnknownNode,
    /// The image does not exist.
    ImageNotFound,
    /// The image is being imported.
    ImageImporting,
    /// The image is in the repository.
    ImageImported,
    /// The repository no longer has the image of a job that has started; the message says what to do.
    ImageLost,
    /// The image could not be fetched.
    ImageFetchFailed,
    /// The image has another digest than the spec says.
    DigestMismatch,
    /// The image is not in the format the spec says, is too large, or needs other files.
    ImageUnusable,
    /// The Secret with the account does not exist or lacks a key.
    CredentialsMissing,
    /// The site refused the account.
    CredentialsRefused,
    /// A ConfigMap or Secret named by an input does not exist.
    InputMissing,
    /// The site refused the request; the message is the site's own.
    SubmissionRefused,
    /// The site has fewer nodes than members.
    NotEnoughNodes,
    /// The Snapshot named by restoreFrom does not exist.
    SnapshotNotFound,
    /// The Snapshot named by restoreFrom is not complete yet.
    SnapshotIncomplete,
    /// The spec does not fit the Snapshot named by restoreFrom; the message says what to change.
    SnapshotMismatch,
    /// The generation of the Snapshot named by restoreFrom is gone, or not whole.
    SnapshotLost,
    /// The generation of the Snapshot named by restoreFrom is being copied.
    Adopting,
    /// The generation of the Snapshot named by restoreFrom is the job's own.
    Adopted,
    /// The guest's memory is larger than the node's.
    MemoryTooLarge,
    /// The newest generation cannot be restored as things are, or not on the node that was given: the message
    /// names what is missing.
    Incompatible,
    /// No subnet of the pool of job networks is free.
    NoSubnet,
    /// The pool of job networks contains the address of a node.
    PoolOverlaps,
    /// Feature named by the spec that this version does not have.
    NotSupported,
    /// Slots are asked for.
    SlotsRequested,
    /// The slots run.
    SlotsRunning,
    /// Some slots ran and the others did not come in time: all are given back and asked for again later.
    SlotsIncomplete,
    /// The agents are being placed.
    AgentsStarting,
    /// The agents hold their leases.
    LeasesHeld,
    /// The guests boot.
    GuestsStarting,
    /// The guests are restored.
    GuestsRestoring,
    /// The job computes.
    JobRunning,
    /// A snapshot is complete.
    SnapshotStored,
    /// A snapshot was captured on the nodes.
    SnapshotCaptured,
    /// A snapshot is void; the message says why.
    SnapshotVoid,
    /// A complete snapshot cannot be restored any more; the message says why, and which one is used instead.
    SnapshotDamaged,
    /// The scheduler wants the nodes for somebody else.
    Preempted,
    /// The slot's time is over.
    WalltimeOver,
    /// A node does not answer.
    NodeLost,
    /// A person deleted the slot at the site.
    CancelledExternally,
    /// Members are confirmed dead before anything new starts.
    Fencing,
    /// Going on from a generation under new slots.
    Resuming,
    /// The guest's command failed.
    CommandFailed,
    /// The guest's command failed too often.
    BackoffLimitExceeded,
    /// The job did not succeed in time.
    DeadlineExceeded,
    /// No generation restores.
    RestoreFailed,
    /// Suspended on request.
    Suspended,
    /// The job is being deleted.
    Deleting,
    /// All commands ended with 0.
    Succeeded,
    /// The site does not answer.
    SiteUnreachable,
    /// The deployment server does not answer.
    KadeployUnreachable,
    /// The deployment server gives no rights to the slot's nodes, or not yet.
    RightsMissing,
    /// The deployment server has no such environment.
    EnvironmentNotFound,
    /// The deployment server refused the request; the message says what to change.
    DeploymentRefused,
    /// The hypervisor's environment is being put on the slot's nodes.
    DeployingHypervisor,
    /// The hypervisor's environment runs on nodes of the slot, which have joined the cluster.
    HypervisorReady,
    /// The hypervisor's environment did not come to run on a node; the message says why.
    DeploymentFailed,
    /// The repository does not answer.
    RepositoryUnreachable,
    /// The repository has no room.
    RepositoryFull,
    /// The namespace may not keep more in the repository; the message names figures and what makes room.
    QuotaExceeded,
    /// The site refuses to take a slot back; the message says what to do.
    ReleaseRefused,
    /// A Snapshot cannot be read, and may be one to be kept: the message says what to do.
    SnapshotUnreadable,
    /// Agent pods cannot be made or do not start.
    AgentFailed,
    /// Waiting after a failure before trying again.
    BackingOff,
    /// The guest's clock or random generator could not be put right.
    GuestNotReset,
    /// The agent in a running guest does not answer; the message says what to look at.
    GuestSilent,
    /// The master is lost, and with it the way in, until the next attempt.
    WayInLost,
    /// Not looked at yet.
    NotYet,
    /// The transfer is under way.
    Transferring,
    /// All bytes of a member's part are in the repository.
    MemberSafe,
    /// All bytes of a member's part are with another member, which brings them to the repository.
    MemberCollected,
    /// All bytes of a snapshot have come to the repository; the message says how long that took.
    Transferred,
    /// The transfer failed.
    TransferFailed,
    /// The snapshot's job does not exist.
    JobNotFound,
    /// Held back because it is the newest complete generation of a live job.
    LastGeneration,
}

impl Reason {
    /// The CamelCase name used in conditions, events and metric labels.
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// The value of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// Holds.
    True,
    /// Does not hold.
    False,
    /// Not known.
    Unknown,
}

impl Truth {
    fn text(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// Sets a condition; its transition time changes only when its value does.
pub fn set(
    conditions: &mut Vec<Condition>,
    kind: ConditionType,
    value: Truth,
    reason: Reason,
    message: impl Into<String>,
    observed_generation: i64,
    now: jiff::Timestamp,
) {
    let type_ = format!("{kind:?}");
    let mut condition = Condition {
        type_,
        status: value.text().into(),
        reason: reason.name(),
        message: message.into(),
        observed_generation: Some(observed_generation),
        last_transition_time: Time(now),
    };
    match conditions.iter_mut().find(|c| c.type_ == condition.type_) {
        Some(old) => {
            if old.status == condition.status {
                condition.last_transition_time = old.last_transition_time.clone();
            }
            *old = condition;
        }
        None => conditions.push(condition),
    }
}

/// Removes an abnormal condition that no longer holds.
pub fn clear(conditions: &mut Vec<Condition>, kind: ConditionType) {
    let type_ = format!("{kind:?}");
    conditions.retain(|c| c.type_ != type_);
}

/// The condition of a type.
pub fn get(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    let type_ = format!("{kind:?}");
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether a condition holds.
pub fn is_true(conditions: &[Condition], kind: ConditionType) -> bool {
    get(conditions, kind).is_some_and(|c| c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn transition_time_changes_with_the_value_only() {
        let mut list = Vec::new();
        set(&mut list, ConditionType::Running, Truth::False, Reason::NotYet, "", 1, at(1));
        set(&mut list, ConditionType::Running, Truth::False, Reason::Fencing, "waiting", 2, at(2));
        let seen = get(&list, ConditionType::Running).unwrap();
        assert_eq!((seen.last_transition_time.0, seen.reason.as_str()), (at(1), "Fencing"));
        set(&mut list, ConditionType::Running, Truth::True, Reason::JobRunning, "", 2, at(3));
        assert_eq!(get(&list, ConditionType::Running).unwrap().last_transition_time.0, at(3));
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn abnormal_conditions_vanish() {
        let mut list = Vec::new();
        set(&mut list, ConditionType::Stalled, Truth::True, Reason::UnknownSite, "", 1, at(1));
        clear(&mut list, ConditionType::Stalled);
        assert!(!is_true(&list, ConditionType::Stalled) && list.is_empty());
    }
}
