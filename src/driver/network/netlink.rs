//! Segments by netlink.
//!
//! The VXLAN device is made from the node's namespace into the segment's: the device is there, its UDP
//! socket stays on the node, and nothing has to be routed between the two.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd as _,
};

use futures::{StreamExt as _, TryStreamExt as _};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVxlan, new_connection,
    packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressAttribute,
        link::{BridgeStpState, InfoBridgePort, InfoPortData, LinkAttribute, LinkInfo, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    },
};

use super::{NetworkError, Segment, SegmentPlan, VXLAN_OVERHEAD};

const VXLAN: &str = "vx0";
const BRIDGE: &str = "br0";
const TAP: &str = "tap0";
/// Where packets without one receiver go to: to every node.
const EVERYBODY: [u8; 6] = [0; 6];

/// Makes a segment, with all its forwarding entries. Needs root, or `CAP_NET_ADMIN` and
/// `CAP_SYS_ADMIN`.
///
/// # Errors
/// What the kernel refuses, and a node whose interface is too narrow. Nothing is left then.
pub async fn make(plan: SegmentPlan) -> Result<Segment, NetworkError> {
    let (done, result) = tokio::sync::oneshot::channel();
    // a namespace is a thread's: this one ends with the making
    std::thread::Builder::new()
        .name("segment".into())
        .spawn(move || {
            // nobody waits for it any more, if it fails: all of it is gone then
            let _ = done.send(in_a_new_namespace(&plan));
        })
        .map_err(NetworkError::at("start a thread"))?;
    result.await.map_err(NetworkError::at("make the segment"))?
}

fn in_a_new_namespace(plan: &SegmentPlan) -> Result<Segment, NetworkError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    runtime.map_err(NetworkError::at("start a runtime"))?.block_on(async {
        let node = Links::open()?;
        node.wide_enough(plan).await?;
        unshare(CloneFlags::CLONE_NEWNET).map_err(NetworkError::at("make a network namespace"))?;
        let namespace = fs::File::open("/proc/thread-self/ns/net").map_err(NetworkError::at("open the namespace"))?;
        // before any device: none of them is to say a word of its own
        for which in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
            if fs::exists(&path).unwrap_or_default() {
                fs::write(path, "1").map_err(NetworkError::at("switch IPv6 off"))?;
            }
        }
        let segment = Links::open()?;
        segment.up("lo").await?;
        segment.bridge(plan).await?;
        node.vxlan(plan, &namespace).await?;
        segment.attach(VXLAN, plan).await?;
        let tap = tap()?;
        segment.attach(TAP, plan).await?;
        segment.forward(plan).await?;
        filter_nothing();
        Ok(Segment { tap, namespace: namespace.into() })
    })
}

/// Opens the guest's end. The flags are the same for a guest's whole life, or a restore is refused.
fn tap() -> Result<std::os::fd::OwnedFd, NetworkError> {
    let device = tun_rs::DeviceBuilder::new()
        .name(TAP)
        .layer(tun_rs::Layer::L2)
        // packets with a header for offloads (IFF_VNET_HDR)
        .offload(true)
        .enable(false)
        .build_sync()
        .map_err(NetworkError::at("open a tap"))?;
    std::os::fd::AsFd::as_fd(&device).try_clone_to_owned().map_err(NetworkError::at("keep the tap"))
}

/// The devices of one namespace.
struct Links {
    handle: Handle,
}

impl Links {
    /// Those of the namespace the thread is in.
    fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) = new_connection().map_err(NetworkError::at("open netlink"))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    async fn get(&self, name: &str) -> Result<LinkMessage, NetworkError> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        let first = found.try_next().await.map_err(NetworkError::at("look for a device"))?;
        first.ok_or_else(|| NetworkError::at("look for a device")(format!("there is no {name}")))
    }

    async fn up(&self, name: &str) -> Result<(), NetworkError> {
        let index = self.get(name).await?.header.index;
        let up = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(up).execute().await.map_err(NetworkError::at("start a device"))
    }

    /// A node's interface must carry the guest's packets and what is put around them.
    async fn wide_enough(&self, plan: &SegmentPlan) -> Result<(), NetworkError> {
        let step = || NetworkError::at("look at the node's interfaces");
        let mut found = self.handle.address().get().set_address_filter(IpAddr::V4(plan.node)).execute();
        let mut index = None;
        while let Some(address) = found.try_next().await.map_err(step())? {
            let ours =
                |a: &AddressAttribute| matches!(a, AddressAttribute::Local(IpAddr::V4(local)) if *local == plan.node);
            if address.attributes.iter().any(ours) {
                index = Some(address.header.index);
            }
        }
        let index = index.ok_or(NetworkError::NoInterface(plan.node))?;
        let mut found = self.handle.link().get().match_index(index).execute();
        let link = found.try_next().await.map_err(step())?.ok_or(NetworkError::NoInterface(plan.node))?;
        let here = link.attributes.iter().find_map(|a| match a {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        let needed = u32::from(plan.mtu) + u32::from(VXLAN_OVERHEAD);
        match here {
            Some(here) if here < needed => Err(NetworkError::Narrow { node: plan.node, here, needed }),
            _ => Ok(()),
        }
    }

    async fn bridge(&self, plan: &SegmentPlan) -> Result<(), NetworkError> {
        let bridge = LinkMessageBuilder::<LinkBridge>::new(BRIDGE)
            .address(plan.door_mac.0.to_vec())
            .stp_state(BridgeStpState::Disabled)
            .mcast_snooping(false)
            .mtu(u32::from(plan.mtu))
            .up()
            .build();
        self.handle.link().add(bridge).execute().await.map_err(NetworkError::at("make a bridge"))?;
        let index = self.get(BRIDGE).await?.header.index;
        let (address, prefix) = plan.door;
        let add = self.handle.address().add(index, IpAddr::V4(address), prefix);
        add.execute().await.map_err(NetworkError::at("give the bridge its address"))
    }

    async fn vxlan(&self, plan: &SegmentPlan, into: &fs::File) -> Result<(), NetworkError> {
        let device = LinkVxlan::new(VXLAN, plan.vni)
            .local(plan.node)
            .port(plan.port)
            .learning(false)
            .mtu(u32::from(plan.mtu))
            .setns_by_fd(into.as_raw_fd())
            .build();
        self.handle.link().add(device).execute().await.map_err(NetworkError::at("make the VXLAN"))
    }

    /// Makes a device a port of the bridge. The VXLAN's learns no addresses: it knows them all.
    async fn attach(&self, name: &str, plan: &SegmentPlan) -> Result<(), NetworkError> {
        let bridge = self.get(BRIDGE).await?.header.index;
        let index = self.get(name).await?.header.index;
        let port = LinkUnspec::new_with_index(index).mtu(u32::from(plan.mtu)).controller(bridge).up().build();
        self.handle.link().set(port).execute().await.map_err(NetworkError::at("put a device into the bridge"))?;
        if name != VXLAN {
            return Ok(());
        }
        let deaf = LinkBridgePort::new(index).learning(false).build();
        self.handle.link().set_port(deaf).execute().await.map_err(NetworkError::at("stop the bridge's learning"))?;
        // the kernel has been seen to accept this and change nothing
        let learns = self.get(name).await?.attributes.iter().any(learning);
        if learns {
            return Err(NetworkError::at("stop the bridge's learning")("the kernel did not do it"));
        }
        Ok(())
    }

    /// Entries for all members elsewhere, and for what goes to everybody. The doors of other members need
    /// none: only an agent that looks whether other members can be reached speaks to a guest elsewhere from
    /// its door, and what that guest answers is sent to everybody, as all that has no entry. People's
    /// connections enter at the node of the very member they are for.
    async fn forward(&self, plan: &SegmentPlan) -> Result<(), NetworkError> {
        let index = self.get(VXLAN).await?.header.index;
        let nodes: std::collections::BTreeSet<_> = plan.peers.iter().map(|peer| peer.node).collect();
        let everybody = nodes.iter().map(|node| (EVERYBODY, *node));
        for (mac, node) in plan.peers.iter().map(|peer| (peer.mac.0, peer.node)).chain(everybody) {
            self.entry(index, mac, node).await.map_err(NetworkError::at("add a forwarding entry"))?;
        }
        Ok(())
    }

    /// Adds a receiver to those of an address. rtnetlink's own request cannot add to others.
    async fn entry(&self, index: u32, mac: [u8; 6], node: Ipv4Addr) -> Result<(), rtnetlink::Error> {
        let mut entry = NeighbourMessage::default();
        entry.header.family = AddressFamily::Bridge;
        entry.header.ifindex = index;
        entry.header.state = NeighbourState::Permanent;
        entry.header.flags = NeighbourFlags::Own;
        entry.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        entry.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(node)));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(entry));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
        let mut answers = self.handle.clone().request(request)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
        }
        Ok(())
    }
}

/// Packets between guests pass no firewall of the namespace, whatever the kernel's default is.
fn filter_nothing() {
    for which in ["iptables", "ip6tables", "arptables"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{which}");
        // it is only there with the module that would filter
        let _ = fs::write(path, "0");
    }
}

fn learning(attribute: &LinkAttribute) -> bool {
    let LinkAttribute::LinkInfo(infos) = attribute else { return false };
    infos.iter().any(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(port)) => port.contains(&InfoBridgePort::Learning(true)),
        _ => false,
    })
}

#[cfg(test)]
#[path = "netlink_tests.rs"]
mod tests;
