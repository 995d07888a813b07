//! Nodes without a scheduler: network namespaces of this machine on a switch, which is a namespace as well, or on two.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// An address of this machine where nobody listens, for a process that is started then. Its port is none of those that
/// the kernel gives to connections: one of these could take it before that process does.
pub fn free_address(host: IpAddr) -> Result<SocketAddr> {
    /// The first of so many; the kernel gives connections none below 32768.
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 10_000;
    // each is taken once in a process, and processes begin at places of their own
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let own = u16::try_from(std::process::id() % 100 * 100)?;
    for _ in 0..COUNT {
        let next = (own + TAKEN.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        let address = SocketAddr::new(host, FIRST + next);
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port is free at {host}")
}

/// Gone when this is dropped, and with them whatever was made in them.
pub struct Nodes {
    hubs: Vec<String>,
    names: Vec<String>,
}

impl Nodes {
    /// So many nodes. Each link carries no more than this, in either direction, as `tc` has it.
    pub fn new(count: u8, rate: Option<&str>) -> Result<Self> {
        Self::make(&vec![false; count.into()], rate, None)
    }

    /// A node for each of these, which is on the second of two switches or on the first. The trunk that joins them has
    /// a rate of its own.
    pub fn on_two_switches(on_second: &[bool], rate: &str, trunk: &str) -> Result<Self> {
        Self::make(on_second, Some(rate), Some(trunk))
    }

    fn make(on_second: &[bool], rate: Option<&str>, trunk: Option<&str>) -> Result<Self> {
        // several at a time in one process, and processes beside each other
        static MADE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = MADE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = |what: &str| format!("vmdeploy-{}-{number}-{what}", std::process::id());
        let nodes = Self {
            hubs: ["hub", "hub2"].into_iter().take(1 + usize::from(trunk.is_some())).map(name).collect(),
            names: (0..on_second.len()).map(|node| name(&node.to_string())).collect(),
        };
        for hub in &nodes.hubs {
            ip(&format!("netns add {hub}"))?;
            ip(&format!("-n {hub} link add switch type bridge"))?;
            up(hub, "switch", None)?;
            up(hub, "lo", None)?;
        }
        ip(&format!("-n {} addr add {}/24 dev switch", nodes.hubs[0], Self::hub_address()))?;
        if let [first, second] = &nodes.hubs[..] {
            ip(&format!("-n {first} link add trunk type veth peer name trunk netns {second}"))?;
            for hub in [first, second] {
                up(hub, "trunk", trunk)?;
                ip(&format!("-n {hub} link set trunk master switch"))?;
            }
        }
        for (port, (node, second)) in nodes.names.iter().zip(on_second).enumerate() {
            let hub = &nodes.hubs[usize::from(*second)];
            ip(&format!("netns add {node}"))?;
            ip(&format!("-n {node} link add e0 type veth peer name p{port} netns {hub}"))?;
            ip(&format!("-n {node} addr add {}/24 dev e0", Self::address(port)))?;
            up(node, "lo", None)?;
            up(node, "e0", rate)?;
            up(hub, &format!("p{port}"), rate)?;
            ip(&format!("-n {hub} link set p{port} master switch"))?;
        }
        Ok(nodes)
    }

    /// A node's address.
    pub fn address(node: usize) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, node as u8 + 1)
    }

    /// The address of whoever is at the switch, of two at the first, see [`Nodes::at_the_switch`].
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

    /// Bytes that a node has sent so far, on the wire.
    pub fn sent(&self, node: usize) -> Result<u64> {
        sent(&self.names[node], "e0")
    }

    /// Bytes that the trunk has carried so far, on the wire: to the second switch, and back.
    pub fn crossed(&self) -> Result<[u64; 2]> {
        let [first, second] = &self.hubs[..] else { bail!("there is one switch, and no trunk") };
        Ok([sent(first, "trunk")?, sent(second, "trunk")?])
    }

    /// Runs something that talks to all nodes.
    pub fn at_the_switch<T: Send>(&self, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
        // threads are where the one is that starts them
        inside(&self.hubs[0], || tokio::runtime::Runtime::new()?.block_on(work))?
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for name in self.names.iter().chain(&self.hubs) {
            // one that was never made
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

/// Largest packet on a shaped link. `tbf` takes one within its burst (64 KiB at least, see `burst`) whole, as a card
/// would that cuts it later; a larger one the kernel cuts itself, and sixteen nodes then need more than two cores.
const WHOLE: u32 = 32 << 10;

/// Bytes that an idle link takes at once: those of a hundredth of a second, within what the kernel needs for its clock
/// and what a fast link is used to.
fn burst(rate: &str) -> Result<u64> {
    let units = [("gbit", 1_000_000_000), ("mbit", 1_000_000)];
    let found = units.iter().find_map(|(unit, bits)| Some((rate.strip_suffix(unit)?.parse::<u64>().ok()?, bits)));
    let (count, bits) = found.with_context(|| format!("{rate} is not a count of mbit or gbit"))?;
    Ok((count * bits / 8 / 100).clamp(64 << 10, 256 << 10))
}

/// Brings a link up that sends no more than this.
fn up(place: &str, link: &str, rate: Option<&str>) -> Result<()> {
    ip(&format!("-n {place} link set {link} up"))?;
    let Some(rate) = rate else { return Ok(()) };
    ip(&format!("-n {place} link set {link} gso_max_size {WHOLE}"))?;
    let shape = format!("rate {rate} burst {} latency 30ms", burst(rate)?);
    ip(&format!("netns exec {place} tc qdisc add dev {link} root tbf {shape}"))
}

/// Bytes that have left a namespace by a link.
fn sent(place: &str, link: &str) -> Result<u64> {
    // what `ip netns exec` shows below /sys is the namespace's own
    let file = format!("/sys/class/net/{link}/statistics/tx_bytes");
    let output = Command::new("ip").args(["netns", "exec", place, "cat", &file]).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.trim().parse()?)
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
