//! The member's place in the job's network: the segment on this node, and the gate before a command
//! that wants all members.

use std::{
    io::ErrorKind,
    net::SocketAddrV4,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Supervisor, load::LoadError, problems::Problem};
use crate::{
    driver::{
        agent::{MemberNetwork, NetworkMember},
        guest::seed::JobNetwork,
        network::{Door, NetworkError, Peer, SegmentPlan, netlink, v4},
        qemu::cmdline::JobCard,
    },
    names::Mac,
};

/// How long a member is tried before the others are.
const KNOCK: Duration = Duration::from_secs(1);
/// How long the members have to come up before the command is started without all of them.
const GATE: Duration = Duration::from_secs(600);
/// Where members are knocked at. A guest that refuses is there.
const SSH: u16 = 22;

impl From<NetworkError> for LoadError {
    fn from(error: NetworkError) -> Self {
        // another node may be able to
        Self::Node(error.to_string())
    }
}

impl Supervisor {
    /// Makes the segment, with its entries for all other members: before the guest can send (safety
    /// A1). The tap for QEMU, if jobs have networks.
    pub(super) async fn join_network(&self) -> Result<Option<OwnedFd>, LoadError> {
        let Some(network) = &self.config.network else { return Ok(None) };
        let segment = netlink::make(plan(network, self.config.member)?).await?;
        let (tap, door) = segment.split();
        // it is made once in an agent's life
        let _ = self.door.set(Arc::new(door));
        Ok(Some(tap))
    }

    pub(super) fn place(&self) -> Option<(&MemberNetwork, &NetworkMember)> {
        let network = self.config.network.as_ref()?;
        Some((network, network.members.get(self.config.member as usize)?))
    }

    /// The guest's card there.
    pub(super) fn job_card(&self) -> Option<JobCard> {
        self.place().map(|(network, own)| JobCard { mac: own.mac.clone(), mtu: network.mtu })
    }

    /// What the guest is told of it.
    pub(super) fn job_network(&self) -> Option<JobNetwork> {
        let (network, own) = self.place()?;
        Some(JobNetwork {
            mac: own.mac.clone(),
            address: format!("{}/{}", own.address, network.subnet.prefix_len()),
            mtu: network.mtu,
            members: network.members.iter().map(|m| (m.name.clone(), m.address.to_string())).collect(),
        })
    }

    /// Waits until all other members can be reached from this one's node, or have had their time.
    /// With ssh keys in the spec, their ssh servers are waited for.
    pub(super) async fn wait_for_members(&self) {
        let (Some((network, own)), Some(door)) = (self.place(), self.door.get()) else { return };
        let until = Instant::now() + GATE;
        for member in network.members.iter().filter(|member| member.address != own.address) {
            while !self.is_up(door, member).await {
                if Instant::now() > until {
                    let text = format!("{} was not reached: the command is started without it", member.name);
                    self.problem(Problem::Members, &text);
                    return;
                }
                tokio::time::sleep(KNOCK / 4).await;
            }
        }
    }

    async fn is_up(&self, door: &Door, member: &NetworkMember) -> bool {
        match door.connect(SocketAddrV4::new(member.address, SSH), KNOCK).await {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::ConnectionRefused && self.config.ssh_keys.is_empty(),
        }
    }
}

/// What this node's segment consists of.
fn plan(network: &MemberNetwork, own: u32) -> Result<SegmentPlan, LoadError> {
    let mac = |text: &str| text.parse::<Mac>().map_err(|error| LoadError::Unusable(error.to_string()));
    let family = |address| LoadError::Unusable(format!("job networks need nodes with IPv4 addresses, not {address}"));
    let own = own as usize;
    let here = network.members.get(own).map(|member| member.node);
    // a master on a node of its own comes after all members
    let master = network.master.as_ref().filter(|_| own == network.members.len()).map(|master| master.node);
    let here = here.or(master).ok_or_else(|| LoadError::Unusable("the job's network lacks this member".into()))?;
    let mut peers = Vec::new();
    for (_, member) in network.members.iter().enumerate().filter(|(index, _)| *index != own) {
        let node = v4(member.node).map_err(family)?;
        // its guest, and its agent: what is meant for one node does not go to all
        for text in [Some(&member.mac), member.door_mac.as_ref()].into_iter().flatten() {
            peers.push(Peer { mac: mac(text)?, node });
        }
    }
    if let Some(master) = network.master.as_ref().filter(|_| own < network.members.len()) {
        peers.push(Peer { mac: mac(&master.mac)?, node: v4(master.node).map_err(family)? });
    }
    Ok(SegmentPlan {
        vni: network.vni,
        port: network.port,
        mtu: network.mtu,
        node: v4(here).map_err(family)?,
        door: (network.door, network.subnet.prefix_len()),
        door_mac: mac(&network.door_mac)?,
        peers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::agent::MasterPlace;

    fn member(index: u8) -> NetworkMember {
        NetworkMember {
            name: format!("pi-{index}"),
            address: std::net::Ipv4Addr::new(198, 18, 0, 1 + index),
            mac: format!("02:76:c6:12:00:0{}", 1 + index),
            door_mac: (index > 0).then(|| format!("02:76:c6:12:00:1{index}")),
            node: std::net::IpAddr::from([192, 0, 2, 10 + index]),
        }
    }

    #[test]
    fn entries_are_for_the_others() {
        let network = MemberNetwork {
            subnet: "198.18.0.0/28".parse().unwrap(),
            vni: 7,
            port: 14789,
            mtu: 1450,
            door: std::net::Ipv4Addr::new(198, 18, 0, 9),
            door_mac: "02:76:c6:12:00:09".into(),
            members: (0..3).map(member).collect(),
            master: None,
        };
        let made = plan(&network, 1).unwrap();
        assert_eq!(made.node.to_string(), "192.0.2.11");
        let peers: Vec<String> = made.peers.iter().map(|peer| format!("{} {}", peer.mac, peer.node)).collect();
        assert_eq!(
            peers,
            [
                // written by an operator that names no doors
                "02:76:c6:12:00:01 192.0.2.10",
                "02:76:c6:12:00:03 192.0.2.12",
                "02:76:c6:12:00:12 192.0.2.12",
            ]
        );
        assert!(plan(&network, 3).is_err());
        let mut wide = network.clone();
        wide.master = Some(MasterPlace { mac: "02:76:c6:12:00:0c".into(), node: [192, 0, 2, 13].into() });
        let made = plan(&wide, 1).unwrap();
        assert_eq!(made.peers.last().unwrap().node.to_string(), "192.0.2.13");
        let master = plan(&wide, 3).unwrap();
        assert_eq!((master.node.to_string().as_str(), master.peers.len()), ("192.0.2.13", 5));
        assert!(plan(&wide, 4).is_err());
        let mut v6 = network;
        v6.members[2].node = "fd00::1".parse().unwrap();
        assert!(plan(&v6, 1).unwrap_err().to_string().contains("fd00::1"));
    }
}
