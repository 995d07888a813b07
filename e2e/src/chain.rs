//! Agents that only bring their job's image, on nodes of their own, and a repository on one more: how an image spreads.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tempfile::TempDir;
use vmdeploy::{
    driver::repository::{ByteStore as _, http::HttpRepository},
    names::Identity,
    tls::{self, Authority as Certificates},
    transfer::plan::chain::{Place, before},
};

use crate::{
    agents::{
        JOB, Process, digest, endpoint, give_repository, issue, log, program, repository_address, serve, told, write,
    },
    hold,
    limit::Limit,
    nodes::Nodes,
    ssh::Ssh,
};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(900);
/// As the fence starts a supervisor.
const FRUGAL: [(&str, &str); 2] = [("MALLOC_ARENA_MAX", "2"), ("MALLOC_MMAP_THRESHOLD_", "1048576")];

/// The nodes and the repository, which is on the last of them.
pub struct Spread {
    /// The nodes.
    pub nodes: Nodes,
    /// Digest of the image.
    pub image: String,
    root: TempDir,
    certificates: Certificates,
    members: u32,
    places: Vec<Place>,
    content: PathBuf,
    alone: bool,
    shared: bool,
    held: bool,
    server: Process,
}

/// An agent that brings the image.
pub struct Bringing {
    member: u32,
    child: Process,
}

impl Spread {
    /// A repository with an image of random bytes, and nodes on links of this rate. All files are below a directory.
    pub fn new(below: &Path, members: u32, bytes: usize, rate: &str) -> Result<Self> {
        let nodes = Nodes::new(u8::try_from(members)? + 1, Some(rate))?;
        let places = (0..members).map(|member| Place { member, switch: None }).collect();
        Self::of(nodes, places, below, bytes)
    }

    /// The same on two switches, which are named for each member's node. The repository is on that of the first member,
    /// and the trunk between them has the rate of a link.
    pub fn on_two_switches(below: &Path, switches: &[&str], bytes: usize, rate: &str) -> Result<Self> {
        let first = switches.first().context("no members")?;
        let on_second: Vec<bool> = switches.iter().map(|switch| switch != first).chain([false]).collect();
        let nodes = Nodes::on_two_switches(&on_second, rate, rate)?;
        let places = (0..).zip(switches).map(|(member, name)| Place { member, switch: Some((*name).to_owned()) });
        Self::of(nodes, places.collect(), below, bytes)
    }

    fn of(nodes: Nodes, places: Vec<Place>, below: &Path, bytes: usize) -> Result<Self> {
        tls::install_provider();
        let members = u32::try_from(places.len())?;
        let root = tempfile::Builder::new().prefix("vmdeploy-chain-").tempdir_in(below)?;
        let certificates = Certificates::create(jiff::Timestamp::now())?;
        give_repository(&certificates, root.path())?;
        let mut command = nodes.command(members as usize, program()?);
        let command = serve(&mut command, root.path(), &repository_address(members), &root.path().join("repository"));
        command.envs(FRUGAL);
        let server = Process(command.stdout(log(root.path(), "repository")?).spawn()?);
        let content = root.path().join("content");
        let mut bytes = vec![0; bytes];
        blake3::Hasher::new().update(root.path().as_os_str().as_encoded_bytes()).finalize_xof().fill(&mut bytes);
        fs::write(&content, &bytes)?;
        let image = digest(&bytes);
        let (alone, shared, held) = (false, false, false);
        let spread = Self { nodes, image, root, certificates, members, places, content, alone, shared, held, server };
        // on its own node no link is in the way
        spread.nodes.on(members as usize, || tokio::runtime::Runtime::new()?.block_on(spread.import()))??;
        Ok(spread)
    }

    async fn import(&self) -> Result<()> {
        let importer = issue(&self.certificates, &Identity::Importer)?;
        let importer = HttpRepository::new(&importer, &repository_address(self.members))?;
        let begun = Instant::now();
        while let Err(error) = importer.put_image(&self.image, &self.content).await {
            ensure!(begun.elapsed() < Duration::from_secs(60), "{error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // its pieces are named at once
        let named = self.root.path().join("repository/images").join(&self.image["sha256:".len()..]);
        while !named.with_extension("pieces").exists() {
            ensure!(begun.elapsed() < Duration::from_secs(60), "no pieces were named");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// From now on agents know no others, and all fetch from the repository.
    pub fn stay_alone(&mut self) {
        self.alone = true;
    }

    /// From now on it is not known which switches nodes are on.
    pub fn forget_switches(&mut self) {
        self.places.iter_mut().for_each(|place| place.switch = None);
    }

    /// From now on agents look for images in a directory that all nodes see, and put them there.
    pub fn share(&mut self) -> Result<PathBuf> {
        self.shared = true;
        let directory = self.path("shared");
        fs::create_dir_all(&directory)?;
        Ok(directory)
    }

    /// Starts the job's hold, which puts images to its nodes: from now on agents know it.
    pub fn hold(&mut self) -> Result<Process> {
        self.held = true;
        hold::hold(self, None)
    }

    /// The same from the first node over the links; waits until all nodes are held.
    pub fn hold_over_links(&mut self, ssh: &Ssh) -> Result<Process> {
        self.held = true;
        hold::hold(self, Some(ssh))
    }

    /// How many nodes are to have the image.
    pub fn count(&self) -> usize {
        self.members as usize
    }

    /// The image as a file of the repository's node.
    pub fn content(&self) -> &Path {
        &self.content
    }

    /// A path that all nodes see.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// What a node keeps.
    pub fn node(&self, member: usize) -> PathBuf {
        self.root.path().join(format!("node-{member}"))
    }

    /// A node has nothing.
    pub fn clear(&self) -> Result<()> {
        for member in 0..self.count() {
            match fs::remove_dir_all(self.node(member)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => fs::create_dir_all(self.node(member))?,
            }
        }
        Ok(())
    }

    /// Starts a member's agent. Those before it in the chain are as the operator has them.
    pub fn start(&self, member: u32) -> Result<Bringing> {
        let (root, node) = (self.root.path(), member as usize);
        let directory = root.join(format!("config-{member}"));
        let identity = Identity::Agent { job: JOB.into(), member, incarnation: 1 };
        write(&issue(&self.certificates, &identity)?, &directory)?;
        let image = json!({"namespace": "default", "name": "image", "disk": self.image, "virtualSize": 0});
        let mut config = told(root, (member, self.members), 1, &format!("1-{member}"), &image)?;
        let peer = |member: u32| Ok(json!({"member": member, "endpoint": endpoint(member, 1)?}));
        let before = if self.alone { Vec::new() } else { before(&self.places, member) };
        config["chain"] = before.into_iter().map(peer).collect::<Result<_>>()?;
        if self.shared {
            config["sharedImages"] = json!({"directory": self.path("shared"), "limit": 1_u64 << 40});
        }
        if self.held {
            config["imagesByTaktuk"] = json!(true);
            config["lease"] = hold::lease(self, node);
        }
        fs::write(directory.join("config.json"), config.to_string())?;
        let mut command = self.nodes.command(node, program()?);
        command.args(["agent", "--images", "--config"]).arg(&directory).arg("--node-dir").arg(self.node(node));
        command.arg("--vm-dir").arg(self.node(node)).envs(FRUGAL).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(log(root, &format!("agent-{member}"))?);
        Ok(Bringing { member, child: Process(command.spawn()?) })
    }

    /// Starts all members' agents.
    pub fn start_all(&self) -> Result<Vec<Bringing>> {
        (0..self.members).map(|member| self.start(member)).collect()
    }

    /// The bytes that a member has of the image, right or not, are those of the image.
    pub fn right(&self, member: usize) -> Result<()> {
        let path = self.node(member).join("images").join(self.image.replace(':', "-"));
        let found = digest(&fs::read(&path).with_context(|| path.display().to_string())?);
        ensure!(found == self.image, "node {member} has {found}");
        Ok(())
    }

    /// Waits until a member has so many bytes of the image; how many it then has.
    pub fn has(&self, member: usize, bytes: u64) -> Result<u64> {
        let begun = Instant::now();
        loop {
            if let Some(have) = self.part(member).filter(|have| *have >= bytes) {
                return Ok(have);
            }
            ensure!(begun.elapsed() < Duration::from_secs(60), "node {member} does not have {bytes} bytes");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Bytes of an image that is on its way.
    fn part(&self, member: usize) -> Option<u64> {
        let is_part = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(".part-");
        let part = fs::read_dir(self.node(member).join("images")).ok()?.flatten().find(is_part)?;
        Some(part.metadata().ok()?.len())
    }

    /// What the agents say of how they got the image.
    pub fn story(&self) -> Result<String> {
        let mut story = String::new();
        for member in 0..self.members {
            let said = fs::read_to_string(self.path(&format!("agent-{member}.log")))?;
            let of_images = said.lines().filter(|line| line.contains("supervisor::chain"));
            of_images.for_each(|line| story.extend(["\n", &member.to_string(), ": ", line]));
        }
        Ok(story)
    }

    /// Bytes that a node has sent so far, on the wire; the repository is the last node.
    pub fn sent(&self, node: usize) -> Result<u64> {
        self.nodes.sent(node)
    }

    /// From now on the repository has no more memory than this.
    pub fn limit_repository(&self, limit: &Limit) -> Result<()> {
        limit.holds_for(self.server.0.id())
    }

    /// Most memory that the repository has had, in bytes.
    pub fn repository_peak(&self) -> Result<u64> {
        peak(&self.server.0)
    }
}

/// Most memory that a process has had, in bytes.
pub fn peak(child: &Child) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

impl Bringing {
    /// Its member.
    pub fn member(&self) -> u32 {
        self.member
    }

    /// From now on it has no more memory than this.
    pub fn limit(&self, limit: &Limit) -> Result<()> {
        limit.holds_for(self.child.0.id())
    }

    /// Most memory that it has had, in bytes.
    pub fn peak(&self) -> Result<u64> {
        peak(&self.child.0)
    }

    /// Ends it at once, as `kill -9` does.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()
    }
}

/// When each of them had the image, in seconds since `begun`, in their order.
pub fn here(agents: &mut [Bringing], begun: Instant) -> Result<Vec<f64>> {
    let waiting: Vec<_> = agents
        .iter_mut()
        .map(|agent| {
            let out = agent.child.0.stdout.take().context("its output is read already")?;
            let member = agent.member;
            Ok(thread::spawn(move || {
                let mut line = String::new();
                BufReader::new(out).read_line(&mut line)?;
                ensure!(!line.is_empty(), "the agent of member {member} has ended");
                Ok(begun.elapsed().as_secs_f64())
            }))
        })
        .collect::<Result<_>>()?;
    while begun.elapsed() < LIMIT && !waiting.iter().all(thread::JoinHandle::is_finished) {
        thread::sleep(Duration::from_millis(2));
    }
    let ended = |one: thread::JoinHandle<Result<f64>>| {
        ensure!(one.is_finished(), "an image did not come within {LIMIT:?}");
        one.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?
    };
    waiting.into_iter().map(ended).collect()
}
