//! The agent's own processes: fence, supervisor and QEMU on one side, the repository on the other,
//! and a shell that holds the lease as the hold would.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail as tests do")]

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use vmdeploy::{
    api::{job_status::ResolvedImage, snapshot::SnapshotReason},
    driver::{
        agent::{
            AgentAddress, AgentState, Authority, CaptureOrder, LeaveCode, NodeAgent, PartState, UploadOrder, VmState,
            http::AgentHttp,
        },
        repository::{ByteStore as _, Repository as _, http::HttpRepository},
    },
    names::Identity,
    store::{
        manifest::{Manifest, VERSION},
        ticket::{Ticket, TicketKey},
    },
    tls::{self, Authority as Certificates, Credentials},
};

const JOB: &str = "3f2b8a10-9c1d-4e5f-8a7b-112233445566";
const SECRET: &[u8] = b"a secret of two parts";
const COUNT: &str = "n=$(od -An -N8 -tx8 /dev/urandom | tr -d ' '); i=0; \
    while [ $i -lt 100000 ]; do i=$((i+1)); echo $i $n; sleep 0.05; done";

/// Takes the lock as a hold does, and beats; the lock drops when it is killed.
const HOLDER: &str = "cd \"$1\"; until [ -e nonce ]; do sleep 0.05; done; set -C; exec 9>lock; set +C; flock 9; b=0; \
    while [ ! -e release ]; do b=$((b+1)); read -r n <nonce; printf '%s %s %010d\\n' \"$2\" \"$n\" $b 1<>lock; \
    sleep 0.2 9>&-; done; cat release >\"../said-$2\"";

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct World {
    root: tempfile::TempDir,
    certificates: Certificates,
    repository: String,
    image: ResolvedImage,
    _server: Process,
}

fn guest() -> PathBuf {
    let home = std::env::var_os("HOME").unwrap_or_default();
    let default = Path::new(&home).join(".cache/vmdeploy/guest/current");
    let directory = std::env::var_os("VMDEPLOY_GUEST_IMAGE").map_or(default, PathBuf::from);
    assert!(directory.join("vmlinuz").exists(), "no guest image in {}: e2e/testbed/prepare", directory.display());
    directory
}

/// The program under test, beside the test's own directory.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(2).unwrap().join("vmdeploy")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn write(credentials: &Credentials, directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("ca.crt"), &credentials.ca).unwrap();
    std::fs::write(directory.join("tls.crt"), &credentials.certificate).unwrap();
    std::fs::write(directory.join("tls.key"), &credentials.key).unwrap();
}

impl World {
    async fn new() -> Self {
        let guest = guest();
        tls::install_provider();
        let root = tempfile::Builder::new().prefix("vmdeploy-e2e-").tempdir_in("/var/tmp").unwrap();
        open(root.path());
        let certificates = Certificates::create(jiff::Timestamp::now()).unwrap();
        let repository = format!("127.0.0.1:{}", free_port());
        write(&issue(&certificates, &Identity::Repository), &root.path().join("repository-tls"));
        std::fs::write(root.path().join("ticket"), SECRET).unwrap();
        let server = Command::new(program())
            .args(["repository", "--listen", &repository, "--root"])
            .arg(root.path().join("repository"))
            .arg("--tls")
            .arg(root.path().join("repository-tls"))
            .arg("--ticket-key")
            .arg(root.path().join("ticket"))
            .spawn()
            .unwrap();
        let mut world = Self {
            image: ResolvedImage {
                namespace: "default".into(),
                name: "light".into(),
                disk: String::new(),
                virtual_size: 0,
                kernel: None,
                initrd: None,
                params: Some("root=/dev/vda console=ttyS0 quiet".into()),
            },
            root,
            certificates,
            repository,
            _server: Process(server),
        };
        let importer = world.repository(&Identity::Importer);
        let sums = std::fs::read_to_string(guest.join("SHA256SUMS")).unwrap();
        for line in sums.lines() {
            let (sum, name) = line.split_once("  ").unwrap();
            let digest = format!("sha256:{sum}");
            let begun = Instant::now();
            while let Err(error) = importer.put_image(&digest, &guest.join(name)).await {
                assert!(begun.elapsed() < Duration::from_secs(30), "{error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            match name {
                "disk.qcow2" => world.image.disk = digest,
                "vmlinuz" => world.image.kernel = Some(digest),
                "initrd" => world.image.initrd = Some(digest),
                other => panic!("unknown part of the image: {other}"),
            }
        }
        world
    }

    fn repository(&self, who: &Identity) -> HttpRepository {
        HttpRepository::new(&issue(&self.certificates, who), &self.repository).unwrap()
    }

    /// Starts an agent as process 1 of its own namespace, and the holder of its lease.
    fn agent(&self, slot: &str, incarnation: u32, restore: Option<u32>) -> Agent {
        let root = self.root.path();
        let directory = root.join(format!("config-{slot}"));
        let identity = Identity::Agent { job: JOB.into(), member: 0, incarnation };
        write(&issue(&self.certificates, &identity), &directory);
        let port = free_port();
        let lease = format!("3f2b8a10-{slot}");
        let config = serde_json::json!({
            "protocol": 1, "job": JOB, "jobName": "count", "namespace": "default", "member": 0, "members": 1,
            "incarnation": incarnation, "slot": slot, "listen": format!("127.0.0.1:{port}"),
            "lease": {
                "root": root.join("leases"), "directory": lease, "owner": 0,
                "armWithin": {"secs": 30, "nanos": 0}, "beatLimit": {"secs": 15, "nanos": 0},
            },
            "isolation": {"secs": 20, "nanos": 0}, "notAfter": jiff::Timestamp::now() + Duration::from_secs(600),
            "repository": self.repository, "image": self.image, "vm": {"memory": "192Mi"}, "restore": restore,
            "run": {"command": ["sh", "-c", COUNT]}, "outputs": [], "inputs": {}, "sshKeys": [],
            "hostname": "count-0", "address": "10.0.0.1", "mac": "52:54:00:00:00:01",
            "maxPause": {"secs": 2, "nanos": 0}, "accelerator": "Tcg", "guestNetwork": "Isolated",
        });
        std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
        std::fs::create_dir_all(root.join("leases")).unwrap();
        let fence = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL", "--"])
            .arg(program())
            .args(["agent", "--config"])
            .arg(&directory)
            .arg("--node-dir")
            .arg(root.join("node"))
            .arg("--vm-dir")
            .arg(root.join(format!("vm-{slot}")))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let wait = "until [ -d \"$1\" ]; do sleep 0.05; done; ";
        let holder = Command::new("sh")
            .args(["-c", &format!("{wait}{HOLDER}"), "holder"])
            .arg(root.join("leases").join(&lease))
            .arg(slot)
            .spawn()
            .unwrap();
        let endpoint = ([127, 0, 0, 1], port).into();
        let address = AgentAddress { endpoint, job: JOB.into(), member: 0, incarnation };
        let client = |who| Arc::new(AgentHttp::new(&issue(&self.certificates, who), &address));
        Agent {
            operator: client(&Identity::Operator),
            kget: client(&Identity::Kget),
            fence: Process(fence),
            holder: Process(holder),
            vm: root.join(format!("vm-{slot}")),
            authority: Authority { epoch: 1, incarnation },
        }
    }
}

fn issue(certificates: &Certificates, who: &Identity) -> Credentials {
    certificates.issue(who, jiff::Timestamp::now(), Duration::from_secs(3600)).unwrap()
}

fn open(directory: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o711)).unwrap();
}

struct Agent {
    operator: Arc<AgentHttp>,
    kget: Arc<AgentHttp>,
    fence: Process,
    holder: Process,
    vm: PathBuf,
    authority: Authority,
}

impl Agent {
    async fn until(&self, what: &str, so: impl Fn(&AgentState) -> bool) -> AgentState {
        let begun = Instant::now();
        let mut last = String::new();
        while begun.elapsed() < Duration::from_secs(120) {
            if let Ok(mut states) = self.kget.watch().await {
                while let Some(state) = states.next().await {
                    if so(&state) {
                        return state;
                    }
                    last = format!("{state:?}");
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("waiting for {what}; last: {last}");
    }

    fn counter(state: &AgentState) -> Option<(u64, String)> {
        let (number, nonce) = state.guest.last_line.as_deref()?.split_once(' ')?;
        Some((number.parse().ok()?, nonce.into()))
    }

    async fn counts_to(&self, number: u64) -> (u64, String) {
        let so = |state: &AgentState| Self::counter(state).is_some_and(|(now, _)| now >= number);
        Self::counter(&self.until("counting", so).await).unwrap()
    }

    async fn go(&self) {
        self.until("loading", |state| state.vm == VmState::Loaded).await;
        self.operator.go(self.authority).await.unwrap();
    }

    /// Whether a QEMU with this VM's files is there.
    fn has_qemu(&self) -> bool {
        let own = self.vm.to_string_lossy().into_owned();
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok())
            .any(|line| line.contains("guest=count-0") && line.contains(&own))
    }
}

#[ignore = "boots guests: e2e/test --e2e"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_boots_captures_stores_leaves_and_another_goes_on() {
    let world = World::new().await;
    let mut first = world.agent("77", 1, None);
    first.go().await;
    let (_, nonce) = first.counts_to(10).await;

    let capture = CaptureOrder { authority: first.authority, generation: 1, nonce: "cut".into(), resume: false };
    first.operator.prepare(&capture).await.unwrap();
    first.operator.stop(&capture).await.unwrap();
    first.operator.cut(&capture).await.unwrap();
    let captured = |state: &AgentState| state.capture.as_ref().is_some_and(|part| part.state == PartState::Captured);
    first.until("capture", captured).await;
    first.operator.stay_down(&capture, Duration::from_secs(60)).await.unwrap();

    let key = TicketKey::new(SECRET).unwrap();
    let expires = jiff::Timestamp::now() + Duration::from_secs(60);
    let ticket = key.sign(&Ticket { job: JOB.into(), generation: 1, member: 0, incarnation: 1, expires, most: None });
    first.kget.upload(&UploadOrder { epoch: 1, generation: 1, incarnation: 1, ticket }).await.unwrap();
    let sent = |state: &AgentState| state.upload.as_ref().is_some_and(|upload| upload.done || upload.error.is_some());
    let state = first.until("upload", sent).await;
    let upload = state.upload.unwrap();
    assert_eq!(upload.error, None);
    let mut record = state.capture.unwrap().record.unwrap();
    record.files = upload.files;
    let manifest = Manifest {
        version: VERSION,
        job: JOB.into(),
        job_name: "count".into(),
        namespace: "default".into(),
        generation: 1,
        incarnation: 1,
        parent: None,
        reason: SnapshotReason::Notice,
        taken_at: jiff::Timestamp::now(),
        nonce: "cut".into(),
        image: world.image.clone(),
        members: vec![record],
        guests: None,
        ancestor: None,
    };
    world.repository(&Identity::Kget).publish(&manifest).await.unwrap();
    first.operator.leave(first.authority, LeaveCode::Saved).await.unwrap();
    assert!(!first.has_qemu(), "it has left, and its QEMU is there");
    assert!(first.fence.0.wait().unwrap().success());
    first.holder.0.wait().unwrap();
    let said = std::fs::read_to_string(world.root.path().join("leases/said-77")).unwrap();
    assert_eq!(said, "saved\n");
    assert!(!world.root.path().join("leases/3f2b8a10-77").exists(), "the lease's directory stays");
    assert_eq!(std::fs::read_dir(&first.vm).unwrap().count(), 0, "files of the VM stay");

    let begun = Instant::now();
    let mut second = world.agent("78", 2, Some(1));
    second.go().await;
    let (_, same) = second.counts_to(20).await;
    eprintln!("agent started to counting again: {:?}", begun.elapsed());
    assert_eq!(same, nonce, "the memory is another");

    // the slot is taken away: the lock drops, whoever else is down
    second.holder.0.kill().unwrap();
    let begun = Instant::now();
    while second.has_qemu() {
        assert!(begun.elapsed() < Duration::from_secs(10), "QEMU outlives its lease");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    eprintln!("fence_s: {:.3}", begun.elapsed().as_secs_f64());
    assert!(!second.fence.0.wait().unwrap().success());
    assert_eq!(std::fs::read_dir(&second.vm).unwrap().count(), 0, "files of the VM stay");
}
