//! The way in: what people are told of it, and whether it can be.

use std::net::SocketAddr;

use super::draft::Draft;
use crate::{
    api::{
        BestEffortJob, BestEffortJobSpec, JobPhase,
        job::Master,
        job_status::{AgentStatus, MemberPhase, MemberStatus, WayIn},
    },
    controller::job::identity,
    names::MemberIndex,
};

/// What kind of way in a job asks for.
pub(crate) fn wanted(spec: &BestEffortJobSpec) -> Master {
    spec.network.as_ref().map(|network| network.master).unwrap_or_default()
}

/// Whether the agent of this member serves the way in.
pub(super) fn serves_way_in(job: &BestEffortJob, member: MemberIndex) -> bool {
    match wanted(&job.spec) {
        Master::None => false,
        Master::Shared => member == 0,
        Master::Dedicated => member == job.spec.members,
    }
}

/// Where the way in is served, beside an agent: as far from the first port of all ways in as the agent's
/// from theirs, so that two on a node do not meet where their agents do not.
pub(super) fn beside(agent: SocketAddr, count: u16) -> Option<SocketAddr> {
    Some(SocketAddr::new(agent.ip(), agent.port().checked_add(count.max(1))?))
}

/// What people call the one with an agent.
pub(crate) fn called(member: &MemberStatus, job: &BestEffortJob) -> String {
    if member.index < job.spec.members { format!("member {}", member.index) } else { "the master".into() }
}

/// Nodes that a job needs: one for each member, and one for a master that has its own.
pub(crate) fn nodes(spec: &BestEffortJobSpec) -> u32 {
    spec.members + u32::from(wanted(spec) == Master::Dedicated)
}

impl Draft<'_> {
    /// Nodes that the job needs.
    pub(super) fn nodes(&self) -> u32 {
        nodes(&self.job.spec)
    }

    /// Makes room in the status for a master on a node of its own, or gives it up. Nobody of the last
    /// incarnation lives any more then.
    pub(super) fn seat_master(&mut self) {
        let subnet = self.status.network.as_ref().and_then(|network| network.subnet.parse().ok());
        let dedicated = wanted(&self.job.spec) == Master::Dedicated;
        self.status.master = dedicated.then(|| identity::master(subnet, self.job.spec.members));
    }

    /// Tells of the way in while the members run; there is none at other times.
    pub(super) fn show_master(&mut self) {
        let runs = matches!(self.status.phase, JobPhase::Running | JobPhase::Snapshotting | JobPhase::Completing);
        let found = self.way_in().filter(|_| runs);
        if let Some(network) = &mut self.status.network {
            network.way_in = found;
        }
    }

    fn way_in(&self) -> Option<WayIn> {
        let serves = self.status.everyone().find(|member| serves_way_in(self.job, member.index));
        let serves = serves.filter(|member| member.phase != MemberPhase::Dead)?;
        let agent = serves.agent.as_ref().filter(|agent| agent.incarnation == self.status.incarnation)?;
        let address = self.way_in_of(serves.index, agent)?.to_string();
        Some(WayIn { address, host_key: self.seen.network.host_key.clone()? })
    }

    /// Where this agent serves the way in, if it does: as it was told, for other ports may be configured by now.
    pub(super) fn way_in_of(&self, member: MemberIndex, agent: &AgentStatus) -> Option<SocketAddr> {
        match &agent.way_in {
            Some(told) => told.parse().ok(),
            // placed by an operator that did not write it down, if it serves one
            None if serves_way_in(self.job, member) => beside(agent.endpoint.parse().ok()?, self.seen.setup.port_count),
            None => None,
        }
    }
}
