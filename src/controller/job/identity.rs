//! Who the members are: names and addresses, which stay the same for the job's whole life. Pure.

use ipnet::Ipv4Net;

use super::network;
use crate::api::job_status::MemberStatus;

/// The members of a job, none of them placed; without addresses if jobs have no networks.
pub fn members(subnet: Option<Ipv4Net>, count: u32) -> Vec<MemberStatus> {
    let member = |index| {
        let address = subnet.map(|subnet| network::guest(subnet, index));
        MemberStatus {
            index,
            address: address.map(|address| address.to_string()).unwrap_or_default(),
            mac: address.map(|address| network::mac(address).to_string()).unwrap_or_default(),
            ..MemberStatus::default()
        }
    };
    (0..count).map(member).collect()
}

/// A master on a node of its own. It has no guest: its place in the network is its agent's.
pub fn master(subnet: Option<Ipv4Net>, members: u32) -> MemberStatus {
    let address = subnet.map(|subnet| network::door(subnet, members));
    MemberStatus {
        index: members,
        address: address.map(|address| address.to_string()).unwrap_or_default(),
        mac: address.map(|address| network::mac(address).to_string()).unwrap_or_default(),
        ..MemberStatus::default()
    }
}

/// Host name of a member.
pub fn hostname(job: &str, index: u32) -> String {
    let name: String = job.chars().map(|c| if c == '.' { '-' } else { c }).take(50).collect();
    format!("{}-{index}", name.trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_depends_on_the_subnet_and_the_index_only() {
        let subnet = Some("198.18.3.0/28".parse().unwrap());
        let three = members(subnet, 3);
        assert_eq!(three, members(subnet, 4)[..3]);
        assert_eq!((three[2].address.as_str(), three[2].mac.as_str()), ("198.18.3.3", "02:76:c6:12:03:03"));
        assert_eq!(members(None, 1)[0].address, "");
    }

    #[test]
    fn host_names_are_valid() {
        assert_eq!(hostname("pi.v2", 0), "pi-v2-0");
        assert!(hostname(&"x".repeat(253), 1023).len() <= 63);
    }
}
