//! The steps of a capture on this node: what the barrier's rules say is done to the VM.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Supervisor,
    vm::{Paths, Prepared, Vm, remove, remove_generation},
};
use crate::{
    driver::{
        agent::{AgentError, CaptureOrder, CapturePart, PartState, VmState, barrier::Todo, limits},
        qemu::{
            QemuError,
            capture::{self, Mechanism, Merge},
            cmdline::Layer,
            img::{self, Chain, Format},
            process,
        },
    },
    names::Generation,
    store::manifest::{FileKind, MemberPart},
};

/// A conversation with the guest's agent ends within this time, or there is no capture.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// A capture that was prepared, and that nobody goes on with, is undone after this time: it keeps the
/// guest's channel idle.
const PREPARED_LIMIT: Duration = Duration::from_secs(60);

/// A guest that cannot be let run within this time is lost: none is left paused.
const RESUME_LIMIT: Duration = Duration::from_secs(10);

/// What a guest that stands still has printed is taken within this time, or there is no capture.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Stopping a guest is given at least this time, however short its pause is to be.
const SHORTEST_STOP: Duration = Duration::from_millis(100);

/// What is left to do once the guest has been cut.
struct Cut {
    generation: Generation,
    mechanism: Mechanism,
    resume: bool,
    /// The overlay that was frozen.
    frozen: PathBuf,
    output_bytes: u64,
    started: bool,
    ran: f64,
    /// Time for the memory.
    memory_limit: Duration,
    /// Time for disk and output after that.
    files_limit: Duration,
}

fn failed(error: impl std::fmt::Display) -> AgentError {
    AgentError::Failed(error.to_string())
}

fn not_loaded() -> AgentError {
    AgentError::Refused("the VM is not loaded".into())
}

impl Supervisor {
    /// Step 1: overlay, file and space, all before the pause.
    pub(super) async fn prepare(self: &Arc<Self>, order: &CaptureOrder) -> Result<(), AgentError> {
        let mut vm = if order.resume { self.vm.lock().await } else { self.vm_at_once().await };
        let vm = vm.as_mut().ok_or_else(not_loaded)?;
        let todo = self.view.change(|facts| match facts.vm {
            VmState::Running | VmState::Stopped => facts.barrier.prepare(order),
            _ => Err(AgentError::Refused("the guest does not run".into())),
        })?;
        if todo != Todo::Work {
            return Ok(());
        }
        if let Some(old) = vm.prepared.as_ref().map(|prepared| prepared.generation) {
            vm.discard(&self.paths, old).await;
        }
        self.forget_held(order.generation).await;
        let uploading = self.uploading();
        vm.forget_old(&self.paths, uploading).await;
        self.view.change(|facts| facts.captured.retain(|part| vm.captured.contains_key(&part.generation)));
        let idle = tokio::time::timeout(IDLE_LIMIT, self.guest.clone().lock_owned()).await;
        let ready = match idle {
            Ok(gate) => {
                vm.gate = Some((order.generation, gate));
                match make_ready(vm, &self.paths, order).await {
                    Err(error) if error.is_full() => {
                        self.make_room().await;
                        make_ready(vm, &self.paths, order).await
                    }
                    ready => ready,
                }
            }
            Err(_) => Err(QemuError::Late("the guest's agent")),
        };
        if let Err(error) = &ready {
            self.view.change(|facts| facts.barrier.give_up(order.generation, &error.to_string()));
            vm.discard(&self.paths, order.generation).await;
        }
        ready.map_err(failed)
    }

    /// Step 2: the guest stands still.
    pub(super) async fn stop(self: &Arc<Self>, order: &CaptureOrder) -> Result<(), AgentError> {
        let mut vm = self.vm.lock().await;
        let vm = vm.as_mut().ok_or_else(not_loaded)?;
        if self.view.change(|facts| facts.barrier.stop(order))? != Todo::Work {
            return Ok(());
        }
        let elapsed = self.view.elapsed();
        self.view.quietly(|facts| facts.barrier.stopping(elapsed));
        let limit = self.config.max_pause.max(SHORTEST_STOP);
        if let Err(error) = capture::stop(&vm.qmp, limit).await {
            self.give_up(vm, order.generation, &error.to_string()).await;
            return Err(failed(error));
        }
        let (elapsed, now) = (self.view.elapsed(), self.view.now());
        self.view.change(|facts| {
            facts.barrier.stopped(elapsed, now);
            facts.set_vm(VmState::Stopped);
        });
        // while the others stop: nothing comes after it from a guest that stands still
        let drained = tokio::time::timeout(limit, drained(vm)).await;
        if let Err(error) = drained.unwrap_or(Err(QemuError::Late("keeping the command's output"))) {
            self.give_up(vm, order.generation, &error.to_string()).await;
            return Err(failed(error));
        }
        Ok(())
    }

    /// Step 3: the cut.
    pub(super) async fn cut(self: &Arc<Self>, order: &CaptureOrder) -> Result<(), AgentError> {
        let mut vm = self.vm.lock().await;
        let vm = vm.as_mut().ok_or_else(not_loaded)?;
        if self.view.change(|facts| facts.barrier.cut(order))? != Todo::Work {
            return Ok(());
        }
        match self.try_cut(vm, order).await {
            Ok(cut) => {
                let own = self.clone();
                tokio::spawn(async move { own.finish(cut).await });
                Ok(())
            }
            Err(error) => {
                vm.being_read.remove(&order.generation);
                self.give_up(vm, order.generation, &error.to_string()).await;
                if self.paths.generation(order.generation).exists() {
                    remove_generation(&self.paths, order.generation).await;
                }
                Err(failed(error))
            }
        }
    }

    async fn try_cut(&self, vm: &mut Vm, order: &CaptureOrder) -> Result<Cut, QemuError> {
        let (Some(prepared), Some((top, frozen))) = (&vm.prepared, vm.top()) else {
            return Err(QemuError::Late("the preparation"));
        };
        let (overlay, mechanism, frozen) = (prepared.overlay, prepared.mechanism, frozen.to_owned());
        let output_bytes = vm.output.length();
        capture::switch(&vm.qmp, &Chain::node(top), &Chain::node(overlay)).await?;
        vm.prepared = None;
        vm.chain.overlays.push((overlay, self.paths.overlay(overlay)));
        let (started, ran) = self.view.read(|facts| (facts.guest.started, facts.ran()));
        let content = [self.paths.output(), frozen.clone()].map(|path| std::fs::metadata(path).map_or(0, |m| m.len()));
        // a guest that waits for its memory to be written waits no longer than that
        let paused = order.resume && mechanism == Mechanism::Stopped;
        let slowest = if paused { limits::SLOWEST_PAUSED } else { limits::SLOWEST };
        let memory_limit = limits::write_limit(vm.patience, vm.memory, slowest);
        let files_limit = limits::write_limit(vm.patience, content.iter().sum(), limits::SLOWEST);
        capture::begin(&vm.qmp, mechanism, vm.version.resumes_by_itself).await?;
        vm.being_read.insert(order.generation);
        self.view.change(|facts| facts.barrier.writing());
        // one that stands still for it runs on once it is written: nobody waits here that long
        if order.resume && !paused {
            self.let_run(vm).await?;
            // others that were stopped with it may still be cut
            if let Some(threads) = vm.threads {
                threads.writer_gives_way();
            }
        }
        let ran = ran + self.restored_ran();
        let (generation, resume) = (order.generation, order.resume);
        Ok(Cut { generation, mechanism, resume, frozen, output_bytes, started, ran, memory_limit, files_limit })
    }

    /// Lets the guest run, whatever held it.
    async fn let_run(&self, vm: &mut Vm) -> Result<(), QemuError> {
        // QEMU obeys in order: whatever it was told before is done, or never will be
        let resumed = tokio::time::timeout(RESUME_LIMIT, capture::resume(&vm.qmp)).await;
        resumed.map_err(|_| QemuError::Late("the resumption of the guest"))??;
        vm.gate = None;
        let elapsed = self.view.elapsed();
        self.view.change(|facts| {
            facts.barrier.resumed(elapsed);
            facts.set_vm(VmState::Running);
        });
        Ok(())
    }

    /// Lets the guest run, or loses it, so that it is restored; it is not left paused. Whether it runs.
    async fn run_on(&self, vm: &mut Vm) -> bool {
        let resumed = self.let_run(vm).await;
        if let Err(error) = &resumed {
            self.lose_vm(&format!("the guest cannot be resumed: {error}"));
        }
        resumed.is_ok()
    }

    /// Sees to it that a memory which was not written in time is not being written any more. Its part
    /// cannot count: it becomes void before the guest runs on.
    async fn end_writing(&self, vm: &Vm, mechanism: Mechanism, error: &QemuError) {
        let why = match (mechanism, error) {
            // its pages are protected until they are written: such a guest freezes
            (Mechanism::Background, QemuError::Unwritten(_)) => error.to_string(),
            (Mechanism::Background, QemuError::Migration { .. }) if vm.version.resumes_by_itself => {
                "its memory could not be written, which this QEMU does not survive".into()
            }
            (Mechanism::Stopped, QemuError::Unwritten(_)) => match capture::end_writing(&vm.qmp).await {
                Ok(()) => return,
                Err(end) => format!("{error}, and that cannot be ended: {end}"),
            },
            _ => return,
        };
        self.lose_vm(&why);
    }

    /// Makes the part void; the guest runs on.
    async fn give_up(&self, vm: &mut Vm, generation: Generation, reason: &str) {
        tracing::warn!(generation, reason, "a capture is given up");
        let todo = self.view.change(|facts| facts.barrier.give_up(generation, reason));
        if todo == Todo::Resume && !self.stop.is_cancelled() {
            self.run_on(vm).await;
        }
        vm.discard(&self.paths, generation).await;
    }

    /// The order to give a capture up.
    pub(super) async fn abandon(self: &Arc<Self>, order: &CaptureOrder) -> Result<(), AgentError> {
        let mut vm = self.vm.lock().await;
        let vm = vm.as_mut().ok_or_else(not_loaded)?;
        let (writing, todo) = self.view.change(|facts| {
            let writing = facts.barrier.part().is_some_and(|part| part.state == PartState::Writing);
            facts.barrier.abandon(order, "given up by the coordinator").map(|todo| (writing, todo))
        })?;
        if writing {
            // never cancelled: what is being written ends, and the guest runs on then
            return Ok(());
        }
        if todo == Todo::Resume && !self.run_on(vm).await {
            return Err(failed("the guest cannot be resumed"));
        }
        vm.discard(&self.paths, order.generation).await;
        Ok(())
    }

    /// Lets the guest run when a limit of the barrier has passed (safety B3).
    pub(super) async fn tick(&self) {
        let elapsed = self.view.elapsed();
        let (todo, part) = self.view.quietly(|facts| (facts.barrier.tick(elapsed), facts.barrier.part().cloned()));
        let (Todo::Resume, Some(part)) = (todo, part) else { return self.forget_prepared().await };
        if let Some(vm) = self.vm.lock().await.as_mut() {
            tracing::warn!("nobody has said how the capture goes on: the guest runs on");
            self.run_on(vm).await;
            vm.discard(&self.paths, part.generation).await;
        }
    }

    async fn forget_prepared(&self) {
        // whoever holds the VM now goes on with the capture
        let Ok(mut vm) = self.vm.try_lock() else { return };
        let Some(vm) = vm.as_mut() else { return };
        let late = vm.prepared.as_ref().filter(|prepared| prepared.at.elapsed() > PREPARED_LIMIT);
        let Some(generation) = late.map(|prepared| prepared.generation) else { return };
        let waits = |part: &CapturePart| part.generation == generation && part.state == PartState::Prepared;
        if self.view.read(|facts| facts.barrier.part().is_some_and(waits)) {
            self.give_up(vm, generation, "nobody goes on with it").await;
        }
    }

    /// After the cut: the memory is written to its end, the disk's frozen state is made one file.
    async fn finish(self: Arc<Self>, cut: Cut) {
        let generation = cut.generation;
        let result = self.collect(&cut).await;
        let mut vm = self.vm.lock().await;
        let Some(vm) = vm.as_mut() else { return };
        vm.being_read.remove(&generation);
        match result {
            Ok(bytes) => self.captured(vm, cut, bytes).await,
            Err(error) => {
                self.end_writing(vm, cut.mechanism, &error).await;
                self.give_up(vm, generation, &error.to_string()).await;
                remove_generation(&self.paths, generation).await;
            }
        }
        if let Err(error) = self.merge(vm).await {
            tracing::warn!(%error, "old overlays stay");
        }
    }

    /// Merges old overlays, never while a capture holds the guest; an order that is urgent ends it.
    async fn merge(&self, vm: &mut Vm) -> Result<(), QemuError> {
        if self.view.read(|facts| facts.barrier.holds_guest()) || vm.prepared.is_some() {
            return Ok(());
        }
        let (Some((top, base)), Some((active, _))) = (vm.chain.to_commit(!vm.being_read.is_empty()), vm.top()) else {
            return Ok(());
        };
        let mut urgent = self.urgent.subscribe();
        // the sender lives as long as we do
        let wanted = async { drop(urgent.wait_for(|count| *count > 0).await) };
        let (active, below, lowest) = (Chain::node(active), Chain::node(top), Chain::node(base));
        match capture::commit(&vm.qmp, &active, &below, &lowest, wanted).await? {
            Merge::Done => {
                for path in vm.chain.committed(top) {
                    remove(&path).await;
                }
            }
            Merge::Ended => tracing::info!("a merge of overlays made room for an order"),
        }
        Ok(())
    }

    async fn captured(&self, vm: &mut Vm, cut: Cut, bytes: u64) {
        let machine = self.view.read(|facts| facts.machine.clone());
        let Some(machine) = machine else { return };
        let record = MemberPart {
            index: self.config.member,
            files: Vec::new(),
            machine,
            output_bytes: cut.output_bytes,
            started: cut.started,
            ran: cut.ran,
        };
        let elapsed = self.view.elapsed();
        let (whole, holds) = self.view.change(|facts| {
            let whole = facts.barrier.captured(elapsed, cut.generation, record.clone(), bytes);
            let newest = facts.barrier.part().is_some_and(|part| part.generation == cut.generation);
            facts.captured.extend(whole.clone());
            (whole.is_some(), newest && facts.barrier.holds_guest())
        });
        if whole {
            vm.captured.insert(cut.generation, record);
            return;
        }
        remove_generation(&self.paths, cut.generation).await;
        if !cut.resume && holds {
            self.run_on(vm).await;
        }
    }

    async fn collect(&self, cut: &Cut) -> Result<u64, QemuError> {
        let Some((qmp, base, format)) =
            self.vm.lock().await.as_ref().map(|vm| (vm.qmp.clone(), vm.base.clone(), vm.base_format))
        else {
            return Err(QemuError::Late("the VM"));
        };
        capture::written(&qmp, cut.mechanism, cut.memory_limit).await?;
        if cut.resume
            && cut.mechanism == Mechanism::Stopped
            && let Some(vm) = self.vm.lock().await.as_mut()
        {
            self.let_run(vm).await?;
        }
        let rest = tokio::time::timeout(cut.files_limit, self.collect_rest(cut, &base, format));
        rest.await.map_err(|_| QemuError::Late("the copy of disk and output"))?
    }

    async fn collect_rest(&self, cut: &Cut, base: &Path, format: Format) -> Result<u64, QemuError> {
        let path = |kind| self.paths.part(cut.generation, kind);
        let memory = capture::trim(&path(FileKind::Memory))?;
        img::flatten(&cut.frozen, base, format, &path(FileKind::Disk)).await?;
        let at = QemuError::io("copy the output");
        copy_output(self.paths.output(), path(FileKind::Output), cut.output_bytes).await.map_err(at)?;
        let disk = tokio::fs::metadata(path(FileKind::Disk)).await.map_err(QemuError::io("look at the disk"))?;
        Ok(memory + disk.len() + cut.output_bytes)
    }
}

async fn make_ready(vm: &mut Vm, paths: &Paths, order: &CaptureOrder) -> Result<(), QemuError> {
    let (generation, overlay) = (order.generation, vm.next);
    let Some((_, top)) = vm.top() else { return Err(QemuError::Late("the disk")) };
    let path = paths.overlay(overlay);
    img::create_overlay(&path, top, Format::Qcow2, vm.disk_size).await?;
    vm.next += 1;
    process::give(&path)?;
    let directory = paths.generation(generation);
    let made = tokio::fs::DirBuilder::new().mode(0o700).create(&directory).await;
    made.map_err(QemuError::io(format!("make {}", directory.display())))?;
    let ready = async {
        let memory = capture::reserve(&paths.part(generation, FileKind::Memory), vm.memory)?;
        let mechanism = capture::choose(&vm.qmp, order.resume).await?;
        capture::offer(&vm.qmp, &memory).await?;
        let layer = Layer { node: Chain::node(overlay), path: path.clone(), format: Format::Qcow2 };
        capture::add_overlay(&vm.qmp, &layer).await?;
        Ok(mechanism)
    };
    match ready.await {
        Ok(mechanism) => {
            vm.prepared = Some(Prepared { generation, overlay, mechanism, at: Instant::now() });
            Ok(())
        }
        Err(error) => {
            remove(&path).await;
            remove_generation(paths, generation).await;
            Err(error)
        }
    }
}

/// Takes all output that QEMU still has; the guest stands still.
async fn drained(vm: &Vm) -> Result<(), QemuError> {
    // one that the disk does not take in time is in nobody's file, and QEMU has sent it
    let drain = async || {
        let drained = vm.output.drain(DRAIN_LIMIT).await;
        drained.then_some(()).ok_or(QemuError::Late("keeping the command's output"))
    };
    loop {
        let before = vm.output.length();
        drain().await?;
        // a turn of QEMU's main loop, in which it sends on what had no room before
        capture::status(&vm.qmp).await?;
        drain().await?;
        if vm.output.length() == before {
            return Ok(());
        }
    }
}

async fn copy_output(from: PathBuf, to: PathBuf, length: u64) -> std::io::Result<()> {
    use std::{io::Read as _, os::unix::fs::OpenOptionsExt as _};
    let work = move || {
        let mut to = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        let copied = std::io::copy(&mut std::fs::File::open(from)?.take(length), &mut to)?;
        if copied == length { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
    };
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
