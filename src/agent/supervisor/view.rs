//! What the agent says of itself: kept in one place, rendered at each change.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::watch;

use super::{collect::Held, problems::Problems, upload::Upload};
use crate::{
    clock::Clock,
    driver::{
        agent::{
            AgentConfig, AgentState, CapturePart, GuestState, LeaseState, LeaveCode, PROTOCOL, VmState,
            barrier::Barrier,
        },
        repository::Brought,
    },
    names::Generation,
    store::machine::{Lack, MachineRecord, Offer},
};

/// Everything that changes.
pub(super) struct Facts {
    pub(super) lease: LeaseState,
    pub(super) vm: VmState,
    /// Its problems are apart.
    pub(super) guest: GuestState,
    pub(super) problems: Problems,
    pub(super) noticed: Option<Instant>,
    pub(super) barrier: Barrier,
    /// Parts that are whole and still on the disk.
    pub(super) captured: Vec<CapturePart>,
    pub(super) upload: Option<Upload>,
    /// Parts of other members.
    pub(super) held: Vec<Held>,
    pub(super) machine: Option<MachineRecord>,
    pub(super) offer: Option<Offer>,
    pub(super) lacks: Vec<Lack>,
    pub(super) waiting: Option<String>,
    pub(super) restored: Option<Brought>,
    pub(super) kept: Option<Generation>,
    pub(super) leaving: Option<LeaveCode>,
    pub(super) cleared: bool,
    /// Seconds the guest had run when its agent began not to answer.
    pub(super) unheard: Option<f64>,
    ran: Duration,
    running_since: Option<Instant>,
}

impl Facts {
    /// Seconds the guest has run in this incarnation.
    pub(super) fn ran(&self) -> f64 {
        (self.ran + self.running_since.map(|since| since.elapsed()).unwrap_or_default()).as_secs_f64()
    }

    /// Whether this agent has no future: nothing new is given to it.
    pub(super) fn ends(&self) -> bool {
        self.leaving.is_some() || self.lease == LeaseState::Lost || matches!(self.vm, VmState::Gone { .. })
    }

    fn earlier(&self) -> Vec<CapturePart> {
        let newest = self.barrier.part().map(|part| part.generation);
        self.captured.iter().filter(|part| Some(part.generation) != newest).cloned().collect()
    }

    /// Changes the VM's state; time counts as run only while it runs. One that is gone stays gone.
    pub(super) fn set_vm(&mut self, vm: VmState) {
        if matches!(self.vm, VmState::Gone { .. }) {
            return;
        }
        if let Some(since) = self.running_since.take() {
            self.ran += since.elapsed();
        }
        self.running_since = (vm == VmState::Running).then(Instant::now);
        self.vm = vm;
    }
}

/// The facts, and who wants to hear of changes.
pub(super) struct View {
    facts: Mutex<Facts>,
    changes: watch::Sender<u64>,
    own: AgentConfig,
    begun: Instant,
    pub(super) clock: Clock,
}

impl View {
    pub(super) fn new(config: &AgentConfig, clock: Clock) -> Self {
        Self {
            facts: Mutex::new(Facts {
                lease: LeaseState::Waiting,
                vm: VmState::None,
                guest: GuestState::default(),
                problems: Problems::default(),
                noticed: None,
                barrier: Barrier::new(config.incarnation, config.max_pause),
                captured: Vec::new(),
                upload: None,
                held: Vec::new(),
                machine: None,
                offer: None,
                lacks: Vec::new(),
                waiting: None,
                restored: None,
                kept: None,
                leaving: None,
                cleared: false,
                unheard: None,
                ran: Duration::ZERO,
                running_since: None,
            }),
            changes: watch::Sender::new(0),
            own: config.clone(),
            begun: Instant::now(),
            clock,
        }
    }

    /// Time for the barrier's rules.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The wall clock.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the facts.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Facts) -> T) -> T {
        read(&self.lock())
    }

    /// Changes the facts and tells everybody.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Facts) -> T) -> T {
        let result = change(&mut self.lock());
        self.changes.send_modify(|count| *count += 1);
        result
    }

    /// Changes the facts; who watches sees it at the next change or second.
    pub(super) fn quietly<T>(&self, change: impl FnOnce(&mut Facts) -> T) -> T {
        change(&mut self.lock())
    }

    /// Says what is waited for, if anything is: told of when it changes.
    pub(super) fn wait(&self, for_what: Option<String>) {
        if self.read(|facts| facts.waiting != for_what) {
            self.change(|facts| facts.waiting = for_what);
        }
    }

    /// Hears of changes.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits until the facts are so.
    pub(super) async fn until(&self, so: impl Fn(&Facts) -> bool) {
        let mut changes = self.changes();
        while !self.read(&so) {
            // the sender lives as long as we do
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// The facts as others see them.
    pub(super) fn render(&self) -> AgentState {
        let facts = self.lock();
        AgentState {
            protocol: PROTOCOL,
            job: self.own.job.clone(),
            member: self.own.member,
            incarnation: self.own.incarnation,
            lease: facts.lease,
            vm: facts.vm.clone(),
            guest: GuestState { problem: facts.problems.text(), ..facts.guest.clone() },
            notice: facts.noticed.map(|at| at.elapsed()),
            capture: facts.barrier.part().cloned(),
            earlier: facts.earlier(),
            upload: facts.upload.as_ref().map(Upload::shown),
            held: facts.held.iter().map(Held::shown).collect(),
            ran: facts.ran(),
            machine: facts.machine.clone(),
            offer: facts.offer.clone(),
            lacks: facts.lacks.clone(),
            waiting: facts.waiting.clone(),
            restored: facts.restored,
            kept: facts.kept,
            leaving: facts.leaving,
            cleared: facts.cleared,
        }
    }
}
