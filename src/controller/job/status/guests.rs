//! What is wrong with the guests of a job, and with the way in to them.

use super::cause;
use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus, JobPhase, Reason,
        conditions::{self, ConditionType},
        job_status::MemberPhase,
    },
    controller::job::{decide::called, plan::Seen},
};

pub(super) fn degraded(status: &BestEffortJobStatus, job: &BestEffortJob, seen: &Seen) -> Option<(Reason, String)> {
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
