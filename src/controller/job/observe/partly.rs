//! Jobs with slots of their own for each member that have only some of them.

use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, JobPhase,
        job::Allocation,
        job_status::{SlotState, SlotStatus},
    },
    controller::job::{Context, account},
    driver::site::Credentials,
};

/// Whose slots are asked for: two jobs of one account compete for the same.
#[derive(PartialEq, Eq)]
enum Account {
    Secret { namespace: String, name: String },
    Configured(Option<Credentials>),
}

fn account(job: &BestEffortJob, ctx: &Context) -> (String, Account) {
    let (slots, namespace) = (&job.spec.slots, super::namespace(job));
    let account = match &slots.credentials {
        Some(secret) => Account::Secret { namespace: namespace.to_owned(), name: secret.name.clone() },
        None => {
            let site = ctx.config.sites.get(&slots.site);
            Account::Configured(site.and_then(|site| account::configured(site, namespace)))
        }
    };
    (slots.site.clone(), account)
}

/// Another job of the same account that waits for the rest of its slots, if this one is about to ask for its first.
pub(super) fn started(job: &BestEffortJob, status: &BestEffortJobStatus, ctx: &Context) -> Option<String> {
    let asks = matches!(status.phase, JobPhase::Pending | JobPhase::ImagePreparing | JobPhase::Queued);
    if !asks || job.spec.slots.allocation != Allocation::PerMember || status.slots.iter().any(SlotStatus::is_in_use) {
        return None;
    }
    let own = account(job, ctx);
    let others = ctx.view.jobs().into_iter().filter(|other| other.metadata.uid != job.metadata.uid);
    let mut waiting = others.filter(|other| is_partly_started(other) && account(other, ctx) == own);
    waiting
        .next()
        .map(|other| format!("{}/{}", super::namespace(&other), other.metadata.name.as_deref().unwrap_or_default()))
}

fn is_partly_started(job: &BestEffortJob) -> bool {
    let Some(status) = &job.status else { return false };
    let runs = status.slots.iter().any(|slot| slot.is_in_use() && slot.state == SlotState::Running);
    job.spec.slots.allocation == Allocation::PerMember && status.phase == JobPhase::Queued && runs
}
