//! The agents' words: one event stream for each agent the jobs have, the latest state and when it
//! was heard.
//!
//! Nothing is decided here. What a silence means is the job controller's to say; this module says
//! since when there could have been anything else than silence: only while this process listened
//! (safety B13), and a process that stood still itself did not listen.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::broadcast,
    task::AbortHandle,
    time::{sleep, timeout},
};

use super::job::{Heard, Hearing};
use crate::{
    clock::Clock,
    driver::{
        Fact,
        agent::{AgentAddress, AgentState, Agents, PartState, VmState},
    },
    names::JobUid,
};

/// Time between two attempts to reach an agent.
const RECONNECT: Duration = Duration::from_secs(1);
/// A stream that is silent this long is dead: an agent speaks every second.
const DEAD_STREAM: Duration = Duration::from_secs(5);
/// Longest time to wait for a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// Time between two signs of life of this process.
const PULSE: Duration = Duration::from_secs(1);
/// A process that gave no sign of life for this long did not listen meanwhile. Shorter than any silence that counts.
const STANDSTILL: SignedDuration = SignedDuration::from_secs(5);

/// What is known of all agents. Pure: it is told the time.
#[derive(Default)]
struct Ears {
    agents: HashMap<AgentAddress, Heard>,
    pulse: Option<Timestamp>,
}

impl Ears {
    /// Takes in a state. Says whether anybody needs to know at once.
    fn hear(&mut self, address: &AgentAddress, state: AgentState, now: Timestamp) -> bool {
        let Some(heard) = self.agents.get_mut(address) else { return false };
        let news = heard.last.as_ref().is_none_or(|(_, old)| meaning(old) != meaning(&state));
        if heard.last.as_ref().is_some_and(|(_, old)| old.vm != state.vm) {
            heard.moved = Some(now);
        }
        heard.last = Some((now, state));
        news
    }

    /// Notes that the process lives. After a standstill, listening begins anew.
    fn pulse(&mut self, now: Timestamp) {
        if self.pulse.is_some_and(|last| now.duration_since(last) > STANDSTILL) {
            for heard in self.agents.values_mut() {
                heard.listening = now;
            }
        }
        self.pulse = Some(now);
    }

    fn heard(&self, address: &AgentAddress, now: Timestamp) -> Option<Heard> {
        let mut heard = self.agents.get(address)?.clone();
        if self.pulse.is_some_and(|last| now.duration_since(last) > STANDSTILL) {
            heard.listening = now;
        }
        Some(heard)
    }
}

/// What of a state leads to decisions: not what only counts up.
fn meaning(state: &AgentState) -> AgentState {
    let mut state = AgentState { ran: 0.0, notice: state.notice.map(|_| Duration::ZERO), ..state.clone() };
    state.guest.last_line = None;
    state.kept = None;
    let quarters = state.vm.quarters().map_or(0, |(quarters, _)| quarters);
    if let VmState::Fetching { done, .. } = &mut state.vm {
        // these are told
        *done = quarters;
    }
    if let Some(part) = state.capture.as_mut().filter(|part| part.state != PartState::Captured) {
        part.bytes = 0;
    }
    if let Some(upload) = state.upload.as_mut().filter(|upload| !upload.done) {
        upload.sent = 0;
    }
    state
}

/// What the streams of all agents write to.
struct Shared {
    clock: Clock,
    ears: Mutex<Ears>,
    news: broadcast::Sender<JobUid>,
}

impl Shared {
    fn ears(&self) -> MutexGuard<'_, Ears> {
        self.ears.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, address: &AgentAddress, state: AgentState) {
        if state.job != address.job || state.member != address.member || state.incarnation != address.incarnation {
            tracing::warn!(job = %address.job, member = address.member, "an agent speaks for another");
            return;
        }
        if self.ears().hear(address, state, self.clock.now()) {
            // nobody listens: nobody needs to be told
            let _ = self.news.send(address.job.clone());
        }
    }
}

/// Listens to the agents of all jobs.
pub struct AgentHub {
    agents: Arc<dyn Agents>,
    shared: Arc<Shared>,
    streams: Mutex<HashMap<AgentAddress, AbortHandle>>,
}

impl AgentHub {
    /// Listens to nobody yet.
    pub fn new(agents: Arc<dyn Agents>, clock: Clock) -> Self {
        let shared = Shared { clock, ears: Mutex::default(), news: broadcast::channel(1024).0 };
        Self { agents, shared: Arc::new(shared), streams: Mutex::default() }
    }

    /// The last state of an agent. Never `Absent`: an agent that says nothing is not known.
    pub fn state(&self, address: &AgentAddress) -> Fact<AgentState> {
        match self.heard(address) {
            Some(Heard { last: Some((_, state)), .. }) => Fact::Known(state),
            Some(Heard { last: None, listening, .. }) => Fact::Unknown { since: listening },
            None => Fact::Unknown { since: self.shared.clock.now() },
        }
    }

    /// The jobs whose agents say something new, as they say it.
    pub fn subscribe(&self) -> broadcast::Receiver<JobUid> {
        self.shared.news.subscribe()
    }

    /// Gives signs of life for ever, by which a standstill of this process is noticed.
    pub async fn run(&self) {
        loop {
            self.shared.ears().pulse(self.shared.clock.now());
            sleep(PULSE).await;
        }
    }
}

impl Hearing for AgentHub {
    /// Must be called inside a tokio runtime.
    fn listen(&self, job: &JobUid, wanted: &[AgentAddress]) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|address, stream| {
            let keep = address.job != *job || wanted.contains(address);
            if !keep {
                stream.abort();
            }
            keep
        });
        let now = self.shared.clock.now();
        let mut ears = self.shared.ears();
        ears.agents.retain(|address, _| address.job != *job || wanted.contains(address));
        for address in wanted.iter().filter(|address| address.job == *job) {
            ears.agents.entry(address.clone()).or_insert(Heard { last: None, moved: None, listening: now });
            streams.entry(address.clone()).or_insert_with(|| {
                tokio::spawn(stream(self.agents.clone(), self.shared.clone(), address.clone())).abort_handle()
            });
        }
    }

    fn heard(&self, address: &AgentAddress) -> Option<Heard> {
        self.shared.ears().heard(address, self.shared.clock.now())
    }
}

/// Listens to one agent until it is aborted.
async fn stream(agents: Arc<dyn Agents>, shared: Arc<Shared>, address: AgentAddress) {
    loop {
        if let Ok(Ok(mut states)) = timeout(CONNECT, agents.agent(&address).watch()).await {
            while let Ok(Some(state)) = timeout(DEAD_STREAM, states.next()).await {
                shared.hear(&address, state);
            }
        }
        sleep(RECONNECT).await;
    }
}

impl Drop for AgentHub {
    fn drop(&mut self) {
        for stream in self.streams.lock().unwrap_or_else(PoisonError::into_inner).values() {
            stream.abort();
        }
    }
}

#[cfg(test)]
#[path = "agents_tests.rs"]
mod tests;
