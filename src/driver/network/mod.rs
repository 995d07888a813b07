//! The job's network on one node: a segment of a VXLAN among the job's nodes, in a network namespace
//! of its own, with a tap for the guest's second network card.
//!
//! Nothing of it has a name on the node: the namespace lives by the file descriptors of the agent and
//! of QEMU alone, so that the kernel removes all of it with them, however they end.

pub mod netlink;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    os::fd::OwnedFd,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

use crate::names::Mac;

/// Bytes that VXLAN over IPv4 adds to a guest's packet: outer IP, UDP, VXLAN, inner Ethernet.
pub const VXLAN_OVERHEAD: u16 = 50;

/// What a segment consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentPlan {
    /// Number of the VXLAN: another one for each incarnation, so that guests of an older one are not
    /// heard (safety A1).
    pub vni: u32,
    /// UDP port of the VXLAN on the nodes.
    pub port: u16,
    /// Largest packet of the guests.
    pub mtu: u16,
    /// The node's own address among the job's nodes.
    pub node: Ipv4Addr,
    /// By which the agent reaches guests: address and length of its prefix.
    pub door: (Ipv4Addr, u8),
    /// Hardware address of that.
    pub door_mac: Mac,
    /// All members on other nodes, and their agents.
    pub peers: Vec<Peer>,
}

/// A member on another node, or its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Hardware address in the job's network.
    pub mac: Mac,
    /// Address of its node.
    pub node: Ipv4Addr,
}

/// Why there is no segment.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused a step.
    #[error("failed to {step}: {message}")]
    Refused {
        /// What was to be done.
        step: &'static str,
        /// What the kernel says.
        message: String,
    },
    /// The node's path cannot carry the packets.
    #[error(
        "the node's interface with {node} carries packets of {here} bytes; the job's network needs {needed}: raise \
         its MTU, or lower jobNetwork.mtu in the operator's configuration and create the job again"
    )]
    Narrow {
        /// The node's address.
        node: Ipv4Addr,
        /// MTU of its interface.
        here: u32,
        /// What is needed.
        needed: u32,
    },
    /// No interface of the node has the address.
    #[error("no interface of this node has the address {0}")]
    NoInterface(Ipv4Addr),
}

impl NetworkError {
    fn at<E: std::fmt::Display>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Refused { step, message: error.to_string() }
    }
}

/// A segment. It ends when this is dropped and the tap is closed.
#[derive(Debug)]
pub struct Segment {
    /// The guest's end, to be given to QEMU.
    pub tap: OwnedFd,
    namespace: OwnedFd,
}

/// The way into a segment from its node.
#[derive(Debug)]
pub struct Door {
    namespace: OwnedFd,
}

impl Segment {
    /// Parts the guest's end from the way in.
    pub fn split(self) -> (OwnedFd, Door) {
        (self.tap, Door { namespace: self.namespace })
    }
}

impl Door {
    /// To where the test runs.
    #[cfg(test)]
    pub(crate) fn here() -> Self {
        Self { namespace: std::fs::File::open("/proc/self/ns/net").unwrap().into() }
    }

    /// Does something that makes a socket; the socket belongs to the segment.
    ///
    /// # Errors
    /// A segment that cannot be entered.
    pub async fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> std::io::Result<T> {
        let namespace = self.namespace.try_clone()?;
        // a namespace is a thread's: one of its own, so that no other work ever runs in it
        let (done, result) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("segment".into()).spawn(move || {
            let entered = setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from);
            // nobody waits for it any more, if it fails
            let _ = done.send(entered.map(|()| work()));
        })?;
        result.await.map_err(|_| std::io::Error::other("the thread of the segment ended"))?
    }

    /// Connects to a guest.
    ///
    /// # Errors
    /// As of [`TcpStream::connect_timeout`].
    pub async fn connect(&self, to: SocketAddrV4, limit: Duration) -> std::io::Result<tokio::net::TcpStream> {
        let stream = self.within(move || TcpStream::connect_timeout(&SocketAddr::V4(to), limit)).await??;
        stream.set_nonblocking(true)?;
        tokio::net::TcpStream::from_std(stream)
    }
}

/// An IPv4 address, which the job's network needs of every node.
///
/// # Errors
/// The address, if it is of another family.
pub fn v4(address: IpAddr) -> Result<Ipv4Addr, IpAddr> {
    match address.to_canonical() {
        IpAddr::V4(address) => Ok(address),
        other @ IpAddr::V6(_) => Err(other),
    }
}
