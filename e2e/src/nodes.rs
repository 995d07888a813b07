//! Nodes without a scheduler: network namespaces of this machine on one switch, which is a namespace as well.

use std::{fs::File, net::Ipv4Addr, process::Command, thread};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};

/// Gone when this is dropped, and with them whatever was made in them.
pub struct Nodes {
    hub: String,
    names: Vec<String>,
}

impl Nodes {
    /// So many nodes. Each link carries no more than this, in either direction, as `tc` has it.
    pub fn new(count: u8, rate: Option<&str>) -> Result<Self> {
        // several at a time in one process, and processes beside each other
        static MADE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = MADE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = |what: &str| format!("vmdeploy-{}-{number}-{what}", std::process::id());
        let nodes = Self { hub: name("hub"), names: (0..count).map(|node| name(&node.to_string())).collect() };
        let hub = &nodes.hub;
        let shape = rate.map(|rate| Ok::<_, anyhow::Error>(format!("rate {rate} burst {} latency 30ms", burst(rate)?)));
        let shape = shape.transpose()?;
        ip(&format!("netns add {hub}"))?;
        ip(&format!("-n {hub} link add switch type bridge"))?;
        ip(&format!("-n {hub} addr add {}/24 dev switch", Self::hub_address()))?;
        ip(&format!("-n {hub} link set switch up"))?;
        ip(&format!("-n {hub} link set lo up"))?;
        for (port, node) in nodes.names.iter().enumerate() {
            ip(&format!("netns add {node}"))?;
            ip(&format!("-n {node} link add e0 type veth peer name p{port} netns {hub}"))?;
            ip(&format!("-n {node} addr add {}/24 dev e0", Self::address(port)))?;
            for (place, link) in [(node, "lo".to_owned()), (node, "e0".to_owned()), (hub, format!("p{port}"))] {
                ip(&format!("-n {place} link set {link} up"))?;
                if let Some(shape) = shape.as_ref().filter(|_| link != "lo") {
                    ip(&format!("netns exec {place} tc qdisc add dev {link} root tbf {shape}"))?;
                }
            }
            ip(&format!("-n {hub} link set p{port} master switch"))?;
        }
        Ok(nodes)
    }

    /// A node's address.
    pub fn address(node: usize) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, node as u8 + 1)
    }

    /// The address of whoever is at the switch, see [`Nodes::at_the_switch`].
    pub fn hub_address() -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, 254)
    }

    /// The name of a node's namespace.
    pub fn name(&self, node: usize) -> &str {
        &self.names[node]
    }

    /// A command on a node.
    pub fn command(&self, node: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[node]]).arg(program);
        command
    }

    /// Does something on a node; what it makes stays there.
    pub fn on<T: Send>(&self, node: usize, work: impl FnOnce() -> T + Send) -> Result<T> {
        inside(&self.names[node], work)
    }

    /// Runs something that talks to all nodes.
    pub fn at_the_switch<T: Send>(&self, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
        // threads are where the one is that starts them
        inside(&self.hub, || tokio::runtime::Runtime::new()?.block_on(work))?
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for name in self.names.iter().chain([&self.hub]) {
            // one that was never made
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

/// Bytes that an idle link takes at once: those of a hundredth of a second, within what the kernel needs for its clock
/// and what a fast link is used to.
fn burst(rate: &str) -> Result<u64> {
    let units = [("gbit", 1_000_000_000), ("mbit", 1_000_000)];
    let found = units.iter().find_map(|(unit, bits)| Some((rate.strip_suffix(unit)?.parse::<u64>().ok()?, bits)));
    let (count, bits) = found.with_context(|| format!("{rate} is not a count of mbit or gbit"))?;
    Ok((count * bits / 8 / 100).clamp(64 << 10, 256 << 10))
}

fn inside<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    let namespace = File::open(format!("/run/netns/{name}")).with_context(|| format!("namespace {name}"))?;
    thread::scope(|scope| {
        let done = scope.spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            Ok::<_, anyhow::Error>(work())
        });
        done.join().map_err(|_| anyhow!("a thread inside {name} panicked"))?
    })
}

fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip").args(words.split(' ')).output()?;
    ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
