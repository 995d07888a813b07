//! Agents without a scheduler and without Kubernetes: fence, supervisor and QEMU of each member on a node of its
//! own, the repository on another, and a shell that holds each lease as the hold would. Whoever uses this is operator
//! and kget at once.

mod agent;
mod kget;

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub use agent::{Agent, capture, capture_and_stay, kill, reached};
use anyhow::{Context as _, Result, bail, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use vmdeploy::{
    api::{job_status::ResolvedImage, snapshot::SnapshotReason},
    driver::{
        agent::{AgentAddress, Authority, NodeAgent as _, UploadOrder, VmState, http::AgentHttp},
        repository::{ByteStore as _, Repository as _, http::HttpRepository},
    },
    names::{Generation, Identity, Incarnation},
    store::{
        manifest::{Manifest, MemberPart, VERSION},
        ticket::{Ticket, TicketKey},
    },
    tls::{self, Authority as Certificates, Credentials},
};

use crate::nodes::Nodes;

/// Uid of the job whose members they are.
pub const JOB: &str = "3f2b8a10-9c1d-4e5f-8a7b-112233445566";
/// A script that counts: each line has a number and a nonce of the guest's memory.
pub const COUNT: &str = "n=$(od -An -N8 -tx8 /dev/urandom | tr -d ' '); i=0; \
    while [ $i -lt 1000000 ]; do i=$((i+1)); echo $i $n; sleep 0.05; done";
/// Longest wait for anything.
pub const LIMIT: Duration = Duration::from_secs(180);
pub(crate) const SECRET: &[u8] = b"a secret of two parts";
const REPOSITORY_PORT: u16 = 7443;
/// Of what nodes keep of the job's captures.
const KEPT_KEY: &str = "dGhlIGtleSBvZiB3aGF0IHRoZXNlIG5vZGVzIGtlZXA=";

/// Takes the lock as a hold does, and beats; the lock drops when it is killed.
const HOLDER: &str = "cd \"$1\"; until [ -e nonce ]; do sleep 0.05; done; set -C; exec 9>lock; set +C; flock 9; b=0; \
    while [ ! -e release ]; do b=$((b+1)); read -r n <nonce; printf '%s %s %010d\\n' \"$2\" \"$n\" $b 1<>lock; \
    sleep 0.2 9>&-; done; cat release >\"../said-$2\"";

/// A process that ends when nobody needs it any more.
pub struct Process(pub Child);

impl Process {
    /// Ends it at once, as `kill -9` does.
    pub fn kill(&mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// What the members run.
#[derive(Clone, Debug)]
pub struct Guests {
    /// How many.
    pub members: u32,
    /// Memory of each, as a quantity.
    pub memory: &'static str,
    /// Script of the shell.
    pub script: &'static str,
}

/// The nodes, the repository with an image, and who may speak to whom.
pub struct World {
    /// The program that starts each agent from now on, with other parts of the system than this machine has.
    pub through: Option<PathBuf>,
    /// A node for each member; the repository's is the last.
    pub nodes: Nodes,
    root: tempfile::TempDir,
    guests: Guests,
    certificates: Certificates,
    /// What the guests start from.
    pub image: ResolvedImage,
    server: Mutex<Option<Process>>,
}

impl World {
    /// Starts the repository on links of this rate, as `tc` has it, and gives it the test bed's guest.
    pub fn new(guests: Guests, rate: Option<&str>) -> Result<Self> {
        tls::install_provider();
        let nodes = Nodes::new(u8::try_from(guests.members)? + 1, rate)?;
        let root = tempfile::Builder::new().prefix("vmdeploy-e2e-").tempdir_in("/var/tmp")?;
        passable(root.path())?;
        let certificates = Certificates::create(jiff::Timestamp::now())?;
        give_repository(&certificates, root.path())?;
        let image = ResolvedImage {
            namespace: "default".into(),
            name: "light".into(),
            disk: String::new(),
            virtual_size: 0,
            kernel: None,
            initrd: None,
            params: Some("root=/dev/vda console=ttyS0 quiet".into()),
        };
        let mut world = Self { through: None, nodes, root, guests, certificates, image, server: Mutex::default() };
        world.start_repository()?;
        world.image = world.nodes.at_the_switch(world.import())?;
        Ok(world)
    }

    fn server(&self) -> MutexGuard<'_, Option<Process>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the repository at once, as `kill -9` does.
    pub fn kill_repository(&self) -> Result<()> {
        self.server().take().context("there is no repository")?.kill()
    }

    /// Starts the repository, unless there is one.
    pub fn start_repository(&self) -> Result<()> {
        let mut server = self.server();
        if server.is_none() {
            let (root, members) = (self.root.path(), self.guests.members);
            let mut command = self.nodes.command(members as usize, program()?);
            let command = serve(&mut command, root, &repository_address(members), &root.join("repository"));
            let log = File::options().append(true).create(true).open(root.join("repository.log"))?;
            *server = Some(Process(command.stdout(log).spawn()?));
        }
        Ok(())
    }

    async fn import(&self) -> Result<ResolvedImage> {
        let guest = guest_image()?;
        let (importer, mut image) = (self.repository(&Identity::Importer)?, self.image.clone());
        for line in std::fs::read_to_string(guest.join("SHA256SUMS"))?.lines() {
            let (sum, name) = line.split_once("  ").context("SHA256SUMS")?;
            let digest = format!("sha256:{sum}");
            let begun = Instant::now();
            while let Err(error) = importer.put_image(&digest, &guest.join(name)).await {
                ensure!(begun.elapsed() < LIMIT, "{error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            match name {
                "disk.qcow2" => image.disk = digest,
                "vmlinuz" => image.kernel = Some(digest),
                "initrd" => image.initrd = Some(digest),
                other => bail!("unknown part of the image: {other}"),
            }
        }
        Ok(image)
    }

    /// Where everything lies.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The repository, as somebody may use it.
    pub fn repository(&self, who: &Identity) -> Result<HttpRepository> {
        Ok(HttpRepository::new(&issue(&self.certificates, who)?, &repository_address(self.guests.members))?)
    }

    /// Where the repository listens.
    pub fn repository_address(&self) -> String {
        repository_address(self.guests.members)
    }

    /// A directory with the credentials of somebody.
    pub fn credentials(&self, who: &Identity) -> Result<PathBuf> {
        let directory = self.root.path().join("credentials");
        write(&issue(&self.certificates, who)?, &directory)?;
        Ok(directory)
    }

    /// Starts a member's agent as process 1 of its own namespace, and the holder of its lease.
    pub fn agent(&self, member: u32, incarnation: Incarnation, restore: Option<Generation>) -> Result<Agent> {
        let (root, node) = (self.root.path(), member as usize);
        let slot = format!("{incarnation}-{member}");
        let directory = root.join(format!("config-{slot}"));
        let identity = Identity::Agent { job: JOB.into(), member, incarnation };
        write(&issue(&self.certificates, &identity)?, &directory)?;
        let endpoint = endpoint(member, incarnation)?;
        let lease = lease(&slot);
        let mut config = told(root, (member, self.guests.members), incarnation, &slot, &json!(self.image))?;
        let more = json!({
            "vm": {"memory": self.guests.memory}, "restore": restore,
            "run": {"command": ["sh", "-c", self.guests.script]},
            "network": network(self.guests.members, member, incarnation),
            "kept": {"key": KEPT_KEY, "limit": 1_u64 << 30},
        });
        for (name, value) in more.as_object().context("no object")? {
            config[name] = value.clone();
        }
        std::fs::write(directory.join("config.json"), config.to_string())?;
        std::fs::create_dir_all(root.join("leases"))?;
        let vm = root.join(format!("vm-{slot}"));
        let mut fence = match &self.through {
            Some(program) => self.nodes.command(node, program),
            None => self.nodes.command(node, "env"),
        };
        fence.arg("unshare");
        fence.args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL", "--"]).arg(program()?);
        fence.args(["agent", "--config"]).arg(&directory).arg("--node-dir").arg(root.join("node"));
        let fence = fence.arg("--vm-dir").arg(&vm).stdin(Stdio::null()).stdout(log(root, &slot)?).spawn()?;
        let wait = "until [ -d \"$1\" ]; do sleep 0.05; done; ";
        let mut holder = Command::new("sh");
        holder.args(["-c", &format!("{wait}{HOLDER}"), "holder"]).arg(root.join("leases").join(&lease)).arg(&slot);
        let holder = holder.spawn()?;
        let address = AgentAddress { endpoint, job: JOB.into(), member, incarnation };
        let client = |who| anyhow::Ok(Arc::new(AgentHttp::new(&issue(&self.certificates, who)?, &address)));
        Ok(Agent {
            operator: client(&Identity::Operator)?,
            kget: client(&Identity::Kget)?,
            fence: Process(fence),
            holder: Process(holder),
            slot,
            vm,
            member,
            authority: Authority { epoch: 1, incarnation },
        })
    }

    /// All members' agents, whose guests are loaded.
    pub async fn loaded(&self, incarnation: Incarnation, restore: Option<Generation>) -> Result<Vec<Agent>> {
        let agents = (0..self.guests.members).map(|member| self.agent(member, incarnation, restore));
        let agents: Vec<Agent> = agents.collect::<Result<_>>()?;
        try_join_all(agents.iter().map(|agent| agent.until("loading", |state| state.vm == VmState::Loaded))).await?;
        Ok(agents)
    }

    /// Where the node of a member keeps what it keeps of its captures.
    pub fn kept(&self, member: u32) -> PathBuf {
        self.root.path().join(format!("node/captures/{JOB}-{member}"))
    }

    /// Has a capture of all stored, and makes it a generation.
    pub async fn store(&self, agents: &[Agent], generation: Generation) -> Result<Manifest> {
        let members = try_join_all(agents.iter().map(|agent| self.send(agent, generation))).await?;
        let incarnation = agents.first().context("no members")?.authority.incarnation;
        let manifest = manifest(generation, incarnation, self.image.clone(), members);
        self.repository(&Identity::Kget)?.publish(&manifest).await?;
        Ok(manifest)
    }

    async fn send(&self, agent: &Agent, generation: Generation) -> Result<MemberPart> {
        let Authority { incarnation, .. } = agent.authority;
        let expires = jiff::Timestamp::now() + LIMIT;
        let ticket = Ticket {
            job: JOB.into(),
            generation,
            member: agent.member,
            incarnation,
            expires,
            most: None,
            quota: None,
            bearer: None,
        };
        let ticket = TicketKey::new(SECRET).context("the secret is too short")?.sign(&ticket);
        agent
            .kget
            .upload(&UploadOrder { epoch: 1, generation, incarnation, ticket, limit: None, collector: None })
            .await?;
        let state = agent
            .until("upload", |state| {
                let sent = state.upload.as_ref().filter(|upload| upload.generation == generation);
                sent.is_some_and(|upload| upload.done || upload.error.is_some())
            })
            .await?;
        let upload = state.upload.context("no upload")?;
        ensure!(upload.error.is_none(), "member {}: {:?}", agent.member, upload.error);
        let part = state.capture.into_iter().chain(state.earlier).find(|part| part.generation == generation);
        let mut record = part.and_then(|part| part.record).context("captured without a record")?;
        record.files = upload.files;
        Ok(record)
    }
}

/// A generation of the job, by its members' parts.
pub(crate) fn manifest(
    generation: Generation,
    incarnation: Incarnation,
    image: ResolvedImage,
    members: Vec<MemberPart>,
) -> Manifest {
    Manifest {
        version: VERSION,
        job: JOB.into(),
        job_name: "job".into(),
        namespace: "default".into(),
        generation,
        incarnation,
        parent: None,
        reason: SnapshotReason::Periodic,
        taken_at: jiff::Timestamp::now(),
        nonce: nonce(generation),
        image,
        members,
        guests: None,
        ancestor: None,
    }
}

fn nonce(generation: Generation) -> String {
    format!("cut-{generation}")
}

pub(crate) fn repository_address(members: u32) -> String {
    format!("{}:{REPOSITORY_PORT}", Nodes::address(members as usize))
}

/// What every agent is told: which member of how many it is, its slot and its image.
pub(crate) fn told(
    root: &Path,
    (member, members): (u32, u32),
    incarnation: Incarnation,
    slot: &str,
    image: &Value,
) -> Result<Value> {
    Ok(json!({
        "protocol": 1, "job": JOB, "jobName": "job", "namespace": "default", "member": member, "members": members,
        "incarnation": incarnation, "slot": slot, "listen": endpoint(member, incarnation)?,
        "lease": {
            "root": root.join("leases"), "directory": lease(slot), "owner": 0,
            "armWithin": {"secs": 30, "nanos": 0}, "beatLimit": {"secs": 15, "nanos": 0},
        },
        "isolation": {"secs": 60, "nanos": 0}, "notAfter": jiff::Timestamp::now() + Duration::from_secs(3600),
        "repository": repository_address(members), "image": image, "vm": {}, "outputs": [], "inputs": {},
        "sshKeys": [], "hostname": format!("job-{member}"), "maxPause": {"secs": 30, "nanos": 0},
        "accelerator": "Tcg", "guestNetwork": "Isolated",
    }))
}

/// Name of a slot's lease.
fn lease(slot: &str) -> String {
    format!("3f2b8a10-{slot}")
}

/// Where a member's agent listens.
pub(crate) fn endpoint(member: u32, incarnation: Incarnation) -> Result<SocketAddr> {
    Ok((Nodes::address(member as usize), 17700 + u16::try_from(incarnation % 50)?).into())
}

fn address(member: u32) -> String {
    format!("198.18.0.{}", member + 1)
}

/// Hardware address of a member's guest, or of its agent's door.
fn mac(member: u32, kind: u8) -> String {
    format!("02:be:00:00:{kind:02x}:{member:02x}")
}

fn network(members: u32, own: u32, incarnation: Incarnation) -> Value {
    let member = |member: u32| {
        json!({
            "name": format!("job-{member}"), "address": address(member), "mac": mac(member, 1), "doorMac": mac(member, 2),
            "node": Nodes::address(member as usize),
        })
    };
    json!({
        "subnet": "198.18.0.0/28", "vni": 100 + incarnation, "port": 14789, "mtu": 1450,
        "door": format!("198.18.0.{}", own + 8), "doorMac": mac(own, 2),
        "members": (0..members).map(member).collect::<Vec<Value>>(),
    })
}

/// The guest image that the test bed's preparation has made.
pub(crate) fn guest_image() -> Result<PathBuf> {
    let home = std::env::var_os("HOME").unwrap_or_default();
    let default = Path::new(&home).join(".cache/vmdeploy/guest/current");
    let directory = std::env::var_os("VMDEPLOY_GUEST_IMAGE").map_or(default, PathBuf::from);
    ensure!(directory.join("vmlinuz").exists(), "no guest image in {}: e2e/testbed/prepare", directory.display());
    Ok(directory)
}

/// `$VMDEPLOY_BIN`, or vmdeploy beside what runs here.
pub fn program() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("VMDEPLOY_BIN") {
        return Ok(program.into());
    }
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).map(|directory| directory.join("vmdeploy")).find(|path| path.is_file());
    found.with_context(|| format!("no vmdeploy near {}: cargo build", own.display()))
}

/// Where the test bed's preparation keeps what it makes.
pub fn cache() -> Result<PathBuf> {
    let cache = std::env::var_os("VMDEPLOY_CACHE").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/vmdeploy"));
    cache.or_else(home).context("no HOME")
}

/// A program that the test bed's preparation has made.
pub fn prepared(name: &str) -> Result<PathBuf> {
    let program = cache()?.join("bin").join(name);
    ensure!(program.is_file(), "no {}: e2e/testbed/prepare", program.display());
    Ok(program)
}

/// What the digest of a file's content is written as.
pub fn digest(content: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(content))
}

/// Gives a repository, in a directory, who it is and the secret of tickets.
pub(crate) fn give_repository(certificates: &Certificates, directory: &Path) -> Result<()> {
    write(&issue(certificates, &Identity::Repository)?, &directory.join("repository-tls"))?;
    Ok(std::fs::write(directory.join("ticket"), SECRET)?)
}

/// Has a repository serve a store with what it was given.
pub(crate) fn serve<'a>(command: &'a mut Command, directory: &Path, listen: &str, store: &Path) -> &'a mut Command {
    command.args(["repository", "--listen", listen, "--root"]).arg(store);
    command.arg("--tls").arg(directory.join("repository-tls"));
    command.arg("--ticket-key").arg(directory.join("ticket")).stdin(Stdio::null())
}

pub(crate) fn issue(certificates: &Certificates, who: &Identity) -> Result<Credentials> {
    Ok(certificates.issue(who, jiff::Timestamp::now(), Duration::from_secs(3600))?)
}

pub(crate) fn write(credentials: &Credentials, directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    std::fs::write(directory.join("ca.crt"), &credentials.ca)?;
    std::fs::write(directory.join("tls.crt"), &credentials.certificate)?;
    Ok(std::fs::write(directory.join("tls.key"), &credentials.key)?)
}

/// Where a process's lines go: our own output is for results.
pub(crate) fn log(root: &Path, name: &str) -> std::io::Result<File> {
    File::create(root.join(format!("{name}.log")))
}

fn passable(directory: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o711))?)
}
