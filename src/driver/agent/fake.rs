//! Agents in memory, for simulated time: they obey the same rules as the real ones
//! ([`super::barrier`]), and do what a test tells them to.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures::{StreamExt as _, stream::BoxStream};
use jiff::Timestamp;
use tokio::{io::AsyncWriteExt as _, sync::watch};

use super::{
    Accelerator, AgentAddress, AgentError, AgentState, Agents, Authority, CaptureOrder, CapturePart, CollectOrder,
    ExecOrder, ExecReply, GuestAccess, GuestState, HeldPart, LeaseState, LeaveCode, LoadFault, NodeAgent, PROTOCOL,
    UploadOrder, UploadState, VmState,
    barrier::{Barrier, Todo},
};
use crate::{
    clock::Clock,
    names::{Incarnation, JobUid, MemberIndex},
    store::{
        machine::MachineRecord,
        manifest::{FileForm, FileKind, MemberPart, PartFile},
    },
    stream::{self, Connection, End},
};

fn stored_files(size: u64) -> Vec<PartFile> {
    let file =
        |kind| PartFile { kind, form: FileForm::Whole, size, stored: size / 2, packed: 0, digest: "00".repeat(32) };
    vec![file(FileKind::Memory), file(FileKind::Disk), file(FileKind::Output)]
}

/// The calls of an agent, to script faults for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`NodeAgent::state`] and [`NodeAgent::watch`].
    State,
    /// [`NodeAgent::go`].
    Go,
    /// [`NodeAgent::prepare`].
    Prepare,
    /// [`NodeAgent::stop`].
    Stop,
    /// [`NodeAgent::cut`].
    Cut,
    /// [`NodeAgent::abandon`].
    Abandon,
    /// [`NodeAgent::stay_down`].
    StayDown,
    /// [`NodeAgent::upload`].
    Upload,
    /// [`NodeAgent::collect`].
    Collect,
    /// [`NodeAgent::leave`].
    Leave,
}

/// What a fault does to one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails and has no effect.
    Before(AgentError),
    /// The call has its effect, and its reply is lost.
    After(AgentError),
}

/// How a member is made, in tests.
pub fn machine_record() -> MachineRecord {
    MachineRecord {
        qemu: "7.2.22".into(),
        machine: "pc-q35-7.2".into(),
        cpu_model: "qemu64".into(),
        accelerator: Accelerator::Tcg,
        cpus: 1,
        memory: 256 << 20,
        flags: vec!["sse2".into()],
        withheld: Vec::new(),
    }
}

/// What a captured member says of itself, in tests.
pub fn member_part(index: MemberIndex) -> MemberPart {
    MemberPart { index, files: Vec::new(), machine: machine_record(), output_bytes: 0, started: true, ran: 0.0 }
}

struct Inner {
    barrier: Barrier,
    state: AgentState,
    /// Parts that are whole, the newest with them.
    captured: Vec<CapturePart>,
    faults: VecDeque<(Call, Fault)>,
    reachable: bool,
    /// Whether a cut is captured, and an upload done, at once.
    prompt: bool,
    running_since: Option<Timestamp>,
    /// Seconds the guest had run in earlier incarnations.
    before: f64,
}

/// What an agent says whose lease is held and whose VM is loaded.
pub fn loaded_state(job: JobUid, member: MemberIndex, incarnation: Incarnation) -> AgentState {
    AgentState {
        protocol: PROTOCOL,
        job,
        member,
        incarnation,
        lease: LeaseState::Held,
        vm: VmState::Loaded,
        guest: GuestState::default(),
        notice: None,
        capture: None,
        earlier: Vec::new(),
        upload: None,
        held: Vec::new(),
        ran: 0.0,
        machine: None,
        offer: None,
        lacks: Vec::new(),
        waiting: None,
        restored: None,
        kept: None,
        leaving: None,
        cleared: false,
    }
}

/// One agent in memory.
pub struct FakeAgent {
    inner: Mutex<Inner>,
    changed: watch::Sender<AgentState>,
    clock: Clock,
    started: Timestamp,
}

impl FakeAgent {
    /// Makes an agent whose lease is held and whose VM is loaded: it waits for `go`.
    pub fn loaded(
        job: JobUid,
        member: MemberIndex,
        incarnation: Incarnation,
        max_pause: Duration,
        clock: Clock,
    ) -> Self {
        let state = AgentState { machine: Some(machine_record()), ..loaded_state(job, member, incarnation) };
        Self {
            changed: watch::Sender::new(state.clone()),
            inner: Mutex::new(Inner {
                barrier: Barrier::new(incarnation, max_pause),
                state,
                captured: Vec::new(),
                faults: VecDeque::new(),
                reachable: true,
                prompt: true,
                running_since: None,
                before: 0.0,
            }),
            started: clock.now(),
            clock,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        Duration::try_from(self.clock.now().duration_since(self.started)).unwrap_or_default()
    }

    fn publish(&self, inner: &mut Inner) {
        inner.state.capture = inner.barrier.part().cloned();
        let shown = self.shown(inner);
        if inner.reachable {
            self.changed.send_replace(shown);
        }
    }

    fn shown(&self, inner: &Inner) -> AgentState {
        let capture = inner.barrier.part().cloned();
        let newest = capture.as_ref().map(|part| part.generation);
        let earlier = inner.captured.iter().filter(|part| Some(part.generation) != newest).cloned().collect();
        let ran = inner.state.ran + self.running(inner);
        AgentState { capture, earlier, ran, ..inner.state.clone() }
    }

    fn running(&self, inner: &Inner) -> f64 {
        inner.running_since.map_or(0.0, |since| self.clock.now().duration_since(since).as_secs_f64())
    }

    fn set_vm(&self, inner: &mut Inner, vm: VmState) {
        inner.state.ran += self.running(inner);
        inner.running_since = (vm == VmState::Running).then(|| self.clock.now());
        inner.state.vm = vm;
    }

    fn resume(&self, inner: &mut Inner) {
        inner.barrier.resumed(self.now());
        self.set_vm(inner, VmState::Running);
    }

    /// The guest was restored after it had run so long in earlier incarnations.
    pub fn set_before(&self, seconds: f64) {
        self.lock().before = seconds;
    }

    /// What the agent would say of itself if it were asked, reachable or not.
    pub fn peek(&self) -> AgentState {
        self.shown(&self.lock())
    }

    /// Changes what the agent says of itself (lease, guest, notice, ...).
    pub fn change(&self, change: impl FnOnce(&mut AgentState)) {
        let mut inner = self.lock();
        let before = inner.state.vm.clone();
        change(&mut inner.state);
        if inner.state.vm != before {
            let vm = std::mem::replace(&mut inner.state.vm, before);
            self.set_vm(&mut inner, vm);
        }
        self.publish(&mut inner);
    }

    /// The guest's command ends.
    pub fn finish(&self, exit_code: i32) {
        self.change(|state| {
            state.guest.exit_code = Some(exit_code);
            state.guest.outputs_kept = true;
        });
    }

    /// The lease is lost: the VM is gone and nobody answers any more.
    pub fn lose_lease(&self) {
        self.change(|state| {
            state.lease = LeaseState::Lost;
            state.vm = VmState::Gone { reason: "the lease is lost".into(), fault: LoadFault::Unknown };
        });
        self.lock().reachable = false;
    }

    /// Cuts the agent off, or connects it again.
    pub fn set_reachable(&self, reachable: bool) {
        let mut inner = self.lock();
        inner.reachable = reachable;
        self.publish(&mut inner);
    }

    /// Whether captures and uploads are done at once (the default), or when a test says so.
    pub fn set_prompt(&self, prompt: bool) {
        self.lock().prompt = prompt;
    }

    /// The next call of this kind meets this fault.
    pub fn fail(&self, call: Call, fault: Fault) {
        self.lock().faults.push_back((call, fault));
    }

    /// The memory of the running capture is on local disk.
    pub fn captured(&self) {
        let mut inner = self.lock();
        let mut record = member_part(inner.state.member);
        record.ran = inner.before + inner.state.ran + self.running(&inner);
        record.started = inner.state.guest.started;
        let generation = inner.barrier.part().map(|part| part.generation).unwrap_or_default();
        let whole = inner.barrier.captured(self.now(), generation, record, 1 << 20);
        inner.captured.extend(whole);
        self.publish(&mut inner);
    }

    /// The running upload is done.
    pub fn uploaded(&self) {
        let mut inner = self.lock();
        if let Some(upload) = inner.state.upload.as_mut().filter(|upload| upload.limit != Some(0)) {
            upload.files = stored_files(upload.total);
            upload.sent = upload.total;
            upload.done = true;
        }
        self.publish(&mut inner);
    }

    /// The running upload gets so many bytes further, unless it was told to stand still.
    pub fn sends(&self, bytes: u64) {
        let ends = {
            let mut inner = self.lock();
            let upload = inner.state.upload.as_mut().filter(|upload| !upload.done && upload.limit != Some(0));
            let Some(upload) = upload else { return };
            let bytes = bytes.min(upload.total - upload.sent);
            upload.sent += bytes;
            upload.moved = upload.moved.map(|moved| moved + bytes);
            upload.sent == upload.total
        };
        if ends {
            self.uploaded();
        }
    }

    /// All bytes of a member's part have come here from its agent.
    pub fn takes(&self, member: MemberIndex, bytes: u64) {
        self.of_held(member, |held| {
            (held.size, held.stored, held.whole) = (bytes, bytes, true);
        });
    }

    /// What is held for a member gets so many bytes further on its way to the repository, unless it is to stay.
    pub fn brings(&self, member: MemberIndex, bytes: u64) {
        self.of_held(member, |held| {
            if !held.whole || held.done || held.limit == Some(0) {
                return;
            }
            held.moved = held.stored.min(held.moved + bytes);
            if held.moved == held.stored {
                held.part.files = stored_files(held.size);
                held.done = true;
            }
        });
    }

    fn of_held(&self, member: MemberIndex, change: impl Fn(&mut HeldPart)) {
        self.change(|state| state.held.iter_mut().filter(|held| held.part.index == member).for_each(&change));
    }

    /// Lets limits pass that are due by the clock.
    pub fn tick(&self) {
        let mut inner = self.lock();
        if inner.barrier.tick(self.now()) == Todo::Resume {
            self.resume(&mut inner);
        }
        self.publish(&mut inner);
    }

    /// Runs one call: faults first, then limits that are due, then the effect.
    fn call<T>(&self, call: Call, effect: impl FnOnce(&mut Inner) -> Result<T, AgentError>) -> Result<T, AgentError> {
        self.tick();
        let mut inner = self.lock();
        if !inner.reachable {
            return Err(AgentError::Unreachable("cut off".into()));
        }
        let fault = match inner.faults.front() {
            Some((kind, _)) if *kind == call => inner.faults.pop_front().map(|(_, fault)| fault),
            _ => None,
        };
        if let Some(Fault::Before(error)) = fault {
            return Err(error);
        }
        let result = effect(&mut inner);
        self.publish(&mut inner);
        match fault {
            Some(Fault::After(error)) => Err(error),
            _ => result,
        }
    }
}

/// A guest's end that says what it hears.
fn echo() -> Connection {
    let (near, far) = tokio::io::duplex(1 << 16);
    let (guest, echo) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        let (from, to) = tokio::io::split(guest);
        stream::carry(stream::over(far, End::Guest).await, End::Guest, from, to).await
    });
    tokio::spawn(async move {
        let (mut from, mut to) = tokio::io::split(echo);
        let copied = tokio::io::copy(&mut from, &mut to).await;
        copied.and(to.shutdown().await)
    });
    Box::new(near)
}

#[async_trait]
impl GuestAccess for FakeAgent {
    /// Its guest sends back what it hears, at any port but 1.
    async fn connect(&self, port: u16) -> Result<Connection, AgentError> {
        self.call(Call::State, |_| Ok(()))?;
        if port == 1 {
            return Err(AgentError::Refused("nothing listens at port 1".into()));
        }
        Ok(echo())
    }

    /// Its console shows what is typed.
    async fn console(&self) -> Result<Connection, AgentError> {
        self.call(Call::State, |_| Ok(()))?;
        Ok(echo())
    }

    /// Its guest knows no command: it prints what it was asked.
    async fn exec(&self, order: &ExecOrder) -> Result<ExecReply, AgentError> {
        self.call(Call::State, |_| Ok(()))?;
        let stderr = BASE64.encode(format!("{}: not found\n", order.command.join(" ")));
        Ok(ExecReply { code: 127, stdout: String::new(), stderr, cut: false })
    }
}

#[async_trait]
impl NodeAgent for FakeAgent {
    async fn state(&self) -> Result<AgentState, AgentError> {
        self.call(Call::State, |inner| Ok(self.shown(inner)))
    }

    async fn watch(&self) -> Result<BoxStream<'static, AgentState>, AgentError> {
        self.call(Call::State, |_| Ok(()))?;
        Ok(tokio_stream::wrappers::WatchStream::new(self.changed.subscribe()).boxed())
    }

    async fn go(&self, authority: Authority) -> Result<(), AgentError> {
        self.call(Call::Go, |inner| {
            inner.barrier.admit(authority)?;
            match inner.state.vm {
                VmState::Loaded => {
                    self.set_vm(inner, VmState::Running);
                    inner.state.guest.answers = true;
                    inner.state.guest.started = true;
                    Ok(())
                }
                VmState::Running | VmState::Stopped => Ok(()),
                VmState::None | VmState::Fetching { .. } | VmState::Gone { .. } => {
                    Err(AgentError::Refused("the VM is not loaded".into()))
                }
            }
        })
    }

    async fn prepare(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.call(Call::Prepare, |inner| {
            if !matches!(inner.state.vm, VmState::Running | VmState::Stopped) {
                return Err(AgentError::Refused("the guest does not run".into()));
            }
            inner.barrier.prepare(order).map(|_| ())
        })
    }

    async fn stop(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.call(Call::Stop, |inner| {
            if inner.barrier.stop(order)? == Todo::Work {
                inner.barrier.stopped(self.now(), self.clock.now());
                self.set_vm(inner, VmState::Stopped);
            }
            Ok(())
        })
    }

    async fn cut(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        let prompt = self.call(Call::Cut, |inner| {
            let todo = inner.barrier.cut(order)?;
            if todo == Todo::Work {
                inner.barrier.writing();
                if order.resume {
                    self.resume(inner);
                }
            }
            Ok(inner.prompt && todo == Todo::Work)
        });
        // an effect whose reply was lost is an effect all the same
        if prompt.is_err() && self.lock().prompt || prompt == Ok(true) {
            self.captured();
        }
        prompt.map(|_| ())
    }

    async fn abandon(&self, order: &CaptureOrder) -> Result<(), AgentError> {
        self.call(Call::Abandon, |inner| {
            if inner.barrier.abandon(order, "given up by the coordinator")? == Todo::Resume {
                self.resume(inner);
            }
            Ok(())
        })
    }

    async fn stay_down(&self, order: &CaptureOrder, limit: Duration) -> Result<(), AgentError> {
        self.call(Call::StayDown, |inner| inner.barrier.stay_down(order, limit, self.now()).map(|_| ()))
    }

    async fn upload(&self, order: &UploadOrder) -> Result<(), AgentError> {
        let prompt = self.call(Call::Upload, |inner| {
            inner.barrier.admit_kget(order.epoch, order.incarnation)?;
            let part = inner.captured.iter().find(|part| part.generation == order.generation);
            let Some(part) = part else {
                return Err(AgentError::Refused("this generation was not captured here".into()));
            };
            let total = part.bytes;
            if let Some(other) = inner.state.upload.as_ref().filter(|u| !u.done && u.generation > order.generation) {
                return Err(AgentError::Refused(format!("generation {} is being sent", other.generation)));
            }
            let moved = inner.state.upload.as_ref().and_then(|upload| upload.moved).or(Some(0));
            let collector = order.collector.as_ref().map(|collector| collector.member);
            let same = inner.state.upload.take().filter(|upload| {
                upload.generation == order.generation && upload.collector == collector && upload.error.is_none()
            });
            let fresh = UploadState { generation: order.generation, total, moved, collector, ..UploadState::default() };
            inner.state.upload = Some(UploadState { limit: order.limit, ..same.unwrap_or(fresh) });
            Ok(inner.prompt)
        })?;
        if prompt {
            self.uploaded();
        }
        Ok(())
    }

    async fn collect(&self, order: &CollectOrder) -> Result<(), AgentError> {
        self.call(Call::Collect, |inner| {
            inner.barrier.admit_kget(order.epoch, order.incarnation)?;
            let same =
                |held: &&mut HeldPart| held.generation == order.generation && held.part.index == order.part.index;
            if let Some(held) = inner.state.held.iter_mut().find(same) {
                held.limit = order.limit;
                return Ok(());
            }
            inner.state.held.push(HeldPart::from(order));
            Ok(())
        })
    }

    async fn leave(&self, authority: Authority, code: LeaveCode) -> Result<(), AgentError> {
        self.call(Call::Leave, |inner| {
            inner.barrier.admit(authority)?;
            (inner.state.leaving, inner.state.cleared) = (Some(code), true);
            self.set_vm(inner, VmState::Gone { reason: "left".into(), fault: LoadFault::Unknown });
            Ok(())
        })
    }
}

type Key = (JobUid, MemberIndex, Incarnation);

/// All agents of a simulated world; those that are not in it do not answer.
#[derive(Clone, Default)]
pub struct FakeAgents {
    all: Arc<Mutex<BTreeMap<Key, Arc<FakeAgent>>>>,
}

impl FakeAgents {
    /// Adds an agent.
    pub fn add(&self, agent: FakeAgent) -> Arc<FakeAgent> {
        let agent = Arc::new(agent);
        let key = {
            let inner = agent.lock();
            (inner.state.job.clone(), inner.state.member, inner.state.incarnation)
        };
        self.all.lock().unwrap_or_else(PoisonError::into_inner).insert(key, agent.clone());
        agent
    }

    /// The agent of a member of an incarnation.
    pub fn get(&self, job: &JobUid, member: MemberIndex, incarnation: Incarnation) -> Option<Arc<FakeAgent>> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&(job.clone(), member, incarnation)).cloned()
    }
}

impl Agents for FakeAgents {
    fn agent(&self, address: &AgentAddress) -> Arc<dyn NodeAgent> {
        if let Some(agent) = self.get(&address.job, address.member, address.incarnation) {
            return agent;
        }
        let nobody = FakeAgent::loaded(
            address.job.clone(),
            address.member,
            address.incarnation,
            Duration::ZERO,
            Clock::system(),
        );
        nobody.set_reachable(false);
        Arc::new(nobody)
    }
}
