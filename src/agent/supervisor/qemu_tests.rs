//! The supervisor with a real QEMU and a real guest, under software emulation.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Orders, Supervisor,
    testing::{FileStore, Making, Small, config},
};
use crate::{
    api::snapshot::SnapshotReason,
    driver::agent::{
        AgentConfig, AgentState, Authority, CaptureOrder, LeaseState, LeaveCode, LoadFault, NodeAgent as _, PartState,
        UploadOrder, VmState,
    },
    driver::repository::ByteStore as _,
    names::{Generation, Incarnation},
    store::{
        machine::MachineRecord,
        manifest::{FileKind, Manifest, VERSION},
        migration::testing::{placed, taken, written},
    },
};

/// Prints a counter and a number that exists only in the memory of the process.
const COUNT: &str = "n=$(od -An -N8 -tx8 /dev/urandom | tr -d ' '); i=0; \
    while [ $i -lt ${LIMIT:-100000} ]; do i=$((i+1)); echo $i $n; sleep 0.05; done; date +%s > /tmp/end; exit 7";

/// Makes a machine need something else.
type Change = fn(&mut MachineRecord);

/// Directory of the guest's image.
fn guest() -> PathBuf {
    let home = std::env::var_os("HOME").unwrap_or_default();
    let default = Path::new(&home).join(".cache/vmdeploy/guest/current");
    let directory = std::env::var_os("VMDEPLOY_GUEST_IMAGE").map_or(default, PathBuf::from);
    assert!(directory.join("vmlinuz").exists(), "no guest image in {}: e2e/testbed/prepare", directory.display());
    directory
}

/// A repository with the guest's image, and the nodes around it.
struct World {
    root: tempfile::TempDir,
    store: Arc<FileStore>,
    config: AgentConfig,
}

/// One agent of the world.
struct Agent {
    supervisor: Arc<Supervisor>,
    orders: Orders,
    directory: PathBuf,
}

impl World {
    fn new(command: &str) -> Self {
        let guest = guest();
        // on a disk, where QEMU's user may pass through
        let root = tempfile::Builder::new().prefix("vmdeploy-agent-").tempdir_in("/var/tmp").unwrap();
        open(root.path());
        let store = FileStore::new(&root.path().join("store"));
        let mut config = config(root.path());
        let add = |name: &str| store.add_image(&std::fs::read(guest.join(name)).unwrap());
        config.image.disk = add("disk.qcow2");
        config.image.kernel = Some(add("vmlinuz"));
        config.image.initrd = Some(add("initrd"));
        config.image.params = Some("root=/dev/vda console=ttyS0 quiet".into());
        config.run.as_mut().unwrap().command = vec!["sh".into(), "-c".into(), command.into()];
        // a machine that does other things may take its time between two steps of a capture
        config.max_pause = Duration::from_secs(30);
        Self { root, store: Arc::new(store), config }
    }

    /// Starts an agent on a new node; its lease is held.
    fn agent(&self, name: &str, config: AgentConfig) -> Agent {
        let directory = self.root.path().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        open(&directory);
        let making = Making::below(self.root.path()).config(config).vm_in(&directory);
        let supervisor = making.store(self.store.clone()).make();
        supervisor.view.change(|facts| facts.lease = LeaseState::Held);
        tokio::spawn(supervisor.clone().live());
        Agent { orders: Orders(supervisor.clone()), supervisor, directory }
    }

    fn restoring(&self, generation: Generation, incarnation: Incarnation) -> AgentConfig {
        AgentConfig { restore: Some(generation), incarnation, ..self.config.clone() }
    }

    /// What kget does: sends the captured parts and publishes the manifest.
    async fn store(&self, agents: &[&Agent], generation: Generation) {
        let mut members = Vec::new();
        for agent in agents {
            let incarnation = agent.state().incarnation;
            agent
                .orders
                .upload(&UploadOrder {
                    epoch: 1,
                    generation,
                    incarnation,
                    ticket: String::new(),
                    limit: None,
                    collector: None,
                })
                .await
                .unwrap();
            let state = agent.until("upload", |state| state.upload.as_ref().is_some_and(|upload| upload.done)).await;
            let mut record = state.capture.unwrap().record.unwrap();
            record.files = state.upload.unwrap().files;
            members.push(record);
        }
        self.store.publish(&Manifest {
            version: VERSION,
            job: self.config.job.clone(),
            job_name: "count".into(),
            namespace: "default".into(),
            generation,
            incarnation: 1,
            parent: None,
            reason: SnapshotReason::Periodic,
            taken_at: jiff::Timestamp::now(),
            nonce: "n".into(),
            image: self.config.image.clone(),
            members,
            guests: None,
            ancestor: None,
        });
    }
}

/// Takes a stored memory apart and puts the canonical stream in its place.
fn make_canonical(world: &World, generation: Generation) {
    world.store.replace(generation, 0, FileKind::Memory, |stream| {
        let (skeleton, pages) = taken(&stream).unwrap();
        assert!(skeleton.machine().starts_with("pc-"), "{skeleton:?}");
        let canonical = written(&skeleton, &pages);
        assert!(canonical != stream, "it was so before");
        assert!(canonical == placed(&skeleton, &pages), "both ways of writing differ");
        let data = pages.iter().flatten().count();
        eprintln!("{}: {} bytes, {data} of {} pages", skeleton.machine(), canonical.len(), pages.len());
        canonical
    });
}

fn open(directory: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o711)).unwrap();
}

fn authority(incarnation: Incarnation) -> Authority {
    Authority { epoch: 1, incarnation }
}

fn order(generation: Generation, incarnation: Incarnation, resume: bool) -> CaptureOrder {
    CaptureOrder { authority: authority(incarnation), generation, nonce: format!("n{generation}"), resume }
}

impl Agent {
    fn state(&self) -> AgentState {
        self.supervisor.view.render()
    }

    async fn until(&self, what: &str, so: impl Fn(&AgentState) -> bool) -> AgentState {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(120) {
            let state = self.state();
            if so(&state) {
                return state;
            }
            if let VmState::Gone { reason, .. } = &state.vm {
                panic!("waiting for {what}: the VM is gone: {reason}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("waiting for {what}: {:?}", self.state());
    }

    async fn go(&self) {
        self.until("loading", |state| state.vm == VmState::Loaded).await;
        self.orders.go(authority(self.state().incarnation)).await.unwrap();
    }

    /// The command's output: whole lines, as numbers and nonces.
    fn lines(&self) -> Vec<(u64, String)> {
        let text = std::fs::read_to_string(self.directory.join("output")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let pair = |line: &str| line.split_once(' ').map(|(n, nonce)| (n.parse().unwrap(), nonce.to_owned()));
        whole.lines().map(|line| pair(line).unwrap_or_else(|| panic!("torn line {line:?}"))).collect()
    }

    /// Waits until the counter has gone on by so much; checks that none is missing or repeated.
    async fn counts(&self, by: u64) -> (u64, String) {
        let last = |lines: Vec<(u64, String)>| lines.last().map_or(0, |(n, _)| *n);
        let goal = last(self.lines()) + by;
        self.until("counting", |_| last(self.lines()) >= goal).await;
        let lines = self.lines();
        for (index, (number, nonce)) in lines.iter().enumerate() {
            assert_eq!((*number, nonce), (index as u64 + 1, &lines[0].1), "a line is missing or repeated");
        }
        lines.last().unwrap().clone()
    }

    async fn capture(&self, order: &CaptureOrder) -> AgentState {
        self.orders.prepare(order).await.unwrap();
        self.orders.stop(order).await.unwrap();
        self.orders.cut(order).await.unwrap();
        self.captured().await
    }

    async fn captured(&self) -> AgentState {
        self.until("capture", |state| state.capture.as_ref().unwrap().state == PartState::Captured).await
    }

    /// SIGKILL, as a node's crash would.
    async fn crash(&self) {
        self.supervisor.stop.cancel();
        self.supervisor.gone.cancelled().await;
        assert!(!self.has_process(), "its QEMU is still there");
        std::fs::remove_dir_all(&self.directory).unwrap();
    }

    /// Whether a QEMU has this agent's directory on its command line.
    fn has_process(&self) -> bool {
        let own = self.directory.to_string_lossy().into_owned();
        let lines = std::fs::read_dir("/proc").unwrap().flatten();
        lines
            .filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok())
            .any(|line| line.contains("guest=count") && line.contains(&own))
    }

    /// Runs a command in the guest.
    async fn ask(&self, line: &str) -> String {
        let mut guard = self.supervisor.guest.lock().await;
        let channel = guard.as_mut().unwrap();
        let arguments = ["-c".to_owned(), line.into()];
        let limit = Duration::from_secs(20);
        crate::driver::guest::files::run(channel, "/bin/sh", &arguments, &[], &[], limit).await.unwrap().text
    }
}

#[ignore = "boots guests: e2e/test --e2e"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_captured_guest_goes_on_in_another_qemu() {
    let world = World::new(COUNT);
    let first = world.agent("first", world.config.clone());
    first.go().await;
    let (_, nonce) = first.counts(5).await;
    let state = first.capture(&order(1, 1, true)).await;
    let pause = state.capture.as_ref().unwrap().pause_ms.unwrap();
    eprintln!("pause of a background capture: {pause} ms, {} bytes", state.capture.as_ref().unwrap().bytes);
    assert_eq!(state.vm, VmState::Running);
    assert!(state.capture.unwrap().record.unwrap().started);
    first.counts(5).await;
    // a second one, so that the first is not the only state a restore could begin from
    let second_capture = first.capture(&order(2, 1, true)).await;
    let cut = second_capture.capture.unwrap().record.unwrap().output_bytes;
    world.store(&[&first], 2).await;
    first.counts(5).await;
    first.crash().await;

    let mut randoms = Vec::new();
    for incarnation in [2, 3] {
        let begun = Instant::now();
        let agent = world.agent(&format!("restored-{incarnation}"), world.restoring(2, incarnation));
        agent.until("loading", |state| state.vm == VmState::Loaded).await;
        assert_eq!(std::fs::metadata(agent.directory.join("output")).unwrap().len(), cut);
        agent.go().await;
        let (_, same) = agent.counts(10).await;
        eprintln!("incarnation {incarnation}: counting again after {:?}", begun.elapsed());
        assert_eq!(same, nonce, "the memory is another");
        let state = agent.until("right", |state| state.guest.answers).await;
        assert_eq!(state.guest.problem, None);
        let second = jiff::SignedDuration::from_secs(1);
        let earliest = jiff::Timestamp::now() - second;
        let guest_time = agent.ask("date +%s%N").await.trim().parse().unwrap();
        let guest_time = jiff::Timestamp::from_nanosecond(guest_time).unwrap();
        let latest = jiff::Timestamp::now() + second;
        assert!((earliest..=latest).contains(&guest_time), "{guest_time} is not within {earliest} and {latest}");
        randoms.push(agent.ask("od -An -N16 -tx8 /dev/urandom").await);
        agent.crash().await;
        // the next one goes on from the same pages in another order
        if incarnation == 2 {
            make_canonical(&world, 2);
        }
    }
    assert_ne!(randoms[0], randoms[1]);
}

#[ignore = "boots guests: e2e/test --e2e"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c3_a_node_that_lacks_what_a_generation_needs_says_so_and_the_cpu_stays_the_same() {
    let mut world = World::new(COUNT);
    // TCG has not all of its flags
    world.config.vm.cpu_model = "Haswell".into();
    let first = world.agent("first", world.config.clone());
    first.go().await;
    let (_, nonce) = first.counts(5).await;
    let offer = first.state().offer.unwrap();
    assert!(offer.machines.contains(&first.state().machine.unwrap().machine), "{offer:?}");
    first.capture(&order(1, 1, true)).await;
    world.store(&[&first], 1).await;
    first.crash().await;
    let made = world.store.get_manifest(&world.config.job, 1).await.unwrap();
    let record = made.members[0].machine.clone();
    assert!(record.withheld.contains(&"rtm".into()) && record.flags.contains(&"avx".into()), "{record:?}");

    let changes: [(Change, &str); 3] = [
        (|m| m.flags.push("avx512f".into()), "CPU flags avx512f"),
        (|m| m.qemu = "99.1.0".into(), "QEMU 99.1 or newer"),
        (|m| m.machine = "pc-q35-99.1".into(), "machine type pc-q35-99.1"),
    ];
    for (number, (change, says)) in changes.into_iter().enumerate() {
        let mut other = made.clone();
        change(&mut other.members[0].machine);
        world.store.publish(&other);
        let agent = world.agent(&format!("unfit-{number}"), world.restoring(1, 2));
        let gone = async { agent.supervisor.view.until(|facts| matches!(facts.vm, VmState::Gone { .. })).await };
        tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
        let state = agent.state();
        let VmState::Gone { reason, fault } = state.vm else { panic!("{:?}", state.vm) };
        assert!(reason.contains(says) && fault == LoadFault::Node, "{reason}");
        assert_eq!(state.lacks.len(), 1, "{:?}", state.lacks);
    }
    world.store.publish(&made);
    let agent = world.agent("fit", world.restoring(1, 3));
    agent.go().await;
    assert_eq!(agent.counts(5).await.1, nonce);
    let now = agent.state().machine.unwrap();
    assert_eq!((now.flags, now.withheld), (record.flags, record.withheld));
    agent.crash().await;
}

#[ignore = "boots guests: e2e/test --e2e"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_a_capture_without_resume_stays_down_only_as_long_as_it_is_told_to() {
    let world = World::new(COUNT);
    // its end is waited for
    let agent = world.agent("node", AgentConfig { max_pause: Duration::from_secs(8), ..world.config.clone() });
    agent.go().await;
    agent.counts(5).await;

    // stopped, and nobody says how it goes on
    let lost = order(1, 1, true);
    agent.orders.prepare(&lost).await.unwrap();
    agent.orders.stop(&lost).await.unwrap();
    assert_eq!(agent.state().vm, VmState::Stopped);
    let state = agent.until("resumption", |state| state.vm == VmState::Running).await;
    assert!(matches!(state.capture.unwrap().state, PartState::Abandoned { .. }));
    assert!(agent.orders.cut(&lost).await.is_err());
    agent.counts(5).await;

    // captured, told to stay down, and then forgotten
    let last = order(2, 1, false);
    let state = agent.capture(&last).await;
    assert_eq!(state.vm, VmState::Stopped);
    agent.orders.stay_down(&last, Duration::from_secs(8)).await.unwrap();
    let before = agent.lines().len();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(agent.state().vm, VmState::Stopped);
    assert_eq!(agent.lines().len(), before);
    agent.until("resumption", |state| state.vm == VmState::Running).await;
    agent.counts(5).await;

    // given up by the coordinator; what was frozen before is merged as it goes
    let given_up = order(3, 1, true);
    agent.orders.prepare(&given_up).await.unwrap();
    agent.orders.stop(&given_up).await.unwrap();
    agent.orders.abandon(&given_up).await.unwrap();
    assert_eq!(agent.state().vm, VmState::Running);
    for generation in 4..9 {
        agent.capture(&order(generation, 1, true)).await;
    }
    agent.counts(5).await;
    // those of the last capture are merged after it
    let overlays = || std::fs::read_dir(agent.directory.join("disks")).unwrap().count();
    let begun = Instant::now();
    while overlays() > 5 && begun.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(overlays() <= 5, "{} overlays", overlays());
    let kept = (1..9).filter(|g| agent.directory.join(format!("generation-{g}")).exists()).count();
    assert!(kept <= 3, "{kept} generations on the node");

    agent.orders.leave(authority(1), LeaveCode::Saved).await.unwrap();
    let state = agent.state();
    assert_eq!(state.leaving, Some(LeaveCode::Saved));
    assert!(matches!(state.vm, VmState::Gone { .. }));
    let files = std::fs::read_dir(&agent.directory).unwrap().count();
    assert!(state.cleared && files == 0, "{files} files are left");
}

#[ignore = "boots guests: e2e/test --e2e"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b9_the_exit_code_and_files_of_a_command_survive_a_cut() {
    let mut world = World::new(COUNT);
    world.config.run.as_mut().unwrap().env.insert("LIMIT".into(), "200".into());
    world.config.outputs =
        ["/tmp/end", "/tmp/missing"].map(|path| crate::api::job::OutputFile { path: path.into() }).into();
    world.config.inputs.insert("/etc/job.conf".into(), "a 'b' \"c\"\n".into());
    let first = world.agent("first", world.config.clone());
    first.go().await;
    first.counts(5).await;
    assert_eq!(first.ask("cat /etc/job.conf; hostname").await, "a 'b' \"c\"\ncount-0\n");
    first.capture(&order(1, 1, false)).await;
    world.store(&[&first], 1).await;
    first.crash().await;
    // QEMU stood while it wrote this one
    make_canonical(&world, 1);
    let second = world.agent("second", world.restoring(1, 2));
    second.go().await;
    let state = second.until("the end", |state| state.guest.outputs_kept).await;
    assert_eq!(state.guest.exit_code, Some(7));
    assert!(state.guest.problem.unwrap().contains("/tmp/missing"));
    let output = String::from_utf8(world.store.output(0, "output").unwrap()).unwrap();
    let numbers: Vec<u64> = output.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(numbers, (1..=200).collect::<Vec<_>>());
    let end: i64 = String::from_utf8(world.store.output(0, "/tmp/end").unwrap()).unwrap().trim().parse().unwrap();
    assert!((jiff::Timestamp::now().as_second() - end).abs() < 60);
    assert!(state.ran > 0.0);
    second.crash().await;
}

#[ignore = "boots guests: e2e/test --e2e"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b11_a_guest_goes_on_as_another_job_beside_the_first() {
    let world = World::new(COUNT);
    let first = world.agent("first", world.config.clone());
    first.go().await;
    let (_, nonce) = first.counts(5).await;
    first.capture(&order(1, 1, true)).await;
    world.store(&[&first], 1).await;
    let mut own = AgentConfig { job: "77777777-0000".into(), job_name: "count-again".into(), ..world.restoring(1, 1) };
    // a seed of another size, which it does not read again
    own.hostname = "count-again-0".into();
    own.inputs.insert("/etc/more".into(), "more ".repeat(100_000));
    let second = world.agent("second", own);
    second.go().await;
    let (_, same) = second.counts(10).await;
    assert_eq!(same, nonce, "the memory is another");
    first.counts(10).await;
    let state = second.until("right", |state| state.guest.answers).await;
    assert_eq!(state.guest.problem, None);
    assert_eq!(second.ask("hostname; test -e /etc/more || echo as it was").await, "count-0\nas it was\n");
    let random = "head -c 16 /dev/urandom | od -An -tx8";
    assert_ne!(second.ask(random).await, first.ask(random).await);
    second.crash().await;
    first.counts(5).await;
    first.crash().await;
}

#[ignore = "boots guests: e2e/test --e2e"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_are_cut_behind_one_barrier() {
    let world = World::new(COUNT);
    let mut agents = Vec::new();
    for member in 0..2 {
        let name = format!("node-{member}");
        agents.push(world.agent(&name, AgentConfig { member, members: 2, ..world.config.clone() }));
    }
    for agent in &agents {
        agent.go().await;
    }
    for agent in &agents {
        agent.counts(3).await;
    }
    let order = order(1, 1, true);
    let all = |step: fn(Orders, CaptureOrder) -> futures::future::BoxFuture<'static, ()>| {
        futures::future::join_all(agents.iter().map(|agent| step(agent.orders.clone(), order.clone())))
    };
    all(|agent, order| Box::pin(async move { agent.prepare(&order).await.unwrap() })).await;
    let begun = jiff::Timestamp::now();
    all(|agent, order| Box::pin(async move { agent.stop(&order).await.unwrap() })).await;
    let all_stopped = jiff::Timestamp::now();
    assert!(agents.iter().all(|agent| agent.state().vm == VmState::Stopped));
    all(|agent, order| Box::pin(async move { agent.cut(&order).await.unwrap() })).await;
    for agent in &agents {
        let part = agent.captured().await.capture.unwrap();
        assert_eq!(part.nonce, order.nonce);
        eprintln!("pause of a member: {} ms", part.pause_ms.unwrap());
        assert!((begun..=all_stopped).contains(&part.stopped_at.unwrap()), "{part:?}");
        agent.counts(3).await;
    }
    world.store(&[&agents[0], &agents[1]], 1).await;
    for kind in [FileKind::Memory, FileKind::Disk, FileKind::Output] {
        assert!(world.root.path().join(format!("store/part-1-1-{kind}")).exists());
    }
    for agent in &agents {
        agent.crash().await;
    }
}

#[ignore = "boots guests: e2e/test --e2e"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_a_full_disk_of_the_node_leaves_no_guest_standing() {
    let fill = "echo 1 x; dd if=/dev/urandom of=/fill bs=1M count=120 conv=fsync; sync; echo 2 x; sleep 1000";
    let world = World::new(fill);
    let small = Small::mount(world.root.path().join("full/disks"), "48m");
    let agent = world.agent("full", world.config.clone());
    agent.go().await;
    agent.until("a full disk", |state| state.guest.problem.as_ref().is_some_and(|p| p.contains("No space"))).await;
    // room is made: it goes on by itself
    let grown = std::process::Command::new("mount").args(["-o", "remount,size=400m"]).arg(&small.0).status();
    assert!(grown.unwrap().success());
    agent.until("room", |state| state.guest.problem.is_none() && state.guest.last_line.as_deref() == Some("2 x")).await;
    agent.supervisor.stop.cancel();
    agent.supervisor.gone.cancelled().await;
}

#[ignore = "boots guests: e2e/test --e2e"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_a_guest_whose_disk_stays_full_is_lost() {
    let fill = "dd if=/dev/urandom of=/fill bs=1M count=120 conv=fsync; sleep 1000";
    let world = World::new(fill);
    let _small = Small::mount(world.root.path().join("full/disks"), "48m");
    let agent = world.agent("full", world.config.clone());
    agent.go().await;
    let lost = tokio::time::timeout(Duration::from_secs(240), agent.supervisor.gone.cancelled()).await;
    assert!(lost.is_ok(), "{:?}", agent.state());
    let VmState::Gone { reason, .. } = agent.state().vm else { panic!("{:?}", agent.state()) };
    assert!(reason.contains("No space"), "{reason}");
}

/// A shell at the serial console.
const SHELL: &str = "setsid -c sh -i < /dev/ttyS0 > /dev/ttyS0 2>&1 & true";

impl Agent {
    /// Types a line at the console, and waits for what is to come of it.
    async fn types(&self, line: &str, answer: &str) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut person, guest) = tokio::io::duplex(4096);
        let supervisor = self.supervisor.clone();
        let attached = tokio::spawn(async move {
            let (from, to) = tokio::io::split(guest);
            supervisor.console.get().unwrap().attach(from, to).await;
        });
        let (mut shown, begun) = (String::new(), Instant::now());
        while !shown.contains(answer) {
            assert!(begun.elapsed() < Duration::from_secs(60), "the console shows {shown:?}");
            // the shell may not have come up yet, or nobody may have been attached in time
            person.write_all(line.as_bytes()).await.unwrap();
            let mut piece = [0; 4096];
            while let Ok(count) = tokio::time::timeout(Duration::from_secs(2), person.read(&mut piece)).await {
                shown.push_str(&String::from_utf8_lossy(&piece[..count.unwrap()]));
            }
        }
        attached.abort();
    }
}

#[ignore = "boots guests: e2e/test --e2e"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_is_used_before_and_after_a_restore() {
    let world = World::new(COUNT);
    let first = world.agent("first", world.config.clone());
    first.go().await;
    first.counts(3).await;
    first.ask(SHELL).await;
    first.types("x=41; echo it is $((x+1))\r", "it is 42").await;
    first.capture(&order(1, 1, true)).await;
    first.types("echo on $x\r", "on 41").await;
    world.store(&[&first], 1).await;
    first.crash().await;
    let second = world.agent("second", world.restoring(1, 2));
    second.go().await;
    second.types("echo again $((x+2))\r", "again 43").await;
    second.counts(3).await;
    second.crash().await;
}
