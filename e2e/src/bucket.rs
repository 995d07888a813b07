//! A repository in front of a bucket, on loopback: versitygw keeps the bucket in a folder and speaks S3. Whoever uses
//! this is operator, kget and agents at once.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use vmdeploy::{
    api::job_status::ResolvedImage,
    driver::{
        agent::Accelerator,
        repository::{ByteStore as _, Repository as _, http::HttpRepository},
    },
    names::{Generation, Identity, Incarnation},
    store::{
        machine::MachineRecord,
        manifest::{FileKind, Manifest, MemberPart},
        ticket::{Ticket, TicketKey},
    },
    tls::{self, Authority},
};

use crate::{
    agents::{self, JOB, LIMIT, Process, SECRET, give_repository, issue, log, prepared, program, serve},
    nodes::free_address,
};

const BUCKET: &str = "jobs";
const ACCESS: &str = "vmdeploy";
const PASSWORD: &str = "a password of the tests";

/// The S3 store, and what repositories on it have in common.
pub struct Store {
    root: tempfile::TempDir,
    certificates: Authority,
    address: SocketAddr,
    _gateway: Process,
}

/// A repository that runs.
pub struct Server {
    /// Its process.
    pub process: Process,
    address: SocketAddr,
    log: PathBuf,
}

/// What a repository is told of its bucket.
#[derive(Clone, Debug)]
pub struct Told {
    /// The bucket and the folder.
    pub bucket: String,
    /// The password.
    pub password: String,
}

impl Default for Told {
    fn default() -> Self {
        Self { bucket: format!("s3://{BUCKET}/a/folder"), password: PASSWORD.into() }
    }
}

impl Store {
    /// Starts the S3 store.
    pub fn new() -> Result<Self> {
        tls::install_provider();
        // on a disk: it keeps what it knows of an object in extended attributes
        let root = tempfile::Builder::new().prefix("vmdeploy-e2e-").tempdir_in("/var/tmp")?;
        let buckets = root.path().join("buckets");
        std::fs::create_dir_all(buckets.join(BUCKET))?;
        let address = free_address(Ipv4Addr::LOCALHOST.into())?;
        let mut command = Command::new(prepared("versitygw")?);
        command.args(["--port", &address.to_string(), "--access", ACCESS, "--secret", PASSWORD, "--quiet", "posix"]);
        command.arg(buckets).stdin(Stdio::null());
        command.stdout(log(root.path(), "gateway")?).stderr(log(root.path(), "gateway-errors")?);
        let gateway = Process(command.spawn()?);
        let certificates = Authority::create(jiff::Timestamp::now())?;
        give_repository(&certificates, root.path())?;
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            ensure!(begun.elapsed() < LIMIT, "the S3 store does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { root, certificates, address, _gateway: gateway })
    }

    /// A directory of this name.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn tell(&self, command: &mut Command, told: &Told) {
        command.args(["--bucket", &told.bucket, "--endpoint", &format!("http://{}", self.address)]);
        command.env("AWS_ACCESS_KEY_ID", ACCESS).env("AWS_SECRET_ACCESS_KEY", &told.password).stdin(Stdio::null());
    }

    /// Starts a repository on a volume.
    pub fn serve(&self, volume: &str, told: &Told) -> Result<Server> {
        let (address, root) = (free_address(Ipv4Addr::LOCALHOST.into())?, self.root.path());
        let mut command = Command::new(program()?);
        serve(&mut command, root, &address.to_string(), &self.volume(volume)).args(["--cache", "1Mi"]);
        self.tell(&mut command, told);
        let name = format!("repository-{volume}");
        let process = Process(command.stdout(log(root, &name)?).stderr(log(root, &format!("{name}-errors"))?).spawn()?);
        Ok(Server { process, address, log: root.join(format!("{name}.log")) })
    }

    /// Runs a command of the repository on the bucket; what it prints.
    pub fn ask(&self, command: &str) -> Result<String> {
        let mut asked = Command::new(program()?);
        asked.args(["repository", command]);
        self.tell(&mut asked, &Told::default());
        let output = asked.output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    /// A repository, as somebody may use it.
    pub fn client(&self, server: &Server, who: &Identity) -> Result<HttpRepository> {
        Ok(HttpRepository::new(&issue(&self.certificates, who)?, &server.address.to_string())?)
    }

    /// Sends the member's files and publishes them as a generation.
    pub async fn publish(&self, server: &Server, generation: Generation, incarnation: Incarnation) -> Result<Manifest> {
        let agent = self.client(server, &Identity::Agent { job: JOB.into(), member: 0, incarnation })?;
        let expires = jiff::Timestamp::now() + LIMIT;
        let ticket = Ticket {
            job: JOB.into(),
            generation,
            member: 0,
            incarnation,
            expires,
            most: None,
            quota: None,
            bearer: None,
        };
        let ticket = TicketKey::new(SECRET).context("the secret is too short")?.sign(&ticket);
        let mut files = Vec::new();
        for kind in KINDS {
            let file = tempfile::NamedTempFile::new_in(self.root.path())?;
            std::fs::write(file.path(), content(generation, kind))?;
            files.push(agent.put_part(&ticket, &JOB.into(), generation, 0, kind, file.path(), &|_| {}).await?);
        }
        let manifest = manifest(generation, incarnation, files);
        self.client(server, &Identity::Kget)?.publish(&manifest).await?;
        Ok(manifest)
    }

    /// Reads every byte of a complete generation back, as an agent that restores it.
    pub async fn restore(&self, server: &Server, generation: Generation) -> Result<()> {
        let agent = self.client(server, &Identity::Agent { job: JOB.into(), member: 0, incarnation: 99 })?;
        let manifest = self.client(server, &Identity::Operator)?.manifest(&JOB.into(), generation).await?;
        let part = manifest.members.first().context("no member")?;
        ensure!(part.files.len() == KINDS.len(), "{} files", part.files.len());
        for file in &part.files {
            let to = self.root.path().join(format!("restored-{generation}-{}", file.kind));
            agent.get_part(&JOB.into(), generation, 0, file, &to, &|_| {}).await?;
            let same = std::fs::read(&to)? == content(generation, file.kind);
            ensure!(same, "{} of generation {generation} is another", file.kind);
            std::fs::remove_file(to)?;
        }
        Ok(())
    }

    /// The complete generations; waits until the repository serves.
    pub async fn complete(&self, server: &mut Server) -> Result<Vec<Generation>> {
        let operator = self.client(server, &Identity::Operator)?;
        let begun = Instant::now();
        loop {
            match operator.content(&JOB.into()).await {
                Ok(content) => {
                    ensure!(content.damaged.is_empty(), "{:?}", content.damaged);
                    return Ok(content.generations.iter().map(|one| one.generation).collect());
                }
                Err(error) => {
                    let ended = server.process.0.try_wait()?;
                    let said = || std::fs::read_to_string(&server.log).unwrap_or_default();
                    ensure!(begun.elapsed() < LIMIT && ended.is_none(), "{error}: {}", said());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// The files of a generation.
pub const KINDS: [FileKind; 3] = [FileKind::Memory, FileKind::Disk, FileKind::Output];

/// What a file is made of: half of it was in the generation before, and none of it compresses.
pub fn content(generation: Generation, kind: FileKind) -> Vec<u8> {
    let half = |number: Generation| {
        let mut bytes = vec![0; 3 << 20];
        blake3::Hasher::new().update(format!("{number} {kind}").as_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    };
    [half(generation.saturating_sub(1)), half(generation)].concat()
}

fn manifest(
    generation: Generation,
    incarnation: Incarnation,
    files: Vec<vmdeploy::store::manifest::PartFile>,
) -> Manifest {
    let machine = MachineRecord {
        qemu: "7.2.0".into(),
        machine: "pc-q35-7.2".into(),
        cpu_model: "qemu64".into(),
        accelerator: Accelerator::Tcg,
        cpus: 1,
        memory: 256 << 20,
        flags: vec![],
        withheld: vec![],
    };
    let image = ResolvedImage {
        namespace: "default".into(),
        name: "light".into(),
        disk: format!("sha256:{}", "0".repeat(64)),
        virtual_size: 1 << 30,
        kernel: None,
        initrd: None,
        params: None,
    };
    let part = MemberPart { index: 0, files, machine, output_bytes: 0, started: true, ran: 1.0 };
    agents::manifest(generation, incarnation, image, vec![part])
}

/// A file of so many bytes that do not compress.
pub fn noise(path: &Path, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
    std::fs::write(path, &bytes)?;
    Ok(bytes)
}
