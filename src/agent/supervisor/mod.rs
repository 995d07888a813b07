//! The supervisor of one VM: the fence's child, which does everything that is not fencing.
//!
//! It observes (the fence, QEMU, the guest, orders), decides by the barrier's rules, and acts on
//! QEMU, the guest and the repository. It starts no VM before the fence says that the lease is held,
//! and ends with its fence.

mod capture;
mod chain;
mod collect;
mod console;
mod contact;
mod disk;
#[cfg(test)]
mod double;
mod fetch;
mod guest;
mod images;
mod load;
mod machine;
mod master;
mod network;
pub(super) mod only_images;
mod orders;
mod output;
mod problems;
#[cfg(test)]
mod qemu_tests;
mod server;
mod standing;
#[cfg(test)]
pub(crate) mod testing;
mod upload;
mod view;
mod visit;
mod vm;

use std::{
    io::BufRead as _,
    os::{fd::AsFd as _, unix::net::UnixStream},
    process::ExitCode,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, MutexGuard, Semaphore, watch};
use tokio_util::sync::CancellationToken;

pub use orders::Orders;

use self::{
    chain::Chain,
    console::Console,
    contact::Contact,
    view::View,
    vm::{Paths, Vm},
};
use super::{
    AgentArgs, AgentFailure,
    fence::{self, exit_code, words},
};
use crate::{
    clock::Clock,
    driver::{
        agent::{AgentConfig, LeaseState, LeaveCode, LoadFault, Role, VmState},
        guest::channel::Channel,
        network::Door,
        qemu::process::{Qemu, last_words},
        repository::{ByteStore, Kept, RepositoryError, pace::Pace},
    },
    tls::{self, Credentials},
};

/// How often limits of the barrier are looked at.
const TICK: Duration = Duration::from_millis(20);
/// Time for the last state to reach those who watch.
const FAREWELL: Duration = Duration::from_millis(300);

/// A QEMU that was being started as its agent left has ended by then.
const QEMU_LIMIT: Duration = Duration::from_secs(2);
/// What another agent has is waited for this long, looked at this often.
const KEPT_LIMIT: Duration = Duration::from_secs(5);
const KEPT_PACE: Duration = Duration::from_millis(100);

/// Exit code of a supervisor that lost its fence.
const LOST: u8 = 3;

/// Makes the client of the repository at an address, with what the node keeps.
pub type Connect =
    dyn Fn(&Credentials, &str, Option<Arc<Kept>>, Arc<Pace>) -> Result<Arc<dyn ByteStore>, tls::TlsError>;

/// The supervisor of one VM.
pub struct Supervisor {
    config: AgentConfig,
    paths: Paths,
    store: Arc<dyn ByteStore>,
    /// What the node keeps of the captures; the store looks there, too.
    kept: Option<Arc<Kept>>,
    /// How fast the store is sent parts.
    pace: Arc<Pace>,
    view: Arc<View>,
    contact: Contact,
    /// Through which images come, and go on to others.
    chain: Chain,
    vm: Mutex<Option<Vm>>,
    /// How many orders wait for the VM that cannot wait for a merge.
    urgent: watch::Sender<usize>,
    guest: Arc<Mutex<Option<Channel>>>,
    /// The way to the guest through the job's network.
    door: OnceLock<Arc<Door>>,
    /// The guest's serial console.
    console: OnceLock<Console>,
    /// People's connections and commands: so many more may come.
    visits: Arc<Semaphore>,
    /// Seconds the guest had run before this incarnation, as bits.
    restored_ran: AtomicU64,
    /// Everything ends: QEMU is killed, transfers stop.
    stop: CancellationToken,
    /// A QEMU was started.
    has_qemu: AtomicBool,
    /// No QEMU is left.
    gone: CancellationToken,
    /// It has ended all it could, as it was told to.
    left: CancellationToken,
}

impl Supervisor {
    fn new(
        config: AgentConfig,
        paths: Paths,
        store: Arc<dyn ByteStore>,
        kept: Option<Arc<Kept>>,
        pace: Arc<Pace>,
        clock: Clock,
        fence: Option<UnixStream>,
    ) -> Arc<Self> {
        let stop = CancellationToken::new();
        Arc::new(Self {
            view: Arc::new(View::new(&config, clock)),
            contact: Contact::new(fence),
            chain: Chain::of(&config, &stop),
            config,
            paths,
            store,
            kept,
            pace,
            vm: Mutex::new(None),
            urgent: watch::Sender::new(0),
            guest: Arc::new(Mutex::new(None)),
            door: OnceLock::new(),
            console: OnceLock::new(),
            visits: Arc::new(Semaphore::new(visit::MOST)),
            restored_ran: AtomicU64::new(0),
            stop,
            has_qemu: AtomicBool::new(false),
            gone: CancellationToken::new(),
            left: CancellationToken::new(),
        })
    }

    fn restored_ran(&self) -> f64 {
        f64::from_bits(self.restored_ran.load(Ordering::Relaxed))
    }

    /// The VM, for an order that cannot wait for a merge of overlays: one that goes on is ended.
    async fn vm_at_once(&self) -> MutexGuard<'_, Option<Vm>> {
        self.urgent.send_modify(|count| *count += 1);
        let vm = self.vm.lock().await;
        self.urgent.send_modify(|count| *count -= 1);
        vm
    }

    /// Silence after which a connection is given up; well below the limit of isolation.
    fn silence_limit(&self) -> Duration {
        self.config.isolation / 4
    }

    /// Removes images that nobody uses and what is kept of captures, if they take room from the VM.
    async fn make_room(&self) {
        use std::os::unix::fs::MetadataExt as _;
        let device = |path| std::fs::metadata(path).map(|found| found.dev()).ok();
        if device(&self.paths.vm).is_some_and(|own| device(&self.paths.cache) == Some(own)) {
            images::clear(&self.paths.cache, 0).await;
            if let Some(kept) = self.kept.clone() {
                // it says itself what it cannot do
                let _ = tokio::task::spawn_blocking(move || kept.give_way()).await;
            }
        }
    }

    /// Makes the VM, and keeps the barrier's limits, until everything ends.
    async fn live(self: Arc<Self>) {
        let own = self.clone();
        let loading = async move {
            let loaded = match own.config.role {
                Role::Master => own.stand_by().await,
                Role::Member => own.load().await,
            };
            if let Err(error) = loaded {
                let fault = error.fault();
                tracing::error!(%error, ?fault, "the VM cannot be made");
                own.view.change(|facts| {
                    facts.lacks = error.lacks().to_vec();
                    facts.set_vm(VmState::Gone { reason: error.to_string(), fault });
                });
                own.stop.cancel();
            }
        };
        let (ticking, asking) = (self.clone(), self.clone());
        let ticks = async move {
            loop {
                tokio::time::sleep(TICK).await;
                ticking.tick().await;
            }
        };
        // any answer but silence shows that somebody is there; a refusal, that a newer incarnation has
        // taken this one's place while nobody could tell it so (safety A1)
        let questions = async move {
            loop {
                let generation = asking.config.restore.unwrap_or_default();
                let answer = asking.store.get_manifest(&asking.config.job, generation).await;
                match answer {
                    Err(RepositoryError::Unreachable(_) | RepositoryError::Local { .. }) => {}
                    Err(RepositoryError::Refused(why)) => {
                        tracing::error!(why, "this incarnation is over");
                        asking.stop.cancel();
                    }
                    Ok(_) | Err(_) => asking.contact.heard(Duration::ZERO),
                }
                tokio::time::sleep(asking.silence_limit()).await;
            }
        };
        let loading = tokio::spawn(loading);
        let work = futures::future::join(ticks, questions);
        tokio::select! {
            () = self.stop.cancelled() => loading.abort(),
            _ = work => {}
        }
    }

    /// Sees QEMU to its end, whichever way it comes.
    fn watch_over(self: &Arc<Self>, mut qemu: Qemu) {
        let own = self.clone();
        self.has_qemu.store(true, Ordering::Release);
        tokio::spawn(async move {
            let mut events = qemu.qmp.events();
            tokio::select! {
                () = qemu.ended() => {}
                () = own.stop.cancelled() => qemu.kill().await,
            }
            let mut shut_down = false;
            while let Ok(event) = events.try_recv() {
                shut_down |= event.name == "SHUTDOWN" && event.data["guest"].as_bool() == Some(true);
            }
            let reason = if own.stop.is_cancelled() {
                "it was ended".into()
            } else if shut_down {
                "the guest shut itself down".into()
            } else {
                format!("QEMU has ended: {}", last_words(&own.paths.log()))
            };
            own.view.change(|facts| facts.set_vm(VmState::Gone { reason, fault: LoadFault::Unknown }));
            own.gone.cancel();
        });
    }

    /// The VM is of no use any more.
    fn lose_vm(&self, reason: &str) {
        tracing::error!(reason, "the VM is lost");
        self.view.change(|facts| facts.set_vm(VmState::Gone { reason: reason.into(), fault: LoadFault::Unknown }));
        self.stop.cancel();
    }

    /// Ends the VM and everything of it: QEMU first, then transfers, then files (safety A6).
    async fn leave(&self, code: LeaveCode) {
        let begun = Instant::now();
        self.view.change(|facts| facts.leaving = Some(code));
        self.stop.cancel();
        drop(self.vm_at_once().await.take());
        if self.has_qemu.load(Ordering::Acquire) {
            self.gone.cancelled().await;
        }
        self.view.change(|facts| {
            facts.set_vm(VmState::Gone { reason: "it was ended".into(), fault: LoadFault::Unknown });
        });
        if let Some(kept) = self.kept.clone().filter(|_| code == LeaveCode::Done) {
            // the job has ended: nobody comes back for it
            let _ = tokio::task::spawn_blocking(move || kept.forget()).await;
        }
        let directory = self.paths.vm.clone();
        // whoever wants the slot need not wait until our pod has ended
        let clear = move || fence::kill::no_qemu(&directory, QEMU_LIMIT) && fence::clear(&directory);
        let cleared = tokio::task::spawn_blocking(clear).await.unwrap_or_default();
        self.view.change(|facts| facts.cleared = cleared);
        self.left.cancel();
        tracing::info!(?code, took_ms = begun.elapsed().as_millis(), "left");
    }

    /// Obeys the fence: its words, and its end.
    fn obey_fence(&self, fence: UnixStream) {
        for line in std::io::BufReader::new(fence).lines() {
            match line.as_deref() {
                Ok(words::HELD) => self.view.change(|facts| facts.lease = LeaseState::Held),
                Ok(words::NOTICE) => self.view.change(|facts| {
                    facts.noticed.get_or_insert_with(Instant::now);
                }),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.view.change(|facts| facts.lease = LeaseState::Lost);
        self.stop.cancel();
    }
}

async fn listen(config: &AgentConfig) -> Result<tokio::net::TcpListener, AgentFailure> {
    let listen = config.listen;
    tokio::net::TcpListener::bind(listen).await.map_err(AgentFailure::io(format!("serve on {listen}")))
}

fn runtime() -> Result<tokio::runtime::Runtime, AgentFailure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(AgentFailure::io("start the runtime"))
}

/// Serves until the agent has left or lost its lease; the exit code.
async fn serve_until_left(supervisor: &Arc<Supervisor>, credentials: &Credentials) -> Result<u8, AgentFailure> {
    let listener = listen(&supervisor.config).await?;
    let silence = u32::try_from(supervisor.silence_limit().as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(&listener, silence)
        .map_err(|errno| AgentFailure::io("limit the silence of peers")(errno.into()))?;
    let (router, stop) = (server::router(supervisor.clone()), CancellationToken::new());
    let lost = supervisor.view.until(|facts| facts.lease == LeaseState::Lost);
    let left = async {
        supervisor.left.cancelled().await;
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        served = tls::serve(listener, credentials, router, stop) => served?,
        // nothing is sent any more then
        () = lost => return Ok(LOST),
        () = left => {}
    }
    Ok(supervisor.view.read(|facts| facts.leaving).map_or(LOST, exit_code))
}

/// What the node keeps of this member's captures; without it all is fetched.
fn open_kept(root: &std::path::Path, config: &AgentConfig) -> Option<Arc<Kept>> {
    let (wanted, begun) = (config.kept.as_ref()?, Instant::now());
    loop {
        match Kept::open(root, &config.job, config.member, wanted) {
            Ok(Some(kept)) => return Some(Arc::new(kept)),
            // the process before this one is on its way out
            Ok(None) if begun.elapsed() < KEPT_LIMIT => std::thread::sleep(KEPT_PACE),
            Ok(None) => {
                tracing::warn!("another agent has what the node keeps of this member's captures");
                return None;
            }
            Err(error) => {
                tracing::warn!(%error, "what the node keeps of captures cannot be used");
                return None;
            }
        }
    }
}

/// Runs the supervisor; its standard input is the channel of its fence.
pub(super) fn run(args: &AgentArgs, config: AgentConfig, connect: &Connect) -> Result<ExitCode, AgentFailure> {
    let credentials = Credentials::read(&args.config)?;
    let kept = open_kept(&args.node_dir.join("captures"), &config);
    let pace = Arc::<Pace>::default();
    let store = connect(&credentials, &config.repository, kept.clone(), pace.clone())?;
    let runtime = runtime()?;
    let input = std::io::stdin().as_fd().try_clone_to_owned().map_err(AgentFailure::io("reach the fence"))?;
    let fence = UnixStream::from(input);
    let reading = fence.try_clone().map_err(AgentFailure::io("hear the fence"))?;
    let paths = Paths::of(args);
    let code = runtime.block_on(async {
        let supervisor = Supervisor::new(config, paths, store, kept, pace, Clock::system(), Some(fence));
        let hearing = supervisor.clone();
        std::thread::spawn(move || hearing.obey_fence(reading));
        tokio::spawn(supervisor.clone().live());
        serve_until_left(&supervisor, &credentials).await
    })?;
    // tasks that still wait for something do not hold the end up
    runtime.shutdown_background();
    Ok(ExitCode::from(code))
}
