//! What one process remembers between two passes: what agents said and how often they were asked.
//! All of it can be lost: the repository's listing and the agents tell a new process the rest.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::{decide::Ordered, link::Link};
use crate::{
    api::snapshot::Transfer,
    driver::{
        agent::{AgentAddress, AgentState, NodeAgent},
        repository::KeptPart,
    },
    names::{Generation, JobUid, MemberIndex},
    store::manifest::MemberPart,
};

/// What is remembered.
#[derive(Default)]
pub struct Memory {
    /// Agents by address.
    pub agents: HashMap<AgentAddress, Known>,
    /// Parts of agents, by address and generation, with the barrier's nonce.
    pub records: HashMap<(AgentAddress, Generation), (String, MemberPart)>,
    /// The way into the repository.
    pub link: Link,
    /// Uploads ordered.
    pub ordered: HashMap<(AgentAddress, Generation), Ordered>,
    /// What collectors were told, by the agent whose part it is, and how often in a row they did not answer.
    pub carried: HashMap<(AgentAddress, Generation), Ordered>,
    /// The repository's listings, by snapshot; forgotten when something was added.
    pub kept: HashMap<String, Vec<KeptPart>>,
    /// Publications under way, by snapshot.
    pub publishing: HashSet<String>,
    /// Refused publications, by snapshot.
    pub refused: HashMap<String, String>,
    /// Jobs of which an agent has obeyed a later kget. What is known of them here may be old. Only of them: what an
    /// agent says stops no other job, and whether this process leads is seen by its Lease.
    pub superseded: HashSet<JobUid>,
    /// What was reported, by snapshot.
    pub written: HashMap<String, (Timestamp, Transfer)>,
    /// Reports under way, by snapshot.
    pub reporting: HashSet<String>,
    /// Since when the repository has listed parts, by snapshot.
    pub safe: HashMap<String, BTreeMap<MemberIndex, Timestamp>>,
}

/// An agent that was asked.
#[derive(Clone)]
pub struct Known {
    /// Its client, with the connection it holds.
    pub agent: Arc<dyn NodeAgent>,
    /// When it was last asked.
    pub asked: Timestamp,
    /// What it last said.
    pub state: Option<AgentState>,
    /// Since when it is silent, and how often it was asked since.
    pub silent: Option<(Timestamp, u32)>,
}

impl Memory {
    /// Forgets what belongs to none of these snapshots and agents.
    pub fn retain(&mut self, snapshots: &HashSet<String>, agents: &HashSet<AgentAddress>) {
        self.agents.retain(|address, _| agents.contains(address));
        self.records.retain(|(address, _), _| agents.contains(address));
        self.ordered.retain(|(address, _), _| agents.contains(address));
        self.carried.retain(|(address, _), _| agents.contains(address));
        self.kept.retain(|uid, _| snapshots.contains(uid));
        self.publishing.retain(|uid| snapshots.contains(uid));
        self.refused.retain(|uid, _| snapshots.contains(uid));
        self.written.retain(|uid, _| snapshots.contains(uid));
        self.reporting.retain(|uid| snapshots.contains(uid));
        self.safe.retain(|uid, _| snapshots.contains(uid));
        self.superseded.retain(|job| agents.iter().any(|address| address.job == *job));
    }
}
